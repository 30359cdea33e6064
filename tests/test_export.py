"""`edge-fl export` and `load`: a model goes out and comes back, with what it takes to use it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from client_apps.node_store import NODES, NodeStore
from fl_app import cli
from fl_app.config import resolve
from fl_app.data import load_dataset
from fl_app.problem import problem_of
from fl_app.record.export import FORMATS, export, load
from fl_app.record.run_dir import RunDirectory
from strategies.errors import ExportError
from strategies.problem import flat_model, task_of

TINY: dict[str, Any] = {"small-width": 2, "large-width": 4}


@pytest.fixture
def distilled(tmp_path: Path) -> RunDirectory:
    config = resolve({**TINY, "seed": 3})
    run = RunDirectory.create(tmp_path / "runs", config.flat(), name="distilled")
    for name, role in (("global", "large"), ("small", "small")):
        run.save_checkpoint(name, flat_model(problem_of(config), role).state())
    return run


def outputs(module: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(torch.linspace(-1, 1, 2 * 28 * 28).reshape(2, 1, 28, 28))


def test_a_folder_with_files_of_somebody_else_is_left_alone(
    distilled: RunDirectory, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("mine")
    with pytest.raises(ExportError, match=r"README\.md of its own: choose another folder"):
        export(distilled, "small", "hf", mine)
    assert [path.name for path in mine.iterdir()] == ["README.md"]
    for _ in range(2):  # an export may be written anew
        export(distilled, "small", "hf", tmp_path / "new")


@pytest.mark.parametrize("kind", ["hf", "safetensors", "state_dict"])
def test_what_is_exported_computes_what_the_run_computes(
    kind: str, distilled: RunDirectory, tmp_path: Path
) -> None:
    said, place = export(distilled, "small", kind, tmp_path / f"exported{FORMATS[kind][0]}")
    assert said == "the small model"
    expected, of_the_run = load(distilled.path, "small")
    module, facts = load(place)
    assert torch.equal(outputs(module), outputs(expected))
    assert facts == of_the_run
    assert not module.training
    embedded = load_dataset("embedded")
    assert facts["classes"] == list(embedded.classes)
    assert facts["input"] == {
        "shape": [1, 28, 28],
        "type": "float32",
        "mean": list(embedded.mean),
        "std": list(embedded.std),
    }


OWN = """
import torch
from strategies.task import Classification, Examples

class Waves(Classification):
    def model(self, role):
        layers = torch.nn.Conv1d(1, 4, 5), torch.nn.Flatten(), torch.nn.Linear(48, 2)
        return torch.nn.Sequential(*layers)
    def training(self):
        return Examples(torch.linspace(-1, 1, 640).reshape(40, 1, 16), torch.arange(40) % 2)
    test = training
"""
OTHERS: dict[str, dict[str, Any]] = {
    "classes of a table": {"task": "tables"},
    "numbers of a table": {"task": "tables", "table": "diabetes"},
    "text": {"task": "text"},
    "own": {"task": "waves.py:Waves"},
}


@pytest.fixture(params=OTHERS)
def other(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RunDirectory:
    """The run of a task that is not of images."""
    values = dict(OTHERS[request.param])
    if request.param == "own":
        (tmp_path / "waves.py").write_text(OWN)
        values["task"] = f"{tmp_path}/{values['task']}"
    config = resolve(values)
    run = RunDirectory.create(tmp_path / "runs", config.flat(), name="other")
    generator = torch.Generator().manual_seed(1)
    for name, role in (("global", "large"), ("small", "small")):
        state = flat_model(problem_of(config), role).state()
        state["weights"] += 0.1 * torch.randn(state["weights"].shape, generator=generator).numpy()
        run.save_checkpoint(name, state)
    return run


@pytest.mark.parametrize("kind", ["hf", "safetensors", "state_dict"])
def test_a_model_of_any_task_is_exported(kind: str, other: RunDirectory, tmp_path: Path) -> None:
    inputs = task_of(problem_of(resolve(other.config()))).sample(4)
    _, place = export(other, "", kind, tmp_path / f"exported{FORMATS[kind][0]}")
    expected, of_the_run = load(other.path)
    module, facts = load(place)
    with torch.no_grad():
        assert torch.equal(module(inputs), expected(inputs))
    assert facts == of_the_run
    assert facts["input"]["shape"] == list(inputs.shape[1:])
    assert facts["role"] == "large"


def test_onnx_takes_any_task(other: RunDirectory, tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    import onnxruntime

    _, place = export(other, "small", "onnx", tmp_path / "m.onnx")
    inputs = task_of(problem_of(resolve(other.config()))).sample(5)
    session = onnxruntime.InferenceSession(str(place), providers=["CPUExecutionProvider"])
    computed: Any = session.run(["outputs"], {"inputs": inputs.numpy()})[0]
    with torch.no_grad():
        expected = load(other.path, "small")[0](inputs)
    torch.testing.assert_close(torch.from_numpy(computed), expected, atol=1e-4, rtol=1e-4)
    facts = json.loads(session.get_modelmeta().custom_metadata_map["edge-fl"])
    assert facts["input"]["type"] == str(inputs.dtype).removeprefix("torch.")


def test_what_a_table_means_goes_with_its_model(tmp_path: Path) -> None:
    config = resolve({"task": "tables", "table": "diabetes"})
    run = RunDirectory.create(tmp_path / "runs", config.flat(), name="table")
    run.save_checkpoint("small", flat_model(problem_of(config), "small").state())
    _, place = export(run, "small", "state_dict", tmp_path / "m.pt")
    _, facts = load(place)
    assert [column["name"] for column in facts["columns"]][:3] == ["age", "sex", "bmi"]
    assert facts["target"]["spread"] > 10  # of the target's own unit, not 1


def test_a_task_that_went_elsewhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "waves.py").write_text(OWN)
    config = resolve({"task": f"{tmp_path}/waves.py:Waves"})
    run = RunDirectory.create(tmp_path / "runs", config.flat(), name="mine")
    run.save_checkpoint("small", flat_model(problem_of(config), "small").state())
    _, place = export(run, "small", "safetensors", tmp_path / "m.safetensors")
    (tmp_path / "there").mkdir()
    (tmp_path / "waves.py").rename(tmp_path / "there" / "moved.py")
    moved = f"{tmp_path}/there/moved.py:Waves"
    # In a process that has not read the file before.
    program = f"""
