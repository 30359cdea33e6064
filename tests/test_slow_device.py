"""A device that needs longer to import Flower than Flower waits for an app to answer (30 s)."""

import time
from functools import partial
from pathlib import Path

import pytest

from tests.deployed import WORKER, Run, Site, with_python

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc"),
]

SLOW = """
import sys, time
class Slowly:
    def find_spec(self, name, path=None, target=None):
        if name == "flwr":
            sys.meta_path.remove(self)
            time.sleep({seconds})
sys.meta_path.insert(0, Slowly())
"""
RUN = {"mode": "average", "clock": "real", "participants": 1, "num-server-rounds": 2}
FEW = {"local-steps": 2, "small-width": 4, "evaluate-examples": 100}


def with_a_slow_import(place: Path, seconds: float) -> None:
    """Every Python of the device sleeps before its first import of Flower."""
    with_python(place, SLOW.format(seconds=seconds))


def test_a_device_whose_app_takes_45_seconds_to_start_takes_part(tmp_path: Path) -> None:
    pytest.importorskip("zenoh")
    tampered = {"pi-1": partial(with_a_slow_import, seconds=45.0)}
    with Site(tmp_path, ["pi-1"], tampered=tampered, timeout=600.0) as site:
        for name in ("first", "second"):
            began = time.monotonic()
            run = Run(site, name, {**RUN, **FEW})
            run.wait(lambda site=site: bool(site.pids("pi-1", WORKER)))
            print(f"MEASURED its process serves {name}: {time.monotonic() - began:.1f} s")
            assert len(site.pids("pi-1")) <= 6, "no processes pile up"
            summary = run.end()
            assert (summary["status"], summary["processes"]) == ("completed", {"pi-1": 1})
            assert summary["rejected"] == 0
