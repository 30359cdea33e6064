"""Odd surroundings of a run: proxies, others' packages, encodings, places, clusters."""

import os
import pwd
import shutil
import socket
import string
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import entry_points
from pathlib import Path
from unittest import mock

import httpx
import pytest

from fl_app.cli import main
from fl_app.data.cache import cache_directory
from fl_app.deploy.directory import create
from fl_app.deploy.nodes import register
from fl_app.launch import cluster
from fl_app.launch.cluster import resources_of
from fl_app.launch.run import run
from fl_app.launch.surroundings import check_workers, settle
from strategies.errors import ConfigError, EdgeFlError
from strategies.paths import runs_root
from strategies.site import read_site

ROOT = Path(__file__).resolve().parents[1]
DEAD = "127.0.0.1:9"  # nobody listens there
installed = pytest.mark.skipif(
    not entry_points(group="console_scripts", name="edge-fl"), reason="edge-fl is not installed"
)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What a test changes in the environment is put back; it begins without proxies."""
    with mock.patch.dict(os.environ):
        for name in list(os.environ):
            if name.lower().endswith("_proxy"):
                del os.environ[name]
        yield


def python(code: str, *switches: str, cwd: Path, **variables: str) -> str:
    """What `code` prints in a fresh process of this environment."""
    command = [sys.executable, *switches, "-c", code]
    environment = os.environ | variables
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -------------------------------------------------------------------------------- proxies


@pytest.fixture
def server() -> Iterator[str]:
    """The address of an HTTP server on this machine."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/"
        running.shutdown()


@installed
@pytest.mark.parametrize(
    "variables",
    [
        {"http_proxy": f"http://{DEAD}"},
        {"HTTP_PROXY": DEAD, "NO_PROXY": "example.org"},
        {"ALL_PROXY": f"socks5://{DEAD}"},
        {"all_proxy": f"socks5h://{DEAD}", "no_proxy": "localhost,127.0.0.1"},
    ],
)
def test_programs_of_the_environment_reach_this_machine_without_a_proxy(
    variables: dict[str, str], server: str, tmp_path: Path
) -> None:
    code = f"import httpx, os; print(httpx.get({server!r}).status_code, os.environ['no_proxy'])"
    status, hosts = python(code, cwd=tmp_path, **variables).split()
    assert status == "200"
    assert set(hosts.split(",")) == {"127.0.0.1", "localhost"} | (
        {"example.org"} if "NO_PROXY" in variables else set()
    )


@installed
def test_without_a_proxy_the_environment_stays_as_it_is(tmp_path: Path) -> None:
    code = "import os; print([name for name in os.environ if name.lower() == 'no_proxy'])"
    assert python(code, cwd=tmp_path) == "[]\n"


def test_what_flowers_http_client_does_not_start_with_is_left_out_and_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    os.environ |= {
        "https_proxy": f"http://{DEAD}",
        "ALL_PROXY": f"socks://{DEAD}",
        "no_proxy": "localhost, [::1],127.0.0.1",
    }
    with pytest.raises((httpx.InvalidURL, ValueError)):
        httpx.Client()
    settle()
    httpx.Client().close()
    left = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    hosts = "localhost,127.0.0.1"
    assert left == {"https_proxy": f"http://{DEAD}", "no_proxy": hosts, "NO_PROXY": hosts}
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", with")[0] for line in lines] == [
        "edge-fl: without no_proxy=[::1]",
        f"edge-fl: without ALL_PROXY=socks://{DEAD}",
    ]


# ------------------------------------------------------------- the interpreter's variables


