"""What a host answers to an order, and that it is one: a device may send anything.

What is counted, averaged or drawn on the server comes through here, so that no answer, whatever is
in it, can do more than fail its own host.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import Message

from strategies.consensus.host import HAPPENINGS
from strategies.messages.codec import message_of
from strategies.messages.windows import NOBODY, Moment, NodeNumbers, WindowReport

_MOST = 2.0**53
# The least and the greatest of what is told of a node.
_LIMITS: Mapping[str, tuple[float, float]] = {
    "metric": (-math.inf, math.inf),
    "loss": (-math.inf, math.inf),
    "norm": (0, math.inf),
    "examples": (0, 1 << 31),
    "age": (-_MOST, _MOST),
    **dict.fromkeys(("steps", "messages", "bytes", "lost", "duplicates", "used"), (0, _MOST)),
}
_OF_MODELS = ("metric", "loss", "norm")  # they may be NaN: a node may have diverged
_MOST_EVENTS = 10_000  # of a node in a window's trace
_MOST_REASONS, _LONGEST_REASON = 50, 40
_MOST_CLASSES = 10_000
_NOT_DIAGNOSED = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Answer:
    """What a host reports of a window that is done. trace: of all of it, parked or not."""

    window: int
    report: WindowReport
    trace: Sequence[Moment]

    @property
    def total(self) -> np.ndarray:
        """The sum over its nodes' weights; of length 0 without a diagnosis."""
        return self.report.total.get("sum", _NOT_DIAGNOSED)


def read_report(
    message: Message, nodes: Sequence[int], everybody: int, parameters: int
) -> WindowReport:
    """What the host of `nodes` reports. everybody: how many nodes there are. parameters: of their
    models.

    Raises ValueError for what is no report; mail is still to be compared with what it should be.
    """
    report = message_of(WindowReport, message.content)
    if len(report.trace) > (most := _MOST_EVENTS * len(nodes)):
        raise ValueError(f"a trace of {len(report.trace)} events, at most {most} are read")
    for moment in report.trace:
        _check_moment(moment, nodes, everybody)
    if not report.done:
        return report
    _check_number("seconds", report.seconds, 0, _MOST)
    _check_number("seconds_evaluation", report.seconds_evaluation, 0, _MOST)
    if [numbers.node for numbers in report.nodes] != list(nodes):
        raise ValueError(
            f"numbers of {len(report.nodes)} nodes that are not the {len(nodes)} asked"
        )
    for numbers in report.nodes:
        _check_numbers(numbers)
    for heard in report.heard:
        _check_node(heard.node, nodes)
        _check_node(heard.peer, range(everybody))
        _check_number("heard", heard.t, -_MOST, _MOST)
    if len(report.classes) > _MOST_CLASSES * len(nodes):
        raise ValueError(f"at most {_MOST_CLASSES} classes of a node are read")
    for each in report.classes:
        _check_node(each.node, nodes)
        _check_number("a class", each.metric, -math.inf, math.inf)
    _check_total(report.total, parameters)
    if len(report.refused) > _MOST_REASONS:
        raise ValueError(f"{len(report.refused)} reasons to refuse mail, more than {_MOST_REASONS}")
    for refused in report.refused:
        _check_number("refused", refused.count, 0, _MOST)
    short = [
        refused._replace(reason=refused.reason[:_LONGEST_REASON]) for refused in report.refused
    ]
    return replace(report, refused=short)


def _check_number(name: str, value: float, low: float, high: float) -> None:
    """`value` is from `low` to `high`; of models, also NaN."""
    if not (low <= value <= high or (name in _OF_MODELS and math.isnan(value))):
        raise ValueError(f"{name}={value:.6g} is not from {low:g} to {high:g}")


def _check_node(node: int, known: Sequence[int] | range) -> None:
    if node not in known:
        raise ValueError(f"node {node} is none that it could tell of")


def _check_moment(moment: Moment, nodes: Sequence[int], everybody: int) -> None:
    if moment.what not in HAPPENINGS:
        raise ValueError(f"nothing is called {moment.what!r:.40} that could happen")
    _check_node(moment.node, nodes)
    if moment.peer != NOBODY:
        _check_node(moment.peer, range(everybody))
    _check_number("a moment", moment.t, -_MOST, _MOST)
    if not math.isnan(moment.sent):
        _check_number("a moment", moment.sent, -_MOST, _MOST)


def _check_numbers(numbers: NodeNumbers) -> None:
    for name, (low, high) in _LIMITS.items():
        _check_number(name, getattr(numbers, name), low, high)
    if len(numbers.digest) != 64 or not set(numbers.digest) <= set("0123456789abcdef"):
        raise ValueError("a digest that is no SHA-256")


def _check_total(total: Mapping[str, np.ndarray], parameters: int) -> None:
    found = total.get("sum", _NOT_DIAGNOSED)
    if (
        total.keys() - {"sum"}
        or found.dtype != np.int64
        or found.shape not in ((0,), (parameters,))
    ):
        told = ", ".join(f"{n[:40]!r} {a.dtype} {a.shape}" for n, a in list(total.items())[:3])
        raise ValueError(f"total is {told}, not 'sum' int64 ({parameters},)")
