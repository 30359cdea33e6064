"""A step of the distillation server as a program that a GPU replays.

Gather the minibatch, augment and normalise it, teacher, student, gradient, AdamW, weight average:
some hundred operations, each of which takes a GPU less time than PyTorch to start it. What differs
from step to step lies in tensors that the program reads. A CPU runs the steps one by one, whose
bits a recorded step has but for the rounding of AdamW's numbers to float32.
"""

from collections.abc import Callable

import torch

from strategies.cuda_graph import record, send
from strategies.distillation.proxy import Drawn, ProxyData
from strategies.distillation.student import Student

# The loss of a minibatch: its inputs, and the targets of the first of them where there are any.
BatchLoss = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


class RecordedStep:
    """Steps of `student` down the gradient of `loss`, on minibatches of `proxy` that all look like
    `drawn`, the first one."""

    def __init__(self, student: Student, proxy: ProxyData, loss: BatchLoss, drawn: Drawn) -> None:
        self._student, device = student, proxy.inputs.device
        self._chosen = drawn.chosen.to(device)
        self._moves = drawn.moves.to(device)
        self._numbers = torch.zeros(len(student.numbers()), device=device)

        def compute() -> None:
            inputs, targets = proxy.batch(Drawn(self._chosen, self._moves, drawn.known))
            student.step_by(self._numbers, lambda: loss(inputs, targets))

        self._replay = record(compute, device, changes=student.tensors).replay

    def __call__(self, drawn: Drawn) -> None:
        send(drawn.chosen, self._chosen)
        if len(drawn.moves):
            send(drawn.moves, self._moves)
        send(torch.tensor(self._student.numbers()), self._numbers)
        self._replay()
        self._student.count()
