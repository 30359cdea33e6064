"""Local training: equal to a literal SGD loop, with epochs that leave no image out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from client_apps import local_training
from client_apps.logit_adjustment import adjusted, logit_shift
from client_apps.row_gradients import PASSES, Programs, everything
from client_apps.side_by_side import Job, train_side_by_side
from client_apps.training import minibatches, train_locally
from fl_app.config import RunConfig, resolve
from fl_app.data import Preparation
from fl_app.data.augment import augment
from fl_app.problem import problem_of
from fl_app.settings import training_of
from strategies.problem import flat_model
from strategies.randomness import rng
from strategies.task import Examples
from tests import oracle

SCALE: dict[str, Any] = {"mean": (0.3,), "std": (0.4,), "flip": True}
HOW: dict[str, Any] = {
    "prepare": Preparation(**SCALE, augmented=True),
    "loss": functional.cross_entropy,
}
RATE = resolve({}).learning_rate
TRAINED = {**HOW, "learning_rate": RATE}


def data(examples: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (examples, 1, 28, 28), dtype=np.uint8)
    return torch.from_numpy(images), torch.from_numpy(generator.integers(0, 10, examples))


def config_with(**overrides: Any) -> RunConfig:
    keys = {key.replace("_", "-"): value for key, value in overrides.items()}
    return resolve({"small-width": 2, "local-steps": 5, "batch-size": 8, **keys})


# ---------------------------------------------------------------------------------- minibatches


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 40))
def test_minibatches_cover_each_epoch_without_repeats(examples: int, size: int, steps: int) -> None:
    """Laid end to end they are permutations of all images, one epoch after the other."""
    batches = list(minibatches(examples, size, steps, np.random.default_rng(0)))
    assert len(batches) == steps
    assert all(len(batch) == min(size, examples) for batch in batches)
    drawn = np.concatenate(batches) if batches else np.empty(0)
    for epoch in range(0, len(drawn), examples):
        part = drawn[epoch : epoch + examples]
        assert len(set(part)) == len(part)
        assert set(part) <= set(range(examples))


def test_epochs_are_shuffled_anew() -> None:
    first, second = (
        np.concatenate(list(minibatches(100, 10, 20, np.random.default_rng(seed))))
        for seed in (0, 1)
    )
    assert first[:100].tolist() != first[100:].tolist()
    assert first.tolist() != second.tolist()


# ------------------------------------------------------------------------------------- training


def literal_training(
    config: RunConfig, images: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """The same on an ordinary module, by autograd and the reference's loop: weights, mean loss."""
    module = flat_model(problem_of(config), "small").module.train()
    generator = rng(7, "batches")
    batches = minibatches(len(labels), config.batch_size, config.local_steps, generator)
    losses = []

    def gradient_on(chosen: np.ndarray) -> Callable[[torch.Tensor], torch.Tensor]:
        def gradient(w: torch.Tensor) -> torch.Tensor:
            batch = augment(images[chosen], generator, **SCALE)
            vector_to_parameters(w, module.parameters())
            loss = functional.cross_entropy(module(batch), labels[chosen])
            losses.append(loss.item())
            gradients = torch.autograd.grad(loss, list(module.parameters()))
            return torch.cat([g.reshape(-1) for g in gradients])

        return gradient

    w = oracle.sgd(
        parameters_to_vector(module.parameters()).detach().clone(),
        # Lazily: batches and augmentation draw from one stream, in turns.
        (gradient_on(chosen) for chosen in batches),
        rate=config.learning_rate,
        momentum=config.momentum,
        decay=config.weight_decay,
        mu=config.proximal_mu,
    )
    return w, sum(losses) / len(losses)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"momentum": 0.0, "weight_decay": 0.0},
        {"weight_decay": 0.1},
        {"proximal_mu": 0.5, "local_steps": 12},
        {"batch_size": 64},  # more than there are images
    ],
)
def test_equals_a_literal_sgd_loop(overrides: dict[str, Any]) -> None:
    config = config_with(**overrides)
    images, labels = data()
    model = flat_model(problem_of(config), "small")
    start = model.weights.clone()
    loss = train_locally(
        model, Examples(images, labels), training_of(config), rng(7, "batches"), **TRAINED
    )
    expected, expected_loss = literal_training(config, images, labels)
    torch.testing.assert_close(model.weights, expected, rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert not torch.allclose(model.weights, start, atol=1e-3)


def test_the_proximal_term_keeps_the_model_near_its_start() -> None:
    images, labels = data()

    def distance(mu: float) -> float:
        model = flat_model(problem_of(config_with()), "small")
        start = model.weights.clone()
        config = config_with(proximal_mu=mu, weight_decay=0.0, local_steps=20)
        train_locally(model, Examples(images, labels), training_of(config), rng(0, "b"), **TRAINED)
        return (model.weights - start).norm().item()

    assert distance(0.0) > distance(1.0) > distance(10.0)


def test_training_follows_from_its_generator_and_keeps_no_state() -> None:
    """Equal starts give equal bits, also right after other training with the same model."""
    images, labels = data()
    config, model = config_with(), flat_model(problem_of(config_with()), "small")
    start = model.state()
    results = []
    for seed in (1, 2, 1):
        model.load(**start)
        train_locally(
            model, Examples(images, labels), training_of(config), rng(seed, "batches"), **TRAINED
        )
        results.append(model.checksum())
    assert results[0] == results[2] != results[1]


def test_training_learns_and_moves_the_running_statistics() -> None:
    """Bright and dark images are told apart after 30 steps: the loss falls below ln(10) = 2.3 of
    ten equally likely classes, far."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 64)
    images = generator.integers(0, 50, (64, 1, 28, 28)) + 180 * labels[:, None, None, None]
    model = flat_model(problem_of(config_with()), "small")
    before = model.buffers.clone()
    losses = [
        train_locally(
            model,
            Examples(torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels)),
            training_of(config_with(local_steps=30)),
            rng(i, "batches"),
            **TRAINED,
        )
        for i in range(2)
    ]
    assert losses[1] < 0.3 < losses[0]
    assert not torch.equal(model.buffers, before)
    assert torch.isfinite(model.buffers).all()


def test_training_leaves_the_global_generators_alone() -> None:
    torch_state = torch.get_rng_state()
    model, config = flat_model(problem_of(config_with()), "small"), config_with()
    train_locally(model, Examples(*data()), training_of(config), rng(0, "b"), **TRAINED)
    assert torch.equal(torch.get_rng_state(), torch_state)


# ------------------------------------------------------------------- the own shares of the classes


def test_a_job_allows_for_the_participants_own_shares_of_the_classes() -> None:
    """Of a participant with two classes: the last layer's biases of the others fall less. And it is
    what training with the shifted loss gives."""
    moved, shifts = {}, {}
    for strength in (0.0, 0.5, 1.0):
        values = {
            "partition": "classes-per-participant", "num-classes-per-partition": 2,
            "participants": 6,
        }  # fmt: skip
        config = resolve({**values, "adjust-logits": strength, "small-width": 2, "local-steps": 5})
        settings, model = training_of(config), flat_model(problem_of(config), "small")
        start = model.state()
        shard = local_training.shard_of(problem_of(config), 0, "")
        job = (settings, 0, 0, start["weights"], start["buffers"], "")
        state = local_training._train_one(RATE, *job)[2]
        task = local_training.local_model_of(problem_of(config)).task
        shifts[strength] = logit_shift(shard.targets, len(task.classes), strength)
        how: dict[str, Any] = {
            "learning_rate": RATE, "prepare": task.prepare(augmented=True),
            "loss": adjusted(task.loss, shifts[strength]),
        }  # fmt: skip
        train_locally(model, shard, settings, rng(config.seed, "batches", 0, 0), **how)
        assert state["weights"].tobytes() == model.state()["weights"].tobytes()
        change = torch.from_numpy(state["weights"] - start["weights"])
        bias = [name for name in model.unflatten(change[None]) if name.endswith("bias")][-1]
        absent = [c for c in range(10) if c not in set(shard.targets.tolist())]
        moved[strength] = model.unflatten(change[None])[bias][0][absent].abs().mean()
    assert [len(shift) for shift in shifts.values()] == [0, 10, 10]
    assert moved[1.0] < 0.3 * moved[0.5] < 0.3 * moved[0.0]


# ------------------------------------------------------------------------------------ side by side


def test_a_program_that_could_not_be_recorded_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would leave the gradients as they were, and nobody would notice."""
    model = flat_model(problem_of(config_with()), "small")
    images, labels, _ = everything([(0, *data(50))])
    programs = Programs(model, images, labels, **HOW, way=PASSES["streams"])

    def fails(*_: Any) -> None:
        raise RuntimeError("no such operation")

    monkeypatch.setattr("client_apps.row_gradients._Program.record", fails)
    chosen, moves = torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 5, dtype=torch.long)
    state = [torch.as_tensor(model.state()[name]) for name in ("weights", "buffers")]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no such operation"):
            programs([state[0]], [state[1]], chosen, moves)


