"""Standard output and error, which may be closed, full, or a pipe that nobody reads any more."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from typing import TextIO

FAILED = 1


def say(line: str, stream: TextIO | None = None) -> None:
    """Write a line at once, to the standard output if to no other stream.

    What cannot be written is left out, and so is the rest: a run must not end because nobody
    listens. It has everything in its directory.
    """
    _escape_foreign_letters()
    try:
        # Flushed, because a pipe would otherwise hold the lines back until the run is over.
        print(line, file=stream, flush=True)
    except OSError:
        _abandon(stream or sys.stdout)


@contextlib.contextmanager
def written_out() -> Iterator[None]:
    """Within it a command prints. When that cannot be written, the process exits without a
    traceback: as other programs do when the reader of a pipe is gone, or with a message."""
    _open_closed()
    _escape_foreign_letters()
    try:
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
    except BrokenPipeError:
        _abandon(sys.stdout)
        _abandon(sys.stderr)
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        _abandon(sys.stdout)
        say(f"edge-fl: {error}", sys.stderr)
        sys.exit(FAILED)


def _open_closed() -> None:
    """Give closed standard streams' numbers to the null device: a file must not get them."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)
    os.close(number)


def _escape_foreign_letters() -> None:
    """Have letters that the terminal's encoding lacks written as escapes: names of classes, files
    and devices are people's own. Standard error does so by itself."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _abandon(stream: TextIO | None) -> None:
    """Let what is still to be written vanish: at its end Python would try, and complain."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # type: ignore[union-attr]
        os.close(null)
