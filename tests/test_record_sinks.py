"""Listeners: one line a round whatever the order of events, no floods; optional dashboards."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from fl_app.record import sinks
from fl_app.record.console import console_listener
from fl_app.record.formatting import duration
from fl_app.record.modes import VIEWS
from fl_app.record.run_dir import RunDirectory
from fl_app.record.sinks import SINKS, scalars
from strategies.errors import RunDirectoryError
from tests.record_events import config, distill_events

ROUND = {"event": "round", "t": 10.0, "staleness": 0.0, "bytes_up": 1_500_000}


def evaluation(number: int, model: str, accuracy: float = 0.5) -> dict[str, Any]:
    return {"event": "evaluate", "round": number, "t": 10.0, "model": model, "accuracy": accuracy}


def lines(events: list[dict[str, Any]], mode: str = "distill", **options: Any) -> list[str]:
    """What the console writes, but for what its columns mean."""
    told = everything(events, mode, **options)
    return [line for line in told if not line.startswith("staleness: ")]


def everything(events: list[dict[str, Any]], mode: str, **options: Any) -> list[str]:
    written: list[str] = []
    options = {"clock": "virtual", "rounds": 9, **options}
    listen = console_listener(VIEWS[mode], **options, write=written.append)
    for moment, event in enumerate(events):
        listen({"t_wall": float(moment), **event})
    return written


def test_one_aligned_line_a_round_and_one_header() -> None:
    written = [line for line in lines(distill_events(20), rounds=20) if line[0] != "!"]
    header, *rounds = written
    assert "virtual s" in header
    assert [line.split()[0] for line in rounds] == [f"{n}/20" for n in range(1, 21)]
    assert {len(line.split("  (")[0]) for line in rounds} == {len(header)}
    assert len(header) < 130


def test_what_a_line_says() -> None:
    ema = {**evaluation(3, "global", 0.412), "accuracy_ema": 0.433}
    events = [
        {**ROUND, "round": 3, "worker_steps": 60, "teacher_version": 2, "lost": 1, "rejected": 0},
        evaluation(3, "small", 0.345), ema,
    ]  # fmt: skip
    header, line = lines(events, clock="real")
    assert header.split()[:2] == ["round", "s"]
    assert line.split() == [
        "3/9", "10.0", "34.5", "41.2", "43.3", "0.0", "1", "60", "1.5", "-", "0:06", "(1", "lost)",
    ]  # fmt: skip


def test_what_a_column_means_is_said_once_above_its_title() -> None:
    meanings, header, *rounds = everything(distill_events(3), "distill")
    assert meanings == (
        "staleness: versions that the averaged updates are behind, in the mean; teacher staleness: "
        "versions that the teacher is behind"
    )
    assert "  staleness  teacher staleness  " in header
    assert not any("staleness" in line for line in rounds)


def test_a_line_waits_for_the_evaluation_that_completes_it_in_any_order() -> None:
    late = [evaluation(1, "small"), {**ROUND, "round": 1}, evaluation(1, "global")]
    early = [evaluation(1, "global"), evaluation(1, "small"), {**ROUND, "round": 1}]
    assert lines(late[:2]) == []
    assert lines(late)[1:] == lines(early)[1:]
    assert len(lines(late)) == 2


def test_a_line_does_not_wait_for_ever() -> None:
    rounds = [{**ROUND, "round": number} for number in (1, 2, 3)]
    assert len(lines(rounds[:2], clock="real")) == 0
    assert [line.split()[0] for line in lines(rounds, clock="real")[1:]] == ["1/9"]
    assert lines(rounds, clock="virtual") == []  # there every evaluation is certain to come
    written = lines([*rounds, {"event": "finished", "status": "completed"}])
    assert [line.split()[0] for line in written[1:]] == ["1/9", "2/9", "3/9"]


def test_an_evaluation_after_its_line_adds_no_second_one() -> None:
    events = [{**ROUND, "round": n} for n in (1, 2, 3)] + [evaluation(1, "global")]
    assert len(lines(events, clock="real")) == 2


def test_without_a_distillation_server_the_small_model_completes_a_line() -> None:
    events = [{**ROUND, "round": 1}, evaluation(1, "small")]
    assert len(lines(events, mode="average")) == 2
    assert lines(events) == []


def test_a_resumed_run_prints_its_rounds_anew() -> None:
    events = [{**ROUND, "round": 1}, evaluation(1, "small"), evaluation(1, "global")]
    written = lines([*events, {"event": "resumed", "round": 0}, *events])
    assert [line.split()[0] for line in written] == ["round", "1/9", "!", "1/9"]


def test_incidents_are_named_but_not_repeated_without_end() -> None:
    reject = {"event": "rejected", "participant": 4, "reason": "weights has NaN"}
    written = lines([{**reject, "round": number} for number in range(50)])
    assert len(written) == 3
    assert written[0] == "! rejected participant 4 in round 0: weights has NaN"
    assert "further ones are only in metrics.jsonl" in written[2]
    others = lines(
        [{"event": "worker_died", "reason": "killed"}, {"event": "warning", "message": "x"}]
    )
    assert ["killed" in others[0], "x" in others[1]] == [True, True]


def test_durations_are_readable() -> None:
    assert [duration(s) for s in (None, 0, 59.6, 61, 3661)] == [
        "-",
        "0:00",
        "1:00",
        "1:01",
        "1:01:01",
    ]


def test_scalars_of_an_event_leave_out_what_is_not_a_number() -> None:
    assert scalars({**evaluation(1, "small"), "accuracy_ema": None, "loss": 1.5}) == {
        "accuracy/small": 0.5, "loss/small": 1.5,
    }  # fmt: skip
    assert scalars({"event": "round", "t_wall": 1.0, "round": 1, "t": 2.0, "eta": None}) == {
        "round/t": 2.0
    }
    assert scalars({"event": "warning", "message": "x"}) == {}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, config())


@pytest.mark.parametrize("name", SINKS)
def test_a_sink_that_is_not_installed_says_how_to_install_it(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in ("wandb", "mlflow", "torch.utils.tensorboard.writer"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RunDirectoryError, match=f"sinks='{name}'.*pip install '{name}"):
        SINKS[name](run)


def test_tensorboard_reads_back_what_was_logged(run: RunDirectory) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run.listeners.append(SINKS["tensorboard"](run))
    for event in distill_events(3):
        run.emit(**event)
    run.emit("finished", status="completed")
    assert not [event for event in run.events() if event["event"] == "warning"]
    log = reading.EventAccumulator(str(run.path / "tensorboard")).Reload()
    wanted = [e for e in run.events() if e["event"] == "evaluate" and e["model"] == "global"]
    read = [(s.step, s.value) for s in log.Scalars("accuracy/global_ema")]
    assert read == [(e["round"], pytest.approx(e["accuracy_ema"])) for e in wanted]


class FakeWandb(types.ModuleType):
    """W&B as it is called here: what is initialised without a known id is a new run."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[str, Any]] = []
        self.runs: list[str] = []

    def init(self, *, id: str | None, resume: str, name: str, **_: Any) -> Any:  # noqa: A002
        if id is None:
            id = f"id{len(self.runs)}"  # noqa: A001
            self.runs.append(id)
        assert id in self.runs
        assert resume == "allow"
        self.calls.append(("init", name))
        return types.SimpleNamespace(
            id=id,
            log=lambda values: self.calls.append(("log", values)),
            finish=lambda exit_code: self.calls.append(("finish", exit_code)),
            define_metric=lambda *_, step_metric: self.calls.append(("axis", step_metric)),
        )


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_every_scalar_with_its_round(run: RunDirectory, wandb: FakeWandb) -> None:
    run.listeners.append(SINKS["wandb"](run))
    run.emit(**evaluation(7, "small"))
    run.emit("finished", status="failed")
    assert wandb.calls == [
        ("init", run.name), ("axis", "index"),
        ("log", {"accuracy/small": 0.5, "index": 7}), ("finish", 1),
    ]  # fmt: skip


