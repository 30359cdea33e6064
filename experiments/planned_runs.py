"""Runs that an experiment plans, does unless they are there already, and finds again."""

import ctypes
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, TypeVar

from experiments.flower_runs import command, hardware, say
from fl_app.config import Value, defaults, resolve, with_effect
from fl_app.provenance import provenance
from fl_app.record.metrics import codes_of
from fl_app.record.run_dir import RunDirectory
from fl_app.record.writer import Writer
from strategies.errors import EdgeFlError, RunDirectoryError

Values = dict[str, Value]

# Where files are: it does not change what is computed.
_PLACES = ("output", "name", "data-root")
# How a run can have ended by itself.
COMPLETED, DIVERGED = "completed", "diverged"
_PR_SET_PDEATHSIG = 1


class Planned(Protocol):
    """A run: `words` say which one it is, `values` are its configuration."""

    @property
    def seed(self) -> int: ...

    @property
    def words(self) -> tuple[str, ...]: ...

    @property
    def values(self) -> Values: ...


P = TypeVar("P", bound=Planned)


def name_of(planned: Planned) -> str:
    """The run's name; it has the digest of its configuration, so another one is another run."""
    flat = {k: v for k, v in resolve(planned.values).flat().items() if k not in _PLACES}
    digest = hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:8]
    return "-".join([*planned.words, digest])


def label_of(planned: Planned) -> str:
    return " ".join(planned.words)


def values_of(planned: Planned, root: Path) -> Values:
    """What a planned run is given: of the settings that it has in common with others, those that
    have an effect, and its place. One that is there already goes on (see `missing`)."""
    name = name_of(planned)
    values = {**with_effect(planned.values), "output": str(root), "name": name}
    return values | {"resume": str(root / name)} if (root / name).exists() else values


def portable(planned: Planned) -> Values:
    """The run's settings without the place of the data."""
    return {key: value for key, value in planned.values.items() if key != "data-root"}


def choose(runs: Sequence[P], only: Sequence[str]) -> list[P]:
    """Those with the words of `only`: of every kind of word that is named a run has one of them.

    Raises ValueError for a word that no run has.
    """
    kinds = [set(kind) for kind in zip(*(run.words for run in runs), strict=True)]
    known = set().union(*kinds)
    if unknown := set(only) - known:
        raise ValueError(
            f"--only: {', '.join(sorted(unknown))} is none of {', '.join(sorted(known))}"
        )
    chosen = set().union(*(kind & set(only) or kind for kind in kinds))
    return [run for run in runs if chosen.issuperset(run.words)]


def completed(planned: Planned, root: Path) -> RunDirectory | None:
    """The run, if it is there and complete."""
    return _ended(planned, root, COMPLETED)


def has_diverged(planned: Planned, root: Path) -> bool:
    """Whether the run is there and came to nothing, as it would again."""
    return _ended(planned, root, DIVERGED) is not None


def _ended(planned: Planned, root: Path, *how: str) -> RunDirectory | None:
    """The run, if it is there and ended in one of these ways."""
    try:
        run = RunDirectory.open(root / name_of(planned))
    except RunDirectoryError:
        return None
    return run if run.summary().get("status") in how else None


def collect_entries(
    runs: Sequence[P],
    root: Path,
    size: str,
    invocation: str,
    entry: Callable[[P, RunDirectory], dict[str, Any]],
) -> dict[str, Any]:
    """The results of the planned runs that are complete in `root`: of each what says which run it
    is, and what `entry` takes from it."""
    entries, codes = [], []
    for planned in runs:
        run = completed(planned, root)
        if run is None:
            continue
        made_by = codes_of(run.events())
        codes += [code for code in made_by if code not in codes]
        entries.append(
            {
                "seed": planned.seed,
                "name": name_of(planned),
                "started": run.environment().get("started"),
                "code": made_by,
                "hardware": hardware(run.environment()),
                "command": command(with_effect(portable(planned))),
                "settings": portable(planned),
                **entry(planned, run),
            }
        )
    described = {"size": size, "command": invocation, "code": codes}
    return {**described, "defaults": dict(defaults()), "runs": entries}


def still_valid(results: Mapping[str, Any], runs: Sequence[P]) -> dict[str, dict[str, Any]]:
    """Of earlier results, the entries of runs that are planned just so, by the runs' labels.

    A run is if every key that was there then, is there now and has an effect has the value that it
    had: a key that has come since then does by default what was done without it. What a key did
    that is gone since then is not known, unless it is of the other system.
    """
    then: dict[str, Value] = results.get("defaults", {})
    entries = {_words_of(entry): entry for entry in results.get("runs", ())}
    found = {}
    for planned in runs:
        entry = entries.get("-".join(planned.words))
        if then and entry is not None:
            was = then | entry["settings"]
            now = with_effect({**defaults(), **planned.values})
            gone = was.keys() - defaults().keys()
            if any("." not in key or key.startswith(f"{was['mode']}.") for key in gone):
                continue
            was = defaults() | was
            if all(was[key] == now[key] for key in now if key not in _PLACES):
                found[label_of(planned)] = entry
    return found


