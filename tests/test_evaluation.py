"""The evaluation beside a run: bounded, in order, and not silent about its end."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.assemble import dataset_of
from fl_app.config import RunConfig, resolve
from fl_app.preflight import preflight
from fl_app.problem import problem_of
from strategies import evaluation
from strategies.errors import ConfigError
from strategies.evaluation import (
    Candidate,
    Evaluator,
    Measured,
    evaluation_set,
    measured,
    measured_of_each,
)
from strategies.problem import flat_model, split_of, task_of
from strategies.task import ACCURACY, PERPLEXITY

CONFIG = resolve({"mode": "average", "evaluate-examples": 10})


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Nothing is evaluated before it is set."""
    opened = threading.Event()

    def evaluate(*_: Any) -> dict[str, float]:
        opened.wait(60.0)
        return {"accuracy": 0.5, "loss": 1.0}

    monkeypatch.setattr(Evaluator, "_evaluate", evaluate)
    yield opened
    opened.set()


def candidate(round_: int) -> Candidate:
    return Candidate("small", {"weights": np.zeros(1)}, None, {"model": "small", "round": round_})


def wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_slow_evaluation_is_waited_for_and_told(gate: threading.Event) -> None:
    reports: list[int] = []
    said: list[str] = []
    evaluator = Evaluator(
        problem_of(CONFIG),
        ("small",),
        lambda **fields: reports.append(fields["round"]),
        said.append,
    )
    rounds = list(range(40))
    thread = threading.Thread(
        target=lambda: [evaluator.put(candidate(r)) for r in rounds], daemon=True
    )
    thread.start()
    wait(lambda: bool(said))
    # In a queue of so many, one at work, and one that is being put: what a checkpoint has to keep.
    most = evaluation._MOST_WAITING + 2
    wait(lambda: len(evaluator.pending("small")) == most)
    time.sleep(0.1)
    assert len(evaluator.pending("small")) == most
    gate.set()
    thread.join()
    evaluator.close()
    assert reports == rounds
    assert evaluator.pending("small") == {}
    assert len(said) == 1
    assert "slower than the training" in said[0]


def test_of_a_round_that_is_published_twice_each_model_is_told_with_its_own_vectors(
    gate: threading.Event,
) -> None:
    told: list[Candidate] = []
    evaluator = Evaluator(
        problem_of(CONFIG),
        ("small",),
        lambda **fields: told.append(evaluator.pending("small")[fields["round"]]),
    )
    twice = [candidate(3), candidate(3)]
    for each in twice:
        evaluator.put(each)
    gate.set()
    evaluator.close()
    assert [id(each) for each in told] == [id(each) for each in twice]
    assert evaluator.pending("small") == {}


def test_an_evaluation_that_fails_ends_the_run_and_not_only_at_its_end() -> None:
    evaluator = Evaluator(problem_of(CONFIG), ("small",), lambda **_: None)
    vectors = flat_model(problem_of(CONFIG), "small").state()
    evaluator.put(
        Candidate("small", vectors | {"weights": np.zeros(3)}, None, {"model": "small", "round": 1})
    )
    evaluator._thread.join(60.0)
    for again in (2, 3):
        with pytest.raises(ValueError, match="3"):
            evaluator.put(Candidate("small", vectors, None, {"model": "small", "round": again}))
    with pytest.raises(ValueError, match="3"):
        evaluator.close()


@pytest.mark.parametrize("mode", ["distill", "average", "consensus"])
def test_validation_images_are_training_images_that_nobody_else_sees(mode: str) -> None:
    values = {"mode": mode, "evaluate-on": "validation", "validation-examples": 200}
    config = resolve(values)
    preflight(config)
    train, split = dataset_of(config).train, split_of(problem_of(config))
    measured = evaluation_set(problem_of(config), "cpu")
    assert measured.targets.tolist() == train.labels[split.validation].tolist()
    assert np.bincount(measured.targets).tolist() == [20] * 10
    others = np.concatenate([*split.participants, split.proxy])
    assert not np.intersect1d(others, split.validation).size
    assert len(others) + 200 == len(train.labels)
    # Participants and server have the same images, wherever accuracies are measured; where nobody
    # chooses anything by the server's model, images are held out on demand only.
    before = split_of(problem_of(resolve({**values, "evaluate-on": "test"})))
    assert np.array_equal(before.proxy, split.proxy)
    assert np.array_equal(before.validation, [] if mode == "consensus" else split.validation)


def test_too_many_validation_images_are_refused() -> None:
    words = r"validation-examples=5000 would hold out all"
    with pytest.raises(ConfigError, match=words):
        preflight(resolve({"evaluate-on": "validation", "validation-examples": 5000}))


