"""The consensus system: no central model; neighbours exchange until all nodes agree."""

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from strategies.carriers.checks import expected_vectors
from strategies.clock import Clock
from strategies.consensus.agreement import average, consensus_distance, spread_by_class
from strategies.consensus.answers import Answer
from strategies.consensus.fleet import Fleet
from strategies.consensus.moments import incidents, trace
from strategies.consensus.participant import Mail, Tally
from strategies.consensus.schedule import Timetable
from strategies.consensus.settings import ConsensusRun
from strategies.consensus.shared import nodes_of, settling_of
from strategies.divergence import diverged
from strategies.evaluation import BY_CLASS, Candidate, Evaluator
from strategies.learning_rate import rate_of
from strategies.messages.windows import OFF, NodeNumbers, RunOrder, WindowTerms
from strategies.own_course import OwnCourse, check_rounds
from strategies.problem import flat_model, histogram_of, task_of
from strategies.recorder import Recorder
from strategies.roster import gather

CHECKPOINT = "server"
MODELS = "nodes"  # the checkpoint with which the run ends
# Between two looks for answers, and at most such a share of the time since the last one: hosts that
# train on all cores are not to be disturbed for nothing.
_POLL_SECONDS, _MOST_POLL_SECONDS, _POLL_SHARE = 0.02, 0.1, 0.01
_SLICE_STEPS = 24  # how much of the trace is recorded, in local steps
_MOST_NAMED = 8  # nodes, in one sentence
_TALLY = tuple(vars(Tally()))
_OF_NOW = ("metric", "loss")  # of a node's numbers, those that are not of what it has done


