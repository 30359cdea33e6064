"""Evaluations of a run's models, and what comes of them: the best model, and an early end."""

from collections.abc import Callable, Mapping
from typing import Any

from strategies.averaging import Vectors
from strategies.best import Best
from strategies.distillation.publisher import Publisher
from strategies.distillation.settings import SMALL_AVERAGE, SMALL_CALIBRATED, DistillationRun
from strategies.divergence import record_evaluation
from strategies.evaluation import Candidate, Evaluator
from strategies.recorder import Recorder

# That the averaging server has evaluated.
SMALL_MODELS = ("small_average", "small_calibrated", "small")

Pending = Mapping[str, Mapping[int, Vectors]]  # by model and round, what is to be evaluated


class Evaluations:
    """Has models evaluated beside the run, and records what is found. DivergedError, at whatever
    is done next, when a model of the run is not finite. version: at which the run is resumed."""

    def __init__(
        self,
        run: DistillationRun,
        recorder: Recorder,
        warn: Callable[[str], None],
        version: int,
    ) -> None:
        self._run, self._recorder = run, recorder
        roles = ("small", "large") if run.distils else ("small",)
        self.evaluator = Evaluator(run.problem, roles, self._evaluated, warn)
        pending = self.evaluator.pending
        self._best = Best(run, recorder, pending, version) if run.best_metric else None

    def put(self, model: str, round_: int, told: Mapping[str, Any], vectors: Vectors) -> None:
        """Have one of SMALL_MODELS evaluated as it was in a round that has told this. What is
        calibrated is of the version before; forward distillation makes the others, later."""
        t = told["t"] if model == "small_calibrated" else told.get("t_small", told["t"])
        fields = {"round": round_, "t": t, "model": model}
        self.evaluator.put(Candidate("small", vectors, None, fields))

    def put_all(
        self,
        round_: int,
        told: Mapping[str, Any],
        vectors: Vectors,
        average: Vectors,
        calibrated: Vectors,
    ) -> None:
        """What there is in every round: the references, and then the small model, with which the
        line of the round is complete. told: by the round. calibrated: {} before there is that
        average."""
        if SMALL_AVERAGE in self._run.references:
            self.put("small_average", round_, told, average)
        if calibrated and SMALL_CALIBRATED in self._run.references:
            self.put("small_calibrated", round_, told, calibrated)
        self.put("small", round_, told, vectors)

    def put_again(self, forgotten: Pending, events: list[dict[str, Any]]) -> None:
        """What a kill has prevented the evaluation of. events: of the run until then."""
        told = {event["round"]: event for event in events if event["event"] == "round"}
        for model, rounds in forgotten.items():
            for round_, vectors in rounds.items():
                self.put(model, round_, told[round_], vectors)

    def pending(self) -> dict[str, dict[int, Vectors]]:
        """Of SMALL_MODELS, what is still to be evaluated."""
        return {
            model: {round_: task.vectors for round_, task in self.evaluator.pending(model).items()}
            for model in SMALL_MODELS
        }

    def end_early(self, version: int, publisher: Publisher | None) -> bool:
        """Whether the run is to stop at `version`, as nothing better has come for long; that is
        recorded. On the virtual clock all models up to now have been evaluated then; on the real
        one those that have been, decide. Nothing better can come of a distillation server that is
        dead, and that run goes on, and fails."""
        if self._best is None or not self._run.stop_patience or not version:
            return False
        if self._run.virtual:
            if publisher is not None:
                publisher.wait_for(version)
            self.evaluator.drain()
        ends = self._best.is_old(version) and not (publisher is not None and publisher.dead)
        if ends:
            self._recorder.emit("stopped_early", round=version, best=self._best.round)
        return ends

    def close(self) -> None:
        """Wait for what is being evaluated."""
        self.evaluator.close()

    def _evaluated(self, **fields: Any) -> None:
        # What has been recorded is not evaluated again after a kill: the best model is kept before.
        if self._best is not None:
            self._best.see(fields)
        record_evaluation(self._run.suspects, self._recorder, **fields)
