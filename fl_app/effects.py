"""When a configuration key has an effect.

One table says it of every key. From it come the refusal of a key that was given for nothing, the
words of that refusal, and what `edge-fl config` prints behind the key.
"""

from collections.abc import Callable, Iterable

from fl_app.condition import Condition, Value, Values, above, other_than, shown, when
from strategies.consensus.algorithms import ALGORITHMS, Entry
from strategies.consensus.own import entry_of, has_momentum
from strategies.own_rules import is_buffered

PLACE = "place"  # beside the keys: "simulation", "devices", or "" where that is not known


def _algorithms(*names: str) -> Condition:
    return when("consensus.algorithm", *names)


def _which(has: Callable[[Entry], bool]) -> Condition:
    """The algorithm is one that has this, somebody's own or one of ours, which are named."""
    names = (name for name, entry in ALGORITHMS.items() if has(entry))
    return Condition(
        _algorithms(*names).text,
        ("consensus.algorithm",),
        lambda values: has(entry_of(str(values["consensus.algorithm"]))),
    )


def _partition(name: str) -> Condition:
    """Partitioners of flwr-datasets take what they know of."""

    def holds(values: Values) -> bool:
        return values["partition"] == name or str(values["partition"]).startswith("hf:")

    return Condition(f"partition={name}", ("partition",), holds)


_DISTILLS, _AGREES = when("mode", "distill"), when("mode", "consensus")
_AVERAGES = when("mode", "distill", "average")
_VIRTUAL, _REAL = when("clock", "virtual"), when("clock", "real")
_DEVICES = Condition(
    "devices (--superlink)", (PLACE,), lambda values: values[PLACE] != "simulation"
)

# The jobs of a record are those that it has: nothing is drawn of them.
_DRAWN = when("replay", "")

_IMAGES = when("task", "images")
_TABLES = when("task", "tables")
_OWN_FILES = when("dataset", "files")

_BUFFERED = when("averaging", "buffered")
_AS_THEY_COME = Condition(
    "averaging=buffered", ("averaging",), lambda values: is_buffered(str(values["averaging"]))
)
_ADAPTIVE = when("averaging", "fedadam", "fedyogi")
_SEVERAL = _BUFFERED & above("buffer-size", 1)
_ROUNDS = Condition(
    "averaging other than buffered", ("averaging",), lambda values: not _AS_THEY_COME.holds(values)
)

_NOISE, _NOISY_STEPS = when("privacy.clients", "fixed", "adaptive"), when("privacy.samples", True)

_LABELS = other_than("proxy-labelled-examples", 0)
_SOME_LABELS = Condition(
    "proxy-labelled-examples below proxy-examples",
    ("proxy-labelled-examples", "proxy-examples"),
    # -1 are all of them, and 0 of these as many as the data allow.
    lambda values: (
        values["proxy-labelled-examples"] != -1
        and (
            values["proxy-examples"] == 0
            or float(values["proxy-labelled-examples"]) < float(values["proxy-examples"])
        )
    ),
)
_FORWARD = when("distill.variant", "sync-forward")

_MAIL = other_than("consensus.algorithm", "isolated")
_ROUNDABLE = _which(lambda entry: not entry.unrounded)
_CLIPPABLE = _which(lambda entry: not entry.unclipped)
_WITH_MOMENTUM = Condition(
    "consensus.algorithm other than gradient-tracking",
    ("consensus.algorithm",),
    lambda values: has_momentum(str(values["consensus.algorithm"])),
)
_SPLITTING = _algorithms("ecl", "c-ecl")
_HELD = when("consensus.hold", True)
_FIXED, _ISVR = when("consensus.penalty", "fixed"), when("consensus.penalty", "isvr")
_COMPRESSED = _algorithms("c-ecl", "choco-sgd")

