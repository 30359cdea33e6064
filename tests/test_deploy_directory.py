"""The directory of a deployment: what is written, changed, renewed and refused."""

import contextlib
import json
import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fl_app.cli import main
from fl_app.deploy import directory as deployment
from fl_app.deploy import nodes
from fl_app.deploy.authority import Authority, certificate_pem, load_certificate
from fl_app.deploy.check import check
from fl_app.deploy.templates import CONTAINER_USER
from strategies.errors import EdgeFlError
from strategies.site import read_site

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    deployment.create(tmp_path / "site", "hub.example", devices=["pi-2", "pi-1"])
    return tmp_path / "site"


def files(directory: Path) -> dict[str, bytes]:
    found = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def wrong(directory: Path) -> list[str]:
    return [str(finding) for finding in check(directory) if finding.wrong]


def test_every_machine_gets_its_site(site: Path) -> None:
    server, device = read_site(site / "server"), read_site(site / "devices" / "pi-1")
    assert (server.name, server.devices) == ("server", ("pi-1", "pi-2"))
    assert (device.name, device.devices) == ("pi-1", ())
    assert server.endpoint == device.endpoint == "tls/hub.example:7447"
    ports = [json.loads(p.read_text())["port"] for p in site.glob("devices/*/site.json")]
    assert len(set(ports)) == 2, "both devices can run on one host"


