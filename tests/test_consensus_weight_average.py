"""A node's model as the running average of its weights (`consensus.publish-average`)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from client_apps.node_store import NODES, NodeStore
from fl_app.config import resolve
from fl_app.record import consensus_metrics as summary
from fl_app.record.export import trained_model
from fl_app.record.run_dir import RunDirectory
from strategies.consensus.algorithms import Settings, make_algorithm
from strategies.consensus.node import AVERAGE, Node
from strategies.consensus.rows import Link, Rows
from strategies.consensus.topologies import build_topology
from strategies.consensus.weight_average import DECAY, Averaged
from tests.test_consensus import TINY, run, weights_of

ON = {"consensus.publish-average": True}
SETTINGS = Settings(
    interval=3.0, hold=True, forget=1.0, theta=0.5, kappa=1.0, mult=1.0, penalty="isvr", alpha=1.0,
    rho=0.0, momentum=0.9, weight_decay=0.0, keep=0.1, compression="random-k", gamma=0.3, seed=0,
)  # fmt: skip


def test_the_average_is_that_of_the_weights_after_every_step() -> None:
    """Of rows that step together and alone, without touching their steps; and it starts anew."""
    topology = build_topology("ring", 3)
    plain = make_algorithm("ecl", SETTINGS, topology)
    ring = {}
    for name, algorithm in (("plain", plain), ("averaged", Averaged(plain))):
        nodes = [Node(i, torch.full((5,), float(i))) for i in range(3)]
        for node in nodes:
            algorithm.start(node)
        rows = Rows(nodes, topology.neighbours, algorithm.row_vectors, algorithm.row_links)
        ring[name] = (algorithm, rows, nodes)
    expected = [torch.full((5,), float(i), dtype=torch.float64) for i in range(3)]
    count = [0, 0, 0]
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        due = [0, 1, 2] if step % 3 else [step % 2]
        gradients = torch.randn(len(due), 5, generator=generator)
        for algorithm, rows, _ in ring.values():
            algorithm.step(rows, rows.choose(due), gradients.clone(), 0.1)
        for i in due:
            decay = min(DECAY, (1 + count[i]) / (10 + count[i]))
            weights = ring["averaged"][2][i].weights.double()
            expected[i] = decay * expected[i] + (1 - decay) * weights
            count[i] += 1
    for own, averaged, mean in zip(ring["plain"][2], ring["averaged"][2], expected, strict=True):
        assert torch.equal(own.weights, averaged.weights)
        assert own.published is own.weights
        torch.testing.assert_close(averaged.published.double(), mean)
        assert not torch.equal(averaged.published, averaged.weights)
    node = ring["averaged"][2][0]
    ring["averaged"][0].start(node)
    assert torch.equal(node.published, node.weights)


def test_after_many_steps_the_horizon_stands() -> None:
    algorithm = Averaged(make_algorithm("isolated", SETTINGS, build_topology("ring", 3)))
    node = Node(0, torch.zeros(2))
    algorithm.start(node)
    rows = Rows([node], [()], algorithm.row_vectors, algorithm.row_links)
    for _ in range(3000):
        algorithm.step(rows, rows.choose([0]), torch.zeros(1, 2), 0.0)
    node.weights.fill_(1.0)
    algorithm.step(rows, rows.choose([0]), torch.zeros(1, 2), 0.0)
    torch.testing.assert_close(node.published, torch.full((2,), 1 - DECAY))


def test_a_run_publishes_averages_and_trains_as_without(tmp_path: Path) -> None:
    """They are what is evaluated, settled and exported; of references, too."""
    settled = {"consensus.settle": 30, "consensus.references": "same-steps"}
    without, found = (run(tmp_path, settled | more) for more in ({}, ON))
    for node in range(9):
        assert np.array_equal(weights_of(found, node), weights_of(without, node))
    averages = [
        vectors_of(found, node)[f"vector/{AVERAGE}"].astype(np.float64) for node in range(8)
    ]
    before, after = (summary.measure(each.events()) for each in (without, found))
    assert after["unsettled"] != before["unsettled"]
    reference = vectors_of(found, 8)
    assert not np.array_equal(reference[f"vector/{AVERAGE}"], reference["weights"])
    mean = sum(averages) / 8
    for node in range(8):
        assert np.abs(weights_of(found, node, window=3) - mean).max() < 1e-6
    kept = run(tmp_path, ON)
    _, model = trained_model(kept, resolve({**TINY, **ON}), "node-3")
    assert np.array_equal(model.weights.numpy(), vectors_of(kept, 3)[f"vector/{AVERAGE}"])


def test_what_travels_is_untouched_by_rounding_and_forgeries(tmp_path: Path) -> None:
    """Forgeries are made before mail is rounded, whoever keeps an average."""
    config = {
        "mail-precision": "int8",
        "attackers": 2,
        "attack": "sign-flip",
        "consensus.topology": "complete",
        "participants": 5,
    }
    without, found = (run(tmp_path, config | more) for more in ({}, ON))
    for node in range(5):
        assert np.array_equal(weights_of(found, node), weights_of(without, node))


def vectors_of(directory: RunDirectory, node: int) -> dict[str, np.ndarray]:
    return NodeStore(directory.path / NODES).load(2, node)[0]


@pytest.mark.parametrize("algorithm", ["ecl", "gossip"])
def test_an_average_takes_away_noise_and_no_lean(algorithm: str) -> None:
    """Two nodes with opposite data and noisy gradients, at a constant step: of the exact algorithm
    the averages are nearer to the optimum than the models, of gossip they stay where nodes lean."""
    topology = build_topology("chain", 2)
    settings = Settings(**{**vars(SETTINGS), "forget": 0.0, "momentum": 0.0})
    averaged = Averaged(make_algorithm(algorithm, settings, topology))
    nodes = [Node(i, torch.zeros(50)) for i in range(2)]
    for node in nodes:
        averaged.start(node)
    rows = Rows(nodes, topology.neighbours, averaged.row_vectors, averaged.row_links)
    generator, pull = torch.Generator().manual_seed(0), torch.tensor([[1.0], [-1.0]])
    raw, ends = [], [Link(0, 1), Link(1, 0)]
    for step in range(6000):
        weights = torch.stack([node.weights for node in nodes])
        noise = torch.randn(2, 50, generator=generator)
        averaged.step(rows, rows.choose([0, 1]), weights - pull + noise, 0.1)
        if step % 3 == 2:
            mails = averaged.message(rows, ends, [step, step])
            told = [{name: each[1 - i].clone() for name, each in mails.items()} for i in (0, 1)]
            averaged.receive(rows, ends, [step, step], told)
        if step > 5000:
            raw.append(sum(float(node.weights.square().mean()) for node in nodes) / 2)
    models = sum(raw) / len(raw)
    averages = sum(float(node.published.square().mean()) for node in nodes) / 2
    lean = abs(float(nodes[0].published.mean()))
    if algorithm == "ecl":
        assert averages < 0.2 * models
        assert lean < 0.05
    else:
        assert lean > 0.1
