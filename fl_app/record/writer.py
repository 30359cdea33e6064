"""One writer of a run directory at a time, on whichever machine that sees it."""

import json
import os
import socket
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from fl_app.streams import say
from strategies.checkpoint import atomic_write
from strategies.errors import RunDirectoryError

LOCK, NOTE = "writer.lock", "writer.json"
# A writer gives a sign of life every BEAT_SECONDS. Without one for LEASE_SECONDS it has lost the
# run to whoever asks for it: all that can be known of a process on another machine. One that died
# on this machine, or before it was started anew, is known to be dead at once.
LEASE_SECONDS, BEAT_SECONDS = 30.0, 2.0
_POLL_SECONDS = 0.1


def is_written(directory: Path) -> bool:
    """Whether a process has given a sign that it writes the run, within LEASE_SECONDS."""
    try:
        return time.time() - os.stat(directory / LOCK).st_mtime < LEASE_SECONDS
    except OSError:
        return False


class Writer:
    """The right to write a run directory, within a `with` block.

    Entering raises RunDirectoryError that says who has it: the process, its machine and since when;
    or why the directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lease = SoftFileLease(
            directory / LOCK,
            lease_duration=LEASE_SECONDS,
            heartbeat_interval=BEAT_SECONDS,
            thread_local=False,  # a run is written from several threads
        )

    def __enter__(self) -> "Writer":
        try:
            self._acquire()
        except LeaseSettingsMismatch as error:
            raise RunDirectoryError(f"another edge-fl holds the run: {error}") from error
        except OSError as error:
            raise RunDirectoryError(
                f"cannot write in {self._directory}: {error.strerror or error}"
            ) from error
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        try:
            atomic_write(self._directory / NOTE, json.dumps(note).encode(), durable=False)
        except BaseException:
            self._lease.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._lost():  # else the note is another's
            (self._directory / NOTE).unlink(missing_ok=True)
        self._lease.release()

    def check(self) -> None:
        """Raise RunDirectoryError if another has taken over, because this process slept."""
        if self._lost():
            raise RunDirectoryError(
                f"{self._directory} is written by {self._holder()} now, which took it over because "
                f"this process gave no sign of life for {LEASE_SECONDS:g} s"
            )

    def _lost(self) -> bool:
        owner = self._lease.owner  # None for a moment while somebody looks whether we are dead
        changed = owner is not None and owner.token != self._lease.token
        return changed or self._lease.compromise is not None

    def _acquire(self) -> None:
        if self._taken_within(2.5 * BEAT_SECONDS):
            return
        say(
            f"{self._directory}: {self._holder()} wrote it last; waiting up to {LEASE_SECONDS:g} s "
            f"for a sign of life",
            sys.stderr,  # the standard output may be for a program
        )
        if not self._taken_within(LEASE_SECONDS + BEAT_SECONDS):
            self._lease.force_break()  # a power cut can leave a lock without its owner's name
            self._lease.acquire(0)

    def _taken_within(self, seconds: float) -> bool:
        """Whether the lock could be had. Raises RunDirectoryError if its owner lives."""
        first = self._beat()

        def alive() -> bool:
            return (now := self._beat()) is not None and now != first

        with suppress(Timeout):
            self._lease.acquire(seconds, _POLL_SECONDS, cancel_check=alive)
            return True
        if alive():
            raise RunDirectoryError(
                f"{self._directory} is being written by {self._holder()}; wait for its end, or "
                f"stop it"
            )
        return False

    def _beat(self) -> int | None:
        """When the lock was last touched, by the clock of its file system; None without a lock."""
        try:
            return os.stat(self._lease.lock_file).st_mtime_ns
        except FileNotFoundError:
            return None

    def _holder(self) -> str:
        """Who has the lock, for a person to read."""
        owner = self._lease.owner
        with suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads((self._directory / NOTE).read_text(encoding="utf-8"))
            if owner is None or note["pid"] == owner.pid:
                return f"process {note['pid']} on {note['host']}, since {note['since']}"
        return f"process {owner.pid} on {owner.hostname}" if owner else "somebody"
