"""What goes wrong at the server while devices work: real processes on this machine, with TLS, node
authentication and the mail router, that are killed or whose disks fill up."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_app.deploy.loopback import Loopback
from fl_app.record.checkpoint import load_tensors
from fl_app.site import SERVER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc"),
]

DEVICES = ["pi-1", "pi-2", "pi-3"]
PATIENCE = 240.0
COMMON = {"clock": "real", "participants": 3, "small-width": 4, "evaluate-examples": 100}
# Windows of about a second.
CONSENSUS = COMMON | {
    "mode": "consensus",
    "consensus.references": "",
    "consensus.window": 60,
    "consensus.steps": 60 * 12,
}
DISTILL = COMMON | {"large-width": 4, "local-steps": 20, "num-server-rounds": 12}
ROUTER, WORKER = "strategies.link.router", "strategies.distillation.worker"
SESSION = "client_apps.session_worker"  # the process of a device in which it works


class Site(Loopback):
    """A deployment whose machines have a disk each, for what they keep of runs."""

    def home(self, name: str) -> Path:
        return self.directory / "homes" / name

    def start(self, name: str) -> None:
        self.environment["EDGE_FL_HOME"] = str(self.home(name))
        super().start(name)

    def kill_program(self, name: str, program: str) -> None:
        """SIGKILL to the one process of a machine that runs `program`."""
        [pid] = self.pids(name, program)
        os.kill(pid, signal.SIGKILL)


class Run:
    """`edge-fl run`, or `edge-fl resume`, on a site, and what it leaves on the server's disk."""

    def __init__(self, site: Site, name: str, values: dict[str, Any] | None = None) -> None:
        self.path = site.home(SERVER) / "runs" / name
        words = ["resume", str(self.path)]
        if values is not None:
            words = ["run", f"name={name}", *(f"{key}={value}" for key, value in values.items())]
        environment = site.environment | {"EDGE_FL_HOME": str(site.home(SERVER))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fl_app.cli", words[0], "--superlink", "edge", *words[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind until now; a line that is being written does not count."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.path / "metrics.jsonl").read_text().split("\n")[:-1]
            return [event for line in lines if (event := json.loads(line))["event"] == kind]
        return []

    def rounds(self) -> list[int]:
        return [event["round"] for event in self.events("round")]

    def wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline, self.end()
            assert self._process.poll() is None, self.end()
            time.sleep(0.1)

    def wait_for_round(self, number: int) -> None:
        self.wait(lambda: max(self.rounds(), default=0) >= number)

    def end(self) -> int:
        """Wait for the command's end; its exit code."""
        try:
            self.output += self._process.communicate(timeout=PATIENCE)[0]
        finally:
            self._process.kill()
        return self._process.returncode

    def checkpoint(self) -> int:
        """The round or window at whose end the last checkpoint was written."""
        _, metadata = load_tensors(self.path / "checkpoints" / "server.safetensors")
        return metadata["window"] if "window" in metadata else metadata["version"]

    def summary(self) -> dict[str, Any]:
        return json.loads((self.path / "summary.json").read_text())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    pytest.importorskip("zenoh")
    running = Site(tmp_path_factory.mktemp("site"), DEVICES, environment={"OMP_NUM_THREADS": "1"})
    with running:
        yield running


@contextlib.contextmanager
def small_disk(place: Path, megabytes: int = 8) -> Iterator[Callable[[], Callable[[], None]]]:
    """A file system of its own at `place`; what is yielded fills it up, and returns what makes
    space again."""
    place.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("to mount a small disk takes the rights of root")
    filler = place / "filler"

    def fill() -> Callable[[], None]:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 12)):
                pass
        return filler.unlink

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_router_that_is_killed_is_replaced(site: Site) -> None:
    run = Run(site, "router", CONSENSUS)
    run.wait_for_round(2)
    site.kill_program(SERVER, ROUTER)
    assert run.end() == 0, run.output
    summary = run.summary()
    assert (summary["status"], summary["rounds"]) == ("completed", 12)
    assert summary["router_restarts"] == 1
    assert "the mail router died and has been started again" in run.output
    assert summary["processes"] == dict.fromkeys(DEVICES, 1), "nobody had to start again"


