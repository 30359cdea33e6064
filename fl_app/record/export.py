"""A run's trained model, in this process or as a file for others."""

import importlib.util
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

from client_apps.node_store import NODES, NodeStore
from fl_app.config import RunConfig, resolve
from fl_app.models import build_model
from fl_app.problem import problem_of, task_reference_of
from fl_app.record.run_dir import RunDirectory
from strategies.checkpoint import atomic_write
from strategies.consensus.state import published
from strategies.errors import ConfigError, DataError, ExportError, RunDirectoryError
from strategies.flat import FlatModel
from strategies.plugins import told_as
from strategies.problem import TaskReference, flat_model, make_task, task_of
from strategies.pyproject import install

ABOUT = "edge-fl"  # the key of the metadata, a JSON text
_TRACED = 8  # inputs by which a model is traced
_WEIGHTS, _CONFIG, _CARD = "model.safetensors", "config.json", "README.md"


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
    model = flat_model(problem_of(config), _role(config, name))
    if config.agrees:
        store = NodeStore(run.path / NODES)
        node, last = int(name.removeprefix("node-")), config.rounds
        # As it has settled, if it has.
        settled = store.newest(last + config.consensus.settling_rounds, node, least=last)
        arrays, _ = settled or store.load(last, node)
        model.load(published(arrays), np.zeros(0, np.float32))
    else:
        arrays, _ = run.load_checkpoint(name)
        model.load(arrays["weights"], arrays["buffers"])
    return name, model


def _role(config: RunConfig, name: str) -> str:
    return "large" if name == "global" or (name == "best" and config.distils) else "small"


def about(run: RunDirectory, config: RunConfig, name: str) -> dict[str, Any]:
    """What one must know of the model called `name` to use it: JSON values.

    role: "small" or "large". task: what `strategies.problem.TaskReference` has. input: the shape of
    one, and its type. classes: in the order of the outputs, if these are classes. And what the task
    says of its models, see `about` of it.
    """
    role, task = _role(config, name), task_of(problem_of(config))
    with told_as(f"about({role!r}) of task={config.task!r}", ExportError):
        told = json.loads(json.dumps(dict(task.about(role))))
    sample = task.sample(1)
    kind = str(sample.dtype).removeprefix("torch.")
    facts = {
        "run": run.name,
        "model": name,
        "role": role,
        "task": asdict(task_reference_of(config)),
        "classes": list(task.classes),
        **told,
        "input": {"shape": list(sample.shape[1:]), "type": kind, **told.get("input", {})},
    }
    return json.loads(json.dumps(facts))  # the same from a run and from a file


def export(run: RunDirectory, name: str, kind: str, path: Path | None = None) -> tuple[str, Path]:
    """Write a model of `run` (see `trained_model`) in one of FORMATS; what was written, and where.

    path: "" = the model's name in the working directory. With every file go the facts of `about`.
    Raises ExportError and RunDirectoryError; a file that was there before is then unchanged.
    """
    config = resolve(run.config())
    name, model = trained_model(run, config, name)
    suffix, write = FORMATS[kind]
    place = path or Path.cwd() / f"{name}{suffix}"
    sample = task_of(problem_of(config)).sample(_TRACED)
    said = write(model.module, about(run, config, name), place, sample)
    return f"the {name} model{said}", place


def load(path: str | Path, name: str = "", *, task: str = "") -> tuple[nn.Module, dict[str, Any]]:
    """A trained model in evaluation mode, and what `about` says of it.

    path: a run's directory, of which `name` chooses the model as `trained_model` does; a file that
    was exported as state_dict or safetensors; or a folder exported as hf. Such a file has no code:
    images' models are this package's, and others are made by the run's task, whose file and data
    must be where they were, or by `task`, a reference.
    Raises ExportError for anything else.
    """
    place = Path(path).expanduser()
    try:
        if place.is_dir() and not (place / _WEIGHTS).exists():
            run = RunDirectory.open(place)
            config = resolve(run.config())
            name, flat = trained_model(run, config, name)
            return flat.module.eval(), about(run, config, name)
        if place.is_dir():
            tensors, facts = load_file(place / _WEIGHTS), json.loads((place / _CONFIG).read_text())
        elif place.suffix == ".safetensors":
            tensors, facts = load_file(place), json.loads(_metadata(place)[ABOUT])
        else:
            content = torch.load(place, map_location="cpu", weights_only=True)
            tensors, facts = content["state_dict"], json.loads(content[ABOUT])
        model = _made(facts, task)
        model.load_state_dict(tensors)
        return model.eval(), facts
    except (RunDirectoryError, ConfigError, DataError):
        raise
    except Exception as error:  # whatever the file holds, its readers raise
        raise ExportError(
            f"{place} is no run, and no model that `edge-fl export` has written: {error}"
        ) from error


