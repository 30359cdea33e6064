"""`edge-fl run`: what it works out, and what it does with processes, on a stand-in for Flower."""

import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_app.cli import main
from fl_app.config import resolve
from fl_app.deploy import directory as deployment
from fl_app.launch import run as launch
from fl_app.launch import signals, sizing, superlink, supervise
from fl_app.launch.log import LogReader
from fl_app.launch.sizing import count_cores, simulation_size
from fl_app.launch.standstill import Standstill
from fl_app.launch.supervise import descendants
from fl_app.launch.values import parse_assignments, toml_lines
from fl_app.record.books import recorded
from fl_app.record.run_dir import RunDirectory
from strategies.errors import ConfigError, EdgeFlError, RunDirectoryError

ROOT = Path(__file__).resolve().parents[1]

# ----------------------------------------------------------------------------- pure parts


@pytest.mark.parametrize(
    ("participants", "cores", "hosts"), [(3, 2, 2), (3, 8, 3), (1, 64, 1), (1000, 16, 16)]
)
def test_hosts_are_as_many_as_can_work_at_once(participants: int, cores: int, hosts: int) -> None:
    size = simulation_size(participants, cores)
    assert size["num-supernodes"] == size["init-args-num-cpus"] == hosts
    assert size["client-resources-num-cpus"] == 1
    assert "client-resources-num-gpus" not in size