class Consensus(OwnCourse):
    """Decentralised learning (Niwa et al., KDD 2020, and others): every node keeps its data and its
    model, and exchanges with its neighbours; nobody has the model of all.

    The server says who works on which window and takes note. Its carriers know who may write to
    whom, and pass mail on without doing anything with it. It is given no model except, for the
    diagnosis of how far the nodes agree, the sum over all nodes of a host (on a device, which is
    one node, on demand only).
    """

    def __init__(self, run: ConsensusRun, recorder: Recorder) -> None:
        self._run, self._nodes, self._recorder = run, run.nodes, recorder
        nodes, self._text = run.nodes, run.topology
        self._topology, self._algorithm, self._timetable = nodes_of(nodes, self._text)
        self._names = self._topology.names or tuple(map(str, range(nodes.participants)))
        self._parameters = len(flat_model(nodes.problem, "small").weights)
        self._classes = task_of(nodes.problem).classes or ()
        self._clock = Clock()
        self._window = 0  # the last one that all nodes have done
        # The last window with those of the settling, and how many rounds each of these has.
        self._last, self._rounds_each = nodes.rounds, 0
        self._kept = 0  # the last one whose checkpoint outlives a power cut
        self._applied = (0, 0.0)  # how many mails have been used until then, and their ages' sum
        self._answers: dict[int, list[Answer]] = {}
        self._examples: list[int] = []  # of every participant; 0 until it has come
        self._known: dict[int, NodeNumbers] = {}  # of every node, the newest
        self._average = np.zeros(0)
        self._forgotten: dict[int, np.ndarray] = {}  # averages whose evaluation a kill prevented

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 0,
        timeout: float = 0.0,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run all windows, or those that a resumed run still lacks.

        The result's arrays are the average of the nodes' models, which no node has; their own are
        with their hosts (on devices, on the devices). timeout (seconds for a reply) comes
        from the configuration unless it is given. evaluate_fn is called with every window and the
        average at its end, where there is a diagnosis; initial_arrays and the configurations have
        no use here. Raises ConfigError for num_rounds, here windows, other than
        the configured, EdgeFlError when a host fails again and again, or no host can go on, and
        DivergedError when a node is not finite at the end of a window.
        """
        nodes, result, people = self._nodes, Result(), range(self._nodes.participants)
        steps = num_rounds * nodes.consensus.window
        check_rounds(num_rounds, nodes.rounds, f"consensus.steps={steps}")
        timeout = timeout or nodes.round_timeout
        self._begin()
        record = partial(self._recorder.emit, "evaluate")
        evaluator = Evaluator(nodes.problem, ("small",), record, self._warn)
        with contextlib.ExitStack() as resources:
            resources.callback(evaluator.close)
            kept = self._run.checkpoint_every + 1
            hosts, examples = gather(
                grid,
                nodes.problem,
                timeout,
                self._recorder.emit,
                names=self._run.devices,
                others=self._run.others,
                least=self._run.min_participants,
                besides={"code": self._run.own_code, "topology": self._text, "states": kept},
            )
            self._examples = [examples[p] or self._known_of(p).examples for p in people]
            devices = tuple(host.name for host in hosts if host.participant is not None)
            self._names = devices or self._names
            fleet = Fleet(
                nodes,
                self._topology,
                grid,
                hosts,
                first=self._window + 1,
                order=self._order(),
                resources=resources,
                engine=self._recorded_engine(),
                lengths=self._lengths,
                parameters=self._parameters,
            )
            self._plan_settling(fleet)
            self._describe(fleet, simulated=not devices)
            self._evaluate_forgotten(evaluator)
            self._clock.restart()
            for window in self._work(fleet, evaluator):
                if evaluate_fn is None or not len(self._average):
                    continue
                if (measured := evaluate_fn(window, self._arrays())) is not None:
                    result.evaluate_metrics_serverapp[window] = measured
        result.arrays = self._arrays()
        return result

    def _arrays(self) -> ArrayRecord:
        return ArrayRecord({"average": Array(self._average.astype(np.float32))})

    def _plan_settling(self, fleet: Fleet) -> None:
        """One window after the last, of all rounds; or one for each, where mail rides in a window's
        messages and no host waits for it."""
        rounds = self._nodes.consensus.settling_rounds
        windows = rounds if fleet.carrier == "grid" and not self._nodes.virtual else min(1, rounds)
        self._last += windows
        self._rounds_each = rounds // max(1, windows)

    def _work(self, fleet: Fleet, evaluator: Evaluator) -> Iterator[int]:
        """Have the windows done that are still to do; yields each that is."""
        heard = time.monotonic()
        while self._window < self._last:
            fleet.dispatch(self._last, self._terms_of)
            answers, failures = fleet.collect()
            for host, reason in failures:
                self._recorder.emit(
                    "rejected", participant=host.name, round=self._window + 1, reason=reason
                )
            for answer in answers:
                heard = time.monotonic()
                self._answers.setdefault(answer.window, []).append(answer)
                self._hear(answer)
            window = self._window + 1
            if window not in self._answers or not fleet.complete(window):
                since = time.monotonic() - heard
                time.sleep(min(max(_POLL_SECONDS, _POLL_SHARE * since), _MOST_POLL_SECONDS))
                continue
            self._close_window(self._answers.pop(window), evaluator)
            fleet.close(window)
            yield window

    # -- what hosts are told ------------------------------------------------------------------

    def _order(self) -> RunOrder:
        seconds = _SLICE_STEPS * self._nodes.consensus.step_seconds
        return RunOrder(
            topology=self._text,
            directory=str(self._recorder.path),
            states=self._recorder.identity,
            slice=0.0 if self._window else seconds,
        )

    def _terms_of(self, window: int) -> WindowTerms:
        c = self._nodes.consensus
        return WindowTerms(
            window=window,
            rate=rate_of(c.schedule, c.step_size, window, self._nodes.rounds),
            settling=self._rounds_each if window > self._nodes.rounds else 0,
            durable=self._durable(window),
            kept=self._kept,
            examples=self._examples,
            started=self._clock.now(),
        )

    def _recorded_engine(self) -> dict[str, Any]:
        """How a resumed run has computed gradients so far, and what it measured; {} at first."""
        told = next((e for e in reversed(self._recorder.events()) if e["event"] == "hosts"), {})
        return {key: told[key] for key in ("engine", "engine_gain") if key in told}

    def _lengths(self, mail: Mail) -> dict[str, tuple[int, torch.dtype]]:
        return expected_vectors(mail, self._algorithm, self._parameters)

    def _durable(self, window: int) -> bool:
        return window % self._run.checkpoint_every == 0 or window >= self._nodes.rounds

    # -- what is recorded ---------------------------------------------------------------------

    def _describe(self, fleet: Fleet, *, simulated: bool) -> None:
        """Topology, hosts and data, once."""
        self._recorder.emit("hosts", hosts=fleet.hosts, carrier=fleet.carrier, **fleet.engine)
        if self._window:
            return
        topology = self._topology
        self._recorder.emit(
            "topology",
            names=self._names,
            edges=topology.edges,
            degree_max=max(topology.degree(i) for i in range(topology.size)),
            diameter=topology.diameter,
            spectral_gap=topology.spectral_gap,
        )
        if not simulated:
            return  # devices may have data of their own, and tell only how many images those are
        if found := histogram_of(self._nodes.problem):
            histogram, names = found
            self._recorder.emit("labels", histogram=histogram, classes=names)

    def _hear(self, answer: Answer) -> None:
        """What a host tells besides of itself and its nodes."""
        report = answer.report
        for numbers in report.nodes:
            if numbers.node < self._nodes.participants:
                self._examples[numbers.node] = numbers.examples
        if report.refused:
            self._recorder.emit(
                "rejected",
                participant=", ".join(str(numbers.node) for numbers in report.nodes),
                round=answer.window,
                count=sum(refused.count for refused in report.refused),
                reason="mail refused: " + ", ".join(f"{n} {why}" for why, n in report.refused),
            )

    def _close_window(self, answers: list[Answer], evaluator: Evaluator) -> None:
        """Record what all hosts say of the next window, and write the checkpoint."""
        window, nodes = self._window + 1, self._nodes
        settled = window > nodes.rounds
        timetable = settling_of(nodes, self._text)[1] if settled else self._timetable
        t = timetable.border(window) if nodes.virtual else self._clock.now()
        people = range(nodes.participants)
        everybody = range(nodes.participants + len(nodes.consensus.reference_list))
        told = {n.node: n for answer in answers for n in answer.report.nodes}
        # Of nodes that were away: no metric, and of what they have done the last that is known.
        known = self._known = {
            i: told.get(i) or self._known_of(i)._replace(metric=OFF, loss=OFF) for i in everybody
        }
        metric, norms = (
            {i: n.metric for i, n in known.items()},
            {i: n.norm for i, n in known.items()},
        )
        on = [i for i in people if metric[i] != OFF]  # NaN: on, and diverged
        wild = [i for i in people if math.isnan(metric[i]) or not math.isfinite(norms[i])]
        totals = [answer.total for answer in answers if len(answer.total)]
        self._average = average(totals, len(on)) if totals else np.zeros(0)
        distance = consensus_distance([norms[i] for i in on], self._average) if totals else None
        tally = {name: sum(getattr(known[i], name) for i in people) for name in _TALLY}
        used, age = tally["used"] - self._applied[0], tally["age"] - self._applied[1]
        self._applied = tally["used"], tally["age"]
        heard = sorted((h for a in answers for h in a.report.heard), key=lambda h: h.node)
        by_class: dict[int, dict[str, float]] = {i: {} for i in on}
        for each in (each for answer in answers for each in answer.report.classes):
            if each.node in by_class:
                by_class[each.node][each.name] = each.metric
        classes = spread_by_class(self._classes, list(by_class.values()))
        self._recorder.emit(
            "nodes",
            round=window,
            t=t,
            accuracy=[None if metric[i] == OFF else metric[i] for i in people],  # the main metric
            loss=[None if metric[i] == OFF else known[i].loss for i in people],
            examples=self._examples,
            diverged=wild,
            **({BY_CLASS: classes} if classes else {}),
            settled=settled,
            steps=[known[i].steps for i in people],
            heard=[[h.node, h.peer, t - h.t] for h in heard],
            reference={
                name: metric[nodes.participants + position]
                for position, name in enumerate(nodes.consensus.reference_list)
            },
        )
        self._recorder.emit(
            "round",
            round=window,
            t=t,
            steps=tally["steps"],
            messages=tally["messages"],
            bytes=tally["bytes"],
            lost=tally["lost"],
            duplicates=tally["duplicates"],
            stale=age / used / nodes.consensus.step_seconds if used and nodes.virtual else None,
            age=age / used if used else None,
            distance=distance,
            settled=settled,
            seconds=max(answer.report.seconds for answer in answers),
            seconds_evaluation=max(answer.report.seconds_evaluation for answer in answers),
        )
        self._record_trace(window, answers, timetable)
        self._evaluate(evaluator, window, t)
        if wild:
            raise diverged(self._run.suspects, "node", self._called(wild, window))
        self._window = window
        self._save(t, evaluator)

    def _called(self, nodes: Sequence[int], window: int) -> str:
        names = ", ".join(self._names[i] for i in nodes[:_MOST_NAMED])
        more = f" and {len(nodes) - _MOST_NAMED} more" if len(nodes) > _MOST_NAMED else ""
        return f"window {window}, node{'s'[: len(nodes) != 1]} {names}{more}"

    def _record_trace(self, window: int, answers: list[Answer], timetable: Timetable) -> None:
        """What happened to nodes and links in the window and, of the first, the slice."""
        moments = [moment for answer in answers for moment in answer.trace]
        if window == 1:
            self._recorder.emit("trace", events=trace(moments))
        border = timetable.border(window - 1), timetable.border(window)
        outages = timetable.outages if self._nodes.virtual else ()
        for fields in incidents(moments, outages, border):
            self._recorder.emit("incident", round=window, **fields)

    def _known_of(self, node: int) -> NodeNumbers:
        return self._known.get(node, NodeNumbers(node))

    def _evaluate(self, evaluator: Evaluator, window: int, t: float) -> None:
        if not len(self._average):  # said, because the line of the window waits for it
            fields = {"model": "average", "accuracy": None, "loss": None}
            self._recorder.emit("evaluate", round=window, t=t, **fields)
            return
        self._put(evaluator, window, t, self._average.astype(np.float32))

    def _put(self, evaluator: Evaluator, window: int, t: float, weights: np.ndarray) -> None:
        vectors = {"weights": weights, "buffers": np.zeros(0, np.float32)}
        fields = {"round": window, "t": t, "model": "average"}
        evaluator.put(Candidate("small", vectors, None, fields))

    def _warn(self, message: str) -> None:
        self._recorder.emit("warning", message=message)

    # -- saving and resuming ------------------------------------------------------------------

    def _save(self, t: float, evaluator: Evaluator) -> None:
        """The server's part of the checkpoint of a window, after that of every node."""
        if not self._durable(self._window):
            return
        if self._window == self._last:
            own = [self._known[i].digest for i in range(self._nodes.participants)]
            checksum = hashlib.sha256("".join(own).encode()).hexdigest()
            self._recorder.save_checkpoint(
                MODELS,
                {"average": self._average.astype(np.float32)},
                {"checksum": checksum, "digests": own},
            )
        metadata = {"window": self._window, "t": t, "applied": self._applied}
        if not self._nodes.virtual:  # on devices, which may be away when the run is resumed
            metadata["known"] = [
                {name: value for name, value in n._asdict().items() if name not in _OF_NOW}
                for n in self._known.values()
            ]
        tensors = {"average": self._average}
        for window, task in evaluator.pending("average").items():
            tensors[f"pending.{window}"] = task.vectors["weights"]
        self._recorder.save_checkpoint(CHECKPOINT, tensors, metadata)
        self._kept = self._window

    def _begin(self) -> None:
        """Go on from the run's checkpoint, if it has one."""
        if self._recorder.has_checkpoint(CHECKPOINT):
            tensors, metadata = self._recorder.load_checkpoint(CHECKPOINT)
            self._window, self._average = metadata["window"], tensors.pop("average")
            self._forgotten = {int(name.split(".")[1]): v for name, v in tensors.items()}
            if len(self._average):  # a power cut may have taken the record of the last one
                self._forgotten[self._window] = self._average.astype(np.float32)
            self._applied = tuple(metadata["applied"])
            known = (NodeNumbers(**told) for told in metadata.get("known", ()))
            self._known = {numbers.node: numbers for numbers in known}
            self._kept = self._window
            self._clock = Clock(metadata["t"])
        if self._run.resumed:
            self._recorder.emit("resumed", round=self._window)

    def _evaluate_forgotten(self, evaluator: Evaluator) -> None:
        """The evaluations of averages that a kill prevented."""
        if not self._forgotten:
            return
        events = self._recorder.events()
        done = {e["round"] for e in events if e["event"] == "evaluate"}
        times = {e["round"]: e["t"] for e in events if e["event"] == "round"}
        for window, forgotten in self._forgotten.items():
            if window not in done:
                self._put(evaluator, window, times[window], forgotten)
