"""The distillation server: a process that turns the newest average into the global model.

    python -m strategies.distillation.worker DIRECTORY

DIRECTORY holds ``run.json`` (the run's configuration) and the mailboxes. One JSON object a line
comes in on stdin (``publish``, ``finish``) and goes out on stdout (``ready``, ``published``,
``segment``, ``forward``, ``rejected``, ``step``, ``finished``). Nobody ever waits for
it to listen: versions are files, and it looks for them between its minibatches. It ends when it is
told to, when stdin ends or when its parent is gone, so it cannot outlive the run.
"""

import time
from pathlib import Path

import torch

from strategies.arithmetic import allow_tf32
from strategies.averaging import Vectors
from strategies.checkpoint import atomic_save, load_tensors
from strategies.distillation.child import Parent, RunIsOver, do
from strategies.distillation.learner import Learner
from strategies.distillation.mailbox import (
    LatestSlot,
    VersionStore,
    forward_file,
    published_file,
    published_files,
)
from strategies.distillation.settings import DistillationRun
from strategies.distillation.trace import instructions_after
from strategies.errors import RunDirectoryError
from strategies.problem import flat_model, pick_device, proxy_data, task_of

# While there is nothing to do, the mailbox is looked at this often: far below a minibatch's time.
_POLL_SECONDS = 0.005