@pytest.mark.parametrize(("hosts", "gpus"), [(1, 1), (3, 1), (7, 1), (4, 2), (5, 2), (8, 8)])
@pytest.mark.parametrize("reserved", [0.0, 0.3])
def test_every_host_gets_a_share_of_a_gpu_and_the_rest_stays_free(
    hosts: int, gpus: int, reserved: float
) -> None:
    size = simulation_size(hosts, 64, gpus, reserved)
    share = float(size["client-resources-num-gpus"])
    per_gpu = -(-hosts // gpus)
    assert 0 < share * per_gpu <= 1 - reserved + 1e-9
    # Flower starts floor(GPUs / share) actors and Ray places each on one GPU.
    assert int(1 / share) * gpus >= hosts


@pytest.mark.parametrize(
    ("mode", "changes", "gpus", "hosts"),
    [
        ("distill", {}, 0, 3),
        ("distill", {}, 1, 3),
        ("consensus", {}, 0, 8),
        ("consensus", {}, 2, 2),  # nodes of one host train together, those of several in turns
        ("consensus", {"device": "cpu"}, 2, 8),
        ("consensus", {"clock": "real"}, 2, 8),  # nobody waits for another to train with
    ],
)
@pytest.mark.parametrize("ray", ["", "10.0.0.1:6379"])
def test_the_simulation_of_a_run(
    mode: str,
    changes: dict[str, str],
    gpus: int,
    hosts: int,
    ray: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sizing, "count_cores", lambda: 4 if ray else 16)
    monkeypatch.setattr(sizing, "count_gpus", lambda _: 7 if ray else gpus)
    monkeypatch.setattr(sizing, "count_cluster", lambda address: (16, gpus))
    size = sizing.size_for(resolve({"mode": mode, **changes}), ray)
    assert size["num-supernodes"] == hosts
    used = gpus and changes.get("device") != "cpu"
    assert ("client-resources-num-gpus" in size) == bool(used)
    # With settings for a Ray of its own, Flower would not join the cluster.
    assert any(key.startswith("init-args") for key in size) == (not ray)


def test_cores_are_at_least_one_and_at_most_what_the_kernel_allows() -> None:
    assert 1 <= count_cores() <= len(os.sched_getaffinity(0))


def test_values_take_the_type_of_their_default() -> None:
    words = ["participants=8", "learning-rate=1", "privacy.samples=False", "distill.variant=sync"]
    values = parse_assignments([*words, 'name=it\'s = "x"'])
    assert values == {
        "participants": 8,
        "learning-rate": 1.0,
        "privacy.samples": False,
        "distill.variant": "sync",
        "name": 'it\'s = "x"',
    }
    assert isinstance(values["learning-rate"], float)


def test_relative_paths_are_those_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = parse_assignments(["data-path=here/x.npz", "output=/abs", "resume="])
    assert values == {"data-path": str(tmp_path / "here/x.npz"), "output": "/abs", "resume": ""}


@pytest.mark.parametrize("word", ["participants", "=3", "--fast"])
def test_what_is_not_an_assignment_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        parse_assignments([word])


@pytest.mark.parametrize("word", ["participants=many", "privacy.samples=maybe", "no-such-key=1"])
def test_a_bad_value_survives_parsing_and_is_named_by_resolve(word: str) -> None:
    with pytest.raises(ConfigError, match=word.split("=")[0]):
        resolve(parse_assignments([word]))


def test_values_survive_toml() -> None:
    values = {"a.b": 'x "y" \\ z\n', "n": 3, "f": 1e-9, "t": True, "u": "größer 😀"}
    parsed = tomllib.loads("\n".join(toml_lines(values)))
    assert {"a.b": parsed.pop("a")["b"], **parsed} == values


def test_log_drops_noise_and_keeps_the_rest() -> None:
    reader = LogReader()
    kept = [
        "round 3/20 accuracy 0.7",
        "INFO :      accuracy so far",
        "WARNING :   participant 2 was rejected",
        "(ClientAppActor pid=7) ValueError: bad",
        "Traceback (most recent call last):",
        "    warnings.warn('ours')",
    ]
    noise = [
        "\x1b[92mINFO \x1b[0m:      ",
        "\x1b[92mINFO \x1b[0m:      Starting Flower Simulation",
        "",
        "  warnings.warn(",
        "\x1b[36m(ClientAppActor pid=9185)\x1b[0m \x1b[93mWARNING \x1b[0m:   Manually terminating "
        "ClientAppActor",
    ]
    assert [reader.read(line + "\n") for line in kept] == kept
    assert [reader.read(line + "\n") for line in noise] == [None] * len(noise)
    assert [LogReader(verbose=True).read(line + "\n") for line in noise] == noise


def test_a_log_that_begins_again_is_shown_from_where_it_broke_off() -> None:
    reader = LogReader()
    assert [reader.read(line) for line in ("one\n", "two\n")] == ["one", "two"]
    for _ in range(2):
        reader.begin_again()
        shown = [reader.read(line) for line in ("one\n", "two\n", "two\n", "three\n")]
        assert [line for line in shown if line] in (["two", "three"], [])
    assert reader.left_out(["two\n", "two\n", "four\n"]) == ["four\n"]


@pytest.mark.parametrize("prefix", ["", "INFO :      ", "\x1b[92mINFO \x1b[0m:      "])
def test_log_keeps_the_run_directory_to_itself(prefix: str) -> None:
    reader = LogReader(verbose=True)
    assert reader.read(f"{prefix}run directory: /a b/c\n") is None
    assert reader.run_directory == Path("/a b/c")
    assert reader.closed_at == math.inf
    assert reader.read(f"{prefix}run directory: /a b/c\n") is None
    assert reader.closed_at <= time.monotonic()


@pytest.mark.parametrize(
    ("status", "summary", "expected"),
    [
        ("finished:completed", '{"status": "completed"}', True),
        ("finished:completed", '{"status": "failed"}', False),
        ("finished:completed", "", False),  # sys.exit in the ServerApp
        ("finished:failed", '{"status": "completed"}', False),
        ("finished:stopped", '{"status": "completed"}', False),
        ("unended", '{"status": "completed"}', True),
        ("unended", '{"status": "failed"}', False),
    ],
)
def test_a_run_has_completed_if_both_say_so(
    status: str, summary: str, expected: bool, tmp_path: Path
) -> None:
    if summary:
        (tmp_path / "summary.json").write_text(summary)
    assert launch.completed(status, tmp_path) is expected


def test_a_run_elsewhere_has_completed_if_flower_says_so() -> None:
    assert launch.completed("finished:completed", Path("/not/on/this/machine"))
    assert not launch.completed("finished:completed", None)  # it never told its directory


def test_the_end_of_a_stopped_run_is_recorded(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, resolve({"participants": 2}).flat(), name="one")
    run.emit("run_started")
    run.save_checkpoint("server", {"weights": np.zeros(2, np.float32)})
    launch._close(run.path, "stopped", "interrupted")
    assert run.summary()["status"] == "stopped"
    # What the ServerApp wrote itself stands; a resumed run has no end of its own yet.
    launch._close(run.path, "failed", "later")
    assert run.summary()["status"] == "stopped"
    # What the ServerApp could not write to the last line is completed.
    summary = run.path / "summary.json"
    written = json.loads(summary.read_text())
    for lost in (summary, run.path / "report.html"):
        lost.unlink()
        launch._close(run.path, "failed", "later")
        assert lost.exists()
        assert run.summary() == written
    run.emit("resumed", round=0)
    launch._close(run.path, "failed", "again")
    assert (run.summary()["status"], run.summary()["reason"]) == ("failed", "again")


def test_a_failure_after_a_signal_is_no_failure(tmp_path: Path) -> None:
    """The signal reached a process of the simulation before the ServerApp."""
    config = resolve({"participants": 2, "output": str(tmp_path)})
    with pytest.raises(EdgeFlError), recorded(config) as run:
        raise EdgeFlError("a process of the simulation died (out of memory?)")
    failed = (run.path / "metrics.jsonl").stat().st_mtime
    launch._close(run.path, "stopped", "terminated", failed + 1)  # it had failed by then
    assert run.summary()["status"] == "failed"
    launch._close(run.path, "stopped", "terminated", failed - 1)
    assert (run.summary()["status"], run.summary()["reason"]) == ("stopped", "terminated")
    launch._close(run.path, "stopped", "terminated", failed - 1)
    assert [e["status"] for e in run.events() if e["event"] == "finished"] == ["failed", "stopped"]


@pytest.mark.parametrize("superlink", ["", "edge"])
def test_a_run_that_can_go_on_says_how(
    superlink: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory.create(tmp_path, resolve({"participants": 2}).flat(), name="one")
    launch._point_to_resume(run.path, superlink)
    launch._point_to_resume(tmp_path / "on another machine", superlink)
    assert capsys.readouterr().err == ""
    run.save_checkpoint("server", {"weights": np.zeros(2, np.float32)})
    launch._point_to_resume(run.path, superlink)
    place = " --superlink edge" if superlink else ""
    assert capsys.readouterr().err == f"edge-fl: to go on: edge-fl resume {run.path}{place}\n"


def test_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="/proc/nowhere"):
        launch.check_output(resolve({"output": "/proc/nowhere"}))
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunDirectoryError, match="taken"):
        launch.check_output(resolve({"output": str(tmp_path), "name": "taken"}))
    launch.check_output(resolve({"output": str(tmp_path / "new" / "place")}))
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


