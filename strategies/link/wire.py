"""Messages between machines as bytes: a header that is JSON, and arrays that are safetensors.

    magic and version (4) | length of the header (4, big endian) | header | safetensors

Nothing that comes is unpickled, nothing is parsed before its length has been checked, and what
cannot be read says why.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

_MAGIC = b"EFL\x01"
_HEADER_LIMIT = 1 << 20


class WireError(ValueError):
    """Bytes that are no message that was expected. reason: one of a few fixed words, to count by;
    the text says more."""

    def __init__(self, reason: str, more: str) -> None:
        super().__init__(f"{reason}: {more}")
        self.reason = reason


def encode(kind: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """A message of `kind` with a header of JSON's types and arrays of numbers, by name."""
    head = {"kind": kind, "header": dict(header), "schema": schema(arrays)}
    # safetensors takes the memory as it lies there, without a look at the strides.
    body = safetensors.numpy.save({name: np.asarray(a, order="C") for name, a in arrays.items()})
    return frame(head, body)


def decode(
    payload: bytes, *, kind: str, limit: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(header, arrays) of a message of `kind`; the arrays are copies that may be written to.

    limit: bytes of the longest message that is looked at. Whether the arrays are those that one
    wants, and finite, is for the caller to check. Raises WireError.
    """
    head, body = unframe(payload, kind=kind, limit=limit)
    arrays = _arrays(body)
    if head.get("schema") != schema(arrays):
        raise WireError("wrong schema", "its arrays are not those that its header tells of")
    return head["header"], arrays


def frame(head: Mapping[str, Any], body: bytes) -> bytes:
    """A message with any bytes as its body; `head` has a "kind" and a "header"."""
    text = json.dumps(head).encode()
    return b"".join((_MAGIC, len(text).to_bytes(4, "big"), text, body))


def unframe(payload: bytes, *, kind: str, limit: int) -> tuple[dict[str, Any], bytes]:
    """(head, body) of a message of `kind`, with nothing of the body looked at. Raises WireError."""
    head, begin = split(payload, kind=kind, limit=limit)
    return head, payload[begin:]


def split(payload: bytes, *, kind: str, limit: int) -> tuple[dict[str, Any], int]:
    """(head, where the body begins) of a message of `kind`. Raises WireError."""
    if len(payload) > limit:
        raise WireError("too long", f"{len(payload)} bytes, at most {limit} were expected")
    if payload[:4] != _MAGIC:
        raise WireError("bad magic", f"it starts with {payload[:4]!r}, not {_MAGIC!r}")
    length = int.from_bytes(payload[4:8], "big")
    if length > _HEADER_LIMIT:
        raise WireError("bad header", f"of {length} bytes, at most {_HEADER_LIMIT} are allowed")
    if len(payload) < 8 + length:
        raise WireError("truncated", f"{len(payload)} bytes, the header alone ends at {8 + length}")
    head = _head(payload[8 : 8 + length])
    if head.get("kind") != kind:
        raise WireError("wrong kind", f"it is {head.get('kind')!r:.40}, not {kind!r}")
    return head, 8 + length


def schema(arrays: Mapping[str, np.ndarray]) -> str:
    """A checksum of names, types and shapes: 16 hexadecimal digits."""
    told = sorted((name, a.dtype.name, list(a.shape)) for name, a in arrays.items())
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _head(text: bytes) -> dict[str, Any]:
    try:
        head = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError("bad header", f"it is no JSON ({error})") from error
    if not isinstance(head, dict) or not isinstance(head.get("header"), dict):
        raise WireError("bad header", "it is no JSON object with a header in it")
    return head


def _arrays(body: bytes) -> dict[str, np.ndarray]:
    try:
        found = safetensors.numpy.load(body)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WireError("bad arrays", f"they are no safetensors ({error})") from error
    return {name: array.copy() for name, array in found.items()}
