"""The model of a run: every key with its type and its valid values, and what follows from them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from fl_app.condition import Value
from fl_app.config.schema import at, paths_of
from fl_app.data import DATASETS
from fl_app.data.sets import FILES
from fl_app.data.table import CLASSES, EMBEDDED, NUMBERS
from fl_app.models import MODELS, model_plan
from fl_app.models.layers import NORMS
from fl_app.record.run_dir import RunDirectory
from strategies.arithmetic import ARITHMETICS
from strategies.attacks import ATTACKS
from strategies.averaging import STALENESS_WEIGHTS
from strategies.averaging_settings import PrivacySettings
from strategies.consensus.settings import ConsensusSettings
from strategies.distillation.growth import obstacle
from strategies.distillation.settings import (
    SERVER_ALONE,
    SMALL_AVERAGE,
    SMALL_CALIBRATED,
    VARIANTS,
    DistillSettings,
    Variant,
)
from strategies.distillation.trace import DistillationPlan, Schedule
from strategies.errors import ConfigError
from strategies.head import CALIBRATION_EXAMPLES
from strategies.learning_rate import SCHEDULES
from strategies.machines import Machines, read_availability, read_machines
from strategies.own_rules import BUFFERED, is_buffered
from strategies.partition import PARTITIONS
from strategies.paths import read_text
from strategies.precision import PRECISIONS
from strategies.ranges import SWITCH, OneOf, OneOfOrOwn, Within, words
from strategies.recorded import check_one_each, recorded_rounds
from strategies.schedule import Aggregation, CostModel, Trace, cohort

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
SINKS = ("mlflow", "tensorboard", "wandb")
REFERENCES = ("same-samples", "same-steps")  # of the consensus system
# Files and directories. The app runs elsewhere, so they are absolute.
PATH_KEYS = (
    "availability", "consensus.topology-file", "data-path", "data-root", "device-profiles",
    "output", "replay", "resume",
)  # fmt: skip
# What may be named as somebody's own, see `strategies.plugin_name`.
OWN_KEYS = ("averaging", "consensus.algorithm", "consensus.topology", "partition", "task")


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
    learning_rate_schedule: Annotated[str, OneOf(*SCHEDULES)]
    momentum: Annotated[float, Within(0, 1)]
    weight_decay: Annotated[float, Within(0)]
    proximal_mu: Annotated[float, Within(0)]
    adjust_logits: Annotated[float, Within(0, 1)]
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
        there = {
            SMALL_AVERAGE: True,
            SMALL_CALIBRATED: self.calibrates,
            SERVER_ALONE: self.proxy_labelled_examples != 0,
        }
        return tuple(name for name, is_there in there.items() if is_there)

    @property
    def calibrates(self) -> bool:
        """Whether the teacher's last layer is calibrated."""
        return self.distils and self.switch("calibrate")

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
            self._charged(),
            self.plan,
            participants=self.participants,
            rounds=self.num_server_rounds,
            seed=self.seed,
            fraction=self.fraction_train,
            buffer_size=self.buffer_size if self.buffered else 0,
            one_by_one=self.secure_aggregation,
            recorded=self._recorded() if self.virtual and self.replay else (),
            machines=self.machines,
        )

    def _charged(self) -> CostModel:
        """The cost model with what calibration adds to a job: a forward pass, which is a third of a
        step of training."""
        if not self.calibrates:
            return self.cost
        trained = 3 * self.local_steps * self.batch_size
        longer = 1 + min(CALIBRATION_EXAMPLES / trained, 1.0)
        return replace(
            self.cost,
            client_seconds=self.cost.client_seconds * longer,
            reverse_ratio=self.cost.reverse_ratio / longer,
            forward_ratio=self.cost.forward_ratio / longer,
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
        found = recorded_rounds(events, self.participants, self.num_server_rounds)
        if self.privacy.of_clients:
            try:
                check_one_each(found)
            except ValueError as error:
                raise ValueError(
                    f"{error}, and the noise of privacy.clients={self.privacy.clients!r} hides one "
                    f"of each participant: use privacy.clients=off, or replay a run of rounds"
                ) from error
        return found

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
        return {key: at(self, path) for key, path in paths_of(RunConfig).items()}

    def settled(self) -> dict[str, Value]:
        """`flat`, with "on" or "off" for switches that are automatic."""
        switches = {name: "on" if self.switch(name) else "off" for name in _AUTO}
        return self.flat() | {f"distill.{k.replace('_', '-')}": v for k, v in switches.items()}


def _lifts(config: RunConfig) -> bool:
    return config.variant.improved and config.normalisation == "batch" and config.nests


def _calibrates(config: RunConfig) -> bool:
    return config.variant.improved and config.of_images and uncalibrated(config) is None


def uncalibrated(config: RunConfig) -> str | None:
    """Why the last layer cannot be calibrated in a run of this configuration; None if it can."""
    if config.privacy.on:
        return "participants tell more than their updates then, and nothing gives it noise"
    if config.secure_aggregation:
        return "participants tell more than their updates then, and nothing masks it"
    if config.buffered:
        return "updates come from several versions then, and so do the gradients for it"
    if config.averaging in FLOWER_RULES and config.averaging not in MEAN_RULES:
        return f"averaging={config.averaging!r} does not guard what participants tell for it"
    return None


# What "auto" means: the measured best for async-plus, and the paper's method for the others.
_AUTO = {
    "publish_ema": lambda c: c.variant.improved,
    "lift": _lifts,
    "teacher_average": lambda c: c.variant.improved,
    "calibrate": _calibrates,
}
