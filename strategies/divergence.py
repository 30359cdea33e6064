"""Models that are not finite any more: how that is told, and what it is put down to."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from strategies.errors import DivergedError
from strategies.recorder import Recorder

_OWN = ("small", "global")  # models without which a run cannot go on
# By model ("small", "global", "node"), the keys with their values that can be too large.
Suspects = Mapping[str, Mapping[str, float]]


def diverged(suspects: Suspects, model: str, where: str) -> DivergedError:
    """The error that ends the run because the model `where` is not finite."""
    causes = " or ".join(f"{key}={value:g}" for key, value in suspects[model].items())
    return DivergedError(f"{where}: not finite; probably too large: {causes}")


def require_finite(
    suspects: Suspects, recorder: Recorder, vectors: Mapping[str, np.ndarray], **told: Any
) -> None:
    """Raise DivergedError if a vector has a value that is NaN or infinite, after its evaluation has
    been recorded: there is none. told: round, t and model, "small" or "global", of the event."""
    if not all(bool(np.isfinite(vector).all()) for vector in vectors.values()):
        record_evaluation(suspects, recorder, accuracy=math.nan, loss=math.nan, **told)


def record_evaluation(suspects: Suspects, recorder: Recorder, **told: Any) -> None:
    """Record what an evaluation found; DivergedError if it found that a model of the run is not
    finite. A reference that diverges has no metric from then on, and the run goes on."""
    recorder.emit("evaluate", **told)
    if math.isnan(told["accuracy"]) and told["model"] in _OWN:
        where = f"round {told['round']}, the {told['model']} model"
        raise diverged(suspects, told["model"], where)
