"""A device for ARM (aarch64), emulated: its requirements, its start script, both systems."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.edge.hub import ON_TRIAL, Hub, running
from tests.edge.machines import VENV, entering, inside, need, with_requirements

pytestmark = pytest.mark.edge
KNOWN = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")


def test_a_device_with_an_arm_processor_takes_part(
    hub: Hub, place: Path, note: Callable[[str, float], None]
) -> None:
    need("qemu-aarch64-static", "debootstrap", "unshare")
    if not KNOWN.exists():
        pytest.skip(
            "the kernel does not know how to run ARM programs: mount -t binfmt_misc binfmt_misc "
            "/proc/sys/fs/binfmt_misc && update-binfmts --enable qemu-aarch64"
        )
    folder = hub.copy(place / "copied")
    root = with_requirements("arm64", folder / "requirements-device.txt")
    assert inside(root, "uname", "-m").strip() == "aarch64"
    packages = inside(root, f"{VENV}/bin/pip", "list", "--format=freeze").lower()
    assert "torch==" in packages
    assert not [each for each in ("nvidia", "triton", "cuda") if each in packages]
    for old in ("edge-fl", "state"):
        shutil.rmtree(root / "root" / old, ignore_errors=True)
    shutil.copytree(folder, root / "root" / "edge-fl")
    environment = {
        "EDGE_FL_VENV": VENV,
        "EDGE_FL_STATE": "/root/state",
        "EDGE_FL_HOME": "/root/state",
        "OMP_NUM_THREADS": "1",
    }
    start = [*entering(root, environment), "/root/edge-fl/start-supernode.sh"]
    with running(start, {}, place / "device.log"):
        note("on line", hub.seconds_until(lambda on: ON_TRIAL in on))
        for system in ("distill", "consensus"):
            note(f"{system}, a whole run", hub.train(system)["seconds"])
