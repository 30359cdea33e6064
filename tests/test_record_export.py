"""ONNX export: computes what torch computes, or is not kept."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fl_app.record.onnx_file import export_onnx
from strategies.errors import ExportError

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package)


def example(batch: int = 2) -> torch.Tensor:
    values = np.random.default_rng(0).normal(size=(batch, 1, 12, 12))
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture
def model() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10),
    )  # fmt: skip
    return net.train()


@pytest.mark.parametrize("batch", [1, 3])
def test_the_file_computes_the_same_for_any_batch_size(
    model: nn.Module, tmp_path: Path, batch: int
) -> None:
    import onnxruntime

    path = tmp_path / "m.onnx"
    assert export_onnx(model, example(batch), path) < 1e-4
    assert list(tmp_path.iterdir()) == [path]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(example(5)).numpy()
    computed: Any = session.run(None, {"inputs": example(5).numpy()})[0]
    np.testing.assert_allclose(computed, expected, atol=1e-4)


def test_parameters_that_are_views_of_one_vector_are_exported(
    model: nn.Module, tmp_path: Path
) -> None:
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    start = 0
    for parameter in model.parameters():
        parameter.data = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    export_onnx(model, example(), tmp_path / "m.onnx")
    assert all(p.untyped_storage().data_ptr() == flat.data_ptr() for p in model.parameters())


def test_exporting_changes_nothing_else(
    model: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    randomness, threads = torch.get_rng_state().clone(), torch.get_num_threads()
    export_onnx(model, example(), tmp_path / "m.onnx")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), randomness)
    assert torch.get_num_threads() == threads
    assert capfd.readouterr().out == ""


class DependsOnItsCaller(nn.Module):
    """Computes something else than what was traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3)) * (1.0 if torch.compiler.is_exporting() else 1.01)


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"m\.onnx computes something else than torch"):
        export_onnx(DependsOnItsCaller(), example(), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


class Untraceable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if float(x.sum()) > 0 else x


def test_a_model_that_cannot_be_exported_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="torch cannot export Untraceable to ONNX"):
        export_onnx(Untraceable(), example(), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_earlier_file(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(model, example(), path)
    before = path.read_bytes()
    with pytest.raises(ExportError):
        export_onnx(DependsOnItsCaller(), example(), path)
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_named(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot write .*absent/m\.onnx"):
        export_onnx(model, example(), tmp_path / "absent" / "m.onnx")
