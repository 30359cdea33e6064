"""The configuration of a run: every key with its type, its valid values and its meaning.

The defaults stand in one place, the table [tool.flwr.app.config] of pyproject.toml, because Flower
demands them there. A key is the field's name with dashes; the fields of `distill` and `cost` have
that prefix: ``distill.variant``, ``cost.client-seconds``.

`schema` reads values into the fields of `model`, `checks` says what cannot be together, and
`resolved` puts what somebody asks for over the shipped defaults.
"""

from fl_app.condition import Value
from fl_app.config.model import (
    FLOWER_RULES,
    MEAN_RULES,
    MODES,
    OWN_KEYS,
    PATH_KEYS,
    REFERENCES,
    TASKS,
    RunConfig,
)
from fl_app.config.resolved import check_key, configure, defaults, range_of, resolve, with_effect
from fl_app.data.sets import FILES

__all__ = [
    "FILES",
    "FLOWER_RULES",
    "MEAN_RULES",
    "MODES",
    "OWN_KEYS",
    "PATH_KEYS",
    "REFERENCES",
    "TASKS",
    "RunConfig",
    "Value",
    "check_key",
    "configure",
    "defaults",
    "range_of",
    "resolve",
    "with_effect",
]
