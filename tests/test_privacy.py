"""Differential privacy: the mechanism, its accountant, and what a run says of itself."""

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.supercore.differential_privacy import compute_stdv
from torch.nn import functional

from client_apps.private_gradient import PrivateGradient, poisson_batches
from client_apps.training import train_locally
from fl_app.config import MEAN_RULES, RunConfig, resolve
from fl_app.data import Preparation
from fl_app.preflight import preflight
from fl_app.problem import problem_of
from fl_app.record.metrics import effective, of_kind
from fl_app.record.privacy import spent
from fl_app.settings import averaging_of, training_of
from strategies.averaging import Vectors
from strategies.errors import ConfigError
from strategies.privacy import (
    adapted_norm,
    clipped,
    epsilon,
    noise_generator,
    private_mean,
    split_noise,
)
from strategies.problem import flat_model
from strategies.randomness import rng
from strategies.rules import Update, make_rule
from strategies.schedule import Job
from strategies.task import Examples
from tests.flower_replies import replies_of
from tests.harness import run

TINY = {"mode": "average", "normalisation": "group"}
P = 4000  # coordinates, so many that the noise's size can be measured


def vector(seed: int, length: float) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(P).astype(np.float32)
    return values * np.float32(length / np.linalg.norm(values))


def update(participant: int, weights: np.ndarray, examples: int = 1) -> Update:
    job = Job(participant, 0, 0, 0.0, 0.0, 0.0, 0.0)
    return Update(job, examples, 0.5, {"weights": weights, "buffers": np.zeros(0, np.float32)})


def config_with(**overrides: Any) -> RunConfig:
    keys = {key.replace("__", ".").replace("_", "-"): value for key, value in overrides.items()}
    return resolve({**TINY, "privacy.clients": "fixed", **keys})


def model() -> Vectors:
    return {"weights": vector(77, 3.0), "buffers": np.zeros(0, np.float32)}


def combine(config: RunConfig, changes: list[np.ndarray], version: int = 1) -> np.ndarray:
    """How the rule moves the model when participants bring it these changes of it."""
    start = model()
    updates = [update(p, start["weights"] + change) for p, change in enumerate(changes)]
    return (
        make_rule(averaging_of(config)).combine(version, start, updates, {0: start})["weights"]
        - (start["weights"])
    )


# --------------------------------------------------------------------------------- the mechanism


def test_a_clipped_vector_keeps_its_direction_and_a_short_one_everything() -> None:
    long, short = vector(0, 5.0), vector(1, 0.5)
    assert np.linalg.norm(clipped(long, 2.0)) == pytest.approx(2.0, rel=1e-6)
    np.testing.assert_allclose(clipped(long, 2.0) * 2.5, long, rtol=1e-5)
    assert clipped(short, 2.0) is short
    assert not clipped(np.zeros(3, np.float32), 1.0).any()


def test_one_participant_moves_the_mean_by_no_more_than_its_share() -> None:
    """With the same noise, for whatever it sends, and whether it is there or not: C / m."""
    others = [vector(p, 1.0 + p) for p in range(4)]

    def mean(last: list[np.ndarray]) -> np.ndarray:
        return private_mean([*others, *last], 2.0, 0.7, 5, rng(0, "noise"))

    for extreme in (vector(9, 1e6), -vector(9, 1e6), vector(8, 1e-3)):
        moved = np.linalg.norm(mean([extreme]) - mean([]))
        assert moved <= 2.0 / 5 * (1 + 1e-5)
    assert np.linalg.norm(mean([vector(9, 1e6)]) - mean([])) == pytest.approx(0.4, rel=1e-4)


def test_the_noise_is_the_multiplier_times_the_norm() -> None:
    """Of P = 4000 values: the standard deviation is known to 1.1 % (1 / sqrt(2 P)), 5 % are 4.5
    such."""
    noisy = private_mean([vector(0, 1.0)] * 3, 2.0, 1.5, 3, rng(0, "noise"))
    noise = noisy - vector(0, 1.0)
    assert noise.std() == pytest.approx(1.5 * 2.0 / 3, rel=0.05)
    assert compute_stdv(1.5, 2.0, 3) == 1.5 * 2.0 / 3  # Flower means the same by these numbers
    assert abs(noise.mean()) < 4.5 * 1.0 / math.sqrt(P)