@installed
def test_the_command_runs_its_own_packages(tmp_path: Path) -> None:
    packages = ("fl_app", "strategies", "client_apps", "torch")
    for name in packages:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemError('of somebody else')")
    code = (
        "import sys, edge_fl; sys.argv = ['edge-fl', 'config']; edge_fl.main()\n"
        "from importlib.util import find_spec\n"
        f"print(*[find_spec(name).origin for name in {packages}], sep='\\n')"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    found = python(code, cwd=elsewhere, PYTHONPATH=str(tmp_path)).splitlines()[-len(packages) :]
    assert not [path for path in found if Path(path).is_relative_to(tmp_path)]


def test_what_bends_python_is_not_handed_on() -> None:
    bending = ("PYTHONPATH", "PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONIOENCODING")
    os.environ |= dict.fromkeys(bending, "x") | {"PYTHONDONTWRITEBYTECODE": "1"}
    settle()
    assert not set(bending) & set(os.environ)
    assert os.environ["PYTHONDONTWRITEBYTECODE"] == "1"


def test_in_another_encoding_the_command_starts_again_with_utf8(tmp_path: Path) -> None:
    code = (
        "import sys, edge_fl; sys.argv = ['edge-fl', 'config']; edge_fl.main()\n"
        "print(sys.getfilesystemencoding(), sys.stdout.encoding)"
    )
    variables = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert python(code, cwd=ROOT, **variables).splitlines()[-1] == "utf-8 utf-8"


@pytest.mark.parametrize(
    ("program", "refused"), [("flwr-simulation", True), ("flwr-serverapp", False)]
)
def test_a_simulation_without_docstrings_is_refused(program: str, refused: bool) -> None:
    code = (
        f"import sys; sys.argv[0] = '/bin/{program}'\n"
        "from fl_app.launch.surroundings import check_simulation\n"
        "try: check_simulation()\n"
        "except Exception as error: print(error)"
    )
    assert ("PYTHONOPTIMIZE" in python(code, "-OO", cwd=ROOT)) is refused


@pytest.mark.parametrize("machine", ["server", "devices/pi-1"])
def test_the_scripts_of_a_deployment_settle_their_surroundings(
    machine: str, tmp_path: Path
) -> None:
    create(tmp_path / "site", "127.0.0.1", devices=["pi-1"], insecure=True)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("edge-fl", "flower-supernode", "python"):
        # The device's script would start it again and again.
        (programs / name).write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\nkill $PPID 2>/dev/null\n")
        (programs / name).chmod(0o700)
    (script,) = (tmp_path / "site" / machine).glob("start-*.sh")
    given = {"NO_PROXY": "example.org", "PYTHONPATH": "/x", "PYTHONOPTIMIZE": "2"}
    command = ["sh", "-c", '"$0"; true', str(script)]
    environment = os.environ | given | {"EDGE_FL_VENV": str(tmp_path), "EDGE_FL_AGAIN": "0"}
    subprocess.run(command, env=environment, check=False, capture_output=True, timeout=60)
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines())
    assert seen["no_proxy"] == seen["NO_PROXY"] == "example.org,127.0.0.1,localhost"
    assert not {"PYTHONPATH", "PYTHONOPTIMIZE"} & set(seen)


# ---------------------------------------------------------------------------------- places


def test_a_place_where_ray_cannot_start_python_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/home/me/my projects/edge-fl/.venv/bin/python")
    with pytest.raises(ConfigError, match=r"my projects.* has ' ' in it; move the clone"):
        run({})
    assert list(tmp_path.iterdir()) == []


def test_without_bash_nothing_starts(tmp_path: Path) -> None:
    os.environ |= {"EDGE_FL_HOME": str(tmp_path), "PATH": str(tmp_path)}
    with pytest.raises(ConfigError, match=f"bash, which is not on the PATH, '{tmp_path}'"):
        run({})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [None, ""])
