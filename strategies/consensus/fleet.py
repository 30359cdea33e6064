"""The hosts of a consensus run: who hosts whom, how mail travels, and messages to and fro."""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeVar

import torch
from flwr.app import Message
from flwr.serverapp import Grid

from strategies.carriers.broker import Broker, Packet
from strategies.carriers.checks import mail_fault
from strategies.carriers.grid import from_arrays, to_arrays
from strategies.carriers.sockets import SocketBroker
from strategies.carriers.zenoh import check_router_takes
from strategies.checks import last_line
from strategies.consensus.answers import Answer, read_report
from strategies.consensus.participant import Mail
from strategies.consensus.settings import NodesRun
from strategies.consensus.topology import Topology
from strategies.dispatch import Dispatcher
from strategies.errors import EdgeFlError
from strategies.link.sessions import SessionGrid
from strategies.messages.codec import message_of, records_of
from strategies.messages.queries import EngineOrder, FastestEngine, MeetOrder, Met
from strategies.messages.windows import Moment, RunOrder, WindowOrder, WindowTerms
from strategies.roster import SuperNode

T = TypeVar("T")

_MEET_SECONDS = 3.0
# A host whose window failed is asked again so often in a row before the run gives up.
_ATTEMPTS = 3
# On the virtual clock a window may take so many times the seconds of the longest one before it;
# what takes longer is stuck.
_PATIENCE_WINDOWS = 50
_SLOWEST_IMAGE_SECONDS = 0.25  # of a training image, where no window has ended yet
_LONGEST_PAUSE = 60.0  # seconds until a device that keeps failing is asked again


@dataclass
class _HostState:
    """A host with its nodes, and what it is doing.

    stops: how often it has parked its nodes in this window. mail: what its nodes' states do not
    contain yet, and collected: the number of the last one that they do, with the sockets' carrier.
    failures: in a row. not_before: when it may be asked again. out: nobody waits for it now.
    began: when it was given its window, on the monotonic clock.
    """

    host: SuperNode
    number: int
    nodes: list[int]
    window: int
    stops: int = 0
    failures: int = 0
    not_before: float = 0.0
    out: bool = False
    began: float = 0.0
    mail: list[Mail] = field(default_factory=list)
    collected: int = 0
    trace: list[Moment] = field(default_factory=list)  # of the window, up to where it is parked


def spread(nodes: Sequence[int], hosts: int) -> list[list[int]]:
    """`nodes` in `hosts` runs of nearly equal length: in most topologies nodes of near numbers are
    neighbours, whose mail then stays on one host."""
    cut = [round(k * len(nodes) / hosts) for k in range(hosts + 1)]
    return [list(nodes[a:b]) for a, b in pairwise(cut)]


