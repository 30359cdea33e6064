"""The distill system: federated averaging of a small model, and a distillation server behind it."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from strategies.averaging import Vectors, running_average
from strategies.best import Best
from strategies.checks import Checked, updates_of
from strategies.clock import Clock
from strategies.dispatch import Dispatcher
from strategies.distillation.publisher import Publisher, check_server
from strategies.distillation.settings import (
    SMALL_AVERAGE,
    DistillationRun,
    check_references_of_devices,
)
from strategies.divergence import diverged, record_evaluation, require_finite
from strategies.errors import EdgeFlError, WorkerError
from strategies.evaluation import Candidate, Evaluator
from strategies.link.sessions import SessionGrid
from strategies.own_course import check_rounds
from strategies.precision import rounded, size
from strategies.problem import flat_model
from strategies.recorder import Recorder
from strategies.roster import Host, gather
from strategies.rounds import Live, Replay, Rounds
from strategies.rules import Update, make_rule
from strategies.schedule import Aggregation, Job
from strategies.secure_rounds import SecureSums, next_model, weights_of

# A pull of nothing costs microseconds, and a request over the network with Flower's own messages to
# devices.
_POLL_SECONDS = 0.02
_DEVICE_POLL_SECONDS = 0.2
# When every participant has failed so many times in a row, the run cannot get anywhere.
_HOPELESS = 3

CHECKPOINT = "server"
_SMALL = ("small_average", "small")  # the models that the averaging server has evaluated

Key = tuple[int, int]  # (participant, index of its job)


def check_resumable(run: DistillationRun, recorder: Recorder) -> None:
    """Raise RunDirectoryError if what the run goes on from has gone."""
    if run.distils and recorder.has_checkpoint(CHECKPOINT):
        _, reached = recorder.load_checkpoint(CHECKPOINT)
        check_server(run, recorder, reached["version"])


class Distillation(Strategy):
    """Yajima et al.: clients train and average a small model; a distillation server, a process of
    its own, reverse-distils every newer average into the large global model; nobody waits for it.

    With mode "average" there is no distillation server: one of Flower's rules, or buffered
    asynchronous averaging, alone. The schedule comes from the trace (virtual clock) or from what
    really happens (real clock); everything else is the same.
    """

    def __init__(self, run: DistillationRun, recorder: Recorder) -> None:
        self._run, self._recorder = run, recorder
        self._precision = run.mail_precision
        self._rule = make_rule(run.averaging)
        self._clock = Clock()
        self._rounds: Rounds = Replay(run.schedule.trace()) if run.virtual else self._live()
        self._version = 0
        self._versions: dict[int, Vectors] = {}  # the newest and those that jobs still start from
        self._average: Vectors = {}  # of the versions: a reference, and a teacher
        self._hosts: tuple[Host, ...] = ()
        self._dispatcher: Dispatcher | None = None
        self._secure: SecureSums | None = None
        self._best: Best | None = None
        self._stopped = False  # early
        self._publisher: Publisher | None = None
        # Jobs that are due and not over:
        self._waiting: list[Job] = []  # those for which no host was free yet
        self._leaving: dict[Key, Job] = {}  # those in messages that are about to be sent
        self._sent: dict[str, list[Job]] = {}  # the others, by message id
        self._updates: dict[Key, Update] = {}
        self._held_by: dict[Key, int] = {}  # with secure aggregation: the node that has the update
        self._failed: dict[Key, str] = {}
        # What a kill prevented the evaluation of: versions, and averages of versions.
        self._forgotten: dict[str, dict[int, Vectors]] = {}
        self._failures = [0] * run.participants  # in a row
        self._finite = [True] * run.participants  # what the last one that failed has sent
        self._bytes_up = self._bytes_down = self._jobs = self._segments = 0

    def _live(self, version: int = 0, next_index: Iterable[int] | None = None) -> Live:
        run = self._run
        return Live(
            participants=run.participants,
            seed=run.seed,
            fraction=run.schedule.fraction,
            buffer_size=run.schedule.buffer_size,
            timeout=run.round_timeout,
            pace=run.round_seconds,
            one_by_one=run.secure_aggregation,
            first_version=version,
            next_index=next_index,
        )

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
        roles = ("small", "large") if run.distils else ("small",)
        evaluator = Evaluator(run.problem, roles, self._evaluated, self._warn)
        if run.best_metric:
            self._best = Best(run, self._recorder, evaluator.pending)
        try:
            if run.distils:  # before anything else, for its process takes seconds to start
                self._publisher = Publisher(
                    run, self._recorder, self._clock, evaluator, self._version, self._segments
                )
            self._hosts, _ = gather(
                grid,
                run.problem,
                timeout,
                self._recorder.emit,
                names=run.devices,
                others=run.others,
                least=run.min_participants,
            )
            if self._hosts[0].participant is not None:
                check_references_of_devices(run.references)
            publisher = self._publisher
            if publisher is not None and not run.virtual:
                publisher.wait(lambda: publisher.ready)
            self._tell_machines()
            self._evaluate_forgotten(evaluator)
            self._clock.restart()  # everybody's preparations are no part of the run
            remote = self._hosts[0].participant is not None and not isinstance(grid, SessionGrid)
            poll = _DEVICE_POLL_SECONDS if remote else _POLL_SECONDS
            dispatcher = self._dispatcher = Dispatcher(grid)
            if run.secure_aggregation:
                self._secure = SecureSums(dispatcher, timeout, partial(self._pause, poll))
            order = train_config or ConfigRecord()
            arrays = _record(self._versions[self._version])
            first, began = self._version, time.monotonic()
            while self._version < rounds and not self._is_over(evaluator):
                for message in self.configure_train(self._version + 1, arrays, order, grid):
                    self._sent[dispatcher.send(message, timeout)] = self._jobs_of(message)
                made, metrics = self.aggregate_train(self._version + 1, dispatcher.collect())
                self._hear()
                if made is None or metrics is None:
                    time.sleep(poll)
                    continue
                result.arrays = arrays = made
                result.train_metrics_clientapp[self._version] = metrics
                if evaluate_fn and (measured := evaluate_fn(self._version, made)) is not None:
                    result.evaluate_metrics_serverapp[self._version] = measured
                seconds_a_round = (time.monotonic() - began) / (self._version - first)
                self._close_round(metrics, seconds_a_round * (rounds - self._version), evaluator)
            self._save_models(self._await_global_model())
            if self._publisher is not None and not self._stopped:
                self._publisher.catch_up()
        finally:
            if self._publisher is not None:
                self._publisher.stop()
            evaluator.close()
        if self._publisher is None:
            return result
        if not self._publisher.server.finished and not self._stopped:
            how = "was not done in time" if self._publisher.working else "died for good"
            raise WorkerError(
                f"the distillation server {how}; the federation has completed, and the "
                f"global model is the last one published ({self._publisher.server.last_words()})"
            )
        self._publisher.clear()
        return result

    def _tell_machines(self) -> None:
        """Record what devices are like, where that is known."""
        run, model = self._run, self._versions[self._version]
        machines = run.schedule.machines
        if not (run.virtual and (machines.of or machines.on)):
            return
        told = [
            {**asdict(machines.machine(p)), "on": machines.on.get(p)}
            for p in range(run.participants)
        ]
        self._recorder.emit("machines", machines=told, model_bytes=size(model, self._precision))

    def _is_over(self, evaluator: Evaluator) -> bool:
        """Whether the run has to stop early. On the virtual clock all models up to now have been
        evaluated then; on the real one those that have been, decide."""
        if self._best is None or not self._run.stop_patience or not self._version:
            return False
        if self._run.virtual:
            version, publisher = self._version, self._publisher
            if publisher is not None:
                publisher.wait(lambda: publisher.published >= version)
            evaluator.drain()
        if self._best.is_old(self._version):
            self._stopped = True
            self._recorder.emit("stopped_early", round=self._version, best=self._best.round)
        return self._stopped

    def summary(self) -> None:
        """Flower's hook for a description of the strategy; the run's record has all of it."""

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
        # What has been given up meanwhile may start from a version that is not there any more.
        self._waiting = [job for job in self._waiting if self._rounds.expects(job)] + due
        busy = self._dispatcher.busy() if self._dispatcher else set()
        free = [h for h in self._hosts if h.node_id not in busy] if self._waiting else []
        for position, host in enumerate(free):
            jobs = self._share(host, len(free) - position)
            if not jobs:
                continue
            self._leaving |= {_key(job): job for job in jobs}
            base = jobs[0].base_version
            order = ConfigRecord(
                {
                    **config,
                    "participants": [job.participant for job in jobs],
                    "indices": [job.index for job in jobs],
                }
            )
            content = RecordDict({"arrays": self._sent_model(base, arrays), "config": order})
            self._bytes_down += len(jobs) * size(self._versions[base], self._precision)
            yield Message(content, host.node_id, "train.local", group_id=str(server_round))

    def _sent_model(self, version: int, newest: ArrayRecord) -> ArrayRecord:
        """What participants are sent of a version; `newest` is that of the newest one, as it is."""
        model = self._versions[version]
        if self._precision != "float32":
            rest = {name: vector for name, vector in model.items() if name != "weights"}
            return _record(rounded(model["weights"], self._precision) | rest)
        return newest if version == self._version else _record(model)

    def _share(self, host: Host, hosts_left: int) -> list[Job]:
        """The jobs that `host` gets now, all from one version, which travels once."""
        mine = [job for job in self._waiting if host.hosts(job.participant)]
        mine = [job for job in mine if job.base_version == mine[0].base_version]
        mine = mine[: math.ceil(len(mine) / hosts_left)] if host.participant is None else mine
        self._waiting = [job for job in self._waiting if job not in mine]
        return mine

    def _jobs_of(self, message: Message) -> list[Job]:
        """The jobs that a message of `configure_train` hands out; to be asked for once."""
        order: Any = message.content["config"]
        keys = zip(order["participants"], order["indices"], strict=True)
        return [self._leaving.pop(key) for key in keys]

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
            jobs = self._sent.pop(reply.metadata.reply_to_message_id)
            for result in updates_of(reply, jobs, model, self._precision, self._versions):
                job, update = result.job, result.update
                if not self._rounds.arrived(job, now, result.seconds, update is not None):
                    continue
                if update is None:
                    self._reject(job, server_round, result)
                else:
                    self._updates[_key(job)] = update
                    self._failures[job.participant] = 0
                    if self._secure is not None:
                        self._held_by[_key(job)] = reply.metadata.src_node_id
                    else:
                        self._bytes_up += size(update.vectors, self._precision)
        aggregation = self._rounds.complete(self._version, now)
        if aggregation is None:
            return None, None
        metrics = self._aggregate(aggregation)
        return _record(self._versions[self._version]), metrics

    def configure_evaluate(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> Iterable[Message]:
        """No messages: the server evaluates both models itself, beside the run."""
        return ()

    def aggregate_evaluate(
        self,
        server_round: int,
        replies: Iterable[Message],
    ) -> MetricRecord | None:
        """Nothing: see `configure_evaluate`."""
        return None

    # -- one version --------------------------------------------------------------------------

    def _aggregate(self, aggregation: Aggregation) -> MetricRecord:
        """Make the next version, hand it to the distillation server and record its jobs."""
        version, before = aggregation.version, self._version
        updates = [self._updates.pop(_key(j)) for j in aggregation.jobs if _key(j) in self._updates]
        model = self._versions[before]
        if self._secure is not None and updates:
            model, updates = self._sum_securely(self._secure, version, model, updates)
        elif updates:
            model = self._rule.combine(version, model, updates, self._versions)
        if not updates:
            self._warn(f"round {version} had no usable update: the model stays as it was")
        rejected = self._record_jobs(aggregation, updates)
        self._keep(version, model, aggregation.t)
        self._average = running_average(self._average, model, version)
        self._version = version
        if self._publisher is not None:
            teacher = self._average if self._run.teacher_average else model
            self._publisher.put(version, model, teacher, aggregation.t)
            if self._run.policy == "sync":
                self._wait_for_server(version, aggregation.t)
        needed = self._rounds.bases(version) | {version}
        self._versions = {v: vectors for v, vectors in self._versions.items() if v in needed}
        ages = [before - update.job.base_version for update in updates]
        return MetricRecord(
            {
                "t": aggregation.t,
                "staleness": sum(ages) / len(ages) if ages else 0.0,
                "contributions": len(updates),
                "rejected": rejected,
                "lost": len(aggregation.lost),
                "loss": sum(u.loss for u in updates) / len(updates) if updates else math.nan,
            }
        )

    def _sum_securely(
        self, secure: SecureSums, version: int, model: Vectors, updates: Sequence[Update]
    ) -> tuple[Vectors, list[Update]]:
        """The next model of a secure sum, and the updates that are in it."""
        weights = weights_of(self._run.averaging, version, updates)
        jobs: dict[int, dict[int, float]] = {}
        for update, weight in zip(updates, weights, strict=True):
            job = update.job
            jobs.setdefault(job.participant, {})[job.index] = weight / sum(weights)
        nodes = {u.job.participant: self._held_by.pop(_key(u.job)) for u in updates}
        names = {h.participant: h.name for h in self._hosts if h.participant is not None}
        length = sum(len(vector) for vector in model.values())
        found = secure.sum(jobs, nodes, names, length)
        self._bytes_up += found.size
        for note in found.notes:
            self._warn(f"round {version}: {note}")
        for update in updates:
            if why := found.faults.get(update.job.participant):
                self._reject(update.job, version, Checked(update.job, fault=why))
        stayed = [u for u in updates if u.job.participant in found.stayed]
        if found.mean is not None:
            model = next_model(
                self._run.averaging, self._rule, version, model, found.mean, stayed, self._versions
            )
        return model, stayed

    def _pause(self, seconds: float) -> None:
        self._hear()
        time.sleep(seconds)

    def _keep(self, version: int, model: Vectors, t: float) -> None:
        """Take `model`, made at `t`, as version `version`. DivergedError if it is not finite."""
        told = {"round": version, "t": t, "model": "small"}
        require_finite(self._run.suspects, self._recorder, model, **told)
        self._versions[version] = model

    def _reject(self, job: Job, round_: int, result: Checked) -> None:
        reason = result.fault
        self._failed[_key(job)] = reason
        self._failures[job.participant] += 1
        self._finite[job.participant] = result.finite
        name = next((h.name for h in self._hosts if h.participant == job.participant), "")
        told = f"{name}: {reason}" if name else reason
        self._recorder.emit("rejected", participant=job.participant, round=round_, reason=told)
        if min(self._failures) < _HOPELESS:
            return
        if not any(self._finite):
            where = f"round {round_}, the model of every participant"
            raise diverged(self._run.suspects, "small", where)
        raise EdgeFlError(
            f"every participant has failed {_HOPELESS} times in a row, the last time: {told}"
        )

    def _record_jobs(self, aggregation: Aggregation, updates: Iterable[Update]) -> int:
        """One event per job of the aggregation; returns how many were rejected."""
        by_job = {_key(update.job): update for update in updates}
        rejected = 0
        for job in (*aggregation.jobs, *aggregation.lost):
            reason = self._failed.pop(_key(job), "")
            update = by_job.get(_key(job))
            status = "lost" if job.lost and not reason else "ok"
            if reason:
                status = "error" if reason.startswith("error: ") else "rejected"
                rejected += 1
            self._recorder.emit(
                "job",
                job=self._jobs,
                round=aggregation.version,
                participant=job.participant,
                index=job.index,
                base_version=job.base_version,
                t_start=job.t_start,
                t_compute=job.t_compute,
                t_upload=job.t_upload,
                t_end=job.t_end,
                status=status,
                loss=update.loss if update else None,
                examples=update.examples if update else None,
            )
            self._jobs += 1
        return rejected

    def _wait_for_server(self, version: int, t: float) -> None:
        """What the synchronous variants do: wait until the distillation server is done with
        `version`, and go on with the small model that it has forward-distilled, if it does that."""
        publisher = self._publisher
        assert publisher is not None
        if self._run.forward:
            publisher.wait(lambda: publisher.forwarded(version) is not None)
            result = publisher.forwarded(version)
            if result is not None:
                self._keep(version, result, t)
        elif not self._run.virtual:
            # On the virtual clock the trace has the wait in it, and nothing here depends on it.
            publisher.wait(lambda: publisher.published >= version)

    def _hear(self) -> None:
        if self._publisher is not None:
            self._publisher.hear()

    def _evaluated(self, **fields: Any) -> None:
        record_evaluation(self._run.suspects, self._recorder, **fields)
        if self._best is not None:
            self._best.see(fields)

    def _warn(self, message: str) -> None:
        self._recorder.emit("warning", message=message)

    def _close_round(self, metrics: MetricRecord, eta: float, evaluator: Evaluator) -> None:
        """Record the round, evaluate its small model, write the checkpoint."""
        publisher, version, t = self._publisher, self._version, metrics["t"]
        vectors = self._versions[version]
        if SMALL_AVERAGE in self._run.references:
            # Before the small model, with which the line of the round is complete.
            self._put(evaluator, "small_average", version, t, self._average)
        self._put(evaluator, "small", version, t, vectors)
        step, teacher = publisher.progress(version) if publisher else (None, None)
        self._recorder.emit(
            "round",
            round=version,
            **metrics,
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
            worker_steps=step,
            teacher_version=teacher,
            eta=eta,
        )
        last = version == self._run.rounds
        if last or version % self._run.checkpoint_every == 0:
            self._save(float(t), evaluator)  # type: ignore[arg-type]

    def _put(self, evaluator: Evaluator, model: str, round_: int, t: Any, vectors: Vectors) -> None:
        fields = {"round": round_, "t": t, "model": model}
        evaluator.put(Candidate("small", vectors, None, fields))

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
            counters = {"job": self._jobs - 1, "segment": self._segments - 1}
            self._recorder.emit("resumed", round=self._version, **counters)

    def _save(self, t: float, evaluator: Evaluator) -> None:
        """Everything that `_load` needs to go on as if nothing had happened."""
        tensors = {
            f"version.{version}.{name}": vector
            for version, vectors in self._versions.items()
            for name, vector in vectors.items()
        }
        tensors |= {f"average.{name}": vector for name, vector in self._average.items()}
        tensors |= {f"rule.{name}": vector for name, vector in self._rule.state().items()}
        tensors |= {
            f"pending_{model}.{round_}.{name}": vector
            for model in _SMALL
            for round_, task in evaluator.pending(model).items()
            for name, vector in task.vectors.items()
        }
        metadata = {
            "version": self._version,
            "t": t,
            "jobs": self._jobs,
            "segments": self._publisher.segments if self._publisher else 0,
            "bytes_up": self._bytes_up,
            "bytes_down": self._bytes_down,
            "next_index": list(self._rounds.next_index) if isinstance(self._rounds, Live) else [],
        }
        self._recorder.save_checkpoint(CHECKPOINT, tensors, metadata)
        if self._publisher is not None:
            self._publisher.prune(self._version, keep=set(evaluator.pending("global")))

    def _load(self) -> None:
        tensors, metadata = self._recorder.load_checkpoint(CHECKPOINT)
        self._version = metadata["version"]
        self._versions = _numbered(tensors, "version")
        self._forgotten = {model: _numbered(tensors, f"pending_{model}") for model in _SMALL}
        self._average = _part(tensors, "average")
        self._rule.load_state(_part(tensors, "rule"))
        self._jobs, self._segments = metadata["jobs"], metadata["segments"]
        self._bytes_up, self._bytes_down = metadata["bytes_up"], metadata["bytes_down"]
        if self._run.virtual:
            self._rounds = Replay(self._run.schedule.trace(), self._version)
        else:
            self._rounds = self._live(self._version, metadata["next_index"])
            self._clock = Clock(metadata["t"])

    def _evaluate_forgotten(self, evaluator: Evaluator) -> None:
        """What was to be evaluated when a resumed run was killed."""
        events = self._recorder.events() if self._run.resumed else []
        times = {event["round"]: event["t"] for event in events if event["event"] == "round"}
        for model, forgotten in self._forgotten.items():
            for round_, vectors in forgotten.items():
                self._put(evaluator, model, round_, times[round_], vectors)
        if self._publisher is not None:
            self._publisher.evaluate_again(events)

    def _await_global_model(self) -> Vectors | None:
        """The global model as it is published last; None without a distillation server."""
        publisher = self._publisher
        if publisher is None:
            return None
        rounds = self._version
        if not self._run.virtual:
            publisher.server.finish(rounds)
        if not (self._run.virtual and self._stopped):  # else it follows its trace to the end
            publisher.wait(lambda: publisher.server.finished)
        publisher.close(rounds)
        return publisher.newest(rounds)

    def _save_models(self, global_model: Vectors | None) -> None:
        """The final models as files of their own, each with what is needed to build it again."""
        models = {"small": self._versions[self._version]}
        if global_model is not None:
            models["large"] = global_model
        for role, vectors in models.items():
            model = flat_model(self._run.problem, role)
            model.load(vectors["weights"], vectors["buffers"])
            metadata = {"role": role, "schema": model.schema(), "checksum": model.checksum()}
            name = "global" if role == "large" else role
            self._recorder.save_checkpoint(name, vectors, metadata)


def _key(job: Job) -> Key:
    return job.participant, job.index


def _record(vectors: Vectors) -> ArrayRecord:
    return ArrayRecord({name: Array(vector) for name, vector in vectors.items()})


def _numbered(tensors: Vectors, prefix: str) -> dict[int, Vectors]:
    """{number: {name: vector}} of the tensors "prefix.number.name"."""
    result: dict[int, Vectors] = {}
    for key, vector in _part(tensors, prefix).items():
        number, name = key.split(".")
        result.setdefault(int(number), {})[name] = vector
    return result


def _part(tensors: Vectors, prefix: str) -> Vectors:
    start = f"{prefix}."
    return {key.removeprefix(start): v for key, v in tensors.items() if key.startswith(start)}
