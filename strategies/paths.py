"""Paths that people name, and small texts there as any system writes them."""

import codecs
import os
import stat
import unicodedata
from pathlib import Path

from strategies.errors import ConfigError, RunDirectoryError

_MOST_BYTES = 1 << 24
# How editors mark that a text is not plain UTF-8.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def expanded(path: str, meaning: str) -> Path:
    """`path` with ~ as the home directory that it stands for; ConfigError if there is none.

    meaning: what the path is, for the message.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~nobody, or ~ without HOME and without an entry for this user
        raise ConfigError(
            f"{meaning} {path!r} is in a home directory that cannot be found; give an absolute path"
        ) from None


def absolute(path: str, meaning: str = "the path") -> Path:
    """A path of the command line, from here or from ~, as an absolute one. ConfigError as above,
    and where the working directory is gone."""
    try:
        return expanded(path, meaning).absolute()
    except OSError:
        raise ConfigError(
            f"{meaning} {path!r} is relative to a working directory that is gone; give an absolute "
            f"path"
        ) from None


def read_bytes(path: str | Path, most: int) -> bytes:
    """The content of a file of at most so many bytes. Raises ConfigError with the reason for what
    is no file, or too large."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for a writer
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError("it is no file")
            content = file.read(most + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(getattr(error, "strerror", None) or str(error)) from error
    if len(content) > most:
        raise ConfigError(f"it has more than {most >> 20} MiB")
    return content


def read_text(path: str | Path, most: int = _MOST_BYTES) -> str:
    """The text of a file of at most so many bytes, with composed letters: a Mac's editors take é
    for two characters.

    Raises ConfigError with the reason for what is no file, too large or no text.
    """
    content = read_bytes(path, most)
    encoding = next((e for mark, e in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return unicodedata.normalize("NFC", content.decode(encoding))
    except UnicodeDecodeError as error:
        raise ConfigError(f"it is no text in {encoding.upper()}: {error.reason}") from error


def runs_root(configured: str = "") -> Path:
    """Return where runs are kept: `configured`, or $EDGE_FL_HOME/runs, or ~/.edge-fl/runs.

    Raises RunDirectoryError for a relative path: the processes of one run have different working
    directories, so it would mean a different place to each of them.
    """
    home = os.environ.get("EDGE_FL_HOME") or "~/.edge-fl"
    given = configured or os.path.join(home, "runs")
    named = f"the runs directory {configured!r}" if configured else f"EDGE_FL_HOME={home!r}"
    try:
        root = Path(given).expanduser()
    except RuntimeError:  # ~ without HOME and without a name for the user, or ~nobody
        raise RunDirectoryError(
            f"{named} is in a home directory that cannot be found; give an absolute path, as "
            f"output=PATH or EDGE_FL_HOME"
        ) from None
    if not root.is_absolute():
        raise RunDirectoryError(
            f"{named} is a relative path; give an absolute one, e.g. {str(root.absolute())!r}"
        )
    return root