def test_without_noise_it_is_flowers_own_wrapper() -> None:
    """For participants with as many examples each; with others Flower's would weigh them."""
    start = model()
    updates = [update(p, start["weights"] + vector(p, 0.5 + p)) for p in range(4)]
    flower = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, 1.7, 4)
    flower.current_arrays = ArrayRecord({"weights": ArrayRecord([start["weights"]])["0"]})
    record, _ = flower.aggregate_train(1, replies_of(updates, ["weights"]))
    assert record is not None
    changes = [u.vectors["weights"] - start["weights"] for u in updates]
    ours = start["weights"] + private_mean(changes, 1.7, 1e-9, 4, rng(0))
    np.testing.assert_allclose(ours, record["weights"].numpy(), atol=1e-6)


@pytest.mark.parametrize("averaging", MEAN_RULES)
def test_every_rule_of_means_gets_the_noisy_mean(averaging: str) -> None:
    """The participants' numbers of examples do not count: somebody with many would count for more
    than C / m. The adaptive rules make of it what they make of one participant's update."""
    config = config_with(averaging=averaging, privacy__noise_multiplier=0.5)
    start, changes = model(), [vector(p, 0.4 + p) for p in range(3)]
    updates = [
        update(p, start["weights"] + change, examples=1 + 50 * p)
        for p, change in enumerate(changes)
    ]
    result = make_rule(averaging_of(config)).combine(3, start, updates, {0: start})["weights"]
    found = [u.vectors["weights"] - start["weights"] for u in updates]
    mean = private_mean(found, 1.0, 0.5, 3, noise_generator(0, 3))
    plain = resolve({**TINY, "averaging": averaging})
    one = [update(0, start["weights"] + mean)]
    expected = make_rule(averaging_of(plain)).combine(3, start, one, {0: start})["weights"]
    np.testing.assert_array_equal(result, expected)


def global_state() -> Any:
    state: Any = np.random.get_state()  # noqa: NPY002 - that it is left alone is the point
    return state[1]


