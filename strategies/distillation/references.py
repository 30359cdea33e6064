"""The server's end of the trained references: how far they are to be, and their evaluations."""

import shutil
from typing import Any

from strategies.distillation.mailbox import number_of, published_file, published_files
from strategies.distillation.reference_worker import load_states
from strategies.distillation.settings import DistillationRun
from strategies.distillation.supervisor import ReferenceProcess
from strategies.evaluation import Candidate, Evaluator
from strategies.recorder import Recorder


class References:
    """Runs the process of the references for a strategy and records what they reach.

    Each time that the global model is shown, the references are to be shown with as many steps.
    Nobody waits for them before `catch_up`.
    """

    def __init__(
        self, run: DistillationRun, recorder: Recorder, evaluator: Evaluator, version: int
    ) -> None:
        self._run, self._recorder, self._evaluator = run, recorder, evaluator
        self._models = [name.replace("-", "_") for name in run.trained_references]
        self._directory = recorder.path / "references"
        self._times: dict[tuple[int, int], float] = {}  # (round, step) -> t of what is awaited
        if run.virtual:  # resumed at `version`: what comes after is shown once more
            for path in published_files(self._directory):
                if number_of(path) > version:
                    path.unlink()
        self.process = ReferenceProcess(run, self._directory)
        self.process.start()

    def show(self, round_: int, step: int, t: float) -> None:
        """Have the references evaluated for round `round_` and time `t`, after `step` steps."""
        if (round_, step) in self._times:
            return
        self._times[round_, step] = t
        if self._step_left_for(round_) == step:  # a kill prevented its evaluation
            self._evaluate(round_, step)
        else:
            self.process.show(round_, step)

    def _step_left_for(self, round_: int) -> int | None:
        path = published_file(self._directory, round_)
        if not path.exists():
            return None
        return max(told["step"] for _, told in load_states(path).values())

    def go_on(self, events: list[dict[str, Any]]) -> None:
        """Have shown what a resumed run has shown of the global model alone."""
        evaluations = [event for event in events if event["event"] == "evaluate"]
        done = [
            {event["round"] for event in evaluations if event["model"] == model}
            for model in self._models
        ]
        for event in evaluations:
            if event["model"] == "global" and not all(event["round"] in each for each in done):
                self.show(event["round"], event["step"], event["t"])

    def hear(self) -> None:
        """Have evaluated what has been done since the last call."""
        for event in self.process.events():
            if event["event"] == "published":
                round_, step = event["round"], event["step"]
                self.process.shown(round_, step)
                self._evaluate(round_, step)
            elif event["event"] == "died":
                what = "is started again" if event["restarting"] else "is not started again"
                message = f"{self.process.called} died and {what}: {event['reason']}"
                self._recorder.emit("warning", message=message)

    def _evaluate(self, round_: int, step: int) -> None:
        t = self._times.pop((round_, step), None)
        if t is None:  # shown already, by a process that died before it was heard
            return
        states = load_states(published_file(self._directory, round_))
        for name, (arrays, told) in states.items():
            raw = {key: arrays[key] for key in ("weights", "buffers")}
            ema = {key: arrays[f"ema_{key}"] for key in ("weights", "buffers")}
            fields = {
                "round": round_,
                "t": t,
                "model": name.replace("-", "_"),
                "step": told["step"],
                "published": "ema" if self._run.publish_ema else "raw",
            }
            self._evaluator.put(Candidate("large", raw, ema, fields))

    def catch_up(self) -> None:
        """Wait until the references are where the global model is, or there are none any more."""
        self.process.wait(lambda: not self.process.standing, self.hear)

    def prune(self, version: int) -> None:
        """Drop what a run that is resumed at `version` has no more use for."""
        awaited = {round_ for round_, _ in self._times}
        pending = {r for model in self._models for r in self._evaluator.pending(model)}
        kept = [path for path in published_files(self._directory) if number_of(path) <= version]
        for path in kept[:-1]:
            if number_of(path) not in awaited | pending:
                path.unlink()

    def clear(self) -> None:
        """Remove the files: the run is complete and cannot be resumed."""
        shutil.rmtree(self._directory, ignore_errors=True)
