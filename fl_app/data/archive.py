"""An .npz file: every array's header is read before memory is taken for its content."""

import math
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Self

import numpy as np

from fl_app.data.foreign import check_room, is_litter, printable, reading
from strategies.errors import DataError

_SUFFIX = ".npy"
# What reads a header, by the version of the format.
_HEADERS: dict[tuple[int, ...], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Archive:
    """A zip file of NumPy arrays of which nothing is unpickled and every failure is a DataError.

    path: as in messages. names: of its arrays.
    """

    def __init__(self, path: Path) -> None:
        self.path = printable(path)
        self._asked: set[str] = set()
        try:
            self._zip = zipfile.ZipFile(path)
        except PermissionError as error:
            raise DataError(f"{self.path} cannot be read ({error.strerror})") from error
        except Exception as error:  # at foreign bytes it raises what it likes
            raise DataError(
                f"{self.path} is neither a folder nor a readable .npz file ({error})"
            ) from error
        members = [m for m in self._zip.namelist() if not _hidden(m)]
        self.names = [m.removesuffix(_SUFFIX) for m in members]
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            self._zip.close()
            raise DataError(f"{self.path} holds {printable(twice[0])!r} twice")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def look(
        self, name: str, check: Callable[[tuple[int, ...], np.dtype, str], None]
    ) -> tuple[int, ...]:
        """Return the shape of the array `name`, of which no content is read. `check` gets shape and
        type, and raises DataError if they are wrong.

        Raises:
            DataError: there is no such array, its header is damaged, or it is larger than the
                memory at hand.
        """
        if name not in self.names:
            held = ", ".join(map(printable, sorted(self.names)[:20])) or "nothing"
            raise DataError(f"{self.path} has no array {name!r}; it holds: {held}")
        self._asked.add(name)
        what = f"{self.path}: array {name!r}"
        with reading(what):
            member = self._zip.getinfo(self._member(name))
            with self._zip.open(member) as file:
                shape, dtype = _header(file, what)
                length = file.tell()
            size = math.prod(shape) * dtype.itemsize
            if size != member.file_size - length or any(n < 0 for n in shape):
                raise DataError(
                    f"{what} is damaged: its header says {size:,} bytes, and there are "
                    f"{member.file_size - length:,}"
                )
            check(shape, dtype, f"{self.path}, {name}")
            check_room(size, what)
        return shape

    def array(self, name: str) -> np.ndarray:
        """Read an array that was looked at. Raises DataError if it is damaged."""
        with reading(f"{self.path}: array {name!r}"), self._zip.open(self._member(name)) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def _member(self, name: str) -> str:
        with_suffix = name + _SUFFIX
        return with_suffix if with_suffix in self._zip.namelist() else name

    @property
    def unused(self) -> tuple[str, ...]:
        """What was not asked for so far, in words."""
        rest = sorted(set(self.names) - self._asked)
        if not rest:
            return ()
        shown = ", ".join(map(printable, rest[:5])) + (", ..." if len(rest) > 5 else "")
        return (f"{self.path}: {len(rest)} array(s) not used: {shown}",)


def _hidden(member: str) -> bool:
    return any(is_litter(part) for part in PurePosixPath(member).parts)


def _header(file: IO[bytes], what: str) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and the type of the array that begins here."""
    if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
        raise DataError(f"{what} is no NumPy array")
    version = tuple(file.read(2))
    if version not in _HEADERS:
        raise DataError(f"{what} has version {version} of NumPy's format, which is not read")
    shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise DataError(f"{what} holds Python objects, which are not read; give numbers")
    return shape, dtype
