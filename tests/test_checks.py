"""Every way in which a reply can be wrong is named, and none of it passes."""

import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from strategies.checks import Checked, updates_of, vector_fault
from strategies.precision import rounded
from strategies.schedule import Job
from tests import fake_grid  # noqa: F401 - lets Messages be made outside of a ServerApp

MODEL = {"weights": np.zeros(4, np.float32), "buffers": np.zeros(2, np.float32)}
JOB = Job(3, 7, 5, 0.0, 0.0, 0.0, 0.0)
OTHER = Job(4, 0, 5, 0.0, 0.0, 0.0, 0.0)

Records = dict[str, Any]


def good(*jobs: Job) -> Records:
    """The records of a flawless reply: job (p, i) brings weights p and buffers 2 p."""
    arrays, metrics = {}, {}
    for job in jobs:
        name = f"{job.participant}.{job.index}"
        arrays[f"weights.{name}"] = Array(np.full(4, job.participant, np.float32))
        arrays[f"buffers.{name}"] = Array(np.full(2, 2 * job.participant, np.float32))
        metrics |= {f"examples.{name}": 40, f"loss.{name}": 0.5, f"seconds.{name}": 1.5}
    return {
        "arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics), "config": ConfigRecord()
    }  # fmt: skip


def message() -> Message:
    return Message(RecordDict(), dst_node_id=11, message_type="train.local")


def check(records: Records, *jobs: Job) -> list[Checked]:
    return updates_of(Message(RecordDict(records), reply_to=message()), jobs or (JOB,), MODEL)


def raw_array(data: bytes) -> Array:
    return Array(dtype="float32", shape=(4,), stype="numpy.ndarray", data=data)


def npy(value: np.ndarray) -> bytes:
    buffer = BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()


def claiming(shape: tuple[int, ...]) -> bytes:
    """The header of an array of `shape`, and nothing after it."""
    buffer = BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def pickled() -> bytes:
    buffer = BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def test_a_flawless_reply_passes() -> None:
    first, second = check(good(JOB, OTHER), JOB, OTHER)
    for job, result in ((JOB, first), (OTHER, second)):
        assert (result.job, result.fault, result.seconds) == (job, "", 1.5)
        assert result.update is not None
        assert (result.update.job, result.update.examples, result.update.loss) == (job, 40, 0.5)
        assert result.update.vectors["weights"].tolist() == [job.participant] * 4
        assert result.update.vectors["buffers"].tolist() == [2 * job.participant] * 2