ALWAYS: tuple[Condition, ...] = ()
# Of all keys that begin so; the conditions of a key itself come after these.
SECTIONS: dict[str, tuple[Condition, ...]] = {
    "distill": (_DISTILLS,),
    "consensus": (_AGREES,),
    "privacy": (_AVERAGES,),
    "cost": (_AVERAGES, _VIRTUAL),
}
EFFECTS: dict[str, tuple[Condition, ...]] = {
    "mode": ALWAYS,
    "clock": ALWAYS,
    "replay": (_AVERAGES, _VIRTUAL),
    "device-profiles": (_AVERAGES, _VIRTUAL),
    "availability": (_AVERAGES, _VIRTUAL, _DRAWN),
    "participants": ALWAYS,
    "num-server-rounds": (_AVERAGES,),
    "fraction-train": (_AVERAGES, _ROUNDS, _DRAWN | _NOISE),
    "seed": ALWAYS,
    "device": ALWAYS,
    "round-timeout": ALWAYS,
    "round-seconds": (_AVERAGES, _REAL),
    "checkpoint-every": ALWAYS,
    "evaluate-on": ALWAYS,
    "evaluate-examples": (when("evaluate-on", "test"),),
    "targets": ALWAYS,
    "output": ALWAYS,
    "name": ALWAYS,
    "resume": ALWAYS,
    "sinks": ALWAYS,
    "devices": (_DEVICES,),
    "min-participants": (_DEVICES, _REAL),
    "sessions": (_DEVICES,),
    "link-patience": (_DEVICES, when("sessions", "auto", "on")),
    "task": ALWAYS,
    "dataset": (_IMAGES,),
    "data-root": (_IMAGES, other_than("dataset", "embedded", "files")),
    "data-path": (_OWN_FILES | other_than("task", "images"),),
    "allow-missing-classes": (_IMAGES, _OWN_FILES),
    "table": (_TABLES, when("data-path", "")),
    "table-target": (_TABLES,),
    "table-kind": (_TABLES,),
    "partition": ALWAYS,
    "alpha": (_partition("dirichlet"),),
    "num-classes-per-partition": (_partition("classes-per-participant"),),
    "num-shards-per-partition": (_partition("shards"),),
    "proxy-examples": (_AVERAGES,),
    "proxy-labelled-examples": (_DISTILLS,),
    "validation-examples": (_AVERAGES | when("evaluate-on", "validation"),),
    "small-model": (_IMAGES,),
    "small-width": (_IMAGES,),
    "large-model": (_DISTILLS, _IMAGES),
    "large-width": (_DISTILLS, _IMAGES),
    "normalisation": (_IMAGES,),
    "local-steps": (_AVERAGES,),
    "batch-size": (_AVERAGES,),
    "learning-rate": (_AVERAGES,),
    "learning-rate-schedule": (_AVERAGES,),
    "momentum": (_AVERAGES,),
    "weight-decay": (_AVERAGES,),
    "proximal-mu": (_AVERAGES,),
    "adjust-logits": ALWAYS,
    "client-threads": ALWAYS,
    "precision": (_AVERAGES,),
    "mail-precision": (_AVERAGES | (_AGREES & _ROUNDABLE),),
    "secure-aggregation": (_AVERAGES,),
    "best-metric": (_AVERAGES,),
    "stop-patience": (_AVERAGES, other_than("best-metric", "")),
    "averaging": (_AVERAGES,),
    "buffer-size": (_AVERAGES, _AS_THEY_COME),
    "staleness-weight": (_AVERAGES, _BUFFERED),
    "staleness-exponent": (_AVERAGES, _BUFFERED, when("staleness-weight", "polynomial", "hinge")),
    "staleness-bound": (_AVERAGES, _BUFFERED, when("staleness-weight", "hinge")),
    "mixing": (_AVERAGES, _BUFFERED, when("buffer-size", 1)),
    "server-learning-rate": (_AVERAGES, _ADAPTIVE | _SEVERAL),
    "server-tau": (_AVERAGES, _ADAPTIVE),
    "trim-fraction": (_AVERAGES, when("averaging", "fedtrimmedavg")),
    "num-malicious-nodes": (_AVERAGES, when("averaging", "krum", "multikrum", "bulyan")),
    "attack": ALWAYS,
    "attackers": ALWAYS,
    "attack-scale": (when("attack", "sign-flip", "noise"),),
    "distill.variant": ALWAYS,
    "distill.reverse-steps": ALWAYS,
    "distill.forward-steps": (_FORWARD,),
    "distill.batch-size": ALWAYS,
    "distill.learning-rate": ALWAYS,
    "distill.weight-decay": ALWAYS,
    "distill.forward-learning-rate": (_FORWARD,),
    "distill.temperature": ALWAYS,
    "distill.label-weight": (_LABELS,),
    "distill.labelled-share": (_LABELS, _SOME_LABELS),
    "distill.publish-ema": ALWAYS,
    "distill.lift": (_IMAGES,),
    "distill.teacher-average": ALWAYS,
    "distill.calibrate": ALWAYS,
    "distill.references": ALWAYS,
    "distill.threads": ALWAYS,
    "distill.gpu-fraction": (when("device", "auto", "cuda"),),
    "distill.restarts": ALWAYS,
    "consensus.algorithm": ALWAYS,
    "consensus.topology": ALWAYS,
    "consensus.topology-file": ALWAYS,
    "consensus.degree": (when("consensus.topology", "random-regular", "watts-strogatz", "base-k"),),
    "consensus.probability": (when("consensus.topology", "erdos-renyi", "watts-strogatz"),),
    "consensus.exchange": (_MAIL,),
    "consensus.interval": (_MAIL,),
    "consensus.steps": ALWAYS,
    "consensus.window": ALWAYS,
    "consensus.settle": (_MAIL, when("consensus.clip", 0)),
    "consensus.batch-size": ALWAYS,
    "consensus.learning-rate": ALWAYS,
    "consensus.schedule": ALWAYS,
    # Its reference has one, but that is no reason to let "momentum=0.5" pass.
    "consensus.momentum": (_WITH_MOMENTUM,),
    "consensus.momentum-form": (_WITH_MOMENTUM, above("consensus.momentum", 0)),
    "consensus.weight-decay": ALWAYS,
    "consensus.augment": ALWAYS,
    "consensus.publish-average": ALWAYS,
    "consensus.hold": (_algorithms("ecl"),),
    "consensus.forget": (_algorithms("ecl"), _HELD),
    "consensus.theta": (_SPLITTING,),
    "consensus.kappa": (_SPLITTING,),
    "consensus.mult": (_SPLITTING, _ISVR),
    "consensus.penalty": (_SPLITTING,),
    "consensus.alpha": ((_SPLITTING & _FIXED) | _algorithms("pdmm-sgd", "admm-sgd"),),
    "consensus.rho": (
        (_algorithms("ecl") & when("consensus.hold", False)) | _algorithms("pdmm-sgd", "admm-sgd"),
    ),
    "consensus.compression": (_COMPRESSED,),
    "consensus.keep": (_COMPRESSED,),
    "consensus.gamma": (_algorithms("choco-sgd"),),
    "consensus.weights": ALWAYS,
    "consensus.silence-seconds": (_MAIL,),
    "consensus.references": ALWAYS,
    "consensus.carrier": (_MAIL,),
    "consensus.diagnosis": ALWAYS,
    "consensus.encrypt": (_DEVICES, _REAL, _MAIL),
    "consensus.engine": ALWAYS,
    "consensus.precision": ALWAYS,
    "consensus.step-seconds": (_VIRTUAL,),
    "consensus.speed-spread": (_VIRTUAL,),
    "consensus.delay-seconds": (_MAIL,),
    "consensus.loss": (_MAIL,),
    "consensus.duplication": (_MAIL,),
    "consensus.one-way": (_VIRTUAL, _MAIL),
    "consensus.outages": (_VIRTUAL,),
    "consensus.clip": (_CLIPPABLE,),
    "privacy.clients": ALWAYS,
    "privacy.noise-multiplier": (_NOISE,),
    "privacy.clipping-norm": (_NOISE,),
    "privacy.clipping-quantile": (when("privacy.clients", "adaptive"),),
    "privacy.samples": ALWAYS,
    "privacy.sample-noise-multiplier": (_NOISY_STEPS,),
    "privacy.sample-clipping-norm": (_NOISY_STEPS,),
    "privacy.delta": (_NOISE | _NOISY_STEPS,),
    "cost.client-seconds": (_DISTILLS | _DRAWN,),
    "cost.communication-seconds": (_DRAWN,),
    "cost.reverse-ratio": (_DISTILLS,),
    "cost.forward-ratio": (_DISTILLS, _FORWARD),
    "cost.speed-spread": (_DRAWN,),
    "cost.link-spread": (_DRAWN,),
    "cost.straggler-probability": (_DRAWN,),
    "cost.straggler-factor": (_DRAWN, above("cost.straggler-probability", 0)),
    "cost.dropout-probability": (_DRAWN,),
    "cost.timeout-seconds": (
        _DRAWN,
        above("cost.dropout-probability", 0) | other_than("availability", ""),
    ),
}

