"""The distillation server's learning: its steps, what it follows, and bit-equal continuation."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fl_app.config import RunConfig, resolve
from fl_app.data import Preparation, augment, normalise
from fl_app.problem import problem_of
from fl_app.settings import distillation_run_of
from strategies.distillation.learner import Learner, Vectors
from strategies.distillation.proxy import ProxyData
from strategies.distillation.settings import VARIANTS
from strategies.flat import FlatModel
from strategies.problem import flat_model, task_of
from strategies.randomness import rng
from tests import oracle

MEAN, STD = (0.3,), (0.4,)
PREPARE = Preparation(MEAN, STD, flip=True, augmented=True)
NOTHING_ON = {"distill.variant": "async-continuous"}  # no average, no lift


def config_with(**overrides: Any) -> RunConfig:
    small = {"small-width": 2, "large-width": 4, "batch-size": 8}
    distill = {"distill.batch-size": 16, "distill.forward-steps": 3}
    return resolve({**small, **distill, "distill.lift": "off", **overrides})


def following(labelled: int = 30) -> Learner:
    """Whose G contains the newest teacher."""
    return learner_with(config_with(**{"distill.lift": "on"}), labelled)


def proxy(labelled: int = 30) -> ProxyData:
    """Sixty images, the first `labelled` of them with labels."""
    generator = np.random.default_rng(0)

    def images(number: int) -> torch.Tensor:
        values = generator.integers(0, 256, (number, 1, 28, 28), dtype=np.uint8)
        return torch.from_numpy(values)

    def labels(number: int) -> torch.Tensor | None:
        return torch.from_numpy(generator.integers(0, 10, number)) if labelled else None

    return ProxyData(images(60), labels(labelled), PREPARE)


def learner_with(
    config: RunConfig | None = None,
    labelled: int = 30,
    *,
    records: bool | None = None,
    device: str = "cpu",
) -> Learner:
    config = config or config_with()
    return Learner(
        distillation_run_of(config),
        task_of(problem_of(config)),
        flat_model(problem_of(config), "large", device),
        flat_model(problem_of(config), "small", device),
        proxy(labelled).to(device),
        records=records,
    )


def small_vectors(config: RunConfig | None = None, seed: int = 5) -> Vectors:
    """The small model, as if trained: with running statistics of its own."""
    state = flat_model(problem_of(config or config_with()), "small").state()
    generator = np.random.default_rng(seed)
    for name, vector in state.items():
        noise = generator.random(vector.shape, dtype=np.float32)
        state[name] = vector + (noise if name == "buffers" else 0.2 * (noise - 0.5))
    return state


def bits(arrays: Vectors) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


def with_teacher(learner: Learner, steps: int = 0, seed: int = 5) -> Learner:
    learner.set_teacher(seed, **small_vectors(seed=seed))
    for _ in range(steps):
        learner.reverse_step()
    return learner


# -------------------------------------------------------------------------------- reverse steps


@pytest.mark.parametrize("labelled", [0, 15])
@pytest.mark.parametrize("overrides", [NOTHING_ON, {}, {"distill.label-weight": 3.0}])
def test_reverse_steps_equal_the_reference(overrides: dict[str, Any], labelled: int) -> None:
    """Three steps: AdamW of the reference on the reference's loss, in train mode, and the weight
    average with the decays 1/10, 2/11, 3/12. Where there are labels, a quarter of each batch is of
    the images that have one.

    Tolerance: a step moves a weight by about the rate of 1e-3 and decays it by as much. Rounding of
    a gradient near 0 can be 2 % of that, as Adam divides by the gradient's size.
    """
    config = config_with(**{"distill.weight-decay": 1.0, **overrides})
    learner = with_teacher(learner_with(config, labelled), 3)
    data, distill = proxy(labelled), config.distill
    student = flat_model(problem_of(config), "large")
    teacher = flat_model(problem_of(config), "small")
    teacher.load(**small_vectors())
    teacher.module.eval()
    student.module.train()
    averages = {"weights": student.weights.clone(), "buffers": student.buffers.clone()}
    assert distill.labelled_share * distill.batch_size == 4

    def gradient_at(step: int) -> Any:
        def gradient(w: torch.Tensor) -> torch.Tensor:
            student.load(w, student.buffers)
            if step:
                follow(step - 1)
            generator = rng(config.seed, "reverse", step, 0)
            if labelled:
                known, others = generator.integers(0, 15, 4), generator.integers(0, 60, 12)
                chosen = torch.from_numpy(np.append(known, others))
            else:
                chosen = torch.from_numpy(generator.integers(0, 60, 16))
            images = augment(data.inputs[chosen], generator, mean=MEAN, std=STD, flip=True)
            student.zero_grad()
            oracle.distillation_loss(
                student.module(images),
                teacher.module(images).detach(),
                distill.temperature,
                None if data.targets is None else data.targets[chosen[:4]],
                distill.label_weight,
            ).backward()
            return student.gradient.clone()

        return gradient

    def follow(step: int) -> None:
        decay = (1 + step) / (10 + step)
        for name, now in (("weights", student.weights), ("buffers", student.buffers)):
            averages[name] = decay * averages[name] + (1 - decay) * now

    weights = oracle.adamw(
        student.weights.clone(),
        [gradient_at(step) for step in range(3)],
        rate=distill.learning_rate,
        decay=distill.weight_decay,
    )
    student.load(weights, student.buffers)
    follow(2)
    arrays, metadata = learner.state()
    assert metadata["step"] == metadata["optimiser_steps"] == 3
    expected = {"weights": weights, "buffers": student.buffers}
    expected |= {f"ema_{name}": value for name, value in averages.items()}
    for name, value in expected.items():
        torch.testing.assert_close(torch.from_numpy(arrays[name]), value, rtol=0, atol=2e-5)
    assert not np.allclose(
        arrays["weights"], flat_model(problem_of(config), "large").weights, atol=1e-3
    )


def test_unlabelled_proxy_images_suffice() -> None:
    learner = with_teacher(learner_with(labelled=0), 2)
    assert learner.step == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_labels_change_the_steps_of_every_variant_where_there_are_any(variant: str) -> None:
    def weights(labelled: int, **overrides: Any) -> bytes:
        config = config_with(**{"distill.variant": variant, **overrides})
        return bits(with_teacher(learner_with(config, labelled), 2).state()[0])["weights"]

    for change in ({"distill.label-weight": 0.9}, {"distill.labelled-share": 0.5}):
        assert weights(0) == weights(0, **change)
        assert weights(15) != weights(15, **change)
    assert weights(0) != weights(15)


@pytest.mark.parametrize(
    ("labelled", "share", "first"),
    [(6, 0.25, 5), (3, 0.01, 1), (6, 1.0, 20), (30, 0.25, 10), (60, 0.25, 20)],
)
def test_of_a_minibatch_as_much_has_labels_as_of_the_images_and_a_share_at_least(
    labelled: int, share: float, first: int
) -> None:
    """The first of it, drawn from the images that have one; a small share is one at least. What is
    labelled throughout teaches with every image."""
    pixels = torch.arange(60, dtype=torch.uint8).reshape(60, 1, 1, 1)
    data = ProxyData(pixels, torch.arange(labelled), PREPARE)
    drawn = data.draw(np.random.default_rng(0), 20, share)
    inputs, labels = data.batch(drawn)
    assert labels is not None
    assert (len(inputs), len(labels), drawn.known) == (20, first, first)
    assert drawn.chosen[:first].tolist() == labels.tolist()
    rest = [data.draw(np.random.default_rng(s), 20, share).chosen[first:] for s in range(20)]
    assert first == 20 or int(torch.cat(rest).max()) >= labelled


def test_equal_teachers_in_equal_order_give_equal_bits() -> None:
    def run(seed: int, teachers: tuple[int, ...]) -> dict[str, bytes]:
        learner = learner_with(config_with(seed=seed))
        for teacher in teachers:
            with_teacher(learner, 2, teacher)
        return bits(learner.state()[0])

    assert run(0, (1, 2)) == run(0, (1, 2))
    assert run(0, (1, 2)) != run(0, (2, 1))
    assert run(0, (1, 2)) != run(1, (1, 2))


def test_a_step_approaches_the_teacher() -> None:
    """After 40 steps the student's loss on all proxy images, unaugmented, has fallen by a third."""
    config = config_with(**NOTHING_ON, **{"distill.learning-rate": 5e-3})
    learner = with_teacher(learner_with(config, labelled=0))
    data = proxy()
    images = augment(data.inputs, np.random.default_rng(0), mean=MEAN, std=STD, flip=False, shift=0)

    def loss() -> float:
        student, teacher = (
            flat_model(problem_of(config), "large"),
            flat_model(problem_of(config), "small"),
        )
        state = learner.state()[0]
        student.load(state["weights"], state["buffers"])
        teacher.load(**small_vectors())
        teacher.module.eval()
        with torch.no_grad():
            answers = student.module.train()(images), teacher.module(images)
        return oracle.distillation_loss(*answers, config.distill.temperature).item()

    before = loss()
    with_teacher(learner, 40)
    assert loss() < before * 2 / 3


