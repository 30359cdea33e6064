"""Participants that lie: what they do to a mean, and what robust rules and the clip make of it."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client_apps.local_model import shard_of
from fl_app.config import resolve
from fl_app.problem import problem_of
from fl_app.record.consensus_metrics import measure
from fl_app.settings import averaging_of, training_of
from strategies.attacks import ATTACKS, FORGERIES, flipped_labels
from strategies.consensus.algorithms import ALGORITHMS, make_algorithm
from strategies.consensus.byzantine import Attacker, Clipped
from strategies.consensus.node import Node
from strategies.consensus.schedule import Conditions, Timetable
from strategies.consensus.topologies import build_topology
from strategies.contracts import alone
from strategies.contracts.convex import Quadratics, Simulation, quadratics, worst_error
from strategies.errors import ConfigError
from strategies.randomness import rng
from strategies.rules import Update, make_rule
from strategies.schedule import Job
from tests.harness import run
from tests.test_consensus import checksum
from tests.test_consensus import run as run_consensus
from tests.test_consensus_algorithms import SETTINGS

# ------------------------------------------------------------------------------------- the attacks


@pytest.mark.parametrize("attack", FORGERIES)
def test_a_forgery_repeats_and_has_the_vectors_form(attack: str) -> None:
    vector = rng(0, "vector").standard_normal(50).astype(np.float32)
    before = vector.copy()
    first, again, other = (FORGERIES[attack](vector, 3.0, rng(0, "attack", n)) for n in (1, 1, 2))
    assert first.dtype == np.float32
    assert first.shape == vector.shape
    assert first.tobytes() == again.tobytes()
    assert (first.tobytes() == other.tobytes()) is (attack == "sign-flip")
    assert vector.tobytes() == before.tobytes()


def test_what_attackers_send() -> None:
    """-3 x; and x + e, of which e is 3 times as long as x to 10 % of 5000 values' 1 / sqrt(2 n)."""
    vector = rng(0, "vector").standard_normal(5000)
    np.testing.assert_allclose(FORGERIES["sign-flip"](vector, 3.0, rng(0)), -3 * vector)
    added = FORGERIES["noise"](vector, 3.0, rng(1)) - vector
    assert np.linalg.norm(added) == pytest.approx(3 * np.linalg.norm(vector), rel=0.1)
    assert abs(added @ vector) < 0.1 * np.linalg.norm(added) * np.linalg.norm(vector)
    assert flipped_labels(np.array([0, 3, 9]), 10).tolist() == [9, 6, 0]
    assert flipped_labels(np.array([-100, 3]), 10).tolist() == [-100, 6]


def test_the_last_participants_attack_and_references_do_not() -> None:
    config = resolve({"participants": 5, "attackers": 2, "attack": "noise"})
    assert [training_of(config).attack_of(n) for n in range(7)] == [
        "",
        "",
        "",
        "noise",
        "noise",
        "",
        "",
    ]
    assert training_of(resolve()).attack_of(2) == ""


