"""A model as ONNX, checked against what torch computes."""

import copy
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from strategies.errors import ExportError

TOLERANCE = 1e-4  # largest absolute difference of any output; float32 rounding is about 1e-6


def export_onnx(
    module: nn.Module, example: torch.Tensor, path: Path, metadata: Mapping[str, str] | None = None
) -> float:
    """Write `module` in evaluation mode as the ONNX file `path`; return the difference to torch.

    `example` is a batch of inputs (n, ...). The file takes "inputs" of any batch size and gives
    "outputs". It is compared with torch on the example and on another batch size; `module`
    itself is left as it is. Raises ExportError, leaving no file, when torch cannot export the
    model, or any output differs by more than 1e-4.
    """
    path = Path(path)
    # A copy on the CPU: neither the mode nor the memory of the caller's model is touched.
    model = copy.deepcopy(module).cpu().eval()
    example = example.detach().cpu()
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft = Path(folder) / "model.onnx"
            _write(model, example, draft)
            _describe(draft, metadata or {})
            difference = max(_difference(model, batch, draft) for batch in _batches(example))
            if not difference <= TOLERANCE:  # a NaN must fail too
                raise ExportError(
                    f"the exported {path.name} computes something else than torch: outputs differ "
                    f"by {difference:.3g}, more than {TOLERANCE:g}; it was not kept"
                )
            os.replace(draft, path)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from error
    return difference


def _describe(path: Path, metadata: Mapping[str, str]) -> None:
    import onnx  # pyright: ignore[reportMissingImports]

    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)


def _write(model: nn.Module, example: torch.Tensor, path: Path) -> None:
    # A batch of one would be taken for a constant, so the traced batch has at least two.
    batch = torch.cat([example, example]) if len(example) == 1 else example
    try:
        torch.onnx.export(
            model,
            (batch,),
            str(path),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["inputs"],
            output_names=["outputs"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    except OSError:
        raise
    except Exception as error:  # the exporter has no root class of its own
        raise ExportError(f"torch cannot export {type(model).__name__} to ONNX: {error}") from error


def _batches(example: torch.Tensor) -> list[torch.Tensor]:
    opposite = -example if example.is_floating_point() else example
    return [example, torch.cat([example, example.flip(0), opposite])]


def _difference(model: nn.Module, batch: torch.Tensor, path: Path) -> float:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        expected = model(batch).numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    computed = session.run(["outputs"], {"inputs": batch.numpy()})[0]
    return float(np.abs(computed - expected).max())