@pytest.mark.parametrize("values", [CONSENSUS, DISTILL], ids=["consensus", "distill"])
def test_a_server_app_that_is_killed_is_resumed(site: Site, values: dict[str, Any]) -> None:
    """At once, while Flower still waits for the dead one, and the devices still serve it."""
    name = f"server-app-{values.get('mode', 'distill')}"
    run = Run(site, name, values)
    run.wait_for_round(3)
    before = {device: site.pids(device, SESSION) for device in DEVICES}
    assert site.kill_server_app() == 1
    kept = run.checkpoint()
    again = Run(site, name)
    assert again.end() == 0, again.output
    assert run.end() == 1
    assert f"edge-fl resume {run.path} --superlink edge" in run.output
    summary = run.summary()
    assert (summary["status"], summary["rounds"]) == ("completed", 12)
    [resumed] = run.events("resumed")
    assert resumed["round"] == kept >= 2
    for device, pids in before.items():
        assert pids
        assert not set(pids) & set(site.pids(device)), "its process of the run's first part"
    assert summary["processes"] == dict.fromkeys(DEVICES, 1)


def test_a_superlink_that_is_killed_is_started_again(site: Site) -> None:
    """Devices and ServerApp work on over the mail router; the command loses the log, waits, and
    shows the rest of it."""
    run = Run(site, "superlink", CONSENSUS)
    run.wait_for_round(3)
    assert site.kill_superlink() == 1
    assert run.end() == 0, run.output
    assert "SuperLink 'edge' was away and is back" in run.output
    assert run.output.count("final accuracy") == 1
    summary = run.summary()
    assert (summary["status"], summary["rounds"]) == ("completed", 12)
    assert summary["processes"] == dict.fromkeys(DEVICES, 1), "nobody had to start again"


def test_a_server_without_power_is_resumed(site: Site) -> None:
    """Flower's own run is lost with its ServerApp; ours goes on from its checkpoint."""
    run = Run(site, "power", CONSENSUS)
    run.wait_for_round(3)
    site.kill(SERVER)
    kept = run.checkpoint()
    site.start(SERVER)
    assert run.end() == 1
    site.wait_online(DEVICES)
    again = Run(site, "power")
    assert again.end() == 0, again.output
    [resumed] = run.events("resumed")
    assert resumed["round"] == kept >= 2
    assert (run.summary()["status"], run.summary()["rounds"]) == ("completed", 12)


def test_a_distillation_server_that_is_killed_is_started_again(site: Site) -> None:
    run = Run(site, "worker", DISTILL)
    run.wait_for_round(3)
    site.kill_program(SERVER, WORKER)
    assert run.end() == 0, run.output
    summary = run.summary()
    assert (summary["status"], summary["rounds"]) == ("completed", 12)
    assert len(run.events("worker_died")) == len(run.events("worker_restarted")) == 1
    assert summary["rejected"] == summary["lost"] == 0, "devices did not notice"
    assert summary["final"]["global"] > 0


@pytest.mark.parametrize("values", [CONSENSUS, DISTILL], ids=["consensus", "distill"])
def test_a_full_disk_ends_the_run_and_space_resumes_it(site: Site, values: dict[str, Any]) -> None:
    name = f"disk-{values.get('mode', 'distill')}"
    with small_disk(site.home(SERVER) / "runs") as fill:
        run = Run(site, name, values)
        run.wait_for_round(3)
        make_space = fill()
        assert run.end() == 1
        assert "No space left on device; free some" in run.output
        assert f"edge-fl resume {run.path} --superlink edge" in run.output
        make_space()
        kept = run.checkpoint()
        again = Run(site, name)
        assert again.end() == 0, again.output
        [resumed] = run.events("resumed")
        assert resumed["round"] == kept >= 2
        assert (run.summary()["status"], run.summary()["rounds"]) == ("completed", 12)


def test_a_device_with_a_full_disk_is_left_out_until_it_has_space(site: Site) -> None:
    with small_disk(site.home("pi-2") / "nodes") as fill:
        run = Run(site, "disk-device", CONSENSUS | {"consensus.steps": 60 * 30})
        run.wait_for_round(3)
        make_space = fill()
        run.wait(lambda: bool(run.events("rejected")))
        run.wait_for_round(max(run.rounds()) + 1)
        make_space()
        assert run.end() == 0, run.output
        rejected, summary = run.events("rejected"), run.summary()
        assert {event["participant"] for event in rejected} == {"pi-2"}
        assert all("No space left on device" in event["reason"] for event in rejected)
        assert (summary["status"], summary["rounds"]) == ("completed", 30)
        assert 0 < summary["rejected"] <= len(rejected)
        last = run.events("nodes")[-1]
        assert None not in last["accuracy"], "it was back for the last window"
