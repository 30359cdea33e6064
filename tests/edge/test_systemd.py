"""A device under systemd in a booted Debian, set up by the commands of docs/deploy.md."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fl_app.site import SERVER
from tests.edge.hub import ON_TRIAL, Hub, commands
from tests.edge.machines import Booted, booted, namespace, need, with_requirements

pytestmark = pytest.mark.edge
UNIT = "edge-fl-device"
SIGNED_OFF = "/v1/fleet/deactivate-node"
# An ordinary user who may sudo, with the folder that was copied.
USER = (
    "useradd --create-home pi\n"
    "echo 'pi ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/pi\n"
    "cp -r /mnt/edge-fl /home/pi/edge-fl && chown -R pi: /home/pi/edge-fl"
)


@pytest.fixture
def device(hub: Hub, place: Path) -> Iterator[Booted]:
    need("systemd-nspawn", "debootstrap", "nsenter")
    folder = hub.copy(place / "copied")
    root = with_requirements("amd64", folder / "requirements-device.txt")
    with (
        namespace("edge-fl-sysd", "10.99.0.3") as network,
        booted(root, network, place / "boot.log", [f"{folder}:/mnt/edge-fl"]) as machine,
    ):
        machine.sh(USER)
        machine.sh(commands("A device with systemd"), "pi")
        yield machine


def test_a_device_takes_part_and_is_back_in_seconds(
    hub: Hub, device: Booted, note: Callable[[str, float], None]
) -> None:
    note("on line after `systemctl enable --now`", hub.seconds_until(lambda on: ON_TRIAL in on))
    assert SIGNED_OFF not in hub.log(SERVER)
    began = time.monotonic()
    device.sh(f"systemctl restart {UNIT}")
    stopped = time.monotonic()
    hub.seconds_until(lambda on: ON_TRIAL in on and joined(device) > 1)
    note("back on line after `systemctl restart`", time.monotonic() - began)
    note("of which until it was stopped", stopped - began)
    # However fast this machine is: the server has been told, and has refused nothing.
    assert SIGNED_OFF in hub.log(SERVER)
    assert "; again in " not in journal(device)
    for system in ("distill", "consensus"):
        note(f"{system}, a whole run", hub.train(system)["seconds"])
    began = time.monotonic()
    device.sh(f"systemctl stop {UNIT}")
    note("`systemctl stop`", time.monotonic() - began)
    assert ON_TRIAL not in hub.online()
    assert not re.search("Failed|failed", device.sh(f"systemctl show {UNIT} -P Result"))


def journal(device: Booted) -> str:
    return device.sh(f"journalctl -u {UNIT} --no-pager")


def joined(device: Booted) -> int:
    return journal(device).count("SuperNode ID")
