"""A SuperLink of our own: started for one run, talked to by the `flwr` command, and ended."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_app.launch import supervise
from fl_app.launch.signals import held
from strategies.errors import EdgeFlError
from strategies.paths import expanded, runs_root

CONNECTION = "edge-fl"
STARTUP_SECONDS = 300.0  # it takes two, and minutes where others have the processors
ANSWER_SECONDS = 120.0


@dataclass
class Link:
    """A SuperLink to talk to by the `flwr` command: a connection name and an environment."""

    connection: str
    environment: dict[str, str]
    directory: str | None = None
    supervisor: subprocess.Popen[bytes] | None = None

    def flwr(self, *arguments: str) -> subprocess.Popen[str]:
        """`flwr ARGUMENTS`, in a session of its own: Ctrl-C is ours to handle."""
        return subprocess.Popen(
            [_program("flwr"), *arguments],
            env=self.environment,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )

    def ask(self, *arguments: str) -> dict[str, Any]:
        """The answer of a `flwr` command as JSON; EdgeFlError with its message if it failed."""
        process = self.flwr(*arguments, "--format", "json")
        try:
            output, _ = process.communicate(timeout=ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            output = f"no answer within {ANSWER_SECONDS:.0f} s"
            if arguments[0] == "run" and self.supervisor is None:
                output += (
                    f"; the run may have been accepted: see `flwr list {self.connection}`, and "
                    f"stop it by `flwr stop RUN-ID {self.connection}`"
                )
        finally:
            process.kill()
        with contextlib.suppress(ValueError):
            answer = json.loads(output[output.index("{") :])
            if answer.get("success"):
                return answer
            output = str(answer.get("error-message") or output)
        raise EdgeFlError(f"`flwr {arguments[0]}` failed: {output.strip()}")

    @property
    def lost(self) -> str:
        """What it means when the log breaks off."""
        if self.supervisor is not None:
            return "the SuperLink has died"
        return (
            f"the connection to SuperLink {self.connection!r} was lost; the run may go on: see "
            f"`flwr list {self.connection}`"
        )

    @property
    def alive(self) -> bool:
        return self.supervisor is None or self.supervisor.poll() is None

    def serverapp_pids(self) -> list[int] | None:
        """The processes that run the simulation, or None where that cannot be seen."""
        if self.supervisor is None or not Path("/proc/self/cmdline").exists():
            return None
        return [
            pid
            for pid in supervise.descendants(self.supervisor.pid)
            if runs(pid, "flwr-simulation")
        ]


def runs(pid: int, program: str) -> bool:
    """Whether process `pid` is `program`, itself or as a Python script (Linux)."""
    with contextlib.suppress(OSError):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return any(Path(os.fsdecode(word)).name == program for word in arguments[:2])
    return False


def _program(name: str) -> str:
    """A program of this Python environment, which need not be activated."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name


@contextlib.contextmanager
def local_superlink(ray_address: str = "") -> Iterator[Link]:
    """A SuperLink for one run, with its own port, FLWR_HOME, Ray and empty working directory.

    ray_address: join this Ray cluster instead of starting a Ray. Its other machines must see the
    app's files, so the directory is then made beside the runs, in $EDGE_FL_HOME.

    Raises EdgeFlError when it does not come up. On leaving, all that it has started is ended.
    """
    # Not under TMPDIR: Ray's socket paths must fit into 107 characters.
    base = "/tmp" if os.access("/tmp", os.W_OK) else None
    if ray_address:
        base = str(runs_root().parent)
        os.makedirs(base, exist_ok=True)
    directory = tempfile.mkdtemp(prefix="edge-fl-", dir=base)
    supervisor = None
    try:
        home, empty = Path(directory, "flower"), Path(directory, "empty")
        home.mkdir()
        empty.mkdir()
        port = free_port()
        lines = ["[superlink]", f'default = "{CONNECTION}"', f"[superlink.{CONNECTION}]"]
        lines += [f'address = "127.0.0.1:{port}"', "insecure = true"]
        (home / "config.toml").write_text("\n".join(lines) + "\n")
        environment = _environment(home, directory, ray_address)
        log = Path(directory, "superlink.log")
        with log.open("wb") as output:
            supervisor = subprocess.Popen(
                _superlink_command(port, directory),
                env=environment,
                cwd=empty,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _wait_until_healthy(port, supervisor, log)
        yield Link(CONNECTION, environment, str(empty), supervisor)
    finally:
        with held():
            try:
                if supervisor is not None:
                    supervisor.terminate()
                    supervisor.wait(supervise.GRACE_SECONDS + 30)
            finally:
                shutil.rmtree(directory, ignore_errors=True)


def _superlink_command(port: int, directory: str) -> list[str]:
    # By its file, and -P: it needs none of our packages, nor a path to them.
    command = [sys.executable, "-P", supervise.__file__, str(os.getpid()), directory]
    superlink = [_program("flower-superlink"), "--insecure", "--simulation"]
    superlink += ["--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port)]
    return [*command, *superlink, "--disable-runtime-dependency-installation"]


# What a user may have set otherwise.
_RAY = {
    # A run has looked for room itself; else Ray says of a disk with room for many runs, every ten
    # seconds, that it is 95 % full.
    "RAY_local_fs_capacity_threshold": "0.999",
    # Ray's own is 15: beside any other busy program clients get a thirtieth of a core, while the
    # distillation server goes on.
    "RAY_worker_niceness": "0",
}


def _environment(home: Path, directory: str, ray_address: str) -> dict[str, str]:
    environment = {
        **_RAY,
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        "RAY_TMPDIR": directory,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default; else it warns
        # The programs of this environment start one another by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    environment.pop("RAY_ADDRESS", None)
    if ray_address:
        environment["RAY_ADDRESS"] = ray_address
        del environment["RAY_TMPDIR"]
    if edge_fl_home := environment.get("EDGE_FL_HOME"):
        environment["EDGE_FL_HOME"] = str(expanded(edge_fl_home, "EDGE_FL_HOME").absolute())
    return environment


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_healthy(port: int, superlink: subprocess.Popen[bytes], log: Path) -> None:
    # No proxy: an http_proxy variable must not catch a call to this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + STARTUP_SECONDS
    while superlink.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            opener.open(f"http://127.0.0.1:{port}/health", timeout=2).close()
            return
        time.sleep(0.05)
    if superlink.poll() is None:
        raise EdgeFlError(f"the SuperLink did not answer within {STARTUP_SECONDS:.0f} s")
    raise EdgeFlError(f"the SuperLink did not start:\n{tail(log)}")


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
