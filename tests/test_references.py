"""What a distill run is measured against: which references there are, and that they repeat."""

import contextlib
import json
import math
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from torch.nn import functional

from fl_app.assemble import dataset_of
from fl_app.config import RunConfig, resolve
from fl_app.data import augment
from fl_app.problem import problem_of
from fl_app.record.console import console_listener
from fl_app.record.distill_figures import accuracy
from fl_app.record.metrics import of_kind, targets_of
from fl_app.record.modes import VIEWS
from fl_app.record.run_dir import RunDirectory
from fl_app.settings import distillation_run_of, suspects_of
from strategies.averaging import VERSIONS_DECAY, running_average
from strategies.distillation.reference_worker import Alone, examples_of, load_states, save_states
from strategies.distillation.settings import check_references_of_devices
from strategies.divergence import record_evaluation
from strategies.errors import ConfigError
from strategies.problem import flat_model, split_of
from strategies.randomness import rng
from tests import oracle, record_events
from tests.harness import run, run_with_its_own
from tests.test_distill import needs_proc, processes, round_reached, wait_for

ALL = "small-average, server-alone, centralized-large"
OFF = {"distill.calibrate": "off"}
TRAINED = {"server_alone", "centralized_large"}
LABELLED: dict[str, Any] = {"proxy-labelled-examples": 60, "distill.references": ALL}


def config_with(**overrides: Any) -> RunConfig:
    small = {"small-width": 2, "large-width": 4, "distill.batch-size": 8, "distill.references": ALL}
    return resolve({**small, "proxy-labelled-examples": 60, **overrides})


# ------------------------------------------------------------------------------- which there are


