"""Averaging rules: equal to the papers' definitions, and with the properties that define them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from strategies.averaging import (
    STALENESS_WEIGHTS,
    Vectors,
    buffered_update,
    constant,
    hinge,
    length,
    mix,
    polynomial,
    weighted_average,
)
from tests import oracle

SIZES = {"weights": 7, "buffers": 3}
FINITE = st.floats(-100, 100, width=32)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def vectors(seed: int, number: int, scale: float = 1.0) -> list[Vectors]:
    generator = np.random.default_rng(seed)
    return [
        {k: (scale * generator.standard_normal(n)).astype(np.float32) for k, n in SIZES.items()}
        for _ in range(number)
    ]


def test_a_length_is_as_exact_as_float64_though_the_vector_is_not() -> None:
    vector = np.random.default_rng(0).standard_normal(300_000).astype(np.float32)
    exact = math.sqrt(math.fsum(float(x) ** 2 for x in vector))
    assert length(vector) == pytest.approx(exact, rel=1e-14)


def test_federated_averaging_by_hand() -> None:
    """(1 x 2 + 3 x 6) / 4 = 5 and (1 x -4 + 3 x 4) / 4 = 2."""
    updates = [{"weights": f32(2, -4)}, {"weights": f32(6, 4)}]
    result = weighted_average(updates, [1, 3])
    assert result["weights"].tolist() == [5.0, 2.0]
    assert result["weights"].dtype == np.float32


def test_federated_averaging_equals_the_definition() -> None:
    updates, sizes = vectors(0, 5), [3, 1, 4, 1, 5]
    result = weighted_average(updates, sizes)
    assert result.keys() == set(SIZES)
    for key in SIZES:
        expected = oracle.federated_average([u[key] for u in updates], sizes)
        np.testing.assert_allclose(result[key], expected, rtol=1e-5, atol=1e-6)
        assert result[key].dtype == np.float32


def test_averaging_leaves_its_inputs_alone_and_repeats_bit_for_bit() -> None:
    updates = vectors(1, 3)
    before = [{k: v.copy() for k, v in u.items()} for u in updates]
    first, second = weighted_average(updates, [1, 2, 3]), weighted_average(updates, [1, 2, 3])
    for key in SIZES:
        assert first[key].tobytes() == second[key].tobytes()
        for update, old in zip(updates, before, strict=True):
            assert update[key].tobytes() == old[key].tobytes()


@pytest.mark.parametrize(("number", "sizes"), [(0, []), (2, [0, 0]), (2, [1, -1])])
def test_nothing_to_average_is_an_error(number: int, sizes: list[float]) -> None:
    with pytest.raises(ValueError, match=f"nothing to average: {number} updates of total size 0"):
        weighted_average(vectors(0, number), sizes)


def test_as_many_sizes_as_updates() -> None:
    with pytest.raises(ValueError, match="shorter"):
        weighted_average(vectors(0, 2), [1])


@given(
    arrays.arrays(np.float32, (3, 4), elements=FINITE),
    st.lists(st.integers(1, 1000), min_size=3, max_size=3),
)
def test_an_average_lies_between_its_updates(values: np.ndarray, sizes: list[int]) -> None:
    result = weighted_average([{"weights": row} for row in values], sizes)["weights"]
    slack = 1e-4
    assert (result >= values.min(0) - slack).all()
    assert (result <= values.max(0) + slack).all()


# ------------------------------------------------------------------------------------- staleness


@pytest.mark.parametrize(
    ("weigh", "staleness", "expected"),
    [
        (constant, 0, 1.0),
        (constant, 99, 1.0),
        (polynomial, 0, 1.0),
        (polynomial, 3, 0.5),  # (1 + 3)^-1/2
        (polynomial, 8, 1 / 3),
        (hinge, 4, 1.0),
        (hinge, 5, 1 / 1.5),  # 1 / (1/2 (5 - 4) + 1)
        (hinge, 8, 1 / 3),
    ],
)
def test_staleness_weights_by_hand(weigh, staleness: int, expected: float) -> None:
    """With a = 1/2 and b = 4 (Xie et al. 2019, section 5.2)."""
    assert weigh(staleness, 0.5, 4.0) == pytest.approx(expected)


@pytest.mark.parametrize("name", STALENESS_WEIGHTS)
@given(staleness=st.integers(0, 50), exponent=st.floats(0, 5), bound=st.floats(0, 20))
def test_older_never_weighs_more(name: str, staleness: int, exponent: float, bound: float) -> None:
    weigh = STALENESS_WEIGHTS[name]
    assert weigh(0, exponent, bound) == 1.0
    assert 0 < weigh(staleness + 1, exponent, bound) <= weigh(staleness, exponent, bound) <= 1


# ---------------------------------------------------------------------------- FedAsync and FedBuff


def test_mixing_by_hand() -> None:
    """0.75 x 4 + 0.25 x 8 = 5."""
    result = mix({"weights": f32(4)}, {"weights": f32(8)}, 0.25)
    assert result["weights"].tolist() == [5.0]


@given(arrays.arrays(np.float32, (2, 4), elements=FINITE), st.floats(0.01, 1), st.integers(0, 20))
def test_mixing_equals_fedasync(values: np.ndarray, alpha: float, staleness: int) -> None:
    model, update = {"weights": values[0]}, {"weights": values[1]}
    s = polynomial(staleness, 0.5, 0.0)
    result = mix(model, update, alpha * s)["weights"]
    np.testing.assert_allclose(
        result, oracle.fedasync(values[0], values[1], alpha, s), rtol=1e-5, atol=1e-4
    )
    assert result.dtype == np.float32


@given(arrays.arrays(np.float32, (2, 4), elements=FINITE))
def test_mixing_with_weight_one_replaces_and_with_zero_keeps(values: np.ndarray) -> None:
    model, update = {"weights": values[0]}, {"weights": values[1]}
    np.testing.assert_allclose(mix(model, update, 1.0)["weights"], values[1], atol=1e-4)
    assert mix(model, update, 0.0)["weights"].tolist() == values[0].tolist()


def test_a_buffered_update_by_hand() -> None:
    """x = 10; results 3 from base 1 and 4 from base 8, weights 1 and 1/2, rate 2:
    10 + 2 / 2 x (1 x 2 + 1/2 x -4) = 10."""
    result = buffered_update(
        {"weights": f32(10)},
        [{"weights": f32(3)}, {"weights": f32(4)}],
        [{"weights": f32(1)}, {"weights": f32(8)}],
        [1.0, 0.5],
        2.0,
    )
    assert result["weights"].tolist() == [10.0]
    alone = buffered_update(
        {"weights": f32(10)}, [{"weights": f32(3)}],
        [{"weights": f32(1)}], [1.0], 2.0,
    )  # fmt: skip
    assert alone["weights"].tolist() == [14.0]


@pytest.mark.parametrize("rate", [0.1, 1.0, 2.0])
def test_a_buffered_update_equals_fedbuff(rate: float) -> None:
    model, *rest = vectors(3, 9)
    results, bases, weights = rest[:4], rest[4:], [1.0, 0.7, 0.5, 0.5]
    result = buffered_update(model, results, bases, weights, rate)
    for key in SIZES:
        expected = oracle.fedbuff(
            model[key], [r[key] for r in results], [b[key] for b in bases], weights, rate
        )
        np.testing.assert_allclose(result[key], expected, rtol=1e-5, atol=1e-6)
        assert result[key].dtype == np.float32


@given(arrays.arrays(np.float32, (5, 4), elements=FINITE))
def test_fresh_updates_in_a_buffer_are_averaged(values: np.ndarray) -> None:
    """Zero staleness, rate 1, all from the model itself: x + mean(x_i - x) = mean x_i."""
    model = {"weights": values[0]}
    updates = [{"weights": row} for row in values[1:]]
    result = buffered_update(model, updates, [model] * 4, [1.0] * 4, 1.0)
    np.testing.assert_allclose(result["weights"], values[1:].mean(0), atol=1e-3)
