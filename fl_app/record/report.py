"""The report of a run: figures and one HTML file that needs nothing else, from its events."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_app.provenance import described
from fl_app.record import figures
from fl_app.record.checkpoint import atomic_write
from fl_app.record.formatting import duration, number
from fl_app.record.metrics import CLOCK_UNITS, Event, codes_of, evaluation_of, targets_of
from fl_app.record.modes import view_of
from fl_app.record.run_dir import FIGURES, REPORT, RunDirectory, flatten
from fl_app.record.view import Measured, Pairs, View


def render(run: RunDirectory) -> Path:
    """Draw figures/*.png and report.html anew from metrics.jsonl and config.json; return its path.

    It works at any moment of a run, and for one that failed at once: what was not recorded is
    named instead of drawn. Raises RunDirectoryError when the files cannot be read or written.
    """
    from jinja2 import Environment

    events, config = run.events(), flatten(run.config())
    view, clock, targets = view_of(config), config.get("clock", "real"), targets_of(config)
    pictures, absent = [], []
    (run.path / FIGURES).mkdir(exist_ok=True)
    for name, drawing in view.page.figures.items():
        figure = drawing.draw(events, clock, targets)
        path = run.path / FIGURES / f"{name}.png"
        if figure is None:
            absent.append(drawing.absent)
            path.unlink(missing_ok=True)  # one of an earlier state would contradict the text
            continue
        image = figures.to_png(figure)
        atomic_write(path, image)
        width = round(90 * figure.get_figwidth())  # pixels; text is then of one size in all
        pictures.append((name, base64.b64encode(image).decode(), width, drawing.caption))
    measured, rows = view.measure(events, targets), view.rows(events)
    columns = [
        column
        for column in view.page.columns
        if not column.needs or any(row[column.needs] is not None for row in rows)
    ]
    html = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    page = html.render(
        name=run.name,
        status=status(run, events),
        tiles=_tiles(view, measured, clock),
        summary=[*_summary_rows(view, measured, config), ("code", _code(codes_of(events)))],
        targets=_target_rows(measured, clock),
        pictures=pictures,
        absent=absent,
        incidents=_incidents(view, events),
        called=view.rounds,
        columns=[view.rounds[:-1], CLOCK_UNITS[clock], *(column.title for column in columns)],
        rounds=[
            [str(row["round"]), number(row["t"], 1), *(column.cell(row) for column in columns)]
            for row in rows
        ],
        tables=view.page.tables(events),
        config=sorted(config.items()),
        environment=sorted(flatten(run.environment()).items()),
    )
    path = run.path / REPORT
    atomic_write(path, page.encode())
    return path


def status(run: RunDirectory, events: list[Event]) -> str:
    """Return how the run ended: completed, diverged, failed or stopped; or "not finished"."""
    ends = [event for event in events if event["event"] in ("finished", "resumed")]
    if ends and ends[-1]["event"] == "finished":
        return str(ends[-1]["status"])
    return str(run.summary().get("status", "not finished"))


def _tiles(view: View, measured: Measured, clock: str) -> Pairs:
    return [
        *view.page.tiles(measured),
        (view.rounds, str(measured["rounds"])),
        (CLOCK_UNITS[clock], number(measured["end_seconds"], 1)),
        ("wall time", duration(measured["wall_seconds"])),
    ]


def _summary_rows(view: View, measured: Measured, config: dict[str, Any]) -> Pairs:
    rows = [
        ("mode", config.get("mode")),
        *view.settings(config).items(),
        ("data set", config.get("dataset")),
        ("accuracies on", f"{evaluation_of(config)} images"),
        ("clock", config.get("clock")),
        ("participants", config.get("participants")),
        ("seed", config.get("seed")),
        *view.page.results(measured),
    ]
    return [(label, str(value)) for label, value in rows if value not in (None, "", "-")]


def _code(codes: Sequence[Mapping[str, Any]]) -> str:
    return "; then ".join(map(described, codes)) or described(None)


def _target_rows(measured: Measured, clock: str) -> Pairs:
    return [
        (
            f"{100 * float(target):g} %",
            "not reached" if seconds is None else f"{seconds:.1f} {CLOCK_UNITS[clock]}",
        )
        for target, seconds in measured["time_to_target"].items()
    ]


def _incidents(view: View, events: list[Event]) -> list[str]:
    texts = []
    for event in events:
        if event["event"] in view.incidents:
            texts.append(view.incidents[event["event"]](event)[0].removeprefix("! "))
        elif event["event"] == "finished" and event.get("reason"):
            texts.append(f"{event['status']}: {event['reason']}")
    return texts


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ddd; }
.status { display: inline-block; padding: .1rem .6rem; border-radius: .3rem; color: #fff;
          background: #666; }
.completed { background: #00734f; }
.failed, .diverged { background: #b04a00; }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0; }
.tile { flex: 1 1 10rem; border: 1px solid #ddd; border-radius: .4rem; padding: .6rem 1rem; }
.tile b { display: block; font-size: 1.5rem; white-space: nowrap; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .5rem; border-bottom: 1px solid #eee; text-align: left;
         vertical-align: top; }
td:last-child { overflow-wrap: anywhere; min-width: 6rem; }
.rounds { font-size: .85rem; }
.rounds td, .rounds th { text-align: right; white-space: nowrap; padding: .15rem .35rem;
                         min-width: 0; }
.scroll { max-height: 34rem; overflow: auto; border: 1px solid #ddd; }
.scroll th { position: sticky; top: 0; background: #f6f6f6; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .9rem; }
.note { background: #fff5e6; border-left: 4px solid #e69f00; padding: .5rem 1rem; }
@media print { .scroll { max-height: none; overflow: visible; } }
</style>
</head>
<body>
<h1>{{ name }}</h1>
<p><span class="status {{ status }}">{{ status }}</span></p>
<div class="tiles">
{% for label, value in tiles %}
<div class="tile"><b>{{ value }}</b>{{ label }}</div>
{% endfor %}
</div>
{% if absent %}
<p class="note">Not drawn, because {{ absent | join("; ") }}.</p>
{% endif %}
{% for name, image, width, caption in pictures %}
<figure><img alt="{{ name }}" width="{{ width }}" src="data:image/png;base64,{{ image }}">
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
<div class="columns">
<div><h2>Summary</h2><table>
{% for label, value in summary %}
<tr><td>{{ label }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table></div>
<div>
{% if targets %}
<h2>Time to target</h2><table>
{% for target, reached in targets %}
<tr><td>{{ target }}</td><td>{{ reached }}</td></tr>
{% endfor %}
</table>
{% endif %}
<h2>Incidents</h2>
{% if incidents %}
<ul{% if incidents | length > 20 %} class="scroll"{% endif %}>
{% for text in incidents %}
<li>{{ text }}</li>
{% endfor %}
</ul>
{% else %}
<p>None.</p>
{% endif %}
</div>
</div>
<h2>{{ called | capitalize }}</h2>
{% if rounds %}
<div class="scroll"><table class="rounds">
<tr>{% for column in columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for cells in rounds %}
<tr>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% else %}
<p class="note">No {{ called[:-1] }} was completed.</p>
{% endif %}
{% for table in tables %}
<h2>{{ table.title }}</h2>
<div class="scroll"><table class="rounds">
<tr>{% for column in table.columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for cells in table.rows %}
<tr>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endfor %}
<div class="columns">
<div><h2>Configuration</h2><table>
{% for key, value in config %}
<tr><td>{{ key }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table></div>
<div><h2>Environment</h2><table>
{% for key, value in environment %}
<tr><td>{{ key }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table></div>
</div>
</body>
</html>
"""
