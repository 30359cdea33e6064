"""What a device tells of an exception: all of it in its own log, where and what to the server."""

import sys
import traceback
from pathlib import Path

from strategies.errors import EdgeFlError

_APP = Path(__file__).resolve().parents[1]
_FRAMES = 3  # of the innermost calls that are told
_LONGEST = 120  # characters of an exception's own text


def account_of(error: BaseException) -> str:
    """What the server is told of `error`, in one line that ends with where it was raised. The whole
    traceback goes to stderr, which is the device's log.

    An error of the application says what is wrong by itself.
    """
    what = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, EdgeFlError):
        print(f"edge-fl: {what}", file=sys.stderr, flush=True)
        return what
    traceback.print_exception(error)
    sys.stderr.flush()
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    calls = [f"{_place(frame.filename)}:{frame.lineno} in {frame.name}" for frame in frames]
    return f"{what[:_LONGEST]} ({' > '.join(calls)})"


def _place(file: str) -> str:
    """A file by its path in the app, or by its name where it is a library's."""
    path = Path(file)
    return str(path.relative_to(_APP)) if path.is_relative_to(_APP) else path.name