# -------------------------------------------------------------------------------------- teacher


@pytest.mark.parametrize(
    ("part", "damage", "message"),
    [
        ("weights", lambda v: np.where(np.arange(v.size) == 3, np.nan, v), "values that are not"),
        ("buffers", lambda v: np.where(np.arange(v.size) == 0, np.inf, v), "values that are not"),
        ("weights", lambda v: v[:-1], "weights have shape"),
        ("buffers", lambda v: np.append(v, 1), "buffers have shape"),
    ],
)
def test_a_broken_teacher_is_refused_and_the_old_one_stays(
    part: str, damage: Any, message: str
) -> None:
    learner, reference = (with_teacher(learner_with(), 1) for _ in range(2))
    vectors = small_vectors(seed=8)
    vectors[part] = damage(vectors[part]).astype(np.float32)
    with pytest.raises(ValueError, match=message):
        learner.set_teacher(8, **vectors)
    assert learner.teacher_version == 5
    for one in (learner, reference):
        one.reverse_step()
    assert bits(learner.state()[0]) == bits(reference.state()[0])


def test_a_new_teacher_is_taken_from_the_next_step_on() -> None:
    learner, reference = (with_teacher(learner_with(), 1) for _ in range(2))
    learner.set_teacher(6, **small_vectors(seed=6))
    assert learner.teacher_version == 6
    assert bits(learner.state()[0]) == bits(reference.state()[0])
    for one in (learner, reference):
        one.reverse_step()
    assert bits(learner.state()[0])["weights"] != bits(reference.state()[0])["weights"]


