"""What a sweep consists of, and what of it is there already."""

import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_app.config import RunConfig, configure
from fl_app.config.checks import check_run_name
from fl_app.launch.bundle import with_own_app
from fl_app.launch.values import parse_assignments
from fl_app.record.books import made_of_others
from fl_app.record.groups import OF_THE_RUN
from fl_app.record.run_dir import RunDirectory, flatten, list_runs
from fl_app.record.writer import is_written
from strategies.errors import ConfigError, RunDirectoryError
from strategies.paths import runs_root

# Keys whose values are lists themselves: a comma in them does not part two runs.
_LISTS = {
    "targets", "sinks", "devices", "distill.references", "consensus.outages",
    "consensus.references",
}  # fmt: skip
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_MOST = 10_000
_DIGITS = 8  # behind a run's name, of what it computes


@dataclass(frozen=True)
class Planned:
    """A run of a sweep. words: its part of the command line; config: all keys, checked.

    existing: the directory of a run of the same configuration; state: done, running, resumable or
    missing. outdated: runs of it that do not count, because they were made of other data or code of
    somebody's own, and what that is.
    """

    words: tuple[str, ...]
    config: Mapping[str, Any]
    name: str
    state: str
    existing: RunDirectory | None
    outdated: tuple[str, ...] = ()


def combinations(words: Sequence[str]) -> list[tuple[str, ...]]:
    """`a=1,2 seed=0..2` as the assignments of each run, the last key varying first. ConfigError."""
    choices = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{word!r} is not an assignment; write KEY=A,B,C or KEY=0..4")
        if key in OF_THE_RUN - {"sinks"}:
            raise ConfigError(f"{key} is of one run; a sweep names its runs itself (--name)")
        choices.append([f"{key}={value}" for value in _values(key, text)])
    _check_count(math.prod(map(len, choices)))
    return list(itertools.product(*choices))


def _check_count(runs: int) -> None:
    if runs > _MOST:
        raise ConfigError(f"that is {runs} runs; a sweep has at most {_MOST}")


def _values(key: str, text: str) -> list[str]:
    if key in _LISTS:
        return [text]
    found: list[str] = []
    for part in text.split(","):
        if match := _RANGE.fullmatch(part):
            first, last = int(match[1]), int(match[2])
            if last < first:
                raise ConfigError(f"{key}={part}: a range goes up, as in 0..4")
            _check_count(last - first + 1)
            found += map(str, range(first, last + 1))
        else:
            found.append(part)
    if len(set(found)) < len(found):
        raise ConfigError(f"{key}={text} has a value twice; give it once")
    return found


def planned(words: Sequence[str], name: str) -> list[Planned]:
    """The runs of a sweep, checked, each with what is there of it. ConfigError for a combination
    that cannot run, before any of them does."""
    check_run_name(f"--name {name}, with a number behind it,", f"{name}-{'0' * _DIGITS}")
    known: dict[Path, dict[str, list[RunDirectory]]] = {}
    plan: list[Planned] = []
    planned_as: dict[str, tuple[str, ...]] = {}
    for chosen in combinations(words):
        values = with_own_app(parse_assignments(chosen))
        config = configure(values, place="simulation")
        identity = _identity(config.flat())
        if identity in planned_as:
            first = " ".join(planned_as[identity])
            raise ConfigError(f"{' '.join(chosen)} is the same as {first}; give it once")
        planned_as[identity] = chosen
        root = runs_root(config.output)
        if root not in known:
            known[root] = _known(root)
        same, outdated = _of_today(known[root].get(identity, ()), config)
        state, existing = _state(same)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:_DIGITS]
        each = Planned(chosen, config.flat(), f"{name}-{digest}", state, existing, outdated)
        plan.append(each)
    return plan


def _identity(config: Mapping[str, Any]) -> str:
    """What two runs that compute the same have in common."""
    return repr([(key, config[key]) for key in sorted(config) if key not in OF_THE_RUN])


def _known(root: Path) -> dict[str, list[RunDirectory]]:
    found: dict[str, list[RunDirectory]] = {}
    for run in list_runs(root):
        try:
            found.setdefault(_identity(flatten(run.config())), []).append(run)
        except RunDirectoryError:
            continue  # a damaged one is no result
    return found


def _of_today(
    runs: Sequence[RunDirectory], config: RunConfig
) -> tuple[list[RunDirectory], tuple[str, ...]]:
    """Those of the runs that would be made of the same data and code again; of the others, why
    not."""
    same, outdated = [], []
    for run in runs:
        try:
            changed = made_of_others(run, config)
        except RunDirectoryError:
            continue  # a damaged one is no result
        if changed:
            outdated.append(f"{run.name} was made with others: {changed}")
        else:
            same.append(run)
    return same, tuple(outdated)


def _state(runs: Sequence[RunDirectory]) -> tuple[str, RunDirectory | None]:
    states: dict[str, RunDirectory] = {}
    for run in runs:
        try:
            status = run.summary().get("status")
        except RunDirectoryError:
            continue
        if status in ("completed", "diverged"):  # which it would do again
            return "done", run
        if is_written(run.path):
            states["running"] = run
        elif any((run.path / "checkpoints").glob("*")):
            states["resumable"] = run
    for state in ("running", "resumable"):
        if state in states:
            return state, states[state]
    return "missing", None
