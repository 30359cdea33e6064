"""`edge-fl devices SITE`: who is there, and what each device told and did in its last run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_app.deploy.directory import server_of, settings_of
from fl_app.deploy.nodes import Node, list_nodes
from fl_app.record.metrics import Event, latest, of_kind
from fl_app.record.run_dir import RunDirectory, list_runs
from strategies.condition import MEGABYTE
from strategies.errors import ConfigError, EdgeFlError, RunDirectoryError
from strategies.paths import runs_root
from strategies.site import SERVER, read_site

COLUMNS = (
    *("device", "state", "data", "processor", "flwr", "torch"),
    *("load", "memory free", "disk free", "last round", "of the run"),
)


def show(directory: Path, say: Callable[[str], None] = print) -> None:
    """Print a line a device of a deployment, or of the server's folder of one. What the devices
    told is of the beginning of their last run among those in $EDGE_FL_HOME; a SuperLink that does
    not answer leaves their state open. Raises ConfigError for what is neither."""
    server = server_of(directory)
    settings_of(server)
    if read_site(server).name != SERVER:
        raise ConfigError(f"{server} is the folder of a device; name the server's, or the site")
    names = read_site(server).devices
    try:
        states = _states(list_nodes(server))
    except EdgeFlError as error:
        say(f"edge-fl: {error}")
        states = {}
    rows = table(names, states, list_runs(runs_root()))
    widths = [max(len(row[i]) for row in (COLUMNS, *rows)) for i in range(len(COLUMNS))]
    for row in (COLUMNS, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say("  ".join(cells).rstrip())


def table(
    names: Sequence[str], states: Mapping[str, str], runs: Iterable[RunDirectory]
) -> list[tuple[str, ...]]:
    """A row of COLUMNS for each device; "-" for what is not known."""
    last = _last_runs(names, runs)
    rows = []
    for name in names:
        told, round_, run = last.get(name, ({}, None, "-"))
        cells = [name, states.get(name, "-")]
        cells += [str(told.get(key, "-")) for key in ("data", "machine", "flwr", "torch")]
        cells += [_number(told, "load", 1, "")]
        cells += [_number(told, key, MEGABYTE, " MB") for key in ("memory", "disk")]
        rows.append((*cells, "-" if round_ is None else str(round_), run))
    return rows


def _states(nodes: Iterable[Node]) -> dict[str, str]:
    return {node.name: node.status for node in nodes if node.status != "unregistered"}


def _number(told: Mapping[str, Any], name: str, unit: int, sign: str) -> str:
    value = told.get(name, -1.0) / unit
    return "-" if value < 0 else f"{value:.0f}{sign}" if sign else f"{value:.1f}"


def _last_runs(
    names: Sequence[str], runs: Iterable[RunDirectory]
) -> dict[str, tuple[Mapping[str, Any], int | None, str]]:
    """{device: (what it told, the last round in which it did something, the run)}."""
    found: dict[str, tuple[Mapping[str, Any], int | None, str]] = {}
    for run in reversed(list(runs)):
        if len(found) == len(names):
            break
        try:
            events = run.events()
        except (RunDirectoryError, OSError, ValueError):
            continue  # `edge-fl runs` says what is wrong with it
        devices = latest(events, "devices").get("devices", {})
        for name, told in devices.items():
            if name in names and name not in found:
                found[name] = told, _last_round(events, told["participant"]), run.name
    return found


def _last_round(events: Sequence[Event], participant: int) -> int | None:
    """The last round of a job of this participant, or the last window of its node."""
    jobs = [e["round"] for e in of_kind(events, "job") if e["participant"] == participant]
    nodes = of_kind(events, "nodes")
    windows = [e["round"] for e in nodes if e["accuracy"][participant] is not None]
    return max((*jobs, *windows), default=None)
