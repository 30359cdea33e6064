"""The configuration of a run: every key with its type, its valid values and its meaning.

The defaults stand in one place, the table [tool.flwr.app.config] of pyproject.toml, because Flower
demands them there. A key is the field's name with dashes; the fields of `distill` and `cost` have
that prefix: ``distill.variant``, ``cost.client-seconds``.
"""

import contextlib
import difflib
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from fl_app.data import DATASETS
from fl_app.data.sets import FILES
from fl_app.data.table import CLASSES, EMBEDDED, NUMBERS
from fl_app.effects import PLACE, Value, complaint, has_effect
from fl_app.models import MODELS, model_plan
from fl_app.models.layers import NORMS
from fl_app.record.run_dir import RunDirectory
from strategies.arithmetic import ARITHMETICS
from strategies.attacks import ATTACKS
from strategies.averaging import STALENESS_WEIGHTS
from strategies.averaging_settings import PrivacySettings
from strategies.consensus.algorithms import ALGORITHMS
from strategies.consensus.own import entry_of
from strategies.consensus.settings import ConsensusSettings
from strategies.distillation.growth import obstacle
from strategies.distillation.settings import (
    CENTRALIZED,
    SERVER_ALONE,
    SMALL_AVERAGE,
    VARIANTS,
    DistillSettings,
    Variant,
)
from strategies.distillation.trace import DistillationPlan, Schedule
from strategies.errors import ConfigError
from strategies.machines import Machines, read_availability, read_machines
from strategies.own_rules import BUFFERED, is_buffered
from strategies.partition import PARTITIONS
from strategies.paths import read_text
from strategies.precision import PRECISIONS
from strategies.pyproject import PATH, pyproject
from strategies.ranges import SWITCH, OneOf, OneOfOrOwn, Within, words
from strategies.recorded import recorded_rounds
from strategies.schedule import Aggregation, CostModel, Trace, cohort
from strategies.secure import LEAST_MEMBERS

MODES = ("average", "consensus", "distill")
CLOCKS = ("real", "virtual")
IMAGES = "images"
TASKS = (IMAGES, "tables", "text")  # that ship with the app
FLOWER_RULES = (
    "bulyan", "fedadam", "fedavg", "fedmedian", "fedprox", "fedtrimmedavg", "fedyogi", "krum",
    "multikrum",
)  # fmt: skip
# Of these, the ones that make the next model of the participants' mean alone: see `_check_privacy`.
MEAN_RULES = ("fedadam", "fedavg", "fedprox", "fedyogi")
# How many participants there must be for f malicious ones: a f + b.
_ENOUGH = {"krum": (2, 3, "Blanchard et al. 2017"), "multikrum": (2, 3, "Blanchard et al. 2017"),
           "bulyan": (4, 3, "El Mhamdi et al. 2018")}  # fmt: skip
SINKS = ("mlflow", "tensorboard", "wandb")
REFERENCES = ("same-samples", "same-steps")  # of the consensus system


