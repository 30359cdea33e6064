"""The two systems as strategies for anybody's ServerApp: settings by name, no run directory."""

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fl_app.config import RunConfig, Value, configure, defaults
from fl_app.preflight import check_model_of_nodes
from fl_app.problem import problem_of, task_reference_of
from fl_app.record.books import recorded
from fl_app.settings import consensus_run_of, distillation_run_of
from strategies.consensus.strategy import Consensus as RecordedConsensus
from strategies.distillation.strategy import Distillation as RecordedDistillation
from strategies.errors import ConfigError
from strategies.flat import FlatModel
from strategies.grids import PlainGrid, SettingsGrid, load_state, state_record
from strategies.own_course import OwnCourse
from strategies.problem import flat_model
from strategies.recorder import Recorder, unrecorded
from strategies.task_reference import class_of

Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]
MOUNTED, PLAIN = "mounted", "plain"
# What only mounted clients do, by the keys that say it: plain ones have data and training of their
# own.
_OF_MOUNTED = (
    "adjust-logits", "alpha", "attack", "attack-scale", "attackers", "batch-size",
    "client-threads", "distill.calibrate", "learning-rate", "learning-rate-schedule",
    "local-steps", "mail-precision", "momentum", "num-classes-per-partition",
    "num-shards-per-partition", "partition", "privacy.samples", "proximal-mu",
    "secure-aggregation", "weight-decay",
)  # fmt: skip


class _System(OwnCourse):
    """A system with settings of its own, whatever the run configuration of the app around it has.

    task: what is learnt, as the setting of that name says it.
    settings: keys as `edge-fl config` has them, by name; what is not among them has its default.
    How many rounds there are, and how long a reply is waited for, is said to `start`.
    record: the folder in which the run gets a directory, as `edge-fl run` makes it; None: nothing
    is recorded.

    Raises ConfigError for a setting that there is not, or that has no effect, and for a task that
    cannot be imported.
    """

    def __init__(
        self,
        settings: Mapping[str, Value] | None = None,
        *,
        task: str = "",
        record: str | Path | None = None,
    ) -> None:
        self._settings, self._record = dict(settings or {}), record
        if task and self._settings.setdefault("task", task) != task:
            raise ConfigError(f"task={task!r}, and {self._settings['task']!r} in the settings")
        if told := self._settings.keys() & self._of_start:
            raise ConfigError(f"{', '.join(sorted(told))}: say it to start()")
        config = self._config(num_rounds=1, timeout=1.0)  # what is wrong is said here
        class_of(task_reference_of(config).place)

    _of_start: frozenset[str]

    @abstractmethod
    def _config(self, num_rounds: int, timeout: float) -> RunConfig:
        """The checked configuration of a run of so many rounds."""

    @contextlib.contextmanager
    def _books(self, config: RunConfig) -> Iterator[Recorder]:
        if self._record is not None:
            with recorded(config) as run:
                yield run
            return
        with unrecorded() as memory:
            yield memory

    def _resolved(self, values: Mapping[str, Value]) -> RunConfig:
        place = {} if self._record is None else {"output": str(Path(self._record).absolute())}
        return configure({**self._settings, **values, **place})


