"""The schedule of a decentralised run: who steps, who sends, what arrives, and when.

Every node's timeline of every window follows from (seed, window, conditions) alone: no function
here has a state, so any host can work out the timelines of its own nodes, in any order, and a
resumed run those of its remaining windows. Times are seconds of the *virtual clock*; window w = 1,
2, ... is the interval ((w - 1) W, w W] of W seconds.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from strategies.consensus.topology import Edge, Topology, edge_between
from strategies.randomness import rng

# Guards the count of whole steps in an interval against the last bit of a float division.
_TOLERANCE = 1e-9
# A mail's number: its window in the upper bits, so that numbers grow although nobody counts.
_WINDOW_BITS = 32


class Kind(IntEnum):
    """What happens to a node. At one moment things happen in this order: whoever sends has
    stepped, and what arrives at once was formed before anything was received."""

    STEP = 0  # seq: the number of the step, from 0, which names its minibatch
    DOWN = 1  # the node is off from now on
    UP = 2  # it is back with all it had
    RESTART = 3  # it is back, or new, and has only the initial model
    INVITE = 4  # send the model itself to `peer`, which has just come
    ADOPT = 5  # take over the model of `peer`
    DISCONNECT = 6  # `peer` has said goodbye
    CONNECT = 7  # `peer` has said hello
    SEND = 8
    LOST = 9  # a SEND that nobody will receive
    RECEIVE = 10
    DUPLICATE = 11  # the second arrival of what was received before
    MIX = 12  # seq: the synchronous round that ends


class Event(NamedTuple):
    """One thing that happens to a node at `t`, by itself or with neighbour `peer`. `seq` numbers
    the mails of a directed edge, and `sent` is when a mail that arrives was sent."""

    t: float
    kind: Kind
    peer: int = -1
    seq: int = 0
    sent: float = math.nan


@dataclass(frozen=True)
class Conditions:
    """What the world does to nodes and links on the virtual clock.

    step_seconds: a local step on a device of speed 1.
    speed_spread: sigma of the log-normal factor by which a node's steps take longer.
    delay_seconds: a mail travels for a time uniform in [0, delay_seconds], so mails overtake.
    loss, duplication: a mail's chances to be lost, and to arrive a second time.
    one_way: an exchange is a push by one of the two, drawn at random, instead of a swap.
    """

    step_seconds: float = 1.0
    speed_spread: float = 0.0
    delay_seconds: float = 0.0
    loss: float = 0.0
    duplication: float = 0.0
    one_way: bool = False


@dataclass(frozen=True)
class Outage:
    """Something is missing in (start, end].

    kind "pause": a node, which keeps all it has. "crash": a node, which comes back with nothing.
    "leave": the same, but it says goodbye to its neighbours, and hello when it is back. "join":
    a "leave" from before the start. "cut": the link between `node` and `peer`.
    """

    kind: str
    node: int
    start: float
    end: float
    peer: int = -1

    def covers(self, t: float) -> bool:
        return self.start < t <= self.end


OUTAGES = ("crash", "cut", "join", "leave", "pause")


def parse_outages(text: str, topology: Topology) -> tuple[Outage, ...]:
    """Read "crash:3@200-400, cut:0-1@100-300, leave:5@500, join:7@300": kind, whom, from when and,
    where it ends, until when, in seconds. Of "join" the number is when the node comes.

    Raises ValueError for what cannot be read, for nodes and links that are not there, and for a
    node that goes while it is off.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    outages = tuple(_parse_outage(part, topology) for part in parts)
    absences = sorted((o.node, o.start, o.end) for o in outages if o.kind != "cut")
    for (node, _, end), (other, start, _) in pairwise(absences):
        if node == other and start <= end:
            raise ValueError(f"node {node} goes at {start:g} s, but is off until {end:g} s already")
    return outages


