"""What `edge-fl run` tells from its first moment on, in which form; and the directory it names."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fl_app.launch.screen import JSON, LINES, NOTHING, QUIET, Screen
from fl_app.record.run_dir import RunDirectory, list_runs, release, reserve
from strategies.errors import RunDirectoryError
from tests.record_events import config, distill_events, fill


def told(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    run = RunDirectory.create(tmp_path, config(), name="run")
    with Screen(form) as screen:
        screen.stage("setting up")
        screen.begin(run.path)
        screen.show("round 1/3")
        fill(run, distill_events(3))
        run.write_summary({"status": "completed"})
        screen.end(run.path)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("form", "lines"),
    [
        (
            LINES,
            ["edge-fl: setting up ...", "run directory: RUN", "round 1/3", "run directory: RUN"],
        ),
        (QUIET, ["run directory: RUN"]),
        (NOTHING, ["round 1/3", "run directory: RUN"]),
    ],
)
def test_a_form_tells_what_it_is_for(
    form: str, lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [line.replace("RUN", str(tmp_path / "run")) for line in lines]
    assert told(form, tmp_path, capsys) == wanted


def test_json_is_the_stages_every_event_once_and_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, place, *events, last = map(json.loads, told(JSON, tmp_path, capsys))
    assert (first, place) == ({"stage": "setting up"}, {"run_directory": str(tmp_path / "run")})
    recorded = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert events == [json.loads(line) for line in recorded]
    assert last == {"summary": {"status": "completed"}}


def test_a_terminal_has_a_bar_with_what_is_done_and_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    run = RunDirectory.create(tmp_path, config(rounds=3), name="run")
    events = [e for e in distill_events(3) if e.get("round", 0) < 3]
    timed = ({**event, "t_wall": 2.0 * event.get("round", 0)} for event in events)
    (run.path / "metrics.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in timed))
    with Screen(LINES) as screen:
        screen.stage("setting up")
        screen.begin(run.path)
        screen.show("round 1/3")
    shown = terminal.getvalue()
    assert "round 1/3" in shown
    assert "2 of 3" in shown
    assert "0:02 to go" in shown  # as long as the second one took
    assert "Traceback" not in shown


def test_the_first_line_comes_before_anything_that_takes_seconds() -> None:
    code = (
        "import sys\n"
        "from fl_app.launch.screen import Screen\n"
        "from fl_app.cli import main\n"
        "def stage(self, text):\n"
        "    print(text, sorted({'torch', 'numpy', 'flwr', 'ray', 'rich'} & set(sys.modules)))\n"
        "    sys.exit(0)\n"
        "Screen.stage = stage\n"
        "main(['run'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "setting up []\n"


def test_a_reserved_directory_is_no_run_until_its_run_takes_it_once(tmp_path: Path) -> None:
    path = reserve(tmp_path / "runs", config())
    assert path.name.startswith("distill-async-plus-")
    assert list_runs(tmp_path / "runs") == []
    run = RunDirectory.create(tmp_path / "runs", config(), name=path.name)
    assert run.path == path
    assert [each.name for each in list_runs(tmp_path / "runs")] == [path.name]
    with pytest.raises(RunDirectoryError, match="exists already"):
        RunDirectory.create(tmp_path / "runs", config(), name=path.name)
    release(path)  # of a run that was begun
    assert run.config()["mode"] == "distill"


def test_a_reserved_directory_without_a_run_goes_and_so_does_its_place(tmp_path: Path) -> None:
    first, second = (reserve(tmp_path / "runs", config()) for _ in range(2))
    assert first != second
    release(first)
    assert second.is_dir()
    release(second)
    assert list(tmp_path.iterdir()) == []
