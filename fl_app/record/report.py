"""The report of a run: figures and one HTML file that needs nothing else, from its events."""

import base64
from pathlib import Path
from typing import Any

from fl_app.record import figures
from fl_app.record.checkpoint import atomic_write
from fl_app.record.metrics import CLOCK_UNITS, Event, measure, round_table, targets_of
from fl_app.record.run_dir import FIGURES, REPORT, RunDirectory, flatten
from fl_app.record.sinks import INCIDENTS, duration, megabytes, number, percent

_CAPTIONS = {
    "accuracy": (
        "Accuracy on the test set over the run's clock. At the right edge: when the mean of three "
        "consecutive evaluations of the published model first reached each target."
    ),
    "gantt": "What each participant and the distillation server did, and for whom they waited.",
    "staleness": (
        "How many versions of the small model had been published since the teacher in use, "
        "weighted by distillation steps."
    ),
}
_ABSENT = {
    "accuracy": "no model was evaluated",
    "gantt": "no participant ended a job",
    "staleness": "neither a distillation step nor an average was recorded",
}


def render(run: RunDirectory) -> Path:
    """Draw figures/*.png and report.html anew from metrics.jsonl and config.json; return its path.

    It works at any moment of a run, and for one that failed at once: what was not recorded is
    named instead of drawn. Raises RunDirectoryError when the files cannot be read or written.
    """
    from jinja2 import Environment

    events, config = run.events(), flatten(run.config())
    clock, targets = config.get("clock", "real"), targets_of(config)
    pictures, absent = [], []
    (run.path / FIGURES).mkdir(exist_ok=True)
    for name, draw in figures.FIGURES.items():
        figure = draw(events, clock, targets)
        path = run.path / FIGURES / f"{name}.png"
        if figure is None:
            absent.append(_ABSENT[name])
            path.unlink(missing_ok=True)  # one of an earlier state would contradict the text
            continue
        image = figures.to_png(figure)
        atomic_write(path, image)
        width = round(90 * figure.get_figwidth())  # pixels; text is then of one size in all
        pictures.append((name, base64.b64encode(image).decode(), width, _CAPTIONS[name]))
    html = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    page = html.render(
        name=run.name,
        status=status(run, events),
        tiles=_tiles(events, config),
        summary=_summary_rows(events, config),
        targets=_target_rows(events, targets, clock),
        pictures=pictures,
        absent=absent,
        incidents=_incidents(events),
        columns=_COLUMNS,
        unit=CLOCK_UNITS[clock],
        rounds=[_cells(row) for row in round_table(events)],
        config=sorted(config.items()),
        environment=sorted(flatten(run.environment()).items()),
    )
    path = run.path / REPORT
    atomic_write(path, page.encode())
    return path


def status(run: RunDirectory, events: list[Event]) -> str:
    """Return how the run ended: completed, failed, stopped, or "not finished" while it has not."""
    ends = [event for event in events if event["event"] in ("finished", "resumed")]
    if ends and ends[-1]["event"] == "finished":
        return str(ends[-1]["status"])
    return str(run.summary().get("status", "not finished"))


def _tiles(events: list[Event], config: dict[str, Any]) -> list[tuple[str, str]]:
    measured = measure(events)
    final = measured["final"]
    clock = config.get("clock", "real")
    return [
        ("final accuracy, published model", _share(final["published"])),
        ("rounds", str(measured["rounds"])),
        (CLOCK_UNITS[clock], number(measured["end_seconds"], 1)),
        ("wall time", duration(measured["wall_seconds"])),
    ]


