"""A window of work for one host: its nodes step, exchange with their neighbours, are evaluated."""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from client_apps.bench import Bench, bench_of, check_own_data, own_digest, shard_of
from client_apps.device import Device
from client_apps.engines import SEQUENTIAL, Engine, engine_of
from client_apps.node_store import NODES, PARKED, NodeStore
from strategies.attacks import FORGERIES
from strategies.carriers import sockets
from strategies.carriers.checks import expected_vectors
from strategies.carriers.exchange import Exchange, Report, Unsent
from strategies.carriers.grid import GridExchange, from_arrays, to_arrays
from strategies.carriers.sockets import SocketExchange
from strategies.carriers.zenoh import ZenohExchange
from strategies.consensus.agreement import fixed_point
from strategies.consensus.answers import OFF
from strategies.consensus.byzantine import Attacker
from strategies.consensus.descent import LocalSGD
from strategies.consensus.free_host import FreeHost
from strategies.consensus.host import INCIDENTS, Host, Listener
from strategies.consensus.node import Node
from strategies.consensus.participant import Participant, Tally
from strategies.consensus.rounded import beneath
from strategies.consensus.settings import NodesRun
from strategies.consensus.shared import nodes_of, settling_of
from strategies.consensus.state import pack, unpack
from strategies.consensus.topology import Topology
from strategies.evaluation import evaluation_set, measured_by_class
from strategies.link.device_session import DeviceSession
from strategies.link.sealing import Sealing
from strategies.paths import runs_root
from strategies.problem import Problem, flat_model
from strategies.task import Examples

# A neighbour's host that sends nothing for so long is not there: see `run_window`.
_PATIENCE_SECONDS = 20.0
_ROUND_SECONDS = 3.0  # for which a round of settling waits for the mail of a neighbour
_ADOPT_SECONDS = 10.0  # a newcomer waits so long for a neighbour's model
_MOST_EVENTS = 1500  # of a host, in the slice of the trace that is drawn


def meet(message: Message, device: Device) -> Message:
    """Say how many of the asked hosts answer at one time: in a simulation hosts may have to take
    turns, and one that waits for another's mail would then wait for ever."""
    order: Any = message.content["config"]
    here = sockets.meet(order["broker"], order["host"], order["hosts"], order["patience"])
    return Message(RecordDict({"config": ConfigRecord({"here": here})}), reply_to=message)


def run_window(message: Message, device: Device) -> Message:
    """Run the nodes named in the message to the end of a window.

    In: config window, nodes, host, carrier ("", "grid", "sockets" or "zenoh"), broker (the
    access to it, of sockets), engine (of the gradients), names (of the participants' devices),
    states (where a device keeps its nodes), mail (headers) with the arrays of the mail that came,
    examples (of every participant), topology (content of its file), directory (of the run), rate
    (eta), settling (how many rounds of it the window is; 0 in the training), stops (how often it
    has parked its nodes in this window), collected (what the broker may forget), durable (make sure
    that the states outlive a power cut), kept (the window from which a resumed run would go on),
    slice (record events until then), started (what the run's clock shows).
    Out: config done, trace (what has happened) and collected (see `Report`); mail and its
    arrays, with the grid carrier; and when the window is done, for each node, metrics accuracy (the
    task's main one) and loss (-inf where the node is off, NaN where it is not finite), norm
    (|w|^2) and its tally, config digests, heard, examples and refused (mails by the reason why they
    were), and the array sum (int64, see `fixed_point`; empty without a diagnosis).

    When mail that it cannot do without does not come, it parks its nodes and answers done = False.
    """
    settings = device.settings.nodes
    torch.set_num_threads(settings.client_threads)
    return _Window(settings, message, device).run()


@lru_cache(maxsize=1)
def _engine(settings: NodesRun, nodes: tuple[int, ...], own_data: str, engine: str) -> Engine:
    return engine_of(engine, settings, nodes, own_data)


@lru_cache(maxsize=1)
def _evaluation_set(settings: NodesRun) -> Examples:
    return evaluation_set(settings.problem, bench_of(settings.problem).device)


