"""Deployments for tests of what goes wrong: machines with their own disks, links that can be cut,
and runs that are watched while they last."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from fl_app.deploy.directory import machine, settings_of
from fl_app.deploy.loopback import Loopback
from strategies.checkpoint import load_tensors
from strategies.site import SERVER, SITE_FILE

PATIENCE = 300.0
WORKER = "client_apps.session_worker"  # the process of a device in which it works


class Cable:
    """A TCP port that leads to another one on this machine, until it is cut.

    While it is cut nothing passes and nobody is told: neither ends nor refuses anything, like a
    network that is gone.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.sent = {"up": 0, "down": 0}  # bytes
        self._whole = threading.Event()
        self._whole.set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole.clear()

    def heal(self) -> None:
        self._whole.set()

    def close(self) -> None:
        self._server.close()
        self.heal()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._server.accept()
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        self._whole.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            near.close()
            return
        for ends in ((near, far, "up"), (far, near, "down")):
            threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._whole.wait()
                self.sent[way] += len(data)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Site(Loopback):
    """A deployment whose machines have a disk each for what they keep of runs.

    late: devices that the test starts itself. behind_cables: those that reach the server over
    their `wires` alone, one to Flower and one to the mail router; `cables` are all of them.
    tampered: by device, what is done to its files before it starts.
    """

    def __init__(
        self,
        directory: Path,
        devices: list[str],
        *,
        host: str = "127.0.0.1",
        late: Collection[str] = (),
        behind_cables: Collection[str] = (),
        tampered: dict[str, Callable[[Path], None]] | None = None,
        timeout: float = 120.0,
    ) -> None:
        environment = {"OMP_NUM_THREADS": "1"}
        super().__init__(directory, devices, host=host, environment=environment, timeout=timeout)
        self._late, self._behind = set(late), set(behind_cables)
        self._tampered = dict(tampered or {})
        self.wires: dict[str, tuple[Cable, Cable]] = {}

    @property
    def cables(self) -> list[Cable]:
        return [cable for pair in self.wires.values() for cable in pair]

    def home(self, name: str) -> Path:
        return self.directory / "homes" / name

    def start(self, name: str) -> None:
        if name in self._late:
            self._late.discard(name)  # the next time it is meant
            return
        place = machine(self.site, name)
        if name in self._tampered:
            self._tampered.pop(name)(place)
        if name in self._behind and name not in self.wires:
            self._wire(name, place)
        self.environment["EDGE_FL_HOME"] = str(self.home(name))
        super().start(name)

    def close(self) -> None:
        for cable in self.cables:
            cable.heal()
        super().close()
        for cable in self.cables:
            cable.close()

    def kill_program(self, name: str, program: str) -> None:
        """SIGKILL to the one process of a machine that runs `program`."""
        [pid] = self.pids(name, program)
        os.kill(pid, signal.SIGKILL)

    def _wire(self, name: str, place: Path) -> None:
        settings = settings_of(self.site)
        fleet, mail = self.wires[name] = Cable(settings["port"]), Cable(settings["mail-port"])
        address = "127.0.0.1:{}"
        script = place / "start-supernode.sh"
        replace(script, address.format(settings["port"]), address.format(fleet.port))
        content = json.loads((place / SITE_FILE).read_text())
        (place / SITE_FILE).write_text(json.dumps(content | {"mail-port": mail.port}))


def with_python(place: Path, code: str) -> None:
    """Have every Python of the device whose files are in `place` begin with `code`."""
    (place / "lib").mkdir()
    (place / "lib" / "sitecustomize.py").write_text(code)
    script, keeper = place / "start-supernode.sh", "export EDGE_FL_KEEPER"
    replace(script, keeper, f'export PYTHONPATH="{place / "lib"}"\n{keeper}')


def replace(path: Path, old: str, new: str) -> None:
    """Change a text in a file that must be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@contextlib.contextmanager
def slowed(pids: Collection[int], share: float) -> Iterator[None]:
    """Let processes run for that share of the time alone."""
    ending = threading.Event()

    def send(number: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def hold() -> None:
        while not ending.is_set():
            send(signal.SIGSTOP)
            ending.wait((1 - share) / 2)
            send(signal.SIGCONT)
            ending.wait(share / 2)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


class Run:
    """`edge-fl run` on a site, or `edge-fl resume` without `values`, and what it leaves on the
    server's disk."""

    def __init__(self, site: Site, name: str, values: dict[str, Any] | None = None) -> None:
        self.path = site.home(SERVER) / "runs" / name
        words = ["resume", str(self.path)]
        if values is not None:
            words = ["run", f"name={name}", *(f"{key}={value}" for key, value in values.items())]
        self._log = site.directory / f"{words[0]}-{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fl_app.cli", words[0], "--superlink", "edge", *words[1:]],
                env=site.environment | {"EDGE_FL_HOME": str(site.home(SERVER))},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind until now; a line that is being written does not count."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.path / "metrics.jsonl").read_text().split("\n")[:-1]
            return [event for line in lines if (event := json.loads(line))["event"] == kind]
        return []

    def rounds(self) -> list[int]:
        """Those, or the windows, that are over."""
        return [event["round"] for event in self.events("round")]

    @property
    def window(self) -> int:
        """The last that is over."""
        return max(self.rounds(), default=0)

    def checkpoint(self) -> int:
        """The round or window at whose end the last checkpoint was written."""
        _, metadata = load_tensors(self.path / "checkpoints" / "server.safetensors")
        return metadata["window"] if "window" in metadata else metadata["version"]

    def worked(self, participant: int) -> list[int]:
        """The windows of which a participant has told before they were over."""
        return [e["round"] for e in self.events("nodes") if e["accuracy"][participant] is not None]

    def wait(self, done: Callable[[], bool], patience: float = PATIENCE) -> float:
        """How many seconds it took until `done`; AssertionError if the run ends before."""
        began = time.monotonic()
        while not done():
            assert time.monotonic() < began + patience, self.output[-4000:]
            assert self._process.poll() is None, self.output[-4000:]
            time.sleep(0.1)
        return time.monotonic() - began

    def wait_for_round(self, number: int) -> None:
        self.wait(lambda: self.window >= number)

    def pass_windows(self, count: int) -> None:
        """Wait for so many more windows."""
        self.wait_for_round(self.window + count)

    def code(self, patience: float = PATIENCE) -> int:
        """Wait for the command's end; its exit code."""
        try:
            return self._process.wait(patience)
        finally:
            self._process.kill()

    def end(self, patience: float = PATIENCE) -> dict[str, Any]:
        """Wait for its end, which must be a good one, and return its summary."""
        assert self.code(patience) == 0, self.output[-4000:]
        return json.loads((self.path / "summary.json").read_text())

    def kill(self) -> None:
        """End the command with SIGKILL; what it started on the site goes on."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it, whatever it does."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
        self._process.kill()