def test_labels_are_flipped_at_the_attackers_alone() -> None:
    honest = resolve({"participants": 3})
    config = resolve({"participants": 3, "attackers": 1, "attack": "label-flip"})
    for participant in range(4):
        expected, found = (
            shard_of(problem_of(c), participant, "", training_of(c).attack_of(participant))
            for c in (honest, config)
        )
        labels = 9 - expected.targets if participant == 2 else expected.targets
        assert found.targets.tolist() == labels.tolist()
        assert np.array_equal(found.inputs, expected.inputs)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"attack": "noise"}, "attack='noise' and attackers=0 go together"),
        ({"attackers": 1}, "attack='none' and attackers=1 go together"),
        ({"attack": "noise", "attackers": 3}, "attackers=3 must be fewer than participants=3"),
        (
            {"averaging": "bulyan", "num-malicious-nodes": 2, "participants": 10},
            r"needs at least participants=11 in a round \(4 f \+ 3, .*\), and there are 10",
        ),
        (
            {"averaging": "multikrum", "num-malicious-nodes": 2, "participants": 8,
             "fraction-train": 0.5},
            r"needs at least participants=7 in a round \(2 f \+ 3, .*\), and there are 4",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve({"mode": "average", **overrides})


# ---------------------------------------------------------------------------------------- the clip

CLIPPED = [name for name, entry in ALGORITHMS.items() if not entry.unclipped]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_clipped_or_says_why_not(name: str) -> None:
    graph = "chain" if ALGORITHMS[name].trees_only else "complete"
    topology = build_topology(graph, 4)
    settings = replace(SETTINGS, clip=1.0)
    if name in CLIPPED:
        assert isinstance(make_algorithm(name, settings, topology), Clipped)
    else:
        match = rf"consensus.clip=1.0 must be 0 for {name}: .+; those with a clip are: "
        with pytest.raises(ValueError, match=match):
            make_algorithm(name, settings, topology)


def with_clip(name: str, clip: float) -> tuple[Any, Node]:
    """Node 0 of two after one step along (3, 4) of rate 0.1, at (-0.3, -0.4)."""
    topology = build_topology("chain", 2)
    algorithm = make_algorithm(name, replace(SETTINGS, clip=clip, interval=2), topology)
    node = Node(0, torch.zeros(2, dtype=torch.float64))
    algorithm.start(node)
    # Of anchors at 0 an ECL node is pulled back: it starts where the step of all is the same.
    alone.step(algorithm, node, torch.tensor([3.0, 4.0], dtype=torch.float64), 0.1)
    return algorithm, node


def test_how_far_mail_may_lie_by_hand() -> None:
    """One step of length 0.5 in a mean over K = 2: 0.25. With clip = 1.2 mail may lie 1.2 x 2 x
    0.25 = 0.6 from the node's model (-0.3, -0.4). From (5.7, 7.6), 10 away, there come (-0.3, -0.4)
    + 0.06 (6, 8) = (0.06, 0.08), and gossip goes half the way."""
    algorithm, node = with_clip("gossip", 1.2)
    mail = {"weights": torch.tensor([5.7, 7.6], dtype=torch.float64)}
    alone.receive(algorithm, node, 1, 0, mail)
    torch.testing.assert_close(node.weights, torch.tensor([-0.12, -0.16], dtype=torch.float64))
    assert mail["weights"].tolist() == [5.7, 7.6]
    algorithm.rescale(node, 0.1, 0.05)  # steps of half the length
    alone.receive(algorithm, node, 1, 1, {"weights": node.weights + torch.tensor([3.0, 4.0])})
    torch.testing.assert_close(node.weights, torch.tensor([-0.03, -0.04], dtype=torch.float64))


@pytest.mark.parametrize("name", CLIPPED)
def test_near_mail_is_used_to_the_bit(name: str) -> None:
    (clipped, node), (plain, same) = with_clip(name, 50.0), with_clip(name, 0.0)
    for algorithm, each in ((clipped, node), (plain, same)):
        for seq in range(3):
            length = algorithm.lengths(2, 1, 0, seq)
            mail = {key: torch.tensor([1.0, -2.0], dtype=torch.float64) for key in length}
            alone.receive(algorithm, each, 1, seq, mail)
            alone.mix(algorithm, each, seq)
    assert torch.equal(node.weights, same.weights)


@pytest.mark.parametrize("name", [n for n in CLIPPED if ALGORITHMS[n].exact])
def test_anchors_do_not_go_away_in_small_steps(name: str) -> None:
    """However often a neighbour pulls in one direction."""
    algorithm, node = with_clip(name, 1.0)
    for seq in range(200):
        far = node.links[1]["anchor"] + torch.tensor([1.0, 0.0], dtype=torch.float64)
        alone.receive(algorithm, node, 1, seq, {"reflection": far})
    farthest = 1.0 * 2 * 0.25
    assert float((node.links[1]["anchor"] - node.weights).norm()) <= farthest * (1 + 1e-9)


# ------------------------------------------------------------------------------ neighbours of liars


@cache
def honest_error(name: str, attack: str, clip: float) -> float:
    """Of the worst honest node of ten, two of which attack, all connected with all; relative to the
    optimum of the honest nodes' data (of everybody's if nobody attacks)."""
    topology, n, liars = build_topology("complete", 10), 10, 2 if attack else 0
    timetable = Timetable(
        topology,
        Conditions(),
        interval=4,
        window_steps=16,
        seed=1,
        synchronous=ALGORITHMS[name].exchange == "synchronous",
        outages=(),
    )
    problem = quadratics(n, parameters=12, condition=4)
    problem = Quadratics(problem.H, 1 + 0.3 * problem.b)  # all agree on more than they differ in
    simulation = Simulation(problem, timetable, name, 0.1, changes={"clip": clip, "momentum": 0.5})
    for participant in simulation.participants[n - liars :]:
        if attack:
            participant.algorithm = Attacker(participant.algorithm, attack, 5.0, seed=3)
    models = simulation.run(30).models()[: n - liars]
    return worst_error(models, problem.optimum(dict.fromkeys(range(n - liars), 1.0)))


# Measured: without a clip 1.09 (d-psgd, sign-flip) to 1e92; with it 0.02 to 0.34.
@pytest.mark.parametrize("attack", FORGERIES)
@pytest.mark.parametrize(
    ("name", "clip"), [("gossip", 0.5), ("d-psgd", 2.0), ("ecl", 2.0), ("pdmm-sgd", 2.0)]
)
def test_liars_ruin_honest_nodes_without_a_clip_alone(name: str, clip: float, attack: str) -> None:
    assert honest_error(name, attack, 0.0) > 1.0
    assert honest_error(name, attack, clip) < 0.5


@pytest.mark.parametrize("name", ["ecl", "pdmm-sgd"])
def test_among_honest_nodes_the_limit_is_the_optimum(name: str) -> None:
    """Also with a clip, if it leaves the nodes' differences room; a tight one does not."""
    assert honest_error(name, "", 2.0) < 1e-3
    assert honest_error(name, "", 0.5) > 0.1


# ---------------------------------------------------------------------------------- robust rules

ROBUST = ("bulyan", "fedmedian", "fedtrimmedavg", "krum", "multikrum")


def far_from_honest(averaging: str, attack: str) -> float:
    """How far the next model is from the honest participants' mean, in lengths of an honest update,
    when 2 of 11 send forgeries of theirs."""
    keys = {"averaging": averaging, "num-malicious-nodes": 2, "participants": 11}
    config = resolve({"mode": "average", "normalisation": "group", **keys})
    base = {"weights": rng(0, "base").standard_normal(400).astype(np.float32)}
    base["buffers"] = np.zeros(0, np.float32)
    direction = rng(0, "direction").standard_normal(400)
    updates, honest = [], []
    for p in range(11):
        change = (direction + 0.5 * rng(0, "own", p).standard_normal(400)).astype(np.float32)
        if p < 9:
            honest.append(change)
        elif attack:
            change = FORGERIES[attack](change, 20.0, rng(0, "attack", p))
        job = Job(p, 0, 0, 0.0, 0.0, 0.0, 0.0)
        vectors = {"weights": base["weights"] + change, "buffers": base["buffers"]}
        updates.append(Update(job, 1, 0.5, vectors))
    result = (
        make_rule(averaging_of(config)).combine(1, base, updates, {0: base})["weights"]
        - base["weights"]
    )
    mean = np.mean(honest, axis=0)
    return float(np.linalg.norm(result - mean) / np.linalg.norm(mean))


@pytest.mark.parametrize("attack", FORGERIES)
def test_robust_rules_hold_where_the_mean_does_not(attack: str) -> None:
    """2 of 11 that are 20 times as long move the mean by about sqrt(2) 20 / 11 = 2.6 (noise) or
    2 x 21 / 11 = 3.8 (sign-flip)."""
    assert far_from_honest("fedavg", attack) > 2.0
    for averaging in ROBUST:
        assert far_from_honest(averaging, attack) < 0.6
        assert far_from_honest(averaging, "") < 0.6


def test_bulyan_of_too_few_leaves_the_model_as_it_was() -> None:
    config = resolve({"mode": "average", "averaging": "bulyan", "participants": 3})
    base = {"weights": np.ones(4, np.float32), "buffers": np.zeros(0, np.float32)}
    update = Update(Job(0, 0, 0, 0.0, 0.0, 0.0, 0.0), 1, 0.5, {k: v + 1 for k, v in base.items()})
    result = make_rule(averaging_of(config)).combine(1, base, [update], {0: base})
    assert result["weights"].tolist() == [1, 1, 1, 1]
    assert result["weights"] is not base["weights"]


# ------------------------------------------------------------------------------------- whole runs


# Measured accuracies, %: the mean 11 (sign-flip) and 21 (label-flip), the rule 51 and 42.
@pytest.mark.slow
@pytest.mark.parametrize("attack", ["sign-flip", "label-flip"])
def test_three_of_ten_attackers(attack: str, tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "mode": "average", "normalisation": "group", "participants": 10, "small-width": 4,
        "num-server-rounds": 8, "local-steps": 10, "batch-size": 32, "evaluate-examples": 500,
        "attack": attack, "attackers": 3, "trim-fraction": 0.3,
    }  # fmt: skip
    ruined, _ = run(tmp_path, keys, nodes=1)
    held, _ = run(tmp_path, {**keys, "averaging": "fedtrimmedavg"}, nodes=1)
    assert (held["attack"], held["attackers"], held["attack_scale"]) == (attack, 3, 5.0)
    assert held["final"]["small"] > ruined["final"]["small"] + 0.1


@pytest.mark.parametrize("attack", ATTACKS)
def test_attackers_and_the_clip_on_any_number_of_hosts(attack: str, tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "participants": 4, "attack": attack, "attackers": 1, "attack-scale": 2.0,
        "consensus.clip": 2.0,
    }  # fmt: skip
    one = checksum(run_consensus(tmp_path / "one", keys, nodes=1))
    assert one == checksum(run_consensus(tmp_path / "two", keys, nodes=2))
    honest = {**keys, "attack": "none", "attackers": 0}
    assert one != checksum(run_consensus(tmp_path / "honest", honest))


def test_the_honest_nodes_have_a_number_of_their_own() -> None:
    events = [
        {"event": "run_started", "t_wall": 0.0, "config": {"attackers": 1}},
        {"event": "nodes", "t_wall": 1.0, "t": 1.0, "round": 1, "accuracy": [0.8, None, 0.6, 0.1]},
    ]
    assert measure(events)["final"]["node_honest"] == pytest.approx(0.7)
    assert measure(events[1:])["final"]["node_honest"] is None