@lru_cache(maxsize=1)
def _initial(problem: Problem, device: str) -> torch.Tensor:
    return flat_model(problem, "small", device).weights  # not that of the bench, which is trained


def _zenoh_exchange(
    settings: NodesRun, topology: str, session: DeviceSession, names: tuple[str, ...]
) -> ZenohExchange:
    graph, algorithm, _ = nodes_of(settings, topology)
    node = names.index(session.site.name)
    parameters = len(bench_of(settings.problem).model.weights)
    return ZenohExchange(
        session.connection,
        session.run,
        own={node: session.site.name},
        names=dict(enumerate(names)),
        expected=lambda mail: expected_vectors(mail, algorithm, parameters),
        neighbours={node: graph.neighbours[node]},
        sealing=Sealing(session.site, session.run) if settings.consensus.encrypt else None,
        parameters=parameters,
    )


class _Journal:
    """Keeps what is told of the first moments of a window (`until`), and incidents at any time."""

    def __init__(self, until: float) -> None:
        self._until = until
        self.events: list[tuple[Any, ...]] = []

    def __call__(
        self, t: float, what: str, node: int, peer: int | None, sent: float | None
    ) -> None:
        early = t <= self._until and len(self.events) < _MOST_EVENTS
        if early or what in INCIDENTS:
            self.events.append((t, what, node, peer, sent))


