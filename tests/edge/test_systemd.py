"""A device, and a server, under systemd in a booted Debian, set up by the commands of
docs/deploy.md."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fl_app.deploy import directory as deployment
from strategies.site import SERVER
from tests.edge.hub import ON_TRIAL, Hub, commands
from tests.edge.machines import Booted, booted, debian, namespace, need, with_requirements

pytestmark = pytest.mark.edge
ROOT = Path(__file__).resolve().parents[2]
UNIT = "edge-fl-device"
SIGNED_OFF = "/v1/fleet/deactivate-node"
NETWORK, ADDRESS = "edge-fl-sysd", "10.99.0.3"


def user(folder: str) -> str:
    """Makes an ordinary user who may sudo, and has `folder`, which was copied."""
    return (
        "useradd --create-home pi\n"
        "echo 'pi ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/pi\n"
        f"mkdir -p $(dirname /home/pi/{folder})\n"
        f"cp -r /mnt/copied /home/pi/{folder} && chown -R pi: /home/pi"
    )


@pytest.fixture
def device(hub: Hub, place: Path) -> Iterator[Booted]:
    need("systemd-nspawn", "debootstrap", "nsenter")
    folder = hub.copy(place / "copied")
    root = with_requirements("amd64", folder / "requirements-device.txt")
    with (
        namespace(NETWORK, ADDRESS) as own,
        booted(root, own, place / "boot.log", [f"{folder}:/mnt/copied"]) as machine,
    ):
        machine.sh(user("edge-fl"))
        machine.sh(commands("A device with systemd"), "pi")
        yield machine


def test_a_device_that_is_restarted_signs_off_and_is_back(
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
    began = time.monotonic()
    device.sh(f"systemctl stop {UNIT}")
    note("`systemctl stop`", time.monotonic() - began)
    assert ON_TRIAL not in hub.online()
    assert device.sh(f"systemctl show {UNIT} -P Result").strip() == "success"


def test_a_device_takes_part(hub: Hub, device: Booted, note: Callable[[str, float], None]) -> None:
    hub.seconds_until(lambda on: ON_TRIAL in on)
    for system in ("distill", "consensus"):
        note(f"{system}, a whole run", hub.train(system)["seconds"])


def journal(device: Booted) -> str:
    return device.sh(f"journalctl -u {UNIT} --no-pager")


def joined(device: Booted) -> int:
    return journal(device).count("SuperNode ID")


@pytest.fixture
def server(place: Path) -> Iterator[Booted]:
    """With this clone, and its environment, as /opt/edge-fl."""
    need("systemd-nspawn", "debootstrap", "nsenter")
    deployment.create(place / "site", "hub.example", devices=[ON_TRIAL])
    python = sys.base_prefix
    binds = [f"{ROOT}:{ROOT}", f"{ROOT}:/opt/edge-fl", f"{place}/site/server:/mnt/copied"]
    binds += [] if python == "/usr" else [f"{python}:{python}"]
    with booted(debian("amd64"), "", place / "boot.log", binds) as machine:
        if python.startswith(("/root/", "/home/")):  # as no server should have it
            machine.sh(
                f"chmod a+x {' '.join(map(str, Path(python).parents))}\n"
                "mkdir -p /etc/systemd/system/service.d\n"
                "printf '[Service]\\nProtectHome=read-only\\n' "
                "> /etc/systemd/system/service.d/python.conf"
            )
        machine.sh(user("site/server"))
        machine.sh(commands("The server with systemd", 1), "pi")
        yield machine


def test_the_server_starts_knows_its_devices_and_stops(
    server: Booted, note: Callable[[str, float], None]
) -> None:
    units = ("edge-fl-superlink", "edge-fl-superexec")
    began = time.monotonic()
    deadline = began + 240
    while "registered: pi-1" not in server.sh("journalctl -u edge-fl-register --no-pager"):
        assert time.monotonic() < deadline, server.sh("journalctl --no-pager | tail -50")
        time.sleep(1)
    note("the server's devices registered", time.monotonic() - began)
    # A key that is no key is told, and tried again; nothing else ends.
    server.sh(
        "echo none > /etc/edge-fl/devices/pi-1.pub\nsystemctl restart --no-block edge-fl-superlink"
    )
    while server.sh("journalctl -u edge-fl-register --no-pager").count("but not: pi-1") < 2:
        assert time.monotonic() < deadline, server.sh("journalctl --no-pager | tail -50")
        time.sleep(1)
    for unit in units:
        assert server.sh(f"systemctl is-active {unit}").strip() == "active"
        server.sh(f"systemctl stop {unit}")
        assert server.sh(f"systemctl show {unit} -P Result").strip() == "success", unit
