"""What the record shows of a run, as data: every mode has one `View` (see `modes`).

Console, report, comparison and books know views, not modes. All functions in a view are pure: they
take the events that count (see `metrics.effective`) or what was computed from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fl_app.record.metrics import Event, Metric, Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fl_app.config import RunConfig

Row = dict[str, Any]  # a round as a table shows it; a value that was not recorded is None
Measured = dict[str, Any]  # what a view's `measure` returns
Pairs = list[tuple[str, str]]  # label and value


@dataclass(frozen=True)
class Column:
    """A column of the console's lines or of the report's table of rounds.

    width: characters in the console; the report lays out by itself. meaning: said above the
    console's heading. needs: the value of a row without which there is no such column, as not every
    run records it: in the first row for the console, in any for the report. score: the value of a
    row that is the run's main metric, shown in place of `cell`; a "%" in the title becomes its
    unit.
    """

    title: str
    cell: Callable[[Row], str] = lambda _: "-"
    width: int = 0
    meaning: str = ""
    needs: str = ""
    score: str = ""

    def heading(self, metric: Metric) -> str:
        return self.title.replace(" %", metric.titled("")) if self.score else self.title

    def text(self, row: Row, metric: Metric) -> str:
        return metric.plain(row[self.score]) if self.score else self.cell(row)


@dataclass(frozen=True)
class Lines:
    """The live console: a line a round, between its number and clock and its ETA.

    awaits: the events, as (kind, model), that complete a round's line.
    ending: the last lines, from the last known values of a row.
    notes: fields of a row that are told in brackets where they are not zero.
    """

    awaits: frozenset[tuple[str, str | None]]
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()
    ending: Callable[[Row, Metric], list[str]] = lambda _row, _metric: []


@dataclass(frozen=True)
class Drawing:
    """A figure: a function of (events, clock, targets), None when nothing of it was recorded."""

    draw: Callable[[Sequence[Event], str, Sequence[float]], Figure | None]
    absent: str  # why there is none, as the report puts it


@dataclass(frozen=True)
class Table:
    """A table that ends the report."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True)
class Line:
    """A line of a chart: (t, value) with gaps where the value is None.

    colour: a name of the page's palette. dash: pixels of strokes and gaps, () for none.
    """

    label: str
    points: Sequence[tuple[float, float | None]]
    colour: str
    dash: tuple[int, ...] = ()
    width: float = 1.5


@dataclass(frozen=True)
class Chart:
    """Lines over the run's clock, drawn by the page. metric: of the run's main metric, in its unit.

    band: the labels of two lines between which it is filled. marks: moments with what happened.
    """

    title: str
    lines: tuple[Line, ...]
    metric: bool = False
    unit: str = ""
    log: bool = False
    band: tuple[str, str] = ()  # type: ignore[assignment]
    marks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Bar:
    """What a lane is busy with from start to end, in seconds of the run's clock; kind: of
    `Timeline.kinds`; note: what is told when it is pointed at."""

    lane: int
    start: float
    end: float
    kind: str
    note: str = ""


@dataclass(frozen=True)
class Timeline:
    """Who is busy when: lanes by name, and the colour of each kind of bar."""

    lanes: tuple[str, ...]
    bars: tuple[Bar, ...]
    kinds: Mapping[str, str]


@dataclass(frozen=True)
class Page:
    """The report: what is its own of tiles, summary, figures by file name, and tables.

    sentence: what came out, in words, of what was measured. charts, timeline: what the page draws.
    models: what evaluated models are called, where that is not their name in the events.
    """

    tiles: Callable[[Measured, Metric], Pairs]
    results: Callable[[Measured, Metric], Pairs]
    figures: Mapping[str, Drawing]
    columns: tuple[Column, ...]
    sentence: Callable[[Measured, Metric], str]
    charts: Callable[[Sequence[Event]], list[Chart]]
    timeline: Callable[[Sequence[Event]], Timeline | None] = lambda _: None
    tables: Callable[[Sequence[Event]], list[Table]] = lambda _: []
    models: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side: what they are called, and their columns for results and for costs.

    `companion` is a second accuracy, drawn dashed beside the run's own.
    """

    name: Callable[[Mapping[str, Any]], str]
    companion_label: str
    companion: Callable[[Sequence[Event]], list[Point]]
    scores: Mapping[str, Callable[[Measured, Metric], float | None]]
    costs: Mapping[str, Callable[[Measured], str]]


@dataclass(frozen=True)
class View:
    """All that the record has to know of a mode.

    rounds: what its rounds are called, in the plural.
    accuracy_of, accuracy: whose accuracy stands for the run, and its evaluations by time.
    headline: the name of the last of them in measure's "final".
    checkpoint: the one whose metadata has the "checksum" of the result.
    settings: what a flat configuration says of the system, by the names of summary.json.
    rows: the events by round; measure: the part of summary.json that follows from the events.
    incidents: how an event reads, and what makes two of them repetitions of each other, by kind.
    conclude: the events that can be told only at the end of a run.
    """

    rounds: str
    accuracy_of: str
    accuracy: Callable[[Sequence[Event]], list[Point]]
    headline: str
    checkpoint: str
    settings: Callable[[Mapping[str, Any]], dict[str, Any]]
    rows: Callable[[Iterable[Event]], list[Row]]
    measure: Callable[[Sequence[Event], Sequence[float]], Measured]
    lines: Lines
    page: Page
    comparison: Comparison
    incidents: Mapping[str, Callable[[Event], tuple[str, str]]] = field(default_factory=dict)
    conclude: Callable[[Sequence[Event], RunConfig], list[Event]] = lambda _events, _config: []


def final_lines(pairs: Pairs, metric: Metric) -> list[str]:
    """What a run of this metric came to, as the console's last lines."""
    width = max(len(label) for label, _ in pairs)
    return [f"final {metric.heading}"] + [f"  {label:{width}}  {value}" for label, value in pairs]


INCIDENTS: dict[str, Callable[[Event], tuple[str, str]]] = {  # of every mode
    "rejected": lambda e: (
        f"! rejected participant {e['participant']} in round {e['round']}: {e['reason']}",
        str(e["reason"]),
    ),
    "resumed": lambda e: (f"! resumed after round {e.get('round', 0)}", ""),
    "warning": lambda e: (f"! warning: {e['message']}", str(e["message"])),
}


def attack_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Who lied in the run and how, of every mode; nothing of one in which nobody did."""
    names = ("attack", "attackers", "attack-scale")
    return {n.replace("-", "_"): config[n] for n in names} if config.get("attackers") else {}