def _parse_outage(part: str, topology: Topology) -> Outage:
    form = f"{part!r} must look like crash:3@200-400, cut:0-1@100-300, leave:5@500 or join:7@300"
    try:
        kind, rest = part.split(":")
        whom, when = rest.split("@")
        nodes = [int(number) for number in whom.split("-")]
        start, _, end = when.partition("-")
        first, last = float(start), float(end) if end else math.inf
    except ValueError:
        raise ValueError(form) from None
    if kind not in OUTAGES:
        raise ValueError(f"{part!r}: {kind!r} is unknown; choose one of: {', '.join(OUTAGES)}")
    if len(nodes) != (2 if kind == "cut" else 1) or (kind == "join" and end):
        raise ValueError(form)
    if not 0 <= first < last:
        raise ValueError(f"{part!r}: it must end after it has begun")
    if kind == "cut" and tuple(sorted(nodes)) not in topology.edges:
        raise ValueError(f"{part!r}: {topology.name} has no link {nodes[0]}-{nodes[1]}")
    if not all(0 <= node < topology.size for node in nodes):
        raise ValueError(f"{part!r}: the nodes are 0 to {topology.size - 1}")
    if kind == "join":
        return Outage("join", nodes[0], -1.0, first)
    return Outage(kind, nodes[0], first, last, *nodes[1:])


class _Mail(NamedTuple):
    """One mail of an exchange as the schedule knows it: `again` is its second arrival, or inf."""

    sender: int
    receiver: int
    seq: int
    sent: float
    arrives: float
    again: float
    lost: bool


