"""Export of a trained model to ONNX, checked against what torch computes."""

import copy
import importlib.util
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fl_app.assemble import flat_model
from fl_app.config import RunConfig
from fl_app.errors import ExportError, install
from fl_app.models import FlatModel
from fl_app.record.node_store import NODES, NodeStore
from fl_app.record.run_dir import RunDirectory

TOLERANCE = 1e-4  # largest absolute difference of any output; float32 rounding is about 1e-6
_NEEDED = ("onnx", "onnxruntime", "onnxscript")


def trained_model(run: RunDirectory, config: RunConfig, name: str) -> tuple[str, FlatModel]:
    """The name and the model of a completed run that is called "global", "small", "best" or, where
    nodes agree among themselves, "node-3"; of "", the published one, or that of the first node.

    Raises ExportError for a name that the run has no model of, RunDirectoryError where the model is
    not there (yet).
    """
    names = ["global", "small"] if config.distils else ["small"]
    names += ["best"] if config.best_metric else []
    if config.agrees:
        names = [f"node-{node}" for node in range(config.participants)]
    name = name or names[0]
    if name not in names:
        raise ExportError(f"{run.name} has no model {name!r}; choose one of: {', '.join(names)}")
    large = name == "global" or (name == "best" and config.distils)
    model = flat_model(config, "large" if large else "small")
    if config.agrees:
        store = NodeStore(run.path / NODES)
        node, last = int(name.removeprefix("node-")), config.rounds
        # As it has settled, if it has.
        settled = store.newest(last + config.consensus.settling_rounds, node, least=last)
        arrays, _ = settled or store.load(last, node)
        model.load(arrays["weights"], np.zeros(0, np.float32))
    else:
        arrays, _ = run.load_checkpoint(name)
        model.load(arrays["weights"], arrays["buffers"])
    return name, model


def export_onnx(module: nn.Module, example: torch.Tensor, path: Path) -> float:
    """Write `module` in evaluation mode as the ONNX file `path`; return the difference to torch.

    `example` is a batch of inputs, float32 (n, ...). The file takes "images" of any batch size and
    gives "logits". It is compared with torch on the example and on another batch size; `module`
    itself is left as it is. Raises ExportError, leaving no file, when a package is missing, torch
    cannot export the model, or any output differs by more than 1e-4.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"exporting needs {', '.join(missing)}: {install('export')}")
    path = Path(path)
    # A copy on the CPU: neither the mode nor the memory of the caller's model is touched.
    model = copy.deepcopy(module).cpu().eval()
    example = example.detach().cpu()
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft = Path(folder) / "model.onnx"
            _write(model, example, draft)
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
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    except OSError:
        raise
    except Exception as error:  # the exporter has no root class of its own
        raise ExportError(f"torch cannot export {type(model).__name__} to ONNX: {error}") from error


def _batches(example: torch.Tensor) -> list[torch.Tensor]:
    return [example, torch.cat([example, example.flip(0), -example])]


def _difference(model: nn.Module, batch: torch.Tensor, path: Path) -> float:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        expected = model(batch).numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    computed = session.run(["logits"], {"images": batch.numpy()})[0]
    return float(np.abs(computed - expected).max())
