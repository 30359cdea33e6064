"""Numbers of a run that averages a small model and, in mode distill, learns from it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fl_app.record.costs import costs, overlap, times_on
from fl_app.record.metrics import (
    Event,
    Point,
    end_time,
    last_accuracy,
    latest,
    metric_of,
    of_kind,
    series,
    span,
    times_to_targets,
)
from fl_app.record.privacy import described

# What the published model is measured against, by the names of their evaluations.
REFERENCES = {
    "small_average": "small model, weight average",
    "small_calibrated": "small model, average, calibrated",
    "server_alone": "server alone, on its labelled examples",
    "centralized_large": "large model, all data in one place",
}


def references(events: Sequence[Event]) -> dict[str, list[Point]]:
    """Return the evaluations of the references of a run as {name: [(t, accuracy)]}, by time; of the
    trained ones as the global model is published, raw or as a moving average."""
    found = {name: series(events, name, _field(events, name)) for name in REFERENCES}
    return {name: points for name, points in found.items() if points}


def _field(events: Iterable[Event], model: str) -> str:
    """The field of `model`'s evaluations that has the accuracy of what is published of it."""
    of_model = (event for event in of_kind(events, "evaluate") if event["model"] == model)
    ema = any(event.get("published") == "ema" for event in of_model)
    return "accuracy_ema" if ema else "accuracy"


def published_as(events: Sequence[Event]) -> tuple[str, str]:
    """Return (model, field) of the evaluations of the model that the run publishes.

    That is the global model, raw or as a moving average, as the evaluation says; the averaged small
    model in a run without a distillation server.
    """
    evaluations = of_kind(events, "evaluate")
    if not any(event["model"] == "global" for event in evaluations):
        return "small", "accuracy"
    return "global", _field(events, "global")


def published(events: Sequence[Event]) -> list[Point]:
    """Return the evaluations of the model that the run publishes (see `published_as`)."""
    return series(events, *published_as(events))


def participants(events: Iterable[Event]) -> list[int]:
    """Return the participants that did or awaited anything, sorted."""
    return sorted({event["participant"] for event in events if event["event"] in ("job", "idle")})


def round_table(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return one row a round: the fields of its "round" event, small, global and global_ema,
    published (what is published of global), and what the references have by their names.

    A value that was not recorded is None. Accuracies are in [0, 1], bytes are cumulative.
    """
    empty: dict[str, Any] = dict.fromkeys(
        ("t", "small", "global", "global_ema", "published", *REFERENCES, "staleness",
         "contributions", "rejected", "lost", "bytes_up", "bytes_down", "worker_steps",
         "teacher_version")
    )  # fmt: skip
    rows: dict[int, dict[str, Any]] = {}
    for event in events:
        if event["event"] not in ("round", "evaluate"):
            continue
        row = rows.setdefault(event["round"], {"round": event["round"], **empty})
        if event["event"] == "round":
            row |= {key: event[key] for key in empty if event.get(key) is not None}
            continue
        if row["t"] is None:
            row["t"] = event["t"]
        shown = event.get("accuracy_ema" if event.get("published") == "ema" else "accuracy")
        if event["model"] in REFERENCES:
            row[event["model"]] = shown
            continue
        row[event["model"]] = event["accuracy"]
        if event["model"] == "global":
            row |= {"global_ema": event.get("accuracy_ema"), "published": shown}
    return [rows[number] for number in sorted(rows)]


def staleness_histogram(events: Iterable[Event]) -> dict[int, int]:
    """Return {staleness of the teacher in versions: distillation steps done with it}."""
    histogram: dict[int, int] = {}
    for segment in of_kind(events, "segment"):
        if segment["kind"] == "reverse" and segment.get("staleness_versions") is not None:
            staleness = int(segment["staleness_versions"])
            histogram[staleness] = histogram.get(staleness, 0) + int(segment["steps"])
    return dict(sorted(histogram.items()))


def measure(events: Sequence[Event], targets: Sequence[float] = ()) -> dict[str, Any]:
    """Return the part of summary.json that follows from the events; null where nothing was seen.

    - rounds: the last completed one; end_seconds on the run's clock; wall_seconds
    - final {small, global, global_ema, published, small_average, small_calibrated, server_alone,
      centralized_large}: the last evaluation of each, null if it had diverged; of a reference only
      if the run had it
    - time_to_target {"0.50": seconds or null}: of the published model (see `time_to_target`)
    - reference_time_to_target {name: the same of a reference}
    - client_idle_fraction {clients, server, total}: share of the participants' time, in which their
      devices are on, that they waited for other participants and for the server
    - worker_busy_fraction: share of the run's time in which the distillation server computed
    - teacher_staleness {mean, max}: versions, over the distillation steps
    - best {round, model, metric, value}: of the kept model, null without best-metric;
      stopped_early: the round after which the run has ended because of it, or null
    - device_costs: by participant, see `costs`; null without profiles and availability
    - skipped_snapshots, rejected, lost: counts; bytes_up, bytes_down: totals
    - privacy {delta, clients, clients_if_sampled, samples {participant}}: see `privacy.spent`
    """
    end, higher = end_time(events), metric_of(events).higher
    segments = of_kind(events, "segment")
    last_round = latest(events, "round")
    fields = {"small": ("small", "accuracy"), "global": ("global", "accuracy")}
    fields["global_ema"] = ("global", "accuracy_ema")
    fields["published"] = published_as(events)
    known = references(events)
    fields |= {name: (name, _field(events, name)) for name in known}
    return {
        **span(events),
        "final": {name: last_accuracy(events, *field) for name, field in fields.items()},
        "time_to_target": times_to_targets(published(events), targets, higher),
        "reference_time_to_target": {
            name: times_to_targets(points, targets, higher) for name, points in known.items()
        },
        "client_idle_fraction": _idle_fractions(events, end),
        "worker_busy_fraction": _busy(segments) / end if segments and end else None,
        "teacher_staleness": _weighted(staleness_histogram(events)),
        "best": _best(events),
        "stopped_early": latest(events, "stopped_early").get("round"),
        "device_costs": costs(events, end),
        "skipped_snapshots": len(of_kind(events, "skipped")),
        "rejected": len(of_kind(events, "rejected")),
        "lost": sum(job["status"] == "lost" for job in of_kind(events, "job")),
        "bytes_up": last_round.get("bytes_up"),
        "bytes_down": last_round.get("bytes_down"),
        "privacy": described(latest(events, "privacy")),
    }


def _best(events: Sequence[Event]) -> dict[str, Any] | None:
    found = latest(events, "best")
    return {key: found[key] for key in ("round", "model", "metric", "value")} if found else None


def _idle_fractions(events: Sequence[Event], end: float) -> dict[str, float | None]:
    on, people = times_on(events), participants(events)
    available = sum(overlap(on[p], end) if p in on else end for p in people)
    if not available:
        return {"clients": None, "server": None, "total": None}
    waited = {"clients": 0.0, "server": 0.0}
    for event in of_kind(events, "idle"):
        waited[event["waiting_for"]] += event["t_end"] - event["t_start"]
    fractions = {name: seconds / available for name, seconds in waited.items()}
    return {**fractions, "total": sum(fractions.values())}


def _busy(segments: Iterable[Event]) -> float:
    return sum(segment["t_end"] - segment["t_start"] for segment in segments)


def _weighted(histogram: Mapping[int, int]) -> dict[str, float | None]:
    steps = sum(histogram.values())
    if not steps:
        return {"mean": None, "max": None}
    mean = sum(staleness * weight for staleness, weight in histogram.items()) / steps
    return {"mean": mean, "max": max(histogram)}
