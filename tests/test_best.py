"""The best model is kept, and a run whose models get no better ends early."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.config import resolve
from fl_app.preflight import preflight
from fl_app.problem import problem_of
from fl_app.record.export import trained_model
from fl_app.record.metrics import of_kind
from fl_app.record.run_dir import RunDirectory
from fl_app.settings import distillation_run_of
from strategies.best import Best
from strategies.distillation.publisher import Publisher
from strategies.distillation.strategy import Distillation
from strategies.errors import ConfigError, WorkerError
from strategies.evaluation import Candidate
from strategies.problem import flat_model
from tests.harness import SMALL, run

FEW = {**SMALL, "mode": "average", "small-width": 4, "participants": 2, "evaluate-examples": 100}
# A model that does not move is no better in any round after the first.
STILL = {"learning-rate": 1e-12, "best-metric": "accuracy", "stop-patience": 2}


DISTILL = {"mode": "distill", "distill.learning-rate": 1e-12, "large-width": 8}


class _CutError(Exception):
    """The run's process is gone."""


def seen(
    tmp_path: Path, metric: str, values: list[float], clock: str = "virtual", version: int = 0
) -> tuple[Best, RunDirectory]:
    """What is best of the rounds after `version`, at which the run is resumed if it is there."""
    config = resolve({**FEW, "clock": clock, "best-metric": metric, "stop-patience": 2})
    if version:
        directory = RunDirectory.open(tmp_path / "run")
    else:
        directory = RunDirectory.create(tmp_path, config.flat(), name="run")
    tasks: dict[int, Candidate] = {}
    with directory.held():
        best = Best(distillation_run_of(config), directory, lambda model: tasks, version)
        for round_, value in enumerate(values, start=version + 1):
            vectors = flat_model(problem_of(config), "small").state()
            vectors["weights"] = np.full_like(vectors["weights"], round_)
            told = {"model": "small", "round": round_, metric: value}
            tasks = {round_: Candidate("small", vectors, None, told)}
            best.see(told)
    return best, directory


@pytest.mark.parametrize(
    ("metric", "values", "which"),
    [("accuracy", [0.2, 0.5, 0.4, 0.5], 2), ("loss", [2.0, 1.5, 1.7, 1.2, 1.3], 4)],
)
def test_the_best_by_a_metric_is_kept(
    metric: str, values: list[float], which: int, tmp_path: Path
) -> None:
    best, directory = seen(tmp_path, metric, values)
    vectors, metadata = directory.load_checkpoint("best")
    assert (vectors["weights"] == which).all()
    assert (metadata["round"], metadata["value"]) == (which, values[which - 1])
    assert best.round == which
    assert [best.is_old(which + more) for more in (0, 1, 2)] == [False, False, True]


@pytest.mark.parametrize(("again", "value"), [(0.6, 0.8), (0.8, 0.8), (0.9, 0.9)])
def test_of_a_round_that_is_published_twice_the_better_model_is_kept(
    again: float, value: float, tmp_path: Path
) -> None:
    """As the last one is on the real clock."""
    best, directory = seen(tmp_path, "accuracy", [0.5, 0.8], "real")
    vectors = flat_model(problem_of(resolve(FEW)), "small").state()
    best._tasks = lambda model: {2: Candidate("small", vectors, None, {})}
    with directory.held():
        best.see({"model": "small", "round": 2, "accuracy": again})
    assert (best.round, directory.load_checkpoint("best")[1]["value"]) == (2, value)


def test_a_model_without_a_finite_metric_is_never_the_best(tmp_path: Path) -> None:
    best, _ = seen(tmp_path, "loss", [2.0, float("nan"), float("inf")])
    assert best.round == 1


@pytest.mark.parametrize(
    ("values", "old"), [([], False), ([0.5, 0.4], False), ([0.5, 0.4, 0.3], True)]
)
def test_on_the_real_clock_only_rounds_count_that_have_been_evaluated(
    values: list[float], old: bool, tmp_path: Path
) -> None:
    """However many others the run has made meanwhile."""
    best, _ = seen(tmp_path, "accuracy", values, "real")
    assert best.is_old(9) is old


@pytest.mark.parametrize(("clock", "which"), [("virtual", 3), ("real", 2)])
def test_what_is_made_anew_is_the_best_of_nothing(clock: str, which: int, tmp_path: Path) -> None:
    """Round 3 was the best before a kill. On the real clock it then is another model."""
    seen(tmp_path, "accuracy", [0.5, 0.6, 0.8], clock)
    again = [0.65, 0.8 if clock == "virtual" else 0.6]
    best, directory = seen(tmp_path, "accuracy", again, clock, version=1)
    assert best.round == directory.load_checkpoint("best")[1]["round"] == which


