"""What goes wrong at devices and at the server, in one short run for which `make test` has time:
what `test_faults_devices` and `test_faults_server` try at length, one by one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from strategies.checkpoint import load_tensors
from strategies.site import SERVER
from tests.deployed import WORKER, Run, Site, slowed

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")

WINDOWS = 20
CONFIG = {
    "mode": "consensus",
    "clock": "real",
    "participants": 2,
    "small-width": 4,
    "evaluate-examples": 100,
    "link-patience": 8.0,
    "consensus.topology": "chain",
    "consensus.references": "",
    "consensus.window": 120,
    "consensus.steps": 120 * WINDOWS,
}


class Story:
    """The router and a device's process are killed, then the ServerApp; the run is resumed, and a
    device loses its power for good."""

    def __init__(self, site: Site) -> None:
        self.site, self.first = site, Run(site, "story", CONFIG)
        run = self.first
        run.wait_for_round(1)
        site.kill_program(SERVER, "strategies.link.router")
        site.kill_program("pi-1", WORKER)
        with slowed(site.pids("pi-2", WORKER), 0.1):  # or it would be done alone before
            run.wait(lambda: "pi-1 is back with a new process" in run.output)
            run.wait(lambda: "the mail router died and has been started again" in run.output)
        run.pass_windows(1)
        assert site.kill_server_app() == 1
        self.kept = run.checkpoint()
        self.resumed = Run(site, "story")
        self.resumed.wait(lambda: self.resumed.window > self.kept + 1)
        site.kill("pi-2")
        self.gone = self.resumed.window
        self.summary = self.resumed.end()
        run.kill()  # or it would wait for Flower's word about the ServerApp for a minute


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    pytest.importorskip("zenoh")
    with Site(tmp_path_factory.mktemp("short"), ["pi-1", "pi-2"]) as site:
        yield Story(site)


def test_the_run_gets_to_its_end_whatever_dies(story: Story) -> None:
    assert (story.summary["status"], story.summary["rounds"]) == ("completed", WINDOWS)
    accuracies = story.resumed.events("nodes")[-1]["accuracy"]
    assert accuracies[0] > 0.15


def test_a_resumed_run_goes_on_from_its_checkpoint(story: Story) -> None:
    [resumed] = story.resumed.events("resumed")
    assert resumed["round"] == story.kept >= 1
    # And one in which the nodes have settled.
    assert story.resumed.rounds()[-1] == WINDOWS + 1


def test_a_device_that_is_gone_is_named_and_waited_for_no_longer(story: Story) -> None:
    assert story.summary["away"] == ["pi-2"]
    assert story.resumed.events("nodes")[-1]["accuracy"][1] is None
    reasons = {e["participant"]: e["reason"] for e in story.resumed.events("rejected")}
    assert "pi-2 has been silent for 8 s" in reasons.get("pi-2", "")


def test_a_device_whose_process_dies_goes_on_with_its_node(story: Story) -> None:
    log = story.site.log("pi-1")
    assert "the process of pi-1 ended with signal 9; starting it again" in log
    steps = [e["steps"][0] for e in story.resumed.events("nodes")]
    assert steps == sorted(steps)
    states = sorted((story.site.home("pi-1") / "nodes").glob("story-*/*/node-*.safetensors"))
    arrays, _ = load_tensors(states[-1])
    assert all(abs(array).max() < 1e3 for array in arrays.values() if array.dtype.kind == "f")