def told_of(config: RunConfig, ema: bool) -> dict[str, Any]:
    reports: list[dict[str, Any]] = []
    evaluator = Evaluator(problem_of(config), ("small",), lambda **fields: reports.append(fields))
    state = flat_model(problem_of(config), "small").state()
    fields = {"model": "small", "round": 1}
    evaluator.put(Candidate("small", state, state if ema else None, fields))
    evaluator.close()
    return reports[0]


def test_a_task_with_classes_is_told_by_class() -> None:
    """A class of which there are no test images is left out; the mean over the images of all is
    the model's accuracy."""
    config = resolve({"mode": "average", "evaluate-examples": 30, "small-width": 2})
    told = told_of(config, ema=True)
    counts = np.bincount(evaluation_set(problem_of(config), "cpu").targets, minlength=10)
    names = task_of(problem_of(config)).classes
    assert set(told["per_class"]) == {n for n, count in zip(names, counts, strict=True) if count}
    weighted = sum(told["per_class"].get(n, 0) * c for n, c in zip(names, counts, strict=True))
    assert weighted / 30 == pytest.approx(told["accuracy"], abs=1e-3)
    assert told["per_class_ema"] == told["per_class"]  # of the same vectors


def test_a_task_without_classes_is_not() -> None:
    config = resolve({"mode": "average", "task": "text", "evaluate-examples": 5})
    told = told_of(config, ema=False)
    assert told["perplexity"] > 1
    assert not {"per_class", "per_class_ema"} & told.keys()


def test_the_main_metric_has_its_field_whatever_the_others_are_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A text's is its perplexity; of the running average, too."""
    config = resolve({"mode": "average", "task": "text", "evaluate-examples": 10})
    task = task_of(problem_of(config))
    monkeypatch.setattr(task, "metrics", (PERPLEXITY, ACCURACY), raising=False)
    reports: list[dict[str, Any]] = []
    evaluator = Evaluator(problem_of(config), ("small",), lambda **fields: reports.append(fields))
    state = flat_model(problem_of(config), "small").state()
    evaluator.put(Candidate("small", state, state, {"model": "small", "round": 1}))
    evaluator.close()
    [told] = reports
    assert told["accuracy_ema"] == told["accuracy"] == told["perplexity"] > 100


# -- models side by side ------------------------------------------------------------------------

FEW = resolve({"mode": "consensus", "small-width": 2, "evaluate-examples": 600})


def five_models() -> tuple[Any, list[torch.Tensor], Any]:
    model = flat_model(problem_of(FEW), "small")
    noise = torch.Generator().manual_seed(0)
    weights = [
        model.weights + 0.1 * torch.randn(len(model.weights), generator=noise) for _ in range(5)
    ]
    return model, weights, evaluation_set(problem_of(FEW), "cpu")


def one_by_one() -> list[Measured]:
    task = task_of(problem_of(FEW))
    model, weights, examples = five_models()
    return measured_of_each(task, model, weights, examples)


def near(found: list[Measured], expected: list[Measured]) -> bool:
    return all(
        a.values == pytest.approx(b.values, abs=2e-3)
        and a.by_class == pytest.approx(b.by_class, abs=0.03)
        for a, b in zip(found, expected, strict=True)
    )


def test_models_side_by_side_are_worth_what_each_is_alone() -> None:
    task = task_of(problem_of(FEW))
    model, weights, examples = five_models()
    expected = one_by_one()
    model.weights.copy_(weights[3])
    assert measured(task, model, examples) == expected[3]
    assert len({each.values["loss"] for each in expected}) == 5
    assert near(measured_of_each(task, model, weights, examples, most=2), expected)
    assert not near(measured_of_each(task, model, weights[::-1], examples, most=2), expected)


def test_a_model_that_is_not_finite_leaves_those_beside_it_alone() -> None:
    task = task_of(problem_of(FEW))
    model, weights, examples = five_models()
    weights[1][0] = float("nan")
    first, second, *_ = measured_of_each(task, model, weights, examples, most=5)
    assert near([first], one_by_one()[:1])
    assert all(value != value for value in second.values.values())
    assert second.by_class == {}


@pytest.mark.parametrize(
    ("error", "passes"),
    [(torch.OutOfMemoryError("full"), [4, 2, 2]), (RuntimeError("no rule for vmap"), [4])],
)
def test_what_cannot_be_side_by_side_is_smaller_or_alone(
    error: RuntimeError, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device has memory for two models."""
    many, tried = evaluation._pass, []

    def some(*arguments: Any) -> list[Measured]:
        tried.append(len(arguments[2]))
        if len(arguments[2]) > 2:
            raise error
        return many(*arguments)

    monkeypatch.setattr(evaluation, "_pass", some)
    model, weights, examples = five_models()
    found = measured_of_each(task_of(problem_of(FEW)), model, weights[:4], examples, most=4)
    assert near(found, one_by_one()[:4])
    assert tried == passes
