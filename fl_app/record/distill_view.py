"""What the record shows of a run that averages a small model, with a distillation server or not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fl_app.record.costs import times_on, within
from fl_app.record.distill_figures import FIGURES
from fl_app.record.distill_metrics import REFERENCES, measure, published, round_table
from fl_app.record.distill_page import charts, sentence, timeline
from fl_app.record.figures import ACCURACY
from fl_app.record.formatting import megabytes, number, percent, share
from fl_app.record.metrics import (
    Event,
    Metric,
    latest,
    metric_of,
    of_kind,
    series,
    targets_of,
    times_to_targets,
)
from fl_app.record.privacy import spent
from fl_app.record.view import (
    INCIDENTS,
    Column,
    Comparison,
    Lines,
    Measured,
    Page,
    Pairs,
    Row,
    Table,
    View,
    attack_settings,
    final_lines,
)
from strategies.schedule import Aggregation, Job, idle_times

if TYPE_CHECKING:
    from fl_app.config import RunConfig


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "variant": config.get(f"{config.get('mode')}.variant"),
        "averaging": config.get("averaging"),
        **attack_settings(config),
    }


def _tiles(measured: Measured, metric: Metric = ACCURACY) -> Pairs:
    final = measured["final"]
    tiles = [(f"final {metric.heading}, published model", metric.shown(final["published"]))]
    known = {label: final[n] for n, label in REFERENCES.items() if n in final}
    return tiles + [(label, metric.shown(value)) for label, value in known.items()]


def _results(m: Measured, metric: Metric = ACCURACY) -> Pairs:
    idle, staleness = m["client_idle_fraction"], m["teacher_staleness"]
    return [
        (f"final {metric.name}, small model", metric.shown(m["final"]["small"])),
        (f"final {metric.name}, global model, raw", metric.shown(m["final"]["global"])),
        (f"final {metric.name}, global model, EMA", metric.shown(m["final"]["global_ema"])),
        ("participants idle: waiting for each other", share(idle["clients"])),
        ("participants idle: waiting for the server", share(idle["server"])),
        ("distillation server busy", share(m["worker_busy_fraction"])),
        ("teacher staleness, mean (versions)", number(staleness["mean"], 2)),
        ("teacher staleness, max (versions)", number(staleness["max"])),
        ("snapshots skipped", str(m["skipped_snapshots"])),
        ("contributions rejected", str(m["rejected"])),
        ("contributions lost", str(m["lost"])),
        ("MB up", megabytes(m["bytes_up"])),
        ("MB down", megabytes(m["bytes_down"])),
        *_epsilons(m["privacy"]),
    ]


def _compared(published: float | None, reference: float | None, metric: Metric) -> str:
    """A reference's metric, and how far the published model is from it."""
    apart, shown = metric.lead(published, reference), metric.shown(reference)
    return shown if apart == "-" else f"{shown}; published model {apart}{metric.points}"


def _measured_against(events: Sequence[Event]) -> list[Table]:
    """The published model and what it is measured against: accuracies, and times to targets."""
    targets = targets_of(latest(events, "run_started").get("config") or {})
    m = measure(events, targets)
    final, published, metric = m["final"], m["final"]["published"], metric_of(events)
    if final["global"] is None:
        return []
    small = times_to_targets(series(events, "small"), targets, metric.higher)
    rows = [("global model, as published", published, m["time_to_target"])]
    rows.append(("small model", final["small"], small))
    rows += [
        (label, final[name], m["reference_time_to_target"][name])
        for name, label in REFERENCES.items()
        if name in final
    ]
    unit = f" ({metric.points.strip()})" if metric.points else ""
    columns = ("model", f"final {metric.label}", f"published minus this{unit}")
    columns += tuple(f"{metric.at(target)} after" for target in targets)
    cells = [
        (
            label,
            metric.plain(value),
            "" if row == 0 else metric.lead(published, value),
            *(number(t, 1) for t in to.values()),
        )
        for row, (label, value, to) in enumerate(rows)
    ]
    return [Table("The published model and what it is measured against", columns, cells)]


def _ending(known: Row, metric: Metric = ACCURACY) -> list[str]:
    """What came out, beside what it is measured against; nothing of what was never evaluated."""
    published = known.get("published")
    if published is None and known.get("small") is None:
        return []
    pairs = [
        ("global model, as published", metric.shown(published)),
        ("small model", _compared(published, known.get("small"), metric)),
    ]
    pairs += [
        (label, _compared(published, known[name], metric))
        for name, label in REFERENCES.items()
        if known.get(name) is not None
    ]
    return final_lines(pairs, metric)


def _ending_of_average(known: Row, metric: Metric = ACCURACY) -> list[str]:
    value = known.get("small")
    return [] if value is None else final_lines([("small model", metric.shown(value))], metric)


def _epsilons(privacy: Mapping[str, Any] | None) -> Pairs:
    if privacy is None:
        return []
    samples, delta = privacy["samples"], f"at delta {privacy['delta']:g}"
    pairs = []
    if privacy["clients"] is not None:
        pairs.append((f"epsilon of a participant, {delta}", number(privacy["clients"], 2)))
    if samples:
        worst = number(max(samples.values()), 2)
        pairs.append((f"epsilon of an image, {delta}, at worst", worst))
    return pairs


