"""Code of somebody's own that a run uses: it decides on results as the app's does."""

from fl_app.config import OWN_KEYS, RunConfig
from strategies import plugins
from strategies.partition import ADAPTER
from strategies.plugin_name import parse


def own_code(config: RunConfig) -> dict[str, str]:
    """The digest of the file of each task, rule, algorithm ... of somebody's own, by its key.
    ConfigError for what is not there."""
    values = {key: str(config.flat()[key]) for key in OWN_KEYS}
    named = {k: v for k, v in values.items() if parse(v) and not v.startswith(ADAPTER)}
    return {key: plugins.digest(key, text) for key, text in named.items()}


def own_digest(config: RunConfig) -> str:
    """All of `own_code` in a text; "" if there is none."""
    return " ".join(f"{key}={digest}" for key, digest in own_code(config).items())
