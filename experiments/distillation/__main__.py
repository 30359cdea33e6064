"""The command line of the experiment; see the package."""

import sys

from experiments.command_line import Experiment
from experiments.distillation import report
from experiments.distillation.execute import execute
from experiments.distillation.plan import SIZES, plan
from experiments.distillation.results import collect

EXPERIMENT = Experiment(
    name="distillation",
    description="Measure the distill system against its controls.",
    sizes={name: size.purpose for name, size in SIZES.items()},
    example="iid,labels0,plus,seed0",
    plan=plan,
    execute=execute,
    collect=collect,
    write=report.write,
    seeds="0,1,2",
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
