"""The strategy of a run, built from its configuration."""

from typing import TYPE_CHECKING

from fl_app.config import RunConfig
from fl_app.settings import consensus_run_of, distillation_run_of
from strategies.recorder import Recorder

if TYPE_CHECKING:
    from strategies.consensus.strategy import Consensus
    from strategies.distillation.strategy import Distillation


def strategy_of(config: RunConfig, recorder: Recorder) -> "Distillation | Consensus":
    """Its modules are imported here, for each imports much that the other does without."""
    if config.agrees:
        from strategies.consensus.strategy import Consensus

        return Consensus(consensus_run_of(config), recorder)
    from strategies.distillation.strategy import Distillation

    return Distillation(distillation_run_of(config), recorder)
