"""The distillation server's learning, step by step; processes and files are the worker's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fl_app.config import RunConfig
from fl_app.data.augment import augment, normalise
from fl_app.data.proxy import ProxyData
from fl_app.models import FlatModel
from strategies.distillation.growth import grow
from strategies.distillation.losses import distillation_loss
from strategies.distillation.student import Student, Vectors, holding
from strategies.optimisers import sgd_step
from strategies.randomness import rng

# After growing, the large model may be this much worse than the small one (in accuracy or, without
# labels, in agreement with it); beyond, the growth has failed and is undone.
GROWTH_TOLERANCE = 0.02


class Learner:
    """The large *global* model G as a student (and, for forward distillation, as a teacher).

    One reverse step is one AdamW step of G on one augmented batch towards the teacher's logits on
    the same batch (Yajima et al.: reverse distillation). Batches, noise and gates depend on (seed,
    step) alone, so equal teachers in equal order give equal bits.
    """

    def __init__(
        self,
        config: RunConfig,
        large: FlatModel,
        small: FlatModel,
        proxy: ProxyData,
    ) -> None:
        self._config, self._proxy = config, proxy
        self._student, self._teacher = large, small
        self._training = Student(config, large)
        self.step = 0
        self.teacher_version = 0
        self.grown = False

    def set_teacher(self, version: int, weights: np.ndarray, buffers: np.ndarray) -> None:
        """Teach with these vectors of the small model from the next step on.

        Raises ValueError, and keeps the teacher it has, when they do not fit or are not finite.
        """
        if not (np.isfinite(weights).all() and np.isfinite(buffers).all()):
            raise ValueError(f"version {version} of the small model has values that are not finite")
        self._teacher.load(weights, buffers)
        self._teacher.module.eval()
        self.teacher_version = version

    def reverse_step(self) -> None:
        """One minibatch of reverse distillation; needs a teacher."""
        images, labels = self._batch("reverse", self.step, self._config.distill.batch_size)
        with torch.no_grad():
            target = self._teacher.module(images)
        self._training.step(lambda: self._loss(self._student.module(images), target, labels))
        self.step += 1

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
        distill, size = self._config.distill, self._config.batch_size
        pupil, teacher = self._teacher, self._student.module
        with holding(pupil, weights, buffers), self._training.published():
            velocity = torch.zeros_like(pupil.weights)
            teacher.eval()
            pupil.module.train()
            for part in range(distill.forward_steps):
                images, labels = self._batch("forward", version, size, part)
                with torch.no_grad():
                    target = teacher(images)
                pupil.zero_grad()
                self._loss(pupil.module(images), target, labels).backward()
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

    def worth_forwarding(self, weights: np.ndarray, buffers: np.ndarray) -> bool:
        """Whether G is at least as accurate as these vectors of the small model on the validation
        images. Without labels nobody can tell, and the answer is no: an ungated forward
        distillation from a G that lags behind damages the small model."""
        if self._proxy.validation_labels is None:
            return False
        with holding(self._teacher, weights, buffers):
            small = self._score(self._teacher)
        with self._training.published():
            return self._score(self._student) >= small

    def grow(self, version: int, weights: np.ndarray, buffers: np.ndarray) -> dict[str, Any]:
        """Rebuild G from these vectors of the small model - unless that would set G back.

        Accepted if the grown G is at least as accurate on the validation images as G was, and not
        far behind the small model. Without labels it is agreement with the small model that is
        compared. Returns accepted and the accuracies: accuracy_small, accuracy_before (G's, as
        published) and accuracy_after.
        """
        old = self._student.state()
        with holding(self._teacher, weights, buffers):
            small = self._teacher.module.eval()
            with torch.no_grad():
                answers = small(self._validation()).argmax(1)
            labels = self._proxy.validation_labels
            labels = answers if labels is None else labels
            reference = (answers == labels).float().mean().item()
            with self._training.published():
                before = self._score(self._student, labels)
            images, _ = self._batch("grow", version, 4 * self._config.distill.batch_size)
            generator = rng(self._config.seed, "growth")
            noise = self._config.distill.grow_noise
            grow(small, self._student.module, images, generator, noise)
        after = self._score(self._student, labels)
        accepted = after >= max(before, reference - GROWTH_TOLERANCE)
        if accepted:
            self._training.start_over()
        else:
            self._student.load(old["weights"], old["buffers"])
        self.grown = True
        return {
            "accepted": accepted,
            "accuracy_small": reference,
            "accuracy_before": before,
            "accuracy_after": after,
        }

    def state(self) -> tuple[Vectors, dict[str, Any]]:
        """Everything a later process needs to go on with equal bits: (arrays, metadata)."""
        arrays, metadata = self._training.state()
        metadata |= {
            "step": self.step,
            "teacher_version": self.teacher_version,
            "grown": self.grown,
        }
        return arrays, metadata

    def load_state(self, arrays: Vectors, metadata: dict[str, Any]) -> None:
        """Continue from what `state` returned. Raises ValueError when it is of another model."""
        self._training.load_state(arrays, metadata)
        self.step = metadata["step"]
        self.teacher_version = metadata["teacher_version"]
        self.grown = metadata["grown"]

    def _loss(
        self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor | None
    ) -> torch.Tensor:
        distill = self._config.distill
        return distillation_loss(
            student, teacher, distill.temperature, labels, distill.label_weight
        )

    def _batch(
        self, purpose: str, number: int, size: int, part: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A random batch of normalised proxy images (size, c, h, w), and the labels of the first of
        them where the server has labels."""
        proxy = self._proxy
        generator = rng(self._config.seed, purpose, number, part)
        chosen, labels = proxy.draw(generator, size, self._config.distill.labelled_share)
        images = augment(chosen, generator, mean=proxy.mean, std=proxy.std, flip=proxy.flip)
        return images, labels

    def _validation(self) -> torch.Tensor:
        return normalise(self._proxy.validation_images, self._proxy.mean, self._proxy.std)

    @torch.no_grad()
    def _score(self, model: FlatModel, labels: torch.Tensor | None = None) -> float:
        """Share of the validation images on which `model` answers `labels` (default: the true)."""
        labels = self._proxy.validation_labels if labels is None else labels
        answers = model.module.eval()(self._validation()).argmax(1)
        return (answers == labels).float().mean().item()
