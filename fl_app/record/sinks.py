"""Listeners of a run's events: the live console, TensorBoard, Weights & Biases."""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from fl_app.errors import RunDirectoryError
from fl_app.record.metrics import CLOCK_UNITS, Event, round_table
from fl_app.record.run_dir import RunDirectory, flatten

Listener = Callable[[Event], None]

# Rounds that a line waits for its evaluation, which the distillation server may delay. On the
# virtual clock every evaluation is certain to come, as the work proceeds.
_PATIENCE = {"real": 2, "virtual": sys.maxsize}
_REPEATS = 3  # lines for incidents of one kind and reason; all of them are in metrics.jsonl


def _print(line: str) -> None:
    # Flushed, because a pipe would otherwise hold the lines back until the run is over.
    print(line, file=sys.stdout, flush=True)


def console_listener(
    *, clock: str, rounds: int, published: str = "global", write: Callable[[str], None] = _print
) -> Listener:
    """Return a listener that writes one aligned line a round, and a line for each incident.

    A round's line is written once it was averaged and its small and `published` models ("global",
    or "small" in a run without a distillation server) were evaluated; on the real clock two rounds
    later without that; and at the end of the run. `clock` is "virtual" or "real".
    """
    seen: list[Event] = []  # round and evaluate events that have no line yet
    printed = 0
    repeats: Counter[tuple[str, str]] = Counter()
    header_written = False

    def show(rows: list[dict[str, Any]]) -> None:
        nonlocal printed, header_written
        for row in rows:
            if not header_written:
                write(header(clock))
                header_written = True
            write(round_line(row, rounds))
            printed = row["round"]
        seen[:] = [event for event in seen if event["round"] > printed]

    def listen(event: Event) -> None:
        nonlocal printed
        kind = event["event"]
        if kind == "resumed":
            printed = event.get("round", 0)
            seen.clear()
        if kind in ("round", "evaluate") and event["round"] > printed:
            seen.append(event)
            rows = round_table(seen)
            averaged = [e["round"] for e in seen if e["event"] == "round"]
            newest = max(averaged, default=0)
            complete = max(
                (r["round"] for r in rows if r["round"] in averaged and _evaluated(r, published)),
                default=0,
            )
            show([row for row in rows if row["round"] <= max(complete, newest - _PATIENCE[clock])])
        elif kind == "finished":
            show(round_table(seen))
        if kind in INCIDENTS:
            text, key = INCIDENTS[kind](event)
            repeats[kind, key] += 1
            if repeats[kind, key] < _REPEATS:
                write(text)
            elif repeats[kind, key] == _REPEATS:
                write(f"{text} (again; further ones are only in metrics.jsonl)")

    return listen


def _evaluated(row: dict[str, Any], published: str) -> bool:
    return row["small"] is not None and row[published] is not None


# How an incident reads, and what makes two of them repetitions of each other.
INCIDENTS: dict[str, Callable[[Event], tuple[str, str]]] = {
    "rejected": lambda e: (
        f"! rejected participant {e['participant']} in round {e['round']}: {e['reason']}",
        str(e["reason"]),
    ),
    "worker_died": lambda e: (
        f"! the distillation server died: {e['reason']}; the federation goes on",
        str(e["reason"]),
    ),
    "worker_restarted": lambda e: (
        f"! the distillation server restarted from its step {e['step']}",
        "",
    ),
    "resumed": lambda e: (f"! resumed after round {e.get('round', 0)}", ""),
    "growth": lambda e: (
        f"! the global model {'grew' if e['accepted'] else 'stays as it is: it would grow'} from "
        f"version {e['round']} (validation accuracy {percent(e['accuracy_before'])} -> "
        f"{percent(e['accuracy_after'])} %)",
        "",
    ),
    "warning": lambda e: (f"! warning: {e['message']}", str(e["message"])),
}