# -------------------------------------------------------------------------- state and continuing


@pytest.mark.parametrize("stop", [0, 1, 3, 5])
@pytest.mark.parametrize("lift", ["off", "on"])
def test_a_successor_continues_with_equal_bits(stop: int, lift: str) -> None:
    """Stopped after any step, in another process's learner, with the teacher it had, which is its
    second one."""
    config = config_with(**{"distill.lift": lift})

    def fresh() -> Learner:
        return with_teacher(with_teacher(learner_with(config), 1, seed=4))

    through = fresh()
    for _ in range(5):
        through.reverse_step()
    stopped = fresh()
    for _ in range(stop):
        stopped.reverse_step()
    arrays, metadata = stopped.state()
    stopped.reverse_step()  # what it does after does not reach the copy
    successor = learner_with(config)
    successor.load_state(arrays, metadata)
    assert successor.teacher_version == 5
    with_teacher(successor, 5 - stop)
    assert bits(successor.state()[0]) == bits(through.state()[0])
    assert successor.state()[1] == through.state()[1]


def test_a_state_is_numbers_texts_and_float32() -> None:
    arrays, metadata = with_teacher(learner_with(), 2).state()
    assert all(array.dtype == np.float32 for array in arrays.values())
    assert all(type(value) in (int, bool) for value in metadata.values())


def test_another_models_state_is_refused() -> None:
    arrays, metadata = with_teacher(learner_with(), 1).state()
    with pytest.raises(ValueError, match="weights have shape"):
        learner_with(config_with(**{"large-width": 6})).load_state(arrays, metadata)


# --------------------------------------------------------------------------- forward distillation


@pytest.mark.parametrize("publish_ema", ["on", "off"])
def test_forward_distillation_touches_neither_model(publish_ema: str) -> None:
    """Bit for bit: the state and everything that follows are as if it had not been."""
    config = config_with(**{"distill.publish-ema": publish_ema})
    learner, reference = (with_teacher(learner_with(config), 2) for _ in range(2))
    pupil = small_vectors(seed=9)
    before = bits(pupil)
    result = learner.forward_distil(3, pupil["weights"], pupil["buffers"])
    assert bits(pupil) == before
    assert result.keys() == {"weights", "buffers"}
    assert all(bits(result)[name] != before[name] for name in result)
    assert bits(learner.state()[0]) == bits(reference.state()[0])
    assert learner.state()[1] == reference.state()[1]
    for one in (learner, reference):
        one.reverse_step()
    assert bits(learner.state()[0]) == bits(reference.state()[0])