class _Window:
    """One window of one host."""

    def __init__(self, settings: NodesRun, message: Message, device: Device) -> None:
        order: Any = message.content["config"]
        self._settings, self._message, self._order = settings, message, order
        self._window: int = order["window"]
        self._nodes: list[int] = list(order["nodes"])
        self._own_data = device.own_data
        self._bench: Bench = bench_of(settings.problem)
        self._initial = _initial(settings.problem, self._bench.device)
        self._topology, self._algorithm, self._timetable = nodes_of(settings, order["topology"])
        self._settling: int = order["settling"]
        if self._settling:
            self._algorithm, self._timetable = settling_of(settings, order["topology"])
        alone = Topology(
            "alone", settings.participants + len(settings.consensus.reference_list), ({},)
        )
        c = settings.consensus
        self._reference = LocalSGD(alone, c.momentum, c.weight_decay)
        simulated = device.simulated
        run = Path(order["directory"])
        self._diagnosed = settings.consensus.diagnosis in ("on", "auto" if simulated else "on")
        own = runs_root().parent / NODES / order["states"]
        self._store = NodeStore(run / NODES if simulated else own)
        self._live = not simulated and not settings.virtual
        self._session = device.session if order["carrier"] == "zenoh" else None
        self._newcomers: list[int] = []

    def run(self) -> Message:
        with self._exchange() as exchange:
            return self._run(exchange)

    def _run(self, exchange: Exchange | None) -> Message:
        began = time.monotonic()
        participants = [self._participant(node) for node in self._nodes]
        for participant in participants:
            if participant.cursor == 0 and not self._settling:
                participant.change_rate(self._order["rate"])
        journal = _Journal(self._order["slice"])
        done = self._run_nodes(participants, exchange, journal, began)
        told = exchange.report() if exchange is not None else Report()
        for participant in participants:
            unsent = told.unsent.get(participant.node.index, Unsent())
            participant.tally.messages -= unsent.mails
            participant.tally.bytes -= unsent.bytes
        headers, arrays = to_arrays(told.outgoing)
        answer = {
            "done": done,
            "mail": headers,
            "trace": json.dumps(journal.events),
            "collected": told.collected,
        }
        # Never over what it went on from: should the answer get lost, it does this once more.
        place = self._window if done else self._parked(self._order["stops"] + 1)
        for participant in participants:
            state, metadata = pack(participant)
            metadata["data"] = own_digest(
                self._settings.problem, participant.node.index, self._own_data
            )
            metadata["window"] = self._window
            durable = done and bool(self._order["durable"])
            self._store.save(place, participant.node.index, state, metadata, durable=durable)
        self._store.prune(self._order["kept"])
        metrics: dict[str, Any] = {"seconds": time.monotonic() - began}
        if done:
            present = self._present(participants)
            diagnosed = present if self._diagnosed else []
            arrays["sum"] = fixed_point([p.node.weights for p in diagnosed])
            answer |= _described(participants)
            answer["examples"] = [self._examples(node) for node in self._nodes]
            answer["refused"] = json.dumps(dict(told.refused))
            measured, by_class = self._evaluated(participants, {p.node.index for p in present})
            metrics |= measured
            answer["classes"] = json.dumps(by_class)
        content = {
            "config": ConfigRecord(answer),
            "metrics": MetricRecord(metrics),
            "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
        }
        return Message(RecordDict(content), reply_to=self._message)

    # -- before -------------------------------------------------------------------------------

    def _participant(self, node: int) -> Participant:
        """The node as it was left, or as it starts."""
        n = self._settings.participants
        algorithm = self._algorithm if node < n else self._reference
        if (attack := self._settings.attack_of(node)) in FORGERIES:
            options = attack, self._settings.attack_scale, self._settings.seed
            algorithm = beneath(algorithm, Attacker, *options)
        neighbours = self._topology.neighbours[node] if node < n else ()
        weight = self._weight(node) if node < n else 1.0
        found = self._saved(node)
        settles = bool(self._settling) and node < n
        if found is None:
            fresh = Node(node, self._initial.clone())
            algorithm.start(fresh)
            if self._window > 1:
                self._newcomers.append(node)
            heard = dict.fromkeys(fresh.links, 0.0)
            participant = Participant(fresh, algorithm, neighbours, weight, heard=heard)
            if settles:
                participant.settle(guest=True)
            elif self._live:
                participant.part()
            return participant
        check_own_data(self._settings.problem, node, self._own_data, found[1].get("data"))
        participant = unpack(
            *found,
            algorithm,
            neighbours=neighbours,
            weight=weight,
            device=self._bench.device,
        )
        if settles and not participant.settles:
            # A device that was away in the end of the training has an old model.
            trained = found[1].get("window", self._window - 1)
            participant.settle(guest=trained < self._settings.rounds)
        return participant

    def _saved(self, node: int) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The node's state, with which it goes on; None if it starts. RunDirectoryError where
        there must be one and is none."""
        stops: int = self._order["stops"]
        if stops:
            return self._store.load(self._parked(stops), node)
        if self._live:
            # A device goes on with what it has: it may have been away while others did windows.
            return self._store.newest(self._window - 1, node)
        return self._store.load(self._window - 1, node) if self._window > 1 else None

    def _parked(self, stops: int) -> str:
        return f"{PARKED}-{stops % 2}"

    def _weight(self, node: int) -> float:
        """p_i = N n_i / sum_j n_j, so that sum_i p_i f_i is the loss on all data in one place."""
        if self._settings.consensus.weights == "equal":
            return 1.0
        examples: list[int] = list(self._order["examples"])
        examples[node] = self._examples(node)  # of a device, the server may not know it yet
        known = [count for count in examples if count]
        return len(known) * examples[node] / sum(known)

    def _examples(self, node: int) -> int:
        return len(shard_of(self._settings.problem, node, self._own_data))

    @contextmanager
    def _exchange(self) -> Iterator[Exchange | None]:
        """What carries the mail to other hosts. That of a session goes on between windows, so that
        mail can come there."""
        order, session = self._order, self._session
        if session is not None:
            key = self._settings, order["topology"], tuple(order["names"])
            yield session.kept(key, lambda: _zenoh_exchange(key[0], key[1], session, key[2]))
        elif order["carrier"] == "sockets":
            made = SocketExchange(order["broker"], order["host"], order["collected"])
            with contextlib.closing(made) as exchange:
                yield exchange
        elif order["carrier"] == "grid":
            arrays: Any = self._message.content["arrays"]
            received = {name: array.numpy() for name, array in arrays.items()}
            yield GridExchange(from_arrays(order["mail"], received))
        else:
            yield None

    # -- work ---------------------------------------------------------------------------------

    def _run_nodes(
        self,
        participants: Sequence[Participant],
        exchange: Exchange | None,
        listener: Listener,
        began: float,
    ) -> bool:
        """Whether they have come to the end of the window."""
        nodes, name = tuple(self._nodes), self._order["engine"]
        engine: Any = _engine(self._settings, nodes, self._own_data, name)
        silence = self._settings.consensus.silence_seconds
        options: dict[str, Any] = {
            "initial": lambda _: self._initial,
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
            {
                i: timetable.timeline(i, self._window) if i < n else timetable.lone(self._window)
                for i in self._nodes
            },
            {i: timetable.in_flight(i, self._window) for i in self._nodes if i < n},
            _PATIENCE_SECONDS,
        )

    def _run_freely(self, host: FreeHost, began: float) -> None:
        session = self._session

        def now() -> float:
            return self._order["started"] + time.monotonic() - began

        if session is not None:
            host.adopt(self._newcomers, now, _ADOPT_SECONDS)
        if self._settling:
            self._settle_freely(host, now)
            return
        length = self._settings.consensus.window
        steps = range((self._window - 1) * length, self._window * length)
        host.run_freely(
            dict.fromkeys(self._nodes, steps),
            self._timetable.interval,
            now,
            self._settings.seed,
            link=self._timetable.conditions,
            over=lambda: session is not None and session.window > self._window,
        )

    def _settle_freely(self, host: FreeHost, now: Callable[[], float]) -> None:
        settings, rounds = self._settings, self._settling
        first = settings.consensus.steps + (self._window - settings.rounds - 1) * rounds
        # Mail that rides in messages does not come before the next one.
        waits = self._order["carrier"] != "grid"
        # Well before the server takes this host for one that does not answer.
        patience = min(settings.consensus.silence_seconds, settings.round_timeout / 4)
        host.settle_freely(
            range(first, first + rounds),
            now,
            settings.seed,
            link=self._timetable.conditions,
            patience=(patience, _ROUND_SECONDS) if waits else (0.0, 0.0),
        )

    # -- after --------------------------------------------------------------------------------

    def _present(self, participants: Sequence[Participant]) -> list[Participant]:
        """The nodes that are on at the end of the window; references are no nodes."""
        t = self._timetable.border(self._window)
        on: Callable[[int], bool] = (
            (lambda i: self._timetable.present(i, t))
            if self._settings.virtual
            else (lambda i: True)
        )
        n = self._settings.participants
        return [p for p in participants if p.node.index < n and on(p.node.index)]

    def _evaluated(
        self, participants: Sequence[Participant], present: set[int]
    ) -> tuple[Mapping[str, Any], Mapping[int, Mapping[str, float]]]:
        """Numbers of every node; metric and loss of those that are `present`, and of references; of
        these also the metric by class, where the task has classes."""
        began = time.monotonic()
        present = present | {i for i in self._nodes if i >= self._settings.participants}
        data, model, task = _evaluation_set(self._settings), self._bench.model, self._bench.task
        metrics, losses, norms, classes = [], [], [], {}
        for participant in participants:
            weights = participant.node.weights
            metric = loss = OFF
            if participant.node.index in present:
                model.weights.copy_(weights)
                found, by_class = measured_by_class(task, model, data)
                classes[participant.node.index] = by_class
                metric, loss = found[task.metric.name], found["loss"]
            metrics.append(metric)
            losses.append(loss)
            norms.append(float(weights.double().square().sum()))
        tallies = {
            f"tally.{name}": [vars(p.tally)[name] for p in participants] for name in vars(Tally())
        }
        numbers = {
            "accuracy": metrics,
            "loss": losses,
            "norm": norms,
            "seconds-evaluation": time.monotonic() - began,
            **tallies,
        }
        return numbers, classes


def _described(participants: Sequence[Participant]) -> dict[str, Any]:
    """What is told of each node at the end of a window, besides numbers."""
    digests = []
    for participant in participants:
        weights: np.ndarray = participant.node.weights.cpu().numpy()
        digests.append(hashlib.sha256(weights.tobytes()).hexdigest())
    heard = {p.node.index: p.heard for p in participants}
    return {"digests": digests, "heard": json.dumps(heard)}