class Timetable:
    """The timelines of all nodes.

    interval: K, the mean number of local steps (of a node of speed 1) between two exchanges on one
    edge. synchronous=False: every edge is a Poisson clock of rate 1 / (K step_seconds), independent
    of all others. synchronous=True: all edges of a round exchange after every K steps, when the
    slowest node has done them, and everybody waits for everything that arrives.
    window_steps: the length of a window in steps; in synchronous rounds a multiple of K.

    Raises ValueError when interval and window_steps do not fit.
    """

    def __init__(
        self,
        topology: Topology,
        conditions: Conditions,
        *,
        interval: float,
        window_steps: int,
        seed: int,
        synchronous: bool = False,
        outages: Sequence[Outage] = (),
    ) -> None:
        if not interval >= 1:
            raise ValueError(f"interval={interval} must be at least 1 local step")
        if synchronous and (interval % 1 or window_steps % interval):
            whole = round(interval)
            raise ValueError(
                f"in synchronous rounds the interval is a whole number and divides the steps of a "
                f"window, but interval={interval:g} and window={window_steps}; take e.g. "
                f"interval={whole} and window={math.ceil(window_steps / whole) * whole}"
            )
        if not (synchronous or topology.static):
            raise ValueError(
                f"{topology.name} is a sequence of graphs, one a round: it needs synchronous rounds"
            )
        self.topology, self.conditions, self.seed = topology, conditions, seed
        self.interval, self._window_steps = interval, window_steps
        self._synchronous, self.outages = synchronous, tuple(outages)
        spread = rng(seed, "speeds").standard_normal(topology.size)
        self._step = conditions.step_seconds * np.exp(conditions.speed_spread * spread)
        # Of synchronous rounds: each lasts until the slowest has stepped and all mail has come.
        self._round_seconds = interval * float(self._step.max()) + conditions.delay_seconds
        self._rounds = window_steps // int(interval) if synchronous else 0  # in a window
        # The two ends of an edge ask for its mails one after the other, and later windows again.
        self._mails = lru_cache(maxsize=4 * len(topology.edges) + 4)(self._make_mails)

    @property
    def window_seconds(self) -> float:
        if self._synchronous:
            return self._rounds * self._round_seconds
        return self._window_steps * self.conditions.step_seconds

    def border(self, window: int) -> float:
        """When `window` ends and the next one begins."""
        return window * self.window_seconds

    def timeline(self, node: int, window: int) -> list[Event]:
        """What happens to `node` in `window`, in order. Mail that arrives later than that is in
        the timeline of a later window; see `in_flight`."""
        begin, end = self.border(window - 1), self.border(window)
        events = list(self._steps(node, window, begin, end))
        for round_ in self._rounds_of(window):
            events.append(Event(self._round_end(round_), Kind.MIX, seq=round_))
        for mail in self._mails_of(node, window):
            if mail.sender == node and begin < mail.sent <= end:
                kind = Kind.LOST if mail.lost else Kind.SEND
                events.append(Event(mail.sent, kind, mail.receiver, mail.seq))
            if mail.receiver == node and not mail.lost:
                for t, kind in ((mail.arrives, Kind.RECEIVE), (mail.again, Kind.DUPLICATE)):
                    if begin < t <= end:
                        events.append(Event(t, kind, mail.sender, mail.seq, mail.sent))
        if self.outages:
            events = [e for e in events if self.present(node, e.t)]
            # The first window has what was so from the start, too.
            after = -math.inf if window == 1 else begin
            events += [e for e in self._changes(node) if after < e.t <= end]
        return sorted(events)

    def in_flight(self, node: int, window: int) -> list[tuple[int, int]]:
        """(sender, seq) of the mails to `node` that are under way when `window` ends."""
        end = self.border(window)
        return [
            (mail.sender, mail.seq)
            for mail in self._mails_of(node, window)
            if mail.receiver == node and not mail.lost and mail.sent <= end < mail.arrives
        ]

    def present(self, node: int, t: float) -> bool:
        """Whether `node` is on at time t."""
        return not any(o.node == node and o.kind != "cut" and o.covers(t) for o in self.outages)

    def lone(self, window: int) -> list[Event]:
        """The timeline of somebody who exchanges with nobody: the window's steps, at speed 1."""
        begin = (window - 1) * self.window_seconds
        seconds = self.window_seconds / self._window_steps
        return [
            Event(begin + (k + 1) * seconds, Kind.STEP, seq=(window - 1) * self._window_steps + k)
            for k in range(self._window_steps)
        ]

    # -- steps --------------------------------------------------------------------------------

    def _count(self, node: int, t: float) -> int:
        return math.floor(t / self._step[node] + _TOLERANCE)

    def _steps(self, node: int, window: int, begin: float, end: float) -> Iterable[Event]:
        seconds = float(self._step[node])
        if not self._synchronous:
            for number in range(self._count(node, begin), self._count(node, end)):
                yield Event(min((number + 1) * seconds, end), Kind.STEP, seq=number)
            return
        each = int(self.interval)
        for number in range((window - 1) * self._window_steps, window * self._window_steps):
            round_, position = divmod(number, each)
            t = self._round_end(round_ - 1) + (position + 1) * seconds
            yield Event(min(t, self._swap(round_)), Kind.STEP, seq=number)

    # -- synchronous rounds -------------------------------------------------------------------

    def _rounds_of(self, window: int) -> range:
        return range((window - 1) * self._rounds, window * self._rounds)

    def _round_end(self, round_: int) -> float:
        """When `round_` ends: to the bit at the border of a window for the last one in it."""
        windows, rounds = divmod(round_ + 1, self._rounds)
        return self.border(windows) + rounds * self._round_seconds

    def _swap(self, round_: int) -> float:
        """When everybody sends: after the last step, and before all has come."""
        return self._round_end(round_) - self.conditions.delay_seconds

    # -- mail ---------------------------------------------------------------------------------

    def _mails_of(self, node: int, window: int) -> Iterator[_Mail]:
        """Mails from and to `node` of this window, and of those before that may still travel."""
        back = 0
        if not self._synchronous:
            back = math.ceil(self.conditions.delay_seconds / self.window_seconds)
        for neighbour in self.topology.neighbours[node]:
            edge = edge_between(node, neighbour)
            for earlier in range(max(1, window - back), window + 1):
                yield from self._mails(edge, earlier)

    def _make_mails(self, edge: Edge, window: int) -> tuple[_Mail, ...]:
        """All mails that are sent over `edge` in `window`."""
        generator = rng(self.seed, "edge", *edge, window)
        times = self._exchanges(edge, window, generator)
        # Drawn for all in one shape, so that no condition changes what another one draws.
        fate = generator.random((len(times), 2, 4))
        pusher = generator.integers(2, size=len(times))
        c, mails = self.conditions, []
        for number, (sent, latest) in enumerate(times):
            for side in (0, 1):
                if c.one_way and side != pusher[number]:
                    continue
                lost, delay, twice, later = fate[number, side]
                sender, receiver = edge[side], edge[1 - side]
                arrives = min(sent + c.delay_seconds * float(delay), latest)
                again = min(sent + c.delay_seconds * float(later), latest)
                if twice >= c.duplication:
                    again = math.inf
                elif again < arrives:
                    arrives, again = again, arrives
                if self.outages:
                    if not self.present(sender, sent):
                        continue
                    gone = self._cut(edge, sent) or not self.present(receiver, arrives)
                    # What comes after its sender's goodbye is not used: it is no hello.
                    gone = gone or self._left(sender, sent, arrives)
                    again = math.inf if self._left(sender, sent, again) else again
                else:
                    gone = False
                seq = (window << _WINDOW_BITS) + number
                mails.append(
                    _Mail(sender, receiver, seq, sent, arrives, again, bool(lost < c.loss) or gone)
                )
        return tuple(mails)

    def _exchanges(
        self, edge: Edge, window: int, generator: np.random.Generator
    ) -> list[tuple[float, float]]:
        """When `edge` exchanges in `window`, and when what is sent then has come at the latest."""
        if self._synchronous:
            active = (r for r in self._rounds_of(window) if self.topology.weight(r, *edge))
            return [(self._swap(r), self._round_end(r)) for r in active]
        seconds = self.window_seconds
        count = int(generator.poisson(self._window_steps / self.interval))
        times = np.sort(window * seconds - seconds * generator.random(count))
        return [(float(t), math.inf) for t in times]

    def _cut(self, edge: Edge, t: float) -> bool:
        return any(
            o.kind == "cut" and {o.node, o.peer} == set(edge) and o.covers(t) for o in self.outages
        )

    def _left(self, node: int, after: float, until: float) -> bool:
        """Whether `node` has said goodbye in [after, until)."""
        return any(
            o.kind == "leave" and o.node == node and after <= o.start < until for o in self.outages
        )

    # -- coming and going -----------------------------------------------------------------------

    def _changes(self, node: int) -> Iterator[Event]:
        """What outages do to `node`, at all times."""
        for number, outage in enumerate(self.outages):
            announced = outage.kind in ("join", "leave")
            if outage.kind == "cut":
                continue
            if outage.node == node:
                yield Event(outage.start, Kind.DOWN)
                if outage.kind == "pause":
                    yield Event(outage.end, Kind.UP)
                    continue
                yield Event(outage.end, Kind.RESTART)
                host = self._inviter(outage)
                if host is not None:
                    yield Event(outage.end, Kind.ADOPT, host, -1 - number, outage.end)
                for peer in self.topology.neighbours[node]:
                    if not self.present(peer, outage.end):
                        yield Event(outage.end, Kind.DISCONNECT, peer)
            elif outage.node in self.topology.neighbours[node]:
                if announced and self.present(node, outage.start):
                    yield Event(outage.start, Kind.DISCONNECT, outage.node)
                if announced and self.present(node, outage.end):
                    yield Event(outage.end, Kind.CONNECT, outage.node)
                if self._inviter(outage) == node:
                    yield Event(outage.end, Kind.INVITE, outage.node, -1 - number)

    def _inviter(self, outage: Outage) -> int | None:
        """The neighbour whose model a node takes over that has come (back) with nothing."""
        if outage.kind == "pause" or math.isinf(outage.end):
            return None
        for peer in self.topology.neighbours[outage.node]:
            edge = edge_between(peer, outage.node)
            # Just after the end, because a peer may come at the same moment with nothing itself.
            if self.present(peer, outage.end) and not self._cut(edge, outage.end):
                return peer
        return None
