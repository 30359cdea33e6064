"""The rules of averaging: what Flower's and the buffered ones make of our vectors."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdam,
    FedAvg,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    Strategy,
)

from client_apps.training import train_locally
from fl_app.config import FLOWER_RULES, RunConfig, resolve
from fl_app.problem import problem_of
from fl_app.settings import averaging_of, training_of
from strategies.averaging import Vectors, weighted_average
from strategies.averaging_settings import AveragingSettings
from strategies.contracts import rules as contract
from strategies.contracts.rules import f32, model_of, random_updates, update
from strategies.evaluation import evaluation_set, measured
from strategies.problem import flat_model, split_of, task_of, train_set_of
from strategies.randomness import rng
from strategies.rules import Rule, Update, make_rule
from strategies.schedule import Job
from tests import oracle
from tests.flower_replies import replies_of

ADAPTIVE = ("fedadam", "fedyogi")


def config_with(averaging: str, **overrides: Any) -> RunConfig:
    keys = {key.replace("_", "-"): value for key, value in overrides.items()}
    return resolve({"mode": "average", "averaging": averaging, **keys})


def parts(updates: list[Update], key: str) -> list[np.ndarray]:
    return [u.vectors[key] for u in updates]


def sizes(updates: list[Update]) -> list[int]:
    return [u.examples for u in updates]


@pytest.mark.parametrize("averaging", [*FLOWER_RULES, "buffered"])
class TestEveryRule:
    """What holds for whatever `averaging` names."""

    @pytest.mark.parametrize("clause", contract.CLAUSES)
    def test_keeps_to_the_contract(self, averaging: str, clause: contract.Clause) -> None:
        clause(lambda: make_rule(averaging_of(config_with(averaging, server_learning_rate=0.05))))

    def test_it_goes_on_elsewhere_without_its_state(self, averaging: str) -> None:
        """So that the contract's comparison can fail; there is no state before the first round."""

        def fresh() -> Rule:
            return make_rule(averaging_of(config_with(averaging, server_learning_rate=0.05)))

        assert fresh().state() == {}
        first = fresh()
        half = contract.rounds(first, model_of(), range(1, 3))
        through = contract.rounds(first, half, range(3, 5))
        forgetful = contract.rounds(fresh(), half, range(3, 5))
        same = forgetful["weights"].tobytes() == through["weights"].tobytes()
        assert same is (averaging not in ADAPTIVE)
        assert bool(first.state()) is (averaging in ADAPTIVE)
        assert all(value.dtype == np.float32 for value in first.state().values())


# ------------------------------------------------------------------------------ Flower's strategies


def flowers(averaging: str, settings: AveragingSettings) -> Strategy:
    """Flower's own strategy."""
    adaptive: dict[str, Any] = {"eta": settings.server_learning_rate, "tau": settings.server_tau}
    malicious: dict[str, Any] = {"num_malicious_nodes": settings.num_malicious_nodes}
    honest = max(1, settings.cohort - settings.num_malicious_nodes)
    made: dict[str, Callable[[], Strategy]] = {
        "fedavg": FedAvg,
        "fedprox": lambda: FedProx(proximal_mu=0.1),
        "fedadam": lambda: FedAdam(**adaptive),
        "fedyogi": lambda: FedYogi(**adaptive),
        "krum": lambda: Krum(**malicious),
        "multikrum": lambda: MultiKrum(**malicious, num_nodes_to_select=honest),
        "bulyan": lambda: Bulyan(**malicious),
        "fedmedian": FedMedian,
        "fedtrimmedavg": lambda: FedTrimmedAvg(beta=settings.trim_fraction),
    }
    return made[averaging]()


