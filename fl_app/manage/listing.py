"""The runs of this machine: listed, filtered, sorted, removed; damaged ones too."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from fl_app.config import Value, check_key, defaults
from fl_app.launch.values import parse_assignments
from fl_app.record.find import at_path
from fl_app.record.metrics import Metric, metric_of
from fl_app.record.modes import view_of
from fl_app.record.page.snapshot import status
from fl_app.record.run_dir import RunDirectory, flatten, list_reserved, list_runs
from fl_app.record.writer import is_written
from strategies.errors import ConfigError, RunDirectoryError
from strategies.paths import runs_root

ORDERS = ("started", "name", "result")
_STATUS = "status="


@dataclass(frozen=True)
class Entry:
    """A run in the list. state: how it ended, "running", "not finished", "not begun", "damaged".
    value: what came out, by its metric; None where nothing did."""

    run: RunDirectory
    state: str
    text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    value: float | None = None
    metric: Metric = field(default_factory=Metric)

    @property
    def rank(self) -> tuple[bool, str, float]:
        """By which runs are in order, the best last; values of one metric alone can be ranked."""
        value = self.value or 0.0
        return self.value is not None, self.metric.name, value if self.metric.higher else -value


@dataclass(frozen=True)
class Wanted:
    """What people want to see of the runs: how the names begin, how the runs stand, and values of
    their configurations."""

    names: Sequence[str]
    states: Sequence[str]
    values: Mapping[str, Value]

    @classmethod
    def of(cls, words: Sequence[str]) -> Self:
        """As `words` say. ConfigError for a key that there is not, and a value of another type."""
        names = [word for word in words if "=" not in word]
        states = [word.removeprefix(_STATUS) for word in words if word.startswith(_STATUS)]
        rest = [word for word in words if "=" in word and not word.startswith(_STATUS)]
        values = parse_assignments(rest)
        for key, value in values.items():
            check_key(key)
            kind = type(defaults()[key])
            if type(value) is not kind:
                what = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
                raise ConfigError(f"{key}={value}: {key} is {what}")
        return cls(names, states, values)

    def fits(self, each: Entry) -> bool:
        """Whether the run is one of those."""
        return (
            all(each.run.name.startswith(name) for name in self.names)
            and all(each.state == state for state in self.states)
            and all(_equal(each.config.get(key), value) for key, value in self.values.items())
        )


def _equal(recorded: object, wanted: Value) -> bool:
    if isinstance(recorded, str) and isinstance(wanted, str):
        return recorded.lower() == wanted.lower()
    return recorded == wanted


def entry(run: RunDirectory) -> Entry:
    """How a run stands, or what is wrong with its directory."""
    try:
        with run.reading():
            run.open(run.path).environment()
            config, events = flatten(run.config()), run.events()
            view, metric = view_of(config), metric_of(events)
            value = (run.summary().get("final") or {}).get(view.headline)
            state = "running" if is_written(run.path) else status(run, events)
            shown = "" if value is None else f"{metric.name} {metric.shown(value)}"
            return Entry(run, state, shown, config, value, metric)
    except RunDirectoryError as error:
        return Entry(run, "damaged", str(error))


def listed(words: Sequence[str], order: str) -> list[Entry]:
    """The runs that fit all `words`: "status=completed", "key=value" of their configuration, or
    the beginning of their name. ConfigError for an order, a key or a value that is none."""
    if order not in ORDERS:
        raise ConfigError(f"runs are sorted by {', '.join(ORDERS)}, not by {order!r}")
    wanted = Wanted.of(words)
    root = runs_root()
    there = [entry(run) for run in list_runs(root)]
    there += [Entry(run, "not begun") for run in list_reserved(root)]
    found = [each for each in there if wanted.fits(each)]
    if order == "name":
        found.sort(key=lambda each: each.run.name)
    elif order == "result":
        found.sort(key=lambda each: each.rank)
    return found


def removed(names: Sequence[str], *, yes: bool) -> list[str]:
    """Remove runs by their names or paths; with `yes` also several by one beginning. Returns the
    names of those that are gone. ConfigError, before anything is removed, for an empty name, and
    RunDirectoryError for a run that is not there, is none, or is being written."""
    if "" in names:  # every name begins with it, and as a path it is the working directory
        raise ConfigError("an empty name names no run; nothing is removed")
    root = runs_root()
    there = [*list_runs(root), *list_reserved(root)]  # damaged ones, too
    doomed: dict[str, RunDirectory] = {}
    for name in names:
        exact = [run for run in there if run.name == name]
        several = [run for run in there if yes and run.name.startswith(name)]
        found = exact or several or [run for run in [at_path(name)] if run]
        if not found:
            hint = "" if yes else "give the whole name or a path, or --all with a beginning; "
            raise RunDirectoryError(f"there is no run {name!r} in {root}; {hint}see `edge-fl runs`")
        doomed |= {str(run.path): run for run in found}
    for run in doomed.values():
        if is_written(run.path):
            raise RunDirectoryError(f"{run.path} is being written; stop that run first")
    for run in doomed.values():
        try:
            shutil.rmtree(run.path)
        except OSError as error:
            raise RunDirectoryError(
                f"cannot remove {run.path}: {error.strerror or error}"
            ) from error
    return [run.name for run in doomed.values()]
