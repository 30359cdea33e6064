"""The log of a Flower run, made readable."""

import math
import re
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# At the beginning of a line: in its midst it may be a device's words.
_RUN_DIRECTORY = re.compile(r"(?:INFO\s*:\s*)?run directory: (/.*\S)")
# What Flower 1.41 and Ray 2.55 say in every run, whatever the app does.
_NOISE = re.compile(
    r"""^\s*(
        (INFO\s*:\s*)?$
      | INFO\s*:\s*(Starting\ (logstream|Flower\ Simulation)|Printing\ logstream
          |Federation\ `|To\ change\ federation
          |\s*flwr\ federation\ simulation-config)
      | WARNING\s*:\s*Since\ flwr\ 1\.32
      | Using\ SuperLink:
      | Successfully\ installed\ \S+\ to\b
      | \(ClientAppActor.*Manually\ terminating\ ClientAppActor
      | .*FutureWarning:\ Tip:\ In\ future\ versions\ of\ Ray
      | warnings\.warn\($
    )""",
    re.VERBOSE,
)


class LogReader:
    """Turns the log of a run into what a person wants to read, and keeps the run's directory.

    Drops what is known to mean nothing; what is not known is shown. `verbose` shows everything.
    `closed_at` is when the run was seen to name its directory again, which is its last word, on the
    monotonic clock; infinity until then. `begun`: the ServerApp has said something.
    """

    def __init__(self, verbose: bool = False) -> None:
        self.verbose = verbose
        self.run_directory: Path | None = None
        self.closed_at = math.inf
        self.begun = False
        self._seen: Counter[str] = Counter()
        self._again: Counter[str] = Counter()  # what is not to be shown a second time

    def begin_again(self) -> None:
        """What comes from now on is the log from its beginning: what has been read is left out."""
        self._again, self._seen = self._seen, Counter()

    def read(self, line: str) -> str | None:
        """The line to show for `line`, or None."""
        self._seen[line.rstrip()] += 1
        if self._again[line.rstrip()] > 0:
            self._again[line.rstrip()] -= 1
            return None
        plain = _ANSI.sub("", line).rstrip()
        noise = _NOISE.match(plain)
        self.begun = self.begun or not noise
        if found := _RUN_DIRECTORY.match(plain):
            if self.run_directory is not None:
                self.closed_at = min(self.closed_at, time.monotonic())
            self.run_directory = Path(found[1])
            return None
        if self.verbose:
            return line.rstrip("\n")
        return None if noise else plain

    def left_out(self, lines: Iterable[str]) -> list[str]:
        """Those of `lines`, a whole log, that have not been read yet; as often as they lack."""
        seen, found = self._seen.copy(), []
        for line in lines:
            if seen[line.rstrip()]:
                seen[line.rstrip()] -= 1
            else:
                found.append(line)
        return found
