"""Averaging rules: from the participants' updates to the next version of the model.

Flower's own strategies serve as the rules of synchronous rounds; buffered asynchronous averaging,
which Flower does not have, is ours.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdam,
    FedAvg,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    Strategy,
)

from strategies import plugins
from strategies.averaging import (
    STALENESS_WEIGHTS,
    Vectors,
    buffered_update,
    mix,
    weighted_average,
)
from strategies.averaging_settings import AveragingSettings
from strategies.errors import ConfigError
from strategies.own_rules import BUFFERED, is_own, rule_class
from strategies.plugins import told_as
from strategies.privacy import adapted_norm, noise_generator, private_mean, split_noise
from strategies.schedule import Job


@dataclass(frozen=True)
class Update:
    """What a job brought: `vectors` trained on `examples` images from job.base_version."""

    job: Job
    examples: int
    loss: float
    vectors: Vectors


class Rule(Protocol):
    """Makes the next version. `state` holds what it remembers between rounds, for a checkpoint.

    A rule of one's own derives from it, with settings of its own as arguments of its constructor.
    buffered: whether it gets updates as they come, `buffer-size` at a time, instead of those of a
    round in which everybody waits for all.
    """

    buffered: ClassVar[bool] = False

    def combine(
        self,
        version: int,
        model: Vectors,
        updates: Sequence[Update],
        bases: Mapping[int, Vectors],
    ) -> Vectors:
        """Version `version` from the model before it, updates (not none) and their bases: the
        versions, by number, from which their jobs began."""
        ...

    def state(self) -> Vectors:
        return {}

    def load_state(self, state: Vectors) -> None:
        pass


# name -> (Flower's strategy, its parameters). An adaptive rule (FedOpt) divides by the size of past
# steps; normalisation statistics are no parameters and a variance could become negative, so there
# the buffers are averaged instead.
def _flower_strategy(settings: AveragingSettings) -> tuple[Strategy, bool]:
    adaptive = {"eta": settings.server_learning_rate, "tau": settings.server_tau}
    malicious = {"num_malicious_nodes": settings.num_malicious_nodes}
    honest = max(1, settings.cohort - settings.num_malicious_nodes)
    table: dict[str, tuple[type[Strategy], dict[str, Any], bool]] = {
        "fedavg": (FedAvg, {}, False),
        "fedprox": (FedProx, {"proximal_mu": settings.proximal_mu}, False),
        "fedadam": (FedAdam, adaptive, True),
        "fedyogi": (FedYogi, adaptive, True),
        "krum": (Krum, malicious, False),
        "multikrum": (MultiKrum, {**malicious, "num_nodes_to_select": honest}, False),
        "bulyan": (Bulyan, malicious, False),
        "fedmedian": (FedMedian, {}, False),
        "fedtrimmedavg": (FedTrimmedAvg, {"beta": settings.trim_fraction}, False),
    }
    cls, parameters, is_adaptive = table[settings.averaging]
    return cls(**parameters), is_adaptive


class FlowerRule(Rule):
    """One of Flower's strategies as a rule: its `aggregate_train` on our flat vectors.

    The model stays as it was where the strategy makes nothing of so few updates (Bulyan).
    """

    def __init__(self, settings: AveragingSettings) -> None:
        self._strategy, self._adaptive = _flower_strategy(settings)

    def combine(
        self,
        version: int,
        model: Vectors,
        updates: Sequence[Update],
        bases: Mapping[int, Vectors],
    ) -> Vectors:
        keys = ["weights"] if self._adaptive else list(model)
        if self._adaptive:
            self._strategy.current_arrays = {key: model[key] for key in keys}  # type: ignore[attr-defined]
        with _quiet_flower():
            record, _ = self._strategy.aggregate_train(version, [_reply(u, keys) for u in updates])
        if record is None:
            return {key: value.copy() for key, value in model.items()}
        result = {key: record[key].numpy().astype(np.float32) for key in keys}
        if self._adaptive:
            rest = [{k: v for k, v in u.vectors.items() if k not in keys} for u in updates]
            result |= weighted_average(rest, [u.examples for u in updates])
        return result

    def state(self) -> Vectors:
        moments = {n: getattr(self._strategy, n, None) or {} for n in ("m_t", "v_t")}
        return {f"{n}.{key}": value for n, part in moments.items() for key, value in part.items()}

    def load_state(self, state: Vectors) -> None:
        for name in ("m_t", "v_t"):
            part = {k.split(".")[1]: v for k, v in state.items() if k.startswith(f"{name}.")}
            if part:
                setattr(self._strategy, name, part)


class BufferedRule(Rule):
    """Buffered asynchronous averaging: of one update FedAsync, of several FedBuff; an old update
    counts less. Buffers, which are no parameters, are averaged with the same weights."""

    def __init__(self, settings: AveragingSettings) -> None:
        self._settings = settings

    def combine(
        self,
        version: int,
        model: Vectors,
        updates: Sequence[Update],
        bases: Mapping[int, Vectors],
    ) -> Vectors:
        settings = self._settings
        weigh = STALENESS_WEIGHTS[settings.staleness_weight]
        weights = [
            weigh(
                version - 1 - update.job.base_version,
                settings.staleness_exponent,
                settings.staleness_bound,
            )
            for update in updates
        ]
        vectors = [update.vectors for update in updates]
        if settings.buffer_size == 1:
            return mix(model, vectors[0], settings.mixing * weights[0])
        base = [bases[update.job.base_version] for update in updates]
        rate = settings.server_learning_rate
        result = buffered_update(model, vectors, base, weights, rate)
        # A variance plus the difference of two old ones can be negative. Buffers move towards the
        # updates' own instead, at most all the way: they stay between what there was.
        buffers = {key: value for key, value in model.items() if key != "weights"}
        current = [model] * len(updates)
        return result | buffered_update(buffers, vectors, current, weights, min(1.0, rate))

    def state(self) -> Vectors:
        return {}

    def load_state(self, state: Vectors) -> None:
        pass


class OwnRule(Rule):
    """A rule of somebody's own (see `plugin_name`), whose models are checked. ConfigError."""

    def __init__(self, name: str) -> None:
        self._name = f"averaging={name!r}"
        cls = rule_class(name)
        with told_as(f"{self._name} cannot be made", ConfigError):
            self._rule: Rule = cls(**plugins.arguments("averaging", name, cls, ()))

    def combine(
        self,
        version: int,
        model: Vectors,
        updates: Sequence[Update],
        bases: Mapping[int, Vectors],
    ) -> Vectors:
        with told_as(f"{self._name}: combine() failed", ConfigError):
            found = self._rule.combine(version, model, updates, bases)
        if not isinstance(found, dict) or found.keys() != model.keys():
            raise ConfigError(
                f"{self._name}: combine() returned {type(found).__name__}; return vectors by "
                f"the names {' and '.join(model)}"
            )
        for key, value in found.items():
            fits = isinstance(value, np.ndarray) and value.shape == model[key].shape
            if not fits or value.dtype.kind != "f":
                raise ConfigError(
                    f"{self._name}: combine() returned {_kind(value)} as {key!r}; return float32 "
                    f"{model[key].shape}"
                )
        return {key: value.astype(np.float32) for key, value in found.items()}

    def state(self) -> Vectors:
        with told_as(f"{self._name}: state() failed", ConfigError):
            return self._rule.state()

    def load_state(self, state: Vectors) -> None:
        with told_as(f"{self._name}: load_state() failed", ConfigError):
            self._rule.load_state(state)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return type(value).__name__


