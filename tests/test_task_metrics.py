"""What metrics and losses are asked to judge, and what they refuse."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fl_app.tasks.tables import Tables
from fl_app.trial import try_out
from strategies.errors import EdgeFlError
from strategies.evaluation import measured
from strategies.flat import FlatModel
from strategies.task import (
    ACCURACY,
    MAE,
    PERPLEXITY,
    RMSE,
    Examples,
    Regression,
    mean_squared_error,
)
from tests.some_tasks import Points


class Numbers(Regression):
    def model(self, role: str) -> nn.Module:
        return nn.Linear(1, 1)

    def training(self) -> Examples:
        return Examples(COLUMN, COLUMN)

    def test(self) -> Examples:
        return Examples(COLUMN, COLUMN)


COLUMN, ROW = torch.zeros(3, 1), torch.zeros(3)


@pytest.mark.parametrize(
    "measure",
    [
        mean_squared_error,
        RMSE.each,
        MAE.each,
        lambda outputs, targets: Numbers().loss(outputs, targets),
        lambda outputs, targets: Tables(table="diabetes").loss(outputs, targets),
        lambda outputs, targets: Numbers().distillation(outputs, targets, 1.0),
    ],
)
def test_numbers_of_another_shape_than_the_targets_are_refused(
    measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """PyTorch would make three times three of them."""
    with pytest.raises(ValueError, match=r"outputs \(3, 1\) and targets \(3,\) must be of one sh"):
        measure(COLUMN, ROW)
    assert measure(COLUMN, COLUMN).sum() == 0


def test_positions_without_a_class_count_for_nothing() -> None:
    """Padding is neither right nor wrong, and an example of nothing else is left out."""
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])[:, :, None].expand(2, 2, 3)
    targets = torch.tensor([[0, 1, -100], [1, -100, -100]])
    assert ACCURACY.each(logits, targets).tolist() == [0.5, 1.0]
    lines = functional.cross_entropy(logits[:1, :, :2], targets[:1, :2])
    assert float(PERPLEXITY.each(logits, targets)[0]) == pytest.approx(float(lines))
    nothing = torch.full((1, 3), -100)
    assert ACCURACY.each(logits[:1], nothing).isnan().all()
    assert PERPLEXITY.each(logits[:1], nothing).isnan().all()


def test_examples_without_a_class_are_left_out_of_an_evaluation() -> None:
    task = Points()
    model, examples = FlatModel(task.model("small")), task.test_set
    some = np.arange(30)
    expected = measured(task, model, examples.take(some))
    unknown = examples.targets.clone()
    unknown[30:] = -100
    found = measured(task, model, Examples(examples.inputs, unknown))
    assert found.values == pytest.approx(expected.values)
    assert found.by_class == expected.by_class


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "def loss(self, o, t): return RMSE.each(o, t).mean()",
            "the small model: its loss failed: ValueError: outputs (32, 2) and targets (32,) must",
        ),
        (
            "metrics = (Metric('sure', lambda o, t: o),)",
            "the small model: its metrics failed: ValueError: the metric 'sure': each() returned "
            "(120, 2) for 120 examples; return a number for each, a tensor (120,)",
        ),
        (
            "metrics = (Metric('sure', lambda o, t: o.mean()),)",
            "the metric 'sure': each() returned () for 120 examples",
        ),
        (
            "metrics = (Metric('sure', lambda o, t: 1.0),)",
            "the metric 'sure': each() returned float for 120 examples",
        ),
    ],
)
def test_a_trial_says_which_shapes_do_not_fit(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "from tests.some_tasks import Points\nfrom strategies.task import RMSE, Metric\n"
        f"class T(Points):\n  {line}\n"
    )
    with pytest.raises(EdgeFlError, match=re.escape(message)):
        list(try_out({"task": f"{path}:T"}))
