"""The distillation server's learning, step by step; processes and files are the worker's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from strategies.arithmetic import outputs_of
from strategies.distillation.growth import grow
from strategies.distillation.losses import distillation_loss
from strategies.distillation.proxy import Drawn, ProxyData
from strategies.distillation.recorded import RecordedStep
from strategies.distillation.settings import DistillationRun
from strategies.distillation.student import Student, Vectors, holding
from strategies.flat import FlatModel
from strategies.optimisers import sgd_step
from strategies.randomness import rng
from strategies.task import Task

# Noise on the lifted weights, as a fraction of a tensor's root mean square: without it, the copies
# of a channel would have equal gradients and stay copies.
_LIFT_NOISE = 0.05


class Learner:
    """The large *global* model G as a student (and, for forward distillation, as a teacher).

    One reverse step is one AdamW step of G on one augmented batch towards the teacher's outputs on
    the same batch (Yajima et al.: reverse distillation). Batches and noise depend on (seed, step)
    alone, so equal teachers in equal order give equal bits.

    With `distill.lift`, G = L(S) + D: L(S) are the weights with which the large model computes what
    the teacher S computes (Net2Net), D is what the reverse steps have changed. The first teacher
    sets G to L(S), with a little noise; each later one, S', moves G by L(S') - L(S). So G need not
    learn again what the participants have averaged.

    records: whether reverse steps are a recorded program (by default on a GPU), see `recorded`.
    """

    def __init__(
        self,
        run: DistillationRun,
        task: Task,
        large: FlatModel,
        small: FlatModel,
        proxy: ProxyData,
        *,
        records: bool | None = None,
    ) -> None:
        self._run, self._task, self._proxy = run, task, proxy
        self._student, self._teacher = large, small
        self._training = Student(run, large)
        for model in (large, small):
            model.look(proxy.prepare, proxy.inputs)
        self._records = large.weights.device.type == "cuda" if records is None else records
        self._records = self._records and not large.draws
        self._recorded: RecordedStep | None = None
        self.step = 0
        self.teacher_version = 0
        self._lifted: Vectors = {}  # L(S) of the teacher
        self._lifted_version = 0

    def set_teacher(self, version: int, weights: np.ndarray, buffers: np.ndarray) -> None:
        """Teach with these vectors of the small model from the next step on.

        Raises ValueError, and keeps the teacher it has, when they do not fit or are not finite.
        """
        if not (np.isfinite(weights).all() and np.isfinite(buffers).all()):
            raise ValueError(f"version {version} of the small model has values that are not finite")
        self._teacher.load(weights, buffers)
        self._teacher.module.eval()
        self.teacher_version = version
        if self._run.lift:
            self._follow(version)

    def _follow(self, version: int) -> None:
        """Move G by what L(S) has moved; at first, make it L(S)."""
        if version == self._lifted_version:  # a successor gets the teacher of its state again
            return
        lifted = self._lift(noise=0.0)
        if not self._lifted:
            self._student.load(**self._lift(_LIFT_NOISE))
            self._training.start_over()
        else:
            self._training.move(self._lifted, lifted)
        self._lifted, self._lifted_version = lifted, version

    def _lift(self, noise: float) -> Vectors:
        """L(S) of the teacher, whose extra layers are calibrated on one fixed batch."""
        student = self._student
        images, _ = self._batch("lift", 0, 4 * self._run.distill.batch_size)
        with holding(student, student.weights, student.buffers):
            generator = rng(self._run.seed, "lift")
            grow(self._teacher.module, student.module, images, generator, noise)
            return student.state()

    def reverse_step(self) -> None:
        """One minibatch of reverse distillation; needs a teacher."""
        drawn = self._drawn("reverse", self.step, self._run.distill.batch_size)
        if self._records:
            if self._recorded is None:
                self._recorded = RecordedStep(
                    self._training, self._proxy, self._reverse_loss, drawn
                )
            self._recorded(drawn)
        else:
            inputs, targets = self._proxy.batch(drawn)
            self._training.step(lambda: self._reverse_loss(inputs, targets))
        self.step += 1

    def _reverse_loss(self, inputs: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad():
            taught = self._outputs(self._teacher.module, inputs)
        return self._loss(self._outputs(self._student.module, inputs), taught, targets)

    def forward_distil(
        self,
        version: int,
        weights: np.ndarray,
        buffers: np.ndarray,
        after_step: Callable[[], None] = lambda: None,
    ) -> Vectors:
        """A copy of the small model's version `version` after learning from G (Yajima et al.:
        forward distillation); G and its teacher stay as they are. after_step: called after each
        minibatch."""
        distill, size = self._run.distill, self._run.batch_size
        pupil, teacher = self._teacher, self._student.module
        with holding(pupil, weights, buffers), self._training.published():
            velocity = torch.zeros_like(pupil.weights)
            teacher.eval()
            pupil.module.train()
            for part in range(distill.forward_steps):
                inputs, targets = self._batch("forward", version, size, part)
                with torch.no_grad():
                    taught = self._outputs(teacher, inputs)
                pupil.zero_grad()
                with pupil.drawing(self._run.seed, "forward", version, part):
                    outputs = self._outputs(pupil.module, inputs)
                    self._loss(outputs, taught, targets).backward()
                sgd_step(
                    pupil.weights,
                    pupil.gradient,
                    velocity,
                    learning_rate=distill.forward_learning_rate,
                    momentum=0.9,
                )
                after_step()
            result = pupil.state()
        pupil.module.eval()
        return result

    def state(self) -> tuple[Vectors, dict[str, Any]]:
        """Everything a later process needs to go on with equal bits: (arrays, metadata)."""
        arrays, metadata = self._training.state()
        metadata |= {
            "step": self.step,
            "teacher_version": self.teacher_version,
            "lifted_version": self._lifted_version,
        }
        arrays |= {f"lifted_{name}": vector for name, vector in self._lifted.items()}
        return arrays, metadata

    def load_state(self, arrays: Vectors, metadata: dict[str, Any]) -> None:
        """Continue from what `state` returned. Raises ValueError when it is of another model."""
        self._training.load_state(arrays, metadata)
        self.step = metadata["step"]
        self.teacher_version = metadata["teacher_version"]
        self._lifted_version = metadata["lifted_version"]
        names = ("weights", "buffers") if self._lifted_version else ()
        self._lifted = {name: arrays[f"lifted_{name}"] for name in names}

    def _outputs(self, module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        return outputs_of(module, inputs, self._run.precision)

    def _loss(
        self, student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor | None
    ) -> torch.Tensor:
        distill = self._run.distill
        return distillation_loss(
            self._task, student, teacher, distill.temperature, targets, distill.label_weight
        )

    def _batch(
        self, purpose: str, number: int, size: int, part: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A random batch of proxy inputs, and the targets of the first of them where the server
        has targets."""
        return self._proxy.batch(self._drawn(purpose, number, size, part))

    def _drawn(self, purpose: str, number: int, size: int, part: int = 0) -> Drawn:
        generator = rng(self._run.seed, purpose, number, part)
        return self._proxy.draw(generator, size, self._run.distill.labelled_share)
