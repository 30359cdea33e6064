"""The teacher's last layer is the one that all participants' labels ask for, wherever they are."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from client_apps.local_training import _label_gradient
from fl_app.config import resolve
from fl_app.problem import problem_of
from fl_app.settings import training_of
from strategies.averaging import Vectors
from strategies.distillation.calibration import Calibration, chosen
from strategies.errors import ConfigError
from strategies.flat import FlatModel
from strategies.head import CALIBRATION_EXAMPLES, Head, label_gradient
from strategies.problem import flat_model, proxy_data, split_of, task_of, train_set_of
from strategies.randomness import rng
from strategies.rules import Update
from strategies.schedule import Job
from strategies.task import Examples, prepared
from tests.harness import run

SMALL = {
    "small-width": 4,
    "large-width": 8,
    "proxy-examples": 1000,
    "validation-examples": 50,
    "distill.references": "",
}


class TwoLayers(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.last = nn.Linear(4, 3, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x)))


class Scaled(TwoLayers):
    """What comes of its last layer is no output yet."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Tied(TwoLayers):
    """Two layers have the weights of one."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(4, 3)
        self.again.weight = self.last.weight


class Frozen(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.last.weight.requires_grad_(False)


INPUTS = torch.linspace(-1, 1, 30).reshape(5, 6)


def test_a_head_makes_the_outputs_of_its_features() -> None:
    model = FlatModel(TwoLayers())
    head = Head(model, INPUTS)
    assert head.shape == (3, 5)
    weights = model.state()["weights"]
    outputs = head.features(INPUTS) @ torch.from_numpy(head.of(weights)).T
    torch.testing.assert_close(outputs.float(), model.module(INPUTS))


def test_another_head_is_all_that_changes() -> None:
    model = FlatModel(TwoLayers())
    head, before = Head(model, INPUTS), model.state()["weights"]
    after = head.put(before, np.full((3, 5), 7.0))
    assert (head.of(after) == 7).all()
    assert (after != before).sum() == 15
    model.load(after, model.buffers)
    assert (model.module.last.bias == 7).all()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Scaled(), "are not those of a last nn.Linear"),
        (nn.Sequential(nn.Linear(6, 3), nn.ReLU()), "are not those of a last nn.Linear"),
        (TwoLayers(bias=False), "has no bias, is shared, or is not trained"),
        (Tied(), "has no bias, is shared, or is not trained"),
        (Frozen(), "has no bias, is shared, or is not trained"),
    ],
)
def test_a_model_without_such_a_layer_is_refused(module: nn.Module, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Head(FlatModel(module), INPUTS)


def test_the_gradient_is_that_of_the_cross_entropy() -> None:
    model, targets = FlatModel(TwoLayers()), torch.tensor([0, 2, 1, 1, 0])
    head = Head(model, INPUTS)
    found = label_gradient(head.features(INPUTS), head.of(model.state()["weights"]), targets)
    functional.cross_entropy(model.module(INPUTS), targets).backward()
    last: Any = model.module.last
    expected = torch.cat([last.weight.grad, last.bias.grad[:, None]], dim=1)
    torch.testing.assert_close(torch.from_numpy(found), expected)


# ------------------------------------------------------------------------------- all participants


def test_of_many_images_some_of_every_class_are_used() -> None:
    """The server's images are in the order of the training set, which is sorted by class."""
    problem = problem_of(resolve({**SMALL, "proxy-examples": 3000}))
    targets = train_set_of(problem).targets[split_of(problem).proxy]
    used = chosen(3000, seed=0)
    assert len(used) == 2000
    assert (np.diff(used) > 0).all()
    assert torch.bincount(targets[used]).min() > 150
    assert len(Calibration(problem)._inputs) == 2000
    assert not np.array_equal(used, chosen(3000, seed=1))
    assert chosen(1500, seed=0).tolist() == list(range(1500))


def calibration() -> tuple[Calibration, Head, FlatModel, Vectors]:
    problem = problem_of(resolve(SMALL))
    model = flat_model(problem, "small")
    task, inputs = task_of(problem), proxy_data(problem).inputs
    head = Head(model, prepared(task.prepare(False), inputs[:2], np.random.default_rng(0)))
    return Calibration(problem), head, model, model.state()


