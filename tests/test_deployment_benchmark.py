"""The benchmark of deployments: what it makes of a run's record, and its smallest part for real."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks import deployment, rejoin
from fl_app.record.metrics import Event

ROOT = Path(__file__).resolve().parents[1]
BACK = {"event": "warning", "message": "pi-2 is back with a new process"}


def nodes(*windows: tuple[int, bool]) -> list[Event]:
    """The record of windows, and whether pi-2 has done them."""
    return [
        {"event": "nodes", "round": number, "accuracy": [0.5, 0.5 if done else None, 0.5]}
        for number, done in windows
    ]


BEFORE = nodes((1, True), (2, True))  # it may be at work on window 4


@pytest.mark.parametrize(
    ("after", "renewed", "back"),
    [
        ([], False, False),
        (nodes((3, True), (4, True)), False, False),
        (nodes((3, True), (4, True), (5, True)), False, True),
        (nodes((3, True), (4, False), (5, False)), False, False),
        (nodes((3, True), (4, True), (5, True)), True, False),
        ([BACK, *nodes((3, True), (4, True))], True, False),
        ([BACK, *nodes((3, False), (4, False), (5, True))], True, True),
        ([*nodes((5, True)), BACK, *nodes((6, False))], True, False),
    ],
)
def test_who_is_back_has_done_a_whole_window_since(
    after: list[Event], renewed: bool, back: bool
) -> None:
    assert rejoin.worked_again([*BEFORE, *after], BEFORE, renewed) is back


def test_a_return_before_the_accident_does_not_count() -> None:
    before = [*nodes((1, True)), BACK]
    assert rejoin.returns(before, before) == []
    assert rejoin.returns([*before, *nodes((2, False)), BACK], before) == [3]


def test_windows_beside_their_compute() -> None:
    state = {"steps": 400, "seconds": 25.0, "in_hosts": 23.0, "windows": 2, "messages": 60}
    found = deployment.against_compute(state, nodes=2, step_seconds=0.1)
    assert found["compute_seconds"] == pytest.approx(10.0)
    assert found["window_seconds"] == pytest.approx(12.5)
    assert found["overhead"] == pytest.approx(0.2)
    assert found["gap_seconds"] == pytest.approx(1.0)


def test_aims_are_those_of_the_parts_that_were_measured() -> None:
    exchange = {"10 MB": {"mail_ms": {"median": 40.0}}, "1.2 MB": {"mail_ms": {"median": 4.0}}}
    rejoin = {"power_cut": {"seconds": 80.0}, "session_process": {"seconds": 10.0}}
    rows = deployment.aims({"exchange": exchange, "rejoin": rejoin})
    assert [(row["what"], row["aim"], row["met"]) for row in rows] == [
        ("exchange of 1.2 MB", 5.0, True),
        ("back at work: power_cut", 75.0, False),
        ("back at work: session_process", 15.0, True),
    ]


def test_parts_that_do_not_exist_are_refused() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="latency"):
        deployment._parts("exchange,latency")


@pytest.mark.skipif(shutil.which("ss") is None, reason="counts bytes with ss of iproute2")
def test_exchanges_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cryptography")
    pytest.importorskip("zenoh")
    out = tmp_path / "deployment.json"
    words = ["--only", "exchange", "--sizes", "0.4", "--exchanges", "4", "--out", str(out)]
    assert deployment.main(words) == 0
    found = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == found
    measured = found["exchange"]["0.4 MB"]
    assert measured["exchanges"] == 4
    assert 0 < measured["bytes_ms"]["median"] <= measured["bytes_ms"]["max"]
    # All of it travels, and little else: a header, TLS, a keep-alive now and then.
    assert 1.0 < measured["wire"]["ratio"] < 1.1
    assert [aim["what"] for aim in found["aims"]] == ["exchange of 0.4 MB"]


def test_what_a_model_needs_is_measured_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "experiments.benchmarks.device_model", "lenet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(done.stdout)
    assert found["parameters"] > 10_000
    assert 0 < found["step_seconds"] < found["start_seconds"]
    assert found["peak_mb"] > found["before_model_mb"] > 50