def lost(earlier: Mapping[str, Any], size: str, runs: Sequence[P], fresh: Sequence[P]) -> int:
    """How many of the earlier results are planned still and would be gone: they are of another
    configuration, and not among the `fresh` ones. All of them, where they are of another size."""
    entries = earlier.get("runs", ())
    if earlier.get("size", size) != size:
        return len(entries)
    kept = still_valid(earlier, runs)
    doomed = {"-".join(run.words) for run in runs if label_of(run) not in kept}
    doomed -= {"-".join(run.words) for run in fresh}
    return sum(_words_of(entry) in doomed for entry in entries)


def merged(earlier: Mapping[str, Any], fresh: dict[str, Any], runs: Sequence[P]) -> dict[str, Any]:
    """`fresh` results and those `earlier` ones that are still valid, in the order of the plan; of a
    run that is in both, the fresh one."""
    kept = still_valid(earlier, runs)
    by_words = {_words_of(entry): entry for entry in fresh["runs"]}
    found = [by_words.get("-".join(run.words)) or kept.get(label_of(run)) for run in runs]
    entries = [entry for entry in found if entry is not None]
    codes: list[dict[str, Any]] = []
    for entry in entries:
        codes += [code for code in entry["code"] if code not in codes]
    if dropped := len(earlier.get("runs", ())) - len(kept):
        say(f"{dropped} runs of the earlier results are of another configuration: left out")
    # Results from before each run had its hardware have that of the last one.
    machine = {"hardware": earlier["hardware"]} if "hardware" in earlier else {}
    return {**fresh, "code": codes, "runs": [{**machine, **entry} for entry in entries]}


def _words_of(entry: Mapping[str, Any]) -> str:
    """The words of a run out of its name, which ends with a digest."""
    return entry["name"].rpartition("-")[0]


def missing(runs: Sequence[P], root: Path, over: Sequence[str] = (COMPLETED,)) -> list[P]:
    """Those that have not ended in `root` in one of the ways of `over`. What is half done there,
    and cannot go on to the bits that it would have had, is thrown away.

    Raises RunDirectoryError if somebody is at work on one of them.
    """
    lacking = [run for run in runs if _ended(run, root, *over) is None]
    say(f"{len(runs)} runs, {len(runs) - len(lacking)} of them already in {root}")
    for planned in lacking:
        half_done = root / name_of(planned)
        if half_done.exists():
            with Writer(half_done):
                pass
            if not _goes_on(half_done):
                shutil.rmtree(half_done)
    return lacking


def _goes_on(directory: Path) -> bool:
    """Whether a run that was cut short can be resumed as if it had not been: by the code that began
    it, on a clock that stood still meanwhile, and not where it failed by itself."""
    try:
        run = RunDirectory.open(directory)
        codes = codes_of(run.events())
    except RunDirectoryError:
        return False
    ended = run.summary().get("status") in ("failed", "diverged")
    virtual = run.config().get("clock") == "virtual"
    return virtual and not ended and codes == [provenance()]


def run_in_parallel(
    runs: Sequence[P],
    root: Path,
    jobs: int,
    work: Callable[[Values], RunDirectory],
    result: Callable[[RunDirectory], str],
) -> None:
    """Do `runs`, `jobs` at a time, each by work(its configuration) in a process of the pool.

    result: what is told of a run when it has ended. Where some fail, the others are done all the
    same; then EdgeFlError is raised.
    """
    failures: list[str] = []
    # spawn: a forked process would inherit the locks of torch's threads
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin) as pool:
        futures = {pool.submit(_timed, work, values_of(run, root)): run for run in runs}
        for number, future in enumerate(as_completed(futures), 1):
            planned = futures[future]
            try:
                path, seconds = future.result()
            except Exception as error:
                failures.append(f"{label_of(planned)} failed: {error}")
                say(f"[{number}/{len(runs)}] {failures[-1]}")
                continue
            tell(planned, result(RunDirectory.open(path)), number, len(runs), seconds)
    if failures:
        raise EdgeFlError("\n".join(failures))


def tell(planned: Planned, result: str, number: int, of: int, seconds: float) -> None:
    """Say that run `number` of `of` has ended."""
    say(f"[{number}/{of}] {label_of(planned)}: {result}; took {seconds:.0f} s")


def _begin() -> None:
    """In a process of the pool, before its first run."""
    # The live line of every round would be those of several runs at once.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if sys.platform == "linux":  # whoever is killed leaves no run behind that goes on for an hour
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _timed(work: Callable[[Values], RunDirectory], values: Values) -> tuple[str, float]:
    start = time.monotonic()
    run = work(values)
    return str(run.path), time.monotonic() - start
