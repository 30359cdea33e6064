"""A device behind a link of 2 Mbit/s with 200 ms there and back, on which connections break."""

import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fl_app.deploy.directory import settings_of
from tests.edge.hub import ON_TRIAL, Hub, running
from tests.edge.machines import need
from tests.edge.slow_link import Weather, slow_link

pytestmark = pytest.mark.edge
RATE, DELAY = "2mbit", 0.1
BYTES_PER_SECOND = 2e6 / 8


@pytest.mark.parametrize("resets", [0.0, 0.002], ids=["whole", "with resets"])
def test_a_device_takes_part_over_a_slow_link(
    hub: Hub, place: Path, note: Callable[[str, float], None], resets: float
) -> None:
    need("tc")
    settings = settings_of(hub.site)
    ports = (settings["port"], settings["mail-port"])
    folder = hub.copy(place / "copied")
    environment = {
        "EDGE_FL_VENV": str(Path(sys.executable).parents[1]),
        "EDGE_FL_HOME": str(place / "device"),
        "OMP_NUM_THREADS": "1",
    }
    with slow_link(ports, RATE, Weather(DELAY, 0.2 * DELAY, resets)) as (name, traffic):
        command = ["ip", "netns", "exec", name, str(folder / "start-supernode.sh")]
        with running(command, os.environ | environment, place / "device.log"):
            began = time.monotonic()
            note("on line", hub.seconds_until(lambda on: ON_TRIAL in on))
            for system in ("distill", "consensus"):
                before = [(each.up, each.down) for each in traffic.values()]
                summary = hub.train(system)
                assert summary["lost"] == 0
                note(f"{system}, a whole run, {summary['rounds']} rounds", summary["seconds"])
                moved = sum(
                    each.up + each.down - sum(sums)
                    for each, sums in zip(traffic.values(), before, strict=True)
                )
                note(f"{system}: bytes alone, {moved / 1e6:.1f} MB", moved / BYTES_PER_SECOND)
                times = [event["t"] for event in summary["events"]]
                longest = max(after - then for then, after in itertools.pairwise(times))
                note(f"{system}: the longest round but the first", longest)
            broken = sum(each.resets for each in traffic.values())
            if resets:
                assert broken, "no connection has been broken"
                note(
                    f"on line all in all, with {broken} connections broken",
                    time.monotonic() - began,
                )
