"""Models that draw random numbers in training, with or without a layer that tells."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from client_apps.gradients import Gradients
from client_apps.row_gradients import PASSES, RowGradients
from fl_app.config import resolve
from fl_app.preflight import preflight
from fl_app.trial import try_out
from strategies.consensus.node import Node
from strategies.errors import EdgeFlError
from strategies.flat import FlatModel
from strategies.task import AsStored
from tests import harness
from tests.some_tasks import Points
from tests.test_tasks import TINY

POINTS = Points().train_set


class Noisy(nn.Module):
    """A layer with noise on what goes into it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.norm, self.last = nn.BatchNorm1d(2), nn.Linear(2, 2)
        self.leaky = nn.RReLU() if how == "rrelu" else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.leaky(self.norm(x))
        if self.how == "dropout":
            x = functional.dropout(x, 0.5, self.training)
        if self.how == "noise" and self.training:
            x = x + torch.randn_like(x)
        return self.last(x)


@pytest.mark.parametrize(
    ("how", "draws"), [("dropout", True), ("noise", True), ("rrelu", True), ("nothing", False)]
)
def test_a_look_sees_who_draws_and_changes_nothing(how: str, draws: bool) -> None:
    model = FlatModel(Noisy(how))
    model.module.eval()
    before, generator = model.checksum(), torch.get_rng_state()
    assert not model.draws
    model.look(AsStored(), POINTS.inputs)
    assert model.draws == draws
    assert model.checksum() == before
    assert model.module.norm.num_batches_tracked == 0  # type: ignore[union-attr]
    assert torch.equal(torch.get_rng_state(), generator)
    assert not model.module.training


class Shaken(nn.Module):
    """Likewise, without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(functional.dropout(x, 0.5, self.training))


def test_gradients_of_such_a_model_follow_from_the_seed() -> None:
    model = FlatModel(Shaken())
    how: dict[str, Any] = {"seed": 4, "prepare": AsStored(), "loss": functional.cross_entropy}
    engine = Gradients(model, {0: POINTS}, {0: 8}, **how)
    due = [(Node(0, model.weights.clone()), 3)]
    generator = torch.get_rng_state()
    [first] = [gradient.clone() for gradient in engine(due)]
    [again] = engine(due)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), generator)
    with pytest.raises(ValueError, match="with dropout or other random numbers cannot be computed"):
        RowGradients(engine, PASSES["streams"])


def task_of(folder: Path, line: str) -> str:
    path = folder / "own.py"
    path.write_text(
        "from tests.some_tasks import *\nfrom tests.test_drawing import Shaken\n"
        f"class T(Points):\n  {line}\n"
    )
    return f"{path}:T"


def test_a_run_of_such_a_model_repeats(tmp_path: Path) -> None:
    """Of the large one, too, in the distillation server's process."""
    task = task_of(tmp_path, "def model(self, role): return Shaken()")
    one, two = (harness.run(tmp_path / name, {"task": task}, TINY)[0] for name in ("one", "two"))
    assert one["status"] == "completed"
    assert one["checksum"] == two["checksum"]


def test_such_a_model_is_tried_out_and_has_no_private_gradients(tmp_path: Path) -> None:
    task = task_of(tmp_path, "def model(self, role): return Shaken()")
    assert any(line.endswith("; draws random numbers") for line in try_out({"task": task}))
    with pytest.raises(
        EdgeFlError, match=r"privacy\.samples cannot be with dropout or other random"
    ):
        preflight(resolve({"task": task, "mode": "average", "privacy.samples": True}))


def test_a_loss_that_draws_is_refused(tmp_path: Path) -> None:
    line = "def loss(self, o, t): return o.mean() + 0 * torch.rand(())"
    with pytest.raises(EdgeFlError, match=re.escape("loss() draws random numbers")):
        list(try_out({"task": task_of(tmp_path, line)}))
