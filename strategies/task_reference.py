"""From a reference to the class of a task: see `plugin_name`."""

from functools import cache
from types import ModuleType
from typing import Any

from strategies import plugins
from strategies.errors import ConfigError
from strategies.plugin_name import parse
from strategies.task import Metric, Task

# Fields of an evaluation's event, and what the functions that record one call their parameters.
_FIELDS = frozenset({
    "event", "model", "per_class", "published", "recorder", "round", "self", "step", "suspects",
    "t", "t_wall", "teacher_version",
})  # fmt: skip


@cache
def class_of(reference: str) -> type[Task]:
    """The class that `reference` names. Raises ConfigError, which says what was found instead."""
    module, plugin = plugins.module_of("task", reference), parse(reference)
    assert plugin is not None  # the configuration has been checked
    place, name = plugin.place, plugin.name
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        what = f"is not in {place}" if found is None else "is no subclass of strategies.task.Task"
        there = ", ".join(_tasks_of(module)) or "none"
        raise ConfigError(f"task={reference!r}: {name} {what}; tasks there: {there}")
    if lacking := sorted(found.__abstractmethods__):
        raise ConfigError(f"task={reference!r}: {name} has no method {', '.join(lacking)}")
    _check_metrics(f"task={reference!r}", name, found.metrics)
    return found


def check_made(what: str, task: Task) -> None:
    """What a task says of itself when it has been made. ConfigError, behind `what`."""
    name = type(task).__name__
    _check_metrics(what, name, task.metrics)
    classes: Any = task.classes
    names = isinstance(classes, tuple | list) and all(isinstance(each, str) for each in classes)
    if not names or not all(each.strip() and len(each.splitlines()) == 1 for each in classes):
        raise ConfigError(
            f"{what}: {name}.classes must be a tuple of names, which are texts of a line, and is "
            f"{classes!r}"
        )
    if len(set(classes)) < len(classes):
        twice = next(each for each in classes if classes.count(each) > 1)
        raise ConfigError(f"{what}: {name}.classes has {twice!r} twice; give each its own name")


def _check_metrics(what: str, task: str, metrics: Any) -> None:
    if not (isinstance(metrics, tuple | list) and all(isinstance(m, Metric) for m in metrics)):
        raise ConfigError(
            f"{what}: {task}.metrics must be a tuple of strategies.task.Metric: metrics = "
            f"(ACCURACY,)"
        )
    if not metrics:
        raise ConfigError(
            f"{what}: {task}.metrics is empty; give the metrics by which its models are judged, "
            f"the main one first"
        )
    names = [metric.name for metric in metrics]
    # By these names records have the main metric, whatever its own, and the loss.
    if taken := {"accuracy", "loss"} & set(names[1:]):
        raise ConfigError(
            f"{what}: the metric {min(taken)!r} of {task} must be the first, or have another name: "
            f"dataclasses.replace(ACCURACY, name='right')"
        )
    for name in names:
        if name in _FIELDS or name.endswith("_ema") or names.count(name) > 1:
            why = "is there twice" if names.count(name) > 1 else "is a name that records use"
            raise ConfigError(
                f"{what}: the metric {name!r} of {task} {why}; give it another: "
                f"dataclasses.replace(METRIC, name='another')"
            )


def _tasks_of(module: ModuleType) -> list[str]:
    own = {key: value for key, value in vars(module).items() if isinstance(value, type)}
    return [k for k, v in own.items() if issubclass(v, Task) and v.__module__ == module.__name__]
