"""What travels: the Flower app bundle, the lock file, and what an installation adds."""

import io
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate

from fl_app.config import defaults, resolve
from fl_app.data import embedded
from fl_app.effects import described
from fl_app.launch.bundle import submitted
from strategies import pyproject
from tests.wheel import edge_fl

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def bundle() -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT)))


def test_flower_accepts_the_app_without_a_warning() -> None:
    _, warnings = load_and_validate(ROOT / "pyproject.toml")
    assert warnings == []


def test_the_bundle_is_the_app_and_nothing_else(bundle: zipfile.ZipFile) -> None:
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in ("fl_app", "strategies", "client_apps")
        for path in (ROOT / package).rglob("*.py")
    }
    others = set(bundle.namelist()) - sources - {".info/CONTENT"}
    assert sources <= set(bundle.namelist())
    data = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("fl_app/data/embedded/*")}
    assert others == {"pyproject.toml", "LICENSE"} | data


def test_devices_get_all_of_it_but_the_images(bundle: zipfile.ZipFile) -> None:
    with submitted(resolve({"clock": "real"}), remote=True) as place:
        sent = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(place)))
    assert not place.exists()
    lacking = set(bundle.namelist()) - set(sent.namelist())
    assert lacking == {f"fl_app/data/embedded/{name}" for name in embedded.FILES}
    own = set(sent.namelist()) - {".info/CONTENT"}
    assert all(sent.read(name) == bundle.read(name) for name in own)


def test_the_data_that_a_task_of_ones_own_may_read_go_with_it() -> None:
    with submitted(
        resolve({"clock": "real", "task": "tests.some_tasks:Points"}), remote=True
    ) as place:
        there = {path.name for path in (place / "fl_app" / "data" / "embedded").iterdir()}
    assert there & embedded.FILES.keys() == embedded.FILES.keys() - set(embedded.IMAGES)


@pytest.mark.parametrize(("sessions", "remote"), [("off", True), ("auto", False)])
def test_who_has_no_other_way_to_the_images_gets_them(sessions: str, remote: bool) -> None:
    with submitted(resolve({"sessions": sessions}), remote=remote) as place:
        assert place == ROOT


def test_a_wheel_has_its_defaults(installed: Path, tmp_path: Path) -> None:
    done = edge_fl(installed, tmp_path, "config")
    assert (done.returncode, done.stderr) == (0, "")
    lines = described((ROOT / "pyproject.toml").read_text())
    assert done.stdout == "".join(f"{line}\n" for line in lines)


def test_what_a_wheel_submits_is_the_bundle_of_the_clone(
    installed: Path, bundle: zipfile.ZipFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyproject, "PACKAGES", installed)
    monkeypatch.setattr(pyproject, "PATH", installed / "fl_app" / "pyproject.toml")
    (installed / "pyproject.toml").write_text("[project]\nname = 'somebody-else'\n")
    with submitted(resolve(), remote=False) as place:
        sent = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(place)))
    assert not place.exists()
    assert sorted(sent.namelist()) == sorted(bundle.namelist())
    own = set(sent.namelist()) - {".info/CONTENT"}
    assert all(sent.read(name) == bundle.read(name) for name in own)


def test_the_bundle_has_room_to_grow(bundle: zipfile.ZipFile) -> None:
    assert sum(entry.compress_size for entry in bundle.infolist()) < 0.7 * 10 * 2**20


def test_an_unpacked_bundle_finds_its_defaults_and_data(
    bundle: zipfile.ZipFile, tmp_path: Path
) -> None:
    bundle.extractall(tmp_path)
    code = (
        "from fl_app.config import resolve; from fl_app.assemble import dataset_of; import fl_app;"
        "print(fl_app.__file__, len(dataset_of(resolve()).train.labels))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    file, count = result.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert int(count) >= 6000


def test_every_default_is_valid() -> None:
    """And none is another one in disguise, but for those that follow another key."""
    resolved = resolve().flat()
    changed = {key for key, value in defaults().items() if resolved[key] != value}
    assert changed == {"participants", "partition", "normalisation"}


def test_no_federations_in_pyproject() -> None:
    # `flwr run` would move the table into the user's configuration and change their default.
    assert "federations" not in PROJECT["tool"]["flwr"]


def test_make_installs_the_locked_uv() -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    (locked,) = (package["version"] for package in lock["package"] if package["name"] == "uv")
    (made,) = re.findall(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert made == locked


def test_torch_and_torchvision_are_locked_to_one_index() -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    sources = {
        package["name"]: package["source"]
        for package in lock["package"]
        if package["name"] in ("torch", "torchvision")
    }
    assert sources["torch"] == sources["torchvision"]


def test_the_lock_is_up_to_date() -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv")
    # One that is up to date is found to be so without index or cache.
    result = subprocess.run(
        [uv, "lock", "--check", "--offline"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_installed_command_is_the_cli() -> None:
    (script,) = entry_points(group="console_scripts", name="edge-fl") or pytest.skip(
        "edge-fl is not installed here"
    )
    assert script.value == PROJECT["project"]["scripts"]["edge-fl"] == "edge_fl:main"


def test_an_editable_install_keeps_flower_from_reinstalling_the_dependencies() -> None:
    if not entry_points(group="console_scripts", name="edge-fl"):
        pytest.skip("edge-fl is not installed here")
    # What `flower-superlink` computes as the default of its option, in a fresh process.
    code = (
        "from flwr.superlink.cli.flower_superlink import _runtime_dependency_install_default as f;"
        "print(f())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