# What does a key's work in another mode; keys of one last name do that, too.
_COUNTERPARTS = (
    {"num-server-rounds", "consensus.steps"},
    {"averaging", "consensus.algorithm"},
    {"cost.client-seconds", "consensus.step-seconds"},
    {"cost.communication-seconds", "consensus.delay-seconds"},
)


def conditions_of(key: str) -> tuple[Condition, ...]:
    """All that must be so for `key` to have an effect."""
    section, dot, _ = key.partition(".")
    return (SECTIONS[section] if dot else ()) + EFFECTS[key]


def has_effect(key: str, values: Values) -> bool:
    """Whether `key` has an effect, or says no more than what the algorithm's name stands for."""
    stands_for = _fixed(values).get(key)
    return not _unmet(key, values) or (stands_for is not None and values[key] == stands_for)


def complaint(given: Iterable[str], values: Values) -> str:
    """One line about those of the `given` keys that have no effect and what would have one; "" if
    all of them have.

    values: of all keys, what is automatic as what it has become, and PLACE.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for key in given:
        if not has_effect(key, values):
            found.setdefault(_reason(key, values), []).append(f"{key}={shown(values[key])}")
    return "; ".join(
        f"{', '.join(keys)} {'have' if keys[1:] else 'has'} no effect {present}: use {remedy}"
        for (present, remedy), keys in found.items()
    )


def of_mode(key: str, mode: str) -> bool:
    """Whether `key` has an effect in some run of `mode`; "" is any mode."""
    return _in_mode(conditions_of(key), mode)


def _in_mode(conditions: Iterable[Condition], mode: str) -> bool:
    alone = [condition for condition in conditions if set(condition.keys) == {"mode"}]
    return not mode or all(condition.holds({"mode": mode}) for condition in alone)


def described(pyproject: str, mode: str = "") -> list[str]:
    """The lines of pyproject.toml that have the keys (of `mode`, if one is given), with the words
    in which it has their meaning; behind each, in brackets, when it has an effect."""
    wanted = True
    shown = ["# A key has an effect with what is in brackets behind it, and always if nothing is."]
    section: str | None = None  # "" for keys without one, None beside the configuration
    for line in pyproject.splitlines():
        if line.startswith(("[", "# ---")):
            name, _, about = line.removeprefix("[tool.flwr.app.").partition("]")
            section = name.removeprefix("config").lstrip(".") if name[:6] == "config" else None
            conditions = SECTIONS.get(section or "", ALWAYS)
            if section is not None and _in_mode(conditions, mode):
                shown.append(_behind(f"{name}:{about}", conditions))
        elif section is not None:
            name = line.partition(" = ")[0]
            key = f"{section}.{name}" if section else name
            # What goes on in a comment below belongs to the key above it.
            wanted = of_mode(key, mode) if key in EFFECTS else wanted
            if wanted:
                shown.append(_behind(line, EFFECTS.get(key, ALWAYS)))
    return shown


def _behind(line: str, conditions: Iterable[Condition]) -> str:
    text = "; ".join(condition.text for condition in conditions)
    return f"{line:32}{'' if '#' in line else '#'} [{text}]" if text else line


def _fixed(values: Values) -> dict[str, Value]:
    """The keys whose values the name of the run's algorithm stands for."""
    if values["mode"] != "consensus":
        return {}
    overrides = entry_of(str(values["consensus.algorithm"])).overrides
    return {f"consensus.{name.replace('_', '-')}": value for name, value in overrides.items()}


