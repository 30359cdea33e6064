"""The command line of the experiment; see the package."""

import sys

from experiments.command_line import Experiment
from experiments.consensus import report
from experiments.consensus.execute import execute
from experiments.consensus.plan import SIZES, plan
from experiments.consensus.results import collect

EXPERIMENT = Experiment(
    name="consensus",
    description="Reproduce edge-consensus learning on a ring of eight, CIFAR-10.",
    sizes={name: size.purpose for name, size in SIZES.items()},
    example="core,gossip,ecl,seed0",
    plan=plan,
    execute=execute,
    collect=collect,
    write=report.write,
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