@pytest.mark.parametrize(
    ("overrides", "references", "trained"),
    [
        ({}, ("small-average", "small-calibrated"), ()),
        (
            {"proxy-labelled-examples": -1},
            ("small-average", "small-calibrated", "server-alone"),
            ("server-alone",),
        ),
        ({"proxy-labelled-examples": 0}, ("small-average", "small-calibrated"), ()),
        (
            {"proxy-labelled-examples": 5, **OFF},
            ("small-average", "server-alone"),
            ("server-alone",),
        ),
        ({"proxy-labelled-examples": 0, **OFF}, ("small-average",), ()),
        ({"distill.variant": "sync", "proxy-labelled-examples": 0}, ("small-average",), ()),
        ({"proxy-labelled-examples": 5, "distill.references": ""}, (), ()),
        ({"distill.references": "centralized-large"}, *(("centralized-large",),) * 2),
        ({"mode": "average"}, (), ()),
        ({"mode": "consensus"}, (), ()),
    ],
)
def test_auto_is_what_exists_in_the_run_and_costs_no_data_of_others(
    overrides: dict[str, Any], references: tuple[str, ...], trained: tuple[str, ...]
) -> None:
    config = resolve(overrides)
    run = distillation_run_of(config)
    assert (run.references, run.trained_references) == (references, trained)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        (
            "server-alone",
            "distill.references='server-alone' learns from labels of the distillation",
        ),
        ("server", "distill.references='server' is unknown; choose from: small-average, small-cal"),
        ("small-calibrated", "distill.references='small-calibrated' needs distill.calibrate='on'"),
        ("small-average,small-average", "small-average, small-average' names one twice"),
    ],
)
def test_a_reference_that_cannot_be_is_refused(references: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve({"distill.references": references, "proxy-labelled-examples": 0, **OFF})


def test_devices_keep_their_data() -> None:
    check_references_of_devices(resolve({}).references)
    with pytest.raises(ConfigError, match=r"use distill.references='small-average,server-alone'"):
        check_references_of_devices(config_with().references)


def test_what_they_learn_from() -> None:
    """The server's labelled images; all training images but those that are measured on."""
    config = config_with(**{"evaluate-on": "validation"})
    train, split = dataset_of(config).train, split_of(problem_of(config))
    known = examples_of(distillation_run_of(config), "server-alone")
    images, labels = known.inputs, known.targets
    assert np.array_equal(images.numpy(), train.images[split.proxy[:60]])
    assert np.array_equal(labels.numpy(), train.labels[split.proxy[:60]])
    everything = examples_of(distillation_run_of(config), "centralized-large")
    images, labels = everything.inputs, everything.targets
    rest = np.setdiff1d(np.arange(len(train.labels)), split.validation)
    assert np.array_equal(np.bincount(labels), np.bincount(train.labels[rest]))
    assert len(images) == len(rest)


# ----------------------------------------------------------------------------------- small-average


def test_the_average_of_versions_by_hand() -> None:
    """Of versions 1, 2 and 3 with values 11, 22, 0: the first alone; 2/11 of it and 9/11 of the
    second, 20; 3/12 of that, 5."""
    average: dict[str, np.ndarray] = {}
    found = []
    for version, value in enumerate((11.0, 22.0, 0.0), 1):
        model = {"weights": np.full(2, value, np.float32)}
        average = running_average(average, model, version)
        found.append(float(average["weights"][0]))
    assert found == pytest.approx([11, 20, 5])
    late = running_average({"b": np.ones(1, np.float32)}, {"b": np.zeros(1, np.float32)}, 1000)
    assert late["b"] == pytest.approx(VERSIONS_DECAY)


# ------------------------------------------------------------------------------ trained references


def test_steps_equal_the_reference() -> None:
    """AdamW on the cross entropy, from G's initial weights, and the average with decays 1/10, 2/11
    (see test_learner for the tolerance)."""
    config = config_with()
    alone, model = (
        Alone(distillation_run_of(config), "server-alone", "cpu"),
        flat_model(problem_of(config), "large"),
    )
    data = dataset_of(config)
    known = examples_of(distillation_run_of(config), "server-alone")
    images, labels = known.inputs, known.targets
    averages = [model.weights.clone()]

    def gradient_at(step: int) -> Any:
        def gradient(w: torch.Tensor) -> torch.Tensor:
            if step:
                averages.append(averages[-1].lerp(w, 1 - step / (9 + step)))
            model.load(w, model.buffers)
            generator = rng(config.seed, "server-alone", step)
            chosen = torch.from_numpy(generator.integers(0, 60, 8))
            x = augment(images[chosen], generator, mean=data.mean, std=data.std, flip=data.flip)
            model.module.train()
            model.zero_grad()
            functional.cross_entropy(model.module(x), labels[chosen]).backward()
            return model.gradient.clone()

        return gradient

    weights = oracle.adamw(
        model.weights.clone(),
        [gradient_at(step) for step in range(2)],
        rate=config.distill.learning_rate,  # whole, at version 1
        decay=config.distill.weight_decay,
    )
    for _ in range(2):
        alone.learn()
    arrays, told = alone.state()
    assert told["step"] == 2
    expected = {"weights": weights, "ema_weights": averages[-1].lerp(weights, 9 / 11)}
    for name, value in expected.items():
        torch.testing.assert_close(torch.from_numpy(arrays[name]), value, rtol=0, atol=2e-5)


def test_a_successor_goes_on_with_equal_bits(tmp_path: Path) -> None:
    through = Alone(distillation_run_of(config_with()), "centralized-large", "cpu")
    for _ in range(3):
        through.learn()
    stopped = Alone(distillation_run_of(config_with()), "centralized-large", "cpu")
    stopped.learn()
    save_states(tmp_path / "state", {"centralized-large": stopped.state()}, 7)
    successor = Alone(distillation_run_of(config_with()), "centralized-large", "cpu")
    successor.load_state(*load_states(tmp_path / "state")["centralized-large"])
    for _ in range(2):
        successor.learn()
    assert successor.step == 3
    for name, array in through.state()[0].items():
        assert array.tobytes() == successor.state()[0][name].tobytes()


# -------------------------------------------------------------------------------------- whole runs


def evaluations(directory: RunDirectory, model: str) -> dict[int, tuple]:
    """round -> (t, step, accuracies, loss)."""
    names = ("t", "step", "accuracy", "accuracy_ema", "loss")
    return {
        event["round"]: tuple(event.get(name) for name in names)
        for event in of_kind(directory.events(), "evaluate")
        if event["model"] == model
    }


@needs_proc
def test_they_are_at_the_models_steps_whatever_dies(tmp_path: Path) -> None:
    """Their process, and then the whole run, are killed: the same numbers come out."""
    expected, undisturbed = run(tmp_path / "undisturbed", LABELLED)
    known = evaluations(undisturbed, "global")
    assert set(known) == {1, 2, 3, 4}
    for model in TRAINED:
        found = evaluations(undisturbed, model)
        assert {n: e[:2] for n, e in found.items()} == {n: e[:2] for n, e in known.items()}
    assert set(evaluations(undisturbed, "small_average")) == {1, 2, 3, 4}
    assert not (undisturbed.path / "references").exists()

    output = tmp_path / "killed"
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=run_with_its_own, args=(output, LABELLED), daemon=True)
    process.start()
    [child] = wait_for(lambda: processes("reference_worker", output))
    wait_for(lambda: round_reached(output, 1))
    os.kill(child, signal.SIGKILL)
    directory = wait_for(lambda: round_reached(output, 2))
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    wait_for(lambda: not processes("reference_worker", output))
    summary, resumed = run(output, {**LABELLED, "resume": str(directory)})
    assert summary["final"] == expected["final"]
    for model in (*TRAINED, "small_average", "global"):
        assert evaluations(resumed, model) == evaluations(undisturbed, model)


