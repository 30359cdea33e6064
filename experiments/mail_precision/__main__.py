"""The command line of the experiment; see the package."""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.command_line import Experiment
from experiments.flower_runs import in_process_run
from experiments.mail_precision import report
from experiments.mail_precision.plan import SIZES, Planned, plan
from experiments.planned_runs import missing, run_in_parallel
from fl_app.launch.sizing import count_cores
from fl_app.record.modes import view_of
from fl_app.record.run_dir import RunDirectory, flatten


def execute(runs: Sequence[Planned], root: Path, jobs: int = 0) -> None:
    """Run every planned run that is not complete in `root`. Raises EdgeFlError when one fails."""
    lacking = missing(runs, root)
    if lacking:
        run_in_parallel(lacking, root, jobs or count_cores(), in_process_run, _result)


def _result(run: RunDirectory) -> str:
    return f"{100 * run.summary()['final'][view_of(flatten(run.config())).headline]:.1f} %"


EXPERIMENT = Experiment(
    name="mail_precision",
    description="Measure what mail with fewer bits costs.",
    sizes=SIZES,
    example="average,int8,seed0",
    plan=plan,
    execute=execute,
    collect=report.collect,
    write=report.write,
    seeds="0,1,2",
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
