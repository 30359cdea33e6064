"""Between keys, as people type them, and the fields of the model, which are checked one by one."""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from fl_app.condition import Value
from strategies.errors import ConfigError


def extent(model: type, key: str) -> str:
    """The values that `key` may have, in words."""
    hint: Any = model
    for name in paths_of(model)[key]:
        hint = get_type_hints(hint, include_extras=True)[name]
    kind, *limits = get_args(hint) or (hint,)
    if kind is bool:
        return "true, false"
    told = f"{_KINDS[kind]}, " if kind in (int, float) else ""
    return f"{told}{', '.join(map(str, limits))}" if limits else _KINDS[kind]


@cache
def paths_of(model: type) -> dict[str, tuple[str, ...]]:
    """Every key, as people spell it, with the path of its field."""
    found: dict[str, tuple[str, ...]] = {}

    def walk(cls: type, path: tuple[str, ...]) -> None:
        hints = get_type_hints(cls)
        for item in fields(cls):
            here = (*path, item.name)
            if is_dataclass(hints[item.name]):
                walk(hints[item.name], here)
            else:
                found[".".join(here).replace("_", "-")] = here

    walk(model, ())
    return found


def at(config: Any, path: tuple[str, ...]) -> Any:
    """The field with this path."""
    for name in path:
        config = getattr(config, name)
    return config


def build(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """An object of `cls` of flat `values`, each of which is checked. ConfigError."""
    hints, arguments = get_type_hints(cls, include_extras=True), {}
    for item in fields(cls):
        key, hint = prefix + item.name.replace("_", "-"), hints[item.name]
        if is_dataclass(hint):
            arguments[item.name] = build(hint, values, f"{key}.")  # type: ignore[arg-type]
        else:
            kind, *limits = get_args(hint) or (hint,)
            arguments[item.name] = _value(key, values[key], kind)
            for limit in limits:
                if not isinstance(limit, str):  # what a class checks itself is there in words
                    limit.check(key, arguments[item.name])
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from error


def _value(key: str, value: Any, kind: type) -> Value:
    """`value` as type `kind`; Flower itself does not check."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ConfigError(f"{key}={value!r} must be {_KINDS[kind]}")
    if isinstance(value, str) and not _WRITABLE.fullmatch(value):
        raise ConfigError(f"{key}={value!r} must be a text without control characters")
    return value


# What TOML, JSON and UTF-8 can all carry: bytes of a command line that are no text are surrogates.
_WRITABLE = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]*")
_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
