"""Messages are the same after the journey, and what is none is refused by name."""

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from strategies.link.records import content_of, parts_of
from strategies.messages.codec import message_of, records_of
from strategies.messages.queries import (
    EngineOrder,
    FastestEngine,
    Hello,
    Invitation,
    MeetOrder,
    Met,
    Prepared,
    PrepareOrder,
    SessionEnd,
)
from strategies.messages.sums import (
    Fault,
    JobWeight,
    KeysOrder,
    KeysReply,
    MaskedReply,
    MaskOrder,
    MemberTold,
    PublicKeys,
    PublishedShares,
    SealedShares,
    SharesOrder,
    SharesReply,
    ShownShare,
    UnmaskOrder,
    UnmaskReply,
)
from strategies.messages.training import JobReply, TrainOrder, TrainReply, jobs_of
from strategies.messages.windows import (
    NEVER,
    NOBODY,
    Heard,
    MailHead,
    Moment,
    NodeNumbers,
    OfClass,
    Refused,
    WindowOrder,
    WindowReport,
)

VECTOR = np.arange(3, dtype=np.float32)
MESSAGES = [
    Hello(-1, "pi", "f00", "/app"),
    PrepareOrder([0, 1], "d1"),
    PrepareOrder([2], "d1", "0 1", 3, "task=a1"),
    Prepared("", [10, 20]),
    Prepared("too small", [], ["x.png"], {"python": "3.11", "cores": 4, "load": 0.5}),
    MeetOrder("127.0.0.1 80 aa", 1, 2, 3.0),
    Met(2),
    EngineOrder([0, 5]),
    FastestEngine("stacked", 1.5),
    Invitation("r", 200.0, ["pi"]),
    SessionEnd("pi", 3, ""),
    KeysOrder("a1", [0, 2]),
    KeysReply([PublicKeys(0, b"\x00\xff", b"", "PEM", "aa")], [Fault(2, "no room")]),
    SharesOrder("a1", [0], [MemberTold(0, 0.5, "pi", b"m", b"s", "PEM", "aa")]),
    SharesReply([SealedShares(0, 2, b"\x01")], [PublishedShares(0, b"\x02")], []),
    MaskOrder(
        "a1", [2], [MemberTold(2, 0.5, "", b"m", b"s", "", "")], [SealedShares(0, 2, b"\x01")],
        [PublishedShares(0, b"\x02")], [JobWeight(2, 7, 1 / 3)],
    ),
    MaskedReply({"2": np.arange(3, dtype=np.uint32)}, []),
    UnmaskOrder("a1", [2], [], [0, 2]),
    UnmaskReply([ShownShare(2, 0, b"\x03")], []),
    TrainOrder([1, 2], [0, 7], 0.05, {"weights": VECTOR, "buffers": np.zeros(0, np.float32)}),
    WindowOrder(
        window=2, rate=0.1, settling=0, durable=True, kept=1, examples=[10, 0], started=0.5,
        topology="", directory="/runs/r", states="r", slice=4.0, carrier="grid", nodes=[0],
        mail=[MailHead(1, 0, (3 << 32) + 7, 1 / 3)], vectors={"0/reflection": VECTOR},
    ),
    WindowReport(False, 4, 1.5, [], {}, [Moment(0.1, "step", 2, NOBODY, NEVER)]),
    WindowReport(
        True, 0, 1.5, [], {}, [], [NodeNumbers(2, math.nan, -math.inf, 4.0, 10, "ab", age=0.5)],
        [Heard(2, 0, 0.5)], [Refused("not finite", 3)], [OfClass(2, "Coat", 0.5)],
        {"sum": np.arange(2)}, 0.1,
    ),
]  # fmt: skip


def told(message: Any) -> str:
    """Everything of it: NaN is not equal to itself."""
    return repr([getattr(message, field.name) for field in fields(message)])


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_is_the_same_after_the_journey(message: Any) -> None:
    """As Flower's own records, and over the mail router."""
    content = records_of(message)
    for records in (content, content_of(*parts_of(content))):
        assert told(message_of(type(message), records)) == told(message)


def changed(message: Any, record: str, **values: Any) -> RecordDict:
    content: Any = records_of(message)
    content[record].update(values)
    return content


ORDER, REPORT = MESSAGES[-3], MESSAGES[-1]
FAULTS: dict[str, tuple[Any, RecordDict, str]] = {
    "not there": (Met, RecordDict(), "no Met: here: it is not there"),
    "a text": (Met, changed(Met(1), "config", here="1"), "no Met: here: str, not int"),
    "a truth": (Met, changed(Met(1), "config", here=True), "no Met: here: bool, not int"),
    "a list": (Met, changed(Met(1), "config", here=[1]), "no Met: here: list, not int"),
    "no list": (
        EngineOrder, changed(EngineOrder([1]), "config", nodes=1),
        "no EngineOrder: nodes: int, not list",
    ),
    "another list": (
        EngineOrder, changed(EngineOrder([1]), "config", nodes=[1.5]),
        "no EngineOrder: nodes: float, not int",
    ),
    "no bytes": (
        UnmaskReply, changed(UnmaskReply([ShownShare(2, 0, b"")], []), "shares", share=["0x"]),
        "no UnmaskReply: shares: non-hexadecimal number",
    ),
    "columns": (
        WindowOrder, changed(ORDER, "mail", seq=[1, 2]),
        "no WindowOrder: mail: its columns differ in length",
    ),
    "no vectors": (
        WindowOrder, RecordDict({**records_of(ORDER), "vectors": MetricRecord({"x": 1.0})}),
        "no WindowOrder: vectors: AttributeError: ",
    ),
    "no arrays": (
        WindowReport,
        RecordDict(
            {
                **records_of(REPORT),
                "total": ArrayRecord({"sum": Array("int64", (2,), "numpy.ndarray", b"none")}),
            }
        ),
        "no WindowReport: total: ",
    ),
    "no facts": (
        Prepared,
        RecordDict({**records_of(MESSAGES[4]), "condition": ConfigRecord({"cores": [1, 2]})}),
        "no Prepared: condition: cores is list",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_what_is_none_is_refused_by_name(what: str) -> None:
    kind, content, reason = FAULTS[what]
    with pytest.raises(ValueError, match=r"^no ") as found:
        message_of(kind, content)
    assert str(found.value).startswith(reason)


def test_what_cannot_travel_is_no_message() -> None:
    with pytest.raises(TypeError):
        records_of(MESSAGES)


def test_a_job_is_read_without_the_others() -> None:
    reply = TrainReply()
    reply.add((1, 0), examples=5, loss=0.5, seconds=1.5, vectors={"weights": VECTOR})
    reply.errors[2, 7] = "no memory"
    content = reply.records()
    first, second = (JobReply(content, job) for job in ((1, 0), (2, 7)))
    assert (first.error, second.error) == (None, "no memory")
    assert [first.number(n) for n in ("examples", "loss", "seconds")] == [5, 0.5, 1.5]
    assert first.vector("weights").tolist() == [0.0, 1.0, 2.0]
    assert (first.has("weights"), first.has("codes"), second.has("weights")) == (True, False, False)
    assert second.number("loss") is None
    [order] = (message for message in MESSAGES if isinstance(message, TrainOrder))
    assert jobs_of(records_of(order)) == [(1, 0), (2, 7)]
