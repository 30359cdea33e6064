"""Tables: a row is an example, and one column is predicted from the others."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fl_app.data.table import Encoding, Table, embedded, read_csv
from strategies.randomness import rng
from strategies.task import (
    ACCURACY,
    MAE,
    RMSE,
    Examples,
    Metric,
    Task,
    mean_squared_error,
    softened_divergence,
)

_TEST = 5  # of so many rows, one is for the test
_BINS = 10  # of targets that are numbers, for partitions
_WIDTHS = {"small": (32, 32), "large": (128, 128, 128)}


def perceptron(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Module:
    """Linear layers of these widths with ReLU between them."""
    widths = (inputs, *hidden, outputs)
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class Tables(Task):
    """The task `tables`: one of the embedded tables, or the user's own, a CSV file at `data_path`
    (a fifth of its rows is the test set) or a folder with train.csv and test.csv.

    Columns of numbers are standardised by the training rows, columns of words are one-hot. A target
    of classes has cross entropy and accuracy; one of numbers is learnt standardised, with the mean
    squared error, and its RMSE and MAE are in its own unit.

    table: the name of an embedded one. target: the column that is predicted, "" for the last. kind:
    "classes", "numbers", or "auto". A subclass may say them as attributes, and has models of its
    own from `width_in` and `width_out`.
    """

    table, target, kind = "breast-cancer", "", "auto"
    metrics = (ACCURACY,)  # or RMSE and MAE
    own_by_training = True  # scaled like that, with its classes

    def __init__(
        self,
        seed: int = 0,
        data_path: str = "",
        *,
        table: str = "",
        table_target: str = "",
        table_kind: str = "",
    ) -> None:
        super().__init__(seed, data_path)
        self.table = table or self.table
        self.target = table_target or self.target
        self.kind = table_kind or self.kind
        encoding = self._encoding
        self.classes = encoding.classes
        self.width_in = sum(len(column.words) or 1 for column in encoding.columns)
        self.width_out = len(self.classes) or 1
        if not self.classes:
            self.metrics = _in_unit(encoding.target.spread)

    def model(self, role: str) -> nn.Module:
        return perceptron(self.width_in, _WIDTHS[role], self.width_out)

    def about(self, role: str) -> dict[str, Any]:
        """columns: what the input consists of, in this order: a number as (number - mean) / spread,
        a word as one of `words`, one-hot. target: likewise; where it is a number, the output times
        its spread plus its mean is in the target's own unit."""
        encoding = self._encoding
        columns = [asdict(column) for column in encoding.columns]
        return {"columns": columns, "target": asdict(encoding.target)}

    def training(self) -> Examples:
        return self._examples(self._parts[0])

    def test(self) -> Examples:
        return self._examples(self._parts[1])

    def own(self, path: str) -> Examples:
        return self._examples(read_csv(path))

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self.classes:
            return functional.cross_entropy(outputs, targets)
        return mean_squared_error(outputs, targets)

    def distillation(
        self, student: torch.Tensor, teacher: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        if self.classes:
            return softened_divergence(student, teacher, temperature)
        return super().distillation(student, teacher, temperature)

    @property
    def softens(self) -> bool:
        return bool(self.classes)

    def groups(self, examples: Examples) -> np.ndarray:
        """The classes, or tenths of the numbers from the lowest to the highest."""
        if self.classes:
            return examples.targets.numpy()
        numbers = examples.targets.numpy()[:, 0]
        cuts = np.quantile(numbers, np.arange(1, _BINS) / _BINS)
        return np.searchsorted(cuts, numbers, side="right").astype(np.int64)

    @property
    def taken(self) -> tuple[str, str]:
        """What the columns and the target were taken for, a sentence each."""
        return self._encoding.taken

    @cached_property
    def _parts(self) -> tuple[Table, Table]:
        if Path(self.data_path).is_dir() and self.data_path:
            whole = Path(self.data_path)
            return read_csv(whole / "train.csv"), read_csv(whole / "test.csv")
        table = read_csv(self.data_path) if self.data_path else embedded(self.table)
        order = rng(0, "tables", "test").permutation(len(table.rows))
        held = math.ceil(len(order) / _TEST)
        return table.take(np.sort(order[held:])), table.take(np.sort(order[:held]))

    @cached_property
    def _encoding(self) -> Encoding:
        return Encoding.of(*self._parts, target=self.target, kind=self.kind)

    def _examples(self, table: Table) -> Examples:
        inputs, targets = self._encoding.inputs(table), self._encoding.targets(table)
        return Examples(torch.from_numpy(inputs), torch.from_numpy(targets))


def _in_unit(spread: float) -> tuple[Metric, ...]:
    """The errors of standardised numbers, in what they were before."""
    return tuple(
        replace(metric, finish=lambda mean, finish=metric.finish: spread * finish(mean))
        for metric in (RMSE, MAE)
    )