@pytest.mark.parametrize("labelled", [0, 15])
@pytest.mark.parametrize("publish_ema", ["on", "off"])
def test_forward_distillation_equals_the_reference(publish_ema: str, labelled: int) -> None:
    """SGD with momentum 0.9 of the small model towards G as it is published, on batches of its own
    stream, a quarter of each of images with labels where there are some."""
    weight = {"distill.label-weight": 3.0} if labelled else {}
    config = config_with(**{"distill.publish-ema": publish_ema, **weight, **NOTHING_ON})
    learner = with_teacher(learner_with(config, labelled), 2)
    arrays = learner.state()[0]
    prefix = "ema_" if publish_ema == "on" else ""
    big, pupil, data = (
        flat_model(problem_of(config), "large"),
        flat_model(problem_of(config), "small"),
        proxy(labelled),
    )
    big.load(arrays[f"{prefix}weights"], arrays[f"{prefix}buffers"])
    pupil.load(**small_vectors(seed=9))
    big.module.eval()
    pupil.module.train()

    def gradient_at(part: int) -> Any:
        def gradient(w: torch.Tensor) -> torch.Tensor:
            pupil.load(w, pupil.buffers)
            generator = rng(config.seed, "forward", 3, part)
            known = generator.integers(0, 15, 2) if labelled else np.zeros(0, np.int64)
            others = generator.integers(0, 60, config.batch_size - len(known))
            chosen = torch.from_numpy(np.append(known, others))
            images = augment(data.inputs[chosen], generator, mean=MEAN, std=STD, flip=True)
            pupil.zero_grad()
            teacher = big.module(images).detach()
            labels = None if data.targets is None else data.targets[chosen[:2]]
            loss = oracle.distillation_loss(pupil.module(images), teacher, 2.0, labels, 3.0)
            loss.backward()
            return pupil.gradient.clone()

        return gradient

    expected = oracle.sgd(
        pupil.weights.clone(),
        [gradient_at(part) for part in range(3)],
        rate=config.distill.forward_learning_rate,
        momentum=0.9,
        decay=0.0,
    )
    start = small_vectors(seed=9)
    result = learner.forward_distil(3, start["weights"], start["buffers"])
    torch.testing.assert_close(torch.from_numpy(result["weights"]), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.from_numpy(result["buffers"]), pupil.buffers, rtol=1e-5, atol=1e-6
    )


# ------------------------------------------------------------------------------------ following


def answers_of(learner: Learner, prefix: str = "") -> torch.Tensor:
    """What G, or its average, answers to the images that its calibration has not seen."""
    config, data = config_with(), proxy()
    arrays, model = learner.state()[0], flat_model(problem_of(config), "large")
    model.load(arrays[f"{prefix}weights"], arrays[f"{prefix}buffers"])
    with torch.no_grad():
        return model.module.eval()(normalise(data.inputs, MEAN, STD))


def lively_vectors(seed: int) -> Vectors:
    """Of a small model whose answers depend on the image: no layer is dead."""
    model = flat_model(problem_of(config_with()), "small")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for block in model.module.blocks:  # type: ignore[union-attr]
            norm = block.norm
            for tensor, low, high in (
                (norm.running_mean, -0.3, 0.3), (norm.running_var, 0.3, 2.0),
                (norm.weight, 0.7, 1.5), (norm.bias, 0.1, 0.6),
            ):  # fmt: skip
                tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
        model.weights.add_(0.1 * torch.randn(model.weights.shape, generator=generator))
    return model.state()


def answers_of_small(seed: int) -> torch.Tensor:
    data, model = proxy(), flat_model(problem_of(config_with()), "small")
    model.load(**lively_vectors(seed))
    with torch.no_grad():
        return model.module.eval()(normalise(data.inputs, MEAN, STD))


def test_the_first_teacher_makes_the_large_model_nearly_the_small_one() -> None:
    """With noise of 5 %, which parts the copies of a channel."""
    learner = following()
    learner.set_teacher(5, **lively_vectors(5))
    expected = answers_of_small(5)
    assert expected.std(0).min() > 0.01  # not of constants
    for prefix in ("", "ema_"):
        error = (answers_of(learner, prefix) - expected).std() / expected.std()
        assert 0.001 < error < 0.5


