"""A table of what was tried, with dates and times; a deployment and a network for each trial."""

import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.edge.hub import Hub
from tests.edge.machines import PLACE, need, network

_ROWS: list[str] = []


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Path:
    """A new folder; what is in it, the logs above all, is there until the next time."""
    place = PLACE / "last" / request.node.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


@pytest.fixture
def hub(place: Path) -> Iterator[Hub]:
    """A server on this machine, and an ordinary device."""
    pytest.importorskip("cryptography")
    pytest.importorskip("zenoh")
    need("ip")
    with network(), Hub(place / "hub") as running:
        yield running


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str, float], None]:
    """Adds a row to the table: what, and how many seconds it took."""
    trial = request.path.stem.removeprefix("test_")

    def add(what: str, seconds: float) -> None:
        _ROWS.append(f"| {trial} | {what} | {seconds:.1f} | {datetime.now():%Y-%m-%d %H:%M} |")
        print(_ROWS[-1], flush=True)

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _ROWS:
        lines = ["| trial | what | seconds | when |", "| --- | --- | ---: | --- |", *_ROWS]
        terminalreporter.write_line("\n".join(lines))
        PLACE.mkdir(parents=True, exist_ok=True)
        (PLACE / f"table-{time.strftime('%Y%m%d-%H%M%S')}.md").write_text("\n".join(lines) + "\n")
