"""Which runs the experiment consists of, and which configuration each of them has."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from experiments.planned_runs import Values, choose

OURS = "ecl"
KEEPS = "ecl-keeps"  # its corrections are not forgotten
ANCHORS = "ecl-anchors"  # it has the papers' anchors in place of held corrections
ADJUSTED = "ecl-adjusted"  # nodes allow for their own shares of the classes
PRESETS = ("pdmm-isvr", "admm-isvr")  # as published
INTERVAL = 6
# Validation accuracies by step size; written by experiments.consensus.tune.
RATES = Path(__file__).with_name("rates.json")
TUNING_SEED = 100

_BATCH = 32
_START = 0.1  # the step size of a row of which none has been tried; it is not run with it
_STRENGTH = 0.5  # of `adjust-logits`; chosen on other runs
_TEST_IMAGES = 10_000  # of CIFAR-10 and Fashion-MNIST, all of which are used in the end

# The rows of the tables: what a node does. Everything else comes from the group and the size.
ROWS: dict[str, Values] = {
    "isolated": {"consensus.algorithm": "isolated"},
    "gossip": {"consensus.algorithm": "gossip"},
    "d-psgd": {"consensus.algorithm": "d-psgd"},
    "momentum-tracking": {"consensus.algorithm": "momentum-tracking"},
    "pdmm-isvr": {"consensus.algorithm": "pdmm-isvr"},
    "admm-isvr": {"consensus.algorithm": "admm-isvr"},
    OURS: {"consensus.algorithm": "ecl"},
    KEEPS: {"consensus.algorithm": "ecl", "consensus.forget": 0.0},
    ANCHORS: {"consensus.algorithm": "ecl", "consensus.hold": False},
    "qg-dsgdm": {"consensus.algorithm": "qg-dsgdm"},
    "relay-sgd": {"consensus.algorithm": "relay-sgd", "consensus.topology": "chain"},
    "gossip-adjusted": {"consensus.algorithm": "gossip", "adjust-logits": _STRENGTH},
    ADJUSTED: {"consensus.algorithm": "ecl", "adjust-logits": _STRENGTH},
    # A node by itself, beside which centralized training of as many samples is run.
    "same-samples": {"consensus.algorithm": "isolated"},
}
# Rows that are there for the reference beside them, which has a step size of its own.
HOSTS: dict[str, str] = {"isolated": "same-steps", "same-samples": "same-samples"}


@dataclass(frozen=True)
class Group:
    """Runs that are compared with each other: they differ in the row (and the seed) alone.

    settings: what departs from the core. about: what the title does not say.
    """

    title: str
    settings: Values = field(default_factory=dict)
    about: str = ""


# The core, and what departs from it.
GROUPS: dict[str, Group] = {
    "core": Group(
        "Random split, cosine step, momentum 0.9",
        about="Who has which five classes is random.",
    ),
    "halves": Group(
        "Hard split",
        {"partition": "halves"},
        about="Half of the ring has classes 0 to 4, the other half 5 to 9.",
    ),
    "two": Group(
        "Two classes a node",
        {"num-classes-per-partition": 2},
        about="Who has which two of ten classes is random.",
    ),
    "dirichlet": Group(
        "Dirichlet 0.1",
        {"partition": "dirichlet", "alpha": 0.1},
        about="Nodes have unequal shares of every class, and unequal numbers of images.",
    ),
    "constant": Group(
        "Random split, constant step",
        {"consensus.schedule": "constant"},
        about="Who has which five classes is random. Where steps do not shrink, the form that is "
        "exact in the limit is the one that forgets nothing.",
    ),
    "constant-halves": Group(
        "Hard split, constant step",
        {"consensus.schedule": "constant", "partition": "halves"},
        about="Half of the ring has classes 0 to 4, the other half 5 to 9.",
    ),
    "dirichlet-1": Group("Dirichlet 1", {"partition": "dirichlet", "alpha": 1.0}),
    "eight": Group(
        "Eight classes a node",
        {"num-classes-per-partition": 8},
        about="Who has which eight of ten classes is random.",
    ),
}
CORE = "core"

_COMMON: Values = {
    "mode": "consensus",
    "clock": "virtual",
    "dataset": "cifar10",
    "participants": 8,
    "partition": "classes-per-participant",
    "num-classes-per-partition": 5,
    "normalisation": "group",
    "consensus.topology": "ring",
    "consensus.batch-size": _BATCH,
    "consensus.schedule": "cosine",
    "consensus.momentum": 0.9,
    "consensus.hold": True,
    "consensus.forget": 1.0,
    "consensus.theta": 0.5,
    "consensus.kappa": 1.0,
}


@dataclass(frozen=True)
class Size:
    """How much is computed.

    rows: by group, those that are run. Every row of every group has a step size of its own.
    grid: those that are tried for it first, on validation images and with a seed that is in no
    table; see `untried`.
    steps: local steps of a node. window: of these between two evaluations on
    `evaluated` test images, and between two values of the step size; a multiple of the interval.
    augment: not where images are seen but a few times: it costs nodes and references five points.
    interval: K. reported: of (group, row or reference), the accuracy that others report, in %.
    step_seconds: what a local step takes on one core (or GPU), for the estimate alone.
    """

    purpose: str
    model: str
    width: int
    steps: int
    window: int
    evaluated: int
    step_seconds: float
    rows: Mapping[str, tuple[str, ...]]
    grid: tuple[float, ...]
    augment: bool = True
    interval: int = INTERVAL
    data: Mapping[str, str | int] = field(default_factory=dict)
    reported: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @property
    def settings(self) -> Values:
        return {
            **_COMMON,
            "consensus.interval": float(self.interval),
            **self.data,
            "small-model": self.model,
            "small-width": self.width,
            "evaluate-examples": self.evaluated,
            "consensus.window": self.window,
            "consensus.augment": self.augment,
        }


def chosen_rate(size: str, group: str, row: str) -> float | None:
    """The step size with the best validation accuracy; None where none has been tried."""
    tried = _tried(size, group, row)
    return max(tried, key=lambda rate: tried[rate]) if tried else None


def untried(size: str, group: str, row: str) -> list[float]:
    """The step sizes that have to be tried next: those of the grid; then, while the best is the
    longest or the shortest of all that were tried, one twice as long or half as long. Empty when
    the best has one that is no better on each side."""
    tried = _tried(size, group, row)
    if lacking := [rate for rate in SIZES[size].grid if rate not in tried]:
        return lacking
    best = chosen_rate(size, group, row)
    assert best is not None  # of the grid all have been tried
    return [2 * best] * (best == max(tried)) + [best / 2] * (best == min(tried))


def _tried(size: str, group: str, row: str) -> dict[float, float]:
    """Validation accuracies by step size."""
    known = json.loads(RATES.read_text()) if RATES.exists() else {}
    found = known.get(size, {}).get("validation", {}).get(group, {}).get(row, {})
    return {float(rate): accuracy for rate, accuracy in found.items()}


_PAIR = ("gossip", OURS)
_TUNED = (*_PAIR, "momentum-tracking", KEEPS)
_ADJUSTED = ("gossip-adjusted", ADJUSTED)
_OTHERS = ("qg-dsgdm", "relay-sgd")  # in the protocol of one of them
SIZES: dict[str, Size] = {
    "fashion-mnist": Size(
        purpose="a GPU, or a night of 2 cores: all 60,000 images of Fashion-MNIST",
        model="lenet",
        width=0,
        steps=3600,
        window=180,
        evaluated=500,
        step_seconds=0.005,
        augment=False,
        # All data in one place are the same however they are split: one group of those whose steps
        # are alike has the references.
        rows={
            CORE: (*HOSTS, *_TUNED),
            "halves": _TUNED,
            "two": (*_TUNED, *PRESETS, ANCHORS, *_ADJUSTED),
            "dirichlet": _TUNED,
            "constant": (*HOSTS, *_PAIR, KEEPS),
            "constant-halves": (*_PAIR, KEEPS),
        },
        grid=(0.05, 0.1, 0.2, 0.4),
        data={"dataset": "fashion-mnist", "validation-examples": 5_000},
    ),
    # Vogels et al., NeurIPS 2021, table 2. Of its Dirichlet 0.01 sixteen nodes do not all get
    # images by the rule that is used here.
    "relay-sgd": Size(
        purpose="one GPU, in pieces: VGG-11, sixteen nodes, 200 epochs, by RelaySGD's protocol",
        model="vgg11",
        width=64,
        steps=19_600,
        window=490,
        evaluated=2_000,
        step_seconds=0.002,
        rows={
            "dirichlet-1": ("same-samples", *_OTHERS, "d-psgd", *_TUNED),
            "dirichlet": (*_OTHERS, "d-psgd", *_TUNED),
        },
        grid=(0.05, 0.1, 0.2),
        interval=1,
        data={"participants": 16, "consensus.precision": "tf32", "validation-examples": 5_000},
        reported={
            ("dirichlet-1", "same-samples"): "90.2 (all-reduce)",
            ("dirichlet-1", "relay-sgd"): "89.5",
            ("dirichlet-1", "d-psgd"): "87.4",
            ("dirichlet-1", "qg-dsgdm"): "89.5",
            ("dirichlet", "same-samples"): "90.2 (all-reduce)",
            ("dirichlet", "relay-sgd"): "89.2",
            ("dirichlet", "d-psgd"): "79.9",
            ("dirichlet", "qg-dsgdm"): "84.8",
        },
    ),
    # Niwa et al., ICML 2021, read off its figures.
    "ecl-isvr": Size(
        purpose="one GPU, in pieces: ResNet-32, eight of ten classes a node, K = 8",
        model="resnet32",
        width=16,
        steps=20_400,
        window=600,
        evaluated=2_000,
        step_seconds=0.001,
        rows={"eight": (*HOSTS, "d-psgd", *PRESETS, *_TUNED)},
        grid=(0.05, 0.1, 0.2),
        interval=8,
        data={"consensus.precision": "tf32", "validation-examples": 5_000},
        reported={
            ("eight", "same-samples"): "73 to 74",
            ("eight", "pdmm-isvr"): "72 to 73",
            ("eight", "admm-isvr"): "72 to 73",
            ("eight", "d-psgd"): "48 to 54",
        },
    ),
}


@dataclass(frozen=True)
class Planned:
    """One run. minutes: an estimate of what it takes on one core. tuning: the command that has yet
    to be given before it may be run, since its row's best step size is not known yet."""

    group: str
    row: str
    seed: int
    minutes: float = field(compare=False)
    values: Values = field(hash=False, compare=False)
    tuning: str = field(default="", compare=False)

    @property
    def words(self) -> tuple[str, ...]:
        return (self.group, self.row, f"seed{self.seed}")


