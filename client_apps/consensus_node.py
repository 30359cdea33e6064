"""A window of work for one host: its nodes step, exchange with their neighbours, are evaluated."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Message

from client_apps.device import Device
from client_apps.engines import SEQUENTIAL, Engine, engine_of
from client_apps.local_model import local_model_of
from client_apps.node_states import NodeStates, initial_weights
from client_apps.window_exchange import exchange_of
from strategies.carriers import sockets
from strategies.carriers.exchange import Exchange, Report, Unsent
from strategies.carriers.grid import to_arrays
from strategies.consensus.agreement import fixed_point
from strategies.consensus.free_host import FreeHost
from strategies.consensus.host import INCIDENTS, Host, Listener
from strategies.consensus.participant import Participant
from strategies.consensus.settings import NodesRun
from strategies.consensus.shared import nodes_of, settling_of
from strategies.evaluation import SIDE_BY_SIDE, Measured, evaluation_set, measured_of_each
from strategies.messages.codec import message_of, records_of
from strategies.messages.queries import MeetOrder, Met
from strategies.messages.windows import (
    NEVER,
    NOBODY,
    OFF,
    Heard,
    Moment,
    NodeNumbers,
    OfClass,
    Refused,
    WindowOrder,
    WindowReport,
)
from strategies.task import Examples

# A neighbour's host that sends nothing for so long is not there: see `run_window`.
_PATIENCE_SECONDS = 20.0
_ROUND_SECONDS = 3.0  # for which a round of settling waits for the mail of a neighbour
_MOST_EVENTS = 1500  # of a host, in the slice of the trace that is drawn


def meet(message: Message, device: Device) -> Message:
    """Say how many of the asked hosts answer at one time: in a simulation hosts may have to take
    turns, and one that waits for another's mail would then wait for ever."""
    order = message_of(MeetOrder, message.content)
    here = sockets.meet(order.broker, order.host, order.hosts, order.patience)
    return Message(records_of(Met(here)), reply_to=message)


def run_window(message: Message, device: Device) -> Message:
    """Do a `WindowOrder`; the reply is a `WindowReport`.

    When mail that it cannot do without does not come, it parks its nodes and is not done.
    """
    settings = device.settings.nodes
    torch.set_num_threads(settings.client_threads)
    order = message_of(WindowOrder, message.content)
    report = _Window(settings, order, device).run()
    return Message(records_of(report), reply_to=message)


@lru_cache(maxsize=1)
def _engine(settings: NodesRun, nodes: tuple[int, ...], own_data: str, engine: str) -> Engine:
    return engine_of(engine, settings, nodes, own_data)


@lru_cache(maxsize=1)
def _evaluation_set(settings: NodesRun) -> Examples:
    return evaluation_set(settings.problem, local_model_of(settings.problem).device)


class _Journal:
    """Keeps what is told of the first moments of a window (`until`), and incidents at any time."""

    def __init__(self, until: float) -> None:
        self._until = until
        self.moments: list[Moment] = []

    def __call__(
        self, t: float, what: str, node: int, peer: int | None, sent: float | None
    ) -> None:
        early = t <= self._until and len(self.moments) < _MOST_EVENTS
        if early or what in INCIDENTS:
            peer = NOBODY if peer is None else peer
            self.moments.append(Moment(t, what, node, peer, NEVER if sent is None else sent))