@pytest.mark.parametrize("normalisation", ["batch", "group"])
@pytest.mark.parametrize(("proximal_mu", "strength"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5)])
def test_participants_side_by_side_have_the_bits_that_they_have_alone(
    normalisation: str, proximal_mu: float, strength: float
) -> None:
    """Models, statistics and losses; also one that has too few images for a whole minibatch."""
    rule = "fedprox" if proximal_mu else "fedavg"
    config = config_with(averaging=rule, proximal_mu=proximal_mu, normalisation=normalisation)
    shards = [data(50), data(20), data(5), data(50)]
    images, labels, begins = everything((i, *shard) for i, shard in enumerate(shards))
    model = flat_model(problem_of(config), "small")
    start = model.state()
    model.module.train()
    programs = Programs(model, images, labels, **HOW, way=PASSES["streams"])
    shifts = [logit_shift(labels, 10, strength) for _, labels in shards]
    jobs = [
        Job(
            start["weights"], start["buffers"], begins[i], len(shard[1]), rng(i, "batches"),
            shifts[i],
        )
        for i, shard in enumerate(shards)
    ]  # fmt: skip
    found = train_side_by_side(programs, jobs, training_of(config), RATE)
    for i, (own, each) in enumerate(zip(shards, found, strict=True)):
        alone = flat_model(problem_of(config), "small")
        how: dict[str, Any] = {**TRAINED, "loss": adjusted(HOW["loss"], shifts[i])}
        loss = train_locally(alone, Examples(*own), training_of(config), rng(i, "batches"), **how)
        assert each.loss == loss
        assert each.state["weights"].tobytes() == alone.state()["weights"].tobytes()
        assert each.state["buffers"].tobytes() == alone.state()["buffers"].tobytes()
        assert (each.state["weights"] != start["weights"]).any()
