"""The start scripts of a site: where they write, and what they refuse."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fl_app.cli import main
from fl_app.deploy.directory import create
from fl_app.deploy.serve import _alone
from fl_app.deploy.templates.device import supernode

SCRIPTS = ("server/start-superlink.sh", "devices/a/start-supernode.sh")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """With programs beside it, in `venv`, that tell where they were started."""
    create(tmp_path / "site", "127.0.0.1", devices=["a"], insecure=True)
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    lines = (
        "#!/bin/sh",
        f'[ "$1" = -c ] && exec {sys.executable} "$@"',
        f'echo "$$ $PWD" > {tmp_path}/told',
        f"[ -e {tmp_path}/stays ] && exec sleep 60",
    )
    for name in ("edge-fl", "flower-supernode", "python"):
        # The device's script would start it again and again.
        last = "kill $PPID\n" if name == "python" else ""
        (programs / name).write_text("\n".join((*lines, last)))
        (programs / name).chmod(0o700)
    return tmp_path / "site"


def start(script: Path, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ["sh", str(script)],
        cwd=script.parent,
        env={"PATH": os.defpath, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_relative_place_is_one_of_where_the_script_is_started(name: str, site: Path) -> None:
    script = site / name
    up = os.path.relpath(site.parent, script.parent)
    with start(script, EDGE_FL_VENV=f"{up}/venv", EDGE_FL_STATE=f"{up}/its state") as process:
        process.wait(60)
    place = (site.parent / "told").read_text().strip().partition(" ")[2]
    assert Path(place).resolve() == site.parent / "its state"
    assert (site.parent / "its state" / "flower").is_dir()


def test_a_server_without_its_programs_says_so_and_writes_nothing(site: Path) -> None:
    if shutil.which("edge-fl", path=os.defpath):
        pytest.skip("edge-fl is where every shell finds it")
    before = sorted(site.rglob("*"))
    with start(site / SCRIPTS[0]) as process:
        assert process.wait(60) == 2
        assert process.stderr is not None
        assert "no edge-fl on the PATH" in process.stderr.read()
    assert sorted(site.rglob("*")) == before


def test_a_device_is_started_once_and_again_when_its_script_is_gone(site: Path) -> None:
    script, venv, told = site / SCRIPTS[1], str(site.parent / "venv"), site.parent / "told"
    (site.parent / "stays").touch()
    with start(script, EDGE_FL_VENV=venv) as first:
        left = pid_in(told)
        with start(script, EDGE_FL_VENV=venv) as second:
            assert second.wait(60) == 2
            assert second.stderr is not None
            said = second.stderr.read()
            assert f"this device runs already (state in {script.parent}/state)" in said
        assert first.poll() is None
        first.kill()  # so that what it has started goes on
    told.unlink()
    with start(script, EDGE_FL_VENV=venv) as third:
        assert pid_in(told) != left
        third.kill()
    for pid in (left, pid_in(told)):
        os.kill(pid, signal.SIGKILL)


def pid_in(path: Path) -> int:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(path.read_text().split()[0])


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"port {port} is taken; EDGE_FL_PORT="):
            supernode._check_port("127.0.0.1", port)
    supernode._check_port("127.0.0.1", port)


def test_a_server_is_started_once(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGE_FL_STATE", str(tmp_path))
    with _alone(tmp_path):
        assert main(["deploy", "serve", str(site)]) == 2
    assert f"this server runs already (state in {tmp_path})" in capsys.readouterr().err
    with _alone(tmp_path):  # whoever had it gave it back
        pass


def test_a_file_system_without_locks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with _alone(tmp_path):
        pass
