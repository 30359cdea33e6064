"""Configuration values on their way from the command line to Flower."""

import contextlib
import json
from collections.abc import Mapping, Sequence

from fl_app.config import OWN_KEYS, PATH_KEYS, Value, defaults
from strategies.errors import ConfigError
from strategies.paths import absolute
from strategies.plugin_name import path_of


def parse_assignments(words: Sequence[str]) -> dict[str, Value]:
    """`key=value` words of a command line as configuration values, typed as their defaults are.

    Text needs no quotes. A relative path is made absolute here, since the app runs elsewhere. What
    does not look like a value of its key's type stays text, for `resolve` to reject by name.
    Raises ConfigError for a word without `=`, for a key that is there twice, and for a path that
    cannot be found from here.
    """
    values: dict[str, Value] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{word!r} is not an assignment; write key=value")
        if key in values:
            raise ConfigError(f"{key} is given twice; give it once")
        default = defaults().get(key, "")
        values[key] = _typed(text, type(default))
        if key in PATH_KEYS and text:
            values[key] = str(absolute(text, key))
        if key in OWN_KEYS:
            values[key] = own_name(key, text)
    return values


def own_name(key: str, text: str) -> str:
    """What `key` names, with an absolute path if it is in a file. ConfigError as above."""
    path = path_of(text)
    return f"{absolute(path, key)}{text.removeprefix(path)}" if path else text


def _typed(text: str, kind: type) -> Value:
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def toml_lines(values: Mapping[str, Value]) -> list[str]:
    """`key = value` lines. A JSON text, number or truth value is also a TOML one, but for letters
    that JSON would write as two escapes."""
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
