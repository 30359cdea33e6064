"""Which runs there are: modes, each with its mail in every precision, and a control.

The control has mail of 32 bits, a quarter as often: the bytes of int8 in the plainest way. All runs
of a mode do as many steps of training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.planned_runs import Values, choose
from strategies.precision import PRECISIONS

WHOLE = "float32"
RARE = "float32, a quarter as often"
ROWS = (*PRECISIONS, RARE)
SIZES = {"small": "one core, a quarter of an hour; the embedded images, narrow models"}

_COMMON: Values = {"clock": "virtual", "evaluate-examples": 1_000}
_AVERAGE: Values = {"participants": 3, "small-width": 8, "num-server-rounds": 12}
_RARE_AVERAGE: Values = {"num-server-rounds": 3, "local-steps": 88, "cost.client-seconds": 40.0}
MODES: Mapping[str, Values] = {
    "average": _AVERAGE,
    "distill": {**_AVERAGE, "large-width": 8, "distill.references": ""},
    "consensus": {
        "participants": 4,
        "small-model": "lenet",
        "consensus.batch-size": 32,
        "consensus.steps": 252,
        "consensus.window": 84,
        "consensus.settle": 0,
        "consensus.references": "",
    },
}
_RARE: Mapping[str, Values] = {
    "average": _RARE_AVERAGE,
    "distill": {**_RARE_AVERAGE, "distill.reverse-steps": 80},
    "consensus": {"consensus.interval": 24.0},
}


@dataclass(frozen=True)
class Planned:
    """A run of `mode`, with mail as `row` says."""

    mode: str
    row: str
    seed: int

    @property
    def words(self) -> tuple[str, ...]:
        row = "rare" if self.row == RARE else self.row
        return (self.mode, row, f"seed{self.seed}")

    @property
    def values(self) -> Values:
        mail = _RARE[self.mode] if self.row == RARE else {"mail-precision": self.row}
        return {"mode": self.mode, **_COMMON, **MODES[self.mode], **mail, "seed": self.seed}


def plan(
    size: str, seeds: Sequence[int], only: Sequence[str] = (), data_root: str = ""
) -> list[Planned]:
    """All runs, or those with the words of `only`. ValueError for words that none has."""
    del size, data_root  # there is one size, of the embedded images
    runs = [Planned(mode, row, seed) for seed in seeds for mode in MODES for row in ROWS]
    return choose(runs, only)
