"""Numbers of a run in which nodes agree without any model on a server."""

from collections.abc import Iterable, Sequence
from typing import Any

from fl_app.record.metrics import (
    Event,
    Point,
    last_accuracy,
    latest,
    metric_of,
    of_kind,
    settled,
    span,
    times_to_targets,
)

_ROUND = (
    "t", "settled", "steps", "messages", "bytes", "lost", "duplicates", "stale", "age", "distance",
)  # fmt: skip


def spread(values: Iterable[float | None]) -> dict[str, float | None]:
    """Return {mean, min, max} over the nodes that were on; None where none was."""
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "min": None, "max": None}
    return {"mean": sum(known) / len(known), "min": min(known), "max": max(known)}


def node_spread(event: Event) -> dict[str, float | None]:
    """Return the `spread` of a "nodes" event's accuracies; of nodes that diverged there is none."""
    return spread([] if event.get("diverged") else event.get("accuracy") or [])


def node_series(events: Iterable[Event], which: str = "mean") -> list[Point]:
    """Return the nodes' accuracy as (t, mean, min or max), by time; without windows that have
    none."""
    points = [(e["t"], node_spread(e)[which]) for e in of_kind(events, "nodes")]
    return sorted((t, value) for t, value in points if value is not None)


def worst_series(events: Iterable[Event]) -> list[Point]:
    """Return what the worst node had, by time."""
    events = list(events)
    return node_series(events, metric_of(events).ranked("min", "max")[0])


def references(events: Iterable[Event]) -> dict[str, list[Point]]:
    """Return the accuracies of the centralized references as {name: [(t, accuracy)]}, by time."""
    found: dict[str, list[Point]] = {}
    for event in of_kind(events, "nodes"):
        for name, accuracy in (event.get("reference") or {}).items():
            if accuracy is not None:
                found.setdefault(name, []).append((event["t"], accuracy))
    return {name: sorted(points) for name, points in found.items()}


def node_names(events: Iterable[Event]) -> list[str]:
    """Return the names of the nodes, as their topology gives them or numbers if it does not."""
    events = list(events)
    counts = [len(e["accuracy"]) for e in of_kind(events, "nodes")]
    numbers = [str(number) for number in range(max(counts, default=0))]
    return list(latest(events, "topology").get("names") or numbers)


def window_table(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return one row a window, by its number as "round"; a value that was not recorded is None.

    The fields of its "round" event (counters are cumulative); mean, min and max of the nodes'
    accuracies; average, the averaged model's; reference, {name: accuracy} of centralized training.
    """
    empty: dict[str, Any] = dict.fromkeys((*_ROUND, "mean", "min", "max", "average", "reference"))
    rows: dict[int, dict[str, Any]] = {}
    for event in events:
        if event["event"] not in ("round", "nodes", "evaluate"):
            continue
        row = rows.setdefault(event["round"], {"round": event["round"], **empty})
        if event["event"] == "round":
            row |= {key: event.get(key) for key in _ROUND}
            continue
        if row["t"] is None:
            row["t"] = event["t"]
        if event["event"] == "nodes":
            row |= node_spread(event) | {"reference": event.get("reference") or None}
        else:
            row[event["model"]] = event["accuracy"]
    return [rows[number] for number in sorted(rows)]


def measure(events: Sequence[Event], targets: Sequence[float] = ()) -> dict[str, Any]:
    """Return the part of summary.json that follows from the events; null where nothing was seen.

    - hosts, carrier: what worked the nodes, and how mail went between hosts
    - engine of the gradients; engine_gain, how many times as fast as sequential it was, if measured
    - rounds: the last completed window; end_seconds on the run's clock; wall_seconds
    - final {node_mean, node_min, node_max, node_honest, average, reference {name}}: the last
      evaluation of each, null if it was of what had diverged; the average is the averaged model's,
      which no node has; node_honest is the mean of the nodes that do not attack, null where none
      does
    - unsettled {node_mean, node_min, node_max, distance}: of the nodes before they settled; and
      settling {messages, bytes, seconds}: what that took; null where they did not
    - distance: the last consensus distance
    - time_to_target {"0.50": seconds or null}: of the nodes' mean (see `time_to_target`)
    - messages, bytes, lost, duplicates: totals; rejected: count
    - stale, age: mean age of the applied mail in local steps (virtual clock) and in seconds
    """
    higher = metric_of(events).higher
    hosts, last, nodes = (latest(events, kind) for kind in ("hosts", "round", "nodes"))
    return {
        **{name: hosts.get(name) for name in ("hosts", "carrier", "engine", "engine_gain")},
        **span(events),
        "final": {
            **{f"node_{which}": value for which, value in node_spread(nodes).items()},
            "node_honest": _honest(events),
            "average": last_accuracy(events, "average"),
            "reference": nodes.get("reference") or {},
        },
        **_settling(events),
        "distance": last.get("distance"),
        "time_to_target": times_to_targets(node_series(events), targets, higher),
        **{name: last.get(name) for name in ("messages", "bytes", "lost", "duplicates")},
        **{name: _mean(e.get(name) for e in of_kind(events, "round")) for name in ("stale", "age")},
        "rejected": sum(event.get("count", 1) for event in of_kind(events, "rejected")),
    }


def _settling(events: Sequence[Event]) -> dict[str, Any]:
    nodes = [e for e in of_kind(events, "nodes") if not settled(e)]
    before = [e for e in of_kind(events, "round") if not settled(e)]
    last = latest(events, "round")
    if not (nodes and before and settled(last)):
        return {"unsettled": None, "settling": None}
    spread_before = {f"node_{which}": value for which, value in node_spread(nodes[-1]).items()}
    took = {name: last[name] - before[-1][name] for name in ("messages", "bytes")}
    return {
        "unsettled": {**spread_before, "distance": before[-1]["distance"]},
        "settling": {**took, "seconds": last["t"] - before[-1]["t"]},
    }


def _honest(events: Sequence[Event]) -> float | None:
    config = latest(events, "run_started").get("config") or {}
    if not config.get("attackers"):
        return None
    nodes = latest(events, "nodes")
    # The attackers are the last of the participants.
    honest = (nodes.get("accuracy") or [])[: -config["attackers"]]
    return None if nodes.get("diverged") else _mean(honest)


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known."""
    return spread(values)["mean"]