def test_without_a_path_programs_are_where_a_shell_finds_them(path: str | None) -> None:
    os.environ.pop("PATH")
    os.environ |= {} if path is None else {"PATH": path}
    settle()
    assert os.environ["PATH"] == os.defpath


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("sign", [sign for sign in string.punctuation + " ü" if sign != "/"])
def test_setup_refuses_the_places_that_a_run_refuses(
    sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / f"a{sign}b"
    place.mkdir()
    (place / "Makefile").write_text((ROOT / "Makefile").read_text())
    command = ["make", "environment", "PYTHON_CANDIDATES=no-such-python"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    monkeypatch.setattr(sys, "executable", str(place / ".venv" / "bin" / "python"))
    try:
        check_workers()
        assert "no-such-python" in done.stderr
    except ConfigError:
        assert "move the clone" in done.stderr
    assert done.returncode
    assert [path.name for path in place.iterdir()] == ["Makefile"]


@pytest.mark.parametrize(
    "words",
    [
        ["run", "output=~no-such-user/runs"],
        ["run", "data-path=~no-such-user/x.npz"],
        ["run", f"output=/{'x' * 300}"],
        ["deploy", "check", "~no-such-user"],
        ["deploy", "check", "x" * 300],
        ["deploy", "init", "x" * 300, "--host", "h"],
        ["deploy", "init", "\udc80", "--host", "h"],
        ["deploy", "register", "x" * 300],
        ["resume", "x" * 300],
    ],
)
def test_a_path_that_cannot_be_is_refused_in_one_line(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.environ["EDGE_FL_HOME"] = str(tmp_path)
    assert main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("home", ["~no-such-user/x", ""])
def test_a_home_that_cannot_be_found_is_named(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.environ["EDGE_FL_HOME"] = home
    os.environ.pop("HOME", None)
    monkeypatch.setattr(pwd, "getpwuid", mock.Mock(side_effect=KeyError))
    for ask in (cache_directory, runs_root, lambda: read_site("~/site")):
        with pytest.raises(EdgeFlError, match="home directory that cannot be found"):
            ask()


def test_a_deployment_may_be_where_its_path_has_odd_signs(tmp_path: Path) -> None:
    place = tmp_path / 'größer " 😀'
    create(place, "127.0.0.1", devices=["pi-1"])
    configuration = tomllib.loads((place / "flower" / "config.toml").read_text())
    certificate = configuration["superlink"]["edge"]["root-certificates"]
    assert Path(certificate) == place / "server" / "ca.crt"
    # But Flower cuts such a path off in the configuration of a SuperNode.
    script = place / "devices" / "pi-1" / "start-supernode.sh"
    done = subprocess.run([script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert 'no path with "' in done.stderr


def test_the_folder_of_a_server_without_its_certificates_is_named(tmp_path: Path) -> None:
    create(tmp_path / "site", "127.0.0.1", devices=["pi-1"])
    (tmp_path / "site" / "server" / "ca.crt").unlink()
    with pytest.raises(EdgeFlError, match=r"ca\.crt"):
        register(tmp_path / "site" / "server")


# Flower's programs, which print, and end with the script that starts them.
FAKE_PROGRAM = "#!/bin/sh\nwhile [ -e on ]; do echo it is at work; sleep 0.01; done\n"


@pytest.mark.parametrize(
    ("machine", "words", "programs"),
    [
        ("devices/pi-1", ["start-supernode.sh"], ["flower-supernode", "python"]),
        ("server", ["start-superlink.sh", "superexec"], ["flower-superexec"]),
    ],
)
def test_a_log_that_is_appended_to_may_be_cut_off_while_it_is_written(
    machine: str, words: list[str], programs: list[str], tmp_path: Path
) -> None:
    """What logrotate's `copytruncate` does: it goes on at its new end, without a hole before."""
    create(tmp_path / "site", "127.0.0.1", devices=["pi-1"])
    state, log = tmp_path / "state", tmp_path / "edge-fl.log"
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    for name in programs:
        program = tmp_path / "venv" / "bin" / name
        program.write_text(FAKE_PROGRAM)
        program.chmod(0o755)
    state.mkdir()
    (state / "on").touch()
    own = {"EDGE_FL_VENV": str(tmp_path / "venv"), "EDGE_FL_STATE": str(state)}

    def grow(beyond: int) -> None:
        while not log.exists() or log.stat().st_size <= beyond:
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)

    command = [str(tmp_path / "site" / machine / words[0]), *words[1:]]
    with log.open("ab") as out:  # as the shell's >> does
        process = subprocess.Popen(command, env=os.environ | own, stdout=out, stderr=out)
    try:
        grow(100)
        os.truncate(log, 0)
        grow(50)
        assert b"\0" not in log.read_bytes()
        assert log.read_bytes().startswith(b"it is")
    finally:
        (state / "on").unlink()
        process.terminate()
        process.wait()


# A Python that makes environments as `make setup` wants them, and notes what it was asked for.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  "-m venv --clear .venv")
    rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp "$0" .venv/bin/uv;;
esac
echo "${0##*/} $1 $2" >> calls
"""


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_a_clone_that_was_copied_or_moved_gets_an_environment_of_its_own(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    for name in ("pyproject.toml", "uv.lock", "hatch_build.py", "flower_environment.pth"):
        (first / name).touch()
    (first / "Makefile").write_text((ROOT / "Makefile").read_text())
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)

    def calls(place: Path) -> list[str]:
        command = ["make", "setup", f"PYTHON_CANDIDATES={python}"]
        subprocess.run(command, cwd=place, check=True)
        made = [line for line in (place / "calls").read_text().splitlines() if "-c" not in line]
        (place / "calls").write_text("")
        return made

    everything = ["python --version ", "python -m venv", "python -m pip", "uv sync --frozen"]
    assert calls(first) == everything
    assert calls(first) == []
    copy = Path(shutil.copytree(first, tmp_path / "copy", symlinks=True))
    assert calls(copy) == everything
    assert calls(copy) == []
    moved = copy.rename(tmp_path / "moved")
    assert calls(moved) == everything
    assert calls(first) == []


# ------------------------------------------------------------------------------- a cluster


@pytest.fixture
def listener() -> Iterator[str]:
    """The address of somebody who listens and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("address", [DEAD, f"ray://{DEAD}", "here", "a:b"])
def test_where_nobody_listens_ray_is_not_even_asked(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.subprocess, "run", mock.Mock(side_effect=AssertionError))
    with pytest.raises(ConfigError, match=f"no Ray cluster at {address}: "):
        resources_of(address)


def test_whoever_does_not_answer_is_no_cluster(
    listener: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.5)
    with pytest.raises(ConfigError, match=f"{listener}: no answer within"):
        resources_of(listener)


@pytest.mark.parametrize("there", [True, False])
def test_a_cluster_is_asked_for_its_resources(there: bool, listener: str, tmp_path: Path) -> None:
    answer = "" if there else "raise SystemExit('of another version')"
    (tmp_path / "ray.py").write_text(
        f"def init(address, **_):\n    assert address == {listener!r}; print('hello'); {answer}\n"
        "def cluster_resources():\n    return {'CPU': 6.0}\n"
    )
    os.environ["PYTHONPATH"] = str(tmp_path)
    if there:
        assert resources_of(listener) == {"CPU": 6.0}
    else:
        with pytest.raises(ConfigError, match=f"{listener}: of another version"):
            resources_of(listener)
