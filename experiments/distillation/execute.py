"""Runs what is planned and not there yet."""

import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from experiments.distillation.plan import Planned, Values
from experiments.flower_runs import flower_run, in_process_run, say
from fl_app.errors import EdgeFlError, RunDirectoryError
from fl_app.launch.sizing import count_cores
from fl_app.launch.superlink import local_superlink
from fl_app.record.run_dir import RunDirectory


def completed(planned: Planned, root: Path) -> RunDirectory | None:
    """The run, if it is there and complete."""
    try:
        run = RunDirectory.open(root / planned.name)
    except RunDirectoryError:
        return None
    return run if run.summary().get("status") == "completed" else None


def execute(runs: Sequence[Planned], root: Path, jobs: int = 0) -> None:
    """Run every planned run that is not complete in `root`; what is half done is done again.

    On the virtual clock times do not depend on the machine, so `jobs` runs (default: as many as
    cores) share it, each in a process without Flower. On the real clock one `flwr run` after the
    other has the machine for itself. Raises EdgeFlError when a run fails.
    """
    missing = [run for run in runs if completed(run, root) is None]
    say(f"{len(runs)} runs, {len(runs) - len(missing)} of them already in {root}")
    for planned in missing:
        shutil.rmtree(root / planned.name, ignore_errors=True)
    virtual = [run for run in missing if run.clock == "virtual"]
    real = [run for run in missing if run.clock == "real"]
    if virtual:
        _in_parallel(virtual, root, jobs or count_cores())
    if real:
        with local_superlink() as link:
            for number, planned in enumerate(real, 1):
                start = time.monotonic()
                run = flower_run(link, values_of(planned, root))
                _report(planned, run, number, len(real), time.monotonic() - start)


def values_of(planned: Planned, root: Path) -> Values:
    """The configuration of a planned run with its place."""
    return {**planned.values, "output": str(root), "name": planned.name}


def _in_parallel(runs: Sequence[Planned], root: Path, jobs: int) -> None:
    # spawn: a forked process would inherit the locks of torch's threads
    with ProcessPoolExecutor(jobs, get_context("spawn"), _quiet) as pool:
        futures = {pool.submit(_run_here, values_of(run, root)): run for run in runs}
        for number, future in enumerate(as_completed(futures), 1):
            planned = futures[future]
            try:
                path, seconds = future.result()
            except Exception as error:
                pool.shutdown(cancel_futures=True)
                raise EdgeFlError(f"{planned.label} failed: {error}") from error
            _report(planned, RunDirectory.open(path), number, len(runs), seconds)


def _quiet() -> None:
    """The live line of every round would be those of several runs at once."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run_here(values: Values) -> tuple[str, float]:
    start = time.monotonic()
    run = in_process_run(values)
    return str(run.path), time.monotonic() - start


def _report(planned: Planned, run: RunDirectory, number: int, of: int, seconds: float) -> None:
    summary = run.summary()
    final, times = summary["final"], summary["time_to_target"]
    reached = ", ".join(f"{k}: {'-' if t is None else f'{t:.0f} s'}" for k, t in times.items())
    say(
        f"[{number}/{of}] {planned.label}: global {100 * final['global']:.1f} % "
        f"(EMA {100 * final['global_ema']:.1f} %), {reached}; took {seconds:.0f} s"
    )