def test_noise_repeats_with_the_seed_and_differs_from_round_to_round() -> None:
    state = global_state()
    changes = [vector(p, 1.0) for p in range(3)]
    first, again = (combine(config_with(), changes) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert not np.allclose(first, combine(config_with(), changes, version=2), atol=0.05)
    assert not np.allclose(first, combine(config_with(seed=1), changes), atol=0.05)
    assert np.array_equal(state, global_state())


def test_on_the_real_clock_nobody_can_repeat_the_noise() -> None:
    changes = [vector(p, 1.0) for p in range(3)]
    first, again = (combine(config_with(clock="real"), changes) for _ in range(2))
    assert not np.allclose(first, again, atol=0.05)


# ------------------------------------------------------------------------------ adaptive clipping


def test_the_norm_goes_to_the_quantile_of_the_lengths() -> None:
    """Lengths 1 to 20 and the quantile 0.25: C ends between 5 and 6, from both sides, since there
    the share of those below is 0.25."""
    changes = [np.array([float(n)], np.float32) for n in range(1, 21)]
    for start in (0.1, 100.0):
        norm = start
        for _ in range(400):
            norm = adapted_norm(norm, changes, 0.25, 0.0, 20, rng(0))
        assert 4.9 < norm < 6.1


@pytest.mark.parametrize("size", [0.5, 2.0])
def test_one_more_or_less_moves_the_noisy_share_by_a_half_over_the_number_asked(
    size: float,
) -> None:
    """Which is the sensitivity that the split of the noise reckons with."""
    others = [np.array([float(n)], np.float32) for n in (0.1, 0.2, 3.0)]

    def share(changes: list[np.ndarray]) -> float:
        return 0.25 - math.log(adapted_norm(1.0, changes, 0.25, 0.0, 4, rng(0))) / 0.2

    moved = share([*others, np.array([size], np.float32)]) - share(others)
    assert abs(moved) == pytest.approx(0.5 / 4)
    assert share([]) == pytest.approx(0.5)


@pytest.mark.parametrize(("z", "expected"), [(1.0, 100), (0.3, 3), (4.0, 3)])
def test_sum_and_count_together_spend_what_was_asked_for(z: float, expected: int) -> None:
    """Both are Gaussian mechanisms on the same participants: z^-2 = z_sum^-2 + z_count^-2, where
    a count of 0 or 1, seen as +-1/2, has sensitivity 1/2 (Andrew et al. 2021)."""
    z_sum, sigma = split_noise(z, expected)
    assert z_sum**-2 + (sigma / 0.5) ** -2 == pytest.approx(z**-2)
    assert z < z_sum <= z * math.sqrt(4 / 3) * (1 + 1e-9)


def test_this_rounds_noise_is_for_this_rounds_norm() -> None:
    """All are longer than C = 1: C grows, for the next round, and this one's noise is for 1."""
    config = config_with(privacy__clients="adaptive", participants=3)
    rule, start = make_rule(averaging_of(config)), model()
    updates = [update(p, start["weights"] + vector(p, 50.0)) for p in range(3)]
    first = rule.combine(1, start, updates, {0: start})["weights"] - start["weights"]
    mean = sum(clipped(vector(p, 50.0), 1.0) for p in range(3)) / 3
    z_sum, _ = split_noise(1.0, 3)
    assert (first - mean).std() == pytest.approx(z_sum / 3, rel=0.05)
    assert rule.state()["clipping"][0] != 1.0


def test_the_norm_goes_on_from_a_checkpoint() -> None:
    config = config_with(privacy__clients="adaptive", averaging="fedadam")
    start, rule, resumed = model(), make_rule(averaging_of(config)), make_rule(averaging_of(config))
    updates = [update(p, start["weights"] + vector(p, 2.0)) for p in range(3)]
    rule.combine(1, start, updates, {0: start})
    resumed.load_state({key: value.copy() for key, value in rule.state().items()})
    second, same = (each.combine(2, start, updates, {0: start}) for each in (rule, resumed))
    assert second["weights"].tobytes() == same["weights"].tobytes()
    forgetful = make_rule(averaging_of(config)).combine(2, start, updates, {0: start})
    assert forgetful["weights"].tobytes() != same["weights"].tobytes()


# --------------------------------------------------------------------------------- the accountant


def test_epsilon_of_one_gaussian_mechanism() -> None:
    """The Gaussian mechanism is exactly (epsilon, delta)-private with delta = Phi(1/(2z) - eps z) -
    e^eps Phi(-1/(2z) - eps z) (Balle and Wang 2018). Renyi's bound is above, not far."""

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    for z in (0.5, 1.0, 5.0):
        found = epsilon(z, 1.0, 1, 1e-5)
        low, high = 0.0, 100.0
        for _ in range(100):
            middle = (low + high) / 2
            half, shift = 1 / (2 * z), middle * z
            delta = phi(half - shift) - math.exp(middle) * phi(-half - shift)
            low, high = (middle, high) if delta > 1e-5 else (low, middle)
        assert low < found < 1.25 * low


def test_epsilon_grows_with_steps_and_falls_with_noise_and_sampling() -> None:
    assert epsilon(1.0, 0.1, 0, 1e-5) == 0.0
    assert epsilon(1.0, 0.1, 10, 1e-5) < epsilon(1.0, 0.1, 100, 1e-5)
    assert epsilon(1.0, 0.1, 10, 1e-5) < epsilon(1.0, 1.0, 10, 1e-5)
    assert epsilon(2.0, 1.0, 10, 1e-5) < epsilon(1.0, 1.0, 10, 1e-5)
    # Four releases with twice the noise spend what one spends.
    assert epsilon(2.0, 1.0, 4, 1e-5) == pytest.approx(epsilon(1.0, 1.0, 1, 1e-5))


def job(participant: int, status: str = "ok", examples: int | None = 640) -> dict[str, Any]:
    return {"event": "job", "participant": participant, "status": status, "examples": examples}


def test_what_clients_have_spent_by_their_contributions() -> None:
    """The one with most counts; where nobody knows who was asked, the sampling rate 2 of 4."""
    config = config_with(participants=4, fraction_train=0.5)
    jobs = [job(0), job(0), job(0), job(1), job(2, "rejected"), job(3, "lost")]
    [event] = spent([*jobs, *[{"event": "round"}] * 4], config)
    assert event["clients"] == epsilon(1.0, 1.0, 3, 1e-5)
    assert event["clients_if_sampled"] == epsilon(1.0, 0.5, 4, 1e-5)
    assert event["samples"] is None


def test_what_images_have_spent_by_their_participants_jobs() -> None:
    """Also of updates that were rejected or, on the real clock, came too late."""
    keys: dict[str, Any] = {"privacy.clients": "off", "privacy.samples": True, "batch-size": 64}
    jobs = [job(0), job(0, "rejected", None), job(1, examples=6400), job(2, "lost", None)]
    [event] = spent(jobs, resolve({**TINY, **keys}))
    assert event["clients"] is None
    assert event["samples"] == {
        "0": epsilon(1.0, 0.1, 2 * 22, 1e-5),
        "1": epsilon(1.0, 0.01, 22, 1e-5),
    }
    [real] = spent(jobs, resolve({**TINY, **keys, "clock": "real"}))
    assert real["samples"] == {**event["samples"], "2": epsilon(1.0, 1.0, 22, 1e-5)}


def test_of_a_participant_whose_data_change_the_fewest_images_count() -> None:
    """Whether it had them first or last: an image among few is in more of the batches."""
    keys: dict[str, Any] = {"privacy.clients": "off", "privacy.samples": True, "batch-size": 64}
    for numbers in ([640, 6400], [6400, 640]):
        jobs = [job(0, examples=number) for number in numbers]
        [event] = spent(jobs, resolve({**TINY, **keys}))
        assert event["samples"] == {"0": epsilon(1.0, 0.1, 2 * 22, 1e-5)}


def test_rounds_that_are_done_again_with_other_noise_count_twice() -> None:
    events = [job(0), {"event": "resumed", "round": 0}]
    [virtual], [real] = (spent(events, config_with(clock=c)) for c in ("virtual", "real"))
    assert virtual["clients"] == epsilon(1.0, 1.0, 1, 1e-5)
    assert real["clients"] == epsilon(1.0, 1.0, 2, 1e-5)


def test_a_job_is_spent_when_it_is_handed_out() -> None:
    """Before a kill, participant 0 had put seven updates into a buffer that was not full: they are
    in no version, and no job is recorded of them."""
    keys: dict[str, Any] = {"privacy.clients": "off", "privacy.samples": True, "batch-size": 64}
    buffered = {"averaging": "buffered", "buffer-size": 9, "clock": "real"}
    told: list[dict[str, Any]] = [{"event": "handed_out", "participants": [0, 1]}, job(0)]
    told += [{"event": "handed_out", "participants": [0]}] * 8
    told += [{"event": "resumed", "round": 1}, {"event": "handed_out", "participants": [0]}]
    [event] = spent(effective(told), resolve({**TINY, **keys, **buffered}))
    assert event["samples"] == {
        "0": epsilon(1.0, 0.1, 10 * 22, 1e-5),
        "1": epsilon(1.0, 1.0, 22, 1e-5),  # nobody knows how many images it has
    }


def test_without_privacy_nothing_is_said() -> None:
    assert spent([job(0)], resolve(TINY)) == []


# ----------------------------------------------------------------------------- gradients of images


def images_and_labels(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    images = generator.standard_normal((count, 1, 28, 28)).astype(np.float32)
    return torch.from_numpy(images), torch.from_numpy(generator.integers(0, 10, count))


def small_model() -> Any:
    return flat_model(problem_of(resolve({**TINY, "small-width": 2})), "small")


def private(model: Any, norm: float, z: float, expected: float) -> PrivateGradient:
    return PrivateGradient(
        model,
        functional.cross_entropy,
        clipping_norm=norm,
        noise_multiplier=z,
        expected=expected,
        generator=rng(0, "noise"),
    )


def literal_gradients(model: Any, images: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    found = []
    for image, label in zip(images, labels, strict=True):
        loss = functional.cross_entropy(model.module(image[None]), label[None])
        parts = torch.autograd.grad(loss, list(model.module.parameters()))
        found.append(torch.cat([part.reshape(-1) for part in parts]))
    return found


@pytest.mark.parametrize("count", [1, 7, 130])  # 130: more than are in memory together
def test_each_image_is_clipped_by_itself(count: int) -> None:
    """Equal to autograd's gradients of one image after the other. C is their median length."""
    model, (images, labels) = small_model(), images_and_labels(count)
    each = literal_gradients(model, images, labels)
    norm = float(torch.stack([g.norm() for g in each]).median())
    loss = private(model, norm, 1e-9, 16)(images, labels)
    expected = sum(g * min(1.0, norm / float(g.norm())) for g in each) / 16
    torch.testing.assert_close(model.gradient, expected, rtol=1e-4, atol=1e-6)
    everything = functional.cross_entropy(model.module(images), labels)
    assert float(loss) == pytest.approx(float(everything.detach()), rel=1e-4)


def test_one_image_moves_the_gradient_by_no_more_than_its_share() -> None:
    model, (images, labels) = small_model(), images_and_labels(9)

    def gradient(count: int) -> torch.Tensor:
        private(model, 0.1, 1.0, 8)(images[:count], labels[:count])
        return model.gradient.clone()

    assert float((gradient(9) - gradient(8)).norm()) <= 0.1 / 8 * (1 + 1e-3)


def test_an_empty_batch_is_noise_of_the_right_size() -> None:
    model, (images, labels) = small_model(), images_and_labels(1)
    loss = private(model, 2.0, 3.0, 4)(images[:0], labels[:0])
    assert float(loss) == 0.0
    deviation = 1 / math.sqrt(2 * len(model.gradient))
    assert float(model.gradient.std()) == pytest.approx(2.0 * 3.0 / 4, rel=4.5 * deviation)


def test_poisson_batches() -> None:
    """500 batches of 200 images at rate 0.1: sizes have mean 20 and variance 200 x 0.1 x 0.9 = 18,
    of which the mean is known to 0.19 and the variance to 6 %."""
    batches = list(poisson_batches(200, 20, 500, np.random.default_rng(0)))
    sizes = np.array([len(batch) for batch in batches])
    assert sizes.mean() == pytest.approx(20, abs=0.8)
    assert sizes.var() == pytest.approx(18, rel=0.25)
    assert all(len(set(batch)) == len(batch) for batch in batches)
    counts = np.bincount(np.concatenate(batches), minlength=200)
    assert counts.min() > 20  # of 50 on average: nobody is left out
    assert [len(b) for b in poisson_batches(5, 64, 3, np.random.default_rng(0))] == [5, 5, 5]


def test_private_training_repeats_with_its_generator_and_still_learns() -> None:
    """Bright and dark images are told apart with z = 0.5, too."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 256)
    pixels = generator.integers(0, 50, (256, 1, 28, 28)) + 180 * labels[:, None, None, None]
    images = torch.from_numpy(pixels.astype(np.uint8))
    keys: dict[str, Any] = {
        "small-width": 2, "local-steps": 40, "privacy.samples": True,
        "privacy.sample-noise-multiplier": 0.5,
    }  # fmt: skip
    config, model = resolve({**TINY, **keys}), small_model()
    start, results, losses = model.state(), [], []
    for _ in range(2):
        model.load(**start)
        for part in range(2):
            loss = train_locally(
                model, Examples(images, torch.from_numpy(labels)), training_of(config),
                rng(part, "b"), learning_rate=config.learning_rate,
                prepare=Preparation((0.3,), (0.4,), augmented=True), loss=functional.cross_entropy,
            )  # fmt: skip
            losses.append(loss)
        results.append(model.checksum())
    assert results[0] == results[1]
    assert losses[1] < 0.6 * losses[0]


# --------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"mode": "consensus", "privacy.clients": "fixed"},
            r"privacy.clients is for mode='distill' and 'average'",
        ),
        (
            {"mode": "consensus", "privacy.samples": True},
            r"privacy.samples is for mode='distill' and 'average'",
        ),
        (
            {"privacy.samples": True, "normalisation": "group", "adjust-logits": 0.5},
            r"privacy.samples=true cannot be with adjust-logits=0.5: an example changes the shares",
        ),
        (
            {"privacy.clients": "fixed", "averaging": "buffered"},
            r"privacy.clients='fixed' cannot be with averaging='buffered', which lets .* others",
        ),
        (
            {"privacy.clients": "adaptive", "averaging": "krum"},
            r"averaging='krum', which does not bound .*; use one of: fedadam, fedavg, fedprox, fed",
        ),
    ],
)
def test_what_cannot_be(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve({"mode": "average", **overrides})


@pytest.mark.parametrize("kind", [{"privacy.clients": "fixed"}, {"privacy.samples": True}])
def test_running_statistics_are_refused(kind: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="differential privacy needs normalisation='group', not"):
        preflight(resolve(kind))
    preflight(resolve({**kind, "normalisation": "group"}))


def test_without_opacus_the_extra_is_named_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fl_app.preflight.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install 'opacus>="):
        preflight(resolve({"privacy.samples": True, "normalisation": "group"}))
    preflight(resolve())


def test_opacus_is_not_imported_unless_it_is_used() -> None:
    code = (
        "import sys, fl_app.assemble, client_apps.local_training, strategies.rules, "
        "fl_app.record.distill_view; sys.exit('opacus' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


# ------------------------------------------------------------------------------------ whole runs

RUN: dict[str, Any] = {
    "normalisation": "group", "small-width": 2, "large-width": 4, "num-server-rounds": 2,
}  # fmt: skip


@pytest.mark.parametrize("clients", ["fixed", "adaptive"])
def test_a_run_with_private_clients(clients: str, tmp_path: Path) -> None:
    keys = {**RUN, "mode": "average", "privacy.clients": clients}
    first, directory = run(tmp_path, keys, nodes=1)
    second, _ = run(tmp_path, keys, nodes=2)
    other, _ = run(tmp_path, {**keys, "privacy.noise-multiplier": 0.5})
    assert first["status"] == "completed"
    assert first["checksum"] == second["checksum"] != other["checksum"]
    assert first["privacy"] == {
        "delta": 1e-5,
        "clients": epsilon(1.0, 1.0, 2, 1e-5),
        "clients_if_sampled": epsilon(1.0, 1.0, 2, 1e-5),
        "samples": None,
    }
    assert len(of_kind(directory.events(), "privacy")) == 1
    assert "epsilon of a participant" in (directory.path / "report.html").read_text()


def test_a_distillation_run_with_private_images(tmp_path: Path) -> None:
    keys = {**RUN, "privacy.samples": True}
    first, directory = run(tmp_path, keys, nodes=1)
    second, _ = run(tmp_path, keys, nodes=2)
    assert first["checksum"] == second["checksum"]
    examples = {e["participant"]: e["examples"] for e in of_kind(directory.events(), "job")}
    assert first["privacy"]["samples"] == {
        str(p): epsilon(1.0, 16 / examples[p], 2 * 2, 1e-5) for p in range(3)
    }


def test_on_the_real_clock_the_record_has_every_job_that_was_handed_out(tmp_path: Path) -> None:
    """A participant whose update is in no version has still shown it."""
    keys = {**RUN, "mode": "average", "clock": "real", "privacy.samples": True}
    buffered = {"averaging": "buffered", "buffer-size": 4, "large-width": 0}
    summary, directory = run(tmp_path, {**keys, **buffered}, nodes=1)
    handed = Counter(
        p for e in of_kind(directory.events(), "handed_out") for p in e["participants"]
    )
    done = Counter(e["participant"] for e in of_kind(directory.events(), "job"))
    assert handed > done  # it ends while participants train
    jobs = {e["participant"]: e["examples"] for e in of_kind(directory.events(), "job")}
    for p, examples in jobs.items():
        spent_at_least = epsilon(1.0, 16 / examples, handed[p] * 2, 1e-5)
        assert summary["privacy"]["samples"][str(p)] >= spent_at_least
