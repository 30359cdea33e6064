"""A window of the consensus system: what a host is told of it, and what it reports."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

OFF = -math.inf  # metric and loss of a node that is not there
NOBODY, NEVER = -1, math.nan  # in place of a peer, and of a time


class MailHead(NamedTuple):
    """Of a mail: its vectors are the arrays "K/NAME", where K is its place in the list of heads."""

    sender: int
    receiver: int
    seq: int
    sent: float


class Moment(NamedTuple):
    """What happened at t to a node, or between it and a peer (or NOBODY). sent: when the mail that
    it is about was sent, or NEVER."""

    t: float
    what: str
    node: int
    peer: int
    sent: float


class NodeNumbers(NamedTuple):
    """What a host tells of a node. metric (the task's main one), loss: OFF if it is not there, NaN
    if it is not finite. norm: |w|^2. digest: SHA-256 of its weights. The others are its `Tally`."""

    node: int
    metric: float = OFF
    loss: float = OFF
    norm: float = 0.0
    examples: int = 0
    digest: str = ""
    steps: int = 0
    messages: int = 0
    bytes: int = 0
    lost: int = 0
    duplicates: int = 0
    used: int = 0
    age: float = 0.0


class Heard(NamedTuple):
    """When the last mail of `peer` came to `node`."""

    node: int
    peer: int
    t: float


class Refused(NamedTuple):
    """How many mails were none, by the reason."""

    reason: str
    count: int


class OfClass(NamedTuple):
    """The main metric of a node on the examples of a class."""

    node: int
    name: str
    metric: float


@dataclass(frozen=True)
class RunOrder:
    """What every host is told in every window.

    topology: content of its file. directory: of the run. states: where a device keeps its nodes;
    it may have those of an earlier run of that name. slice: moments until then are told.
    broker: the access to it, of sockets. carrier: "" of a single host. names: of the participants'
    devices. engine: of the gradients.
    """

    topology: str
    directory: str
    states: str
    slice: float
    broker: str = ""
    carrier: str = ""
    names: list[str] = field(default_factory=list)
    engine: str = ""


@dataclass(frozen=True)
class WindowTerms:
    """What every host is told of one window.

    rate: eta. settling: how many rounds of it the window is; 0 in the training. durable: make sure
    that the states outlive a power cut. kept: the window from which a resumed run would go on.
    examples: of every participant, 0 where that is not known. started: what the run's clock shows.
    """

    window: int
    rate: float
    settling: int
    durable: bool
    kept: int
    examples: list[int]
    started: float


@dataclass(frozen=True)
class WindowOrder(RunOrder, WindowTerms):
    """Run `nodes` to the end of a window.

    host: its number. stops: how often it has parked its nodes in this window. collected: the last
    mail of a broker that the nodes' states contain. mail, vectors: what has come for the nodes.
    """

    nodes: list[int] = field(default_factory=list)
    host: int = 0
    stops: int = 0
    collected: int = 0
    mail: list[MailHead] = field(default_factory=list)
    vectors: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class WindowReport:
    """What a host has done.

    done: whether that is the whole window; if not, it has parked its nodes, as mail that they
    cannot do without has not come. collected: as in the order. mail, vectors: what the nodes send.
    trace: what has happened since the last report. seconds: that all took, but for the evaluation.

    Of a window that is done also: nodes, as ordered; heard; refused; classes, where the task has
    some; total: the array "sum", int64, see `fixed_point`, of length 0 without a diagnosis.
    """

    done: bool
    collected: int
    seconds: float
    mail: list[MailHead]
    vectors: dict[str, np.ndarray]
    trace: list[Moment]
    nodes: list[NodeNumbers] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    classes: list[OfClass] = field(default_factory=list)
    total: dict[str, np.ndarray] = field(default_factory=dict)
    seconds_evaluation: float = 0.0
