"""The best of the models that a run has published so far, kept as a file; and when to stop."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from fl_app.assemble import flat_model
from fl_app.config import RunConfig
from fl_app.record.run_dir import RunDirectory
from fl_app.tasks import task_of
from strategies.evaluation import Candidate

CHECKPOINT = "best"


class Best:
    """By the metric `best-metric` of each evaluation of the published model: "global" with a
    distillation server, else "small". A resumed run goes on with the file that there is.

    tasks: {round: what is being evaluated} of a model.
    """

    def __init__(
        self, config: RunConfig, run: RunDirectory, tasks: Callable[[str], Mapping[int, Candidate]]
    ) -> None:
        self._config, self._run, self._tasks = config, run, tasks
        self._model = "global" if config.distils else "small"
        larger = {each.name for each in task_of(config).metrics if each.higher_is_better}
        self._sign = 1.0 if config.best_metric in larger else -1.0
        self.round, self._value = 0, -math.inf
        if run.checkpoint_path(CHECKPOINT).exists():
            _, metadata = run.load_checkpoint(CHECKPOINT)
            self.round, self._value = metadata["round"], self._sign * metadata["value"]

    def see(self, fields: Mapping[str, Any]) -> None:
        """Take in an evaluation's event. The model is that of the metric: if its weight average is
        published, and the metric is known of that, the weight average."""
        if fields["model"] != self._model:
            return
        metric, round_ = self._config.best_metric, fields["round"]
        averaged = fields.get(f"{metric}_ema") if fields.get("published") == "ema" else None
        value = self._sign * float(fields[metric] if averaged is None else averaged)
        if not (value > self._value or round_ == self.round):
            return
        task = self._tasks(self._model)[round_]
        vectors = task.vectors if averaged is None or task.ema is None else task.ema
        self.round, self._value = round_, value
        model = flat_model(self._config, task.role)
        model.load(vectors["weights"], vectors["buffers"])
        told = {"round": round_, "metric": metric, "value": self._sign * value}
        metadata = {"role": task.role, "schema": model.schema(), "checksum": model.checksum()}
        self._run.save_checkpoint(CHECKPOINT, vectors, {**metadata, **told})
        self._run.emit("best", model=self._model, **told)

    def is_old(self, round_: int) -> bool:
        """Whether it has been the best for `stop-patience` rounds, if that ends the run."""
        patience = self._config.stop_patience
        return bool(patience) and round_ - self.round >= patience
