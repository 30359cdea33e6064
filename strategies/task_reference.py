"""From a reference to the class of a task: "package.module:Class" or "/path/to/file.py:Class"."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from strategies.errors import ConfigError
from strategies.task import Task

APP = Path(__file__).resolve().parents[1]


def bundled(path: Path) -> Path:
    """Where a bundle for devices has its copy of the file at `path` of the machine that sent it."""
    return Path(__file__).resolve().parent / "own" / f"{_name(path)}.py"


@cache
def class_of(reference: str) -> type[Task]:
    """The class that `reference` names. Raises ConfigError, which says what was found instead."""
    place, _, name = reference.rpartition(":")
    module = _module("task", reference)
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        what = f"is not in {place}" if found is None else "is no subclass of strategies.task.Task"
        there = ", ".join(_tasks_of(module)) or "none"
        raise ConfigError(f"task={reference!r}: {name} {what}; tasks there: {there}")
    if lacking := sorted(found.__abstractmethods__):
        raise ConfigError(f"task={reference!r}: {name} has no method {', '.join(lacking)}")
    if not found.metrics:
        raise ConfigError(
            f"task={reference!r}: {name}.metrics is empty; give the metrics by which its models "
            f"are judged, the main one first"
        )
    # By these names records have the main metric, whatever its own, and the loss.
    if taken := {"accuracy", "loss"} & {metric.name for metric in found.metrics[1:]}:
        raise ConfigError(
            f"task={reference!r}: the metric {min(taken)!r} of {name} must be the first, or have "
            f"another name: dataclasses.replace(ACCURACY, name='right')"
        )
    return found


@cache
def function_of(key: str, reference: str) -> Callable[..., Any]:
    """The function that `key`'s value names. Raises ConfigError for what is none."""
    place, _, name = reference.rpartition(":")
    found = getattr(_module(key, reference), name, None)
    if not callable(found):
        what = f"is not in {place}" if found is None else "is no function"
        raise ConfigError(f"{key}={reference!r}: {name} {what}")
    return found


def _module(key: str, reference: str) -> ModuleType:
    place = reference.rpartition(":")[0]
    return _from_file(key, reference) if place.endswith(".py") else _installed(key, place)


def _tasks_of(module: ModuleType) -> list[str]:
    own = {key: value for key, value in vars(module).items() if isinstance(value, type)}
    return [k for k, v in own.items() if issubclass(v, Task) and v.__module__ == module.__name__]


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
    return f"task_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _from_file(key: str, reference: str) -> ModuleType:
    path = Path(reference.rpartition(":")[0])
    name = _name(path)
    if bundled(path).is_file():  # what this machine has there may be another
        path = bundled(path)
    if not path.is_file():
        raise ConfigError(f"{key}={reference!r}: there is no file {path} on this machine")
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
