"""The distill system: federated averaging of a small model, and a distillation server behind it."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from strategies.averaging import Vectors
from strategies.checks import Checked, updates_of
from strategies.clock import Clock
from strategies.dispatch import Dispatcher
from strategies.distillation.course import machines_of, rounds_of
from strategies.distillation.evaluations import SMALL_MODELS, Evaluations
from strategies.distillation.handout import Handout
from strategies.distillation.outcomes import Made, Outcomes
from strategies.distillation.publisher import Publisher
from strategies.distillation.server_state import CHECKPOINT, ServerState, save_model
from strategies.distillation.settings import DistillationRun, check_references_of_devices
from strategies.distillation.teacher import Teacher
from strategies.divergence import require_finite
from strategies.link.sessions import SessionGrid
from strategies.messages.codec import CONFIG, records_of
from strategies.messages.training import TrainOrder, jobs_of
from strategies.own_course import OwnCourse, check_rounds
from strategies.precision import mailed, size
from strategies.problem import flat_model
from strategies.recorder import Recorder
from strategies.roster import gather
from strategies.rules import Update, make_rule, shortage
from strategies.schedule import Aggregation, Job
from strategies.secure_rounds import SecureSums

# A pull of nothing costs microseconds; with Flower's own messages to devices, a request each.
_POLL_SECONDS = 0.02
_DEVICE_POLL_SECONDS = 0.2
_OVERDUE = (
    "SuperNode {} has had its jobs for {:g} s; on the virtual clock the run waits however long it "
    "takes: if it hangs, end the run, and continue it with edge-fl resume RUN"
)


class Distillation(OwnCourse):
    """Yajima et al.: clients train and average a small model; a distillation server, a process of
    its own, reverse-distils every newer average into the large global model; nobody waits for it.

    With mode "average" there is no distillation server: an averaging rule, of rounds or of buffers,
    alone. The schedule comes from the trace (virtual clock) or from what
    really happens (real clock); everything else is the same.
    """

    def __init__(self, run: DistillationRun, recorder: Recorder) -> None:
        self._run, self._recorder = run, recorder
        self._precision = run.mail_precision
        self._rule = make_rule(run.averaging)
        self._clock = Clock()
        self._rounds = rounds_of(run)
        self._version = 0
        self._versions: dict[int, Vectors] = {}  # the newest and those that jobs still start from
        self._teacher = Teacher(run)
        self._made: Made | None = None  # until its round is closed
        self._dispatcher: Dispatcher | None = None
        self._secure: SecureSums | None = None
        self._stopped = False  # early
        self._publisher: Publisher | None = None
        self._handout = Handout()
        self._outcomes = Outcomes(run, recorder)
        # What a kill prevented the evaluation of: versions, and averages of versions.
        self._forgotten: dict[str, dict[int, Vectors]] = {}

    # -- the course of a run ------------------------------------------------------------------

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
        """Run all rounds, or those that a resumed run still lacks.

        Defaults are those that the strategy was built with: initial_arrays (weights and buffers of
        the small model), timeout (seconds for a reply). evaluate_fn, if given, is called with every
        new version. The result's arrays are the small model; the recorder keeps both models.
        Raises ConfigError for num_rounds other than the configured, WorkerError when the
        distillation server died for good - after the federation has completed -, EdgeFlError when
        no participant can train, and DivergedError when a model is not finite.
        """
        run, result = self._run, Result()
        check_rounds(num_rounds, run.rounds, f"num-server-rounds={num_rounds}")
        rounds, timeout = run.rounds, timeout or run.round_timeout
        self._begin(initial_arrays)
        evaluations = Evaluations(run, self._recorder, self._warn, self._version)
        try:
            if run.distils:  # before anything else, for its process takes seconds to start
                self._publisher = Publisher(
                    run,
                    self._recorder,
                    self._clock,
                    evaluations.evaluator,
                    self._version,
                    self._outcomes.counters.segments,
                )
            hosts, _ = gather(
                grid,
                run.problem,
                timeout,
                self._recorder.emit,
                names=run.devices,
                others=run.others,
                least=run.min_participants,
                besides={"code": run.own_code},
            )
            self._handout.hosts = hosts
            bound = hosts[0].participant is not None
            if bound:
                check_references_of_devices(run.references)
            publisher = self._publisher
            if publisher is not None and not run.virtual:
                publisher.wait(lambda: publisher.ready)
            if told := machines_of(run):
                self._recorder.emit("machines", machines=told)
            self._evaluate_forgotten(evaluations)
            self._clock.restart()  # everybody's preparations are no part of the run
            if run.virtual and not bound:
                timeout = math.inf  # how fast this machine is decides nothing
            remote = bound and not isinstance(grid, SessionGrid)
            poll = _DEVICE_POLL_SECONDS if remote else _POLL_SECONDS
            dispatcher = self._dispatcher = Dispatcher(grid)
            if run.secure_aggregation:
                self._secure = SecureSums(dispatcher, timeout, partial(self._pause, poll))
            order = train_config or ConfigRecord()
            arrays = _record(self._versions[self._version])
            while self._version < rounds and not self._is_over(evaluations):
                for message in self.configure_train(self._version + 1, arrays, order, grid):
                    jobs = self._jobs_of(message)
                    self._handout.sent(dispatcher.send(message, timeout), jobs)
                self._close_round(evaluations)  # while participants train for the next one
                made, metrics = self.aggregate_train(self._version + 1, dispatcher.collect())
                self._hear()
                if made is None or metrics is None:
                    for node in dispatcher.overdue(run.round_timeout):
                        self._warn(_OVERDUE.format(node, run.round_timeout))
                    time.sleep(poll)
                    continue
                result.arrays = arrays = made
                result.train_metrics_clientapp[self._version] = metrics
                if run.stop_patience:  # it is decided before anything more is handed out
                    self._close_round(evaluations)
                if evaluate_fn and (measured := evaluate_fn(self._version, made)) is not None:
                    result.evaluate_metrics_serverapp[self._version] = measured
            self._close_round(evaluations)
            self._save_models()
            if self._publisher is not None:
                self._publisher.catch_up()
        finally:
            if self._publisher is not None:
                self._publisher.stop()
            evaluations.close()
        if self._publisher is not None:
            self._publisher.conclude(stopped=self._stopped)
        return result

    def _is_over(self, evaluations: Evaluations) -> bool:
        """Whether the run has to stop early."""
        self._stopped = evaluations.end_early(self._version, self._publisher)
        return self._stopped

    def configure_train(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> Iterator[Message]:
        """Messages to the free hosts with their share of the jobs that are due.

        arrays is the newest version; a job that starts from an older one gets that.
        """
        due = self._rounds.due(self._version, self._clock.now())
        busy = self._dispatcher.busy() if self._dispatcher else set()
        for host, jobs in self._handout.share(due, self._rounds.expects, busy):
            base = jobs[0].base_version
            order = TrainOrder(
                [job.participant for job in jobs],
                [job.index for job in jobs],
                self._run.learning_rate_of(base),
                self._sent(base, arrays),  # type: ignore[arg-type]
            )
            content = records_of(order)
            content[CONFIG] = ConfigRecord({**config, **content.config_records[CONFIG]})
            if self._run.averaging.privacy.samples and not self._run.virtual:
                # Who trains tells something, even if a kill leaves no other trace of the job.
                self._recorder.emit("handed_out", participants=order.participants)
            yield Message(content, host.node_id, "train.local", group_id=str(server_round))

    def _sent(self, version: int, newest: ArrayRecord) -> ArrayRecord:
        """What participants are sent of a version; `newest` is that of the newest one, as it is."""
        if version == self._version and self._precision == "float32":
            return newest
        return _record(mailed(self._versions[version], self._precision))

    def _jobs_of(self, message: Message) -> list[Job]:
        """The jobs that a message of `configure_train` hands out; to be asked for once."""
        return self._handout.take(jobs_of(message.content))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take in replies; make version `server_round` if the updates for it are complete.

        A reply that fails a check is rejected, counted and named, and the round goes on without.
        """
        model, now = self._versions[self._version], self._clock.now()
        if self._secure is not None:
            replies, self._secure.early = [*self._secure.early, *replies], []
            model = {}  # no vectors come
        for reply in replies:
            jobs = self._handout.answered(reply.metadata.reply_to_message_id)
            expected = self._precision, self._versions, self._teacher.like
            for result in updates_of(reply, jobs, model, *expected):
                job, update = result.job, result.update
                if not self._rounds.arrived(job, now, result.seconds, update is not None):
                    continue
                if update is None:
                    self._reject(job, self._rounds.round_of(job, server_round), result)
                else:
                    self._outcomes.take(update)
                    if self._secure is not None:
                        self._secure.hold(job, reply.metadata.src_node_id)
        aggregation = self._rounds.complete(self._version, now)
        if aggregation is None:
            return None, None
        metrics = self._aggregate(aggregation)
        return _record(self._versions[self._version]), metrics

    # -- one version --------------------------------------------------------------------------

    def _aggregate(self, aggregation: Aggregation) -> MetricRecord:
        """Make the next version and record its jobs."""
        version, before = aggregation.version, self._version
        updates = self._outcomes.updates(aggregation.jobs)
        model = base = self._versions[before]
        if self._secure is not None and updates:
            model, updates = self._sum_securely(self._secure, version, model, updates)
        elif updates:
            model = self._rule.combine(version, model, updates, self._versions)
            if lacking := shortage(self._run.averaging, len(updates)):
                self._warn(f"round {version}: {lacking}")
        if not updates:
            self._warn(f"round {version} had no usable update: the model stays as it was")
        down = size(model, self._precision)
        up = down + (0 if (like := self._teacher.like) is None else like.nbytes)
        metrics = self._outcomes.record(aggregation, updates, before, down, up)
        self._keep(version, model, aggregation.t)
        self._teacher.follow(version, model)
        self._version = version
        counters = self._outcomes.counters
        sent = {"bytes_up": counters.bytes_up, "bytes_down": counters.bytes_down}
        self._made = Made(metrics | sent, base, updates)
        if self._publisher is not None and self._run.policy == "sync":
            self._teach(self._publisher, self._made)
            # With forward distillation the server changes the small model, too.
            if (distilled := self._publisher.distilled(version)) is not None:
                t = self._made.told["t_small"] = self._publisher.distilled_at(version)
                self._keep(version, distilled, t)
                self._teacher.follow_instead(version, distilled)
        needed = self._rounds.bases(version) | {version}
        self._versions = {v: vectors for v, vectors in self._versions.items() if v in needed}
        return MetricRecord(metrics)  # type: ignore[arg-type]

    def _teach(self, publisher: Publisher, made: Made) -> None:
        """Hand the newest version to the distillation server, with its teacher."""
        version, model = self._version, self._versions[self._version]
        teacher = self._teacher.taught(version, model, made.base, made.updates)
        publisher.put(version, model, teacher, made.told["t"])
        made.taught = True

    def _sum_securely(
        self, secure: SecureSums, version: int, model: Vectors, updates: Sequence[Update]
    ) -> tuple[Vectors, list[Update]]:
        """The next model of a secure sum, and the updates that are in it."""
        names = {h.participant: h.name for h in self._handout.hosts if h.participant is not None}
        found, made = secure.next_model(
            self._run.averaging, self._rule, version, model, updates, names, self._versions
        )
        for note in found.notes:
            self._warn(f"round {version}: {note}")
        for update in updates:
            if why := found.faults.get(update.job.participant):
                self._reject(update.job, version, Checked(update.job, fault=why))
        return made, [u for u in updates if u.job.participant in found.stayed]

    def _pause(self, seconds: float) -> None:
        self._hear()
        time.sleep(seconds)

    def _keep(self, version: int, model: Vectors, t: float) -> None:
        """Take `model`, made at `t`, as version `version`. DivergedError if it is not finite."""
        told = {"round": version, "t": t, "model": "small"}
        require_finite(self._run.suspects, self._recorder, model, **told)
        self._versions[version] = model

    def _reject(self, job: Job, round_: int, result: Checked) -> None:
        self._outcomes.reject(job, round_, result, self._handout.name_of(job.participant))

    def _hear(self) -> None:
        if self._publisher is not None:
            self._publisher.hear()

    def _warn(self, message: str) -> None:
        self._recorder.emit("warning", message=message)

    def _close_round(self, evaluations: Evaluations) -> None:
        """Once a version has been made: teach it, record its round, write the checkpoint."""
        made, self._made = self._made, None
        if made is None:
            return
        publisher, version = self._publisher, self._version
        if publisher is not None and not made.taught:
            self._teach(publisher, made)
        teacher = self._teacher
        small = self._versions[version], teacher.average, teacher.calibrated
        evaluations.put_all(version, made.told, *small)
        step, taught = publisher.progress(version) if publisher else (None, None)
        self._recorder.emit(
            "round",
            round=version,
            **made.told,
            worker_steps=step,
            teacher_version=taught,
        )
        last = version == self._run.rounds
        if last or version % self._run.checkpoint_every == 0:
            self._save(made.told["t"], evaluations)

    # -- saving and resuming ------------------------------------------------------------------

    def _begin(self, initial_arrays: ArrayRecord | None) -> None:
        """Start from the run's checkpoint, if it has one, else from the initial model."""
        if self._recorder.has_checkpoint(CHECKPOINT):
            self._load()
        elif initial_arrays is not None:
            self._versions[0] = {k: initial_arrays[k].numpy() for k in ("weights", "buffers")}
        else:
            self._versions[0] = flat_model(self._run.problem, "small").state()
        if self._run.resumed:
            done = self._outcomes.counters
            last = {"job": done.jobs - 1, "segment": done.segments - 1}
            self._recorder.emit("resumed", round=self._version, **last)

    def _save(self, t: float, evaluations: Evaluations) -> None:
        """Everything that `_load` needs to go on as if nothing had happened."""
        self._outcomes.counters.segments = self._publisher.segments if self._publisher else 0
        ServerState(
            version=self._version,
            t=t,
            versions=self._versions,
            average=self._teacher.average,
            rule=self._rule.state(),
            calibrated=self._teacher.calibrated,
            newest_calibrated=self._teacher.newest_calibrated,
            pending=evaluations.pending(),
            next_index=list(self._rounds.next_index),
            counters=self._outcomes.counters,
        ).save(self._recorder)
        if self._publisher is not None:
            self._publisher.prune(self._version, keep=set(evaluations.evaluator.pending("global")))

    def _load(self) -> None:
        saved = ServerState.load(self._recorder, SMALL_MODELS)
        self._version, self._versions = saved.version, saved.versions
        self._teacher.load(saved)
        self._forgotten = saved.pending
        self._rule.load_state(saved.rule)
        self._outcomes.counters = saved.counters
        self._rounds = rounds_of(self._run, saved.version, saved.next_index)
        if not self._run.virtual:
            self._clock = Clock(saved.t)

    def _evaluate_forgotten(self, evaluations: Evaluations) -> None:
        """What was to be evaluated when a resumed run was killed."""
        events = self._recorder.events() if self._run.resumed else []
        evaluations.put_again(self._forgotten, events)
        if self._publisher is not None:
            self._publisher.evaluate_again(events)

    def _save_models(self) -> None:
        """The final models as files of their own."""
        save_model(self._recorder, self._run.problem, "small", self._versions[self._version])
        if self._publisher is not None:
            model = self._publisher.last_model(self._version, stopped=self._stopped)
            if model is not None:
                save_model(self._recorder, self._run.problem, "large", model)


def _record(vectors: Vectors) -> ArrayRecord:
    return ArrayRecord({name: Array(vector) for name, vector in vectors.items()})
