"""The teacher's last layer, solved for all participants' labels at once.

Averaging spoils the last layer of a classifier first: every participant pulls it towards the
classes that it has, and the average is what is left of the pulls. Refitting that layer alone
repairs much of it (Luo et al. 2021, "No fear of heterogeneity"; Fani et al. 2024, Fed3R, from sums
over participants). Here it is the minimum of the cross entropy over all participants' examples,

    L(W) = mean_x lse(W phi(x)) - <W, M>,   M = mean e_y phi(x)^T,

in which labels appear in a linear term alone (the "mean operator", Quadrianto et al. 2009; Patrini
et al. 2014). So the first term is taken over the distillation server's own images, which need no
labels, and M is all that participants have to tell. What participant i sends is the gradient g_i of
its cross entropy with respect to the W that the model has, over some of its examples. With their
mean g, weighted by examples, M = mean_x softmax(W phi(x)) phi(x)^T - g, over the server's images:
the errors of both samples cancel where the model is right (Jordan et al. 2019: a surrogate with the
exact gradient).
"""

from collections.abc import Sequence

import numpy as np
import torch

from strategies.averaging import Vectors, running_average
from strategies.errors import ConfigError
from strategies.head import Head
from strategies.problem import Problem, flat_model, proxy_data, task_of, train_set_of
from strategies.randomness import rng
from strategies.rules import Update
from strategies.task import prepared

# Of the server's images, at most: with 1,500 a version takes 0.1 s.
_IMAGES = 2000
# lambda of lambda / 2 |W - W_0|^2, with the model's own W_0.
_PULL = 1e-3
_ITERATIONS = 60


def chosen(images: int, seed: int) -> np.ndarray:
    """Which of the server's images are used: all, or _IMAGES at random, in order. The first ones
    would not do: data are often sorted by class."""
    if images <= _IMAGES:
        return np.arange(images)
    return np.sort(rng(seed, "calibration-images").choice(images, _IMAGES, replace=False))


class Calibration:
    """Versions of the small model with the last layer that all participants' labels ask for.

    newest, average: the last of them, and the running average of all; {} before there is one. A
    version can be calibrated when participants have trained from it, so such a teacher is one
    version older than others. Only gradients of that very version count: those of another one are
    of other features and another W, and spoil it (tried with `averaging=buffered`).
    """

    def __init__(self, problem: Problem) -> None:
        task, proxy = task_of(problem), proxy_data(problem)
        stored = proxy.inputs[chosen(len(proxy.inputs), problem.seed)]
        self._inputs = prepared(task.prepare(False), stored, rng(problem.seed, "calibration"))
        self._model = flat_model(problem, "small")
        try:
            self._head = Head(self._model, self._inputs[:2])
            one_each = train_set_of(problem).targets.dim() == 1
            if not one_each or len(task.classes) != self._head.shape[0]:
                raise ValueError("its task has not one class for each example")
        except ValueError as error:
            raise ConfigError(
                f"distill.calibrate='on' cannot be: the small model has no last layer for it, "
                f"because {error}; use distill.calibrate=off"
            ) from error
        self.newest: Vectors = {}
        self.average: Vectors = {}

    @property
    def like(self) -> np.ndarray:
        """An array like those of participants."""
        return np.zeros(self._head.shape, np.float32)

    def follow(self, version: int, model: Vectors, updates: Sequence[Update]) -> None:
        """Calibrate `model`, which is that version, with what participants have told of it. Version
        0 is not calibrated: it has learnt nothing."""
        told = [
            (update.examples, update.gradient.astype(np.float64))
            for update in sorted(updates, key=lambda update: update.job.participant)
            if update.gradient is not None and update.job.base_version == version
        ]
        if version and told:
            self._model.load(model["weights"], model["buffers"])
            head = self._solved(self._head.of(model["weights"]), told)
            self.newest = {**model, "weights": self._head.put(model["weights"], head)}
            self.average = running_average(self.average, self.newest, version)

    def _solved(self, own: np.ndarray, told: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
        """argmin over W of mean lse(W phi) - <W, M> + lambda / 2 |W - own|^2. told: n_i and g_i."""
        features, start = self._head.features(self._inputs), torch.from_numpy(own)
        probable = (features @ start.T).softmax(1)
        mean = (probable.T @ features / len(features)).numpy()
        total = sum(examples * (mean - gradient) for examples, gradient in told)
        linear = torch.as_tensor(total / sum(examples for examples, _ in told))
        head = start.clone().requires_grad_()
        solver = torch.optim.LBFGS([head], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            solver.zero_grad()
            value = torch.logsumexp(features @ head.T, 1).mean() - (head * linear).sum()
            value = value + _PULL / 2 * (head - start).square().sum()
            value.backward()
            return value

        solver.step(loss)
        found = head.detach().numpy()
        return found if np.isfinite(found).all() else own
