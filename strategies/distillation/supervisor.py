"""The server's end of the distillation server: starts it, feeds it, hears it, restarts it.

Nothing here ever waits for the process: versions are written as files, orders go through a thread,
and what it says is collected by another.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fl_app.config import RunConfig
from fl_app.errors import WorkerError
from strategies.distillation.mailbox import LatestSlot, Vectors, VersionStore

# Where the packages are: the process must import the code that runs here, not another copy.
_APP = Path(__file__).resolve().parents[2]
_STOP_SECONDS = 15.0


class DistillationServer:
    """Starts the worker process in `directory` and keeps it going.

    Events it has said since the last call come from `events`; one more kind, "died" with a reason,
    is added here. After config.distill.restarts restarts it stays dead (`alive` is False) and the
    run goes on without it. `heard` is when it was started or last said something, on the monotonic
    clock: at work, it says something every few seconds.
    """

    def __init__(self, config: RunConfig, directory: Path) -> None:
        self._config, self._directory = config, directory
        self._mailbox = (VersionStore if config.virtual else LatestSlot)(directory)
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._orders: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._finish: dict[str, Any] | None = None
        self._restarts = config.distill.restarts
        self._process: subprocess.Popen[str] | None = None
        self._process_number = 0
        self._stuck = ""  # why the process has been killed from here
        self.heard = time.monotonic()
        self.alive = False
        self.finished = False
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(config.flat()))

    def start(self) -> None:
        """Start the process; it continues from the newest state in the directory, if any."""
        threads = str(self._config.distill.threads)
        paths = [str(_APP), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }
        with open(self._directory / "stderr.log", "ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "strategies.distillation.worker", str(self._directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                cwd=_APP,
            )
        self.alive, self.heard, self._stuck = True, time.monotonic(), ""
        self._process_number += 1
        self._orders.put(None)  # ends the thread of the process before
        self._orders = queue.SimpleQueue()
        threading.Thread(target=self._hear, args=(self._process,), daemon=True).start()
        threading.Thread(target=self._tell, args=(self._process, self._orders), daemon=True).start()
        if self._finish is not None:
            self._orders.put(self._finish)

    def put(self, version: int, vectors: Vectors) -> None:
        """Offer a new version: overwriting the last one (real clock) or beside it (virtual)."""
        self._mailbox.put(version, vectors)

    def request(self, round_: int) -> None:
        """Ask for the global model as it is now, to be shown for round `round_` (real clock)."""
        self._orders.put({"op": "publish", "round": round_})

    def finish(self, round_: int) -> None:
        """Tell that version `round_` was the last; what follows ends with the event "finished"."""
        self._finish = {"op": "finish", "round": round_}
        self._orders.put(self._finish)

    def events(self) -> list[dict[str, Any]]:
        """What has been heard since the last call; a death is answered with a restart."""
        heard = []
        while not self._events.empty():
            event = self._events.get()
            self.finished = self.finished or event["event"] == "finished"
            if event["event"] == "died":
                if self.finished:
                    continue
                self.alive = False
                event["restarting"] = self._restarts > 0
                if self._restarts > 0:
                    self._restarts -= 1
                    self.start()
            if event["event"] == "ready" and self._process_number > 1:
                event["event"] = "restarted"
            heard.append(event)
        return heard

    def give_up(self, why: str) -> None:
        """Kill a process that is stuck: it dies of `why`, and is replaced as any that dies."""
        if self._process is not None and not self._stuck:
            self._stuck = why
            self._process.kill()

    def stop(self) -> None:
        """End the process: politely, then for good."""
        process = self._process
        if process is None:
            return
        self._orders.put(None)  # closes stdin
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.alive = False

    @property
    def pid(self) -> int:
        if self._process is None:
            raise WorkerError("the distillation server has not been started")
        return self._process.pid

    def last_words(self) -> str:
        """The end of what the process wrote to stderr."""
        with contextlib.suppress(OSError):
            lines = (self._directory / "stderr.log").read_text(errors="replace").strip()
            return lines.splitlines()[-1] if lines else ""
        return ""

    def _hear(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.heard = time.monotonic()
            with contextlib.suppress(ValueError):
                self._events.put(json.loads(line))
        code = process.wait()
        reason = f"exit code {code}" + (f": {self.last_words()}" if code > 0 else "")
        reason = self._stuck or reason
        self._events.put({"event": "died", "reason": reason})

    def _tell(
        self,
        process: subprocess.Popen[str],
        orders: "queue.SimpleQueue[dict[str, Any] | None]",
    ) -> None:
        """A thread of its own, because writing to a process that does not read can block."""
        assert process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            while (order := orders.get()) is not None:
                process.stdin.write(json.dumps(order) + "\n")
                process.stdin.flush()
            process.stdin.close()