@dataclass(frozen=True)
class RunConfig:
    """A whole run, checked: a value that is here can be worked with."""

    mode: Annotated[str, OneOf(*MODES)]
    clock: Annotated[str, OneOf(*CLOCKS)]
    replay: str
    device_profiles: str
    availability: str
    participants: Annotated[int, Within(1, 10_000)]
    num_server_rounds: Annotated[int, Within(1, 100_000)]
    fraction_train: Annotated[float, Within(0, 1, above=True)]
    seed: Annotated[int, Within(0, 2**63 - 1)]  # what TOML and Flower can carry
    device: Annotated[str, OneOf("auto", "cpu", "cuda")]
    round_timeout: Annotated[float, Within(0, above=True)]
    round_seconds: Annotated[float, Within(0)]
    checkpoint_every: Annotated[int, Within(1)]
    evaluate_on: Annotated[str, OneOf("test", "validation")]
    evaluate_examples: Annotated[int, Within(0)]
    targets: str
    output: str
    name: str
    resume: str
    sinks: str

    devices: str
    min_participants: Annotated[int, Within(0)]
    sessions: Annotated[str, OneOf(*SWITCH)]
    link_patience: Annotated[float, Within(5)]

    task: Annotated[str, OneOfOrOwn("Class", *TASKS)]
    dataset: Annotated[str, OneOf(*DATASETS, FILES)]
    data_root: str
    data_path: str
    allow_missing_classes: bool
    table: Annotated[str, OneOf(*EMBEDDED)]
    table_target: str
    table_kind: Annotated[str, OneOf("auto", CLASSES, NUMBERS)]
    partition: Annotated[str, OneOfOrOwn("function", *PARTITIONS, prefix="hf:")]
    alpha: Annotated[float, Within(0, above=True)]
    num_classes_per_partition: Annotated[int, Within(1)]
    num_shards_per_partition: Annotated[int, Within(1)]
    proxy_examples: Annotated[int, Within(0)]
    proxy_labelled_examples: Annotated[int, Within(-1)]
    validation_examples: Annotated[int, Within(0)]

    small_model: Annotated[str, OneOf(*MODELS)]
    small_width: Annotated[int, Within(0, 256)]
    large_model: Annotated[str, OneOf(*MODELS)]
    large_width: Annotated[int, Within(0, 256)]
    normalisation: Annotated[str, OneOf(*NORMS)]

    local_steps: Annotated[int, Within(1)]
    batch_size: Annotated[int, Within(2)]
    learning_rate: Annotated[float, Within(0, above=True)]
    momentum: Annotated[float, Within(0, 1)]
    weight_decay: Annotated[float, Within(0)]
    proximal_mu: Annotated[float, Within(0)]
    client_threads: Annotated[int, Within(1)]
    precision: Annotated[str, OneOf(*ARITHMETICS)]
    mail_precision: Annotated[str, OneOf(*PRECISIONS)]
    secure_aggregation: bool
    best_metric: str
    stop_patience: Annotated[int, Within(0)]

    averaging: Annotated[str, OneOfOrOwn("Class", BUFFERED, *FLOWER_RULES)]
    buffer_size: Annotated[int, Within(1)]
    staleness_weight: Annotated[str, OneOf(*STALENESS_WEIGHTS)]
    staleness_exponent: Annotated[float, Within(0)]
    staleness_bound: Annotated[float, Within(0)]
    mixing: Annotated[float, Within(0, 1, above=True)]
    server_learning_rate: Annotated[float, Within(0)]
    server_tau: Annotated[float, Within(0, above=True)]
    trim_fraction: Annotated[float, Within(0, 0.49)]  # Flower: below a half
    num_malicious_nodes: Annotated[int, Within(0)]

    attack: Annotated[str, OneOf("none", *ATTACKS)]
    attackers: Annotated[int, Within(0)]
    attack_scale: Annotated[float, Within(0, 1e38, above=True)]  # of a float32

    distill: DistillSettings
    consensus: ConsensusSettings
    privacy: PrivacySettings
    cost: CostModel

    @property
    def variant(self) -> Variant:
        return VARIANTS[self.distill.variant]

    @property
    def of_images(self) -> bool:
        """Whether the task is that of images, whose data sets and models have keys."""
        return self.task == IMAGES

    @property
    def data_source(self) -> str:
        """Where the examples are from, for messages and records."""
        return self.data_path or (self.dataset if self.of_images else self.task)

    @property
    def distils(self) -> bool:
        return self.mode == "distill"

    @property
    def agrees(self) -> bool:
        """Whether nodes agree among themselves: there is no central model then."""
        return self.mode == "consensus"

    @property
    def arithmetic(self) -> str:
        """The precision in which models are trained, see strategies.arithmetic."""
        return self.consensus.precision if self.agrees else self.precision

    @property
    def references(self) -> tuple[str, ...]:
        """What the published model of the distill system is measured against, beside the run."""
        if not self.distils:
            return ()
        if self.distill.references != "auto":
            return words(self.distill.references)
        return (SMALL_AVERAGE, SERVER_ALONE) if self.proxy_labelled_examples else (SMALL_AVERAGE,)

    @property
    def cohort(self) -> int:
        """How many participants take part in a synchronous round."""
        return len(cohort(self.participants, self.fraction_train, self.seed, 1))

    @property
    def rounds(self) -> int:
        """Averages that are made or, in the consensus system, windows."""
        return (
            self.consensus.steps // self.consensus.window
            if self.agrees
            else (self.num_server_rounds)
        )

    @property
    def buffered(self) -> bool:
        return is_buffered(self.averaging)

    @property
    def virtual(self) -> bool:
        return self.clock == "virtual"

    def switch(self, name: str) -> bool:
        """Whether the switch `distill.<name>` is on; "auto" follows the variant and the data."""
        value = getattr(self.distill, name)
        if value != "auto":
            return value == "on"
        return _AUTO[name](self)

    def trace(self) -> Trace:
        """The whole run on the virtual clock. ConfigError for costs that cannot be."""
        try:
            return self.schedule.trace()
        except ValueError as error:
            where = f"replay={self.replay!r}: " if self.replay else ""
            raise ConfigError(f"{where}{error}") from error

    @property
    def plan(self) -> DistillationPlan:
        """When the distillation server works, and on what."""
        if not self.distils:
            return DistillationPlan("none", 1)
        steps = self.distill.forward_steps if self.variant.forward else 0
        return DistillationPlan(self.variant.policy, self.distill.reverse_steps, steps)

    @property
    def schedule(self) -> Schedule:
        """What the trace follows from. ConfigError for files that cannot be used."""
        return Schedule(
            self.cost,
            self.plan,
            participants=self.participants,
            rounds=self.num_server_rounds,
            seed=self.seed,
            fraction=self.fraction_train,
            buffer_size=self.buffer_size if self.buffered else 0,
            recorded=self._recorded() if self.virtual and self.replay else (),
            machines=self.machines,
        )

    @property
    def machines(self) -> Machines:
        """What the participants' devices are like, and when they are on. ConfigError."""
        return Machines(
            self._read("device-profiles", self.device_profiles, read_machines),
            self._read("availability", self.availability, read_availability),
        )

    def _read(self, key: str, path: str, read: Callable[[str, int], Any]) -> Any:
        try:
            return read(read_text(path), self.participants) if self.virtual and path else {}
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"{key}={path!r} cannot be used: {error}") from error

    def _recorded(self) -> tuple[Aggregation, ...]:
        """The aggregations of the run that is to be replayed."""
        run = RunDirectory.open(Path(self.replay))
        with run.reading():
            events = run.events()
        return recorded_rounds(events, self.participants, self.num_server_rounds)

    @property
    def jobs(self) -> float:
        """How many trainings there will be, or are to be expected where some get lost."""
        if not self.buffered:
            return self.cohort * self.num_server_rounds
        return self.buffer_size * self.num_server_rounds / (1 - self.cost.dropout_probability)

    @property
    def nests(self) -> bool:
        """Whether the small model's plan can grow into the large one's."""
        if not self.of_images:
            return False
        small = model_plan(self.small_model, self.small_width or None)
        large = model_plan(self.large_model, self.large_width or None)
        return bool(small and large) and obstacle(small, large) is None

    @property
    def sink_list(self) -> tuple[str, ...]:
        return words(self.sinks)

    @property
    def device_list(self) -> tuple[str, ...]:
        return words(self.devices)

    def flat(self) -> dict[str, Value]:
        """All keys with their values, as pyproject.toml and the command line spell them."""
        return {key: _get(self, path) for key, (path, _) in _schema().items()}

    def settled(self) -> dict[str, Value]:
        """`flat`, with "on" or "off" for switches that are automatic."""
        switches = {name: "on" if self.switch(name) else "off" for name in _AUTO}
        return self.flat() | {f"distill.{k.replace('_', '-')}": v for k, v in switches.items()}


