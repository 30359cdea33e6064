"""Machines to try devices on, all on this one: a Debian of its own, a network, what must be there.

They need root, and tools that are no dependency of the project: what is missing skips the trial,
with the package that has it. What takes long to make is kept in $EDGE_FL_TRIALS.
"""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

PLACE = Path(os.environ.get("EDGE_FL_TRIALS") or Path.home() / ".cache/edge-fl/trials")
SERVER_ADDRESS = "10.99.0.1"
BRIDGE = "edge-fl0"
RELEASE = "bookworm"
VENV = "/opt/edge-fl/venv"  # where docs/deploy.md has it
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
NO_REGISTRY = re.compile(
    r"resolve|connect|unreachable|timed out|Couldn't download|refused|No matching distribution"
)
_PACKAGES = {
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "podman": "podman buildah runc netavark catatonit uidmap",
    "podman-compose": "podman-compose",
    "qemu-aarch64-static": "qemu-user-static binfmt-support",
    "systemd-nspawn": "systemd-container",
    "tc": "iproute2",
    "unshare": "util-linux",
}
# All that a device's venv needs beside Python; a system that boots; and Python as images have it.
_DEBIAN = {
    "amd64": "systemd,systemd-sysv,dbus,sudo,iproute2,procps,python3-pip,",
    "arm64": "",
}
_ALWAYS = "python3,python3-venv,ca-certificates,libgomp1"