class PrivateRule(Rule):
    """Client-level differential privacy: the rule gets one update, which is the mean of all, each
    clipped, with noise (McMahan et al. 2018; with adaptive clipping Andrew et al. 2021). What the
    rule makes of it costs no more privacy.

    Flower's own wrappers (1.41) do not serve here. They draw from NumPy's global generator; add
    noise to what the rule has made, where one participant's influence on it is no longer bounded
    by C / m (FedAvg's weights by examples, FedAdam's steps); and their adaptive clipping lowers the
    norm when too many are clipped, and gives noise for the next round's norm.
    """

    def __init__(self, settings: AveragingSettings, rule: Rule) -> None:
        self._settings, self._rule = settings, rule
        self._norm = settings.privacy.clipping_norm

    def combine(
        self,
        version: int,
        model: Vectors,
        updates: Sequence[Update],
        bases: Mapping[int, Vectors],
    ) -> Vectors:
        settings, norm, z = self._settings, self._norm, self._settings.privacy.noise_multiplier
        changes = [u.vectors["weights"] - bases[u.job.base_version]["weights"] for u in updates]
        generator = noise_generator(settings.seed, version)
        if settings.privacy.clients == "adaptive":
            z, count_noise = split_noise(z, settings.cohort)
            self._norm = adapted_norm(
                norm,
                changes,
                settings.privacy.clipping_quantile,
                count_noise,
                settings.cohort,
                generator,
            )
        mean = private_mean(changes, norm, z, settings.cohort, generator)
        vectors = {**model, "weights": model["weights"] + mean}
        one = replace(updates[0], examples=1, vectors=vectors)
        return self._rule.combine(version, model, [one], bases)

    def state(self) -> Vectors:
        adaptive = self._settings.privacy.clients == "adaptive"
        norm = {"clipping": np.array([self._norm])} if adaptive else {}
        return {**self._rule.state(), **norm}

    def load_state(self, state: Vectors) -> None:
        rest = dict(state)
        if "clipping" in rest:
            self._norm = float(rest.pop("clipping")[0])
        self._rule.load_state(rest)


def make_rule(settings: AveragingSettings) -> Rule:
    """The rule that `averaging` names, with noise where the configuration asks for it."""
    if is_own(settings.averaging):
        rule: Rule = OwnRule(settings.averaging)
    elif settings.averaging == BUFFERED:
        rule = BufferedRule(settings)
    else:
        rule = FlowerRule(settings)
    return PrivateRule(settings, rule) if settings.privacy.of_clients else rule


def _reply(update: Update, keys: Sequence[str]) -> Message:
    """The update as the reply that a Flower strategy expects."""
    content = RecordDict(
        {
            "arrays": ArrayRecord({key: Array(update.vectors[key]) for key in keys}),
            "metrics": MetricRecord({"num-examples": update.examples}),
        }
    )
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=update.job.participant,
        dst_node_id=0,
        reply_to_message_id="",
        group_id="",
        created_at=0.0,
        ttl=1.0,
        message_type="train",
    )
    return Message(content=content, metadata=metadata)  # type: ignore[call-overload]


@contextmanager
def _quiet_flower() -> Iterator[None]:
    """Without Flower's two lines of log per round."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