def test_a_run_goes_on_when_their_process_dies_for_good(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(message: Message, reply: Message) -> Message:
        for pid in processes("reference_worker", tmp_path):
            with contextlib.suppress(ProcessLookupError):  # killed by the message before
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        return reply

    config = {**LABELLED, "distill.references": "server-alone", "distill.restarts": 0}
    summary, directory = run_with_its_own(tmp_path, config, tamper=kill)
    assert killed
    assert summary["status"] == "completed"
    [warning] = [e["message"] for e in of_kind(directory.events(), "warning")]
    assert warning.startswith("the process of the references died and is not started again: exit")
    assert "server_alone" not in summary["final"]


def test_on_the_real_clock_they_take_the_steps_that_the_model_took(tmp_path: Path) -> None:
    config = {**LABELLED, "clock": "real", "distill.references": "server-alone"}
    summary, directory = run(tmp_path, config)
    assert summary["status"] == "completed"
    alone, known = evaluations(directory, "server_alone"), evaluations(directory, "global")
    assert {n: e[1] for n, e in alone.items()} == {n: e[1] for n, e in known.items()}


def test_a_reference_that_diverges_ends_no_run(tmp_path: Path) -> None:
    config = config_with()
    directory = RunDirectory.create(tmp_path, config.flat())
    told = {"round": 1, "t": 1.0, "accuracy": math.nan, "loss": math.nan, "accuracy_ema": None}
    record_evaluation(suspects_of(config), directory, model="server_alone", **told)
    [event] = of_kind(directory.events(), "evaluate")
    assert event["accuracy"] is None


# ----------------------------------------------------------------------------------- what is shown


def recorded_events() -> list[dict[str, Any]]:
    """A run whose references end at 61, 62 and 93 %; the trained ones are late."""
    rounds = 4
    events = [{"event": "run_started", "config": record_events.config(rounds)}]
    late: list[dict[str, Any]] = []
    for event in record_events.distill_events(rounds):
        if event.get("model") == "small":
            told = {**event, "model": "small_average", "accuracy": 0.57 + event["round"] / 100}
            events.append(told)
        events.append(event)
        if event.get("model") == "global":
            for model, reached in (("server_alone", 0.58), ("centralized_large", 0.89)):
                reached += event["round"] / 100
                late.append({**event, "model": model, "accuracy": 0.3, "accuracy_ema": reached})
    events += [*late, {"event": "finished", "status": "completed", "reason": ""}]
    return [{"t_wall": 0.0, **event} for event in events]


def test_they_are_in_the_summary_the_table_and_the_figure() -> None:
    *events, _ = recorded_events()
    view, targets = VIEWS["distill"], targets_of(record_events.config())
    measured = view.measure(events, targets)
    final = measured["final"]
    assert (final["small_average"], final["server_alone"]) == pytest.approx((0.61, 0.62))
    assert final["centralized_large"] == pytest.approx(0.93)
    times = {event["round"]: event["t"] for event in of_kind(events, "round")}
    reached = measured["reference_time_to_target"]
    assert (reached["small_average"]["0.60"], reached["server_alone"]["0.60"]) == (
        times[3],
        times[2],
    )
    assert reached["small_average"]["0.65"] is None
    assert view.rows(events)[3]["server_alone"] == pytest.approx(0.62)
    [table] = view.page.tables(events)
    assert [row[0] for row in table.rows][2:] == [
        "small model, weight average",
        "server alone, on its labelled examples",
        "large model, all data in one place",
    ]
    ours = final["published"]
    assert [row[2] for row in table.rows][3] == f"{100 * (ours - final['server_alone']):+.1f}"
    assert {len(row) for row in table.rows} == {len(table.columns)}
    figure = accuracy(events, "virtual", targets)
    assert figure is not None
    assert "server alone, on its labelled examples" in {
        line.get_label() for line in figure.axes[0].get_lines()
    }


@pytest.mark.parametrize("cut", [0, 3])
def test_the_console_ends_with_them_though_they_come_late(cut: int) -> None:
    """Of a resumed run, too: `cut` events from its end were recorded after the resumption."""
    events = recorded_events()
    past, rest = (events[:-cut], events[-cut:]) if cut else ([], events)
    written: list[str] = []
    view = VIEWS["distill"]
    listen = console_listener(
        view, clock="virtual", rounds=4, write=written.append, past=json.loads(json.dumps(past))
    )
    if cut:
        listen({"event": "resumed", "round": 4})
    for event in rest:
        listen(event)
    start = written.index("final accuracy")
    final = view.measure(events, ())["final"]
    shown = dict(line.strip().split("  ", 1) for line in written[start + 1 :])
    assert shown["global model, as published"].strip() == f"{100 * final['published']:.1f} %"
    for label, name in (
        ("small model", "small"),
        ("small model, weight average", "small_average"),
        ("server alone, on its labelled examples", "server_alone"),
        ("large model, all data in one place", "centralized_large"),
    ):
        apart = 100 * (final["published"] - final[name])
        told = f"{100 * final[name]:.1f} %; published model {apart:+.1f} points"
        assert shown[label].strip() == told