def _unmet(key: str, values: Values) -> list[Condition]:
    return [condition for condition in conditions_of(key) if not condition.holds(values)]


def _reason(key: str, values: Values) -> tuple[str, str]:
    """(with what `key` has no effect, what to use instead)."""
    unmet = _unmet(key, values)
    remedy = " and ".join(condition.text for condition in unmet)
    # Who names a mode in the key means it; else another key may be meant.
    if "mode" in unmet[0].keys and not key.startswith(("distill.", "consensus.")):
        here = [other for other in _counterparts(key) if has_effect(other, values)]
        remedy = f"{' or '.join(here)}, or {remedy}" if here else remedy
    present = _present(unmet[0], values)
    if key in (fixed := _fixed(values)):
        present += f", which stands for {shown(fixed[key])}"
    return present, remedy


def _present(condition: Condition, values: Values) -> str:
    if PLACE in condition.keys:
        return "in a simulation"
    now = {key: f"{key}={shown(values[key])}" for key in condition.keys}
    return f"with {', '.join(now.values())}"


def _counterparts(key: str) -> list[str]:
    last = key.rpartition(".")[2]
    named = [each for each in EFFECTS if each.rpartition(".")[2] == last]
    known = [each for pair in _COUNTERPARTS if key in pair for each in pair]
    return [each for each in dict.fromkeys([*named, *sorted(known)]) if each != key]
