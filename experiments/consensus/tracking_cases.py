"""What is run in the momentum tracking protocol: methods, step sizes, conditions."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.consensus import tracking_data
from strategies.consensus.algorithms import ALGORITHMS

EVERY = 10  # epochs between two evaluations
RATES = (0.005, 0.001, 0.0005)


@dataclass(frozen=True)
class Method:
    """rate: the published best step size, or the one to try first. published: test accuracy in per
    cent. all_reduce: momenta start as the nodes' gradients less their mean, which all must know.
    changes: of SETTINGS."""

    algorithm: str
    rate: float = 0.001
    published: float | None = None
    all_reduce: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "dsgdm": Method("d-psgd", 0.005, 35.6),
    "qg-dsgdm": Method("qg-dsgdm", 0.005, 49.4),
    "decentlam": Method("decentlam", 0.005, 54.9),
    "momentum-tracking": Method("momentum-tracking-cta", 0.001, 66.8, all_reduce=True),
    "ecl": Method("ecl"),
    "ecl-forget": Method("ecl", changes={"forget": 1.0}),
    "admm-isvr": Method("admm-isvr"),
    "pdmm-isvr": Method("pdmm-isvr"),
    "momentum-tracking-atc": Method("momentum-tracking", all_reduce=True),
    "gossip": Method("gossip"),
}


@dataclass(frozen=True)
class Case:
    """A run. interval: K, local steps between two exchanges of an edge. asynchronous: each edge at
    random times of its own. loss: of mails; delay: of a mail at most, in local steps. adjusted:
    how far nodes allow for their own shares of the classes (`client_apps.logit_adjustment`)."""

    method: str
    learning_rate: float
    seed: int = 0
    classes: int = 4
    interval: int = 1
    asynchronous: bool = False
    loss: float = 0.0
    delay: float = 0.0
    epochs: int = 500
    adjusted: float = 0.0

    def check(self) -> None:
        """Raises ValueError for what cannot be run."""
        tracking_data.classes_of(self.classes, self.seed)
        if self.epochs > EVERY and self.epochs % EVERY:
            raise ValueError(f"--epochs {self.epochs} must be a multiple of {EVERY}, or less")
        if not _fits(self.method, self.asynchronous):
            how = (
                "in synchronous rounds" if self.asynchronous else "at random times (--asynchronous)"
            )
            raise ValueError(f"{self.method} works {how} only")

    @property
    def name(self) -> str:
        parts = [self.method, f"lr {self.learning_rate:g}", f"seed {self.seed}"]
        parts += [f"K {self.interval}"] if self.interval > 1 else []
        parts += ["asynchronous"] if self.asynchronous else []
        parts += [f"loss {self.loss:g}"] if self.loss else []
        parts += [f"delay {self.delay:g}"] if self.delay else []
        parts += [f"adjusted {self.adjusted:g}"] if self.adjusted else []
        return " ".join(parts)


def _fits(method: str, asynchronous: bool) -> bool:
    """Whether it can exchange so. In rounds gossip, which takes the mean with one neighbour after
    the other, is no fair baseline; its form there is dsgdm."""
    if asynchronous:
        return ALGORITHMS[METHODS[method].algorithm].exchange == "random"
    return method != "gossip"


def plan(arguments: argparse.Namespace) -> list[Case]:
    """First every method with one step size, then with the others; seed after seed. Without --only,
    all methods that can exchange as it is asked."""
    chosen: list[tuple[str, float | None]] = []
    for word in arguments.only or [m for m in METHODS if _fits(m, arguments.asynchronous)]:
        name, _, rate = word.partition(":")
        if name not in METHODS:
            raise ValueError(f"--only {name} is unknown; choose from: {', '.join(METHODS)}")
        chosen.append((name, float(rate) if rate else None))
    first = [(name, rate or METHODS[name].rate) for name, rate in chosen]
    others = [
        (name, rate)
        for rate in RATES
        for name, given in chosen
        if given is None and rate != METHODS[name].rate
    ]
    pairs = first if arguments.best else first + others
    conditions = ("classes", "interval", "asynchronous", "loss", "delay", "epochs", "adjusted")
    shared = {name: getattr(arguments, name) for name in conditions}
    cases = [Case(name, rate, seed, **shared) for seed in arguments.seeds for name, rate in pairs]
    for case in cases:
        case.check()
    return cases