def told(head: Head, model: FlatModel, state: Vectors, examples: Examples) -> np.ndarray:
    """The gradient that a participant with these examples sends."""
    task = task_of(problem_of(resolve(SMALL)))
    inputs = prepared(task.prepare(False), examples.inputs, np.random.default_rng(0))
    model.load(state["weights"], state["buffers"])
    return label_gradient(head.features(inputs), head.of(state["weights"]), examples.targets)


def update(participant: int, examples: int, state: Vectors, gradient: np.ndarray) -> Update:
    return Update(Job(participant, 0, 1, 0.0, 0.0, 0.0, 0.0), examples, 0.1, state, gradient)


def some_images(number: int) -> Examples:
    everything = train_set_of(problem_of(resolve(SMALL)))
    return everything.take(np.random.default_rng(0).permutation(len(everything))[:number])


def by_class(examples: Examples, classes: Sequence[int]) -> Examples:
    return examples.take(np.flatnonzero(np.isin(examples.targets.numpy(), classes)))


def test_it_does_not_matter_who_has_which_labels() -> None:
    """One participant for the even classes and one for the odd ones, or all in one place."""
    everything = some_images(600)
    halves = [by_class(everything, range(start, 10, 2)) for start in (0, 1)]
    heads = []
    for parts in ([everything], halves):
        made, head, model, state = calibration()
        updates = [
            update(i, len(part), state, told(head, model, state, part))
            for i, part in enumerate(parts)
        ]
        made.follow(1, state, updates)
        heads.append(head.of(made.newest["weights"]))
    np.testing.assert_allclose(heads[0], heads[1], rtol=1e-3, atol=1e-4)


def test_on_the_same_images_it_is_the_minimum_of_the_cross_entropy() -> None:
    """If participants' images are the server's, nothing is estimated: the calibrated layer is that
    of logistic regression, but for the pull to what it was."""
    problem = problem_of(resolve(SMALL))
    own = train_set_of(problem).take(split_of(problem).proxy)
    made, head, model, state = calibration()
    before = told(head, model, state, own)
    made.follow(1, state, [update(0, len(own), state, before)])
    after = told(head, model, made.newest, own)
    moved = head.of(made.newest["weights"]) - head.of(state["weights"])
    assert np.abs(after).max() < np.abs(before).max() / 20
    np.testing.assert_allclose(after, -1e-3 * moved, atol=2e-5)


def test_what_was_told_of_another_version_is_not_used() -> None:
    everything = some_images(600)
    halves = [by_class(everything, range(start, start + 5)) for start in (0, 5)]
    made, head, model, state = calibration()
    updates = [
        update(i, len(part), state, told(head, model, state, part)) for i, part in enumerate(halves)
    ]
    made.follow(1, state, updates[:1])
    alone = made.newest["weights"]
    older = replace(updates[1], job=Job(1, 0, 0, 0.0, 0.0, 0.0, 0.0))
    made.follow(1, state, [updates[0], older])
    np.testing.assert_array_equal(made.newest["weights"], alone)
    made.follow(1, state, updates)
    assert np.abs(made.newest["weights"] - alone).max() > 0.01
    before = made.newest
    made.follow(2, state, updates)  # nothing of version 2
    assert made.newest is before