class Worker:
    """Drives a Learner along the trace (virtual clock) or freely (real clock)."""

    def __init__(self, directory: Path, run: DistillationRun) -> None:
        self._directory, self._run = directory, run
        self._parent = Parent()
        device = pick_device(run.problem.device)
        allow_tf32(run.precision)
        if device == "cuda":
            torch.cuda.set_per_process_memory_fraction(run.distill.gpu_fraction)
        self._learner = Learner(
            run,
            task_of(run.problem),
            flat_model(run.problem, "large", device),
            flat_model(run.problem, "small", device),
            proxy_data(run.problem).to(device),
        )
        self._round, self._published_step = 0, 0  # of the newest publication
        self._taught = False  # by this process: a state has the teacher's version, not the teacher
        self._final: int | None = None  # the last round, once ``finish`` was ordered
        self._segment: tuple[float, int] | None = None  # real clock: its start, its first step
        published = published_files(directory)
        if published:
            arrays, metadata = load_tensors(published[-1])
            self._learner.load_state(arrays, metadata)
            self._round, self._published_step = metadata["round"], self._learner.step

    def run(self) -> None:
        self._parent.listen()
        self._parent.say(
            "ready",
            round=self._round,  # of the state from which it goes on
            step=self._learner.step,
            teacher_version=self._learner.teacher_version,
        )
        try:
            if self._run.virtual:
                self._replay()
            else:
                self._run_freely()
        except RunIsOver:
            return
        self._parent.say("finished", step=self._learner.step)

    # -- virtual clock ------------------------------------------------------------------------

    def _replay(self) -> None:
        """Do what the trace says, each order as soon as its teacher is there."""
        store = VersionStore(self._directory)
        for instruction in instructions_after(self._run.schedule.trace(), self._round):
            if instruction.kind == "publish":
                self._publish(instruction.round)
                continue
            vectors = self._await_version(store, instruction.teacher_version)
            if instruction.kind == "forward":
                self._forward(instruction.teacher_version, vectors)
                continue
            self._teach(instruction.teacher_version, vectors)
            for _ in range(instruction.steps):
                self._parent.check()
                self._step()

    def _await_version(self, store: VersionStore, version: int) -> Vectors:
        while (vectors := store.take(version)) is None:
            self._parent.check()
            time.sleep(_POLL_SECONDS)
        return vectors

    # -- real clock ---------------------------------------------------------------------------

    def _run_freely(self) -> None:
        """Work with whatever is newest until ``finish``, which grants one more block."""
        slot = LatestSlot(self._directory)
        if self._run.policy == "continuous":
            self._step_continuously(slot)
        else:
            self._step_in_blocks(slot)
        self._close_segment(self._learner.teacher_version)
        assert self._final is not None
        if self._round < self._final or self._published_step < self._learner.step:
            self._publish(self._final)

    def _step_continuously(self, slot: LatestSlot) -> None:
        """A step whenever there is a teacher; the newest version is taken between two steps."""
        left = self._run.distill.reverse_steps  # after ``finish``
        while left:
            self._serve()
            self._take(slot)
            if self._taught:
                self._step()
                left -= self._final is not None
            elif self._final is not None:
                return
            else:
                time.sleep(_POLL_SECONDS)

    def _step_in_blocks(self, slot: LatestSlot) -> None:
        """One block per version; overtaken versions are never seen."""
        sync = self._run.policy == "sync"
        done = self._round if sync else 0  # what is there already had its block before a kill
        while True:
            self._serve()
            taken = self._take(slot)
            if taken is None:
                if self._final is not None:
                    return
                done = 0  # what comes now is made anew
                time.sleep(_POLL_SECONDS)
                continue
            if taken[0] > done:
                for _ in range(self._run.distill.reverse_steps):
                    self._serve()
                    self._step()
                self._close_segment(taken[0])
                if sync:
                    self._publish(taken[0])
            if self._run.forward and not forward_file(self._directory, taken[0]).exists():
                self._forward(*taken)

    def _take(self, slot: LatestSlot) -> tuple[int, Vectors] | None:
        """Change to the newest version if there is a new one; a broken one is reported and
        ignored, and the teacher stays."""
        try:
            taken = slot.take()
            if taken is None:
                return None
            before = self._learner.teacher_version
            self._teach(*taken)
        except (RunDirectoryError, ValueError, KeyError) as error:
            self._parent.say("rejected", reason=f"teacher: {error}")
            return None
        self._close_segment(before)
        self._segment = (time.monotonic(), self._learner.step)
        return taken

    def _close_segment(self, teacher_version: int) -> None:
        """Report what was done with a teacher since it was taken."""
        if self._segment is not None and self._learner.step > self._segment[1]:
            start, step = self._segment
            self._parent.say(
                "segment",
                kind="reverse",
                teacher_version=teacher_version,
                first_step=step,
                steps=self._learner.step - step,
                start=start,
                end=time.monotonic(),
            )
        self._segment = None

    def _serve(self) -> None:
        """Do what was ordered meanwhile, without stopping."""
        for order in self._parent.orders():
            if order["op"] == "publish":
                self._publish(order["round"])
            else:
                self._final = order["round"]

    # -- both clocks --------------------------------------------------------------------------

    def _teach(self, version: int, vectors: Vectors) -> None:
        """Take version `version` as teacher."""
        teacher = vectors["teacher_weights"], vectors["teacher_buffers"]
        self._learner.set_teacher(version, *teacher)
        self._taught = True

    def _forward(self, version: int, vectors: Vectors) -> None:
        """Forward distillation from the global model into version `version`, left as a file."""
        start = time.monotonic()
        base = vectors["weights"], vectors["buffers"]
        result = self._learner.forward_distil(version, *base, self._tell_step)
        atomic_save(forward_file(self._directory, version), result, {}, durable=False)
        steps, times = self._run.distill.forward_steps, {"start": start, "end": time.monotonic()}
        self._parent.say("forward", teacher_version=version, steps=steps, **times)

    def _step(self) -> None:
        self._learner.reverse_step()
        self._tell_step()

    def _tell_step(self) -> None:
        self._parent.say_step(self._learner.step)

    def _publish(self, round_: int) -> None:
        """Leave the whole state as a file: what is shown, and what a successor continues from."""
        arrays, metadata = self._learner.state()
        self._round, self._published_step = round_, self._learner.step
        path = published_file(self._directory, round_)
        atomic_save(path, arrays, {**metadata, "round": round_})
        self._parent.say(
            "published",
            round=round_,
            step=self._learner.step,
            teacher_version=self._learner.teacher_version,
        )


def main() -> None:
    do(Worker)


if __name__ == "__main__":
    main()
