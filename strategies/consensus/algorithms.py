"""Every algorithm of the consensus system by its name, and what its settings may be."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from strategies.consensus.algorithm import Algorithm
from strategies.consensus.baselines import (
    DPSGD,
    ChocoSGD,
    CombineFirst,
    Gossip,
    MomentumTracking,
    RelaySGD,
)
from strategies.consensus.byzantine import Clipped
from strategies.consensus.descent import LocalSGD
from strategies.consensus.ecl import ECL, CompressedECL, Penalty, fixed_penalty, isvr_penalty
from strategies.consensus.held import HeldECL
from strategies.consensus.outer_momentum import DecentLaM, QuasiGlobal
from strategies.consensus.rounded import Rounded
from strategies.consensus.topology import Topology

PENALTIES = ("fixed", "isvr")
COMPRESSIONS = ("random-k", "top-k")


@dataclass(frozen=True)
class Settings:
    """The hyper-parameters of all algorithms; each uses those that it has.

    interval: K, mean number of local steps between two exchanges of an edge.
    hold: whether "ecl" is `HeldECL`, with forget, or `ECL`, with rho; theta and kappa are of both.
    penalty: "isvr" with the factor mult, or "fixed" with alpha.
    momentum, weight_decay: of the local steps, see `LocalSGD`.
    keep: share of the coordinates that a compressed message has, chosen by `compression`.
    gamma: consensus step of CHOCO-SGD. seed: of the random coordinates.
    clip: how far from the own model mail may lie, see `Clipped`; 0 = anywhere.
    mail_precision: one of `strategies.precision.PRECISIONS`, see `Rounded`.

    Raises ValueError for a value out of its range.
    """

    interval: float
    hold: bool
    forget: float
    theta: float
    kappa: float
    mult: float
    penalty: str
    alpha: float
    rho: float
    momentum: float
    weight_decay: float
    keep: float
    compression: str
    gamma: float
    seed: int
    clip: float = 0.0
    mail_precision: str = "float32"

    def __post_init__(self) -> None:
        _require(self, "interval", self.interval >= 1, "at least 1 local step")
        for name in ("theta", "keep", "gamma"):
            _require(self, name, 0 < getattr(self, name) <= 1, "above 0 and at most 1")
        for name in ("mult", "alpha"):
            _require(self, name, getattr(self, name) > 0, "above 0")
        for name in ("forget", "rho", "weight_decay", "clip"):
            _require(self, name, getattr(self, name) >= 0, "at least 0")
        _require(self, "kappa", 0 <= self.kappa <= 1, "between 0 and 1")
        _require(self, "momentum", 0 <= self.momentum < 1, "at least 0 and below 1")
        for name, choices in (("penalty", PENALTIES), ("compression", COMPRESSIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"consensus.{name}={getattr(self, name)!r} is unknown; "
                    f"choose one of: {', '.join(choices)}"
                )


def _require(settings: Settings, name: str, holds: bool, what: str) -> None:
    value = getattr(settings, name)
    if not (holds and math.isfinite(value)):
        raise ValueError(f"consensus.{name.replace('_', '-')}={value} must be {what}")


@dataclass(frozen=True)
class Entry:
    """An algorithm.

    exchange: what it is made for, "random" exchanges of single edges or "synchronous" rounds.
    published: where it comes from, if the settings leave it as it was published.
    exact: whether its limit is the optimum of all nodes' data, however unequal they are.
    trees_only, static_only: it needs a tree; a graph that is the same in every round.
    overrides: the settings that the name stands for.
    unclipped: why its mail cannot be clipped; "" if it can.
    unrounded: why its mail cannot be rounded; "" if it can.
    """

    build: Callable[[Settings, Topology], Algorithm]
    exchange: str
    published: str = ""
    exact: bool = False
    trees_only: bool = False
    static_only: bool = False
    overrides: Mapping[str, str | float] = field(default_factory=dict)
    unclipped: str = ""
    unrounded: str = ""


def _plain(algorithm: type[LocalSGD]) -> Callable[[Settings, Topology], Algorithm]:
    """Builds an algorithm with no settings but those of its local steps."""
    return lambda s, topology: algorithm(topology, s.momentum, s.weight_decay)


def _penalty(settings: Settings, topology: Topology, interval: float) -> Penalty:
    if settings.penalty == "fixed":
        return fixed_penalty(topology, settings.alpha)
    return isvr_penalty(topology, interval, settings.mult)


def _ecl(s: Settings, topology: Topology) -> Algorithm:
    penalty = _penalty(s, topology, s.interval)
    if not s.hold:
        return ECL(topology, s.momentum, s.weight_decay, penalty, s.theta, s.kappa, s.rho)
    if s.rho:
        raise ValueError(
            f"consensus.rho={s.rho} must be 0 with consensus.hold: mail brings models to their mean"
        )
    return HeldECL(
        topology, s.momentum, s.weight_decay, penalty, s.theta, s.kappa, s.forget, s.interval
    )


def _compressed_ecl(s: Settings, topology: Topology) -> Algorithm:
    if s.rho:
        raise ValueError(
            f"consensus.rho={s.rho} must be 0 for c-ecl: it needs the neighbours' whole models"
        )
    # A coordinate is exchanged every K / keep steps (Takezawa et al. 2022).
    penalty = _penalty(s, topology, s.interval / s.keep)
    return CompressedECL(
        topology, s.momentum, s.weight_decay, penalty, s.theta, s.kappa,
        keep=s.keep, compression=s.compression, seed=s.seed,
    )  # fmt: skip


def _choco_sgd(s: Settings, topology: Topology) -> Algorithm:
    return ChocoSGD(topology, s.momentum, s.weight_decay, s.keep, s.compression, s.gamma, s.seed)


def _quasi_global(s: Settings, topology: Topology) -> Algorithm:
    return QuasiGlobal(topology, s.momentum, s.weight_decay, s.interval)


def _preset(theta: float, penalty: str, published: str) -> Entry:
    """ECL as it was published; rho belongs to the KDD paper alone."""
    overrides: dict[str, str | float] = {
        "hold": False, "theta": theta, "kappa": 0.0, "penalty": penalty
    }  # fmt: skip
    if penalty == "isvr":
        overrides |= {"mult": 1.0, "rho": 0.0}
    return Entry(_ecl, "random", published, exact=True, overrides=overrides)


_PARTS = "its mail has some coordinates only, and no distance from a model"
_SUMS = "one mail that is not used as it was sent breaks the sums that it keeps, for good"
_OTHERS = "its mail has other coordinates each time, of which nobody has an earlier value"
_NO_MAIL = "it gets no mail"
_KDD = "Niwa et al., KDD 2020"
_ICML = "Niwa et al., ICML 2021"

ALGORITHMS: dict[str, Entry] = {
    "ecl": Entry(_ecl, "random", exact=True),
    "c-ecl": Entry(_compressed_ecl, "random", exact=True, unclipped=_PARTS, unrounded=_OTHERS),
    "pdmm-sgd": _preset(1.0, "fixed", _KDD),
    "admm-sgd": _preset(0.5, "fixed", _KDD),
    "pdmm-isvr": _preset(1.0, "isvr", _ICML),
    "admm-isvr": _preset(0.5, "isvr", _ICML),
    "gossip": Entry(_plain(Gossip), "random", "Lian et al., ICML 2018 (AD-PSGD)"),
    "d-psgd": Entry(_plain(DPSGD), "synchronous", "Lian et al., NeurIPS 2017"),
    "gradient-tracking": Entry(
        _plain(MomentumTracking), "synchronous", "Nedic et al., SIAM J. Optim. 2017",
        exact=True, overrides={"momentum": 0.0}, unclipped=_SUMS, unrounded=_SUMS,
    ),
    "momentum-tracking": Entry(
        _plain(MomentumTracking), "synchronous", "Takezawa et al., TMLR 2023", exact=True,
        unclipped=_SUMS, unrounded=_SUMS,
    ),
    "momentum-tracking-cta": Entry(
        _plain(CombineFirst), "synchronous", "Takezawa et al., TMLR 2023", exact=True,
        unclipped=_SUMS, unrounded=_SUMS,
    ),
    "qg-dsgdm": Entry(_quasi_global, "synchronous", "Lin et al., ICML 2021"),
    "decentlam": Entry(_plain(DecentLaM), "synchronous", "Yuan et al., ICCV 2021"),
    "choco-sgd": Entry(
        _choco_sgd, "synchronous", "Koloskova et al., ICML 2019", static_only=True,
        unclipped=_PARTS, unrounded=_OTHERS,
    ),
    "relay-sgd": Entry(
        _plain(RelaySGD), "synchronous", "Vogels et al., NeurIPS 2021", trees_only=True,
        unclipped="its mail is the sum of a branch's models, in which a liar's cannot be told",
        unrounded="its mail has the sum of a branch's models, each with the rounding of all before",
    ),
    "isolated": Entry(_plain(LocalSGD), "random", unclipped=_NO_MAIL, unrounded=_NO_MAIL),
}  # fmt: skip


def make_algorithm(name: str, settings: Settings, topology: Topology) -> Algorithm:
    """The algorithm `name` for `topology`.

    Raises ValueError for an unknown name, and for settings or a topology it cannot work with.
    """
    if name not in ALGORITHMS:
        raise ValueError(
            f"consensus.algorithm={name!r} is unknown; "
            f"choose one of: {', '.join(sorted(ALGORITHMS))}"
        )
    return build(name, ALGORITHMS[name], settings, topology)


def build(name: str, entry: Entry, settings: Settings, topology: Topology) -> Algorithm:
    """The algorithm of `entry`, which is called `name`; see `make_algorithm`."""
    tree = topology.static and len(topology.edges) == topology.size - 1
    if entry.trees_only and not tree:
        raise ValueError(f"{name} needs a tree, such as chain, star or tree, not {topology.name}")
    if entry.static_only and not topology.static:
        raise ValueError(f"{name} needs the same graph in every round, not {topology.name}")
    algorithm = entry.build(replace(settings, **entry.overrides), topology)  # type: ignore[arg-type]
    if settings.clip:
        algorithm = _clipped(name, entry, settings, algorithm)
    return _rounded(name, entry, settings, algorithm)


def _clipped(name: str, entry: Entry, settings: Settings, algorithm: Algorithm) -> Algorithm:
    if entry.unclipped:
        others = ", ".join(sorted(n for n, each in ALGORITHMS.items() if not each.unclipped))
        raise ValueError(
            f"consensus.clip={settings.clip} must be 0 for {name}: {entry.unclipped}; those with a "
            f"clip are: {others}"
        )
    return Clipped(algorithm, settings.clip, settings.interval)


def _rounded(name: str, entry: Entry, settings: Settings, algorithm: Algorithm) -> Algorithm:
    if settings.mail_precision == "float32":
        return algorithm
    told = f"mail-precision={settings.mail_precision!r} must be 'float32'"
    if entry.unrounded:
        raise ValueError(f"{told} for {name}: {entry.unrounded}")
    if settings.rho and isinstance(algorithm, ECL):
        raise ValueError(f"{told} with consensus.rho={settings.rho}, whose mail has models, too")
    return Rounded(algorithm, settings.mail_precision)
