"""What a run's processes use, seen from outside (Linux)."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from fl_app.launch.supervise import descendants

_TICKS = os.sysconf("SC_CLK_TCK")
_NAMES = (  # (in the command line, what it is)
    ("client_apps.session_worker", "session"),
    ("strategies.link.router", "mail router"),
    ("fl_app.deploy.gate", "SuperLink"),
    (" deploy serve", "server script"),
    ("supervise.py", "supervisor"),
    ("start-supernode.sh", "start script"),
    ("flower-supernode", "SuperNode"),
    ("flwr-clientapp", "ClientApp"),
    ("flwr-serverapp", "ServerApp"),
    ("strategies.distillation.worker", "distillation server"),
    ("strategies.distillation.reference_worker", "references"),
    ("ClientAppActor", "clients"),
    ("flwr-simulation", "ServerApp and simulation"),
    ("flower-superexec", "flower-superexec"),
    ("flower-superlink", "flower-superlink"),
    ("flwr log", "flwr log"),
    ("raylet", "ray"),
    ("gcs_server", "ray"),
    ("ray", "ray"),
)


@dataclass(frozen=True)
class Process:
    """One process at one moment: start in epoch seconds, cpu in seconds since then, memory in
    bytes (rss: resident; pss: shared pages divided among those who share them; both 0 if not asked
    for)."""

    pid: int
    name: str
    start: float
    cpu: float
    rss: int
    pss: int


def processes(root: int, memory: bool = False) -> list[Process]:
    """All living processes below `root`. memory: read that too, which takes the kernel milliseconds
    a process."""
    found = []
    for pid in descendants(root):
        try:
            found.append(process(pid, memory))
        except (OSError, IndexError):  # it has just ended
            continue
    return found


def process(pid: int, memory: bool = False) -> Process:
    """One process. OSError or IndexError when it has ended."""
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    directory = Path("/proc", str(pid))
    # "pid (name) state ...": the name may hold spaces and brackets, so count from behind it
    fields = (directory / "stat").read_text().rpartition(")")[2].split()
    user, system, start = (int(fields[i]) for i in (11, 12, 19))
    rss, pss = _memory(directory) if memory else (0, 0)
    return Process(
        pid,
        _name((directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")),
        boot + start / _TICKS,
        (user + system) / _TICKS,
        rss,
        pss,
    )


def _name(command: str) -> str:
    return next((name for part, name in _NAMES if part in command), "other")


def _memory(directory: Path) -> tuple[int, int]:
    # Both from one file: read one after the other they would be of different moments.
    lines = (directory / "smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: 1024 * int(size) for name, size, *_ in map(str.split, lines)}
    return sizes["Rss:"], sizes["Pss:"]
