"""The run directory: never clobbers, never half-written, survives a crash at any byte."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.record import json_data
from fl_app.record.run_dir import RunDirectory, flatten, list_runs
from strategies.errors import RunDirectoryError
from strategies.paths import runs_root

CONFIG = {"mode": "distill", "seed": 3, "distill": {"variant": "sync", "steps": 20}}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs", CONFIG)


def kinds(run: RunDirectory) -> list[str]:
    return [event["event"] for event in run.events()]


def test_the_root_is_configured_or_from_the_environment_or_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGE_FL_HOME", "/somewhere")
    assert runs_root("/data/runs") == Path("/data/runs")
    assert runs_root() == Path("/somewhere/runs")
    monkeypatch.delenv("EDGE_FL_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert runs_root() == Path("/home/ada/.edge-fl/runs")
    assert runs_root("~/mine") == Path("/home/ada/mine")


def test_a_relative_root_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunDirectoryError, match=r"'results' is a relative path; give an absolute"):
        runs_root("results")
    monkeypatch.setenv("EDGE_FL_HOME", "here")
    with pytest.raises(RunDirectoryError, match=r"EDGE_FL_HOME='here' is a relative path"):
        runs_root()
    with pytest.raises(RunDirectoryError, match=r"not an absolute path"):
        RunDirectory.create(Path("results"), CONFIG)


def test_a_new_run_has_its_configuration_and_environment(run: RunDirectory) -> None:
    assert run.config() == CONFIG
    environment = run.environment()
    assert environment["packages"]["numpy"] == np.__version__
    assert environment["python"] == sys.version.split()[0]
    assert environment["cpus"] >= 1
    assert environment["memory_bytes"] > 0
    assert run.name.startswith("distill-sync-2")
    assert run.name.endswith("-1")
    assert run.events() == []
    assert run.summary() == {}


def test_a_run_directory_is_cheap_to_import_and_to_describe() -> None:
    code = (
        "import sys; from fl_app.record import compare, environment, figures, report, sinks; "
        "environment.describe(); print({'torch', 'matplotlib', 'jinja2'} & set(sys.modules))"
    )
    root = Path(__file__).parent.parent
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_runs_of_the_same_second_do_not_clobber_each_other(tmp_path: Path) -> None:
    paths = {RunDirectory.create(tmp_path, CONFIG).path for _ in range(5)}
    assert len(paths) == 5


def test_a_taken_name_is_refused_and_left_alone(tmp_path: Path) -> None:
    first = RunDirectory.create(tmp_path, CONFIG, name="mine")
    first.emit("finished", status="completed")
    with pytest.raises(RunDirectoryError, match=r"mine exists already; choose another name"):
        RunDirectory.create(tmp_path, {}, name="mine")
    assert kinds(RunDirectory.open(first.path)) == ["finished"]


@pytest.mark.parametrize("name", ["..", "a/b", "/abs"])
def test_a_name_cannot_leave_the_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunDirectoryError, match=r"one path component"):
        RunDirectory.create(tmp_path / "runs", CONFIG, name=name)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"cannot make a run directory in .*file/runs"):
        RunDirectory.create(tmp_path / "file" / "runs", CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("failing", ["config.json", "environment.json"])
def test_a_failed_creation_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    real = json_data.atomic_write

    def write(path: Path, data: bytes) -> None:
        if path.name == failing:
            raise RunDirectoryError(f"cannot write {path}")
        real(path, data)

    monkeypatch.setattr(json_data, "atomic_write", write)
    with pytest.raises(RunDirectoryError, match=failing):
        RunDirectory.create(tmp_path / "deep" / "runs", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_creation_leaves_other_runs_alone(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunDirectoryError, match=r"No space left on device"):
            RunDirectory.create(run.path.parent, CONFIG)
    assert list(run.path.parent.iterdir()) == [run.path]


def test_opening_names_what_is_missing(tmp_path: Path, run: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError, match=r"there is no run directory .*absent"):
        RunDirectory.open(tmp_path / "absent")
    with pytest.raises(RunDirectoryError, match=r"no config.json and no metrics.jsonl"):
        RunDirectory.open(tmp_path)
    (run.path / "config.json").write_text('{"mode": "dis')
    with pytest.raises(RunDirectoryError, match=r"config.json is damaged"):
        RunDirectory.open(run.path)


def test_events_are_written_at_once_and_handed_to_listeners(run: RunDirectory) -> None:
    heard: list[dict[str, Any]] = []
    run.listeners.append(heard.append)
    run.emit("round", round=1, t=np.float32(0.5), eta=None, bytes_up=np.int64(7), staleness=(1, 2))
    read = RunDirectory.open(run.path).events()  # while the writer still has the file open
    assert read == heard
    assert read[0] == {
        "event": "round", "t_wall": read[0]["t_wall"], "round": 1, "t": 0.5, "eta": None,
        "bytes_up": 7, "staleness": [1, 2],
    }  # fmt: skip


def test_numbers_that_json_cannot_hold_become_null(run: RunDirectory) -> None:
    run.emit("job", job=1, loss=float("nan"), extra=np.array([1.0, np.inf]))
    line = (run.path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail)["extra"] == [1.0, None]
    assert run.events()[0]["loss"] is None


def test_the_wall_clock_goes_on_when_a_run_is_opened_again(run: RunDirectory) -> None:
    path = run.path / "metrics.jsonl"
    path.write_text('{"event": "round", "t_wall": 1000.0, "round": 1}\n')
    again = RunDirectory.open(run.path)
    again.emit("round", round=2)
    again.close()
    again.emit("round", round=3)
    times = [event["t_wall"] for event in again.events()]
    assert times == sorted(times)
    assert 1000 <= times[1] < 1100
    assert times[2] < 1100


@pytest.mark.parametrize(
    "torn", [b'{"event": "rou', b"\x00\x00\x00", b'{"event": "x", "t_wall": 9}']
)
def test_a_torn_last_line_is_left_out_and_then_replaced(run: RunDirectory, torn: bytes) -> None:
    run.emit("round", round=1)
    run.close()
    path = run.path / "metrics.jsonl"
    with open(path, "ab") as file:
        file.write(torn)
    again = RunDirectory.open(run.path)
    assert kinds(again) == ["round"]
    again.emit("resumed", round=1)
    assert kinds(again) == ["round", "resumed"]
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("line", [b"not json", b"[1]", b'{"t_wall": 1}', b'{"event": "round"}'])
def test_a_damaged_line_before_the_last_is_an_error(run: RunDirectory, line: bytes) -> None:
    run.emit("round", round=1)
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write(line + b"\n")
    run.emit("round", round=2)
    with pytest.raises(RunDirectoryError, match=r"metrics.jsonl, line 2, is not an event"):
        run.events()


def test_a_full_disk_takes_back_the_half_written_event(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.emit("round", round=1)
    real = os.write
    calls = []

    def write(descriptor: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data[:10])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(RunDirectoryError, match=r"metrics.jsonl: No space left on device"):
            run.emit("round", round=2)
    run.emit("round", round=3)
    assert [event["round"] for event in run.events()] == [1, 3]


def test_a_short_write_is_completed(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    run.emit("round", round=1)
    assert kinds(run) == ["round"]


def test_a_listener_that_raises_is_dropped_and_named(run: RunDirectory) -> None:
    heard: list[str] = []

    def broken_dashboard(_: dict[str, Any]) -> None:
        raise ConnectionError("offline")

    run.listeners += [broken_dashboard, lambda event: heard.append(event["event"])]
    run.emit("round", round=1)
    run.emit("round", round=2)
    assert kinds(run) == ["round", "warning", "round"]
    assert "broken_dashboard dropped: ConnectionError" in run.events()[1]["message"]
    assert sorted(heard) == ["round", "round", "warning"]


def test_a_resumed_runs_repeats_do_not_double(run: RunDirectory) -> None:
    run.emit("round", round=1, t=1.0)
    run.emit("round", round=2, t=2.0)
    run.emit("resumed", round=1)
    run.emit("round", round=2, t=2.5)
    assert [(e["event"], e.get("t")) for e in run.events()] == [
        ("round", 1.0), ("resumed", None), ("round", 2.5),
    ]  # fmt: skip


def test_no_checkpoint_outlives_the_events_before_it(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is resumed after a power cut looks up what its checkpoint's round was."""
    synced: list[str] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/dev/fd/{descriptor}").resolve().name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    run.emit("round", round=7, t=1.0)
    run.save_checkpoint("server", {"w": np.arange(3.0)})
    assert synced[0] == "metrics.jsonl"
    assert len(synced) > 1


