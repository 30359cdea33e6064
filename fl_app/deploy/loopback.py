"""A whole deployment on one machine, as real processes that can be killed and started again."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fl_app.deploy import directory as deployment
from fl_app.deploy.nodes import list_nodes
from fl_app.deploy.templates import CONNECTION
from fl_app.launch import supervise
from fl_app.launch.superlink import free_port, tail
from strategies.errors import EdgeFlError
from strategies.site import SERVER


class Loopback:
    """A deployment of `devices` in `directory`/site, all on 127.0.0.1, while the context lasts.

        with Loopback(tmp_path, devices=["pi-1", "pi-2"]) as site:
            subprocess.run(["flwr", "run", APP, site.connection], env=site.environment)

    host: this machine's name or address in the devices' files. data: {device: path of its own
    images}. mail_port: of the mail router, None = a free one, 0 = no
    router. On entering, everything is started and every device is on line; EdgeFlError with the end
    of a log if not. Each machine has its log in `directory`/NAME.log ("server" is the server's).
    On leaving, and when this process dies in whatever way, all processes end.
    """

    connection = CONNECTION

    def __init__(
        self,
        directory: Path,
        devices: Sequence[str],
        *,
        host: str = "127.0.0.1",
        data: Mapping[str, Path] | None = None,
        insecure: bool = False,
        mail_port: int | None = None,
        environment: Mapping[str, str] | None = None,
        timeout: float = 120.0,
    ) -> None:
        self.directory, self.devices = directory.absolute(), tuple(devices)
        self.site = self.directory / "site"
        self.flwr_home = self.site / "flower"
        self._host, self._data, self._timeout = host, dict(data or {}), timeout
        self._insecure, self._mail_port = insecure, mail_port
        # The programs of this Python environment, which need not be activated.
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self.environment = {
            **os.environ,
            "PATH": programs,
            "FLWR_HOME": str(self.flwr_home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            **(environment or {}),
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, int] = {}
        self._began: dict[str, int] = {}  # where in its log a machine's last start is
        self._scratch: dict[str, str] = {}  # the folder for what a machine's processes keep in /tmp

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        deployment.create(
            self.site,
            self._host,
            devices=self.devices,
            port=free_port(),
            mail_port=free_port() if self._mail_port is None else self._mail_port,
            insecure=self._insecure,
        )
        try:
            self.start(SERVER)
            self.wait_for(SERVER, "knows the devices", self._registered)
            for name in self.devices:
                self.start(name)
            self.wait_online()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, name: str) -> None:
        """Start a device, or the server (`SERVER`). Each keeps itself alive, like under systemd."""
        self._log(name).touch()
        self._began[name] = self._log(name).stat().st_size
        place = deployment.machine(self.site, name)
        if name == SERVER:
            command, own = [str(place / "start-superlink.sh")], {}
        else:
            command = [str(place / "start-supernode.sh"), *map(str, self._own_data(name))]
            port = self._ports.setdefault(name, free_port())
            own = {"EDGE_FL_PORT": str(port), "EDGE_FL_AGAIN": "2"}
        # Removed with the last process: by us, or by the supervisor if we are gone.
        scratch = self._scratch[name] = tempfile.mkdtemp(prefix="edge-fl-")
        supervisor = [sys.executable, "-P", supervise.__file__, str(os.getpid()), scratch]
        with self._log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                [*supervisor, *command],
                env=self.environment | {"TMPDIR": scratch} | own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """Cut the power of a device, or of the server: SIGKILL to all of its processes."""
        process = self._running.pop(name)
        while alive := supervise.descendants(process.pid):
            for pid in alive:
                _kill(pid)
        process.wait()
        shutil.rmtree(self._scratch.pop(name), ignore_errors=True)

    def kill_client_app(self, name: str) -> int:
        """SIGKILL to the device's ClientApp process alone; returns how many there were."""
        return self._kill_programs(name, "flwr-clientapp")

    def kill_server_app(self) -> int:
        """SIGKILL to the ServerApp process alone; returns how many there were."""
        return self._kill_programs(SERVER, "flwr-serverapp")

    def kill_superlink(self) -> int:
        """SIGKILL to the SuperLink alone, which is then started again; returns how many."""
        return self._kill_programs(SERVER, "fl_app.deploy.gate")

    def pids(self, name: str, program: str = "") -> list[int]:
        """The processes of a machine, or those of them that run `program`."""
        below = supervise.descendants(self._running[name].pid)
        return [pid for pid in below if not program or program in _words(pid)]

    def online(self) -> list[str]:
        """The devices that the SuperLink sees; insecure ones have no names there: "" each."""
        nodes = list_nodes(self.site / SERVER)
        return sorted(node.name for node in nodes if node.status == "online")

    def wait_online(self, devices: Sequence[str] | None = None) -> None:
        """Wait until these devices, or all that were started, are on line. EdgeFlError if not."""
        started = [name for name in self._running if name != SERVER]
        expected = started if devices is None else list(devices)
        names = [""] * len(expected) if self._insecure else expected

        def there() -> bool:
            # The SuperLink takes a device that was killed for on line for another minute.
            found = self.online() if all(map(self._joined, expected)) else []
            return len(found) >= len(names) and set(names) <= set(found)

        self.wait_for(expected[0] if expected else SERVER, "and the others are on line", there)

    def log(self, name: str) -> str:
        """What a device, or the server, has printed so far."""
        return self._log(name).read_text(errors="replace")

    def close(self) -> None:
        """End everything, in order: devices first."""
        for name in reversed(list(self._running)):
            self._running[name].terminate()
        for name in reversed(list(self._running)):
            self._running.pop(name).wait(supervise.GRACE_SECONDS + 30)
            shutil.rmtree(self._scratch.pop(name), ignore_errors=True)

    def _registered(self) -> bool:
        if self._insecure:
            return True
        try:
            return len(list_nodes(self.site / SERVER)) == len(self.devices)
        except EdgeFlError:  # no answer is not yet: `wait_for` says when it is too late
            return False

    def _joined(self, name: str) -> bool:
        return b"SuperNode ID" in self._log(name).read_bytes()[self._began[name] :]

    def _own_data(self, name: str) -> list[Path]:
        return [self._data[name]] if name in self._data else []

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def wait_for(self, name: str, what: str, condition: Callable[[], bool]) -> None:
        """Wait until the machine called `name` does `what`; else EdgeFlError with its log's end."""
        deadline = time.monotonic() + self._timeout
        while not condition():
            if time.monotonic() > deadline:
                raise EdgeFlError(
                    f"within {self._timeout:g} s it did not happen that {name} {what}; "
                    f"the end of {self._log(name)}:\n{tail(self._log(name))}"
                )
            time.sleep(0.2)

    def _kill_programs(self, name: str, program: str) -> int:
        found = self.pids(name, program)
        for pid in found:
            _kill(pid)
        return len(found)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _words(pid: int) -> list[str]:
    """The words of a process's command line, without the folders of programs (Linux)."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
    return [os.path.basename(os.fsdecode(word)) for word in words]