def plan(
    size: str, seeds: Sequence[int], only: Sequence[str] = (), data_root: str = ""
) -> list[Planned]:
    """The runs of an experiment: group by group, and in each of them seed by seed.

    only: some of these runs: words that are a group, a row or "seedN"; a run is chosen when, of
    every kind that is named, it has one of the words. ValueError for other words.
    """
    given, runs = SIZES[size], []
    for (name, group), seed in product(GROUPS.items(), seeds):
        for row in given.rows.get(name, ()):
            rate = chosen_rate(size, name, row) or _START
            values: Values = {
                **given.settings,
                **group.settings,
                **ROWS[row],
                "consensus.learning-rate": rate,
                "consensus.steps": given.steps,
                "consensus.references": HOSTS.get(row, ""),
                "seed": seed,
                "data-root": data_root,
            }
            tune = f"python -m experiments.consensus.tune --size {size} --only {name},{row}"
            minutes = _minutes(values, given)
            lacking = tune if untried(size, name, row) else ""
            runs.append(Planned(name, row, seed, minutes, values, lacking))
    return choose(runs, only)


def _minutes(values: Values, size: Size) -> float:
    """What a run takes on one core: minibatches of all nodes and references, and evaluations, in
    which an image costs a third of what it costs in training."""
    references, nodes = str(values["consensus.references"]), int(values["participants"])
    same_steps, same_samples = "same-steps" in references, "same-samples" in references
    steps = int(values["consensus.steps"])
    minibatches = steps * (nodes + same_steps + nodes * same_samples)
    models = nodes + 1 + same_steps + same_samples
    images = models * (steps // size.window * size.evaluated + _TEST_IMAGES)
    return (minibatches + images / _BATCH / 3) * size.step_seconds / 60