@pytest.mark.parametrize("liars", [0, 1])
@pytest.mark.parametrize("averaging", FLOWER_RULES)
def test_the_bits_are_those_of_flowers_strategy(averaging: str, liars: int) -> None:
    settings = averaging_of(config_with(averaging, num_malicious_nodes=liars, participants=8))
    rule, strategy = make_rule(settings), flowers(averaging, settings)
    keys = ("weights",) if averaging in ADAPTIVE else ("weights", "buffers")
    model = model_of()
    for version in range(1, 4):
        updates = random_updates(version, 8)
        if averaging in ADAPTIVE:
            strategy.current_arrays = {"weights": model["weights"]}  # type: ignore[attr-defined]
        expected, _ = strategy.aggregate_train(version, replies_of(updates, keys))
        model = rule.combine(version, model, updates, {})
        assert expected is not None
        for key in keys:
            assert model[key].tobytes() == expected[key].numpy().astype(np.float32).tobytes()


def test_multikrum_leaves_out_as_many_as_may_lie_however_few_have_come() -> None:
    """Of seven that have come of ten it takes four, and not seven, as it would of ten."""
    settings = averaging_of(config_with("multikrum", num_malicious_nodes=3, participants=10))
    model, updates = model_of(), random_updates(1, 7)
    forged = [
        replace(u, vectors={key: value + 1e3 * 10**k for key, value in u.vectors.items()})
        for k, u in enumerate(updates[:3])
    ]
    combined = make_rule(settings).combine(1, model, [*forged, *updates[3:]], {})
    assert np.abs(combined["weights"]).max() < 100


@pytest.mark.parametrize("averaging", ["fedavg", "fedprox"])
def test_federated_averaging(averaging: str) -> None:
    """FedProx differs on the client only. Buffers are averaged as the weights are."""
    updates = random_updates(0)
    result = make_rule(averaging_of(config_with(averaging))).combine(1, model_of(), updates, {})
    ours = weighted_average([u.vectors for u in updates], sizes(updates))
    for key in ("weights", "buffers"):
        expected = oracle.federated_average(parts(updates, key), sizes(updates))
        np.testing.assert_allclose(result[key], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours[key], expected, rtol=1e-5, atol=1e-6)


def test_krum_by_hand() -> None:
    """n = 5, f = 1, so the n - f - 2 = 2 nearest count: 1.0 has 0.1^2 + 0.25^2 = 0.0725, 1.1 has
    0.1^2 + 0.15^2 = 0.0325, 1.25 has 0.15^2 + 0.25^2 = 0.085; 2 and 100 have more. The vector 1.1
    is taken as it is, sizes do not count."""
    values = [1.0, 1.1, 1.25, 2.0, 100.0]
    updates = [update(p, [v], [2 * v], examples=p + 1) for p, v in enumerate(values)]
    rule = make_rule(averaging_of(config_with("krum", num_malicious_nodes=1, participants=5)))
    result = rule.combine(1, model_of(), updates, {})
    assert result["weights"].tolist() == [f32(1.1)[0]]
    assert result["buffers"].tolist() == [f32(2.2)[0]]


@pytest.mark.parametrize("byzantine", [0, 1, 2])
def test_krum_equals_the_paper(byzantine: int) -> None:
    updates = random_updates(4, 7)
    together = [np.concatenate([u.vectors["weights"], u.vectors["buffers"]]) for u in updates]
    rule = make_rule(
        averaging_of(config_with("krum", num_malicious_nodes=byzantine, participants=7))
    )
    result = rule.combine(1, model_of(), updates, {})
    expected = oracle.krum(together, byzantine)
    np.testing.assert_array_equal(np.concatenate([result["weights"], result["buffers"]]), expected)