def _lifts(config: RunConfig) -> bool:
    return config.variant.improved and config.normalisation == "batch" and config.nests


# What "auto" means: the measured best for async-plus, and the paper's method for the others.
_AUTO = {
    "publish_ema": lambda c: c.variant.improved,
    "lift": _lifts,
    "teacher_average": lambda c: c.variant.improved,
}


# What a value that stands for "automatic" becomes, by the value of another key.
_AUTOMATIC: dict[str, tuple[Value, str, dict[str, Value]]] = {
    "participants": (0, "mode", {"distill": 3, "average": 3, "consensus": 8}),
    "partition": (
        "auto",
        "mode",
        {"distill": "iid", "average": "iid", "consensus": "classes-per-participant"},
    ),
    "normalisation": (
        "auto",
        "mode",
        {"distill": "batch", "average": "batch", "consensus": "group"},
    ),
    # The rules that have no use for them keep the 0.
    "proximal-mu": (0.0, "averaging", {"fedprox": 0.1}),
    "server-learning-rate": (
        0.0,
        "averaging",
        {"fedadam": 0.01, "fedyogi": 0.01, "buffered": 1.0},
    ),
}
# Files and directories. The app runs elsewhere, so they are absolute.
PATH_KEYS = (
    "availability", "consensus.topology-file", "data-path", "data-root", "device-profiles",
    "output", "replay", "resume",
)  # fmt: skip
# What may be named as somebody's own, see `strategies.plugin_name`.
OWN_KEYS = ("averaging", "consensus.algorithm", "consensus.topology", "partition", "task")
_MOST_JOBS = 100_000  # each takes some 20 us, in the ServerApp and in the distillation server
_MOST_WINDOWS = 100_000
_LONGEST_NAME = 200  # bytes: file systems have 255, and files beside it get longer names