def test_what_a_kill_keeps_from_being_the_best_is_evaluated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event says that a model has been evaluated, and the best model has been kept by then."""

    def die(_: Best, fields: object) -> None:
        raise _CutError

    monkeypatch.setattr(Best, "see", die)
    with pytest.raises(_CutError):
        run(tmp_path, {"best-metric": "loss"}, FEW)
    [directory] = tmp_path.iterdir()
    assert of_kind(RunDirectory.open(directory).events(), "evaluate") == []


def test_a_run_whose_server_is_dead_fails_and_does_not_end_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_published = Publisher._on_published

    def last(publisher: Publisher, event: dict[str, Any]) -> None:
        on_published(publisher, event)
        publisher.server.give_up("the test has killed it")

    monkeypatch.setattr(Publisher, "_on_published", last)
    keys = {**STILL, **DISTILL, "num-server-rounds": 4, "stop-patience": 1, "distill.restarts": 0}
    with pytest.raises(WorkerError, match="died for good"):
        run(tmp_path, {**keys, "distill.variant": "sync"}, FEW)
    [directory] = tmp_path.iterdir()
    summary = RunDirectory.open(directory).summary()
    assert (summary["status"], summary["rounds"], summary["stopped_early"]) == ("failed", 4, None)


@pytest.mark.parametrize("mode", ["average", "distill"])
def test_a_run_that_gets_no_better_ends_early(mode: str, tmp_path: Path) -> None:
    """Twice at the same round, with the models of that round."""
    keys = {**STILL, "mode": mode, "num-server-rounds": 9}
    if mode == "distill":
        keys |= {**DISTILL, "distill.variant": "async-round", "distill.reverse-steps": 20}
        keys |= {"distill.references": "server-alone", "proxy-labelled-examples": 50}
    found = [run(tmp_path / name, keys, FEW) for name in ("one", "two")]
    summary, directory = found[0]
    assert summary["status"] == "completed"
    assert summary["rounds"] == summary["stopped_early"] < 9
    assert summary["stopped_early"] == summary["best"]["round"] + 2
    assert summary["checksum"] == found[1][0]["checksum"]
    assert len(of_kind(directory.events(), "round")) == summary["rounds"]
    shown = {
        model: {e["round"] for e in of_kind(directory.events(), "evaluate") if e["model"] == model}
        for model in ("global", "server_alone")
    }
    assert shown["global"] == shown["server_alone"]
    _, metadata = directory.load_checkpoint("best")
    name, model = trained_model(directory, resolve(directory.config()), "best")
    assert (name, model.checksum()) == ("best", metadata["checksum"])


@pytest.mark.parametrize("variant", ["async-continuous", "sync"])
def test_a_run_that_is_killed_after_its_early_end_ends_there_again(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {**STILL, **DISTILL, "num-server-rounds": 9, "distill.variant": variant}
    expected, whole = run(tmp_path / "whole", keys, FEW)

    def die(_: Distillation) -> None:
        raise _CutError

    with monkeypatch.context() as patched:
        patched.setattr(Distillation, "_save_models", die)
        with pytest.raises(_CutError):
            run(tmp_path / "killed", keys, FEW)
    [directory] = (tmp_path / "killed").iterdir()
    summary, resumed = run(tmp_path / "killed", {**keys, "resume": str(directory)}, FEW)
    told = ("rounds", "stopped_early", "best", "checksum", "final", "virtual_seconds")
    told += ("worker_busy_fraction", "teacher_staleness")
    assert [summary[key] for key in told] == [expected[key] for key in told]
    shown = [
        [e["round"] for e in of_kind(d.events(), "evaluate") if e["model"] == "global"]
        for d in (whole, resumed)
    ]
    assert sorted(shown[1]) == shown[0] == list(range(1, summary["rounds"] + 1))
    steps = sum(segment["steps"] for segment in of_kind(resumed.events(), "segment"))
    assert steps == of_kind(resumed.events(), "round")[-1]["worker_steps"]


def test_without_patience_a_run_goes_on_to_the_end(tmp_path: Path) -> None:
    summary, _ = run(tmp_path, {**STILL, "stop-patience": 0}, FEW)
    assert (summary["rounds"], summary["stopped_early"]) == (4, None)
    assert summary["best"]["round"] >= 1


OWN = """
from strategies.task import ACCURACY, Metric
from tests.some_tasks import Points

class Sure(Points):
    metrics = (
        ACCURACY,
        Metric("doubt", lambda outputs, _: -outputs.amax(1).double()),
        Metric("sureness", lambda outputs, _: outputs.amax(1).double(), higher_is_better=True),
    )
"""


@pytest.mark.parametrize(("metric", "best"), [("doubt", min), ("sureness", max)])
def test_any_metric_of_the_task_may_be_the_one(
    metric: str, best: Callable[[list[float]], float], tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    keys = {"task": f"{tmp_path / 'own.py'}:Sure", "best-metric": metric}
    keys |= {"proxy-examples": 20, "validation-examples": 20}
    _, directory = run(tmp_path / "runs", keys, FEW)
    values = [event[metric] for event in of_kind(directory.events(), "evaluate")]
    assert len(set(values)) > 1
    assert directory.load_checkpoint("best")[1]["value"] == best(values)


def test_what_the_task_does_not_measure_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"best-metric='rmse'.*task='images'.*: accuracy, loss"):
        preflight(resolve({**FEW, "best-metric": "rmse"}))