def _conclude(events: Sequence[Event], config: RunConfig) -> list[Event]:
    return [*_idle(events, config), *spent(events, config)]


def _idle(events: Sequence[Event], config: RunConfig) -> list[Event]:
    """Idle times as the recorded jobs tell them, those of before a resumption included; a device
    that is off does not wait."""
    times = {event["round"]: event["t"] for event in of_kind(events, "round")}
    by_round: dict[int, list[Job]] = defaultdict(list)
    for event in of_kind(events, "job"):
        moments = (event[name] for name in ("t_start", "t_compute", "t_upload", "t_end"))
        job = Job(event["participant"], event["job"], event["base_version"], *moments)
        by_round[event["round"]].append(job)
    aggregations = [
        Aggregation(round_, times[round_], tuple(jobs))
        for round_, jobs in sorted(by_round.items())
        if round_ in times
    ]
    on = times_on(events)
    return [
        {
            "event": "idle",
            "participant": idle.participant,
            "t_start": begin,
            "t_end": end,
            "waiting_for": idle.waiting_for,
        }
        for idle in idle_times(aggregations, config.participants, rounds=not config.buffered)
        for begin, end in within(idle.t_start, idle.t_end, on.get(idle.participant))
    ]


def _teacher_staleness(row: Row) -> str:
    teacher = row["teacher_version"]
    return number(None if teacher is None else row["round"] - teacher)


_SMALL = Column("small %", score="small", width=9)
_AVERAGE = Column("avg. %", score="small_average", width=8, needs="small_average")
_GLOBAL = Column("global %", score="global", width=10)
_EMA = Column("EMA %", score="global_ema", width=7)
_STALENESS = Column(
    "staleness",
    lambda row: number(row["staleness"], 1),
    width=11,
    meaning="versions that the averaged updates are behind, in the mean",
)
_TEACHER = Column(
    "teacher staleness",
    _teacher_staleness,
    width=19,
    meaning="versions that the teacher is behind",
)
_STEPS = Column("steps", lambda row: number(row["worker_steps"]), 8)
_UP = Column("MB up", lambda row: megabytes(row["bytes_up"]), 8)
_DOWN = Column("MB down", lambda row: megabytes(row["bytes_down"]), 9)

_COUNTS = (
    Column("averaged", lambda row: number(row["contributions"])),
    Column("rejected", lambda row: number(row["rejected"])),
    Column("lost", lambda row: number(row["lost"])),
)

DISTILL = View(
    rounds="rounds",
    accuracy_of="published model",
    accuracy=published,
    headline="published",
    checkpoint="global",
    settings=_settings,
    rows=round_table,
    measure=measure,
    conclude=_conclude,
    lines=Lines(
        awaits=frozenset({("round", None), ("evaluate", "small"), ("evaluate", "global")}),
        columns=(
            *(_SMALL, _AVERAGE, _GLOBAL, _EMA, _STALENESS, _TEACHER),
            *(_STEPS, _UP, _DOWN),
        ),
        notes=("rejected", "lost"),
        ending=_ending,
    ),
    incidents={
        **INCIDENTS,
        "worker_died": lambda e: (
            f"! the distillation server died: {e['reason']}; the federation goes on",
            str(e["reason"]),
        ),
        "worker_restarted": lambda e: (
            f"! the distillation server restarted from its step {e['step']}",
            "",
        ),
    },
    page=Page(
        tiles=_tiles,
        results=_results,
        figures=FIGURES,
        sentence=sentence,
        charts=charts,
        timeline=timeline,
        columns=(
            *(_SMALL, _AVERAGE, _GLOBAL, _EMA),
            Column("server alone %", score="server_alone", needs="server_alone"),
            Column(
                "centralized %",
                score="centralized_large",
                needs="centralized_large",
            ),
            *(_STALENESS, _TEACHER, _STEPS, *_COUNTS, _UP, _DOWN),
        ),
        tables=_measured_against,
    ),
    comparison=Comparison(
        name=lambda config: str(config.get(f"{config.get('mode')}.variant") or config.get("mode")),
        companion_label="small model of the same run",
        companion=lambda events: series(events, "small"),
        scores={
            "small %": lambda m, _: m["final"]["small"],
            "global %": lambda m, _: m["final"]["global"],
            "EMA %": lambda m, _: m["final"]["global_ema"],
            "average of small %": lambda m, _: m["final"].get("small_average"),
            "calibrated %": lambda m, _: m["final"].get("small_calibrated"),
            "server alone %": lambda m, _: m["final"].get("server_alone"),
            "centralized %": lambda m, _: m["final"].get("centralized_large"),
        },
        costs={
            "idle %": lambda m: percent(m["client_idle_fraction"]["total"]),
            "distilling %": lambda m: percent(m["worker_busy_fraction"]),
        },
    ),
)

# Without a distillation server the small model is what the run publishes.
AVERAGE = replace(
    DISTILL,
    accuracy_of="small model",
    checkpoint="small",
    lines=replace(
        DISTILL.lines,
        awaits=DISTILL.lines.awaits - {("evaluate", "global")},
        columns=(_SMALL, _STALENESS, _UP, _DOWN),
        ending=_ending_of_average,
    ),
    page=replace(DISTILL.page, columns=(_SMALL, _STALENESS, *_COUNTS, _UP, _DOWN)),
)
