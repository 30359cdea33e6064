"""Messages as bytes: what was sent comes back, and nothing else is taken for a message."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.link.wire import WireError, decode, encode

LIMIT = 1 << 20
ARRAYS = {
    "weights": np.linspace(-1, 1, 7, dtype=np.float32),
    "table": np.arange(6, dtype=np.int64).reshape(2, 3),
    "wide": np.array([1 / 3]),
    "small": np.array([1, 2], dtype=np.uint8),
    "half": np.array([0.5], dtype=np.float16),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "flags": np.array([True, False]),
}
HEADER = {"run": "0123", "seq": (3 << 32) + 7, "sent": 0.1 + 0.2, "name": "é", "list": [None, True]}


def test_a_message_comes_back() -> None:
    header, arrays = decode(encode("mail", HEADER, ARRAYS), kind="mail", limit=LIMIT)
    assert header == HEADER
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        assert arrays[name].tobytes() == array.tobytes()
        assert arrays[name].flags.writeable
    assert decode(encode("beat", {}, {}), kind="beat", limit=LIMIT) == ({}, {})


def test_an_array_is_sent_as_it_is_seen() -> None:
    """And not as it lies in memory."""
    seen = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2].T
    _, arrays = decode(encode("mail", {}, {"a": seen}), kind="mail", limit=LIMIT)
    assert arrays["a"].tolist() == seen.tolist()


def test_the_layout_is_fixed() -> None:
    """Two machines may run different versions: bytes 0-3 say which, 4-7 the header's length."""
    payload = encode("mail", {"a": 1}, {})
    length = int.from_bytes(payload[4:8], "big")
    assert payload[:4] == b"EFL\x01"
    # sha256 of "[]", the list of no arrays, starts with 4f53cda18c2baa0c.
    assert json.loads(payload[8 : 8 + length]) == {
        "kind": "mail", "header": {"a": 1}, "schema": "4f53cda18c2baa0c"
    }  # fmt: skip


GOOD = encode("mail", HEADER, ARRAYS)
END = 8 + int.from_bytes(GOOD[4:8], "big")  # of the header


def with_header(text: bytes) -> bytes:
    return GOOD[:4] + len(text).to_bytes(4, "big") + text + GOOD[END:]


def with_body(body: bytes) -> bytes:
    return GOOD[:END] + body


def tensors(header: str) -> bytes:
    return len(header).to_bytes(8, "little") + header.encode() + bytes(64)


BAD = {
    "nothing": (b"", "bad magic"),
    "something else": (b"\x80\x04\x95" + bytes(100), "bad magic"),
    "another version": (b"EFL\x02" + GOOD[4:], "bad magic"),
    "its start": (GOOD[:6], "truncated"),
    "half of its header": (GOOD[: END // 2], "truncated"),
    "no arrays": (GOOD[:END], "bad arrays"),
    "half of its arrays": (GOOD[:-20], "bad arrays"),
    "more than its arrays": (GOOD + bytes(8), "bad arrays"),
    "a header of 4 GB": (GOOD[:4] + b"\xff" * 4 + GOOD[8:], "bad header"),
    "a header that is no text": (with_header(b"\xff\xfe{}"), "bad header"),
    "a header that is no JSON": (with_header(b"{'kind': 1}"), "bad header"),
    "a header that is deep": (with_header(b"[" * 100_000), "bad header"),
    "a header that is a list": (with_header(b"[]"), "bad header"),
    "a header without one": (with_header(b'{"kind": "mail"}'), "bad header"),
    "no kind": (with_header(b'{"header": {}}'), "wrong kind"),
    "another kind": (encode("order", {}, {}), "wrong kind"),
    "a kind that is a list": (with_header(b'{"kind": [], "header": {}}'), "wrong kind"),
    "no schema": (with_header(b'{"kind": "mail", "header": {}}'), "wrong schema"),
    "an unknown type": (
        with_body(tensors('{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,64]}}')),
        "bad arrays",
    ),
    "offsets outside": (
        with_body(tensors('{"a":{"dtype":"F32","shape":[99],"data_offsets":[0,396]}}')),
        "bad arrays",
    ),
    "more than fits into memory": (
        with_body(
            tensors('{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,64]}}')
        ),
        "bad arrays",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_message(what: str) -> None:
    payload, reason = BAD[what]
    with pytest.raises(WireError, match=f"^{reason}: .") as caught:
        decode(payload, kind="mail", limit=LIMIT)
    assert caught.value.reason == reason


def test_arrays_that_were_exchanged() -> None:
    """Each half is good, and together they are not what was sent."""
    other = encode("mail", HEADER, {"weights": np.zeros(8, dtype=np.float32)})
    end = 8 + int.from_bytes(other[4:8], "big")
    with pytest.raises(WireError, match=r"^wrong schema: "):
        decode(GOOD[:END] + other[end:], kind="mail", limit=LIMIT)


def test_what_is_too_long_is_not_even_looked_at() -> None:
    assert decode(GOOD, kind="mail", limit=len(GOOD))[0] == HEADER
    with pytest.raises(WireError, match=r"^too long: \d+ bytes, at most"):
        decode(GOOD, kind="mail", limit=len(GOOD) - 1)
    with pytest.raises(WireError, match=r"^too long: "):
        decode(b"no message at all", kind="mail", limit=3)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_byte_that_is_wrong_is_refused_or_changes_a_value(position: int, change: int) -> None:
    """Whatever it is, it raises nothing else, and the arrays have the shapes that were announced.
    (That nobody changes bytes on their way is TLS's business.)"""
    broken = bytearray(GOOD)
    broken[position] ^= change
    try:
        _, arrays = decode(bytes(broken), kind="mail", limit=LIMIT)
    except WireError:
        return
    assert {n: a.shape for n, a in arrays.items()} == {n: a.shape for n, a in ARRAYS.items()}


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    for payload in (noise, GOOD[:4] + noise, GOOD[:END] + noise):
        with pytest.raises(WireError):
            decode(payload, kind="mail", limit=LIMIT)
