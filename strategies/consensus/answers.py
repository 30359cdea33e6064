"""What a host answers to an order, and that it is one: a device may send anything.

What is counted, averaged or drawn on the server comes through here, so that no answer, whatever is
in it, can do more than fail its own host.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Message

from strategies.carriers.grid import from_arrays
from strategies.consensus.host import HAPPENINGS
from strategies.consensus.participant import Mail, Tally

# By name, the metrics of every node ("accuracy" is the main one of the task, whatever that is): the
# least, the greatest, and the type where it is not float.
_MOST = 2.0**53
OFF = -math.inf  # accuracy and loss of a node that is not there
METRICS: Mapping[str, tuple[float, float, type]] = {
    "accuracy": (-math.inf, math.inf, float),
    "loss": (-math.inf, math.inf, float),
    "norm": (0.0, math.inf, float),
    **{
        f"tally.{name}": (-_MOST if name == "age" else 0, _MOST, type(value))
        for name, value in vars(Tally()).items()
    },
}
_OF_MODELS = ("accuracy", "loss", "norm")  # they may be NaN: a node may have diverged
_MOST_EVENTS = 10_000  # of a window's trace
_MOST_REASONS = 50
_MOST_IMAGES = 1 << 31
_MOST_CLASSES = 10_000


@dataclass
class Answer:
    """What a host says of a window: numbers per node, in the order of `nodes`."""

    window: int
    nodes: list[int]
    metrics: dict[str, Any]
    described: dict[str, Any]
    total: np.ndarray

    def of(self, name: str) -> dict[int, Any]:
        """By node, the number that is called `name`."""
        return dict(zip(self.nodes, self.metrics[name], strict=True))


@dataclass
class Reply:
    """What a host replies. done: whether that is the end of the window; then metrics, described and
    total are what the `Answer` has. collected: the last mail of a broker that it has. trace: what
    has happened since the last reply."""

    done: bool
    collected: int
    mails: list[Mail]
    trace: list[list[Any]]
    metrics: dict[str, Any] = field(default_factory=dict)
    described: dict[str, Any] = field(default_factory=dict)
    total: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


def read_reply(message: Message, nodes: Sequence[int], everybody: int, parameters: int) -> Reply:
    """What the host of `nodes` replies. everybody: how many nodes there are. parameters: of their
    models.

    Raises ValueError for what is no reply; mail is still to be compared with what it should be.
    """
    try:
        return _read(message, nodes, everybody, parameters)
    except ValueError:
        raise
    except Exception as error:  # whatever a device sends, the server goes on
        raise ValueError(f"no reply to an order: {type(error).__name__}: {error}") from error


def _read(message: Message, nodes: Sequence[int], everybody: int, parameters: int) -> Reply:
    content: Any = message.content
    config, arrays, metrics = content["config"], content["arrays"], content["metrics"]
    # Flower's own arrays are bytes until here, which may be none that NumPy can read.
    vectors = {name: array.numpy() for name, array in arrays.items()}
    total = vectors.pop("sum", np.zeros(0, np.int64))
    reply = Reply(
        done=_of(bool, "done", config["done"]),
        collected=_of(int, "collected", config["collected"]),
        mails=from_arrays([_of(str, "mail", text) for text in config["mail"]], vectors),
        trace=[_moment(entry, nodes, everybody) for entry in _parsed(config, "trace", list)],
    )
    if len(reply.trace) > _MOST_EVENTS:
        raise ValueError(f"a trace of {len(reply.trace)} events, at most {_MOST_EVENTS} are read")
    if not reply.done:
        return reply
    seconds = ("seconds", "seconds-evaluation")
    reply.metrics = {name: _number(name, metrics[name], 0.0, _MOST) for name in seconds}
    for name, (low, high, kind) in METRICS.items():
        reply.metrics[name] = _per_node(
            name,
            metrics[name],
            nodes,
            lambda v, n=name, b=(low, high), k=kind: _number(n, v, *b, k),
        )
    reply.described = {
        "digests": _per_node("digests", config["digests"], nodes, _digest),
        "examples": _per_node("examples", config["examples"], nodes, _images),
        "refused": _refused(_parsed(config, "refused", dict)),
        "heard": _heard(_parsed(config, "heard", dict), nodes, everybody),
        "classes": _classes(_parsed(config, "classes", dict), nodes),
    }
    if total.dtype != np.int64 or total.shape not in ((0,), (parameters,)):
        raise ValueError(f"sum is {total.dtype} of shape {total.shape}, not int64 ({parameters},)")
    reply.total = total
    return reply


def _of(kind: type, name: str, value: Any) -> Any:
    if type(value) is not kind:  # isinstance would let True pass for 1
        raise ValueError(f"{name} is {type(value).__name__}, not {kind.__name__}")
    return value


def _parsed(config: Mapping[str, Any], name: str, kind: type) -> Any:
    return _of(kind, name, json.loads(_of(str, name, config[name])))


def _number(name: str, value: Any, low: float, high: float, kind: type = float) -> Any:
    """`value`, if it is a number from `low` to `high`; of models, also NaN."""
    number = float(value) if kind is float and type(value) is int else _of(kind, name, value)
    if low <= number <= high or (name in _OF_MODELS and math.isnan(number)):
        return number
    raise ValueError(f"{name}={number:.6g} is not from {low:g} to {high:g}")


def _per_node(
    name: str, values: Any, nodes: Sequence[int], read: Callable[[Any], Any]
) -> list[Any]:
    if len(values) != len(nodes):
        raise ValueError(f"{name} has {len(values)} values for {len(nodes)} nodes")
    return [read(value) for value in values]


def _node(value: Any, known: Sequence[int] | range) -> int:
    if _of(int, "a node", value) not in known:
        raise ValueError(f"node {value} is none that it could tell of")
    return value


def _moment(entry: Any, nodes: Sequence[int], everybody: int) -> list[Any]:
    """An event of a trace, [t, what, node, peer or None, when its mail was sent or None]."""
    t, what, node, peer, sent = _of(list, "an event", entry)
    if what not in HAPPENINGS:
        raise ValueError(f"nothing is called {what!r:.40} that could happen")
    if peer is not None:
        _node(peer, range(everybody))
    moments = [None if at is None else _number("a moment", at, -_MOST, _MOST) for at in (t, sent)]
    if moments[0] is None:
        raise ValueError("an event of no time")
    return [moments[0], what, _node(node, nodes), peer, moments[1]]


def _heard(told: Mapping[str, Any], nodes: Sequence[int], everybody: int) -> dict[int, Any]:
    """{node: {neighbour: when its last mail came}}"""
    return {
        _node(int(node), nodes): {
            _node(int(peer), range(everybody)): _number("heard", t, -_MOST, _MOST)
            for peer, t in _of(dict, "heard", times).items()
        }
        for node, times in told.items()
    }


def _classes(told: Mapping[str, Any], nodes: Sequence[int]) -> dict[int, dict[str, float]]:
    """{node: {class: its metric}}"""
    found = {_node(int(node), nodes): _of(dict, "classes", each) for node, each in told.items()}
    if any(len(each) > _MOST_CLASSES for each in found.values()):
        raise ValueError(f"at most {_MOST_CLASSES} classes are read")
    return {
        node: {name: _number("a class", v, -math.inf, math.inf) for name, v in each.items()}
        for node, each in found.items()
    }


def _refused(told: Mapping[str, Any]) -> dict[str, int]:
    """{why: how many mails}"""
    if len(told) > _MOST_REASONS:
        raise ValueError(f"{len(told)} reasons to refuse mail, at most {_MOST_REASONS} are read")
    return {why[:40]: _number("refused", count, 0, _MOST, int) for why, count in told.items()}


def _digest(value: Any) -> str:
    if len(_of(str, "a digest", value)) != 64 or not set(value) <= set("0123456789abcdef"):
        raise ValueError("a digest that is no SHA-256")
    return value


def _images(value: Any) -> int:
    return _number("examples", value, 0, _MOST_IMAGES, int)
