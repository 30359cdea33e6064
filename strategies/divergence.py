"""Models that are not finite any more: how that is told, and what it is put down to."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fl_app.config import RunConfig
from fl_app.record.run_dir import RunDirectory
from strategies.attacks import FORGERIES
from strategies.errors import DivergedError

_OWN = ("small", "global")  # models without which a run cannot go on
_WITH_SERVER_RATE = ("buffered", "fedadam", "fedyogi")  # of the averaging rules


def diverged(config: RunConfig, model: str, where: str) -> DivergedError:
    """The error that ends the run because the model `where` is not finite.

    model: "node", "small" or "global": what can be too large depends on it.
    """
    values = config.flat()
    causes = " or ".join(f"{key}={values[key]:g}" for key in _causes(config, model))
    return DivergedError(f"{where}: not finite; probably too large: {causes}")


def _causes(config: RunConfig, model: str) -> Iterator[str]:
    """The keys of all by which the model can have come so far."""
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


def require_finite(
    config: RunConfig, run: RunDirectory, vectors: Mapping[str, np.ndarray], **told: Any
) -> None:
    """Raise DivergedError if a vector has a value that is NaN or infinite, after its evaluation has
    been recorded: there is none. told: round, t and model, "small" or "global", of the event."""
    if not all(bool(np.isfinite(vector).all()) for vector in vectors.values()):
        record_evaluation(config, run, accuracy=math.nan, loss=math.nan, **told)


def record_evaluation(config: RunConfig, run: RunDirectory, **told: Any) -> None:
    """Record what an evaluation found; DivergedError if it found that a model of the run is not
    finite. A reference that diverges has no metric from then on, and the run goes on."""
    run.emit("evaluate", **told)
    if math.isnan(told["accuracy"]) and told["model"] in _OWN:
        where = f"round {told['round']}, the {told['model']} model"
        raise diverged(config, told["model"], where)