def test_trimmed_mean_by_hand() -> None:
    """Of five, floor(0.2 x 5) = 1 is cut at each end: (1 + 2 + 3) / 3 = 2, and sizes do not count;
    in the second coordinate (5 + 5 + 8) / 3 = 6."""
    values = [(1, 5), (2, 5), (3, 8), (-50, 99), (70, 0)]
    updates = [update(p, v, [v[0]], examples=p + 1) for p, v in enumerate(values)]
    result = make_rule(averaging_of(config_with("fedtrimmedavg"))).combine(
        1, model_of(), updates, {}
    )
    assert result["weights"].tolist() == [2.0, 6.0]
    assert result["buffers"].tolist() == [2.0]


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.2, 0.45])
def test_trimmed_mean_equals_the_paper(beta: float) -> None:
    updates = random_updates(5, 9)
    result = make_rule(averaging_of(config_with("fedtrimmedavg", trim_fraction=beta))).combine(
        1, model_of(), updates, {}
    )
    for key in ("weights", "buffers"):
        expected = oracle.trimmed_mean(parts(updates, key), beta)
        np.testing.assert_allclose(result[key], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("averaging", "expected"),
    [
        # Bias correction: 0.1 sqrt(1 - 0.99^2) / (1 - 0.9^2) = 0.0742458; times m / (sqrt(v) + tau)
        ("fedadam", 5 + 0.0742458 * 0.2 / (0.2 + 0.001)),
        ("fedyogi", 5 + 0.1 * 0.2 / (0.2 + 0.001)),
    ],
)
def test_the_first_adaptive_step_by_hand(averaging: str, expected: float) -> None:
    """From 5 to an average of 7: delta = 2, m = 0.1 x 2 = 0.2, v = 0.01 x 4 = 0.04, sqrt(v) = 0.2
    (Yogi: v = 0 - 0.01 x 4 x sign(0 - 4) = 0.04 too)."""
    rule = make_rule(averaging_of(config_with(averaging, server_learning_rate=0.1)))
    updates = [update(0, [6], [1], examples=1), update(1, [7.5], [3], examples=2)]
    result = rule.combine(1, {"weights": f32(5), "buffers": f32(9)}, updates, {})
    assert result["weights"][0] == pytest.approx(expected, rel=1e-6)
    # (1 x 1 + 2 x 3) / 3: averaged, wherever the buffers were before.
    assert result["buffers"][0] == pytest.approx(7 / 3)


@pytest.mark.parametrize("averaging", ADAPTIVE)
def test_adaptive_rules_equal_the_paper_over_rounds(averaging: str) -> None:
    rate, tau = 0.03, 0.01
    rule = make_rule(
        averaging_of(config_with(averaging, server_learning_rate=rate, server_tau=tau))
    )
    reference = oracle.Adaptive(rate, tau, yogi=averaging == "fedyogi")
    model = model_of()
    expected = model["weights"].astype(np.float64)
    for version in range(1, 6):
        updates = random_updates(version)
        model = rule.combine(version, model, updates, {})
        average = oracle.federated_average(parts(updates, "weights"), sizes(updates))
        expected = reference.step(version, expected, average)
        np.testing.assert_allclose(model["weights"], expected, rtol=1e-4, atol=1e-6)
        buffers = oracle.federated_average(parts(updates, "buffers"), sizes(updates))
        np.testing.assert_allclose(model["buffers"], buffers, rtol=1e-5)


@pytest.mark.parametrize("averaging", FLOWER_RULES)
def test_variances_stay_positive(averaging: str) -> None:
    """An adaptive step would overshoot: its size is that of the rate."""
    rule = averaging_of(config_with(averaging, server_learning_rate=1.0))
    contract.variances_stay_positive(lambda: make_rule(rule))


# ------------------------------------------------------------------------------------- buffered


def test_fedasync_by_hand() -> None:
    """Version 9 from an update of version 5: staleness 8 - 5 = 3, s = (1 + 3)^-1/2 = 0.5, weight
    0.6 x 0.5 = 0.3; 0.7 x 10 + 0.3 x 20 = 13."""
    rule = make_rule(averaging_of(config_with("buffered", buffer_size=1)))
    model = {"weights": f32(10), "buffers": f32(1)}
    result = rule.combine(9, model, [update(0, [20], [2], base=5)], {5: model_of()})
    assert result["weights"][0] == pytest.approx(13.0)
    assert result["buffers"][0] == pytest.approx(1.3)