_COLUMNS = (
    ("round", 9), ("", 11), ("small %", 9), ("global %", 10), ("EMA %", 7), ("staleness", 11),
    ("teacher lag", 13), ("steps", 8), ("MB up", 8), ("MB down", 9), ("ETA", 9),
)  # fmt: skip


def header(clock: str) -> str:
    """Return the heading of the lines of `round_line`."""
    return "".join((title or CLOCK_UNITS[clock]).rjust(width) for title, width in _COLUMNS)


def round_line(row: dict[str, Any], rounds: int) -> str:
    """Return the console's line for a row of `metrics.round_table`; "-" where nothing is known.

    "staleness" is the mean age of the contributions that were averaged, "teacher lag" the age of
    the snapshot that the distillation server learns from, both in versions of the small model.
    """
    teacher = row["teacher_version"]
    cells = (
        f"{row['round']}/{rounds}",
        number(row["t"], 1),
        percent(row["small"]),
        percent(row["global"]),
        percent(row["global_ema"]),
        number(row["staleness"], 1),
        number(None if teacher is None else row["round"] - teacher),
        number(row["worker_steps"]),
        megabytes(row["bytes_up"]),
        megabytes(row["bytes_down"]),
        duration(row["eta"]),
    )
    notes = [f"{row[name]} {name}" for name in ("rejected", "lost") if row[name]]
    line = "".join(cell.rjust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))
    return line + (f"  ({', '.join(notes)})" if notes else "")


def number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def megabytes(count: float | None) -> str:
    return "-" if count is None else f"{count / 1e6:.1f}"


def duration(seconds: float | None) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def scalars(event: Event) -> dict[str, float]:
    """Return what an event adds to a dashboard: {"accuracy/small": 0.41, "round/bytes_up": ...}."""
    if event["event"] == "evaluate":
        model = event["model"]
        values = {
            f"accuracy/{model}": event["accuracy"],
            f"accuracy/{model}_ema": event.get("accuracy_ema"),
            f"loss/{model}": event.get("loss"),
        }
    elif event["event"] == "round":
        values = {
            f"round/{k}": v for k, v in event.items() if k not in ("event", "round", "t_wall")
        }
    else:
        return {}
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


def tensorboard_listener(run: RunDirectory) -> Listener:
    """Return a listener that writes TensorBoard scalars, by round, to <run>/tensorboard.

    Raises RunDirectoryError with the way out when TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise RunDirectoryError(_missing("tensorboard")) from error
    writer = SummaryWriter(str(run.path / "tensorboard"))

    def listen(event: Event) -> None:
        for name, value in scalars(event).items():
            writer.add_scalar(name, value, event["round"])
        if event["event"] in ("round", "finished"):
            writer.flush()

    return listen


def wandb_listener(run: RunDirectory) -> Listener:
    """Return a listener that logs to a W&B run named like `run` in the project "edge-fl".

    Account, mode and server follow W&B's own environment variables (WANDB_MODE=offline ...).
    Raises RunDirectoryError with the way out when W&B is not installed.
    """
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RunDirectoryError(_missing("wandb")) from error
    session = wandb.init(
        project="edge-fl", name=run.name, dir=str(run.path), config=flatten(run.config())
    )
    # W&B drops what is logged for an earlier step, and evaluations arrive late: round is the axis.
    session.define_metric("*", step_metric="index")

    def listen(event: Event) -> None:
        if values := scalars(event):
            session.log({**values, "index": event["round"]})
        elif event["event"] == "finished":
            session.finish(exit_code=0 if event["status"] == "completed" else 1)

    return listen


def _missing(extra: str) -> str:
    return f"sinks={extra!r} needs an optional package: pip install 'edge-fl[{extra}]'"


# The optional sinks by the names that the configuration knows.
SINKS: dict[str, Callable[[RunDirectory], Listener]] = {
    "tensorboard": tensorboard_listener,
    "wandb": wandb_listener,
}
