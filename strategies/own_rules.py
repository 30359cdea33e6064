"""Averaging rules by name, those of somebody's own among them (see `plugin_name`)."""

from functools import cache
from typing import Any

from strategies import plugins
from strategies.plugin_name import parse

BUFFERED = "buffered"


def is_own(averaging: str) -> bool:
    """Whether a rule is somebody's own, a class that derives from `strategies.rules.Rule`."""
    return parse(averaging) is not None


@cache
def rule_class(averaging: str) -> Any:
    """The class that `averaging` names. Raises ConfigError for what is no rule."""
    return plugins.class_of("averaging", averaging, ("combine", "state", "load_state"))


def is_buffered(averaging: str) -> bool:
    """Whether the rule gets updates as they come, instead of those of a round. ConfigError."""
    if is_own(averaging):
        return bool(getattr(rule_class(averaging), "buffered", False))
    return averaging == BUFFERED