def test_fedasync_of_several_updates_takes_one_after_the_other() -> None:
    """As a record that is replayed may have them. The weights are 0.6 (fresh) and 0.3 (staleness
    3): 0.4 x 10 + 0.6 x 20 = 16, then 0.7 x 16 + 0.3 x 30 = 20.2."""
    rule = make_rule(averaging_of(config_with("buffered", buffer_size=1)))
    model = {"weights": f32(10), "buffers": f32(1)}
    updates = [update(0, [20], [2], base=8), update(1, [30], [3], base=5)]
    result = rule.combine(9, model, updates, {5: model_of(), 8: model_of()})
    assert result["weights"][0] == pytest.approx(20.2)
    assert result["buffers"][0] == pytest.approx(0.7 * 1.6 + 0.3 * 3)
    assert model["weights"].tolist() == [10.0]


def test_fedbuff_by_hand() -> None:
    """Version 5 from updates of versions 4 (fresh) and 1 (staleness 3, s = 0.5), rate 2:
    10 + 2 / 2 x (1 x (13 - 11) + 0.5 x (4 - 8)) = 10."""
    rule = make_rule(averaging_of(config_with("buffered", buffer_size=2, server_learning_rate=2.0)))
    model = {"weights": f32(10), "buffers": f32(1)}
    bases = {
        1: {"weights": f32(8), "buffers": f32(1)},
        4: {"weights": f32(11), "buffers": f32(1)},
    }
    updates = [update(0, [13], [1], base=4), update(1, [4], [1], base=1)]
    assert rule.combine(5, model, updates, bases)["weights"].tolist() == [10.0]
    alone = rule.combine(5, model, updates[:1], bases)  # the other one was rejected
    assert alone["weights"].tolist() == [14.0]


@pytest.mark.parametrize("weight", ["constant", "polynomial", "hinge"])
def test_fedbuff_equals_the_paper(weight: str) -> None:
    config = config_with(
        "buffered", buffer_size=4, staleness_weight=weight, staleness_bound=1.0,
        staleness_exponent=0.7, server_learning_rate=0.8,
    )  # fmt: skip
    bases = {v: model_of(v) for v in range(6)}
    updates = [
        update(p, u.vectors["weights"], u.vectors["buffers"], base=base)
        for p, (u, base) in enumerate(zip(random_updates(1, 4), (5, 3, 0, 4), strict=True))
    ]
    s = {
        "constant": [1.0] * 4,
        "polynomial": [1.0, 3**-0.7, 6**-0.7, 2**-0.7],
        "hinge": [1.0, 1 / (0.7 * 1 + 1), 1 / (0.7 * 4 + 1), 1.0],
    }[weight]
    model = model_of()
    result = make_rule(averaging_of(config)).combine(6, model, updates, bases)
    # Buffers are measured from the model itself: see the variances below.
    own = [model["buffers"]] * 4
    expected = oracle.fedbuff(model["buffers"], parts(updates, "buffers"), own, s, 0.8)
    np.testing.assert_allclose(result["buffers"], expected, rtol=1e-5, atol=1e-6)
    expected = oracle.fedbuff(
        model["weights"],
        parts(updates, "weights"),
        [bases[u.job.base_version]["weights"] for u in updates],
        s,
        0.8,
    )
    np.testing.assert_allclose(result["weights"], expected, rtol=1e-5, atol=1e-6)


