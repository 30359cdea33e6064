"""Local training of several participants at the same time, on a GPU."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from client_apps.row_gradients import Programs
from client_apps.settings import TrainingSettings
from client_apps.training import minibatches
from strategies.optimisers import sgd_step


@dataclass
class Job:
    """Training of one participant: the model that it starts from, (p,) and (q,), where its images
    begin among those of everybody, how many it has, where its random numbers come from, and what
    is added to its outputs in the loss, (classes,) or (0,)."""

    weights: np.ndarray
    buffers: np.ndarray
    begin: int
    examples: int
    generator: np.random.Generator
    shift: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class Trained:
    """The mean loss, and the model: {"weights": (p,), "buffers": (q,)}."""

    loss: float
    state: dict[str, np.ndarray]


def train_side_by_side(
    programs: Programs, jobs: Sequence[Job], settings: TrainingSettings, learning_rate: float
) -> list[Trained]:
    """What `train_locally` does for each job, in the order of the jobs: the same minibatches, the
    same arithmetic, no per-image privacy."""
    found: dict[int, Trained] = {}
    sizes: dict[int, list[int]] = defaultdict(list)
    for number, job in enumerate(jobs):
        sizes[min(settings.batch_size, job.examples)].append(number)
    for numbers in sizes.values():  # only minibatches of one size are of one program
        for some in programs.split(len(numbers)):
            part = numbers[some]
            trained = _train(programs, [jobs[i] for i in part], settings, learning_rate)
            found |= zip(part, trained, strict=True)
    return [found[number] for number in range(len(jobs))]


def _train(
    programs: Programs, jobs: Sequence[Job], settings: TrainingSettings, learning_rate: float
) -> list[Trained]:
    weights = torch.from_numpy(np.stack([job.weights for job in jobs])).to(programs.device)
    buffers = torch.from_numpy(np.stack([job.buffers for job in jobs])).to(programs.device)
    start = weights.clone() if settings.proximal_mu else None
    velocity, total = torch.zeros_like(weights), weights.new_zeros(len(jobs))
    draws = [
        minibatches(job.examples, settings.batch_size, settings.local_steps, job.generator)
        for job in jobs
    ]
    shifts = [job.shift.to(programs.device) for job in jobs]
    for _ in range(settings.local_steps):
        chosen, moves = [], []
        for job, draw in zip(jobs, draws, strict=True):
            indices = next(draw)
            chosen.append(indices + job.begin)
            moves.append(programs.prepare.draw(job.generator, len(indices)))
        computed = programs(
            list(weights),
            list(buffers),
            torch.from_numpy(np.stack(chosen)),
            torch.from_numpy(np.concatenate(moves, axis=1)),
            shifts,
        )
        buffers.copy_(computed.buffers)
        if start is not None:
            computed.gradients.add_(weights - start, alpha=settings.proximal_mu)
        sgd_step(
            weights,
            computed.gradients,
            velocity,
            learning_rate=learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        total += computed.losses
    losses = [each / settings.local_steps for each in total.tolist()]  # as one alone does it
    rows = zip(losses, weights.cpu().numpy(), buffers.cpu().numpy(), strict=True)
    return [Trained(loss, {"weights": w.copy(), "buffers": b.copy()}) for loss, w, b in rows]
