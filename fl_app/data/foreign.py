"""What comes from outside: its failures as one sentence, its names, its size before it is read."""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from strategies.errors import DataError
from strategies.memory import available_memory

# What systems leave beside people's files, in lower case; names that begin with a dot are, too.
_LITTER = {
    "$recycle.bin", "@eadir", "__macosx", "desktop.ini", "ehthumbs.db", "icon\r", "lost+found",
    "system volume information", "thumbs.db",
}  # fmt: skip


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Whatever is raised within becomes a DataError that begins with `what`.

    Decoders raise nearly every exception there is at bytes that somebody else has written.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{what} cannot be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    told = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(printable(told).split())[:200]


def printable(text: str | Path) -> str:
    """`text` for one line of a message: what cannot be printed is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def is_litter(name: str) -> bool:
    """Whether a file or folder of that name is some system's own, and nobody's data."""
    return name.startswith(".") or name.casefold() in _LITTER


def plain_name(name: str) -> str:
    """A name as it is compared: composed letters (macOS takes them apart), no byte-order mark."""
    return unicodedata.normalize("NFC", name).removeprefix("\ufeff").strip()


def check_room(count: int, what: str) -> None:
    """Raise DataError if `count` bytes are more than this machine has free."""
    if count > (free := available_memory()):
        raise DataError(
            f"{what} would take {count / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free "
            f"here; give fewer or smaller images"
        )