def need(*programs: str) -> None:
    """Skip what runs now unless it is root's, and has these programs."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: apt-get install {_PACKAGES[program]}")


def run(*words: str | Path, env: Mapping[str, str] | None = None) -> str:
    """What a command prints; AssertionError with it when the command fails."""
    done = subprocess.run(
        [str(word) for word in words],
        env=dict(os.environ) | dict(env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, f"{words} ended with {done.returncode}:\n{done.stdout[-4000:]}"
    return done.stdout


def attempt(*words: str | Path) -> None:
    """As `run`, of what this machine, or its kernel, may not let anybody do: skips then."""
    try:
        run(*words)
    except AssertionError as error:
        pytest.skip(f"not possible here: {error}")


def fetch(*words: str | Path) -> str:
    """As `run`, of what needs a registry: skips when it cannot be reached."""
    try:
        return run(*words)
    except AssertionError as error:
        last = str(error).strip().splitlines()[-1]
        if NO_REGISTRY.search(str(error)):
            pytest.skip(f"a registry cannot be reached: {last}")
        raise


def debian(architecture: str) -> Path:
    """The root of a Debian of this architecture, made once; nobody changes it."""
    root = PLACE / f"debian-{architecture}"
    if not root.exists():
        part = root.with_name(f"{root.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        PLACE.mkdir(parents=True, exist_ok=True)
        packages = f"--include={_DEBIAN[architecture]}{_ALWAYS}"
        # Of another architecture, emulated: the kernel has to know by what (binfmt_misc).
        words = ["--variant=minbase", f"--arch={architecture}", packages]
        fetch("debootstrap", *words, RELEASE, part)
        shutil.copy("/etc/resolv.conf", part / "etc/resolv.conf")
        if Path(CERTIFICATES).exists():  # who is behind a proxy has its certificate there
            shutil.copy(CERTIFICATES, part / CERTIFICATES.lstrip("/"))
        part.rename(root)
    return root


def with_requirements(architecture: str, requirements: Path) -> Path:
    """The root of a Debian with a device's virtual environment at VENV, made once."""
    stamp = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    root = PLACE / f"device-{architecture}-{stamp}"
    if not root.exists():
        base = debian(architecture)
        part = root.with_name(f"{root.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        run("cp", "-a", base, part)
        shutil.copy(requirements, part / "root")
        wheels = os.environ.get("EDGE_FL_WHEELS")
        with contextlib.ExitStack() as stack:
            if wheels:
                place = part / wheels.lstrip("/")
                shutil.copytree(wheels, place)
                stack.callback(shutil.rmtree, place)
            inside(part, "python3", "-m", "venv", VENV)
            pip = [f"{VENV}/bin/pip", "install", "--no-cache-dir", "-r"]
            fetch(*entering(part), *pip, f"/root/{requirements.name}")
        part.rename(root)
    return root


def entering(root: Path, environment: Mapping[str, str] | None = None) -> list[str]:
    """The beginning of a command that is to run in `root`, with the network of this machine; what
    it starts ends with it."""
    enter = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"'
    own = {"HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PIP_CERT": CERTIFICATES}
    own |= dict(environment or {})
    isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    settings = [f"{name}={value}" for name, value in own.items()]
    return [*isolated, "env", "-i", *settings, "sh", "-c", enter, str(root)]


def inside(root: Path, *words: str) -> str:
    """What a command prints in `root`."""
    return run(*entering(root), *words)


def use_local_wheel(requirements: Path) -> None:
    """Where PyTorch's own index cannot be reached, take its wheel of the folder $EDGE_FL_WHEELS:
    the only line of a device's requirements that a trial may change."""
    if wheels := os.environ.get("EDGE_FL_WHEELS"):
        [wheel] = Path(wheels).glob("torch-*+cpu-*.whl")
        text = requirements.read_text()
        text = re.sub(r"^--extra-index-url .*", f"--find-links {wheels}", text, flags=re.M)
        text = re.sub(r"^torch==[^;]*;", f"torch=={wheel.name.split('-')[1]};", text, flags=re.M)
        requirements.write_text(text)


@contextlib.contextmanager
def network() -> Iterator[None]:
    """A bridge on which this machine has SERVER_ADDRESS."""
    need("ip")
    attempt("ip", "link", "add", BRIDGE, "type", "bridge")
    try:
        run("ip", "address", "add", f"{SERVER_ADDRESS}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        yield
    finally:
        run("ip", "link", "delete", BRIDGE)


@contextlib.contextmanager
def namespace(name: str, address: str) -> Iterator[str]:
    """A network of its own with `address`, connected to the bridge and to nothing else."""
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", f"{name}-a", "type", "veth", "peer", "name", f"{name}-b")
        run("ip", "link", "set", f"{name}-a", "master", BRIDGE, "up")
        run("ip", "link", "set", f"{name}-b", "netns", name)
        run("ip", "-n", name, "address", "add", f"{address}/24", "dev", f"{name}-b")
        for device in (f"{name}-b", "lo"):
            run("ip", "-n", name, "link", "set", device, "up")
        yield name
    finally:
        run("ip", "netns", "delete", name)  # and with it the link


@contextlib.contextmanager
def booted(root: Path, network: str, log: Path, binds: Sequence[str]) -> Iterator["Booted"]:
    """A system that has booted from `root`, whose changes are forgotten afterwards.

    network: a namespace, "" for none but its loopback interface. binds: HERE:THERE, folders of this
    machine that it sees. A skip where systemd does not boot.
    """
    need("systemd-nspawn", "nsenter")
    words = ["systemd-nspawn", "--quiet", "--boot", f"--directory={root}", "--volatile=overlay"]
    words += [f"--network-namespace-path=/run/netns/{network}" if network else "--private-network"]
    words += ["--machine=edge-fl", "--register=no", "--keep-unit", "--console=pipe"]
    words += [f"--bind-ro={bind}" for bind in binds]
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    machine = Booted(process)
    try:
        if not machine.up(120):
            pytest.skip(f"systemd does not boot here: {log.read_text(errors='replace')[-500:]}")
        yield machine
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


class Booted:
    """A system in systemd-nspawn."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def up(self, seconds: float) -> bool:
        """Whether it is at work within so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            # Anew each time: who enters before the system has its root is in another one for ever.
            with contextlib.suppress(AssertionError, OSError, IndexError):
                state = "systemctl is-system-running || true"
                told = run("timeout", "5", *self.entering(), "sh", "-c", state)
                if told.split()[-1] in ("running", "degraded"):
                    return True
            time.sleep(0.5)
        return False

    def entering(self, user: str = "root") -> list[str]:
        """The beginning of a command that is to run there."""
        pid, own = self._process.pid, {"HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        first = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        words = [
            "nsenter",
            "--target",
            first,
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--root",
        ]
        words += ["env", "-i", *(f"{name}={value}" for name, value in own.items())]
        return (
            words
            if user == "root"
            else [*words, "runuser", "-u", user, "--", "env", f"HOME=/home/{user}"]
        )

    def sh(self, script: str, user: str = "root") -> str:
        """What a script prints there, of `user` in the own home; AssertionError when it fails."""
        return run(*self.entering(user), "sh", "-ec", f"cd ~\n{script}")