def _summary_rows(events: list[Event], config: dict[str, Any]) -> list[tuple[str, str]]:
    m = measure(events)
    idle, staleness = m["client_idle_fraction"], m["teacher_staleness"]
    mode = config.get("mode", "")
    rows = [
        ("mode", mode),
        ("variant", config.get(f"{mode}.variant")),
        ("averaging", config.get("averaging")),
        ("data set", config.get("dataset")),
        ("clock", config.get("clock")),
        ("participants", config.get("participants")),
        ("seed", config.get("seed")),
        ("final accuracy, small model", _share(m["final"]["small"])),
        ("final accuracy, global model, raw", _share(m["final"]["global"])),
        ("final accuracy, global model, EMA", _share(m["final"]["global_ema"])),
        ("participants idle: waiting for each other", _share(idle["clients"])),
        ("participants idle: waiting for the server", _share(idle["server"])),
        ("distillation server busy", _share(m["worker_busy_fraction"])),
        ("teacher staleness, mean (versions)", number(staleness["mean"], 2)),
        ("teacher staleness, max (versions)", number(staleness["max"])),
        ("snapshots skipped", m["skipped_snapshots"]),
        ("contributions rejected", m["rejected"]),
        ("contributions lost", m["lost"]),
        ("MB up", megabytes(m["bytes_up"])),
        ("MB down", megabytes(m["bytes_down"])),
    ]
    return [(label, str(value)) for label, value in rows if value not in (None, "", "-")]


def _share(fraction: float | None) -> str:
    return "-" if fraction is None else f"{percent(fraction)} %"


def _target_rows(
    events: list[Event], targets: tuple[float, ...], clock: str
) -> list[tuple[str, str]]:
    return [
        (
            f"{100 * float(target):g} %",
            "not reached" if seconds is None else f"{seconds:.1f} {CLOCK_UNITS[clock]}",
        )
        for target, seconds in measure(events, targets)["time_to_target"].items()
    ]


def _incidents(events: list[Event]) -> list[str]:
    texts = []
    for event in events:
        if event["event"] in INCIDENTS:
            texts.append(INCIDENTS[event["event"]](event)[0].removeprefix("! "))
        elif event["event"] == "finished" and event.get("reason"):
            texts.append(f"{event['status']}: {event['reason']}")
    return texts


_COLUMNS = (
    "round", "", "small %", "global %", "EMA %", "staleness", "teacher", "steps",
    "averaged", "rejected", "lost", "MB up", "MB down",
)  # fmt: skip


def _cells(row: dict[str, Any]) -> list[str]:
    counts = ("teacher_version", "worker_steps", "contributions", "rejected", "lost")
    return [
        str(row["round"]),
        number(row["t"], 1),
        *(percent(row[model]) for model in ("small", "global", "global_ema")),
        number(row["staleness"], 1),
        *(number(row[name]) for name in counts),
        megabytes(row["bytes_up"]),
        megabytes(row["bytes_down"]),
    ]


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
.failed { background: #b04a00; }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0; }
.tile { flex: 1 1 10rem; border: 1px solid #ddd; border-radius: .4rem; padding: .6rem 1rem; }
.tile b { display: block; font-size: 1.5rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .5rem; border-bottom: 1px solid #eee; text-align: left;
         vertical-align: top; }
td:last-child { overflow-wrap: anywhere; }
.rounds { font-size: .85rem; }
.rounds td, .rounds th { text-align: right; white-space: nowrap; padding: .15rem .35rem; }
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
<div><h2>Time to target</h2><table>
{% for target, reached in targets %}
<tr><td>{{ target }}</td><td>{{ reached }}</td></tr>
{% endfor %}
</table>
<h2>Incidents</h2>
{% if incidents %}
<ul>
{% for text in incidents %}
<li>{{ text }}</li>
{% endfor %}
</ul>
{% else %}
<p>None.</p>
{% endif %}
</div>
</div>
<h2>Rounds</h2>
{% if rounds %}
<div class="scroll"><table class="rounds">
<tr>{% for column in columns %}<th>{{ column or unit }}</th>{% endfor %}</tr>
{% for cells in rounds %}
<tr>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% else %}
<p class="note">No round was completed.</p>
{% endif %}
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
