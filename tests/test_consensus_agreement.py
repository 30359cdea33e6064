"""How far nodes agree: sums that do not depend on the hosting, and the distance from the mean."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from strategies.consensus.agreement import average, consensus_distance, fixed_point
from strategies.learning_rate import SCHEDULES, rate_of
from strategies.randomness import rng

models = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(1, 5)),
    elements=st.floats(-100, 100, width=32),
)


@given(models, st.data())
def test_the_average_has_the_same_bits_however_nodes_are_spread(
    nodes: np.ndarray, data: st.DataObject
) -> None:
    """float32 sums would differ in their last bits; and hosts of no node at all are no matter."""
    n = len(nodes)
    order = data.draw(st.permutations(range(n)))
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    parts = [[nodes[i] for i in order[a:b]] for a, b in pairwise([0, *cuts, n])]
    whole = average([fixed_point(torch.from_numpy(nodes))], n)
    spread = average([fixed_point(torch.from_numpy(w) for w in part) for part in parts], n)
    assert spread.tobytes() == whole.tobytes()
    assert np.allclose(whole, nodes.mean(axis=0, dtype=np.float64), rtol=1e-6, atol=1e-11)


def test_a_thousand_large_nodes_do_not_overflow() -> None:
    total = fixed_point(torch.full((2,), 7999.0) for _ in range(1000))
    assert average([total], 1000).tolist() == [7999.0, 7999.0]
    assert (total > 0).all()


def test_the_sum_of_nobody_is_empty() -> None:
    assert fixed_point([]).shape == (0,)
    assert average([fixed_point([]), fixed_point([torch.ones(3)])], 1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("spread", [1e-3, 0.1, 10.0])
def test_distance_by_its_definition(spread: float) -> None:
    """sqrt(mean_i |w_i - w|^2) / |w|, computed from the norms alone."""
    generator = rng(0, "distance")
    w = generator.standard_normal(1000) + spread * generator.standard_normal((8, 1000))
    mean = w.mean(axis=0)
    expected = math.sqrt(((w - mean) ** 2).sum(axis=1).mean()) / np.linalg.norm(mean)
    norms = [float(each @ each) for each in w]
    assert consensus_distance(norms, mean) == pytest.approx(expected, rel=1e-6)


def test_equal_nodes_have_no_distance() -> None:
    w = rng(0, "distance").standard_normal(1000)
    assert consensus_distance([float(w @ w)] * 8, w) < 1e-7
    assert consensus_distance([0.0, 0.0], np.zeros(3)) == 0.0


# ------------------------------------------------------------------------------------------ rates


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_start_near_the_learning_rate_and_never_rise(name: str) -> None:
    rates = [rate_of(name, 0.1, window, 40) for window in range(1, 41)]
    assert rates[0] == pytest.approx(0.1, rel=1e-3)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0  # penalties follow its inverse


def test_half_a_cosine() -> None:
    """Taken in the middle of each window: 0.1 (1 + cos(pi / 4)) / 2 for the first of two."""
    high, low = rate_of("cosine", 0.1, 1, 2), rate_of("cosine", 0.1, 2, 2)
    assert high == pytest.approx(0.0853553)
    assert low == pytest.approx(0.0146447, rel=1e-5)
    assert rate_of("constant", 0.1, 2, 2) == 0.1
