"""The command line of the experiment; see the package."""

import sys

from experiments.command_line import Experiment
from experiments.distillation import report
from experiments.distillation.execute import execute
from experiments.distillation.plan import plan
from experiments.distillation.results import collect

EXPERIMENT = Experiment(
    name="distillation",
    description="Reproduce the figure and the table of Yajima et al.",
    sizes={"small": "2 cores, 30 minutes", "full": "one GPU"},
    example="real,iid,sync,seed0",
    plan=plan,
    execute=execute,
    collect=collect,
    write=report.write,
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
