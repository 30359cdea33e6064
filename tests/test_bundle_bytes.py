"""What a run sends to devices before it begins: nothing to who takes no part, and nothing twice."""

import time
from pathlib import Path

import pytest

from tests.deployed import Run, Site, with_python

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc"),
]

DEVICES = ["pi-1", "pi-2", "pi-3", "pi-4", "pi-5"]
IDLE = ["pi-1", "pi-3", "pi-5"]
RUN = {
    "mode": "average",
    "clock": "real",
    "participants": 2,
    "devices": "pi-2,pi-4",
    "num-server-rounds": 1,
    "local-steps": 2,
    "small-width": 4,
    "evaluate-examples": 100,
}
SOME = 60_000  # bytes: orders, answers, and what two devices that do nothing differ by
IDLE_A_SECOND = 1_000  # at most: Flower's own questions whether there is something to do


def test_a_run_of_two_of_five_devices_sends_the_others_nothing_and_nobody_a_thing_twice(
    tmp_path: Path,
) -> None:
    pytest.importorskip("zenoh")
    tampered = dict.fromkeys(DEVICES, without_the_clone)
    with Site(tmp_path, DEVICES, behind_cables=DEVICES, tampered=tampered) as site:
        before, began = down(site), time.monotonic()
        sent = []
        for name in ("first", "second"):
            summary = Run(site, name, RUN).end()
            assert summary["processes"] == {"pi-2": 1, "pi-4": 1}
            now = down(site)
            sent.append({key: now[key] - before[key] for key in now})
            before = now
            for device in DEVICES:
                flower, mail = (sent[-1][device, kind] for kind in ("flower", "mail"))
                print(f"MEASURED {name} {device}: {flower} bytes of Flower, {mail} of mail")
        first, second = sent
        seconds = time.monotonic() - began
        for device in DEVICES:
            # A busy machine takes long, and who does nothing asks all the while.
            asked = [max(run[each, "flower"] for each in IDLE) for run in sent]
            takes_part = device not in IDLE
            assert (first[device, "flower"] - asked[0] > 150_000) is takes_part, "the code"
            assert first[device, "flower"] - asked[0] < 500_000
            assert (first[device, "mail"] > 2_000_000) is takes_part, "the images"
            again = second[device, "flower"] - asked[1]
            assert again < SOME, "has a file of this clone changed between the runs?"
            assert sum(asked) < SOME + IDLE_A_SECOND * seconds
            assert second[device, "mail"] < (400_000 if takes_part else 1)


def without_the_clone(place: Path) -> None:
    """The Python of a device has no app installed, and so not its images."""
    with_python(
        place,
        "import os, sys\n"
        "sys.path[:] = [each for each in sys.path if not os.path.isdir(f'{each}/fl_app')]\n",
    )


def down(site: Site) -> dict[tuple[str, str], int]:
    """Bytes to each device so far, by what they came from."""
    return {
        (device, kind): cable.sent["down"]
        for device, pair in site.wires.items()
        for kind, cable in zip(("flower", "mail"), pair, strict=True)
    }