class Distillation(_System):
    """Asynchronous federated averaging with a distillation server behind it; with `mode="average"`
    the averaging alone, by any of its rules.

    clients: "mounted", the handlers that `mount` puts on a ClientApp; or "plain", anybody's
    ClientApp that trains as Flower's strategies ask it to (see `PlainGrid`).

    published: after a run, the state dict of the large model, or of the small one where there is no
    distillation server.
    """

    _of_start = frozenset({"num-server-rounds", "round-timeout"})

    def __init__(
        self,
        settings: Mapping[str, Value] | None = None,
        *,
        task: str = "",
        record: str | Path | None = None,
        clients: str = MOUNTED,
    ) -> None:
        if clients not in (MOUNTED, PLAIN):
            raise ConfigError(f"clients={clients!r} is unknown; choose one of: {MOUNTED}, {PLAIN}")
        self._clients = clients
        self.published: ArrayRecord | None = None
        super().__init__(settings, task=task, record=record)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Evaluate | None = None,
    ) -> Result:
        """Train for `num_rounds` versions of the small model; the result has its state dict.

        As Flower says it: initial_arrays is the state dict to start from (default: the model's own
        initial values), timeout the seconds that a reply is waited for, train_config what plain
        clients get with every job; evaluate_fn is called with (version, state dict), and with (0,
        the initial one) before. Raises ConfigError for an evaluate_config, because no client
        evaluates here, and what the runs of `edge-fl` raise.
        """
        config, result = self._config(num_rounds, timeout), Result()
        if evaluate_config:
            raise ConfigError("evaluate_config: no client evaluates here; use evaluate_fn")
        if train_config and self._clients == MOUNTED:
            raise ConfigError("train_config is for clients='plain'; give mounted ones settings")
        model = flat_model(problem_of(config), "small")
        if initial_arrays is not None:
            _load(model, initial_arrays)
        first = model.state()

        def evaluate(version: int, vectors: Mapping[str, np.ndarray]) -> MetricRecord | None:
            model.load(vectors["weights"], vectors["buffers"])
            return evaluate_fn(version, state_record(model)) if evaluate_fn else None

        begun = evaluate(0, first)
        with self._books(config) as run:
            inner = RecordedDistillation(distillation_run_of(config), run)
            result = inner.start(
                self._around(grid, config, train_config or ConfigRecord()),
                _vectors(first),
                evaluate_fn=lambda version, record: evaluate(
                    version, {name: array.numpy() for name, array in record.items()}
                ),
            )
            name, role = ("global", "large") if config.distils else ("small", "small")
            published = flat_model(problem_of(config), role)
            vectors, _ = run.load_checkpoint(name)
            published.load(vectors["weights"], vectors["buffers"])
            self.published = state_record(published)
            vectors, _ = run.load_checkpoint("small")
        model.load(vectors["weights"], vectors["buffers"])
        result.arrays = state_record(model)
        if begun is not None:
            result.evaluate_metrics_serverapp[0] = begun
        return result

    def _config(self, num_rounds: int, timeout: float) -> RunConfig:
        if self._settings.get("mode") == "consensus":
            raise ConfigError("mode='consensus' is the strategy Consensus")
        values: dict[str, Value] = {
            "num-server-rounds": num_rounds,
            "round-timeout": float(timeout),
        }
        if self._clients == PLAIN:
            values |= self._without_mounted_clients()
        return self._resolved(values)

    def _without_mounted_clients(self) -> Mapping[str, Value]:
        """What follows for the configuration from clients that are plain. Raises ConfigError for
        settings that would need mounted ones."""
        given = [key for key in _OF_MOUNTED if key in self._settings]
        if useless := [k for k in given if self._settings[k] not in (defaults()[k], "off")]:
            raise ConfigError(
                f"{', '.join(useless)}: plain clients know nothing of it; use train_config, or "
                f"mounted clients"
            )
        if self._settings.get("averaging") == "fedprox":
            raise ConfigError(
                "averaging='fedprox' is done by the clients: use fedavg, and say it in train_config"
            )
        return {} if self._settings.get("mode") == "average" else {"distill.calibrate": "off"}

    def _around(self, grid: Grid, config: RunConfig, order: ConfigRecord) -> Grid:
        if self._clients == PLAIN:
            return PlainGrid(grid, flat_model(problem_of(config), "small"), order)
        return SettingsGrid(grid, config.flat())


class Consensus(_System):
    """Edge-consensus learning and its kin: nodes agree on a model among themselves. Its clients are
    those of `mount`."""

    _of_start = frozenset({"mode", "consensus.steps", "round-timeout"})

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Evaluate | None = None,
    ) -> Result:
        """Train for `num_rounds` windows, of `consensus.window` local steps each, and settle; the
        result has the state dict of the average of all nodes' models.

        evaluate_fn is called with (0, the model's own initial state dict), then with (window, that
        of the average) and, once they have settled, with (num_rounds, the result's); with
        consensus.diagnosis=off, where the server gets no average, only at the end. Raises
        ConfigError for what has no meaning here: nodes begin with the model's own initial values,
        and take their settings as such.
        """
        given = {
            "initial_arrays": initial_arrays,
            "train_config": train_config,
            "evaluate_config": evaluate_config,
        }
        if useless := [name for name, value in given.items() if value]:
            raise ConfigError(f"{', '.join(useless)}: has no meaning for Consensus; use settings")
        config, measured = self._config(num_rounds, timeout), dict[int, MetricRecord]()
        model = flat_model(problem_of(config), "small")
        check_model_of_nodes(model)

        def evaluate(window: int, weights: np.ndarray) -> ArrayRecord:
            model.load(weights, np.zeros(0, np.float32))
            arrays = state_record(model)
            if evaluate_fn and (found := evaluate_fn(window, arrays)) is not None:
                measured[window] = found
            return arrays

        def at_the_end_of(window: int, record: ArrayRecord) -> None:
            if window < num_rounds:  # what it is after the last one is still to settle
                evaluate(window, record["average"].numpy())

        evaluate(0, model.state()["weights"].copy())
        with self._books(config) as run:
            inner = RecordedConsensus(consensus_run_of(config), run)
            result = inner.start(SettingsGrid(grid, config.flat()), evaluate_fn=at_the_end_of)
        result.arrays = evaluate(num_rounds, result.arrays["average"].numpy())
        result.evaluate_metrics_serverapp = measured
        return result

    def _config(self, num_rounds: int, timeout: float) -> RunConfig:
        window = self._settings.get("consensus.window", defaults()["consensus.window"])
        if not isinstance(window, int) or window < 1:
            window = 1  # what is wrong with it is said below
        steps = {"consensus.steps": num_rounds * window, "round-timeout": float(timeout)}
        return self._resolved({"mode": "consensus", **steps})


def _load(model: FlatModel, arrays: ArrayRecord) -> None:
    try:
        load_state(model, arrays)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"initial_arrays is no state dict of the small model: {' '.join(str(error).split())}"
        ) from error


def _vectors(vectors: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(vector) for name, vector in vectors.items()})
