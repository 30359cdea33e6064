"""Which class is meant: by its name or, where no name is a number, by its number from 0."""

from collections.abc import Iterable, Sequence

import numpy as np

from fl_app.data.foreign import plain_name, printable
from strategies.errors import DataError


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes in the order of their labels: 2 before 10 where all are numbers."""
    names = sorted(set(names))
    return tuple(sorted(names, key=int)) if all(map(_is_number, names)) else tuple(names)


def numbers_of(names: Sequence[str]) -> dict[str, int]:
    """The label of a class by every word that means it: its name, or its number from 0 unless some
    name is a number itself - a 1 must not be both the class "1" and the second one."""
    numbers = {name: i for i, name in enumerate(names)}
    if not any(map(_is_number, names)):
        numbers |= {str(i): i for i in range(len(names))}
    return numbers


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def check_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the names of classes as they are compared, in their order.

    Raises:
        DataError: fewer than two, one that is empty or cannot be printed, or one twice.
    """
    plain = tuple(map(plain_name, names))
    if len(plain) < 2:
        raise DataError(f"{where}: there must be at least 2 classes, not {len(plain)}")
    for i, name in enumerate(plain):
        if not name or not name.isprintable():
            raise DataError(f"{where}: {printable(repr(names[i]))} is no name of a class")
        if name in plain[:i]:
            raise DataError(f"{where}: two classes are called {name!r}")
    return plain


def to_labels(given: np.ndarray, names: Sequence[str], where: str) -> np.ndarray:
    """Return the labels, 0, 1, ... (int64), of classes given by numbers.

    Raises:
        DataError: a number that means no class; the message begins with `where`.
    """
    meant = numbers_of(names)
    different, inverse = np.unique(given, return_inverse=True)
    if unknown := [int(n) for n in different if str(n) not in meant]:
        raise DataError(
            f"{where}: label {unknown[0]} means no class; this data set has {class_list(names)}"
        )
    return np.array([meant[str(n)] for n in different], np.int64)[inverse]


def class_list(names: Sequence[str]) -> str:
    """The classes, for a message, and how they may be given."""
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    numbered = not any(map(_is_number, names))
    return f"{len(names)} classes: {shown}" + (" (or their numbers from 0)" if numbered else "")
