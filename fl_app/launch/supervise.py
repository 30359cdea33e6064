"""Run one command, and when it or our parent ends, end every process that came of it.

    python supervise.py PARENT_PID DIRECTORY COMMAND [ARGUMENT ...]

Flower detaches what it starts into sessions of its own, Ray starts more, and none of them ends when
its ancestors are killed. So the SuperLink of `edge-fl run` lives under this small process: on Linux
a *subreaper*, to which the kernel hands every orphan below it, so that no descendant can get lost,
whoever died first. It acts when the command ends, when it is told to (SIGTERM, SIGINT, SIGHUP), and
when its own parent, PARENT_PID, is gone, even by kill -9. Then nobody else is left to remove the
temporary DIRECTORY, so it does.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL; Flower's own forced exit takes as long
POLL_SECONDS = 0.2
_PR_SET_CHILD_SUBREAPER = 36


def heed(handler: Callable[[int, FrameType | None], object]) -> None:
    """Have `handler` called for the signals that mean an end, except for those that whoever started
    us had ignored: nohup and a shell's background jobs mean it."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def descendants(root: int) -> list[int]:
    """The pids of all living processes below `root`, children first; zombies do not count."""
    children: dict[int, list[int]] = {}
    for pid, parent in _processes():
        children.setdefault(parent, []).append(pid)
    found = list(children.get(root, ()))
    for pid in found:  # grows while it is walked: breadth first
        found.extend(children.get(pid, ()))
    return found


def _processes() -> list[tuple[int, int]]:
    """(pid, parent's pid) of every process that is not a zombie."""
    if Path("/proc/self/stat").exists():
        stats = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                stats.append(path.read_text(errors="replace"))
        # "pid (name) state ppid ...": the name may hold spaces and brackets.
        rows = [(text.split(" ", 1)[0], *text.rpartition(")")[2].split()[:2]) for text in stats]
    else:
        with subprocess.Popen(["ps", "-axo", "pid=,stat=,ppid="], stdout=subprocess.PIPE) as ps:
            output = ps.communicate()[0].decode()
        rows = [line.split() for line in output.splitlines()]
        rows = [row for row in rows if row[0] != str(ps.pid)]
    return [(int(pid), int(parent)) for pid, state, parent in rows if not state.startswith("Z")]


def adopt_orphans() -> None:
    """Have the kernel hand every orphan below this process to it (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(root: int, grace: float = GRACE_SECONDS) -> None:
    """SIGTERM to everything below `root`; after `grace` seconds SIGKILL, until nothing is left."""
    deadline = time.monotonic() + grace
    known: set[int] = set()
    # One look may miss a process whose parent ended in its midst; by the next one it is adopted.
    while alive := descendants(root) or descendants(root):
        expired = time.monotonic() > deadline
        for pid in alive:
            if expired or pid not in known:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if expired else signal.SIGTERM)
        known.update(alive)
        time.sleep(POLL_SECONDS / 4)


def main(parent: int, directory: str, command: list[str]) -> int:
    """Run `command` until it ends, process `parent` is gone or a signal comes; then clear up.

    Returns the command's exit status; negative: the signal that ended it.
    """
    told: list[int] = []

    def tell(number: int, _frame: FrameType | None) -> None:
        told.append(number)

    heed(tell)
    signal.signal(signal.SIGTERM, tell)  # our parent's word, whoever has it ignored
    adopt_orphans()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while child.poll() is None and not told and os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    end_descendants(os.getpid())
    status = child.wait()
    with contextlib.suppress(ChildProcessError):
        while True:  # the orphans we were handed: in a container, often nobody else reaps them
            os.wait()
    if os.getppid() != parent:
        shutil.rmtree(directory, ignore_errors=True)
    return status


if __name__ == "__main__":
    status = main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
    sys.exit(128 - status if status < 0 else status)