from edge_fl import load
from strategies.errors import ConfigError

try:
    load({str(place)!r})
except ConfigError as error:
    print(error)
module, _ = load({str(place)!r}, task={moved!r})
print(float(sum(parameter.double().sum() for parameter in module.parameters())))
"""
    told = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout.splitlines()
    assert "waves.py" in told[0]
    total = run.load_checkpoint("small")[0]["weights"].astype("float64").sum()
    assert float(told[1]) == pytest.approx(total)


def test_the_published_model_is_the_one_that_nobody_names(distilled: RunDirectory) -> None:
    assert load(distilled.path)[1]["model"] == "global"


def test_a_node_of_consensus_is_exported(tmp_path: Path) -> None:
    config = resolve({"mode": "consensus", "small-width": 2, "consensus.settle": 0})
    run = RunDirectory.create(tmp_path / "runs", config.flat(), name="agreed")
    weights = flat_model(problem_of(config), "small").state()["weights"] + 1
    NodeStore(run.path / NODES).save(config.rounds, 2, {"weights": weights}, {}, durable=False)
    _, place = export(run, "node-2", "safetensors", tmp_path / "node.safetensors")
    module, facts = load(place)
    flat = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    assert torch.equal(flat, torch.from_numpy(weights))
    assert facts["build"]["norm"] == "group"


def test_a_missing_package_says_how_to_install_it(
    distilled: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name == "onnxruntime" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(ExportError, match=r"needs onnxruntime: pip install 'onnx>="):
        export(distilled, "small", "onnx", tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"{}", b"PK\x03\x04 garbage"])
@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
def test_what_is_no_exported_model_is_named(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExportError, match=f"{name} is no run, and no model that"):
        load(tmp_path / name)


def test_another_models_weights_do_not_fit(distilled: RunDirectory, tmp_path: Path) -> None:
    _, small = export(distilled, "small", "hf", tmp_path / "small")
    _, large = export(distilled, "global", "hf", tmp_path / "large")
    (large / "config.json").rename(small / "config.json")
    with pytest.raises(ExportError, match="size mismatch"):
        load(small)


@pytest.mark.parametrize("kind", ["hf", "safetensors"])
def test_a_place_that_cannot_be_written_is_named(
    kind: str, distilled: RunDirectory, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"cannot (write|make) .*absent/m"):
        export(distilled, "small", kind, tmp_path / "absent" / "m")


def test_the_command_names_every_format() -> None:
    assert set(cli.EXPORTS) == FORMATS.keys()


def test_the_command_writes_into_the_working_directory(
    distilled: RunDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(distilled.path), "--to", "state_dict"]) == 0
    assert capsys.readouterr().out == f"the global model\n{tmp_path}/global.pt\n"
    assert cli.main(["export", str(distilled.path), "--to", "safetensors", "--model", "best"]) == 2
    assert "choose one of: global, small" in capsys.readouterr().err
