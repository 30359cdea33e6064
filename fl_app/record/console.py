"""The live console: a line a round, a line for each incident, what came out at the end."""

from collections import Counter
from collections.abc import Callable, Sequence

from fl_app.record.formatting import duration, number
from fl_app.record.metrics import CLOCK_UNITS, Event, Metric, metric_of
from fl_app.record.progress import Progress
from fl_app.record.view import Column, Row, View
from fl_app.streams import say

Listener = Callable[[Event], None]

_PLACE, _TIME, _VALUE, _ETA = 10, 11, 11, 9  # characters of a line
_REPEATS = 3  # lines for incidents of one kind and reason; all of them are in metrics.jsonl


def console_listener(
    view: View,
    *,
    clock: str,
    rounds: int,
    write: Callable[[str], None] = say,
    past: Sequence[Event] = (),
) -> Listener:
    """Return a listener that writes one aligned line a round, and a line for each incident.

    A round's line is written when the round is done (see `Progress`), or else at the end of the
    run, before the view's last lines. `clock` is "virtual" or "real". past: what a resumed run has
    recorded before.
    """
    far = Progress(view, clock, rounds)
    kinds = {kind for kind, _ in view.lines.awaits}
    seen: list[Event] = []  # what belongs to rounds that have no line yet
    known: Row = {}  # the last known value of everything in a row
    repeats: Counter[tuple[str, str]] = Counter()
    columns: list[Column] = []  # known from the first row on

    def learn(row: Row) -> None:
        known.update((key, value) for key, value in row.items() if value is not None)

    metric = metric_of(past)

    for row in view.rows(past):
        learn(row)

    def show(rows: Sequence[Row]) -> None:
        for row in rows:
            if not columns:
                everything = view.lines.columns
                columns[:] = [c for c in everything if not c.needs or row[c.needs] is not None]
                meanings = [f"{c.heading(metric)}: {c.meaning}" for c in columns if c.meaning]
                if meanings:
                    write("; ".join(meanings))
                write(_header(view, columns, clock, rounds, metric))
            write(_line(view, columns, row, rounds, metric, far.left))
            learn(row)
        seen[:] = [event for event in seen if event["round"] > far.done]

    def listen(event: Event) -> None:
        nonlocal metric
        kind, before = event["event"], far.done
        far.take(event)
        if kind == "run_started":
            metric = metric_of([event])
        if kind == "resumed":
            seen.clear()
        if kind in kinds and event["round"] > before:
            seen.append(event)
            if far.done > before:
                show([row for row in view.rows(seen) if row["round"] <= far.done])
        elif kind == "evaluate" and event["round"] <= before:  # it came after its line
            learn(view.rows([event])[0])
        elif kind == "finished":
            show(view.rows(seen))
            # What is known of a run that diverged is of before, and not what came out.
            told = [f"! {event['reason']}"] if event["status"] == "diverged" else None
            for line in told or view.lines.ending(known, metric):
                write(line)
        if kind in view.incidents:
            text, key = view.incidents[kind](event)
            repeats[kind, key] += 1
            if repeats[kind, key] < _REPEATS:
                write(text)
            elif repeats[kind, key] == _REPEATS:
                write(f"{text} (again; further ones are only in metrics.jsonl)")

    return listen


def _header(view: View, columns: Sequence[Column], clock: str, rounds: int, metric: Metric) -> str:
    titles = (column.heading(metric) for column in columns)
    return _aligned([view.rounds[:-1], CLOCK_UNITS[clock], *titles, "ETA"], columns, rounds, metric)


def _line(
    view: View,
    columns: Sequence[Column],
    row: Row,
    rounds: int,
    metric: Metric,
    left: float | None,
) -> str:
    """The line of a row of `view.rows`, with the seconds left; "-" where nothing is known."""
    place = "settled" if row.get("settled") else f"{row['round']}/{rounds}"
    cells = (column.text(row, metric) for column in columns)
    cells = [place, number(row["t"], 1), *cells, duration(left)]
    notes = [f"{row[name]} {name}" for name in view.lines.notes if row[name]]
    line = _aligned(cells, columns, rounds, metric)
    return line + (f"  ({', '.join(notes)})" if notes else "")


def _aligned(cells: Sequence[str], columns: Sequence[Column], rounds: int, metric: Metric) -> str:
    """The cells in columns; one that is too wide moves the others and touches none."""
    place = max(_PLACE, len(f"{rounds}/{rounds}"))
    widths = [place, _TIME, *(_width(column, metric) for column in columns), _ETA]
    return "".join(f" {cell}".rjust(w) for cell, w in zip(cells, widths, strict=True))[1:]


def _width(column: Column, metric: Metric) -> int:
    """A value that is no percentage has three digits behind its point, and more before it."""
    return max(column.width, _VALUE) if column.score and metric.unit != "%" else column.width