ARRAYS = {
    "float64": (Array(np.zeros(4)), "weights is float64, not float32"),
    "integers": (Array(np.zeros(4, np.int32)), "weights is int32, not float32"),
    "big endian": (Array(np.zeros(4, ">f4")), "weights is >f4, not float32"),
    "too short": (Array(np.zeros(3, np.float32)), r"weights has shape (3,), not (4,)"),
    "a matrix": (Array(np.zeros((2, 2), np.float32)), r"weights has shape (2, 2), not (4,)"),
    "a number": (Array(np.zeros((), np.float32)), r"weights has shape (), not (4,)"),
    "NaN": (
        Array(np.array([0, np.nan, 0, 0], np.float32)),
        "weights has 1 values that are",
    ),
    "inf": (
        Array(np.array([np.inf, 0, -np.inf, 0], np.float32)),
        "weights has 2 values that are",
    ),
    "empty": (raw_array(b""), "weights cannot be read: EOFError"),
    "garbage": (raw_array(b"no array at all"), "weights cannot be read: ValueError"),
    "truncated": (raw_array(npy(np.zeros(4, np.float32))[:-3]), "weights cannot be read"),
    "truncated header": (raw_array(npy(np.zeros(4))[:20]), "weights cannot be read"),
    "broken archive": (raw_array(b"PK\x03\x04" + bytes(40)), "weights cannot be read: BadZipFile"),
    "a claim of 36 TiB": (raw_array(claiming((10**13,))), "weights cannot be read"),
    "a pickle": (raw_array(pickled()), "weights cannot be read: ValueError"),
    "another encoding": (
        Array(dtype="float32", shape=(4,), stype="torch", data=struct.pack("4f", 0, 0, 0, 0)),
        "weights cannot be read: TypeError",
    ),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_wrong_arrays(name: str) -> None:
    array, fault = ARRAYS[name]
    records = good(JOB, OTHER)
    records["arrays"]["weights.3.7"] = array
    wrong, right = check(records, JOB, OTHER)
    assert wrong.update is None
    assert wrong.fault.startswith(fault)
    assert right.update is not None  # what one participant does wrong is not the others' fault


def without(record: str, key: str) -> Callable[[Records], None]:
    return lambda records: records[record].pop(key)


def with_metric(key: str, value: Any) -> Callable[[Records], None]:
    return lambda records: records["metrics"].update({key: value})


def metrics_in_a_config_record(records: Records, **changes: Any) -> None:
    """A ConfigRecord takes texts, bytes and truth values, which a MetricRecord does not."""
    records["metrics"] = ConfigRecord({**records["metrics"], **changes})


FAULTS: dict[str, tuple[Callable[[Records], Any], str]] = {
    "no arrays": (lambda r: r.pop("arrays"), "the reply has no record 'arrays'"),
    "no metrics": (lambda r: r.pop("metrics"), "the reply has no record 'metrics'"),
    "no config": (lambda r: r.pop("config"), "the reply has no record 'config'"),
    "no weights": (without("arrays", "weights.3.7"), "weights cannot be read: KeyError"),
    "no buffers": (without("arrays", "buffers.3.7"), "buffers cannot be read: KeyError"),
    "numbers as arrays": (
        lambda r: r.update(arrays=MetricRecord({"weights.3.7": 1.0, "buffers.3.7": 1.0})),
        "weights cannot be read: AttributeError",
    ),
    "arrays as numbers": (
        lambda r: r.update(metrics=ArrayRecord({"examples.3.7": Array(np.zeros(1))})),
        "examples=",
    ),
    "no examples": (without("metrics", "examples.3.7"), "examples=None is no number of images"),
    "0 examples": (with_metric("examples.3.7", 0), "examples=0 is no number of images"),
    "-3 examples": (with_metric("examples.3.7", -3), "examples=-3 is no number of images"),
    "40.0 examples": (with_metric("examples.3.7", 40.0), "examples=40.0 is no number of images"),
    "list of examples": (with_metric("examples.3.7", [40]), "examples=[40] is no number of images"),
    "true examples": (
        lambda r: metrics_in_a_config_record(r, **{"examples.3.7": True}),
        "examples=True is no number of images",
    ),
    "text examples": (
        lambda r: metrics_in_a_config_record(r, **{"examples.3.7": "40"}),
        "examples='40' is no number of images",
    ),
    "no loss": (without("metrics", "loss.3.7"), "loss=None is no finite number"),
    "NaN loss": (with_metric("loss.3.7", float("nan")), "loss=nan is no finite number"),
    "list loss": (with_metric("loss.3.7", [0.5]), "loss=[0.5] is no finite number"),
    "no seconds": (without("metrics", "seconds.3.7"), "seconds=None is no finite number"),
    "inf seconds": (with_metric("seconds.3.7", float("inf")), "seconds=inf is no finite number"),
    "its own error": (
        lambda r: r["config"].update({"error.3.7": "DataError: no images in /data"}),
        "error: DataError: no images in /data",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_wrong_replies(name: str) -> None:
    spoil, fault = FAULTS[name]
    records = good(JOB)
    spoil(records)
    (result,) = check(records)
    assert result.update is None
    assert result.fault.startswith(fault)
    assert result.job == JOB


def test_a_reply_brings_only_what_was_asked_for() -> None:
    """Another job of the same participant is no answer, and what nobody asked for is not used."""
    (result,) = check(good(Job(3, 8, 5, 0.0, 0.0, 0.0, 0.0), OTHER))
    assert result.update is None
    assert "weights.3.7" in result.fault


def test_negative_seconds_are_none() -> None:
    records = good(JOB)
    records["metrics"]["seconds.3.7"] = -4.0
    (result,) = check(records)
    assert result.update is not None
    assert result.seconds == 0.0


@pytest.mark.parametrize(
    ("reason", "fault"),
    [
        ("Traceback:\n  File x\nValueError: bad batch\n\n", "error: ValueError: bad batch"),
        ("no reply in time", "error: no reply in time"),
        ("", "error: no reason given"),
        (None, "error: no reason given"),
    ],
)
def test_an_error_instead_of_a_reply_is_every_jobs_fault(reason: str | None, fault: str) -> None:
    reply = Message(Error(2, reason), reply_to=message())
    results = updates_of(reply, [JOB, OTHER], MODEL)
    assert [(r.job, r.update, r.fault) for r in results] == [
        (JOB, None, fault), (OTHER, None, fault)
    ]  # fmt: skip


def test_a_vector_that_fits_has_no_fault() -> None:
    assert vector_fault("weights", np.ones(4, np.float32), MODEL["weights"]) is None


@pytest.mark.parametrize("value", [None, [0.0] * 4, 1.0, "text"])
def test_a_vector_must_be_an_array(value: Any) -> None:
    fault = vector_fault("weights", value, MODEL["weights"])
    assert fault == f"weights is {type(value).__name__}, not float32"


# ------------------------------------------------------------------------- fewer bits on the way

BASES = {5: {"weights": np.linspace(1, 2, 4, dtype=np.float32), "buffers": MODEL["buffers"]}}


def rounded_reply(precision: str, change: np.ndarray, **parts: np.ndarray) -> Records:
    records = good(JOB)
    arrays = {"buffers.3.7": Array(np.zeros(2, np.float32))}
    for name, part in {**rounded(change, precision), **parts}.items():
        arrays[f"{name}.3.7"] = Array(part)
    return {**records, "arrays": ArrayRecord(arrays)}


def check_rounded(records: Records, precision: str) -> Checked:
    reply = Message(RecordDict(records), reply_to=message())
    return updates_of(reply, [JOB], MODEL, precision, BASES)[0]


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_rounded_change_is_added_to_the_model_from_which_the_job_began(precision: str) -> None:
    change = np.array([0.5, -0.25, 0.0, 0.125], np.float32)
    result = check_rounded(rounded_reply(precision, change), precision)
    assert result.update is not None
    added = result.update.vectors["weights"] - BASES[5]["weights"]
    np.testing.assert_allclose(added, change, atol=0.5 / 250)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_what_is_no_rounded_change_is_named(precision: str) -> None:
    change = np.ones(4, np.float32)
    fault = check_rounded(good(JOB), precision).fault
    assert "weights cannot be read" in fault
    short = rounded_reply(precision, change, codes=np.zeros(3, np.float32))
    assert "codes" in check_rounded(short, precision).fault
    change[1] = np.nan
    result = check_rounded(rounded_reply(precision, change), precision)
    assert (result.finite, result.update) == (False, None)
    gone = Job(3, 7, 4, 0.0, 0.0, 0.0, 0.0)
    reply = Message(RecordDict(rounded_reply(precision, change)), reply_to=message())
    [late] = updates_of(reply, [gone], MODEL, precision, BASES)
    assert late.update is None
