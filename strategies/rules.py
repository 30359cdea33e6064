"""Averaging rules: from the participants' updates to the next version of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np

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
from strategies.robust import bulyan, enough, median, nearest_to_others, trimmed_mean
from strategies.schedule import Job

_ADAPTIVE = ("fedadam", "fedyogi")
_BETA_1, _BETA_2 = 0.9, 0.99  # how much of the past their means keep


@dataclass(frozen=True)
class Update:
    """What a job brought: `vectors` trained on `examples` images from job.base_version. gradient:
    with distill.calibrate, that of the last layer of the model before training; see
    `distillation.calibration`."""

    job: Job
    examples: int
    loss: float
    vectors: Vectors
    gradient: np.ndarray | None = None


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


class CohortRule(Rule):
    """A rule of synchronous rounds, with the arithmetic of Flower's strategy of that name.

    The model stays as it was where the rule makes nothing of so few updates (Bulyan).
    """

    def __init__(self, settings: AveragingSettings) -> None:
        self._settings = settings

    def combine(
        self,
        version: int,
        model: Vectors,
        updates: Sequence[Update],
        bases: Mapping[int, Vectors],
    ) -> Vectors:
        found = self._average([u.vectors for u in updates], [u.examples for u in updates])
        if found is None:
            return {key: value.copy() for key, value in model.items()}
        return {key: value.astype(np.float32) for key, value in found.items()}

    def _average(self, vectors: Sequence[Vectors], sizes: Sequence[int]) -> Vectors | None:
        settings, liars = self._settings, self._settings.num_malicious_nodes
        match settings.averaging:
            case "fedmedian":
                return median(vectors)
            case "fedtrimmedavg":
                return trimmed_mean(vectors, settings.trim_fraction)
            case "bulyan":
                return bulyan(vectors, liars)
            case "krum" | "multikrum" as name:
                number = 1 if name == "krum" else max(1, len(vectors) - liars)
                chosen = nearest_to_others(vectors, liars, number)
                return weighted_average([vectors[k] for k in chosen], [sizes[k] for k in chosen])
        return weighted_average(vectors, sizes)  # FedProx differs on the client only

    def state(self) -> Vectors:
        return {}

    def load_state(self, state: Vectors) -> None:
        pass


class AdaptiveRule(Rule):
    """FedAdam and FedYogi (Reddi et al. 2021): a step of an adaptive optimiser along the average
    change, whose size is divided by that of past steps. Normalisation statistics are no parameters
    and a variance could become negative: the buffers are averaged instead."""

    def __init__(self, settings: AveragingSettings) -> None:
        self._settings = settings
        self._mean, self._square = np.zeros(0), np.zeros(0)  # of the changes; before there are any

    def combine(
        self,
        version: int,
        model: Vectors,
        updates: Sequence[Update],
        bases: Mapping[int, Vectors],
    ) -> Vectors:
        average = weighted_average([u.vectors for u in updates], [u.examples for u in updates])
        change = average["weights"] - model["weights"]
        if not len(self._mean):
            self._mean, self._square = np.zeros_like(change), np.zeros_like(change)
        square = change**2
        rate: Any = self._settings.server_learning_rate
        self._mean = _BETA_1 * self._mean + (1 - _BETA_1) * change
        if self._settings.averaging == "fedyogi":
            self._square = self._square - (1.0 - _BETA_2) * square * np.sign(self._square - square)
        else:
            self._square = _BETA_2 * self._square + (1 - _BETA_2) * square
            rate = rate * np.sqrt(1 - np.power(_BETA_2, version + 1.0))
            rate = rate / (1 - np.power(_BETA_1, version + 1.0))
        size = np.sqrt(self._square) + self._settings.server_tau
        weights = model["weights"] + rate * self._mean / size
        return average | {"weights": weights.astype(np.float32)}

    def state(self) -> Vectors:
        if not len(self._mean):
            return {}
        return {"m_t.weights": self._mean, "v_t.weights": self._square}

    def load_state(self, state: Vectors) -> None:
        if state:
            self._mean, self._square = state["m_t.weights"], state["v_t.weights"]


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
            # A version of a run that is replayed may have several.
            for each, weight in zip(vectors, weights, strict=True):
                model = mix(model, each, settings.mixing * weight)
            return model
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


def shortage(settings: AveragingSettings, updates: int) -> str:
    """That so many updates are too few for the rule, in words; "" if they are not."""
    least, _ = enough(settings.averaging, settings.num_malicious_nodes)
    if updates >= least:
        return ""
    then = "keeps the model" if settings.averaging == "bulyan" else "may follow a malicious one"
    return f"averaging={settings.averaging!r} needs {least} updates, got {updates}, and {then}"


def make_rule(settings: AveragingSettings) -> Rule:
    """The rule that `averaging` names, with noise where the configuration asks for it."""
    if is_own(settings.averaging):
        rule: Rule = OwnRule(settings.averaging)
    elif settings.averaging == BUFFERED:
        rule = BufferedRule(settings)
    else:
        rule = AdaptiveRule(settings) if settings.averaging in _ADAPTIVE else CohortRule(settings)
    return PrivateRule(settings, rule) if settings.privacy.of_clients else rule