def resolve(overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The checked configuration: pyproject's defaults with `overrides` (flat keys) over them.

    Raises ConfigError for an unknown key, a value of the wrong type or out of range, and a
    combination that cannot work; the message names the valid choices.
    """
    values = dict(defaults())
    for key, value in (overrides or {}).items():
        if key not in _schema():
            raise ConfigError(_unknown(key))
        values[key] = value
    if values["task"] != IMAGES:
        if values["partition"] == "auto":
            values["partition"] = "iid"  # there may be no classes
        if values["targets"] == defaults()["targets"]:
            values["targets"] = ""  # which are accuracies of images
    for key, (automatic, other, becomes) in _AUTOMATIC.items():
        # A bool equals a number, and is of the wrong type.
        if values[key] == automatic and not isinstance(values[key], bool):
            values[key] = becomes.get(str(values[other]), automatic)
    if values["proxy-labelled-examples"] == -1 and values["proxy-examples"]:
        values["proxy-labelled-examples"] = values["proxy-examples"]
    config = _build(RunConfig, "", values)
    _check(config)
    return config


def configure(overrides: Mapping[str, Any], *, place: str = "", fused: bool = False) -> RunConfig:
    """`resolve` what somebody asks for: every key that is given must have an effect.

    fused: Flower hands over all keys that an app's pyproject.toml has with every run: of these, and
    of a whole configuration, those count as given that are not as they are shipped. Of a run that
    is continued nothing counts: it must have the configuration that it began with. place:
    "simulation", "devices", or "" where nobody knows.

    Raises ConfigError, which names the key that would have an effect.
    """
    config = resolve(overrides)
    whole = fused or overrides.keys() >= defaults().keys()
    given = [key for key in overrides if not (whole and overrides[key] == defaults()[key])]
    if not config.resume and (found := complaint(given, config.settled() | {PLACE: place})):
        raise ConfigError(found)
    if place == "simulation" and config.agrees and config.consensus.carrier == "zenoh":
        raise ConfigError(
            "consensus.carrier=zenoh is for devices (--superlink); use auto, ray or grid"
        )
    return config


def with_effect(overrides: Mapping[str, Value], place: str = "") -> dict[str, Value]:
    """Those of the `overrides` that have an effect in this place (see `configure`): of a table of
    settings for many runs, what one of them is to be given."""
    values = resolve(overrides).settled() | {PLACE: place}
    return {key: value for key, value in overrides.items() if has_effect(key, values)}


@cache
def defaults() -> Mapping[str, Value]:
    """The default of every key, from the pyproject.toml beside the packages. ConfigError."""
    try:
        table = dict(tomllib.loads(pyproject())["tool"]["flwr"]["app"]["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{PATH} is no TOML (which is UTF-8 without a byte-order mark), or has no "
            f"[tool.flwr.app.config]: {error}"
        ) from error
    flat: dict[str, Value] = {}
    for key, value in table.items():
        flat |= (
            {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        )
    if flat.keys() != _schema().keys():
        difference = ", ".join(sorted(flat.keys() ^ _schema().keys()))
        raise ConfigError(f"{PATH}: [tool.flwr.app.config] and RunConfig differ in: {difference}")
    return flat


def range_of(key: str) -> str:
    """The values that `key` may have, in words."""
    hint: Any = RunConfig
    for name in _schema()[key][0]:
        hint = get_type_hints(hint, include_extras=True)[name]
    kind, *limits = get_args(hint) or (hint,)
    if kind is bool:
        return "true, false"
    told = f"{_KINDS[kind]}, " if kind in (int, float) else ""
    return f"{told}{', '.join(map(str, limits))}" if limits else _KINDS[kind]


@cache
def _schema() -> dict[str, tuple[tuple[str, ...], type]]:
    """Every flat key with the path of its field and its type."""
    schema: dict[str, tuple[tuple[str, ...], type]] = {}

    def walk(cls: type, path: tuple[str, ...]) -> None:
        hints = get_type_hints(cls)
        for item in fields(cls):
            here = (*path, item.name)
            if is_dataclass(hints[item.name]):
                walk(hints[item.name], here)
            else:
                schema[".".join(here).replace("_", "-")] = (here, hints[item.name])

    walk(RunConfig, ())
    return schema


def _get(config: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


def _build(cls: type, prefix: str, values: Mapping[str, Any]) -> Any:
    hints, arguments = get_type_hints(cls, include_extras=True), {}
    for item in fields(cls):
        key, hint = prefix + item.name.replace("_", "-"), hints[item.name]
        if is_dataclass(hint):
            arguments[item.name] = _build(hint, f"{key}.", values)  # type: ignore[arg-type]
        else:
            kind, *limits = get_args(hint) or (hint,)
            arguments[item.name] = _value(key, values[key], kind)
            for limit in limits:
                if not isinstance(limit, str):  # what a class checks itself is there in words
                    limit.check(key, arguments[item.name])
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from error


def _value(key: str, value: Any, kind: type) -> Value:
    """`value` as type `kind`; Flower itself does not check."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ConfigError(f"{key}={value!r} must be {_KINDS[kind]}")
    if isinstance(value, str) and not _WRITABLE.fullmatch(value):
        raise ConfigError(f"{key}={value!r} must be a text without control characters")
    return value


# What TOML, JSON and UTF-8 can all carry: bytes of a command line that are no text are surrogates.
_WRITABLE = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]*")
_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


