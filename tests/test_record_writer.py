"""One writer of a run at a time: the second is told who, and what a dead one left is taken over."""

import errno
import io
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.supercore.exit.exit_handler import trigger_exit_handlers

from fl_app import server_app
from fl_app.cli import main
from fl_app.config import RunConfig, resolve
from fl_app.launch import run as launch
from fl_app.record import writer
from fl_app.record.books import recorded
from fl_app.record.run_dir import RunDirectory
from fl_app.record.writer import LOCK, NOTE, Writer
from strategies.errors import ConfigError, RunDirectoryError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LEASE_SECONDS", 3.0)
    monkeypatch.setattr(writer, "BEAT_SECONDS", 0.1)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return resolve({"mode": "average", "output": str(tmp_path), "name": "one"})


def content(run: RunDirectory) -> dict[str, bytes]:
    """All that there is of a run but its lock, which lives."""
    files = [path for path in run.path.rglob("*") if path.is_file() and path.name != LOCK]
    return {str(path): path.read_bytes() for path in files}


def resumed(config: RunConfig, run: RunDirectory) -> RunConfig:
    return resolve({**config.flat(), "resume": str(run.path)})


def marker(host: str) -> str:
    """A lock as a process on another machine leaves it."""
    return f"filelock/2\npid=7\nhost={host}\nmode=lease\ntoken=their\nduration=3.0\n"


def test_a_second_writer_is_told_who_is_the_first_and_changes_nothing(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded(config) as run:
        run.emit("round", round=1, t=1.0)
        (run.path / "worker").mkdir()
        (run.path / "worker" / "state").write_text("precious")
        before = content(run)
        told = rf"one is being written by process {os.getpid()} on {socket.gethostname()}, since 2"
        with pytest.raises(RunDirectoryError, match=told), recorded(resumed(config, run)):
            pytest.fail("there are two writers")
        launch._close(run.path, "failed", "a second command saw its own ServerApp refused")
        assert "could not be recorded" in capsys.readouterr().err
        assert main(["resume", str(run.path)]) == 2  # before anything starts
        assert f"being written by process {os.getpid()}" in capsys.readouterr().err
        assert content(run) == before
    assert run.summary()["status"] == "completed"
    assert not (run.path / LOCK).exists()
    assert not (run.path / NOTE).exists()
    assert main(["resume", str(run.path)]) == 2
    assert "has completed" in capsys.readouterr().err
    assert run.summary()["status"] == "completed"


def test_of_two_that_resume_at_once_one_does(config: RunConfig) -> None:
    with pytest.raises(ZeroDivisionError), recorded(config) as run:
        _ = 1 / 0
    again, both = resumed(config, run), threading.Barrier(2)
    ends: list[str] = []

    def resume() -> None:
        both.wait()
        try:
            with recorded(again) as mine:
                mine.emit("resumed", round=0)
                both.wait()  # the other has been refused
            ends.append("completed")
        except RunDirectoryError as error:
            ends.append(str(error))
            both.wait()

    threads = [threading.Thread(target=resume) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refusal, done = sorted(ends, key=lambda end: end == "completed")
    assert done == "completed"
    assert "is being written by" in refusal
    assert [e["event"] for e in run.events()].count("resumed") == 1
    assert run.summary()["status"] == "completed"


DIES = """
import os, sys
from fl_app.record import writer
writer.LEASE_SECONDS = 3.0
held = writer.Writer(writer.Path(sys.argv[1])).__enter__()
os._exit(9)
"""


def test_what_a_killed_process_held_is_free_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    died = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], cwd=ROOT, check=False)
    assert died.returncode == 9
    assert (tmp_path / LOCK).exists()
    with Writer(tmp_path) as mine:
        mine.check()
    assert capsys.readouterr().out == ""  # nothing was waited for


@pytest.mark.parametrize("left", [marker("elsewhere"), "", "garbage"])
def test_a_lock_without_a_sign_of_life_is_taken_over(
    left: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / LOCK).write_text(left)
    with Writer(tmp_path) as mine:
        mine.check()
    if left != "garbage":  # which nobody can have written who lives
        output, errors = capsys.readouterr()
        assert "waiting up to 3 s for a sign of life" in errors
        assert output == ""  # which may be JSON


def test_a_process_on_another_machine_that_lives_keeps_its_run(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(marker("elsewhere"))
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.05):
            os.utime(tmp_path / LOCK)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(RunDirectoryError, match="being written by process 7 on elsewhere"):
            Writer(tmp_path).__enter__()
    finally:
        over.set()
        thread.join()


def test_a_writer_that_slept_and_lost_its_run_writes_no_more(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, {"mode": "average"})
    with run.held():
        run.emit("round", round=1, t=1.0)
        draft = run.path / "draft"
        draft.write_text(marker("elsewhere"))
        os.replace(draft, run.path / LOCK)
        before = content(run)
        for write in (
            lambda: run.emit("round", round=2, t=2.0),
            lambda: run.save_checkpoint("server", {}),
            lambda: run.write_summary({}),
        ):
            with pytest.raises(RunDirectoryError, match="written by process 7 on elsewhere now"):
                write()
    assert content(run) == before
    assert (run.path / LOCK).read_text() == marker("elsewhere")


def test_a_run_of_another_configuration_is_not_resumed(config: RunConfig) -> None:
    with pytest.raises(ZeroDivisionError), recorded(config) as run:
        _ = 1 / 0
    other = resolve({**config.flat(), "resume": str(run.path), "seed": 5})
    with pytest.raises(ConfigError, match="seed was 0 and is 5"):
        launch.check_output(other)
    launch.check_output(resumed(config, run))
    assert not (run.path / LOCK).exists()


def test_the_first_verdict_stays(config: RunConfig) -> None:
    told: list[Callable[[], None]] = []

    def end_with_everything_below() -> None:
        told[0]()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), recorded(config, told.append) as run:
        end_with_everything_below()
    launch._close(run.path, "failed", "the SuperLink has died")
    assert run.summary()["status"] == "stopped"
    assert [e["status"] for e in run.events() if e["event"] == "finished"] == ["stopped"]


def test_flower_calls_what_closes_the_books_and_waits_no_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_app, "CLOSING_SECONDS", 0.1)
    closed, never = threading.Event(), threading.Event()

    def stuck() -> None:
        never.wait()

    server_app._when_told(stuck)
    server_app._when_told(closed.set)
    trigger_exit_handlers(run_before_force_exit=True)
    assert closed.wait(60)
    never.set()


class Full(io.StringIO):
    """A standard output on a disk that has no room."""

    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_books_are_closed_though_nobody_can_hear_it(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    with recorded(config) as run:
        run.emit("round", round=1, t=1.0)
        run.emit("warning", message="for the console")
    assert run.summary()["status"] == "completed"
    assert [e["event"] for e in run.events()].count("warning") == 1  # no listener was dropped
