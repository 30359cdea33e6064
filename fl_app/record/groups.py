"""Runs that differ by their seed alone, as one: means, standard errors, paired differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fl_app.record.metrics import Metric, Point

# Of a run and not of what it computes.
OF_THE_RUN = frozenset({"name", "output", "resume", "sinks"})
_FREE = OF_THE_RUN | {"seed"}
_MOST_KEYS = 6  # that a label has


@dataclass(frozen=True)
class Run:
    """A run as it is grouped. about: what it is called for short; complete: whether it came to its
    end; last: the last value, None where there is none; final: that of a complete run, since where
    another one stood when it diverged or was stopped is no result. metric: what the points are of.
    """

    name: str
    config: Mapping[str, Any]
    points: Sequence[Point]
    about: str = ""
    complete: bool = True
    metric: Metric = field(default_factory=Metric)

    @property
    def last(self) -> float | None:
        return self.points[-1][1] if self.points else None

    @property
    def final(self) -> float | None:
        return self.last if self.complete else None

    @property
    def seed(self) -> Any:
        return self.config.get("seed")


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, and of one metric. label: the keys by which it is not as the other
    groups are."""

    label: str
    runs: tuple[Run, ...]

    @property
    def metric(self) -> Metric:
        return self.runs[0].metric

    @property
    def drawn(self) -> list[Run]:
        """Those that have a curve: the complete ones, if there are any."""
        curves = [run for run in self.runs if run.points]
        return [run for run in curves if run.complete] or curves

    @property
    def values(self) -> dict[Any, float]:
        """The final values by seed; of two runs with one seed, the later."""
        return {run.seed: run.final for run in self.runs if run.final is not None}


def grouped(runs: Sequence[Run]) -> list[Group]:
    """The runs by configuration, in the order of the first of each."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(repr((same_but_seed(run.config), run.metric)), []).append(run)
    configs = [same_but_seed(found[0].config) for found in members.values()]
    keys = _differing(configs)
    labels = [
        _label(config, keys, found[0].about)
        for config, found in zip(configs, members.values(), strict=True)
    ]
    for label in set(labels):
        alike = [k for k, each in enumerate(labels) if each == label]
        keys = _differing([configs[k] for k in alike])
        for k in alike:
            labels[k] = " ".join([label, *_values(configs[k], keys)])
    return [Group(label, tuple(g)) for label, g in zip(labels, members.values(), strict=True)]


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        key
        for key in dict.fromkeys(key for config in configs for key in config)
        if len({repr(config.get(key)) for config in configs}) > 1
    ]


def _values(config: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [f"{key}={config[key]}" for key in keys if key in config]


def same_but_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs of one group have in common."""
    return {key: config[key] for key in sorted(config) if key not in _FREE}


def _label(config: Mapping[str, Any], keys: Sequence[str], about: str) -> str:
    if len(keys) > _MOST_KEYS:  # as of two systems
        return about
    return " ".join(_values(config, keys)) or "all"


def mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean and its standard error, which one value does not have."""
    if not values:
        return None, None
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def paired(group: Group, first: Group) -> list[float]:
    """By how much the group is above `first`, for each seed that both have."""
    values, others = group.values, first.values
    return [values[seed] - others[seed] for seed in values if seed in others]


def band(group: Group) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(times, mean, standard error) over the seeds of `Group.drawn`, where all have a value; at the
    times of the run with the fewest, others' being linear between their evaluations."""
    curves = [np.array(run.points, float) for run in group.drawn]
    if not curves:
        return None
    end, begin = min(c[-1, 0] for c in curves), max(c[0, 0] for c in curves)
    times = min(curves, key=len)[:, 0]
    times = times[(times >= begin) & (times <= end)]
    if not len(times):
        return None
    values = np.array([np.interp(times, c[:, 0], c[:, 1]) for c in curves])
    error = values.std(0, ddof=1) / math.sqrt(len(curves)) if len(curves) > 1 else 0 * times
    return times, values.mean(0), error