# ------------------------------------------------------------------------------ processes

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An EDGE_FL_HOME with Flower's programs replaced; what a test changes is put back."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("flwr", "flower-superlink", "flwr-simulation"):
        (programs / name).symlink_to(ROOT / "tests" / "fake_flower.py")
    monkeypatch.setattr(superlink, "_program", lambda name: str(programs / name))
    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path))
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield tmp_path
    signals._waiting.clear()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for `condition`; fails after a time that no machine needs."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail(f"waited in vain: {what}")


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def simulation_pid(home: Path) -> int:
    until((home / "simulation.pid").exists, "the simulation starts")
    return int((home / "simulation.pid").read_text())


@needs_proc
@pytest.mark.parametrize(
    ("scenario", "code", "complaint"),
    [
        ("completed", 0, ""),
        ("failed", 1, "ValueError: bad"),
        ("diverged", 3, "diverged: window 2, node 3: not finite"),
        ("unfinished", 1, "summary.json does not say completed"),
        ("refused", 1, "Invalid run configuration."),
        ("broken", 1, "the port is taken"),
    ],
)
def test_exit_code_and_output(
    scenario: str,
    code: int,
    complaint: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FAKE_FLOWER", scenario)
    assert launch.run({"participants": 2}) == code
    output, errors = capfd.readouterr()
    assert complaint in errors
    assert bool(errors) == bool(complaint)
    if scenario in ("completed", "failed", "diverged", "unfinished"):
        assert output.splitlines() == [
            "round 1/1 accuracy 0.9",
            "WARNING :   participant 2 was rejected",
            "again",
            "again",
            "round 1/1 accuracy 0.9",  # which the stream had once, and the whole log has twice
            f"run directory: {home}/runs/one",
        ]
    if scenario != "broken":
        assert gone(simulation_pid(home))


@needs_proc
def test_a_superlink_that_does_not_answer_is_not_said_to_have_failed(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(superlink, "STARTUP_SECONDS", 0.0)
    assert launch.run({"participants": 2}) == 1
    assert "the SuperLink did not answer within 0 s" in capfd.readouterr().err


@needs_proc
def test_a_simulation_that_does_not_end_after_its_last_word_is_ended(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As Flower's does when one of its hosts is stopped (SIGSTOP)."""
    monkeypatch.setenv("FAKE_FLOWER", "stuck")
    monkeypatch.setattr(launch, "END_SECONDS", 1.0)
    assert launch.run({"participants": 2}) == 0
    output, errors = capfd.readouterr()
    assert "the run is over, but Flower's simulation goes on" in errors
    assert "round 1/1 accuracy 0.9" in output
    assert gone(simulation_pid(home))


@needs_proc
@pytest.mark.parametrize("slept", [0.0, 103.0])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_run_whose_machine_slept_goes_on_by_itself_from_its_checkpoint(
    slept: float,
    checkpoint: bool,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FAKE_FLOWER", "asleep")
    run = RunDirectory.create(home / "runs", resolve({"participants": 2}).flat(), name="one")
    run.emit("run_started")
    if checkpoint:
        run.save_checkpoint("server", {"weights": np.zeros(2, np.float32)})
    monkeypatch.setattr(Standstill, "look", lambda self: setattr(self, "seconds", slept))
    goes_on = bool(slept and checkpoint)
    assert launch.run({"participants": 2}) == (0 if goes_on else 1)
    errors = capfd.readouterr().err
    assert "No heartbeat received from the task (has the machine that it runs on slept?)" in errors
    assert ("stood still for 103 s" in errors) is goes_on
    assert ("to go on: edge-fl resume" in errors) is (checkpoint and not slept)
    submitted = tomllib.loads((home / "values.toml").read_text())
    assert submitted.get("resume", "") == (str(run.path) if goes_on else "")


def test_a_standstill_is_what_only_the_wall_clock_has_noticed() -> None:
    now = 1000.0
    standstill = Standstill(lambda: now)
    for passed, longest in ((1, 0), (25, 0), (-7200, 0), (103, 103), (1, 103), (60, 103)):
        now += passed
        standstill.look()
        assert standstill.seconds == longest


def test_who_sleeps_within_a_standstill_is_seen_at_its_end() -> None:
    moments = iter([0.0, 500.0])
    with Standstill(lambda: next(moments, 500.0)) as standstill:
        pass
    assert standstill.seconds == 500


@needs_proc
def test_the_run_gets_its_values_and_a_place_of_its_own(home: Path) -> None:
    assert launch.run({"participants": 1, "name": "a 'b'"}) == 0
    simulation_pid(home)
    submitted = json.loads((home / "submitted.json").read_text())
    assert submitted[0] == str(ROOT)
    assert "num-supernodes=1 client-resources-num-cpus=1" in submitted[-3]
    assert tomllib.loads((home / "values.toml").read_text()) == {"participants": 1, "name": "a 'b'"}
    seen = json.loads((home / "environment.json").read_text())
    assert seen["FLWR_TELEMETRY_ENABLED"] == "0"
    assert seen["EDGE_FL_HOME"] == str(home)
    for key in ("FLWR_HOME", "cwd", "RAY_TMPDIR"):
        assert not Path(seen[key]).exists(), f"{key} is of the run and goes with it"
    assert "RAY_ADDRESS" not in seen


@needs_proc
def test_a_bad_configuration_starts_nothing(home: Path) -> None:
    with pytest.raises(ConfigError, match="participants"):
        launch.run({"participants": -1})
    assert [path.name for path in home.iterdir()] == ["bin"]


# ------------------------------------------------------------ a SuperLink of somebody else's

TASK = """
import torch
from strategies.task import Classification, Examples

class Small(Classification):
    classes = ("a", "b")
    def model(self, role):
        {model}
    def training(self):
        return open("/srv/only-on-the-server")
    test = training
"""


@pytest.fixture
def edge(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A deployment of two devices, and its connection."""
    deployment.create(tmp_path / "site", "hub.example", devices=["pi-1", "pi-2"])
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "site" / "flower"))
    monkeypatch.chdir(tmp_path)
    return home


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["participants=-1"], "participants"),
        (["participants=3"], "there are 2 device(s): pi-1, pi-2"),
        (["mode=consensus", "participants=2"], 'use consensus.references=""'),
        (["distill.references=centralized-large"], "devices keep theirs"),
        (["task=gone.py:Small"], "there is no file"),
        (["task=own.py:Big"], "Big is not in"),
        (["partition=gone.py:name"], "there is no file"),
        (["mode=average", "best-metric=beauty"], "is no metric"),
        (["name=taken"], "there is a run named 'taken'"),
        (["resume=runs/taken"], "that run has completed"),
        (
            [
                "task=batch.py:Small",
                "mode=consensus",
                "consensus.references=",
                "consensus.topology=chain",
            ],
            "BatchNorm1d",
        ),
    ],
)
def test_what_cannot_work_on_devices_is_refused_before_they_are_asked(
    words: list[str], complaint: str, edge: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.py").write_text(TASK.format(model="return torch.nn.Linear(2, 2)"))
    Path("batch.py").write_text(TASK.format(model="return torch.nn.BatchNorm1d(2)"))
    taken = RunDirectory.create(edge / "runs", resolve({"participants": 2}).flat(), name="taken")
    taken.write_summary({"status": "completed"})
    if not any(word.startswith("participants") for word in words):
        words = [*words, "participants=2"]
    assert main(["run", "--superlink", "edge", *words]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert complaint in told[0]
    assert not (edge / "submitted.json").exists()


def test_a_connection_that_is_none_is_refused_with_those_that_there_are(
    edge: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--superlink", "hedge", "participants=2"]) == 2
    assert "no such connection; it has: edge" in capsys.readouterr().err
    (edge / "site" / "flower" / "config.toml").write_text("[")
    assert main(["run", "--superlink", "edge"]) == 2
    assert "config.toml cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["mode=average"], ""),
        (["task=own.py:Small", "mode=average"], ""),
        (["task=own.py:Small", "mode=average", "data-path=/srv/gone.csv"], ""),
        (["dataset=files", "data-path=/srv/gone.npz", "mode=average"], "/srv/gone.npz"),
        (["task=not_here.tasks:Small", "mode=average"], "not_here"),
        (["device=cuda", "mode=average"], ""),
    ],
)
def test_what_only_the_server_has_is_for_it_to_try(
    words: list[str], hint: str, edge: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.py").write_text(TASK.format(model="return torch.nn.Linear(2, 2)"))
    assert main(["run", "--superlink", "edge", "participants=2", *words]) == 0
    told = capsys.readouterr().err
    assert (hint in told) if hint else (told == "")
    assert (edge / "submitted.json").exists()


def test_a_run_is_stopped_by_its_id_when_a_signal_comes_while_it_is_submitted(
    edge: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_FLOWER", "told")
    assert main(["run", "--superlink", "edge", "participants=2", "mode=average"]) == 143
    assert json.loads((edge / "stopped.json").read_text())[:2] == ["7", "edge"]
    assert "edge-fl: terminated" in capsys.readouterr().err


def test_a_server_app_that_does_not_begin_is_told_of_once(
    edge: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_FLOWER", "unbegun")
    monkeypatch.setattr(launch, "BEGIN_SECONDS", 0.0)
    assert main(["run", "--superlink", "edge", "participants=2", "mode=average"]) == 1
    assert capsys.readouterr().err.count("the ServerApp has not begun within 90 s") == 1


def test_a_submission_without_an_answer_may_have_been_accepted(
    edge: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_FLOWER", "mute")
    monkeypatch.setattr(superlink, "ANSWER_SECONDS", 0.2)
    assert main(["run", "--superlink", "edge", "participants=2", "mode=average"]) == 1
    told = capsys.readouterr().err
    assert "the run may have been accepted: see `flwr list edge`" in told
    assert "`flwr stop RUN-ID edge`" in told


@pytest.mark.parametrize("option", ["--watch", "--json"])
def test_a_run_on_another_machine_cannot_be_followed(
    option: str, edge: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    connections = edge / "site" / "flower" / "config.toml"
    text = connections.read_text()
    assert "127.0.0.1:" in text
    connections.write_text(text.replace("127.0.0.1:", "hub.example:"))
    words = ["run", "--superlink", "edge", "participants=2", "mode=average", option]
    assert main(words) == 2
    assert "on another machine (hub.example)" in capsys.readouterr().err
    assert not (edge / "submitted.json").exists()


@pytest.mark.parametrize("here", [True, False])
def test_a_run_of_a_deployment_on_this_machine_is_followed(
    here: bool, edge: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tunnel to another machine is found out when the run has told its directory."""
    if here:
        run = RunDirectory.create(edge / "runs", resolve({"participants": 2}).flat(), name="one")
        run.emit("run_started")
        run.close()
    words = ["run", "--superlink", "edge", "participants=2", "mode=average", "--json"]
    assert main(words) == 0
    output, errors = capsys.readouterr()
    told = [json.loads(line) for line in output.splitlines()]
    assert ({"run_directory": str(edge / "runs" / "one")} in told) == here
    assert [line["event"] for line in told if "event" in line] == ["run_started"] * here
    assert told[-1] == {"summary": {"status": "completed"}}
    assert ("the run cannot be followed" in errors) != here


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["last word", "end", "clearing up"])
def test_a_signal_after_its_end_makes_no_other_end_of_a_run(
    number: signal.Signals,
    moment: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FAKE_FLOWER", "stuck" if moment == "last word" else "completed")
    made: list[str] = []
    mkdtemp = tempfile.mkdtemp
    monkeypatch.setattr(
        tempfile, "mkdtemp", lambda *given, **more: made.append(mkdtemp(*given, **more)) or made[-1]
    )
    if moment == "last word":  # Flower's simulation has still to end
        monkeypatch.setattr(
            launch, "_overdue",
            lambda _, reader: reader.closed_at < math.inf and signal.raise_signal(number),
        )  # fmt: skip
    elif moment == "end":
        monkeypatch.setattr(launch, "_show_rest", lambda *_: signal.raise_signal(number))
    else:
        wait = subprocess.Popen.wait

        def told(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
            if timeout == supervise.GRACE_SECONDS + 30:  # of the SuperLink, when all is over
                signal.raise_signal(number)
            return wait(process, timeout)

        monkeypatch.setattr(subprocess.Popen, "wait", told)
    assert main(["run", "participants=2"]) == 0
    signal.raise_signal(number)  # while the process ends
    output, errors = capsys.readouterr()
    assert output.splitlines()[-1] == f"run directory: {home}/runs/one"
    assert "interrupted" not in errors
    assert "terminated" not in errors
    assert made
    assert not any(Path(each).exists() for each in made)


# `edge-fl run` with its standard output, where its words would be lost.
COMMAND = """
import sys
from fl_app.cli import main
from fl_app.launch import superlink
superlink._program = lambda name: sys.argv[1] + "/" + name
sys.exit(main(["run", "participants=2"]))
"""


@needs_proc
@pytest.mark.parametrize(
    ("scenario", "code", "full"), [("completed", 0, False), ("failed", 1, True)]
)
def test_a_run_goes_on_when_nobody_can_hear_it(
    scenario: str, code: int, full: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FLOWER", scenario)
    reader, pipe = os.pipe()
    os.close(reader)
    with open("/dev/full" if full else pipe, "wb") as output:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, str(home / "bin")],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == code
    problem = "edge-fl: the run did not complete: ValueError: bad\n" if code else ""
    assert done.stderr.startswith(problem)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert gone(simulation_pid(home))


# Runs `edge-fl run` in a process of its own, which is then treated badly.
DRIVER = """
import sys
from fl_app.launch import run, superlink
superlink._program = lambda name: sys.argv[1] + "/" + name
run.LOST_SECONDS = 1.0
sys.exit(run.run({}))
"""


@pytest.fixture
def started(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    monkeypatch.setenv("FAKE_FLOWER", "endless")
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(home / "bin")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "round 1/1 accuracy 0.9\n"
        yield process
        process.kill()


@needs_proc
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal(
    number: int, code: int, started: subprocess.Popen[str], home: Path
) -> None:
    below = descendants(started.pid)
    assert simulation_pid(home) in below
    os.kill(started.pid, number)
    output, _ = started.communicate()
    assert started.returncode == code
    assert output.splitlines()[-1] == f"run directory: {home}/runs/one"
    assert all(gone(pid) for pid in below)


def ignored(pid: int) -> set[int]:
    """The signals that a process ignores."""
    (mask,) = re.findall(r"^SigIgn:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return {number for number in range(1, 65) if int(mask, 16) >> (number - 1) & 1}


def test_what_is_ignored_stays_ignored(home: Path) -> None:
    told: list[int] = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    supervise.heed(lambda number, _: told.append(number))
    for number in supervise.ENDING:
        signal.raise_signal(number)
    assert told == [signal.SIGTERM, signal.SIGINT]


@needs_proc
def test_nohup_and_background_jobs_hold(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FLOWER", "endless")
    command = ["bash", "-c", 'trap "" HUP INT; exec "$@"', "-", sys.executable, "-c", DRIVER]
    with subprocess.Popen(
        [*command, str(home / "bin")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "round 1/1 accuracy 0.9\n"
            below = descendants(process.pid)
            (supervisor,) = (
                pid for pid in below if b"supervise.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
            )
            for pid in (process.pid, supervisor):
                assert {signal.SIGHUP, signal.SIGINT} <= ignored(pid)
            process.send_signal(signal.SIGTERM)
            process.communicate()
        finally:
            process.kill()
    assert process.returncode == 143


@needs_proc
def test_a_dead_serverapp_ends_the_run(started: subprocess.Popen[str], home: Path) -> None:
    below = descendants(started.pid)
    os.kill(simulation_pid(home), signal.SIGKILL)
    _, errors = started.communicate()
    assert started.returncode == 1
    assert "ServerApp has died" in errors
    assert all(gone(pid) for pid in below)


@needs_proc
def test_a_dead_superlink_ends_the_run(started: subprocess.Popen[str], home: Path) -> None:
    below = descendants(started.pid)
    (superlink_pid,) = (pid for pid in below if superlink.runs(pid, "flower-superlink"))
    os.kill(superlink_pid, signal.SIGKILL)
    _, errors = started.communicate()
    assert started.returncode == 1
    assert "SuperLink has died" in errors
    assert all(gone(pid) for pid in below)


@needs_proc
@pytest.mark.parametrize("state", ["deaf", "stopped"])
def test_who_is_missed_in_one_look_is_ended_all_the_same(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent has ended between two lines of the table of processes."""
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", f"{deaf}; time.sleep(600)"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        if state == "stopped":
            process.send_signal(signal.SIGSTOP)
        looks = itertools.count()

        def look(_root: int) -> list[int]:
            return [process.pid] if next(looks) % 2 == 1 and process.poll() is None else []

        monkeypatch.setattr(supervise, "descendants", look)
        supervise.end_descendants(os.getpid(), grace=0.2)
        ended = process.poll()
        process.kill()
    assert ended == -signal.SIGKILL


@needs_proc
def test_nothing_outlives_a_killed_edge_fl(started: subprocess.Popen[str], home: Path) -> None:
    below = descendants(started.pid)
    directory = json.loads((home / "environment.json").read_text())["RAY_TMPDIR"]
    (log,) = (pid for pid in below if superlink.runs(pid, "flwr"))
    started.kill()
    os.kill(log, signal.SIGKILL)  # Flower's own ends with its SuperLink; this one has no SuperLink
    until(lambda: all(gone(pid) for pid in below), "all processes end")
    until(lambda: not Path(directory).exists(), "the temporary directory goes")


def test_what_a_user_has_set_for_ray_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> str:
        return superlink._environment(tmp_path, str(tmp_path), "")["RAY_worker_niceness"]

    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    assert told() == "0"
    monkeypatch.setenv("RAY_worker_niceness", "7")
    assert told() == "7"