def test_what_is_secret_is_for_its_owner_alone(site: Path) -> None:
    for path in (site, *site.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode == 0o700, path
        elif b"PRIVATE KEY" in path.read_bytes() or path.name == "superexec.secret":
            assert mode == 0o600, path
        assert not mode & 0o022, path
    private = {name.rsplit("/")[-1] for name, data in files(site).items() if b"PRIVATE" in data}
    assert private == {"ca.key", "site.key", "supernode.key"}
    assert not list((site / "server").rglob("ca.key"))
    assert not list((site / "devices").rglob("ca.key"))


def handshake(authority: Path, server: Path, client: Path, host: str) -> str:
    """The client's common name as the server sees it after mutual TLS, both in this process."""
    end = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    end.load_cert_chain(server / "site.crt", server / "site.key")
    end.load_verify_locations(authority)
    end.verify_mode = ssl.CERT_REQUIRED
    begin = ssl.create_default_context(cafile=str(authority))
    begin.load_cert_chain(client / "site.crt", client / "site.key")
    a_in, a_out, b_in, b_out = (ssl.MemoryBIO() for _ in range(4))
    one = begin.wrap_bio(a_in, a_out, server_hostname=host)
    two = end.wrap_bio(b_in, b_out, server_side=True)
    for _ in range(4):
        for side in (one, two):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            b_in.write(a_out.read())
            a_in.write(b_out.read())
    peer = two.getpeercert()
    assert peer
    return dict(pair[0] for pair in peer["subject"])["commonName"]  # type: ignore[index]


@pytest.mark.parametrize("host", ["hub.example", "localhost", "127.0.0.1", "::1"])
def test_server_and_device_accept_one_another(site: Path, host: str) -> None:
    device = site / "devices" / "pi-1"
    assert handshake(device / "ca.crt", site / "server", device, host) == "pi-1"


def test_another_host_or_authority_is_not_accepted(site: Path, tmp_path: Path) -> None:
    device = site / "devices" / "pi-1"
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(device / "ca.crt", site / "server", device, "other.example")
    deployment.create(tmp_path / "foreign", "hub.example", devices=["pi-1"])
    with pytest.raises(ssl.SSLError):
        handshake(
            site / "ca" / "ca.crt", site / "server", tmp_path / "foreign/devices/pi-1", "localhost"
        )
    # A device's key is no authority: what it signs for somebody else is worth nothing.
    own = Authority.load(device / "site.crt", device / "site.key")
    forged = own.sign("pi-2", own.key.public_key(), 30)
    (device / "site.crt").write_bytes(certificate_pem(forged) + (device / "site.crt").read_bytes())
    with pytest.raises(ssl.SSLError):
        handshake(site / "ca" / "ca.crt", site / "server", device, "localhost")


@pytest.mark.parametrize("host", ["pi-1", "hub.example", "localhost"])
def test_no_device_is_taken_for_the_server(site: Path, host: str) -> None:
    """Also with its own certificate, and under its own name: such a device could be called so."""
    one, other = (site / "devices" / name for name in ("pi-1", "pi-2"))
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(one / "ca.crt", one, other, host)
    assert deployment.renew(site) == ["server", "pi-1", "pi-2"]
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(one / "ca.crt", one, other, host)


def test_a_supernode_key_is_what_ssh_keygen_would_write(site: Path) -> None:
    device = site / "devices" / "pi-1"
    private = load_ssh_private_key((device / "supernode.key").read_bytes(), password=None)
    public = (device / "supernode.key.pub").read_bytes()
    assert load_ssh_public_key(public) == private.public_key()
    assert public.split()[0] == b"ecdsa-sha2-nistp384"
    assert (site / "server" / "devices" / "pi-1.pub").read_bytes() == public


def test_devices_come_and_go(site: Path) -> None:
    before = files(site)
    deployment.add_device(site, "jetson")
    assert deployment.device_names(site) == ["jetson", "pi-1", "pi-2"]
    assert wrong(site) == []
    (site / "devices" / "jetson" / "start-supernode.sh").stat()
    deployment.remove_device(site, "jetson")
    after = files(site)
    own = json.loads(before.pop("site.json")) | {"removed": ["jetson"]}
    assert json.loads(after.pop("site.json")) == own
    assert after == before


def test_the_name_of_a_removed_device_is_given_to_no_other(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its certificate is good for up to a year, and says nothing but the name."""
    for name in ("pi-2", "pi-1"):
        assert main(["deploy", "remove-device", str(site), name]) == 0
    assert main(["deploy", "upgrade", str(site)]) == 0
    before = files(site)
    for name in ("pi-1", "pi-2"):
        assert main(["deploy", "add-device", str(site), name]) == 2
        assert f"a device named {name!r} was removed" in capsys.readouterr().err
    assert files(site) == before
    deployment.add_device(site, "pi-3")
    assert deployment.device_names(site) == ["pi-3"]


def test_without_certificates_a_name_is_free_again(tmp_path: Path) -> None:
    trial = tmp_path / "trial"
    deployment.create(trial, "127.0.0.1", devices=["a"], insecure=True)
    deployment.remove_device(trial, "a")
    deployment.add_device(trial, "a")
    assert deployment.device_names(trial) == ["a"]


def test_an_interrupted_addition_leaves_nothing_that_counts(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    before = files(site)
    with monkeypatch.context() as patch:
        patch.setattr(deployment, "node_key_pair", broken)
        with pytest.raises(KeyboardInterrupt):
            deployment.add_device(site, "jetson")
    assert files(site) == before
    with monkeypatch.context() as patch:
        patch.setattr(deployment, "_list_devices", broken)
        with pytest.raises(KeyboardInterrupt):
            deployment.add_device(site, "jetson")
    assert deployment.device_names(site) == ["pi-1", "pi-2"]
    assert any("left over" in line for line in wrong(site))
    deployment.add_device(site, "jetson")
    assert wrong(site) == []


def test_an_interrupted_creation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "_add", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        deployment.create(tmp_path / "site", "hub.example", devices=["pi-1"])
    assert list(tmp_path.iterdir()) == []


def test_renewal_keeps_keys_and_moves_the_end(site: Path) -> None:
    place = site / "devices" / "pi-1"
    settings = json.loads((site / "site.json").read_text()) | {"days": 20}
    (site / "site.json").write_text(json.dumps(settings))
    before, old = files(site), load_certificate(place / "site.crt")
    assert deployment.renew(site, ["pi-1"]) == ["pi-1"]
    new = load_certificate(place / "site.crt")
    assert new.not_valid_after_utc < old.not_valid_after_utc
    assert new.public_key() == old.public_key()
    changed = {name for name, content in files(site).items() if content != before[name]}
    assert changed == {"devices/pi-1/site.crt"}
    assert wrong(site) == []
    assert any("soon" in str(finding) for finding in check(site))
    assert deployment.renew(site) == ["server", "pi-1", "pi-2"]


def test_a_folder_that_was_moved_away_is_named_and_nothing_is_written(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (site / "devices" / "pi-1").rename(site.parent / "away")
    for path in (site / "server" / "start-superlink.sh", site / "devices/pi-2/supernode.py"):
        path.write_text("old")
    before = files(site)
    for command in ("renew", "upgrade"):
        assert main(["deploy", command, str(site)]) == 2
        said = capsys.readouterr().err
        assert f"{site}/devices/pi-1" in said
        assert "put " in said
        assert (f"`edge-fl deploy renew {site} server pi-2`" in said) == (command == "renew")
        assert files(site) == before
    assert deployment.renew(site, ["server", "pi-2"]) == ["server", "pi-2"]
    assert main(["deploy", "renew", str(site), "pi-1"]) == 2
    assert capsys.readouterr().err.rstrip().endswith("; put it back")
    (site / "devices").rename(site.parent / "all-away")
    assert main(["deploy", "check", str(site)]) == 1
    assert f"pi-2: {site}/devices/pi-2 is no complete site" in capsys.readouterr().out


def test_a_device_whose_folder_was_moved_away_is_removed(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (site / "devices" / "pi-1").rename(site.parent / "away")
    assert main(["deploy", "remove-device", str(site), "pi-1"]) == 0
    assert f"copy {site}/server to the server again" in capsys.readouterr().out
    assert deployment.device_names(site) == ["pi-2"]
    assert not (site / "server" / "devices" / "pi-1.pub").exists()
    assert wrong(site) == []


def test_a_site_stands_for_its_servers_folder(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed for it must exist."""
    done: list[Path] = []
    monkeypatch.setattr("fl_app.deploy.nodes.register", done.append)
    monkeypatch.setattr("fl_app.deploy.serve.serve", lambda place: done.append(place) or 0)
    for place in (site, site / "server"):
        for command in ("register", "serve"):
            assert main(["deploy", command, str(place)]) == 0
        assert main(["deploy", "connection", str(place)]) == 0
        assert f'root-certificates = "{site}/server/ca.crt"' in capsys.readouterr().out
    assert done == 4 * [site / "server"]


def expired(site: Path) -> None:
    place = site / "devices" / "pi-1"
    authority = deployment.authority_of(site)
    assert authority is not None
    key = load_certificate(place / "site.crt").public_key()
    old = authority.sign("pi-1", key, 0)  # type: ignore[arg-type]
    (place / "site.crt").write_bytes(certificate_pem(old))


def foreign(site: Path) -> None:
    deployment.create(site.parent / "foreign", "hub.example", devices=["pi-1"])
    for name in ("site.crt", "site.key"):
        content = (site.parent / "foreign/devices/pi-1" / name).read_bytes()
        (site / "devices" / "pi-1" / name).write_bytes(content)


def exchanged(site: Path) -> None:
    for name in ("site.crt", "site.key"):
        content = (site / "devices" / "pi-2" / name).read_bytes()
        (site / "devices" / "pi-1" / name).write_bytes(content)


def moved(site: Path) -> None:
    path = site / "server" / "site.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "new.example"}))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (expired, "pi-1: site.crt expired"),
        (foreign, "not signed by the authority"),
        (exchanged, "is of 'pi-2', not of 'pi-1'"),
        (moved, "not for the host 'new.example'"),
        (lambda site: (site / "devices/pi-1/site.key").chmod(0o644), "chmod 600"),
        (lambda site: (site / "devices/pi-1").chmod(0o755), "chmod 700"),
        (lambda site: (site / "ca/ca.key").chmod(0o640), "chmod 600"),
        (lambda site: (site / "ca/ca.key").unlink(), "ca.key"),
        (lambda site: (site / "ca").rename(site.parent / "safe"), "ca/ca"),
        (lambda site: (site / "server/site.key").write_text("no key"), "unreadable"),
        (lambda site: (site / "devices/pi-1/site.crt").unlink(), "site.crt"),
    ],
)
def test_check_finds_what_is_wrong(
    damage, complaint: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", "check", str(site)]) == 0
    damage(site)
    capsys.readouterr()
    assert main(["deploy", "check", str(site)]) == 1
    bad = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WRONG")]
    assert any(complaint in line for line in bad)


def test_check_looks_at_one_machine_too(site: Path) -> None:
    assert wrong(site / "devices" / "pi-1") == []
    (site / "devices" / "pi-1" / "site.key").chmod(0o644)
    assert len(wrong(site / "devices" / "pi-1")) == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["init", "{site}", "--host", "hub.example"], "exists already"),
        (["init", "{new}", "--host", "hub.example:8000"], "leave out the port"),
        (["init", "{new}", "--host", "2001:db8::1"], "is an IPv6 address"),
        (["init", "{new}", "--host", "hub.example", "--device", "Pi_1"], "no name for a device"),
        (["init", "{new}", "--host", "hub.example", "--device", "server"], "no name for a device"),
        (["init", "{new}", "--host", "Hub", "--device", "hub"], "what the server is reached by"),
        (["init", "{new}", "--host", "h", "--device", "localhost"], "the server is reached by"),
        (["init", "{new}", "--host", "h", "--device", "a", "b", "a"], "already"),
        (["init", "{new}", "--host", "hub.example", "--insecure-loopback"], "127.0.0.1"),
        (["init", "{new}", "--host", "h", "--port", "7447"], "ports"),
        (["init", "{new}", "--host", "h", "--days", "0"], "days=0"),
        (["add-device", "{site}", "pi-1"], "already"),
        (["add-device", "{site}", "../pi"], "no name for a device"),
        (["add-device", "{site}", "localhost"], "what the server is reached by"),
        (["add-device", "{new}", "pi-3"], "edge-fl deploy init"),
        (["remove-device", "{site}", "pi-3"], "pi-1, pi-2"),
        (["renew", "{site}", "pi-3"], "server, pi-1, pi-2"),
        (["check", "{new}"], "no complete site directory"),
    ],
)
def test_refusals_change_nothing(
    words: list[str], complaint: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(site.parent)
    places = {"site": str(site), "new": str(site.parent / "new")}
    assert main(["deploy", *(word.format(**places) for word in words)]) == 2
    assert complaint in capsys.readouterr().err
    assert files(site.parent) == before


def test_insecure_needs_its_name_and_the_loopback_interface(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["deploy", "init", str(tmp_path / "trial"), "--host", "127.0.0.1", "--device", "a"]
    assert main([*words, "--insecure-loopback"]) == 0
    trial = tmp_path / "trial"
    site = read_site(trial / "devices" / "a")
    assert (site.credentials, site.endpoint) == (None, "tcp/127.0.0.1:7447")
    assert "--host 127.0.0.1 --insecure" in (trial / "server" / "start-superlink.sh").read_text()
    assert wrong(trial) == []
    assert main(["deploy", "renew", str(trial)]) == 2
    assert "insecure" in capsys.readouterr().err


def test_scripts_are_valid_and_have_no_gaps(site: Path) -> None:
    for path in site.rglob("*.sh"):
        subprocess.run(["sh", "-n", str(path)], check=True)
        assert path.stat().st_mode & 0o100
    for name, content in files(site).items():
        assert not re.search(rb"@[A-Z-]+@", content), name


def services(path: Path) -> dict[str, dict]:
    return yaml.safe_load(path.read_text())["services"]


def test_containers_get_no_more_than_they_need(site: Path) -> None:
    for path in site.rglob("compose.yaml"):
        assert set(services(path)) in ({"device"}, {"superlink", "superexec", "register"})
        for service in services(path).values():
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]
            own, state = service["volumes"]
            assert own == ".:/etc/edge-fl:ro"
            inside, outside = state[: len(state) // 2], state[len(state) // 2 + 1 :]
            assert inside == outside == service["environment"]["EDGE_FL_HOME"], "as runs print it"
            assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}


def test_images_have_one_user_and_no_credentials(site: Path) -> None:
    """Only what is named is sent to whoever builds: no keys, no environment of gigabytes."""
    device = site / "devices" / "pi-1"
    build = services(site / "server" / "compose.yaml")["superlink"]["build"]
    for dockerfile, place, known in (
        (device / "Dockerfile", device, {}),
        (ROOT / build["dockerfile"], ROOT, build["args"]),
    ):
        ignored, *allowed = [
            line
            for line in (place / ".dockerignore").read_text().splitlines()
            if not line.startswith(("#", "**/__pycache__"))
        ]
        copied, arguments = [], []
        for line in dockerfile.read_text().splitlines():
            word, _, rest = line.partition(" ")
            copied += rest.split()[:-1] if word == "COPY" else []
            arguments += [rest] if word == "ARG" else []
        assert ignored == "*"
        assert sorted(copied) == sorted(line.removeprefix("!") for line in allowed)
        assert all((place / name).exists() for name in copied)
        assert sorted(arguments) == sorted(known)
        # --system warns of a number beyond those of system users.
        [added] = re.findall(r"useradd (.*)", dockerfile.read_text())
        assert "--system" not in added
        assert f"--uid {CONTAINER_USER} " in added.replace("$UID", str(build["args"]["UID"]))


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="needs docker-compose")
def test_old_docker_compose_takes_the_files(site: Path) -> None:
    for path in site.rglob("compose.yaml"):
        done = subprocess.run(
            ["docker-compose", "-f", path, "config", "--quiet"],
            env=os.environ | {"EDGE_FL_SOURCE": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_device_that_stops_signs_off(site: Path) -> None:
    """If all processes are told at once, Flower's may be dead before it has told the server, which
    then refuses the device for the rest of a minute. The script tells it, and waits."""
    unit = (site / "devices" / "pi-1" / "edge-fl-device.service").read_text()
    assert re.search(r"^KillMode=mixed$", unit, re.MULTILINE)


def test_a_device_takes_no_cuda(site: Path) -> None:
    """By default: the wheels on PyPI bring gigabytes of it along."""
    lines = (site / "devices" / "pi-1" / "requirements-device.txt").read_text().splitlines()
    asked = [Requirement(line) for line in lines if line.startswith("torch")]
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in lines

    def of(machine: str) -> SpecifierSet:
        [one] = [each for each in asked if each.marker.evaluate({"platform_machine": machine})]  # type: ignore[union-attr]
        return one.specifier

    [pinned] = of("x86_64")
    assert pinned.operator == "=="
    assert pinned.version.endswith("+cpu")
    for machine in ("aarch64", "arm64"):
        assert "2.10.0" in of(machine)
        assert "2.11.0" not in of(machine)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_units_are_valid_and_hardened(site: Path, tmp_path: Path) -> None:
    """Exposure by `systemd-analyze security` at most 2.0 of 10 (a plain service has 9.6)."""
    units = [*site.glob("server/*.service"), site / "devices" / "pi-1" / "edge-fl-device.service"]
    for unit in units:
        analyze = ["systemd-analyze", "security", "--offline=true", "--threshold=20"]
        done = subprocess.run([*analyze, unit], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        # With a program that exists here, nothing is left to complain about.
        text = re.sub(r"^(Exec\w+)=.*", r"\1=/bin/true", unit.read_text(), flags=re.MULTILINE)
        copy = tmp_path / unit.name
        copy.write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False
        )
        assert unit.name not in done.stderr, done.stderr


def test_a_device_imports_nothing_beyond_its_requirements(site: Path) -> None:
    """Flower and torch bring along what they need; the app itself must not ask for more."""
    code = (
        "import sys, importlib\n"
        "from client_apps import HANDLERS\n"
        "import fl_app.client_app\n"
        "for target in HANDLERS.values(): importlib.import_module(target.split(':')[0])\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    needless = {
        "ray",
        "matplotlib",
        "torchvision",
        "onnx",
        "opacus",
        "tensorboard",
        "flwr_datasets",
    }
    assert not needless & set(done.stdout.split())
    path = site / "devices" / "pi-1" / "requirements-device.txt"
    for line in path.read_text().splitlines():
        assert line.startswith(("#", "-")) or Requirement(line).name not in needless


def test_a_site_of_an_earlier_version_gets_todays_scripts(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the credentials, names and ports that it has; and says who is to be restarted."""
    today = files(site)
    device, server = site / "devices" / "pi-1", site / "server"
    (device / "start-supernode.sh").write_text("#!/bin/sh\nexec flower-supernode\n")
    (device / "supernode.py").unlink()
    (device / "requirements-device.txt").write_text("flwr==1.0\n")
    (server / "edge-fl-superlink.service").write_text("[Unit]\n")
    (server / "edge-fl-register.service").unlink()
    shutil.rmtree(site / "flower")
    assert main(["deploy", "upgrade", str(site)]) == 0
    assert files(site) == today
    assert os.access(device / "start-supernode.sh", os.X_OK)
    said = capsys.readouterr().out
    assert "pi-2: nothing has changed, nothing to do" in said
    told = said[said.index("pi-1: ") : said.index("pi-2: ")]
    assert f"copy {device} to it (start-supernode.sh, supernode.py, requirements-device" in told
    assert [line.split()[0] for line in told.splitlines()[1:]] == ["pip", "restart"]
    assert "systemctl restart edge-fl-superlink edge-fl-superexec" in said
    assert main(["deploy", "upgrade", str(site)]) == 0
    assert capsys.readouterr().out.count("nothing has changed") == 3


def test_a_device_that_was_made_without_a_port_is_given_a_free_one(site: Path) -> None:
    path = site / "devices" / "pi-1" / "site.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in before.items() if k != "port"}))
    deployment.upgrade(site)
    ports = [json.loads(p.read_text())["port"] for p in site.glob("devices/*/site.json")]
    assert len(set(ports)) == 2


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_an_upgrade_of_what_is_no_deployment_is_refused(
    content: str | None, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = site / "devices" / "pi-1" / "site.json"
    path.write_text(content) if content else path.unlink()
    assert main(["deploy", "upgrade", str(site)]) == 2
    assert main(["deploy", "upgrade", str(site / "server" / "devices")]) == 2
    said = capsys.readouterr().err
    assert f"{path} cannot be read" in said
    assert "is no deployment" in said


class Control:
    """The SuperLink's Control interface, with the devices that it knows."""

    def __init__(self, *known: nodes.Node) -> None:
        self.known, self.calls = list(known), list[str]()

    def ListNodes(self, _: Any) -> Any:  # noqa: N802 - Flower's name
        infos = [SimpleNamespace(**vars(n), public_key=n.key) for n in self.known]
        return SimpleNamespace(nodes_info=infos)

    def UnregisterNode(self, request: Any) -> None:  # noqa: N802
        self.calls.append(f"cut off {request.node_id}")

    def RegisterNode(self, request: Any) -> None:  # noqa: N802
        if request.public_key in {node.key for node in self.known}:
            refusal = httpx.Response(409, text="in use already")
            raise httpx.HTTPStatusError("409", request=httpx.Request("POST", ""), response=refusal)
        self.calls.append(f"registered {request.name}")
        self.known.append(nodes.Node(0, request.name, request.public_key, "registered"))


def test_a_key_that_is_left_over_in_a_copy_lets_nobody_in(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who copies the server's folder over an older one removes no file there."""
    copy = tmp_path / "copy"
    shutil.copytree(site / "server", copy)
    key = nodes._key(copy / "devices" / "pi-1.pub")
    assert main(["deploy", "remove-device", str(site), "pi-1"]) == 0
    shutil.copytree(site / "server", copy, dirs_exist_ok=True)
    assert (copy / "devices" / "pi-1.pub").exists()
    control, said = Control(nodes.Node(7, "pi-1", key, "online")), list[str]()
    monkeypatch.setattr(nodes, "_control", lambda _: contextlib.nullcontext(control))
    nodes.register(copy, said.append)
    assert control.calls == ["cut off 7", "registered pi-2"]
    assert said[0] == f"left over, and of no device of the site: {copy}/devices/pi-1.pub"


def test_a_device_without_a_good_key_keeps_no_other_out(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it cut off itself, if it was registered before."""
    server = site / "server"
    for name in ("a", "b", "z"):
        deployment.add_device(site, name)
    was = nodes._key(server / "devices" / "b.pub")
    (server / "devices" / "a.pub").unlink()
    (server / "devices" / "b.pub").write_text("no key")
    shutil.copy(server / "devices" / "pi-1.pub", server / "devices" / "pi-2.pub")
    known = (nodes.Node(7, "gone", b"gone", "online"), nodes.Node(8, "b", was, "online"))
    control, said = Control(*known), list[str]()
    monkeypatch.setattr(nodes, "_control", lambda _: contextlib.nullcontext(control))
    with pytest.raises(EdgeFlError) as caught:
        nodes.register(server, said.append)
    assert control.calls == ["cut off 7", "registered pi-1", "registered z"]
    assert said == ["cut off: gone", "registered: pi-1", "registered: z"]
    told = str(caught.value)
    assert told.startswith(f"all others are registered, but not: a: {server}/devices/a.pub holds")
    assert f"b: {server}/devices/b.pub holds no public key" in told
    assert "pi-2: the SuperLink refuses its key: in use already" in told


def test_a_deployment_without_keys_has_none_to_register(tmp_path: Path) -> None:
    deployment.create(tmp_path / "trial", "127.0.0.1", devices=["a"], insecure=True)
    nodes.register(tmp_path / "trial" / "server")


def test_a_superlink_does_not_depend_on_its_devices_keys(site: Path) -> None:
    """Under systemd what it starts with must succeed, or it ends."""
    superlink = (site / "server" / "edge-fl-superlink.service").read_text()
    register = (site / "server" / "edge-fl-register.service").read_text()
    assert "ExecStartPost" not in superlink
    assert re.search(r"^Wants=.*edge-fl-register\.service", superlink, re.MULTILINE)
    assert re.search(r"^ExecStart=.* register$", register, re.MULTILINE)
    assert re.search(r"^Restart=on-failure$", register, re.MULTILINE)