class _Window:
    """One window of one host."""

    def __init__(self, settings: NodesRun, order: WindowOrder, device: Device) -> None:
        self._settings, self._order, self._own_data = settings, order, device.own_data
        self._local = local_model_of(settings.problem)
        self._timetable = nodes_of(settings, order.topology)[2]
        if order.settling:
            self._timetable = settling_of(settings, order.topology)[1]
        self._diagnosed = settings.consensus.diagnosis in (
            "on", "auto" if device.simulated else "on"
        )  # fmt: skip
        self._states = NodeStates(settings, order, device)
        self._session = device.session if order.carrier == "zenoh" else None

    def run(self) -> WindowReport:
        with exchange_of(self._settings, self._order, self._session) as exchange:
            return self._run(exchange)

    def _run(self, exchange: Exchange | None) -> WindowReport:
        began = time.monotonic()
        participants = [self._states.load(node) for node in self._order.nodes]
        for participant in participants:
            if participant.cursor == 0 and not self._order.settling:
                participant.change_rate(self._order.rate)
        journal = _Journal(self._order.slice)
        done = self._run_nodes(participants, exchange, journal, began)
        told = exchange.report() if exchange is not None else Report()
        for participant in participants:
            unsent = told.unsent.get(participant.node.index, Unsent())
            participant.tally.messages -= unsent.mails
            participant.tally.bytes -= unsent.bytes
        self._states.save(participants, done=done)
        heads, vectors = to_arrays(told.outgoing)
        seconds = time.monotonic() - began
        report = WindowReport(done, told.collected, seconds, heads, vectors, journal.moments)
        return self._ended(report, participants, told) if done else report

    # -- work ---------------------------------------------------------------------------------

    def _run_nodes(
        self,
        participants: Sequence[Participant],
        exchange: Exchange | None,
        listener: Listener,
        began: float,
    ) -> bool:
        """Whether they have come to the end of the window."""
        nodes, name, window = tuple(self._order.nodes), self._order.engine, self._order.window
        engine: Any = _engine(self._settings, nodes, self._own_data, name)
        initial = initial_weights(self._settings.problem, self._local.device)
        silence = self._settings.consensus.silence_seconds
        options: dict[str, Any] = {
            "initial": lambda _: initial,
            "exchange": exchange,
            # Who exchanges with nobody cannot tell whether anybody is there.
            "silence": silence if math.isfinite(self._timetable.interval) else math.inf,
            "adopts": not self._settings.consensus.clip,
            "listener": listener,
        }
        if not self._settings.virtual:
            self._run_freely(FreeHost(participants, engine, **options), began)
            return True
        n, timetable = self._settings.participants, self._timetable
        # Side by side all that can step together do.
        most = None if name == SEQUENTIAL else len(participants)
        return Host(participants, engine, most=most, **options).run(
            {i: timetable.timeline(i, window) if i < n else timetable.lone(window) for i in nodes},
            {i: timetable.in_flight(i, window) for i in nodes if i < n},
            _PATIENCE_SECONDS,
        )

    def _run_freely(self, host: FreeHost, began: float) -> None:
        session = self._session

        waited = session.waited if session is not None else 0.0

        def now() -> float:
            return self._order.started + waited + time.monotonic() - began

        if session is not None:
            host.adopt(self._states.newcomers, now, self._patience)
        if self._order.settling:
            self._settle_freely(host, now)
            return
        length, window = self._settings.consensus.window, self._order.window
        steps = range((window - 1) * length, window * length)
        host.run_freely(
            dict.fromkeys(self._order.nodes, steps),
            self._timetable.interval,
            now,
            self._settings.seed,
            link=self._timetable.conditions,
            over=lambda: session is not None and session.window > window,
        )

    def _settle_freely(self, host: FreeHost, now: Callable[[], float]) -> None:
        settings, rounds = self._settings, self._order.settling
        first = settings.consensus.steps + (self._order.window - settings.rounds - 1) * rounds
        # Mail that rides in messages does not come before the next one.
        waits = self._order.carrier != "grid"
        host.settle_freely(
            range(first, first + rounds),
            now,
            settings.seed,
            link=self._timetable.conditions,
            patience=(self._patience, _ROUND_SECONDS) if waits else (0.0, 0.0),
        )

    @property
    def _patience(self) -> float:
        """Seconds for which neighbours are waited for, be it that they come late or that their link
        is slow: well before the server takes this host for one that does not answer."""
        return min(self._settings.consensus.silence_seconds, self._settings.round_timeout / 4)

    # -- after --------------------------------------------------------------------------------

    def _ended(
        self, report: WindowReport, participants: Sequence[Participant], told: Report
    ) -> WindowReport:
        """The report of a window that is done."""
        present = self._present(participants)
        diagnosed = present if self._diagnosed else []
        began = time.monotonic()
        found = self._measured(participants, {p.node.index for p in present})
        return replace(
            report,
            nodes=[self._numbers(participant, found) for participant in participants],
            classes=[
                OfClass(node, name, metric)
                for node, (_, by_class) in found.items()
                for name, metric in by_class.items()
            ],
            heard=[Heard(p.node.index, j, t) for p in participants for j, t in p.heard.items()],
            refused=[Refused(reason, count) for reason, count in told.refused.items()],
            total={"sum": fixed_point([p.node.published for p in diagnosed])},
            seconds_evaluation=time.monotonic() - began,
        )

    def _present(self, participants: Sequence[Participant]) -> list[Participant]:
        """The nodes that are on at the end of the window; references are no nodes."""
        t = self._timetable.border(self._order.window)
        on: Callable[[int], bool] = (
            (lambda i: self._timetable.present(i, t))
            if self._settings.virtual
            else (lambda i: True)
        )
        n = self._settings.participants
        return [p for p in participants if p.node.index < n and on(p.node.index)]

    def _measured(
        self, participants: Sequence[Participant], present: set[int]
    ) -> dict[int, Measured]:
        """The metrics of those that are `present`, and of references, by node."""
        n = self._settings.participants
        chosen = [p.node for p in participants if p.node.index in present or p.node.index >= n]
        weights = [node.published for node in chosen]
        local, examples = self._local, _evaluation_set(self._settings)
        most = 1 if self._order.engine == SEQUENTIAL else SIDE_BY_SIDE
        found = measured_of_each(local.task, local.model, weights, examples, most)
        return {node.index: each for node, each in zip(chosen, found, strict=True)}

    def _numbers(self, participant: Participant, found: Mapping[int, Measured]) -> NodeNumbers:
        """What is told of a node; its metric and loss if they were `found`."""
        node, weights = participant.node.index, participant.node.published
        values = found[node].values if node in found else {}
        array: np.ndarray = weights.cpu().numpy()
        return NodeNumbers(
            node=node,
            metric=values.get(self._local.task.metric.name, OFF),
            loss=values.get("loss", OFF),
            norm=float(weights.double().square().sum()),
            examples=self._states.examples(node),
            digest=hashlib.sha256(array.tobytes()).hexdigest(),
            **vars(participant.tally),
        )