class Fleet:
    """Sends windows to hosts and collects what they answer.

    In the virtual clock all hosts work on one window at a time, in the real clock each goes on as
    soon as it is done, unless it is far ahead of most others. Devices may come and go then: a
    window is over without those that are not there, and who comes back goes on with the window of
    the others.

    first: the first window that is still to be done. resources: closes what is opened here.
    engine: what a resumed run has recorded of its engine, {} for one that begins.
    lengths: the vectors that a mail must have, by name, which is checked of all that passes through
    the fleet. parameters: of a model.
    """

    def __init__(
        self,
        nodes: NodesRun,
        topology: Topology,
        grid: Grid,
        hosts: Sequence[SuperNode],
        *,
        first: int,
        order: RunOrder,
        resources: contextlib.ExitStack,
        engine: Mapping[str, Any],
        lengths: Callable[[Mail], dict[str, tuple[int, torch.dtype]]],
        parameters: int,
    ) -> None:
        self._nodes, self._dispatcher = nodes, Dispatcher(grid)
        self._sessions = grid if isinstance(grid, SessionGrid) else None
        self._lengths, self._parameters = lengths, parameters
        everybody = list(range(nodes.participants + len(nodes.consensus.reference_list)))
        self._everybody = len(everybody)
        self.carrier = nodes.consensus.carrier
        bound = hosts[0].participant is not None
        self._live = bound and not nodes.virtual
        self._last_work = time.monotonic()
        self._longest_window = 0.0  # seconds
        if bound and len(everybody) > nodes.participants:
            raise EdgeFlError('consensus.references need all data in one place; use "" on devices')
        if bound and self.carrier == "sockets":
            raise EdgeFlError(
                "consensus.carrier='sockets' is for simulations; devices use 'auto', 'grid' or "
                "'zenoh'"
            )
        if self.carrier == "auto":
            mailed = self._sessions is not None and not nodes.virtual
            self.carrier = "zenoh" if mailed else "grid" if bound else "sockets"
        if self.carrier == "zenoh":
            check_router_takes(topology.edges, lengths, nodes.consensus.settling_rounds > 0)
        self._states: list[_HostState] = []
        hosts = hosts[: len(everybody)]
        broker: SocketBroker | None = None
        if self.carrier == "sockets" and len(hosts) > 1:
            broker = SocketBroker(topology.edges, newest=not nodes.virtual, address=_address())
            resources.enter_context(broker)
            hosts = hosts[: self._concurrent(hosts, broker.access)]
        parts = [[h.participant] for h in hosts] if bound else spread(everybody, len(hosts))
        self._states = [
            _HostState(host, number, [n for n in nodes if n is not None], first)
            for number, (host, nodes) in enumerate(zip(hosts, parts, strict=True))
        ]
        placement = {node: state.number for state in self._states for node in state.nodes}
        self._broker = Broker(frozenset(topology.edges), placement, newest=not nodes.virtual)
        self._brokers: list[Broker | SocketBroker] = [self._broker, *([broker] if broker else [])]
        if len(hosts) == 1:
            self.carrier = ""
        elif broker is not None:
            broker.place(placement)
        self._under_way: dict[str, _HostState] = {}
        self.engine = engine or self._choose_engine()
        self._order = replace(
            order,
            broker=broker.access if broker else "",
            carrier=self.carrier,
            names=[host.name for host in hosts] if bound else [],
            engine=self.engine["engine"],
        )

    @property
    def hosts(self) -> int:
        return len(self._states)

    def _concurrent(self, hosts: Sequence[SuperNode], access: str) -> int:
        """How many of the hosts work at the same time: fewer than there are if Flower gives them
        fewer processes, and then those that are left take all the nodes."""
        orders = [MeetOrder(access, n, len(hosts), _MEET_SECONDS) for n in range(len(hosts))]
        # Whoever had to wait for its turn saw those before it all the same: the first ones count.
        return min(met.here for met in self._ask(hosts, "query.meet", orders, Met))

    def _choose_engine(self) -> dict[str, Any]:
        """How all hosts compute gradients: as configured, and if that is "auto" with the engine
        that is fastest for the one with most nodes, which measures all; then with what it found."""
        if (chosen := self._nodes.consensus.engine) != "auto":
            return {"engine": chosen}
        state = max(self._states, key=lambda state: len(state.nodes))
        # Without a timetable no two nodes are due at one moment.
        if len(state.nodes) == 1 or not self._nodes.virtual:
            return {"engine": "sequential"}
        [found] = self._ask([state.host], "query.engine", [EngineOrder(state.nodes)], FastestEngine)
        return {"engine": found.engine, "engine_gain": found.gain or None}

    def _ask(
        self, hosts: Sequence[SuperNode], kind: str, orders: Sequence[Any], answer: type[T]
    ) -> list[T]:
        """What hosts answer, each with an `answer`, in the order in which they do."""
        asked = {self._send(h, kind, order): h for h, order in zip(hosts, orders, strict=True)}
        answers: list[T] = []
        while self._dispatcher.busy():
            time.sleep(0.01)
            for reply in self._dispatcher.collect():
                try:
                    if reply.has_error():
                        raise ValueError(reply.error.reason)
                    answers.append(message_of(answer, reply.content))
                except ValueError as error:
                    name = asked[reply.metadata.reply_to_message_id].name
                    raise EdgeFlError(f"{name} cannot be asked: {last_line(str(error))}") from error
        return answers

    def _send(self, host: SuperNode, kind: str, order: Any) -> str:
        message = Message(records_of(order), host.node_id, kind)
        return self._dispatcher.send(message, self._timeout())

    def _timeout(self) -> float:
        """Seconds until a host that has not answered counts as failed: alive, and stuck. What dies
        in a simulation is told as an error at once. Until a window is known to have ended, no
        device is believed to be slower than one minibatch after the other at some pace."""
        nodes = self._nodes
        if not nodes.virtual:
            return nodes.round_timeout
        most = max(len(state.nodes) for state in self._states) if self._states else self._everybody
        images = most * nodes.consensus.window * nodes.consensus.batch_size
        known = _PATIENCE_WINDOWS * self._longest_window
        return max(nodes.round_timeout, known or images * _SLOWEST_IMAGE_SECONDS)

    def dispatch(self, last: int, terms_of: Callable[[int], WindowTerms]) -> None:
        """Give work to every host that is free and may go on, up to window `last`; terms_of says
        what hosts are told of a window. EdgeFlError when no host can ever go on."""
        busy = {state.number for state in self._under_way.values()}
        behind = min(state.window for state in self._states)
        free = [s for s in self._states if s.number not in busy and s.window <= last]
        for state in self._may_begin([state for state in free if not self._is_out(state)]):
            if self.carrier == "grid":
                state.mail = self._undone(state.mail + self._take(state))
                if state.stops and not state.mail:
                    continue  # it would only find out again that it lacks mail
            if not state.stops:
                state.began = time.monotonic()
            heads, vectors = to_arrays(state.mail)
            order = WindowOrder(
                **vars(self._order),
                **vars(terms_of(state.window)),
                nodes=state.nodes,
                host=state.number,
                stops=state.stops,
                collected=state.collected,
                mail=heads,
                vectors=vectors,
            )
            self._under_way[self._send(state.host, "train.consensus", order)] = state
        # Who has failed all the time will do so again, with all others or alone.
        works = any(state.failures < _ATTEMPTS for state in self._under_way.values())
        if works or behind > last:
            self._last_work = time.monotonic()
        elif not self._live:
            raise EdgeFlError("no host can go on: each waits for mail that nobody has sent")
        elif time.monotonic() - self._last_work > self._nodes.round_timeout:
            raise EdgeFlError(
                f"no device could work for {self._nodes.round_timeout:g} s; continue the run when "
                f"they are back, with: edge-fl resume RUN"
            )

    def _may_begin(self, free: Sequence[_HostState]) -> list[_HostState]:
        """Those of the free hosts that may begin their window. On the real clock hosts go on as
        soon as they are done, but windows are the clock of the step sizes, and who settles before
        others does so alone: so a fast minority is one window ahead at most, and does not begin to
        settle before the rest; where mail rides in messages, no round of it."""
        if not free:
            return []
        if self._nodes.virtual:
            training = settling = min(state.window for state in self._states)
        else:
            training = self._pace() + 1
            slowest = min(state.window for state in self._states if not state.out)
            settling = slowest if self.carrier == "grid" else self._pace()
        rounds = self._nodes.rounds
        return [s for s in free if s.window <= (training if s.window <= rounds else settling)]

    def _pace(self) -> int:
        """The window that half of the hosts have come to, of those that are there."""
        ahead = sorted((state.window for state in self._states if not state.out), reverse=True)
        return ahead[(len(ahead) - 1) // 2]

    def _is_out(self, state: _HostState) -> bool:
        """Whether the host's device is away, or has failed and is left alone for a while."""
        if not self._live:
            return False
        away = self._sessions is not None and not self._sessions.is_here(state.host.node_id)
        state.out = away or time.monotonic() < state.not_before
        return state.out

    def complete(self, window: int) -> bool:
        """Whether everybody has done `window` who is there."""
        return all(state.window > window or state.out for state in self._states)

    def close(self, window: int) -> None:
        """`window` is over: who was away goes on with the next one."""
        for state in self._states:
            if state.window <= window:
                state.window, state.stops, state.trace = window + 1, 0, []

    def _undone(self, mail: list[Mail]) -> list[Mail]:
        """What a host is to be given, again if it has failed: on the real clock of each neighbour's
        mails the newest, which is all that it would use, however often it fails."""
        if not self._live:
            return mail
        newest = {(m.sender, m.receiver, m.settles, m.seq < 0): m for m in mail}
        return list(newest.values())

    def _take(self, state: _HostState) -> list[Mail]:
        new = self._broker.collect(state.number)
        if new:
            self._broker.forget(state.number, new[-1][0])  # it is in the host's own hands now
        return [Mail(p.sender, p.receiver, p.seq, p.content, p.sent) for _, p in new]

    def collect(self) -> tuple[list[Answer], list[tuple[SuperNode, str]]]:
        """(windows that hosts have done, hosts that failed or sent what they may not, and why).
        Hosts that failed try again.

        Raises EdgeFlError when a host has failed three times in a row.
        """
        answers: list[Answer] = []
        failures: list[tuple[SuperNode, str]] = []
        for reply in self._dispatcher.collect():
            state = self._under_way.pop(reply.metadata.reply_to_message_id)
            try:
                if reply.has_error():
                    raise ValueError(last_line(reply.error.reason))
                answer = self._read(state, reply)
            except ValueError as error:
                state.failures += 1
                failures.append((state.host, last_line(str(error))))
                if self._live:
                    state.out = True
                    pause = min(_LONGEST_PAUSE, 2.0 ** (state.failures - 1))
                    state.not_before = time.monotonic() + pause
                elif state.failures >= _ATTEMPTS:
                    raise EdgeFlError(
                        f"{state.host.name} has failed {_ATTEMPTS} times in a row: {error}"
                    ) from error
                continue
            state.failures = 0
            if answer is not None:
                answers.append(answer)
                self._announce()
        return answers, failures + forgeries(self._brokers, [state.host for state in self._states])

    def _announce(self) -> None:
        """Tell devices that are behind to go on: a window is over when half of those who are there
        have done it. The slowest would make all others wait, or go on without it; the fastest may
        be one that does nothing at all."""
        if self._live and self._sessions is not None:
            self._sessions.announce(self._pace())

    def _read(self, state: _HostState, reply: Message) -> Answer | None:
        """Take in what a host has done. ValueError for what is no reply; nothing is changed."""
        told = read_report(reply, state.nodes, self._everybody, self._parameters)
        if self._live and not told.done:
            raise ValueError("its window is not done, and there is nothing that it had to wait for")
        # The nodes of a device that has diverged, which ends the run, have nothing to say.
        wild = told.done and not all(math.isfinite(n.norm) for n in told.nodes)
        mails = [] if self._live and wild else from_arrays(told.mail, told.vectors)
        for mail in mails:
            allowed = self._broker.may_send(state.number, mail.sender, mail.receiver)
            if allowed and (fault := self._fault(mail)):
                raise ValueError(fault)
        for mail in mails:
            packet = Packet(mail.sender, mail.receiver, mail.seq, mail.sent, mail.vectors)
            self._broker.post(state.number, packet)
        state.mail, state.collected = [], told.collected
        state.trace += told.trace
        if not told.done:
            state.stops += 1
            return None
        state.window, state.stops = state.window + 1, 0
        self._longest_window = max(self._longest_window, time.monotonic() - state.began)
        trace, state.trace = state.trace, []
        return Answer(state.window - 1, told, trace)

    def _fault(self, mail: Mail) -> str | None:
        # Where all mail is waited for, a value that is not finite has to come: it ends the run.
        return mail_fault(mail, self._lengths(mail), self._parameters, finite=self._live)


def forgeries(
    brokers: Iterable[Broker | SocketBroker], hosts: Sequence[SuperNode]
) -> list[tuple[SuperNode, str]]:
    """Those of `hosts`, by number, that have sent what was not theirs to send since the last call,
    and what."""
    forged = sum((broker.take_forged() for broker in brokers), Counter())
    return [
        (
            hosts[host],
            f"it may not send from node {sender} to node {receiver}"
            + (f" ({count} times)" if count > 1 else ""),
        )
        for (host, sender, receiver), count in sorted(forged.items())
    ]


def _address() -> str:
    """Where hosts, which are Ray's actors, reach this process. Flower's simulation engine runs in
    it, and Ray with it: wait for that."""
    import ray

    while not ray.is_initialized():
        time.sleep(0.05)
    return ray.util.get_node_ip_address()
