"""The server's end of the processes beside it: starts them, feeds them, hears them, restarts them.

Nothing here ever waits for the process: versions are written as files, orders go through a thread,
and what it says is collected by another.
"""

import contextlib
import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from strategies import child
from strategies.averaging import Vectors
from strategies.distillation.child import write_run
from strategies.distillation.mailbox import LatestSlot, VersionStore
from strategies.distillation.settings import DistillationRun
from strategies.errors import WorkerError

_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.02
# A process that works says so every few seconds. Its start takes longer, and on a busy machine
# everything does.
_SILENCE_SECONDS = 300.0
# Between two looks at it, when this process or the whole machine was asleep.
_ASLEEP_SECONDS = 10.0


class Process:
    """Starts ``python -m module DIRECTORY`` and keeps it going; DIRECTORY has what it must know.

    Events it has said since the last call come from `events`; one more kind, "died" with a reason,
    is added here. After run.distill.restarts restarts it stays dead (`alive` is False) and the
    run goes on without it. `heard` is when it was started or last said something, on the monotonic
    clock: at work, it says something every few seconds. `standing` orders are told to a successor
    again.
    """

    module: str
    called: str

    def __init__(self, run: DistillationRun, directory: Path) -> None:
        self._run, self._directory = run, directory
        self._log = directory / "stderr.log"
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._orders: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.standing: list[dict[str, Any]] = []
        self._restarts = run.distill.restarts
        self._process: subprocess.Popen[str] | None = None
        self._process_number = 0
        self._stuck = ""  # why the process has been killed from here
        self.heard = time.monotonic()
        self.alive = False
        self.finished = False
        directory.mkdir(parents=True, exist_ok=True)
        write_run(directory, run)

    def start(self) -> None:
        """Start the process; it continues from the newest state in the directory, if any."""
        threads = str(self._run.distill.threads)
        self._process = child.start(
            self.module,
            str(self._directory),
            log=self._log,
            environment={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            text=True,
        )
        self.alive, self.heard, self._stuck = True, time.monotonic(), ""
        self._process_number += 1
        self._orders.put(None)  # ends the thread of the process before
        self._orders = queue.SimpleQueue()
        threading.Thread(target=self._hear, args=(self._process,), daemon=True).start()
        threading.Thread(target=self._tell, args=(self._process, self._orders), daemon=True).start()
        for order in self.standing:
            self._orders.put(order)

    def order(self, op: str, **fields: Any) -> dict[str, Any]:
        """Tell the process to do something."""
        order = {"op": op, **fields}
        self._orders.put(order)
        return order

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

    def wait(
        self, done: Callable[[], bool], hear: Callable[[], None], timeout: float | None = None
    ) -> bool:
        """Call `hear` until `done`, or until there is nobody to wait for; False if that has taken
        `timeout` seconds. Without a timeout it takes as long as the process works: one that is
        silent is stuck, and is replaced."""
        began = looked = time.monotonic()
        while not done() and self.alive:
            now = time.monotonic()
            if now - looked > _ASLEEP_SECONDS:  # it is not the process that was silent
                began = now
            looked = now
            if timeout is not None and now - began > timeout:
                return False
            if timeout is None and now - max(began, self.heard) > _SILENCE_SECONDS:
                self.give_up(f"it was stuck: for {_SILENCE_SECONDS:g} s it said nothing")
            hear()
            time.sleep(_POLL_SECONDS)
        return True

    def give_up(self, why: str) -> None:
        """Kill a process that is stuck: it dies of `why`, and is replaced as any that dies."""
        if self._process is not None and not self._stuck:
            self._stuck = why
            self._process.kill()

    def stop(self) -> None:
        """End the process: politely, then for good."""
        if self._process is None:
            return
        self._orders.put(None)  # closes stdin
        child.stop(self._process, _STOP_SECONDS)
        self.alive = False

    @property
    def pid(self) -> int:
        if self._process is None:
            raise WorkerError(f"{self.called} has not been started")
        return self._process.pid

    def last_words(self) -> str:
        """The end of what the process wrote to stderr."""
        return child.last_words(self._log)

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


class DistillationServer(Process):
    """The worker process, its mailbox, and what it is asked for."""

    module, called = "strategies.distillation.worker", "the distillation server"

    def __init__(self, run: DistillationRun, directory: Path) -> None:
        super().__init__(run, directory)
        self._mailbox = (VersionStore if run.virtual else LatestSlot)(directory)

    def put(self, version: int, vectors: Vectors) -> None:
        """Offer a new version: overwriting the last one (real clock) or beside it (virtual)."""
        self._mailbox.put(version, vectors)

    def request(self, round_: int) -> None:
        """Ask for the global model as it is now, to be shown for round `round_` (real clock)."""
        self.order("publish", round=round_)

    def finish(self, round_: int) -> None:
        """Tell that version `round_` was the last; what follows ends with the event "finished"."""
        self.standing.append(self.order("finish", round=round_))


class ReferenceProcess(Process):
    """The process of the trained references, and what they are asked for."""

    module, called = "strategies.distillation.reference_worker", "the process of the references"

    def show(self, round_: int, step: int) -> None:
        """Have them trained until they have taken `step` steps, and shown for round `round_`."""
        self.standing.append(self.order("show", round=round_, step=step))

    def shown(self, round_: int, step: int) -> None:
        """What `show` has ordered is done."""
        done = {"op": "show", "round": round_, "step": step}
        self.standing = [order for order in self.standing if order != done]
