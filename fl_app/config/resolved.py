"""From what somebody asks for, and the shipped defaults, to the checked configuration of a run."""

import difflib
import tomllib
from collections.abc import Mapping
from functools import cache
from typing import Any

from fl_app.condition import Value
from fl_app.config.checks import check
from fl_app.config.model import IMAGES, RunConfig
from fl_app.config.schema import build, extent, paths_of
from fl_app.effects import PLACE, complaint, has_effect
from strategies.errors import ConfigError
from strategies.pyproject import PATH, pyproject

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
# (key, value) of earlier versions, and what the value is called now.
_RENAMED: dict[tuple[str, str], Value] = {("consensus.carrier", "ray"): "sockets"}


def check_key(key: str) -> None:
    """Raise ConfigError, which says what may have been meant, for a key that there is not."""
    if key in paths_of(RunConfig):
        return
    if key in _REMOVED:
        raise ConfigError(f"configuration key {key!r} is gone; use {_REMOVED[key]}")
    close = difflib.get_close_matches(key, paths_of(RunConfig), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "see `edge-fl config` for all keys"
    raise ConfigError(f"configuration key {key!r} is unknown; {hint}")


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


def resolve(overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The checked configuration: pyproject's defaults with `overrides` (flat keys) over them.

    Raises ConfigError for an unknown key, a value of the wrong type or out of range, and a
    combination that cannot work; the message names the valid choices.
    """
    values = dict(defaults())
    for key, value in (overrides or {}).items():
        check_key(key)
        renamed = _RENAMED.get((key, str(value)))
        values[key] = value if renamed is None else renamed
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
    config = build(RunConfig, values)
    check(config)
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
            "consensus.carrier=zenoh is for devices (--superlink); use auto, sockets or grid"
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
    if flat.keys() != paths_of(RunConfig).keys():
        difference = ", ".join(sorted(flat.keys() ^ paths_of(RunConfig).keys()))
        raise ConfigError(f"{PATH}: [tool.flwr.app.config] and RunConfig differ in: {difference}")
    return flat


def range_of(key: str) -> str:
    """The values that `key` may have, in words."""
    return extent(RunConfig, key)
