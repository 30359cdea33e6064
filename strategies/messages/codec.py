"""A message of ours as Flower's records, and back: a dataclass whose fields say how they travel.

What a field is, by its annotation:

- bool, int, float, str, bytes, or a list of those: a value of the ConfigRecord "config"; bytes
  as hexadecimal text, because over the mail router such values are JSON;
- list[Row], where Row is a NamedTuple of such values: a ConfigRecord of the field's name, with a
  list for each column;
- dict[str, str | float]: a ConfigRecord of the field's name, as it is;
- dict[str, np.ndarray]: an ArrayRecord of the field's name (and may be one when it is sent).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

CONFIG = "config"  # the record of all plain values
_PLAIN = (bool, int, float, str, bytes)
_FACTS = (bool, int, float, str)

M = TypeVar("M")


@dataclass(frozen=True)
class _Field:
    """record: where the field is, CONFIG or a record of its own. write: what is there of a value;
    read: the value of it."""

    record: str
    write: Callable[[Any], Any]
    read: Callable[[Any], Any]
    required: bool


def records_of(message: Any) -> RecordDict:
    """The records that carry a message."""
    content, plain = RecordDict(), {}
    for name, field in _fields(type(message)).items():
        written = field.write(getattr(message, name))
        if field.record == CONFIG:
            plain[name] = written
        else:
            content[name] = written
    content[CONFIG] = ConfigRecord(plain)
    return content


def message_of(kind: type[M], content: Mapping[str, Any]) -> M:
    """The message of these records, whoever has sent them. Raises ValueError for what is none."""
    values: dict[str, Any] = {}
    for name, field in _fields(kind).items():
        place = content.get(CONFIG, {}) if field.record == CONFIG else content
        try:
            if name not in place:
                if field.required:
                    raise ValueError("it is not there")
                continue
            values[name] = field.read(place[name])
        except ValueError as error:
            raise ValueError(f"no {kind.__name__}: {name}: {error}") from error
        except Exception as error:  # arrays that NumPy cannot read, records of another kind
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"no {kind.__name__}: {name}: {reason}") from error
    return kind(**values)


@cache
def _fields(kind: Any) -> dict[str, _Field]:
    hints = get_type_hints(kind)
    return {
        f.name: _field(f.name, hints[f.name], f.default is MISSING and f.default_factory is MISSING)
        for f in fields(kind)
    }


def _field(name: str, hint: Any, required: bool) -> _Field:
    if hint in _PLAIN:
        return _Field(CONFIG, _written, lambda value: plain(hint, value), required)
    if get_origin(hint) is list:
        (kind,) = get_args(hint)
        if kind in _PLAIN:
            return _Field(
                CONFIG,
                lambda values: [_written(value) for value in values],
                lambda values: _list(kind, values),
                required,
            )
        return _Field(name, lambda rows: _columns(kind, rows), lambda r: _rows(kind, r), required)
    if get_origin(hint) is dict and get_args(hint)[1] is np.ndarray:
        return _Field(name, _arrays, _vectors, required)
    if get_origin(hint) is dict:
        return _Field(name, lambda values: ConfigRecord(dict(values)), _facts, required)
    raise TypeError(f"{name}: {hint} cannot travel")


def _written(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def plain(kind: type, value: Any) -> Any:
    """`value`, if it is a `kind`. Raises ValueError."""
    if kind is bytes:
        return bytes.fromhex(plain(str, value))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # isinstance would let True pass for 1
        raise ValueError(f"{type(value).__name__}, not {kind.__name__}")
    return value


def _list(kind: type, values: Any) -> list[Any]:
    return [plain(kind, value) for value in plain(list, values)]


def _columns(kind: Any, rows: Sequence[Any]) -> ConfigRecord:
    names = kind._fields
    return ConfigRecord({name: [_written(row[k]) for row in rows] for k, name in enumerate(names)})


def _rows(kind: Any, record: Any) -> list[Any]:
    hints = get_type_hints(kind)
    columns = [_list(hints[name], record[name]) for name in kind._fields]
    if len({len(column) for column in columns}) > 1:
        raise ValueError("its columns differ in length")
    return [kind(*row) for row in zip(*columns, strict=True)]


def _arrays(vectors: Mapping[str, np.ndarray] | ArrayRecord) -> ArrayRecord:
    if isinstance(vectors, ArrayRecord):  # one that goes out many times
        return vectors
    return ArrayRecord({name: Array(vector) for name, vector in vectors.items()})


def _vectors(record: Any) -> dict[str, np.ndarray]:
    # Flower's own arrays are bytes until here.
    return {name: array.numpy() for name, array in record.items()}


def _facts(record: Any) -> dict[str, Any]:
    found = dict(record)
    for name, value in found.items():
        if type(value) not in _FACTS:
            raise ValueError(f"{name} is {type(value).__name__}")
    return found
