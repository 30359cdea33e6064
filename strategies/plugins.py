"""Classes and functions of one's own by name (see `plugin_name`): found, and given their settings.

Every process of a run finds them for itself. Files get to devices in the run's bundle.
"""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache, partial, update_wrapper
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from strategies.errors import ConfigError, EdgeFlError
from strategies.plugin_name import PluginName, parse

APP = Path(__file__).resolve().parents[1]


def bundled(path: Path) -> Path:
    """Where a bundle for devices has its copy of the file at `path` of the machine that sent it."""
    return Path(__file__).resolve().parent / "own" / f"{_name(path)}.py"


def load(key: str, text: str) -> Any:
    """The class or function that `key`'s value names. Raises ConfigError if it is not there."""
    plugin = _parsed(text)
    found = getattr(module_of(key, text), plugin.name, None)
    if found is None:
        raise ConfigError(f"{key}={text!r}: {plugin.name} is not in {plugin.place}")
    return found


@cache
def function_of(key: str, text: str, positional: int) -> Callable[..., Any]:
    """The function that `key`'s value names, with its settings; its first `positional` parameters
    are not settings. ConfigError."""
    found = load(key, text)
    if not callable(found):
        raise ConfigError(f"{key}={text!r}: {_parsed(text).name} is no function")
    bound = partial(found, **arguments(key, text, found, list(_parameters(found))[:positional]))
    return update_wrapper(bound, found)


def class_of(key: str, text: str, methods: Collection[str]) -> type:
    """The class that `key`'s value names. Raises ConfigError for one that lacks a method."""
    found, name = load(key, text), _parsed(text).name
    if not isinstance(found, type):
        raise ConfigError(f"{key}={text!r}: {name} is no class")
    if lacking := sorted(method for method in methods if not hasattr(found, method)):
        raise ConfigError(f"{key}={text!r}: {name} has no {', '.join(lacking)}")
    return found


def arguments(
    key: str, text: str, function: Callable[..., Any], taken: Collection[str]
) -> dict[str, Any]:
    """The settings in `text` as keyword arguments of `function`, each of its parameter's type.

    taken: parameters that are no settings. Raises ConfigError for a setting that there is not, for
    a value of another type or out of its range, and for one that is needed and not given.
    """
    plugin, given = _parsed(text), dict(_parsed(text).settings)
    settable = {n: p for n, p in _parameters(function).items() if n not in taken}
    known = ", ".join(settable) or "none"
    if unknown := sorted(given.keys() - settable.keys()):
        raise ConfigError(
            f"{key}={text!r}: {plugin.name} has no setting {unknown[0]!r}; its settings: {known}"
        )
    needed = [n for n, p in settable.items() if p.default is p.empty and n not in given]
    if needed:
        raise ConfigError(
            f"{key}={text!r}: {plugin.name} needs {needed[0]}; write ...:{plugin.name}:"
            f"{needed[0]}=VALUE"
        )
    return {n: _typed(f"{key}={text!r}: {n}", v, settable[n]) for n, v in given.items()}


def digest(key: str, text: str) -> str:
    """16 hex digits of the SHA-256 of the code that `key`'s value names: its file or, where that is
    a module of a package, all Python files of the package; "" where there is none. What is imported
    from elsewhere is not looked at. ConfigError."""
    module = module_of(key, text)
    if (path := getattr(module, "__file__", None)) is None:
        return ""
    place, digested = Path(path), hashlib.sha256()
    files = sorted(place.parent.rglob("*.py")) if module.__package__ else [place]
    for file in files:
        if len(files) > 1:
            digested.update(file.relative_to(place.parent).as_posix().encode())
        digested.update(file.read_bytes())
    return digested.hexdigest()[:16]


@contextmanager
def told_as(what: str, kind: type[EdgeFlError]) -> Iterator[None]:
    """Whatever somebody's code raises in here is one line of `kind`, behind `what`."""
    try:
        yield
    except EdgeFlError:
        raise
    except Exception as error:
        raise kind(f"{what}: {type(error).__name__}: {error}") from error


def _parsed(text: str) -> PluginName:
    found = parse(text)
    assert found is not None  # the configuration has been checked
    return found


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Those that can be given by name, with annotations as objects where that is possible."""
    try:
        found = inspect.signature(function, eval_str=True)
    except Exception:  # an annotation that names what is not there at run time
        found = inspect.signature(function)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in found.parameters.items() if p.kind in named}


def _typed(what: str, text: str, parameter: inspect.Parameter) -> Any:
    """`text` as the type of the parameter: what is annotated, or else that of its default."""
    kind: Any = parameter.annotation
    if kind is parameter.empty or isinstance(kind, str):
        plain = isinstance(parameter.default, (bool, int, float))
        kind = type(parameter.default) if plain else str
    try:
        value = TypeAdapter(kind).validate_strings(text)
    except ValidationError as error:
        raise ConfigError(f"{what}={text!r}: {error.errors()[0]['msg']}") from error
    except PydanticUserError as error:
        raise ConfigError(f"{what} is a {kind}, which cannot be given as a text") from error
    for limit in get_args(kind)[1:]:
        if hasattr(limit, "check"):  # one of `strategies.ranges`
            limit.check(what, value)
    return value


def module_of(key: str, text: str) -> ModuleType:
    """The module of what `key`'s value names. ConfigError."""
    plugin = _parsed(text)
    return _from_file(key, text) if plugin.path else _installed(key, plugin.place)


def _installed(key: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"{key}: no module {name!r} is installed here; install it, or name a file: "
                f"{key}=path/to/file.py:NAME"
            ) from error
        raise _broken(key, name, error) from error
    except Exception as error:  # whatever somebody's module raises
        raise _broken(key, name, error) from error


def _name(path: Path) -> str:
    """A name of its own, so that no module is hidden; the same in every process, for pickle."""
    return f"own_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _from_file(key: str, text: str) -> ModuleType:
    path = Path(_parsed(text).path)
    name = _name(path)
    if bundled(path).is_file():  # what this machine has there may be another
        path = bundled(path)
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise ConfigError(f"{key}={text!r}: there is no file {path} on this machine")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever somebody's module raises
        del sys.modules[name]
        raise _broken(key, str(path), error) from error
    return module


def _broken(key: str, place: str, error: Exception) -> ConfigError:
    said = str(error).strip().splitlines()
    return ConfigError(
        f"{key}: {place} cannot be imported: {type(error).__name__}"
        f"{f': {said[0]}' if said else ''}{_line_of(error)}"
    )


def _line_of(error: Exception) -> str:
    """Where in somebody's module it was raised, for a message of one line."""
    if isinstance(error, SyntaxError):
        return ""  # says it itself
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    code = last.tb_frame.f_code.co_filename if last is not None else ""
    return f" ({Path(code).name}, line {last.tb_lineno})" if last is not None else ""
