"""Held corrections of two nodes are ProxSkip (Mishchenko et al., ICML 2022): equal to it, and as
fast as its theorem says."""

import math

import pytest
import torch

from strategies.consensus.algorithms import Settings, make_algorithm
from strategies.consensus.node import Node
from strategies.consensus.topologies import build_topology
from strategies.contracts import alone
from strategies.contracts.convex import SETTINGS, Quadratics, quadratics
from strategies.randomness import rng

PAIR = build_topology("chain", 2)


def proxskip(
    problem: Quadratics, rate: float, p: float, swaps: list[bool]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(x, h) after every step, as algorithm 1 of arXiv 2202.09357 stands, with the indicator of
    x_0 = x_1, whose proximal step is the mean."""
    x = torch.zeros_like(problem.b)
    h = torch.zeros_like(x)
    found = []
    for swap in swaps:
        gradients = torch.einsum("npq,nq->np", problem.H, x - problem.b)
        moved = x - rate * (gradients - h)
        x = (moved - rate / p * h).mean(0).expand_as(x) if swap else moved
        h = h + p / rate * (x - moved)
        found.append((x, h))
    return found


def held(
    problem: Quadratics, rate: float, interval: float, swaps: list[bool]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(w, alpha a) after every step of `ecl`."""
    changes = {"interval": interval, "mult": (interval - 1) / interval, "theta": 0.5, "kappa": 1.0}
    algorithm = make_algorithm("ecl", Settings(**{**SETTINGS, **changes}), PAIR)
    nodes = [Node(i, torch.zeros(problem.b.shape[1], dtype=torch.float64)) for i in range(2)]
    for node in nodes:
        algorithm.start(node)
    found = []
    for number, swap in enumerate(swaps):
        for node, gradient in zip(
            nodes, problem.gradients([(node, number) for node in nodes]), strict=True
        ):
            alone.step(algorithm, node, gradient, rate)
        if swap:
            mails = [alone.message(algorithm, nodes[i], 1 - i, number) for i in (0, 1)]
            for i in (0, 1):
                alone.receive(algorithm, nodes[i], 1 - i, number, mails[1 - i])
        corrections = [node.links[1 - node.index]["offset"] / (interval * rate) for node in nodes]
        found.append((torch.stack([n.weights for n in nodes]), torch.stack(corrections)))
    return found


def swaps_of(seed: int, steps: int, interval: float) -> list[bool]:
    return (rng(seed, "swaps").random(steps) < 1 / interval).tolist()


@pytest.mark.parametrize("interval", [2.0, 6.0])
def test_two_nodes_with_held_corrections_are_proxskip(interval: float) -> None:
    problem, swaps = quadratics(2, parameters=6), swaps_of(0, 120, interval)
    pairs = zip(
        held(problem, 0.5, interval, swaps),
        proxskip(problem, 0.5, 1 / interval, swaps),
        strict=True,
    )
    for (w, correction), (x, h) in pairs:
        torch.testing.assert_close(w, x, rtol=0, atol=1e-13)
        torch.testing.assert_close(correction, h, rtol=0, atol=1e-13)


def test_they_are_as_fast_as_its_theorem_says() -> None:
    """E psi_T <= (1 - min(eta mu, p^2))^T psi_0 with psi = |x - x*|^2 + (eta / p)^2 |h - h*|^2."""
    rate, interval, steps, seeds = 1.0, 4.0, 100, 20
    problem = quadratics(2, parameters=6)  # curvatures from 1/20 to 1
    best = problem.optimum({0: 1.0, 1: 1.0})
    gradients = torch.einsum("npq,nq->np", problem.H, best - problem.b)

    def energy(x: torch.Tensor, h: torch.Tensor) -> float:
        far = (x - best).square().sum() + (rate * interval) ** 2 * (h - gradients).square().sum()
        return float(far)

    zero = torch.zeros_like(problem.b)
    ends = [held(problem, rate, interval, swaps_of(s, steps, interval))[-1] for s in range(seeds)]
    mean = sum(energy(*end) for end in ends) / seeds
    shrinks = 1 - min(rate / 20, 1 / interval**2)
    assert mean <= shrinks**steps * energy(zero, zero)
    assert math.isfinite(mean)
