"""From a reference to the class of a task: see `plugin_name`."""

from functools import cache
from types import ModuleType

from strategies import plugins
from strategies.errors import ConfigError
from strategies.plugin_name import parse
from strategies.task import Task


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


def _tasks_of(module: ModuleType) -> list[str]:
    own = {key: value for key, value in vars(module).items() if isinstance(value, type)}
    return [k for k, v in own.items() if issubclass(v, Task) and v.__module__ == module.__name__]