# Keys of earlier versions, and what does their work now.
_REMOVED = {
    "proxy-labelled": "proxy-labelled-examples=N: of N of the distillation server's images it has "
    "the labels",
    "distill.labels": "proxy-labelled-examples=N: the labels that the distillation server has are "
    "used; with 0 it has none",
    "distill.grow": "distill.lift: the large model contains the small one, always the newest",
    "distill.grow-at": "distill.lift",
    "distill.grow-noise": "distill.lift",
    "distill.teacher-ema": "distill.teacher-average",
    "distill.teacher-ema-decay": "distill.teacher-average",
    "distill.forward": 'distill.variant="sync-forward"',
    "distill.forward-weight": 'distill.variant="sync-forward"',
}


def _unknown(key: str) -> str:
    if key in _REMOVED:
        return f"configuration key {key!r} is gone; use {_REMOVED[key]}"
    close = difflib.get_close_matches(key, _schema(), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "see `edge-fl config` for all keys"
    return f"configuration key {key!r} is unknown; {hint}"


def _float_list(key: str, text: str, most: float) -> list[float]:
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = [float("nan")]
    if not all(0 < value <= most and math.isfinite(value) for value in values):
        what = f"accuracies in (0, {most:g}]" if most == 1 else "positive numbers"
        raise ConfigError(f"{key}={text!r} must be {what} with commas between them")
    return values


def _check_words(key: str, words: Sequence[str], choices: Sequence[str]) -> None:
    for word in words:
        if word not in choices:
            raise ConfigError(f"{key}={word!r} is unknown; choose from: {', '.join(choices)}")
    if len(set(words)) < len(words):
        raise ConfigError(f"{key}={', '.join(words)!r} names one twice")


def _check(config: RunConfig) -> None:
    """What no single key can tell."""
    c, d = config, config.distill
    _float_list("targets", c.targets, most=1.0 if c.of_images else math.inf)
    _check_words("sinks", c.sink_list, SINKS)
    _check_words("distill.references", c.references, (SMALL_AVERAGE, SERVER_ALONE, CENTRALIZED))
    if SERVER_ALONE in c.references and not c.proxy_labelled_examples:
        raise ConfigError(
            f"distill.references={SERVER_ALONE!r} learns from labels of the distillation server, "
            f"which has none: use proxy-labelled-examples=N, or leave it out"
        )
    if c.buffered and c.distils and c.variant.policy == "sync":
        raise ConfigError(
            f"averaging='buffered' waits for nobody, but distill.variant={d.variant!r} makes "
            f"everybody wait; choose one of: async-continuous, async-plus, async-round"
        )
    if c.agrees:
        _check_consensus(c)
    if c.averaging in _ENOUGH:
        times, more, source = _ENOUGH[c.averaging]
        least = times * c.num_malicious_nodes + more
        if c.cohort < least:
            raise ConfigError(
                f"averaging={c.averaging!r} against num-malicious-nodes={c.num_malicious_nodes} "
                f"needs at least participants={least} in a round ({times} f + {more}, {source}), "
                f"and there are {c.cohort}"
            )
    if (c.attack == "none") != (c.attackers == 0):
        raise ConfigError(
            f"attack={c.attack!r} and attackers={c.attackers} go together: say who and what"
        )
    if c.attackers >= c.participants:
        raise ConfigError(
            f"attackers={c.attackers} must be fewer than participants={c.participants}"
        )
    if c.privacy.on:
        _check_privacy(c)
    if c.secure_aggregation and not c.agrees:
        _check_secure(c)
    if c.distils and c.proxy_examples and c.proxy_labelled_examples > c.proxy_examples:
        raise ConfigError(
            f"proxy-labelled-examples={c.proxy_labelled_examples} can be at most "
            f"proxy-examples={c.proxy_examples}: it says how many of these have labels"
        )
    if c.distils and d.lift == "on":
        if not c.of_images:
            raise ConfigError("distill.lift='on' is for the models of task=images")
        if c.normalisation != "batch":
            raise ConfigError("distill.lift='on' needs normalisation='batch'")
        if not c.nests:
            raise ConfigError(
                f"distill.lift='on': {c.small_model} cannot grow into {c.large_model} at these "
                f"widths; use cnn6 and cnn12 with large-width >= 2 x small-width"
            )
    if c.virtual and not c.agrees and c.jobs > _MOST_JOBS:
        raise ConfigError(
            f"num-server-rounds={c.num_server_rounds} of {c.jobs / c.num_server_rounds:.0f} jobs "
            f"each are more than {_MOST_JOBS:,}, and clock='virtual' draws up the schedule of all "
            f"before anything starts; use fewer, or clock='real'"
        )
    if c.min_participants > (0 if c.virtual else c.participants):
        raise ConfigError(
            f"min-participants={c.min_participants} can be at most participants={c.participants}, "
            f"and on clock='virtual' everybody takes part from the start: leave it at 0"
        )
    if len(set(c.device_list)) < len(c.device_list):
        raise ConfigError(f"devices={c.devices!r} names one twice")
    if c.of_images and c.dataset == FILES and not c.data_path:
        raise ConfigError(f"dataset={FILES!r} needs data-path=PATH (an .npz file or a folder)")
    for key in PATH_KEYS:
        path = str(_get(c, _schema()[key][0]))
        if path and not Path(path).is_absolute():
            raise ConfigError(f"{key}={path!r} must be an absolute path: the app runs elsewhere")
    if c.name and (c.name in (".", "..") or "/" in c.name or len(c.name.encode()) > _LONGEST_NAME):
        raise ConfigError(
            f"name={c.name!r} must be the name of a directory, without / and of at most "
            f"{_LONGEST_NAME} bytes"
        )


def _check_secure(config: RunConfig) -> None:
    """The server learns sums only, so nothing may need a single update."""
    c = config
    if c.privacy.of_clients:
        raise ConfigError(
            f"secure-aggregation=true cannot be with privacy.clients={c.privacy.clients!r}, for "
            f"which the server clips each participant's update; privacy.samples needs no server"
        )
    if c.averaging not in (*MEAN_RULES, "buffered"):
        raise ConfigError(
            f"secure-aggregation=true cannot be with averaging={c.averaging!r}, which compares "
            f"single updates; use one of: {', '.join(MEAN_RULES)}, buffered"
        )
    if c.mail_precision != "float32":
        raise ConfigError(
            f"secure-aggregation=true cannot be with mail-precision={c.mail_precision!r}: what is "
            f"masked are fixed-point numbers of 32 bits; use mail-precision='float32'"
        )
    members, key = (c.buffer_size, "buffer-size") if c.buffered else (c.cohort, "participants")
    if members < LEAST_MEMBERS:
        raise ConfigError(
            f"secure-aggregation=true sums {members} updates with {key}={members}, and a sum of "
            f"fewer than {LEAST_MEMBERS} tells one participant another's: use {key}={LEAST_MEMBERS}"
        )
    if c.buffered and members > c.participants:
        raise ConfigError(
            f"secure-aggregation=true: a buffer of buffer-size={members} is never full, for each "
            f"of participants={c.participants} has one update in it; use at most as many"
        )


def _check_privacy(config: RunConfig) -> None:
    name = "clients" if config.privacy.of_clients else "samples"
    if config.agrees:
        raise ConfigError(
            f"privacy.{name} is for mode='distill' and 'average': no server makes an average "
            f"here that could be given noise, and nodes train without it; see docs/privacy.md"
        )
    if config.privacy.samples and config.precision != "float32":
        raise ConfigError(
            f"privacy.samples=true cannot be with precision={config.precision!r}: gradients of "
            f"single examples are float32's; use precision=float32"
        )
    if config.privacy.of_clients and config.averaging not in MEAN_RULES:
        reason = (
            "lets participants come at times of their own, and some more often than others"
            if config.buffered
            else "does not bound what one participant can change by the clipping norm"
        )
        raise ConfigError(
            f"privacy.clients={config.privacy.clients!r} cannot be with averaging="
            f"{config.averaging!r}, which {reason}; use one of: {', '.join(MEAN_RULES)}"
        )


def _check_rounded(config: RunConfig) -> None:
    """Neighbours' mail may have fewer bits only where its limit is that of whole mail."""
    c, entry = config.consensus, entry_of(config.consensus.algorithm)
    told = f"mail-precision={config.mail_precision!r} must be 'float32' for {c.algorithm}"
    if entry.unrounded:
        others = ", ".join(sorted(name for name, e in ALGORITHMS.items() if not e.unrounded))
        raise ConfigError(
            f"{told}: {entry.unrounded}; those whose mail may be rounded are: {others}"
        )
    splits = c.algorithm != "gossip" and entry.exchange == "random"
    if splits and c.synchronous and entry.overrides.get("theta", c.theta) == 1:
        raise ConfigError(
            f"{told} with theta=1 in synchronous rounds: there its mail never comes to rest, so no "
            f"rounding vanishes; use consensus.exchange='random', or an algorithm with theta=0.5"
        )


def _check_consensus(config: RunConfig) -> None:
    c = config.consensus
    if config.of_images and config.normalisation == "batch":
        raise ConfigError(
            "mode='consensus' needs normalisation='group': BatchNorm's running statistics describe "
            "a node's own data, and neighbours can neither exchange nor average them"
        )
    if c.steps % c.window:
        raise ConfigError(
            f"consensus.steps={c.steps} is no multiple of consensus.window={c.window}; use e.g. "
            f"consensus.steps={c.steps + c.window - c.steps % c.window}"
        )
    if config.rounds > _MOST_WINDOWS:
        raise ConfigError(
            f"consensus.steps={c.steps} are {config.rounds} windows of {c.window}: at most "
            f"{_MOST_WINDOWS}; use a larger consensus.window"
        )
    if config.mail_precision != "float32":
        _check_rounded(config)
    _check_words("consensus.references", c.reference_list, REFERENCES)
    if entry_of(c.algorithm).exchange == "synchronous" and not c.synchronous:
        raise ConfigError(
            f"consensus.algorithm={c.algorithm!r} works in synchronous rounds; use "
            f"consensus.exchange='synchronous' (or 'auto')"
        )
    if c.synchronous and not config.virtual:
        raise ConfigError(
            "clock='real' has no synchronous rounds, for nobody waits there; use clock='virtual' "
            "or an algorithm of random exchanges"
        )
    if config.virtual and c.carrier == "zenoh":
        raise ConfigError(
            "consensus.carrier='zenoh' drops mail that a newer one overtakes, and clock='virtual' "
            "needs all of it; use clock='real', or consensus.carrier=grid"
        )
    if c.encrypt and (config.virtual or c.carrier not in ("auto", "zenoh")):
        raise ConfigError(
            "consensus.encrypt=true is for mail over zenoh: on devices, with clock='real' and "
            "consensus.carrier=zenoh"
        )
    if (c.topology == "file") != bool(c.topology_file):
        raise ConfigError("consensus.topology='file' and consensus.topology-file=PATH go together")
