"""Runs what is planned and not there yet."""

import time
from collections.abc import Sequence
from pathlib import Path

from experiments.distillation.plan import Planned
from experiments.flower_runs import flower_run, in_process_run
from experiments.planned_runs import missing, run_in_parallel, tell, values_of
from fl_app.launch.sizing import count_cores
from fl_app.launch.superlink import local_superlink
from fl_app.record.run_dir import RunDirectory


def execute(runs: Sequence[Planned], root: Path, jobs: int = 0) -> None:
    """Run every planned run that is not complete in `root`; what is half done is done again.

    On the virtual clock times do not depend on the machine, so `jobs` runs (default: as many as
    cores) share it, each in a process without Flower. On the real clock one `flwr run` after the
    other has the machine for itself. Raises EdgeFlError when a run fails.
    """
    lacking = missing(runs, root)
    virtual = [run for run in lacking if run.values["clock"] == "virtual"]
    real = [run for run in lacking if run.values["clock"] == "real"]
    if virtual:
        run_in_parallel(virtual, root, jobs or count_cores(), in_process_run, _result)
    if real:
        with local_superlink() as link:
            for number, planned in enumerate(real, 1):
                start = time.monotonic()
                run = flower_run(link, values_of(planned, root))
                tell(planned, _result(run), number, len(real), time.monotonic() - start)


def _result(run: RunDirectory) -> str:
    final = run.summary()["final"]
    return ", ".join(f"{k} {100 * v:.1f} %" for k, v in final.items() if v is not None)