def test_without_steps_the_large_model_stays_with_whichever_teacher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is learnt is 0 here, and so is the noise: G is L(S) for the third S as for the first."""
    monkeypatch.setattr("strategies.distillation.learner._LIFT_NOISE", 0.0)
    learner = following()
    for seed in (5, 6, 7):
        learner.set_teacher(seed, **lively_vectors(seed))
        for prefix in ("", "ema_"):
            torch.testing.assert_close(
                answers_of(learner, prefix), answers_of_small(seed), rtol=2e-3, atol=2e-3
            )


def test_what_was_learnt_is_kept_when_the_teacher_changes() -> None:
    """G - L(S) of the weights, and the optimiser, are the same before and after."""
    learner = with_teacher(following(), 5)
    before, told = learner.state()
    learner.set_teacher(6, **small_vectors(seed=6))
    after, _ = learner.state()
    for prefix in ("", "ema_"):
        learnt = [s[f"{prefix}weights"] - s["lifted_weights"] for s in (before, after)]
        np.testing.assert_allclose(learnt[0], learnt[1], atol=1e-6)
        assert np.abs(learnt[0]).max() > 1e-3
    for name in ("mean", "square"):
        assert bits(before)[name] == bits(after)[name]
    assert not np.allclose(before["weights"], after["weights"], atol=1e-3)
    assert told["optimiser_steps"] == learner.state()[1]["optimiser_steps"] == 5


def test_variances_stay_positive_whatever_the_teachers_do() -> None:
    """From one whose channels vary widely to one whose channels are all but dead: added to what
    training has made of them, the difference would make variances negative."""
    learner = following()
    wide, narrow = small_vectors(), small_vectors()
    small = flat_model(problem_of(config_with()), "small")
    for vectors, variance in ((wide, 50.0), (narrow, 1e-9)):
        buffers = torch.from_numpy(vectors["buffers"])
        for name, buffer in small.unflatten_buffers(buffers).items():
            if name.endswith("running_var"):
                buffer.fill_(variance)
    learner.set_teacher(1, **wide)
    for _ in range(20):
        learner.reverse_step()
    learner.set_teacher(2, **narrow)
    assert answers_of(learner).isfinite().all()
    assert answers_of(learner, "ema_").isfinite().all()
    learner.reverse_step()
    assert np.isfinite(learner.state()[0]["weights"]).all()


def test_the_same_version_again_moves_nothing() -> None:
    """As a successor gets it."""
    learner = with_teacher(following(), 3)
    before = bits(learner.state()[0])
    with_teacher(learner)
    assert bits(learner.state()[0]) == before


def steps_of(records: bool, config: RunConfig, labelled: int = 30, device: str = "cpu") -> Vectors:
    """What four reverse steps make of the state; after two of them the teacher is another one, and
    so is the student."""
    learner = learner_with(config, labelled, records=records, device=device)
    for version in (1, 2):
        learner.set_teacher(version, **small_vectors(config, seed=version))
        for _ in range(2):
            learner.reverse_step()
    arrays, metadata = learner.state()
    assert metadata["step"] == metadata["optimiser_steps"] == 4 or config.switch("lift")
    return arrays


@pytest.mark.parametrize(
    ("overrides", "labelled"),
    [({"normalisation": "group"}, 0), ({"distill.lift": "on"}, 30)],
    ids=["plain", "lift and labels"],
)
def test_a_recorded_step_does_what_steps_one_by_one_do(
    overrides: dict[str, Any], labelled: int
) -> None:
    """The same minibatches, optimiser and averages, but for the rounding of AdamW's numbers."""
    config = config_with(**overrides)
    plain, recorded, again = (
        steps_of(records, config, labelled) for records in (False, True, True)
    )
    assert bits(recorded) == bits(again)
    assert plain.keys() == recorded.keys()
    for name, vector in plain.items():
        np.testing.assert_allclose(recorded[name], vector, rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_model_that_draws_is_not_recorded() -> None:
    """A graph would draw the same numbers in every step."""
    learner = learner_with(records=True)
    assert learner._records
    config = config_with()
    large = FlatModel(nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2)), "cpu")
    drawing = Learner(
        distillation_run_of(config),
        task_of(problem_of(config)),
        large,
        flat_model(problem_of(config), "small"),
        proxy(),
        records=True,
    )
    assert not drawing._records
