"""`edge-fl new`: an app of one's own, which both commands run."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate

from fl_app.cli import main
from fl_app.config import TASKS, configure, defaults
from fl_app.launch import run as launch
from fl_app.launch import signals
from fl_app.launch.bundle import own_app, settings_of, submitted
from fl_app.manage.plan import planned
from fl_app.new import create
from fl_app.preflight import preflight
from fl_app.record.run_dir import RunDirectory, flatten
from strategies.errors import ConfigError
from strategies.paths import runs_root

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "ecg", "--task", "tables"]) == 0
    monkeypatch.chdir(tmp_path / "ecg")
    return tmp_path / "ecg"


def config_of(folder: Path) -> dict:
    return flatten(tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"])


def test_flower_takes_it_and_a_run_of_each_mode_could_begin(app: Path) -> None:
    _, warnings = load_and_validate(app / "pyproject.toml")
    assert warnings == []
    assert build_fab_from_disk(app)
    keys = {k.removeprefix("config."): v for k, v in config_of(app).items() if "config." in k}
    for mode in ("distill", "average", "consensus"):
        assert configure(keys | {"mode": mode}, fused=True).mode == mode
    done = subprocess.run(
        [sys.executable, "-c", "import server_app, client_app; print(server_app.app)"],
        cwd=app, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "ServerApp" in done.stdout, done.stderr


def test_a_sweep_and_a_picture_in_its_folder_are_of_it(
    app: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What has been run there is found again."""
    text = (app / "pyproject.toml").read_text()
    (app / "pyproject.toml").write_text(text.replace("participants = 0", "participants = 4"))
    assert config_of(app)["config.participants"] == 4
    monkeypatch.setenv("EDGE_FL_HOME", str(app.parent / "home"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    [each] = planned(["seed=3"], "sweep")
    assert (each.config["participants"], each.state) == (4, "missing")
    done = RunDirectory.create(runs_root(), each.config)
    done.write_summary({"status": "completed"})
    assert [each.state for each in planned(["seed=3", "learning-rate=0.05,0.1"], "sweep")] == [
        "done", "missing",
    ]  # fmt: skip
    assert main(["data", "show"]) == 0
    assert "participant 3:" in capsys.readouterr().out


def test_flower_installs_nothing_for_it(app: Path) -> None:
    """What it depends on Flower would ask a registry for, before every run; and edge-fl is in none.
    An older one, and who installs from elsewhere, may depend on it all the same."""
    assert tomllib.loads((app / "pyproject.toml").read_text())["project"]["dependencies"] == []
    text = (app / "pyproject.toml").read_text().replace("[tool.edge-fl]", "[tool.other]")
    (app / "pyproject.toml").write_text(text)
    assert own_app(app) is None
    (app / "pyproject.toml").write_text(text.replace("= []", '= ["edge-fl>=0.1"]'))
    assert own_app(app) == app


def test_edge_fl_run_in_its_folder_is_a_run_of_it(
    app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (app / "pyproject.toml").read_text()
    (app / "pyproject.toml").write_text(text.replace("seed = 0", "seed = 7"))
    monkeypatch.setenv("EDGE_FL_HOME", str(app.parent / "home"))
    asked: list = []
    monkeypatch.setattr(launch, "check_workers", lambda: None)
    monkeypatch.setattr(launch, "preflight", lambda config: asked.append(config))
    monkeypatch.setattr(signals, "heed", lambda _: None)
    monkeypatch.setattr(launch, "size_for", lambda *_: {})
    monkeypatch.setattr(launch, "_run_to_the_end", lambda given, *_: asked.append(given) or 0)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["run", "participants=4"]) == 0
    config, given = asked
    assert (config.seed, config.participants) == (7, 4)
    assert {"seed": 7, "participants": 4}.items() <= given.items()
    assert sys.path[0] == str(app)


def test_what_is_submitted_is_the_app_with_all_keys(app: Path) -> None:
    (app / ".venv").mkdir()
    config = configure({})
    with submitted(config, remote=False, app=own_app(app)) as place:
        sent = config_of(place)
        assert {path.name for path in place.iterdir()} == {path.name for path in app.iterdir()} - {
            ".venv"
        }
        _, warnings = load_and_validate(place / "pyproject.toml")
    assert warnings == []
    assert {k.removeprefix("config."): v for k, v in sent.items() if "config." in k} == defaults()
    assert sent["components.serverapp"] == "server_app:app"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no TOML",
        '[project]\ndependencies = ["edge-fl-other"]\n[tool.flwr.app]\npublisher = "x"',
    ],
)
def test_other_folders_are_no_app_of_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    assert own_app(tmp_path) is None
    assert own_app(tmp_path / "absent") is None
    assert own_app(ROOT) is None


def test_a_key_that_there_is_not_is_named(app: Path) -> None:
    text = (app / "pyproject.toml").read_text()
    (app / "pyproject.toml").write_text(f"{text}partisipants = 3\n")
    with pytest.raises(ConfigError, match="edge-fl has no key partisipants"):
        settings_of(app)


def test_its_own_test_passes(app: Path) -> None:
    """That of the task, too, which is a class in its folder."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0"],
        cwd=app, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("task", TASKS)
def test_the_task_of_each_kind_fits_every_mode(task: str, tmp_path: Path) -> None:
    folder = create("heart-rate", tmp_path, task)
    assert config_of(folder)["config.task"] == "task:HeartRate"
    for mode in ("distill", "consensus"):
        preflight(configure({"task": f"{folder / 'task.py'}:HeartRate", "mode": mode}))


@pytest.mark.parametrize(
    ("name", "task", "kind"),
    [
        ("true", "tables", "TrueTask(Tables)"),
        ("preparation", "images", "PreparationTask(Classification)"),
        ("SPEC", "images", "SPECTask(Classification)"),
        ("byte-model", "text", "ByteModelTask(Text)"),
    ],
)
def test_a_class_hides_no_word_of_the_language_and_of_its_file(
    name: str, task: str, kind: str, tmp_path: Path
) -> None:
    assert f"class {kind}:" in (create(name, tmp_path, task) / "task.py").read_text()


@pytest.mark.parametrize(
    ("name", "task", "complaint"),
    [
        ("a/b", "images", "is no name for an app"),
        ("1a", "images", "is no name for an app"),
        ("a-", "images", "is no name for an app"),
        ("there", "images", "is there already"),
        ("fine", "sounds", "choose one of: images, tables, text"),
    ],
)
def test_what_cannot_be_made_is_refused(
    name: str, task: str, complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match=complaint):
        create(name, tmp_path, task)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
