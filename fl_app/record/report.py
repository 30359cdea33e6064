"""The report of a run: figures, and the page of the run frozen into one HTML file."""

from pathlib import Path

from fl_app.record import figures
from fl_app.record.metrics import targets_of
from fl_app.record.modes import view_of
from fl_app.record.page.html import page
from fl_app.record.page.snapshot import snapshot
from fl_app.record.run_dir import FIGURES, REPORT, RunDirectory, flatten
from strategies.checkpoint import atomic_write


def render(run: RunDirectory) -> Path:
    """Draw figures/*.png and report.html anew from metrics.jsonl and config.json; return its path.

    It works at any moment of a run, and for one that failed at once: what was not recorded is
    named instead of drawn. Raises RunDirectoryError when the files cannot be read or written.
    """
    events, config = run.events(), flatten(run.config())
    clock, targets = config.get("clock", "real"), targets_of(config)
    absent = []
    (run.path / FIGURES).mkdir(exist_ok=True)
    for name, drawing in view_of(config).page.figures.items():
        with figures.for_print():
            figure = drawing.draw(events, clock, targets)
            picture = figure and figures.to_png(figure, figures.DOTS)
        path = run.path / FIGURES / f"{name}.png"
        if picture is None:
            absent.append(f"{name} ({drawing.absent})")
            path.unlink(missing_ok=True)  # one of an earlier state would contradict the page
        else:
            atomic_write(path, picture)
    path = run.path / REPORT
    path.unlink(missing_ok=True)  # nor may the report, where there can be no new one
    atomic_write(path, page(snapshot(run, events) | {"absent": absent}).encode())
    return path
