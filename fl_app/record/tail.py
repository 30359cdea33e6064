"""metrics.jsonl as it grows."""

import os
from pathlib import Path

from fl_app.record.json_data import event_of
from fl_app.record.metrics import Event
from fl_app.record.run_dir import METRICS
from strategies.errors import RunDirectoryError

_HEAD_BYTES = 256  # a run's first event has its time, to the microsecond


class Tail:
    """The events of a run. Only what has come since the last look is read: a long run has many
    megabytes, and who watches must not slow it down."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / METRICS
        self._read = 0  # bytes
        self._inode = 0
        self._head = b""
        self.events: list[Event] = []

    def grow(self) -> list[Event]:
        """Read on; returns the new events. Raises RunDirectoryError for a line that is none."""
        try:
            with open(self._path, "rb") as file:
                now = os.fstat(file.fileno())
                # By its beginning, too: a new file may get the number of one that was removed.
                same = now.st_ino == self._inode and file.read(len(self._head)) == self._head
                if not same or now.st_size < self._read:  # another run of this name
                    self.events, self._read, self._inode, self._head = [], 0, now.st_ino, b""
                file.seek(self._read)
                whole, newline, _ = file.read().rpartition(b"\n")  # the last line may be under way
        except OSError as error:
            raise RunDirectoryError(
                f"cannot read {self._path}: {error.strerror or error}"
            ) from error
        found = []
        for line in whole.split(b"\n") if newline else ():
            event = event_of(line)
            if event is None:
                number = len(self.events) + len(found) + 1
                raise RunDirectoryError(f"{self._path}, line {number}, is not an event")
            found.append(event)
        self._head = self._head or whole[:_HEAD_BYTES]
        self.events += found
        self._read += len(whole) + len(newline)
        return found
