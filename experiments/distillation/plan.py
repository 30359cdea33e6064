"""Which runs the experiment consists of, and which configuration each of them has.

A run is a setting (whose data, how many labels the server has, how many participants, whether some
are slow), a row (what the systems do) and a seed. Within a setting only the row differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from experiments.planned_runs import Values, choose
from fl_app.config import defaults

OURS = "plus"
PAPER = ("sync-forward", "sync", "async-round", "async-continuous")
# The synchronous variants with three times the steps a round, charged at three times the cost:
# with as few as the paper's cost ratio gives them they are starved.
MORE = 3
STARVED = ("sync-forward", "sync")
CALIBRATED = f"sync-x{MORE}-calibrated"  # with the newest version, calibrated, as the teacher
# All that `plus` has, but participants and server wait for each other: what asynchrony is worth.
WAITING = "sync-plus"
SYNCHRONOUS = (
    *STARVED,
    *(f"{row}-x{MORE}" for row in STARVED),
    CALIBRATED,
    WAITING,
    f"{WAITING}-x{MORE}",
)
BUFFERED = "plus-buffered"  # where some are slow: a version of every three updates that arrive

_VALUES: dict[str, Values] = {
    OURS: {"distill.variant": "async-plus"},
    **{row: {"distill.variant": row} for row in PAPER},
    **{f"{row}-x{MORE}": {"distill.variant": row} for row in STARVED},
    CALIBRATED: {"distill.variant": "sync", "distill.calibrate": "on"},
    **{
        row: {
            "distill.variant": "sync",
            "distill.calibrate": "on",
            "distill.teacher-average": "on",
            "distill.lift": "on",
        }
        for row in (WAITING, f"{WAITING}-x{MORE}")
    },
    "plus-no-calibration": {"distill.variant": "async-plus", "distill.calibrate": "off"},
    "plus-no-lift": {"distill.variant": "async-plus", "distill.lift": "off"},
    "plus-no-teacher-average": {
        "distill.variant": "async-plus",
        "distill.teacher-average": "off",
    },
    BUFFERED: {"distill.variant": "async-plus", "averaging": "buffered"},
}
ROWS = tuple(_VALUES)
_FEW = (OURS, "sync", f"sync-x{MORE}", WAITING, "async-continuous", "plus-no-calibration")
_CALIBRATED = (*_FEW, CALIBRATED)
_PARTITIONS: dict[str, Values] = {
    "iid": {"partition": "iid"},
    "dirichlet-0.3": {"partition": "dirichlet", "alpha": 0.3},
    "dirichlet-0.1": {"partition": "dirichlet", "alpha": 0.1},
}
_FACTOR = 5.0  # of a straggler's time
_STRENGTH = 0.5  # chosen on runs of the consensus system


@dataclass(frozen=True)
class Setting:
    """What the rows of a table have in common.

    labels: of the server's images so many have labels. stragglers: one participant at a time, in
    the mean, takes five times as long. adjusted: whether participants allow for their own shares of
    the classes. rows: those that are run.
    centralized: whether the ceiling is computed, too, beside our row.
    """

    partition: str = "iid"
    labels: int = 0
    participants: int = 3
    stragglers: bool = False
    adjusted: bool = False
    rows: tuple[str, ...] = _FEW
    centralized: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        kind = "stragglers" if self.stragglers else "adjusted" if self.adjusted else "even"
        return (self.partition, f"labels{self.labels}", f"participants{self.participants}", kind)

    @property
    def name(self) -> str:
        return "-".join(self.words)

    @property
    def title(self) -> str:
        kind = ", stragglers" if self.stragglers else ", adjusted" if self.adjusted else ""
        labels = f"{self.labels} labels" if self.labels else "no labels"
        return f"{self.partition}, {labels}, {self.participants} participants{kind}"

    @property
    def values(self) -> Values:
        values: Values = {
            **_PARTITIONS[self.partition],
            "proxy-labelled-examples": self.labels,
            "participants": self.participants,
        }
        if self.stragglers:
            values["cost.straggler-probability"] = round(1 / self.participants, 4)
            values["cost.straggler-factor"] = _FACTOR
        if self.adjusted:
            values["adjust-logits"] = _STRENGTH
        return values

    @property
    def references(self) -> str:
        """The controls, which our row computes for all rows."""
        names = ["small-average", "small-calibrated"]
        names += ["server-alone"] if self.labels else []
        names += ["centralized-large"] if self.centralized else []
        return ",".join(names)


@dataclass(frozen=True)
class Size:
    """How much is computed: the settings, and what all runs have in common beside their defaults.

    Its settings are in the order of their value.
    """

    purpose: str
    settings: tuple[Setting, ...]
    values: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    @property
    def clock(self) -> str:
        return str(self.values.get("clock", "virtual"))

    def row_values(self, row: str) -> Values:
        """What `row` is, with this size's steps."""
        if f"-x{MORE}" not in row:
            return _VALUES[row]
        everything = {**defaults(), **self.values}
        values = {**_VALUES[row]}
        for key in ("distill.reverse-steps", "cost.reverse-ratio"):
            values[key] = MORE * everything[key]
        return values


