"""The server's processes without systemd: started, started again when they end, and ended."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from fl_app.deploy.nodes import register
from fl_app.launch.supervise import ENDING, POLL_SECONDS, adopt_orphans, end_descendants, heed
from strategies.errors import ConfigError, EdgeFlError

PARTS = ("superlink", "superexec")
AGAIN_SECONDS = 1.0
REGISTER_SECONDS = 10.0  # until what could not be registered is tried again


class _StopError(Exception):
    """A signal wants the server to stop."""


def serve(server: Path) -> int:
    """Run the SuperLink of the site `server` and what starts its ServerApps, until a signal.

    They are two processes so that a run survives a crash of the SuperLink: its ServerApp is below
    the other one. Returns 0; nothing that was started outlives this. Raises ConfigError where it
    runs already.
    """
    state = Path(os.environ.get("EDGE_FL_STATE") or server / "state")
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(state):
        return _serve(server)


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Hold the folder's lock, which the kernel gives back however this process ends."""
    folder = os.open(state, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"this server runs already (state in {state})") from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(folder)


def _serve(server: Path) -> int:

    def tell(_number: int, _frame: FrameType | None) -> None:
        raise _StopError

    script = str(server / "start-superlink.sh")
    adopt_orphans()
    heed(tell)
    try:
        parts = {part: subprocess.Popen([script, part]) for part in PARTS}
        threading.Thread(target=_register, args=(server,), daemon=True).start()
        while True:
            time.sleep(POLL_SECONDS)
            for part, process in parts.items():
                if process.poll() is not None:
                    print(f"edge-fl: the {part} ended; starting it again", file=sys.stderr)
                    time.sleep(AGAIN_SECONDS)
                    parts[part] = subprocess.Popen([script, part])
    except _StopError:
        return 0
    finally:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        end_descendants(os.getpid())


def _register(server: Path) -> None:
    """Until it has worked: a SuperLink may take its time, and a device that it does not know is
    never let in."""
    told = ""
    while True:
        try:
            register(server, lambda line: print(f"edge-fl: {line}", flush=True))
            return
        except EdgeFlError as error:
            if str(error) != told:
                print(f"edge-fl: {error}; trying again", file=sys.stderr)
            told = str(error)
        time.sleep(REGISTER_SECONDS)
