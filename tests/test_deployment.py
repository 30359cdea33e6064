"""A small deployment from end to end: TLS, authenticated devices, both systems, and a kill."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_app.deploy.loopback import Loopback
from fl_app.launch.supervise import descendants
from fl_app.record.metrics import of_kind
from fl_app.record.run_dir import METRICS, RunDirectory
from strategies.site import SERVER

DEVICES = ["pi-1", "pi-2", "pi-3"]
COMMAND = [sys.executable, "-m", "fl_app.cli", "run"]
SETTINGS = ["clock=real", "participants=3", "evaluate-examples=100"]
DOCS = Path(__file__).resolve().parents[1] / "docs"
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    pytest.importorskip("cryptography")
    pytest.importorskip("zenoh")
    place = tmp_path_factory.mktemp("deployment")
    # What Flower would start for every message, and a slow device would start too late.
    (place / "flwr-clientapp").write_text("#!/bin/sh\nexit 1\n")
    (place / "flwr-clientapp").chmod(0o755)
    programs = f"{place}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"EDGE_FL_HOME": str(place / "home"), "OMP_NUM_THREADS": "1", "PATH": programs}
    with Loopback(place, DEVICES, environment=environment, timeout=300.0) as running:
        yield running
        pids = [pid for name in (SERVER, *DEVICES) for pid in running.pids(name)]
        assert pids
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def start(site: Loopback, name: str, *words: str) -> tuple[subprocess.Popen[str], RunDirectory]:
    """`edge-fl run` as a user types it, and where its record will be."""
    process = subprocess.Popen(
        [*COMMAND, "--superlink", site.connection, f"name={name}", *SETTINGS, *words],
        env=site.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return process, RunDirectory(Path(site.environment["EDGE_FL_HOME"], "runs", name))


def finish(process: subprocess.Popen[str], run: RunDirectory) -> str:
    """What it printed, of a run that has completed."""
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert run.summary()["status"] == "completed"
    return output


def shown(page: str, holds: str, path: Path) -> Path:
    """A file with the code of a page that has these words in it."""
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
    path.write_text(next(block for block in blocks if holds in block))
    return path


def test_consensus_outlives_the_process_of_a_device(site: Loopback) -> None:
    process, run = start(
        site,
        "consensus",
        *("mode=consensus", "consensus.references=", "consensus.window=150", "small-width=4"),
        "consensus.steps=1200",
    )

    def windows() -> list[dict]:
        return of_kind(run.events(), "nodes") if (run.path / METRICS).exists() else []

    site.wait_for("pi-2", "does a window", lambda: len(windows()) > 0 or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    for pid in site.pids("pi-2", "client_apps.session_worker"):
        os.kill(pid, signal.SIGKILL)
    assert site.kill_client_app("pi-3")  # Flower's own, in which nothing is done
    output = finish(process, run)
    assert "pi-2 is back with a new process" in output
    assert "final accuracy" in output
    summary = run.summary()
    assert summary["carrier"] == "zenoh"
    assert summary["processes"] == {"pi-1": 1, "pi-2": 2, "pi-3": 1}
    assert summary["messages"] > 0
    assert summary["router_restarts"] == 0
    assert None not in windows()[-1]["accuracy"], "it has worked again"


def test_distill_needs_one_process_a_device(site: Loopback, tmp_path: Path) -> None:
    """Of a task and an averaging rule of somebody's own, whose files travel in the bundle."""
    task = shown("tasks.md", "class Ecg", tmp_path / "sensor.py")
    rule = shown("extend.md", "class Damped", tmp_path / "mine.py")
    process, run = start(
        site,
        "distill",
        *("mode=distill", "num-server-rounds=2", "local-steps=5"),
        *(f"task={task}:Ecg", f"averaging={rule}:Damped:beta=0.2"),
    )
    output = finish(process, run)
    assert "every message to a device starts a process there" not in output
    summary = run.summary()
    assert summary["rounds"] == 2
    assert summary["processes"] == {"pi-1": 1, "pi-2": 1, "pi-3": 1}
    assert (summary["rejected"], summary["lost"]) == (0, 0)
    assert summary["bytes_up"] > 0
    assert summary["final"]["global"] is not None


def test_members_of_a_secure_sum_are_who_their_certificates_say(site: Loopback) -> None:
    """For each other, and for the server, which would else tell all of one whom they refuse."""
    words = ("mode=average", "num-server-rounds=2", "local-steps=5", "secure-aggregation=true")
    process, run = start(site, "sums", *words)
    finish(process, run)
    summary = run.summary()
    assert (summary["rounds"], summary["rejected"], summary["lost"]) == (2, 0, 0)


DEMO = [sys.executable, "-m", "fl_app.cli", "deploy", "demo"]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"EDGE_FL_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(DEMO, env=environment, stdout=pipe, text=True) as process:
        yield process
        process.kill()


@pytest.mark.slow
def test_the_demo(demo: subprocess.Popen[str], tmp_path: Path) -> None:
    """About four minutes: a device's power is cut, and Flower lets it in again after one."""
    output, _ = demo.communicate()
    assert demo.returncode == 0, output
    assert "pi-2 is back" in output
    summaries = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/summary.json")]
    assert {summary["mode"] for summary in summaries} == {"consensus", "distill"}
    assert {summary["status"] for summary in summaries} == {"completed"}
    assert list(tmp_path.glob("edge-fl-*")) == [], "no folder is left"


@pytest.mark.slow
def test_the_demo_ends_what_it_started_on_ctrl_c(demo: subprocess.Popen[str]) -> None:
    assert demo.stdout is not None
    for line in demo.stdout:
        if "on line" in line:
            break
    below = descendants(demo.pid)
    assert len(below) > 8
    demo.send_signal(signal.SIGINT)
    demo.stdout.read()
    assert demo.wait() == 130
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]
