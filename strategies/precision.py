"""Vectors with fewer bits, for links with little room.

bfloat16: the upper half of a float32, rounded to the nearest: 8 bits of precision, 2 bytes. int8:
blocks of `BLOCK` values, each a step of its own times -127 to 127, 1.02 bytes. What travels rounded
is a model down, and up the change that training has made to it, which is added to the model as the
server has it: so no rounding adds up from round to round. A change in int8 is rounded at random,
up or down so that it is right in the mean (Alistarh et al., NeurIPS 2017).
"""

import numpy as np

from strategies.averaging import Vectors

PRECISIONS = ("float32", "bfloat16", "int8")
BLOCK = 256  # values that share a step
_MOST = 127
CODES, STEPS = "codes", "steps"
_TYPES = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}


def rounded(
    vector: np.ndarray, precision: str, generator: np.random.Generator | None = None
) -> Vectors:
    """A float32 vector (p,) in so few bits: codes (p,) and, for int8, steps (p / BLOCK,). With a
    `generator` int8 is rounded at random."""
    if precision == "float32":
        return {CODES: vector}
    if precision == "bfloat16":
        bits = np.ascontiguousarray(vector, np.float32).view(np.uint32)
        # To the nearest, half to even; what is not finite keeps its upper half, with a bit for NaN.
        nearest = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
        cut = (bits >> 16).astype(np.uint16) | np.isnan(vector).astype(np.uint16)
        return {CODES: np.where(np.isfinite(vector), nearest, cut)}
    blocks = _blocks(vector)
    steps = np.abs(blocks).max(axis=1) / np.float32(_MOST)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.nan_to_num(blocks / steps[:, None], posinf=0.0, neginf=0.0)
    draws = 0.5 if generator is None else generator.random(blocks.shape, np.float32)
    codes = np.clip(np.floor(scaled + draws), -_MOST, _MOST).astype(np.int8)
    return {CODES: codes.reshape(-1)[: len(vector)], STEPS: steps}


def mailed(model: Vectors, precision: str) -> Vectors:
    """What travels of a model: in place of its weights the parts of `rounded`, with fewer bits."""
    if precision == "float32":
        return model
    rest = {name: vector for name, vector in model.items() if name != "weights"}
    return rounded(model["weights"], precision) | rest


def restored(parts: Vectors, precision: str, length: int) -> np.ndarray:
    """The float32 vector (length,) of `rounded`. Raises ValueError for parts that are none; their
    values may be infinite or NaN."""
    codes = _part(parts, CODES, _TYPES[precision], length)
    if precision == "float32":
        return codes
    if precision == "bfloat16":
        return (codes.astype(np.uint32) << 16).view(np.float32)
    steps = _part(parts, STEPS, np.float32, -(-length // BLOCK))
    with np.errstate(invalid="ignore", over="ignore"):
        return (_blocks(codes) * steps[:, None]).reshape(-1)[:length]


def size(vectors: Vectors, precision: str) -> int:
    """Bytes of `vectors` on their way: of their weights in this precision, and of the rest."""
    rest = sum(vector.nbytes for name, vector in vectors.items() if name != "weights")
    length = len(vectors["weights"])
    steps = 4 * -(-length // BLOCK) if precision == "int8" else 0
    return rest + length * np.dtype(_TYPES[precision]).itemsize + steps


def _blocks(vector: np.ndarray) -> np.ndarray:
    """As float32 rows of `BLOCK` values, the last one filled up with 0."""
    rows = -(-len(vector) // BLOCK)
    filled = np.zeros(rows * BLOCK, np.float32)
    filled[: len(vector)] = vector
    return filled.reshape(rows, BLOCK)


def _part(parts: Vectors, name: str, kind: type, length: int) -> np.ndarray:
    found = parts.get(name)
    if not isinstance(found, np.ndarray) or found.dtype != kind or found.shape != (length,):
        told = getattr(found, "dtype", None), getattr(found, "shape", None)
        raise ValueError(f"{name} {told} are no {np.dtype(kind)} ({length},)")
    return found
