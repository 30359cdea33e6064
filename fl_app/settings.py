"""From configuration keys to the settings of the parts of a run: the one place that knows both."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any

from client_apps.settings import DeviceSettings, TrainingSettings
from fl_app.assemble import expected_devices, topology_text
from fl_app.config import RunConfig
from fl_app.own_code import own_digest
from fl_app.problem import problem_of
from strategies.attacks import FORGERIES
from strategies.averaging_settings import AveragingSettings
from strategies.consensus.settings import ConsensusRun, NodesRun
from strategies.distillation.settings import DistillationRun
from strategies.site import server_site

_WITH_SERVER_RATE = ("buffered", "fedadam", "fedyogi")  # of the averaging rules


def averaging_of(config: RunConfig) -> AveragingSettings:
    """For `make_rule`."""
    # On the real clock participants know the seed, and could take the noise away again.
    seed = config.seed if config.virtual else None
    return _named(AveragingSettings, config, seed=seed)


@lru_cache(maxsize=4)
def nodes_run_of(config: RunConfig) -> NodesRun:
    """For hosts of the consensus system, and what they have in common with its server."""
    return _named(NodesRun, config, problem=problem_of(config))


@lru_cache(maxsize=4)
def training_of(config: RunConfig) -> TrainingSettings:
    """For local training of a participant."""
    return _named(TrainingSettings, config, problem=problem_of(config))


@lru_cache(maxsize=4)
def device_settings_of(config: RunConfig) -> DeviceSettings:
    """For everything that a device is asked."""
    return DeviceSettings(training_of(config), nodes_run_of(config))


def distillation_run_of(config: RunConfig) -> DistillationRun:
    """For the strategy `Distillation`. Raises ConfigError for devices that are not there."""
    return _named(
        DistillationRun,
        config,
        problem=problem_of(config),
        averaging=averaging_of(config),
        policy=config.variant.policy,
        forward=config.distils and config.variant.forward,
        lift=config.switch("lift"),
        publish_ema=config.switch("publish_ema"),
        teacher_average=config.switch("teacher_average"),
        calibrates=config.calibrates,
        **_server(config),
    )


def consensus_run_of(config: RunConfig) -> ConsensusRun:
    """For the strategy `Consensus`. Raises ConfigError for devices that are not there."""
    return _named(
        ConsensusRun,
        config,
        nodes=nodes_run_of(config),
        topology=topology_text(config),
        **_server(config),
    )


def _named(cls: Any, config: RunConfig, **others: Any) -> Any:
    """An object of `cls`, whose fields are called as those of the configuration, but for others."""
    same = (f.name for f in fields(cls) if f.name not in others)
    return cls(**{name: getattr(config, name) for name in same}, **others)


def _server(config: RunConfig) -> dict[str, Any]:
    """What both strategies are told of the run around them."""
    devices, site = expected_devices(config), server_site()
    return {
        "resumed": bool(config.resume),
        "devices": devices,
        "others": tuple(sorted(set(site.devices if site else ()) - set(devices))),
        "suspects": suspects_of(config),
        "own_code": own_digest(config),
    }


def suspects_of(config: RunConfig) -> Mapping[str, Mapping[str, float]]:
    """By model, the keys with their values that can be too large where it diverges."""
    flat: Any = config.flat()
    return {
        model: {key: float(flat[key]) for key in _suspects(config, model)}
        for model in ("node", "global", "small")
    }


def _suspects(config: RunConfig, model: str) -> Iterator[str]:
    if config.attack in FORGERIES:
        yield "attack-scale"
    if model == "node":
        yield "consensus.learning-rate"
    if model == "global":
        yield "distill.learning-rate"
    if model == "small":
        yield "learning-rate"
        if config.averaging in _WITH_SERVER_RATE:
            yield "server-learning-rate"
        if config.distils and config.variant.forward:
            yield "distill.forward-learning-rate"
