"""Which runs the experiment consists of, and which configuration each of them has."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from experiments.planned_runs import Values, choose

VARIANTS = ("sync-forward", "sync", "async-round", "async-continuous", "async-plus")
CLOCKS = ("virtual", "real")
PARTITIONS = ("iid", "dirichlet")
TARGETS = (0.5, 0.55, 0.6)


@dataclass(frozen=True)
class Size:
    """How much is computed: the settings of all runs, and of each (clock, partition) that is run.

    Within one of these groups `distill.variant` (and the seed) is all that differs.
    """

    settings: Values
    groups: dict[tuple[str, str], Values]


_COMMON: Values = {
    "dataset": "cifar10",
    "alpha": 0.3,
    "participants": 3,
    "proxy-examples": 10_000,
    "validation-examples": 1_000,
    "proxy-labelled-examples": 10_000,
    "distill.learning-rate": 2e-3,
    "targets": ",".join(map(str, TARGETS)),
}

SIZES: dict[str, Size] = {
    # Two cores, 30 minutes: one core trains the clients, the other one distils.
    "small": Size(
        _COMMON
        | {
            "small-width": 8,
            "large-width": 16,
            "local-steps": 72,
            "evaluate-examples": 2_000,
            "distill.reverse-steps": 40,
        },
        {
            ("virtual", "iid"): {"num-server-rounds": 20},
            ("real", "iid"): {"num-server-rounds": 24},
            # 60 % is far off with skewed labels: shorter, for the order of the variants alone.
            ("virtual", "dirichlet"): {"num-server-rounds": 6},
        },
    ),
    # One GPU: wider models, to the plateau.
    "full": Size(
        _COMMON
        | {
            "small-width": 16,
            "large-width": 48,
            "local-steps": 80,
            "distill.reverse-steps": 60,
            "num-server-rounds": 150,
        },
        {(clock, partition): {} for clock in CLOCKS for partition in PARTITIONS},
    ),
}


@dataclass(frozen=True)
class Planned:
    """One run."""

    clock: str
    partition: str
    variant: str
    seed: int
    values: Values = field(hash=False, compare=False)

    @property
    def words(self) -> tuple[str, ...]:
        return (self.clock, self.partition, self.variant, f"seed{self.seed}")


def plan(
    size: str, seeds: Sequence[int], only: Sequence[str] = (), data_root: str = ""
) -> list[Planned]:
    """The runs of an experiment: group by group, and in each of them seed by seed.

    only: some of these runs: words that are a clock, a partition, a variant or "seedN"; a run is
    chosen when, of every kind that is named, it has one of the words. ValueError for other words.
    """
    runs = [
        Planned(
            clock,
            partition,
            variant,
            seed,
            {
                **SIZES[size].settings,
                **settings,
                "clock": clock,
                "partition": partition,
                "distill.variant": variant,
                "seed": seed,
                "data-root": data_root,
            },
        )
        for (clock, partition), settings in SIZES[size].groups.items()
        for seed in seeds
        for variant in VARIANTS
    ]
    return choose(runs, only)
