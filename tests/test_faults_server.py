"""What goes wrong at the server while devices work: real processes on this machine, with TLS, node
authentication and the mail router, that are killed or whose disks fill up."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from strategies.site import SERVER
from tests.deployed import WORKER, Run, Site

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc"),
]

DEVICES = ["pi-1", "pi-2", "pi-3"]
COMMON = {"clock": "real", "participants": 3, "small-width": 4, "evaluate-examples": 100}
# Windows of about a second.
CONSENSUS = COMMON | {
    "mode": "consensus",
    "consensus.references": "",
    "consensus.window": 60,
    "consensus.steps": 60 * 12,
}
DISTILL = COMMON | {"large-width": 4, "local-steps": 20, "num-server-rounds": 12}
ROUTER, DISTILLER = "strategies.link.router", "strategies.distillation.worker"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    pytest.importorskip("zenoh")
    with Site(tmp_path_factory.mktemp("site"), DEVICES) as running:
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
    summary = run.end()
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
    before = {device: site.pids(device, WORKER) for device in DEVICES}
    assert site.kill_server_app() == 1
    kept = run.checkpoint()
    again = Run(site, name)
    summary = again.end()
    assert run.code() == 1
    assert f"edge-fl resume {run.path} --superlink edge" in run.output
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
    summary = run.end()
    assert "SuperLink 'edge' was away and is back" in run.output
    assert run.output.count("final accuracy") == 1
    assert (summary["status"], summary["rounds"]) == ("completed", 12)
    assert summary["processes"] == dict.fromkeys(DEVICES, 1), "nobody had to start again"


def test_a_server_without_power_is_resumed(site: Site) -> None:
    """Flower's own run is lost with its ServerApp; ours goes on from its checkpoint."""
    run = Run(site, "power", CONSENSUS)
    run.wait_for_round(3)
    site.kill(SERVER)
    kept = run.checkpoint()
    site.start(SERVER)
    assert run.code() == 1
    site.wait_online(DEVICES)
    again = Run(site, "power")
    summary = again.end()
    [resumed] = run.events("resumed")
    assert resumed["round"] == kept >= 2
    assert (summary["status"], summary["rounds"]) == ("completed", 12)


def test_a_distillation_server_that_is_killed_is_started_again(site: Site) -> None:
    run = Run(site, "worker", DISTILL)
    run.wait_for_round(3)
    site.kill_program(SERVER, DISTILLER)
    summary = run.end()
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
        assert run.code() == 1
        assert "No space left on device; free some" in run.output
        assert f"edge-fl resume {run.path} --superlink edge" in run.output
        make_space()
        kept = run.checkpoint()
        again = Run(site, name)
        summary = again.end()
        [resumed] = run.events("resumed")
        assert resumed["round"] == kept >= 2
        assert (summary["status"], summary["rounds"]) == ("completed", 12)


def test_a_device_with_a_full_disk_is_left_out_until_it_has_space(site: Site) -> None:
    with small_disk(site.home("pi-2") / "nodes") as fill:
        run = Run(site, "disk-device", CONSENSUS | {"consensus.steps": 60 * 30})
        run.wait_for_round(3)
        make_space = fill()
        run.wait(lambda: bool(run.events("rejected")))
        run.wait_for_round(max(run.rounds()) + 1)
        make_space()
        summary, rejected = run.end(), run.events("rejected")
        assert {event["participant"] for event in rejected} == {"pi-2"}
        assert all("No space left on device" in event["reason"] for event in rejected)
        assert (summary["status"], summary["rounds"]) == ("completed", 30)
        assert 0 < summary["rejected"] <= len(rejected)
        last = run.events("nodes")[-1]
        assert None not in last["accuracy"], "it was back for the last window"
