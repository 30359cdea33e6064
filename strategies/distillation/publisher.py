"""What becomes of the distillation server's words: evaluations, segments, deaths as events."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from strategies.averaging import Vectors
from strategies.checkpoint import load_tensors
from strategies.clock import Clock
from strategies.distillation.mailbox import (
    LatestSlot,
    VersionStore,
    forward_file,
    forward_files,
    number_of,
    published_file,
    published_files,
)
from strategies.distillation.references import References
from strategies.distillation.server_state import saved_version
from strategies.distillation.settings import DistillationRun
from strategies.distillation.supervisor import DistillationServer
from strategies.distillation.trace import instructions_after
from strategies.divergence import require_finite
from strategies.errors import RunDirectoryError, WorkerError
from strategies.evaluation import Candidate, Evaluator
from strategies.recorder import Recorder
from strategies.schedule import Segment

WORKER = "worker"  # the folder of the distillation server


def check_resumable(run: DistillationRun, recorder: Recorder) -> None:
    """Raise RunDirectoryError if what the run goes on from has gone."""
    if run.distils and (version := saved_version(recorder)) is not None:
        check_server(run, recorder, version)


def check_server(run: DistillationRun, recorder: Recorder, version: int) -> None:
    """Raise RunDirectoryError unless all is there that the distillation server goes on from when
    the run is resumed at `version`: else it would wait for a version that nobody makes again, or
    begin anew."""
    directory = recorder.path / WORKER
    published = [path for path in published_files(directory) if number_of(path) <= version]
    needed = published[-1:]
    if run.virtual:
        store = VersionStore(directory)
        rest = instructions_after(
            run.schedule.trace(), number_of(published[-1]) if published else 0
        )
        taken = {order.teacher_version for order in rest if order.kind != "publish"}
        needed += [store.file(v) for v in sorted(taken) if v <= version]
    elif not published:
        shown = [e["round"] for e in recorder.events() if e.get("model") == "global"]
        needed = [published_file(directory, r) for r in shown if r <= version][-1:]
    try:
        for path in needed:
            load_tensors(path)
    except RunDirectoryError as error:
        raise RunDirectoryError(
            f"the distillation server cannot go on: {error}; put back what was in {directory}, or "
            f"start a new run"
        ) from error


class Publisher:
    """Runs the distillation server for a strategy and records what it does.

    `published` is the last round whose global model has been published, `step` and
    `teacher_version` are those of that model. `dead`: the server has died, and is not restarted.
    """

    def __init__(
        self,
        run: DistillationRun,
        recorder: Recorder,
        clock: Clock,
        evaluator: Evaluator,
        version: int,
        segments: int,
    ) -> None:
        self._run, self._recorder = run, recorder
        self._clock, self._evaluator = clock, evaluator
        self._directory = recorder.path / WORKER
        self._arrivals: dict[int, float] = {}  # version -> when it was made
        self.segments = segments  # recorded so far
        self._told = version  # the newest round of which nothing more is to be told
        self._made = version  # the newest version
        self._early: dict[int, dict[str, Any]] = {}  # by round, what is heard with its version
        self._taught: set[int] = set()  # versions that a teacher was made of, real clock
        self.dead = False
        self.ready = False
        self.published, self.step, self.teacher_version = 0, 0, 0
        self.server = DistillationServer(run, self._directory)
        # Resumed at `version`: the server goes back to what the federation has reached. On the real
        # clock it keeps what it has learnt, but a version that is made anew is another one.
        for path in forward_files(self._directory):
            if number_of(path) > version:
                path.unlink()
        if not run.virtual:
            LatestSlot(self._directory).forget(after=version)
            past = recorder.events() if version else []
            reverse = [e for e in past if e["event"] == "segment" and e["kind"] == "reverse"]
            self._taught |= {e["teacher_version"] for e in reverse}
        else:
            for path in published_files(self._directory):
                if number_of(path) > version:
                    path.unlink()
            self._trace = run.schedule.trace()
            self._times = {p.round: p.t for p in self._trace.publications}
        self.server.start()
        self.references = (
            References(run, recorder, evaluator, version) if run.trained_references else None
        )

    def wait(self, done: Callable[[], bool]) -> None:
        """Hear the server until `done`, or until there is nobody to wait for.

        On the real clock that takes round-timeout at most. On the virtual clock it takes as long as
        the server learns; one that is silent is stuck, and is replaced.
        """
        timeout = None if self._run.virtual else self._run.round_timeout
        if not self.server.wait(done, self.hear, timeout):
            message = "the distillation server takes longer than round-timeout: going on"
            self._recorder.emit("warning", message=message)

    def wait_for(self, version: int) -> None:
        """Wait until the global model of `version` has been published."""
        self.wait(lambda: self.published >= version)

    def put(self, version: int, vectors: Vectors, teacher: Vectors, t: float) -> None:
        """Hand version `version`, made at `t`, to the distillation server."""
        mail = {**vectors, **{f"teacher_{name}": vector for name, vector in teacher.items()}}
        self.server.put(version, mail)
        self._arrivals[version], self._made = t, version
        if early := self._early.pop(version, None):
            self._on_published(early)
        if not self._run.virtual and self._run.policy != "sync":
            self.server.request(version)

    def forwarded(self, version: int) -> Vectors | None:
        """What forward distillation made of `version`; None if it is not there yet."""
        path = forward_file(self._directory, version)
        return load_tensors(path)[0] if path.exists() else None

    def hear(self) -> None:
        """Record what the server has said since the last call."""
        for event in self.server.events():
            handler = getattr(self, f"_on_{event['event']}", None)
            if handler is not None:
                handler(event)
        if self.references is not None:
            self.references.hear()

    def _on_ready(self, event: dict[str, Any]) -> None:
        """It goes on from what it has published last. Resumed on the real clock that may be of a
        round which is yet to be made anew."""
        self.ready = True
        self.published = max(self.published, min(event["round"], self._told))
        self.step, self.teacher_version = event["step"], event["teacher_version"]
        self._told = max(self._told, event["round"])  # a run that is resumed has told it

    def _on_published(self, event: dict[str, Any]) -> None:
        round_ = event["round"]
        if self._run.virtual and round_ > self._made:
            # The server may be ahead of the federation, which may end before that round.
            self._early[round_] = event
            return
        self.published, self.step = round_, event["step"]
        self.teacher_version = event["teacher_version"]
        t = self._times[round_] if self._run.virtual else self._clock.at(event["at"])
        self._evaluate(round_, t)
        if self._run.virtual:
            self._replayed_until(t)

    def _evaluate(self, round_: int, t: float) -> None:
        """Have the global model published for `round_` evaluated; it is shown for time t.
        DivergedError if it is not finite."""
        arrays, metadata = load_tensors(published_file(self._directory, round_))
        fields = {
            "round": round_,
            "t": t,
            "model": "global",
            "step": metadata["step"],
            "teacher_version": metadata["teacher_version"],
            "published": "ema" if self._run.publish_ema else "raw",
        }
        raw = {name: arrays[name] for name in ("weights", "buffers")}
        ema = {name: arrays[f"ema_{name}"] for name in ("weights", "buffers")}
        for vectors in (raw, ema):
            require_finite(self._run.suspects, self._recorder, vectors, **fields)
        self._evaluator.put(Candidate("large", raw, ema, fields))
        if self.references is not None:
            self.references.show(round_, metadata["step"], t)

    def evaluate_again(self, events: list[dict[str, Any]]) -> None:
        """Evaluate what is left of the models that were published, and not evaluated, when a run
        with these events was killed."""
        if self.references is not None:
            self.references.go_on(events)
        done = {e["round"] for e in events if e.get("model") == "global"}
        times = {e["round"]: e["t"] for e in events if e["event"] == "round"}
        for round_, t in times.items():
            if round_ in done:
                continue
            if published_file(self._directory, round_).exists():
                self._evaluate(round_, self._times[round_] if self._run.virtual else t)

    def _replayed_until(self, t: float) -> None:
        segments = self._trace.segments
        while self.segments < len(segments) and segments[self.segments].t_end <= t:
            self._emit_planned(segments[self.segments])

    def _emit_planned(self, planned: Segment) -> None:
        self._emit_segment(
            planned.kind,
            planned.teacher_version,
            planned.steps,
            planned.t_start,
            planned.t_end,
            planned.staleness,
        )

    def _end_replay(self, round_: int) -> None:
        """Record what has been done until the publication of `round_`, with which the run ends: a
        resumed run may not have heard it again. Of a segment that an early end cuts, its steps
        until then."""
        last = self._trace.publications[round_ - 1]
        self._replayed_until(last.t)
        for planned in self._trace.segments[self.segments :]:
            if (steps := last.step - planned.first_step) > 0:
                stale = min(planned.staleness, round_ - 1 - planned.teacher_version)
                self._emit_planned(replace(planned, steps=steps, t_end=last.t, staleness=stale))

    def _on_segment(self, event: dict[str, Any]) -> None:
        start, end = self._clock.at(event["start"]), self._clock.at(event["end"])
        # A version that arrived during the last step could not have been taken: it is not counted.
        last_look = end - (end - start) / event["steps"]
        newest = max((v for v, t in self._arrivals.items() if t < last_look), default=0)
        stale = max(0, newest - event["teacher_version"])
        self._taught.add(event["teacher_version"])
        self._emit_segment("reverse", event["teacher_version"], event["steps"], start, end, stale)

    def _emit_segment(
        self, kind: str, teacher_version: int, steps: int, start: float, end: float, stale: int
    ) -> None:
        self._recorder.emit(
            "segment",
            segment=self.segments,
            kind=kind,
            teacher_version=teacher_version,
            steps=steps,
            t_start=start,
            t_end=end,
            staleness_versions=stale,
        )
        self.segments += 1

    def _on_forward(self, event: dict[str, Any]) -> None:
        if not self._run.virtual:
            start, end = self._clock.at(event["start"]), self._clock.at(event["end"])
            version, steps = event["teacher_version"], event["steps"]
            self._emit_segment("forward", version, steps, start, end, 0)

    def _on_rejected(self, event: dict[str, Any]) -> None:
        self._recorder.emit(
            "warning", message=f"the distillation server rejected a {event['reason']}"
        )

    def _on_died(self, event: dict[str, Any]) -> None:
        self._recorder.emit("worker_died", reason=event["reason"])
        self.dead = not event["restarting"]
        if self.dead:
            message = "the distillation server is not restarted again; the federation goes on"
            self._recorder.emit("warning", message=message)

    def _on_restarted(self, event: dict[str, Any]) -> None:
        self._recorder.emit("worker_restarted", step=event["step"])
        if event["round"] > max(self.published, self._told):  # it died before it could say so
            self._on_published(event)
        self._on_ready(event)

    def prune(self, version: int, keep: set[int]) -> None:
        """Drop what a run that is resumed at `version` has no more use for; not what has been
        published for the rounds in `keep` or has not been heard of yet."""
        kept = [path for path in published_files(self._directory) if number_of(path) <= version]
        for path in kept[:-1]:
            if number_of(path) <= self.published and number_of(path) not in keep:
                path.unlink()
        if kept and self._run.virtual:
            _, metadata = load_tensors(kept[-1])
            VersionStore(self._directory).forget(before=metadata["teacher_version"])
        for path in forward_files(self._directory):
            if number_of(path) < version:
                path.unlink(missing_ok=True)
        if self.references is not None:
            self.references.prune(version)

    def progress(self, version: int) -> tuple[int, int]:
        """Reverse steps done and the teacher's version when `version` was made."""
        if not self._run.virtual:
            return self.step, self.teacher_version
        publication = self._trace.publications[version - 1]
        taught = [s.teacher_version for s in self._trace.segments if s.t_start < publication.t]
        return publication.step, taught[-1] if taught else 0

    def distilled(self, version: int) -> Vectors | None:
        """Wait until the server is done with `version`, where that matters; the small model that it
        has forward-distilled, if it does that."""
        if self._run.forward:
            self.wait(lambda: self.forwarded(version) is not None)
            return self.forwarded(version)
        if not self._run.virtual:
            # On the virtual clock the trace has the wait in it, and nothing here depends on it.
            self.wait_for(version)
        return None

    def distilled_at(self, version: int) -> float:
        """When forward distillation has been done with `version`, of which it is just known."""
        if not self._run.virtual:
            return self._clock.now()
        return next(
            segment.t_end
            for segment in self._trace.segments
            if segment.kind == "forward" and segment.teacher_version == version
        )

    def last_model(self, rounds: int, *, stopped: bool) -> Vectors | None:
        """Wait for the end of the server's work, after `rounds` versions; the global model as it
        was published last. stopped: whether the run has ended early."""
        if not self._run.virtual:
            self.server.finish(rounds)
        if not (self._run.virtual and stopped):  # else it follows its trace to the end
            self.wait(lambda: self.server.finished)
        self.close(rounds)
        return self.newest(rounds)

    def close(self, rounds: int) -> None:
        """Record the versions that were never taught."""
        if self._run.virtual:
            if self.published == rounds:
                self._end_replay(rounds)
            skipped = tuple(v for v in self._trace.skipped if v <= rounds)
        else:
            skipped = tuple(v for v in range(1, rounds + 1) if v not in self._taught)
        for version in skipped:
            self._recorder.emit("skipped", version=version)

    def catch_up(self) -> None:
        """Wait for the references, which may be behind."""
        if self.references is not None:
            self.references.catch_up()

    def stop(self) -> None:
        """End the processes."""
        self.server.stop()
        if self.references is not None:
            self.references.process.stop()

    def conclude(self, *, stopped: bool) -> None:
        """Remove the processes' files: the run is complete and cannot be resumed. Raises
        WorkerError if the server has not done its work. stopped: as in `last_model`."""
        if self.dead or not (self.server.finished or stopped):
            how = "died for good" if self.dead else "was not done in time"
            raise WorkerError(
                f"the distillation server {how}; the federation has completed, and the "
                f"global model is the last one published ({self.server.last_words()})"
            )
        shutil.rmtree(self._directory, ignore_errors=True)
        if self.references is not None:
            self.references.clear()

    def newest(self, last: int) -> Vectors | None:
        """The global model that was published last, up to round `last`: its weight average where
        that is switched on."""
        files = [path for path in published_files(self._directory) if number_of(path) <= last]
        if not files:
            return None
        arrays, _ = load_tensors(files[-1])
        prefix = "ema_" if self._run.publish_ema else ""
        return {name: arrays[f"{prefix}{name}"] for name in ("weights", "buffers")}
