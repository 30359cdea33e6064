"""Vectors with fewer bits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.precision import BLOCK, PRECISIONS, restored, rounded, size
from strategies.randomness import rng

LENGTHS = [1, BLOCK - 1, BLOCK, 3 * BLOCK + 7]


def vector(length: int) -> np.ndarray:
    return rng(0, "vector", length).standard_normal(length, np.float32)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_comes_back_is_as_near_as_the_precision_lets_it(precision: str, length: int) -> None:
    x = vector(length)
    parts = rounded(x, precision)
    y = restored(parts, precision, length)
    assert (y.dtype, y.shape) == (np.float32, x.shape)
    bound = {"float32": 0.0, "bfloat16": 2.0**-8 * np.abs(x)}.get(precision)
    if bound is None:
        blocks = [x[i : i + BLOCK] for i in range(0, length, BLOCK)]
        bound = np.concatenate([np.full(len(b), np.abs(b).max() / 253) for b in blocks])
    assert (np.abs(y - x) <= bound).all()
    carried = sum(part.nbytes for part in parts.values())
    rest = {"buffers": np.zeros(5, np.float32)}
    assert size({"weights": x, **rest}, precision) == carried + 20
    # What is rounded once stays as it is.
    again = restored(rounded(y, precision), precision, length)
    np.testing.assert_allclose(again, y, rtol=1e-6)


def test_bfloat16_is_that_of_torch() -> None:
    x = np.concatenate([vector(10_000), vector(1000) * 1e-40, [0.0, -0.0, 3e38, 3.4e38]])
    x = np.concatenate([x, [np.inf, -np.inf, np.nan]]).astype(np.float32)
    expected = torch.from_numpy(x).bfloat16()
    codes = rounded(x, "bfloat16")["codes"]
    numbers = ~np.isnan(x)
    assert np.array_equal(codes[numbers], expected.view(torch.uint16).numpy()[numbers])
    np.testing.assert_array_equal(restored({"codes": codes}, "bfloat16", len(x)), expected.float())


def test_int8_at_random_is_right_in_the_mean() -> None:
    x = vector(2 * BLOCK)
    generator = rng(0, "draws")
    total = np.zeros_like(x)
    for _ in range(2000):
        total += restored(rounded(x, "int8", generator), "int8", len(x))
    step = np.abs(x).max() / 127
    assert np.abs(total / 2000 - x).max() < 5 * step / 2000**0.5
    nearest = restored(rounded(x, "int8"), "int8", len(x))
    assert np.abs(nearest - x).max() > 10 * step / 2000**0.5, "or this test would show nothing"


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_what_is_not_finite_stays_so(precision: str) -> None:
    for value in (np.nan, np.inf):
        x = vector(BLOCK)
        x[3] = value
        assert not np.isfinite(restored(rounded(x, precision), precision, len(x))).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_but_zeros(precision: str) -> None:
    x = np.zeros(300, np.float32)
    assert np.array_equal(restored(rounded(x, precision), precision, 300), x)


@given(st.integers(0, 2**32 - 1), st.sampled_from(PRECISIONS[1:]), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_parts_that_are_none_are_refused(seed: int, precision: str, kind: int) -> None:
    generator = np.random.default_rng(seed)
    parts = rounded(vector(300), precision)
    name = str(generator.choice(sorted(parts)))
    part = parts[name]
    false = {
        0: part[:-1],
        1: np.concatenate([part, part]),
        2: part.astype(np.float64),
        3: part.reshape(1, -1),
        4: b"bytes",
        5: None,
    }[kind]
    with pytest.raises(ValueError, match=f"{name} .* are no "):
        restored({**parts, name: false}, precision, 300)
