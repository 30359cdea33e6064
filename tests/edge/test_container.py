"""A device in a container, built and started by the commands of docs/deploy.md.

Podman takes the part of Docker. Where there is no registry of images, a Debian with its own Python
takes that of the image on which the device's is built.
"""

import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.edge.hub import ON_TRIAL, Hub, commands
from tests.edge.machines import NO_REGISTRY, PLACE, debian, need, run

pytestmark = pytest.mark.edge
BASE = "docker.io/library/python:3.12-slim"
CONTAINER = "edge-fl_device_1"
# Runs of root in a machine that is itself confined, too: limits that may be had, and runc.
_CONFIGURATION = """
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
_STORAGE = '[storage]\ndriver = "overlay"\ngraphroot = "{0}/storage"\nrunroot = "{0}/run"\n'
_STAND_IN = """FROM localhost/debian
RUN rm -f /usr/lib/python3*/EXTERNALLY-MANAGED && ln -s /usr/bin/python3 /usr/local/bin/python
"""


@pytest.fixture
def podman(monkeypatch: pytest.MonkeyPatch) -> None:
    """With storage of its own, and what devices are built on in it."""
    need("podman", "podman-compose", "debootstrap")
    place = PLACE / "containers"
    place.mkdir(parents=True, exist_ok=True)
    (place / "containers.conf").write_text(_CONFIGURATION)
    (place / "storage.conf").write_text(_STORAGE.format(place))
    monkeypatch.setenv("CONTAINERS_CONF", str(place / "containers.conf"))
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(place / "storage.conf"))
    exists = ["podman", "image", "exists", BASE]
    if subprocess.run(exists, check=False, capture_output=True).returncode == 0:
        return
    pull = ["timeout", "120", "podman", "pull", "--quiet", BASE]
    if subprocess.run(pull, check=False, capture_output=True).returncode == 0:
        return
    root = debian("amd64")
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
        load = ["podman", "import", "--quiet", "-", "localhost/debian"]
        subprocess.run(load, stdin=tar.stdout, check=True, capture_output=True)
    folder = place / "base"
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(_STAND_IN)
    run("podman", "build", "--pull=never", "--tag", BASE, folder)


@pytest.fixture
def state() -> Iterator[Path]:
    """A folder for what a container writes. It has the same path inside, where its user can go
    nowhere below /root."""
    with tempfile.TemporaryDirectory(prefix="edge-fl-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "state"


@pytest.fixture
def compose(hub: Hub, place: Path, state: Path, podman: None) -> Iterator[list[str]]:
    """The beginning of a command on the device's container, which has been started."""
    hub.copy(place / "edge-fl")
    installed = place / "installed" / "edge-fl"
    installed.parent.mkdir()
    # The registry is reached from this machine's network, and wheels may be in a folder of it.
    build = ["--network=host", "--pull=never"]
    if wheels := os.environ.get("EDGE_FL_WHEELS"):
        build.append(f"--volume={wheels}:{wheels}:ro")
    begin = ["podman-compose", "--podman-build-args", " ".join(build)]
    places = {"/etc/edge-fl": installed, "/var/lib/edge-fl": state}
    script = commands("Containers").replace("docker compose", "$COMPOSE").replace("sudo ", "")
    for said, meant in places.items():
        script = script.replace(said, str(meant))
    script = script.replace("$COMPOSE", f"{begin[0]} {begin[1]} '{begin[2]}'")
    environment = {"EDGE_FL_STATE": str(state)}
    words = ["env", f"EDGE_FL_STATE={state}", *begin, "-f", str(installed / "compose.yaml")]
    try:
        printed = run("sh", "-exc", f"cd {place}\n{script}", env=environment)
        # podman-compose ends with 0 whether or not the image could be built.
        if subprocess.run(["podman", "container", "exists", CONTAINER], check=False).returncode:
            if NO_REGISTRY.search(printed):
                pytest.skip(f"a registry cannot be reached: {printed[-400:]}")
            pytest.fail(f"there is no container:\n{printed[-4000:]}")
        yield words
    finally:
        subprocess.run([*words, "down"], check=False, capture_output=True)
        shutil.rmtree(installed)


def test_a_device_takes_part_from_a_container(
    hub: Hub, compose: list[str], place: Path, state: Path, note: Callable[[str, float], None]
) -> None:
    note("on line after the container's start", hub.seconds_until(lambda on: ON_TRIAL in on))
    assert run("podman", "exec", CONTAINER, "id", "-u").strip() == "10001"
    capabilities = run("podman", "exec", CONTAINER, "grep", "Cap", "/proc/1/status")
    assert re.findall(r"CapBnd:\t(\w+)", capabilities) == ["0" * 16]
    mode = stat.S_IMODE((place / "installed" / "edge-fl").stat().st_mode)
    assert mode == 0o700, "an ordinary user has not to open the keys to others"
    # What root may see there: the image, and not what is mounted.
    search = "find / -xdev -name '*.key' -not -path '/proc/*' 2>/dev/null || true"
    assert run("podman", "exec", "--user", "0", CONTAINER, "sh", "-c", search) == ""
    for system in ("distill", "consensus"):
        note(f"{system}, a whole run", hub.train(system)["seconds"])
    assert any(state.iterdir())
    began = time.monotonic()
    run(*compose, "stop")
    note("stop", time.monotonic() - began)
    assert ON_TRIAL not in hub.online(), "it has signed off"