def test_a_resumed_run_goes_on_in_its_wandb_run(run: RunDirectory, wandb: FakeWandb) -> None:
    for number in (1, 2, 3):
        again = RunDirectory.open(run.path)
        again.listeners.append(SINKS["wandb"](again))
        again.emit(**evaluation(number, "small"))
    assert len(wandb.runs) == 1
    other = RunDirectory.create(run.path.parent, config())
    SINKS["wandb"](other)
    assert len(wandb.runs) == 2


def test_a_resumed_run_goes_on_in_its_tensorboard_where_it_was(run: RunDirectory) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run.listeners.append(SINKS["tensorboard"](run))
    for number in (1, 2, 3):
        run.emit(**evaluation(number, "small"))
    again = RunDirectory.open(run.path)
    again.listeners.append(SINKS["tensorboard"](again))
    again.emit("resumed", round=1)
    again.emit(**{**evaluation(2, "small"), "accuracy": 0.25})
    again.emit("finished", status="completed")
    log = reading.EventAccumulator(str(run.path / "tensorboard")).Reload()
    read = [(s.step, s.value) for s in log.Scalars("accuracy/small")]
    assert read == [(1, 0.5), (2, 0.25)]


class FakeMlflow(types.ModuleType):
    """MLflow's client as it is called here."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, str] = {}
        self.places: list[str | None] = []
        self.MlflowClient = self._client

    def _client(self, tracking_uri: str | None) -> Any:
        self.places.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        found = self.experiments.get(name)
        return found and types.SimpleNamespace(experiment_id=found)

    def create_experiment(self, name: str) -> str:
        assert name not in self.experiments
        return self.experiments.setdefault(name, "7")

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        identity = f"id{len(self.runs)}"
        self.runs[identity] = {"name": run_name, "status": "RUNNING", "metrics": [], "keys": {}}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=identity))

    def update_run(self, identity: str, status: str) -> None:
        self.runs[identity]["status"] = status

    def log_param(self, identity: str, key: str, value: Any) -> None:
        self.runs[identity]["keys"][key] = value

    def log_metric(self, identity: str, key: str, value: float, step: int) -> None:
        self.runs[identity]["metrics"].append((key, value, step))

    def set_terminated(self, identity: str, status: str) -> None:
        self.runs[identity]["status"] = status


def test_a_resumed_run_goes_on_in_its_mlflow_run(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    for number, status in ((1, "stopped"), (2, "completed")):
        again = RunDirectory.open(run.path)
        again.listeners.append(SINKS["mlflow"](again))
        again.emit(**evaluation(number, "small"))
        assert mlflow.runs["id0"]["status"] == "RUNNING"
        again.emit("finished", status=status)
    (told,) = mlflow.runs.values()
    assert (told["name"], told["status"]) == (run.name, "FINISHED")
    assert told["keys"]["mode"] == "distill"
    assert told["metrics"] == [("accuracy/small", 0.5, 1), ("accuracy/small", 0.5, 2)]
    SINKS["mlflow"](RunDirectory.create(run.path.parent, config()))
    assert len(mlflow.runs) == 2


def test_mlflow_writes_where_it_lasts_unless_it_is_told_another_place(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its own default is the working directory, which a run's SuperLink takes away at the end."""
    mlflow = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    SINKS["mlflow"](run)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    SINKS["mlflow"](run)
    assert mlflow.places == [f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}", None]


def test_mlflow_without_a_server_needs_the_whole_package(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"mlflow", "sqlalchemy"}
    monkeypatch.setattr(sinks, "find_spec", lambda name: name in there or None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sinks.check_sinks(["mlflow"])
    there.remove("sqlalchemy")
    with pytest.raises(RunDirectoryError, match=r"MLFLOW_TRACKING_URI.*pip install mlflow"):
        sinks.check_sinks(["mlflow"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    sinks.check_sinks(["mlflow"])


def test_a_sink_that_cannot_begin_does_not_end_the_run(
    run: RunDirectory, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(**_: Any) -> None:
        raise RuntimeError("a long story\nnobody is logged in")

    monkeypatch.setattr(wandb, "init", refuses)
    sinks.attach_sinks(run, ["wandb"])
    assert run.listeners == []
    (told,) = run.events()
    assert told["message"] == "nothing goes to wandb: RuntimeError: nobody is logged in"