# Weight averages are published by all rows: like with like.
_COMMON: Values = {"mode": "distill", "clock": "virtual", "distill.publish-ema": "on"}
# The embedded images: 4,200 for the participants.
_SMALL: Values = {**_COMMON, "proxy-examples": 1_500, "validation-examples": 300}
_FORWARD = ("sync-forward", f"sync-forward-x{MORE}")
_NOT_BUFFERED = tuple(row for row in ROWS if row != BUFFERED)
_SLOW = (*_FEW, BUFFERED, "sync-forward")
# Where a run is long or there are many of them: ours, what it is worth less an ingredient, and who
# waits, without and with our teacher.
_FAIR = (OURS, f"sync-x{MORE}", CALIBRATED, WAITING, "plus-no-calibration")
_WORTH = (OURS, WAITING)  # what asynchrony is worth
_ADJUSTED = (OURS, f"sync-x{MORE}", CALIBRATED, WAITING, "plus-no-calibration")
_EMBEDDED = (
    Setting(labels=1500, rows=(*_FEW, "async-round", *_FORWARD)),
    Setting(rows=_NOT_BUFFERED, centralized=True),
    Setting("dirichlet-0.1", rows=(*_CALIBRATED, f"{WAITING}-x{MORE}")),
    Setting("dirichlet-0.3", rows=(*_FEW, f"{WAITING}-x{MORE}")),
    Setting(labels=150),
    Setting(stragglers=True, rows=_SLOW),
    Setting("dirichlet-0.1", participants=10, rows=_FAIR),
    Setting(participants=10, rows=_FAIR),
    Setting("dirichlet-0.1", adjusted=True, rows=_ADJUSTED),
    Setting("dirichlet-0.3", adjusted=True, rows=(OURS,)),
    Setting(adjusted=True, rows=(OURS,)),
)
_LONG = (
    Setting(rows=_FAIR, centralized=True),
    Setting("dirichlet-0.1", rows=_FAIR),
    Setting(labels=1000, rows=(*_FEW, *_FORWARD)),
    Setting("dirichlet-0.3"),
    Setting(labels=10_000),
    Setting("dirichlet-0.1", participants=10),
    Setting(stragglers=True, rows=_SLOW),
)
_CIFAR: Values = {
    **_COMMON,
    "dataset": "cifar10",
    "proxy-examples": 10_000,
    "validation-examples": 1_000,
    "distill.learning-rate": 2e-3,
}

SIZES: dict[str, Size] = {
    "small": Size(
        "one core, eleven hours; the embedded images, as in the defaults", _EMBEDDED, _SMALL
    ),
    "real": Size(
        "2 cores, twenty minutes with nothing beside it: the same on the machine's own clock",
        (Setting(rows=(*_CALIBRATED, "sync-forward")),),
        {**_SMALL, "clock": "real"},
    ),
    "fashion-mnist": Size(
        "one core, a quarter of an hour a run: all 60,000 images of Fashion-MNIST",
        _LONG,
        {
            **_COMMON,
            "dataset": "fashion-mnist",
            "proxy-examples": 10_000,
            "validation-examples": 1_000,
            "num-server-rounds": 100,
            "local-steps": 60,
            "evaluate-examples": 5_000,
            "distill.reverse-steps": 40,
        },
    ),
    "cifar10": Size(
        "one core, a quarter of an hour a run: CIFAR-10 with narrow models",
        (Setting(rows=_WORTH), Setting("dirichlet-0.1", rows=_WORTH)),
        {
            **_CIFAR,
            "small-width": 8,
            "large-width": 16,
            "num-server-rounds": 200,
            "learning-rate-schedule": "cosine",
            "local-steps": 72,
            "evaluate-examples": 2_000,
            "distill.reverse-steps": 40,
        },
    ),
    "full": Size(
        "one GPU, at most nine minutes a run: CIFAR-10 with wider models",
        _LONG,
        {
            **_CIFAR,
            "small-width": 16,
            "large-width": 48,
            "num-server-rounds": 120,
            "local-steps": 80,
            "distill.reverse-steps": 60,
        },
    ),
}


@dataclass(frozen=True)
class Planned:
    """One run."""

    setting: Setting
    row: str
    seed: int
    values: Values = field(hash=False, compare=False)

    @property
    def words(self) -> tuple[str, ...]:
        return (*self.setting.words, self.row, f"seed{self.seed}")


def plan(
    size: str, seeds: Sequence[int], only: Sequence[str] = (), data_root: str = ""
) -> list[Planned]:
    """The runs of an experiment: setting by setting, and in each of them seed by seed.

    only: some of these runs: words that are a partition, "labelsN", "participantsN", "stragglers",
    "adjusted" or "even", a row or "seedN"; a run is chosen when, of every kind that is named, it
    has one of the words. ValueError for other words.
    """
    given = SIZES[size]
    runs = [
        Planned(
            setting,
            row,
            seed,
            {
                **given.values,
                **setting.values,
                **given.row_values(row),
                "distill.references": setting.references if row == OURS else "",
                "seed": seed,
                "data-root": data_root,
            },
        )
        for setting in given.settings
        for seed in seeds
        for row in setting.rows
    ]
    return choose(runs, only)
