"""The best of the models that a run has published so far, kept as a file; and when to stop."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from strategies.distillation.settings import DistillationRun
from strategies.evaluation import Candidate
from strategies.problem import flat_model, task_of
from strategies.recorder import Recorder

CHECKPOINT = "best"


class Best:
    """By the metric `best-metric` of each evaluation of the published model: "global" with a
    distillation server, else "small". A run that is resumed at `version` goes on with the file
    that there is, unless that is of a round which on the real clock is made anew, as another one.

    tasks: {round: what is being evaluated} of a model.
    """

    def __init__(
        self,
        run: DistillationRun,
        recorder: Recorder,
        tasks: Callable[[str], Mapping[int, Candidate]],
        version: int,
    ) -> None:
        self._run, self._recorder, self._tasks = run, recorder, tasks
        self._model = "global" if run.distils else "small"
        larger = {each.name for each in task_of(run.problem).metrics if each.higher_is_better}
        self._sign = 1.0 if run.best_metric in larger else -1.0
        self.round, self._value = 0, -math.inf
        self._seen = 0  # the newest round of which it has taken in an evaluation
        if recorder.has_checkpoint(CHECKPOINT):
            _, metadata = recorder.load_checkpoint(CHECKPOINT)
            if run.virtual or metadata["round"] <= version:
                self.round, self._value = metadata["round"], self._sign * metadata["value"]

    def see(self, fields: Mapping[str, Any]) -> None:
        """Take in an evaluation's event. The model is that of the metric: if its weight average is
        published, and the metric is known of that, the weight average."""
        if fields["model"] != self._model:
            return
        metric, round_ = self._run.best_metric, fields["round"]
        self._seen = max(self._seen, round_)
        averaged = fields.get(f"{metric}_ema") if fields.get("published") == "ema" else None
        value = self._sign * float(fields[metric] if averaged is None else averaged)
        # A resumed run may tell of the best one again; on the real clock the last round may have
        # another model after it, which must be better, too.
        if not (value > self._value or (round_ == self.round and value == self._value)):
            return
        task = self._tasks(self._model)[round_]
        vectors = task.vectors if averaged is None or task.ema is None else task.ema
        self.round, self._value = round_, value
        model = flat_model(self._run.problem, task.role)
        model.load(vectors["weights"], vectors["buffers"])
        told = {"round": round_, "metric": metric, "value": self._sign * value}
        metadata = {"role": task.role, "schema": model.schema(), "checksum": model.checksum()}
        self._recorder.save_checkpoint(CHECKPOINT, vectors, {**metadata, **told})
        self._recorder.emit("best", model=self._model, **told)

    def is_old(self, round_: int) -> bool:
        """Whether it has been the best for `stop-patience` rounds, if that ends the run. On the
        real clock rounds count whose model has been evaluated."""
        patience = self._run.stop_patience
        newest = round_ if self._run.virtual else min(round_, self._seen)
        return bool(patience) and newest - self.round >= patience