def _made(facts: dict[str, Any], task: str) -> nn.Module:
    """The model that `about` is of, with its initial values."""
    if not task and "build" in facts:
        return build_model(**facts["build"])
    told = {**facts["task"], **({"name": task, "place": task} if task else {})}
    told["options"] = tuple((key, value) for key, value in told["options"])
    return make_task(TaskReference(**told)).model(facts["role"])


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


# ------------------------------------------------------------------------------------- formats


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors of their own on the CPU: in a run they are views of one vector."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def _state_dict(module: nn.Module, facts: dict[str, Any], path: Path, _: torch.Tensor) -> str:
    buffer = io.BytesIO()
    torch.save({"state_dict": _state(module), ABOUT: json.dumps(facts)}, buffer)
    _write(path, buffer.getvalue())
    return ""


def _packed(module: nn.Module, facts: dict[str, Any]) -> bytes:
    return save(_state(module), {"format": "pt", ABOUT: json.dumps(facts)})


def _safetensors(module: nn.Module, facts: dict[str, Any], path: Path, _: torch.Tensor) -> str:
    _write(path, _packed(module, facts))
    return ""


def _hf(module: nn.Module, facts: dict[str, Any], path: Path, _: torch.Tensor) -> str:
    """A folder as repositories of the Hugging Face Hub are laid out. ExportError where files of
    these names are somebody else's."""
    there = [name for name in (_WEIGHTS, _CONFIG, _CARD) if (path / name).exists()]
    if there and not _exported(path / _CONFIG):
        raise ExportError(f"{path} has {', '.join(there)} of its own: choose another folder")
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise ExportError(f"cannot make {path}: {error.strerror or error}") from error
    card = (
        f"---\nlibrary_name: edge-fl\ntags: [federated-learning]\n---\n"
        f"# {facts['model']} of {facts['run']}\n\n"
        f"`config.json` says what the input is, and what the outputs are.\n\n"
        f"```python\nfrom edge_fl import load\n\n"
        f'model, about = load("path/of/this/folder")\n```\n'
    )
    _write(path / _WEIGHTS, _packed(module, facts))
    _write(path / _CONFIG, json.dumps(facts, indent=2).encode())
    _write(path / _CARD, card.encode())
    return ""


def _exported(config: Path) -> bool:
    """Whether it is the config.json of an export."""
    try:
        return {"run", "model", "role"} <= json.loads(config.read_bytes()).keys()
    except (OSError, ValueError, AttributeError):
        return False


def _onnx(module: nn.Module, facts: dict[str, Any], path: Path, sample: torch.Tensor) -> str:
    missing = [n for n in ("onnx", "onnxruntime", "onnxscript") if not importlib.util.find_spec(n)]
    if missing:
        raise ExportError(f"exporting needs {', '.join(missing)}: {install('export')}")
    from fl_app.record.onnx_file import export_onnx

    difference = export_onnx(module, sample, path, {ABOUT: json.dumps(facts)})
    return f"; largest difference from torch: {difference:.1e}"


def _write(path: Path, content: bytes) -> None:
    try:
        atomic_write(path, content)
    except RunDirectoryError as error:
        reason = error.__cause__
        raise ExportError(f"cannot write {path}: {getattr(reason, 'strerror', reason)}") from error


# (the model, what `about` says of it, where to, a few inputs) -> what there is to be said of it.
_Writer = Callable[[nn.Module, dict[str, Any], Path, torch.Tensor], str]
# Format -> (what its file's name ends in, what writes it).
FORMATS: dict[str, tuple[str, _Writer]] = {
    "hf": ("", _hf),
    "onnx": (".onnx", _onnx),
    "safetensors": (".safetensors", _safetensors),
    "state_dict": (".pt", _state_dict),
}
