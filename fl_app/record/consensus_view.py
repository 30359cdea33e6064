"""What the record shows of a run whose nodes agree among themselves."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from fl_app.record.consensus_figures import DIAGNOSIS, FIGURES, REFERENCES
from fl_app.record.consensus_metrics import (
    measure,
    node_names,
    node_series,
    window_table,
    worst_series,
)
from fl_app.record.consensus_page import charts, sentence, timeline
from fl_app.record.figures import ACCURACY
from fl_app.record.formatting import megabytes, number, scientific
from fl_app.record.metrics import Event, Metric, latest, metric_of
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


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    from strategies.consensus.algorithms import ALGORITHMS

    algorithm = config["consensus.algorithm"]
    return {
        "algorithm": algorithm,
        "published": ALGORITHMS[algorithm].published or None if algorithm in ALGORITHMS else None,
        "topology": config["consensus.topology"],
        **attack_settings(config),
    }


def _tiles(measured: Measured, metric: Metric = ACCURACY) -> Pairs:
    final = measured["final"]
    return [
        (f"final {metric.heading}, mean of the nodes", metric.shown(final["node_mean"])),
        ("of the worst and the best node", _range(*_extremes(final, metric), metric)),
        *((REFERENCES[name][0], metric.shown(value)) for name, value in final["reference"].items()),
    ]


def _extremes(final: Mapping[str, Any], metric: Metric) -> tuple[float | None, float | None]:
    """What the worst node has, and the best one."""
    return metric.ranked(final["node_min"], final["node_max"])


def _range(worst: float | None, best: float | None, metric: Metric) -> str:
    alike = metric.plain(worst) == metric.plain(best)
    return metric.shown(best) if alike else f"{metric.plain(worst)} to {metric.shown(best)}"


def _results(m: Measured, metric: Metric = ACCURACY) -> Pairs:
    final = m["final"]
    worst, best = _extremes(final, metric)
    return [
        ("hosts", number(m["hosts"])),
        ("carrier", m["carrier"]),
        ("gradients of a host's nodes", _engine(m)),
        (f"final {metric.name}, mean of the nodes", metric.shown(final["node_mean"])),
        (f"final {metric.name}, worst node", metric.shown(worst)),
        (f"final {metric.name}, best node", metric.shown(best)),
        *_honest(final, metric),
        *_unsettled(m, metric),
        (f"final {metric.name}, {DIAGNOSIS}", metric.shown(final["average"])),
        *(
            (f"final {metric.name}, {REFERENCES[name][0]}", metric.shown(value))
            for name, value in final["reference"].items()
        ),
        ("consensus distance", scientific(m["distance"])),
        ("messages", number(m["messages"])),
        ("MB", megabytes(m["bytes"])),
        ("messages lost", number(m["lost"])),
        ("messages that came twice", number(m["duplicates"])),
        ("mean age of applied mail (local steps)", number(m["stale"], 1)),
        ("mean age of applied mail (s)", number(m["age"], 2)),
        ("messages rejected", str(m["rejected"])),
    ]


def _unsettled(m: Measured, metric: Metric) -> Pairs:
    """How the nodes were before they settled, and what that cost."""
    before, settling = m["unsettled"], m["settling"]
    if before is None:
        return []
    worst, best = _extremes(before, metric)
    return [
        ("before settling, mean of the nodes", metric.shown(before["node_mean"])),
        ("before settling, worst node", metric.shown(worst)),
        ("before settling, best node", metric.shown(best)),
        ("before settling, consensus distance", scientific(before["distance"])),
        ("messages of settling", number(settling["messages"])),
        ("MB of settling", megabytes(settling["bytes"])),
    ]


def _engine(m: Measured) -> str:
    gain = m["engine_gain"]
    measured = f"; measured: {number(gain, 2)} times as fast as sequential" if gain else ""
    return f"{m['engine'] or '-'}{measured}"


def _honest(final: Mapping[str, Any], metric: Metric) -> Pairs:
    honest = final["node_honest"]
    return (
        []
        if honest is None
        else [(f"final {metric.name}, mean of the honest nodes", metric.shown(honest))]
    )


def _age(row: Row) -> str:
    """The age of mail in local steps; in seconds on the real clock, where a step has no length."""
    if row["stale"] is None and row["age"] is not None:
        return f"{row['age']:.1f} s"
    return number(row["stale"], 1)


def _ending(known: Row, metric: Metric = ACCURACY) -> list[str]:
    """What came out, with the references beside it; nothing when no window was evaluated."""
    mean = known.get("mean")
    if mean is None:
        return []
    pairs = [("mean of the nodes", metric.shown(mean))]
    worst, best = metric.ranked(known["min"], known["max"])
    pairs.append(("worst node", metric.shown(worst)))
    pairs.append(("best node", metric.shown(best)))
    pairs.append((DIAGNOSIS, metric.shown(known.get("average"))))
    for name, value in known.get("reference", {}).items():
        lead = f"nodes' mean {metric.lead(mean, value)}{metric.points}"
        apart = "diverged" if value is None else lead
        pairs.append((REFERENCES[name][0], f"{metric.shown(value)}; {apart}"))
    pairs.append(("consensus distance", scientific(known.get("distance"))))
    return final_lines(pairs, metric)


def _nodes(events: Sequence[Event]) -> list[Table]:
    last = latest(events, "nodes")
    wild, metric = last.get("diverged") or (), metric_of(events)
    columns = zip_longest(
        node_names(events),
        last.get("examples") or (),
        last.get("accuracy") or (),
        last.get("loss") or (),
    )
    rows = [
        (
            str(index) if name == str(index) else f"{index}: {name}",
            number(held or None),
            "diverged" if index in wild else metric.plain(accuracy),
            number(loss, 3),
        )
        for index, (name, held, accuracy, loss) in enumerate(columns)
    ]
    head = ("node", "examples", metric.label, "loss")
    return [Table("Nodes", head, rows)] if rows else []


_NEWS = {
    "down": "node {node} went off",
    "up": "node {node} is on again",
    "silent": "node {node} hears nothing from node {peer} any more and goes on without it",
    "returned": "node {node} hears from node {peer} again",
    "cut": "the link between the nodes {node} and {peer} is cut",
    "healed": "the link between the nodes {node} and {peer} is there again",
}


def _incident(event: Event) -> tuple[str, str]:
    return f"! {_NEWS[event['kind']].format(**event)} (at {event['t']:.1f} s)", event["kind"]


_ACCURACIES = (
    Column("node mean %", score="mean", width=13),
    Column("min %", score="min", width=8),
    Column("max %", score="max", width=8),
    Column(
        "(average %)",
        score="average",
        width=13,
        meaning="the averaged model, a diagnosis: no node has it before they settle",
        needs="distance",
    ),
)
_DISTANCE = Column("distance", lambda row: scientific(row["distance"]), 10, needs="distance")
_MESSAGES = Column("messages", lambda row: number(row["messages"]), 10)
_MB = Column("MB", lambda row: megabytes(row["bytes"]), 9)
_LOST = Column("lost", lambda row: number(row["lost"]), 7)
_STALE = Column("stale", _age, 8, "mean age of the mail applied, in local steps (s: seconds)")

CONSENSUS = View(
    rounds="windows",
    accuracy_of="nodes (mean)",
    accuracy=node_series,
    headline="node_mean",
    checkpoint="nodes",
    settings=_settings,
    rows=window_table,
    measure=measure,
    lines=Lines(
        awaits=frozenset({("round", None), ("nodes", None), ("evaluate", "average")}),
        columns=(*_ACCURACIES, _DISTANCE, _MESSAGES, _MB, _LOST, _STALE),
        ending=_ending,
    ),
    incidents={**INCIDENTS, "incident": _incident},
    page=Page(
        tiles=_tiles,
        results=_results,
        figures=FIGURES,
        sentence=sentence,
        charts=charts,
        timeline=timeline,
        columns=(
            *(*_ACCURACIES, _DISTANCE),
            Column("steps", lambda row: number(row["steps"])),
            *(_MESSAGES, _MB, _LOST),
            Column("duplicates", lambda row: number(row["duplicates"])),
            _STALE,
        ),
        tables=_nodes,
        models={"average": DIAGNOSIS},
    ),
    comparison=Comparison(
        name=lambda config: f"{config['consensus.algorithm']}, {config['consensus.topology']}",
        companion_label="worst node of the same run",
        companion=worst_series,
        scores={
            "node mean %": lambda m, _: m["final"]["node_mean"],
            "worst node %": lambda m, metric: _extremes(m["final"], metric)[0],
            "(average %)": lambda m, _: m["final"]["average"],
            "centralized %": lambda m, _: m["final"]["reference"].get("same-steps"),
        },
        costs={
            "distance": lambda m: scientific(m["distance"]),
            "messages": lambda m: number(m["messages"]),
            "MB": lambda m: megabytes(m["bytes"]),
            "lost": lambda m: number(m["lost"]),
        },
    ),
)
