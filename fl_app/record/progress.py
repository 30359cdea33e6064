"""How far a run is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fl_app.record.metrics import Event, latest


@dataclass(frozen=True)
class Progress:
    """Rounds (or windows) done and in all, and the seconds to go, None if not known."""

    done: int
    total: int
    eta: float | None


def progress(events: Iterable[Event], config: Mapping[str, Any]) -> Progress:
    """How far the run of these events and this flat configuration is."""
    last = latest(events, "round")
    total = config.get("num-server-rounds")
    if config.get("mode") == "consensus":
        total = -(-int(config.get("consensus.steps") or 0) // int(config["consensus.window"] or 1))
    done = last.get("round", 0)
    return Progress(done, max(int(total or 0), done), last.get("eta"))