def test_the_average_of_the_calibrated_versions_by_hand() -> None:
    """The first is its own average; then the past counts 2/11 and 3/12."""
    images = some_images(200)
    made, head, model, state = calibration()
    expected: Vectors = {}
    for version, decay in ((1, 0.0), (2, 2 / 11), (3, 3 / 12)):
        now = {name: vector + np.float32(0.1 * version) for name, vector in state.items()}
        one = update(0, len(images), now, told(head, model, now, images))
        made.follow(version, now, [replace(one, job=Job(0, 0, version, 0.0, 0.0, 0.0, 0.0))])
        assert np.abs(made.newest["weights"] - now["weights"]).max() > 0.01
        for name, vector in made.newest.items():
            expected[name] = decay * expected.get(name, vector) + (1 - decay) * vector
            np.testing.assert_allclose(made.average[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attack", ["none", "label-flip"])
def test_what_a_participant_tells_is_of_its_images_as_they_are(attack: str) -> None:
    """Not as training changes them; and of the labels on which it trains, be they flipped."""
    attacker = {"attack": attack, "attackers": 1} if attack != "none" else {}
    config = resolve({**SMALL, "participants": 2, **attacker})
    settings, (_, head, model, state) = training_of(config), calibration()
    assert settings.calibrates
    split = split_of(problem_of(config))
    for participant, own in enumerate(split.participants):
        shard = train_set_of(problem_of(config)).take(own)
        order = rng(config.seed, "calibration", participant, 3).permutation(len(shard))
        some = shard.take(order[:CALIBRATION_EXAMPLES])
        if attack != "none" and participant == 1:
            some = Examples(some.inputs, 9 - some.targets)
        found = _label_gradient(settings, participant, 3, state["weights"], state["buffers"], "")
        np.testing.assert_allclose(found, told(head, model, state, some), rtol=1e-5, atol=1e-7)


def test_a_participant_that_is_right_changes_nothing() -> None:
    made, head, _, state = calibration()
    made.follow(1, state, [update(0, 10, state, np.zeros(head.shape, np.float32))])
    np.testing.assert_allclose(made.newest["weights"], state["weights"], atol=1e-6)


def test_version_0_has_learnt_nothing() -> None:
    made, head, _, state = calibration()
    job = Job(0, 0, 0, 0.0, 0.0, 0.0, 0.0)
    made.follow(0, state, [Update(job, 10, 0.1, state, np.ones(head.shape, np.float32))])
    assert made.newest == made.average == {}


# ------------------------------------------------------------------------------------ whole runs


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"privacy.samples": True}, "participants tell more than their updates"),
        ({"privacy.clients": "fixed"}, "participants tell more than their updates"),
        ({"secure-aggregation": True}, "participants tell more than their updates"),
        ({"averaging": "fedmedian"}, "averaging='fedmedian' does not guard"),
        ({"averaging": "buffered"}, "updates come from several versions"),
    ],
)
def test_where_it_cannot_be_it_is_off_or_refused(overrides: dict[str, Any], reason: str) -> None:
    assert not resolve(overrides).calibrates
    with pytest.raises(ConfigError, match=reason):
        resolve({**overrides, "distill.calibrate": "on"})


def test_it_is_of_our_variant_or_of_whoever_asks() -> None:
    assert resolve({}).calibrates
    assert not resolve({"distill.variant": "sync"}).calibrates
    assert resolve({"distill.variant": "sync", "distill.calibrate": "on"}).calibrates
    assert not resolve({"task": "text"}).calibrates
    assert not resolve({"mode": "average"}).calibrates


def test_a_task_without_classes_is_refused() -> None:
    table = {"task": "tables", "table": "diabetes", "distill.calibrate": "on"}
    with pytest.raises(ConfigError, match="its task has not one class for each example"):
        Calibration(problem_of(resolve(table)))


def test_a_table_with_classes_can_be_calibrated() -> None:
    table = {"task": "tables", "table": "breast-cancer", "distill.calibrate": "on"}
    assert Calibration(problem_of(resolve(table))).like.shape[0] == 2


def test_a_job_takes_longer_by_a_forward_pass() -> None:
    """512 images beside 22 minibatches of 64, of which a step is three passes."""
    longer = 1 + 512 / (3 * 22 * 64)
    charged, free = (resolve({"distill.calibrate": value}).schedule.cost for value in ("on", "off"))
    assert charged.client_seconds == pytest.approx(longer * free.client_seconds)
    for ratio in ("reverse_ratio", "forward_ratio"):  # the server's blocks take as long as before
        server = getattr(charged, ratio) * charged.client_seconds
        assert server == pytest.approx(getattr(free, ratio) * free.client_seconds)


def test_with_unequal_data_it_is_worth_many_points(tmp_path: Path) -> None:
    unequal = {
        **SMALL, "partition": "dirichlet", "alpha": 0.1, "proxy-labelled-examples": 0,
        "num-server-rounds": 6, "evaluate-examples": 500, "distill.references": "auto",
    }  # fmt: skip
    found = [
        run(tmp_path / value, {"distill.calibrate": value}, unequal)[0]["final"]
        for value in ("on", "off")
    ]
    assert found[0]["small"] == found[1]["small"]  # participants do what they did
    assert found[0]["small_calibrated"] > found[0]["small_average"] + 0.05
    assert found[0]["published"] > found[1]["published"] + 0.05