def test_checkpoints_and_summary_are_kept(run: RunDirectory) -> None:
    path = run.save_checkpoint("round-7", {"w": np.arange(3.0)}, {"round": 7})
    assert path == run.path / "checkpoints" / "round-7.safetensors"
    arrays, metadata = RunDirectory.open(run.path).load_checkpoint("round-7")
    assert (arrays["w"].tolist(), metadata) == ([0, 1, 2], {"round": 7})
    with pytest.raises(RunDirectoryError, match=r"round-8.safetensors does not exist"):
        run.load_checkpoint("round-8")
    run.write_summary({"status": "completed", "final": {"global": np.float64(0.5)}})
    assert run.summary() == {"status": "completed", "final": {"global": 0.5}}


def test_runs_are_listed_oldest_first_and_strangers_passed_over(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "absent") == []
    (tmp_path / "not-a-run").mkdir()
    (tmp_path / "file").write_text("")
    for name, started in [("b", "2030-01-01"), ("a", "2031-01-01"), ("c", "2029-01-01")]:
        created = RunDirectory.create(tmp_path, CONFIG, name=name)
        (created.path / "environment.json").write_text(json.dumps({"started": started}))
    assert [run.name for run in list_runs(tmp_path)] == ["c", "b", "a"]


def test_configuration_is_flattened_to_dotted_keys() -> None:
    assert flatten({"a": 1, "b": {"c": {"d": 2}, "e": []}}) == {"a": 1, "b.c.d": 2, "b.e": []}