def test_fresh_updates_in_a_buffer_are_averaged() -> None:
    model, updates = model_of(), random_updates(2, 3)
    result = make_rule(averaging_of(config_with("buffered"))).combine(1, model, updates, {0: model})
    for key in ("weights", "buffers"):
        np.testing.assert_allclose(
            result[key], np.mean(parts(updates, key), axis=0), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("buffer_size", [1, 3])
@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0])
def test_buffered_variances_stay_between_what_there_was(buffer_size: int, rate: float) -> None:
    """A variance of 1 in version 0 has become 0.05. Now a straggler comes back that started from
    version 0 and found 0.05, too: its difference of -0.95, weighted 0.7 and shared by 3, would make
    0.05 - 0.22 = -0.17 of it, and normalisation with a negative variance NaN."""
    rule = make_rule(
        averaging_of(config_with("buffered", buffer_size=buffer_size, server_learning_rate=rate))
    )
    bases = {
        0: {"weights": f32(0), "buffers": f32(1.0)},
        1: {"weights": f32(0), "buffers": f32(0.05)},
    }
    late = update(0, [0], [0.05], base=0)
    fresh = [update(p, [0], [0.06], base=1) for p in (1, 2)]
    result = rule.combine(2, bases[1], [late, *fresh][:buffer_size], bases)
    assert 0.05 - 1e-6 <= result["buffers"][0] <= 0.06 + 1e-6


# ------------------------------------------------------------------------------ with the defaults


def trained(averaging: str, **overrides: Any) -> tuple[Vectors, float]:
    """(the model, its loss on test images) after some rounds with the rule's own parameters: four
    participants of a small model, all of them in every round."""
    torch.set_num_threads(1)
    small = {"small_width": 4, "participants": 4, "local_steps": 10, "batch_size": 32}
    config = config_with(averaging, **{**small, **overrides})
    train, split, model = (
        train_set_of(problem_of(config)),
        split_of(problem_of(config)),
        flat_model(problem_of(config), "small"),
    )
    task = task_of(problem_of(config))
    rule, versions = make_rule(averaging_of(config)), [model.state()]
    how: dict[str, Any] = {
        "learning_rate": config.learning_rate, "prepare": task.prepare(augmented=True),
        "loss": task.loss,
    }  # fmt: skip
    for version in range(1, 7):
        updates = []
        for participant, part in enumerate(split.participants):
            model.load(**versions[-1])
            generator = rng(0, "batches", participant, version)
            loss = train_locally(model, train.take(part), training_of(config), generator, **how)
            job = Job(participant, version - 1, version - 1, 0.0, 0.0, 0.0, 0.0)
            updates.append(Update(job, len(part), loss, model.state()))
        versions.append(rule.combine(version, versions[-1], updates, dict(enumerate(versions))))
    model.load(**versions[-1])
    seen = evaluation_set(problem_of(config_with(averaging, evaluate_examples=500)), "cpu")
    return versions[-1], measured(task, model, seen).values["loss"]


@pytest.mark.parametrize("averaging", [*FLOWER_RULES, "buffered"])
def test_every_rule_trains_with_its_defaults(averaging: str) -> None:
    _, loss = trained(averaging)
    assert loss < 2.0  # ln 10 = 2.30 of a model that knows nothing


def test_fedprox_is_not_fedavg() -> None:
    assert config_with("fedavg").proximal_mu == 0
    assert config_with("fedprox").proximal_mu == 0.1
    assert config_with("fedprox", proximal_mu=0.3).proximal_mu == 0.3
    plain, proximal = (trained(name, local_steps=2)[0] for name in ("fedavg", "fedprox"))
    assert not np.array_equal(plain["weights"], proximal["weights"])


@pytest.mark.parametrize(
    ("averaging", "rate"),
    [("fedadam", 0.01), ("fedyogi", 0.01), ("buffered", 1.0), ("fedavg", 0.0), ("krum", 0.0)],
)
def test_the_servers_rate_is_the_rules_unless_it_is_given(averaging: str, rate: float) -> None:
    assert config_with(averaging).server_learning_rate == rate
    assert config_with(averaging, server_learning_rate=0.3).server_learning_rate == 0.3
