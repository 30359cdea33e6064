"""Tasks: how one is named, what the systems do with somebody's own, and those that ship."""

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fl_app import cli
from fl_app.config import RunConfig, resolve
from fl_app.launch.own_files import with_own_files
from fl_app.launch.values import parse_assignments
from fl_app.preflight import preflight
from fl_app.problem import problem_of
from fl_app.record.metrics import latest, of_kind
from fl_app.tasks.text import Text
from fl_app.trial import try_out
from strategies import plugins, task_reference
from strategies.errors import ConfigError, EdgeFlError
from strategies.evaluation import measured
from strategies.flat import FlatModel
from strategies.problem import flat_model, histogram_of, split_of, task_of
from strategies.task import ACCURACY, MAE, PERPLEXITY, RMSE, Examples
from tests import harness, test_consensus
from tests.some_tasks import Points

DOCS = Path(__file__).parents[1] / "docs" / "tasks.md"
POINTS = "tests.some_tasks:Points"
TINY: dict[str, Any] = {
    "num-server-rounds": 2, "local-steps": 2, "batch-size": 16, "evaluate-examples": 50,
    "distill.reverse-steps": 2, "distill.batch-size": 16,
}  # fmt: skip
NODES: dict[str, Any] = {
    "mode": "consensus", "participants": 4, "evaluate-examples": 50, "consensus.carrier": "grid",
    "consensus.steps": 12, "consensus.window": 6, "consensus.interval": 3.0,
    "consensus.batch-size": 8, "consensus.settle": 0, "consensus.references": "same-steps",
}  # fmt: skip


POINTS_OF_ONES_OWN = (
    "from dataclasses import replace\nfrom strategies.task import *\n"
    "from tests.some_tasks import Points\nclass T(Points):\n"
)


def written(folder: Path, name: str, source: str) -> str:
    (folder / name).write_text(source)
    return str(folder / name)


def of(task: str, **more: Any) -> RunConfig:
    return resolve({"task": task, **more})


# ------------------------------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("pictures", "task='pictures' is unknown; choose one of: images, tables, text"),
        ("ecg.py:Ecg", "must be an absolute path"),
        ("my module:Task", "is unknown"),
        ("/nowhere/ecg.py:Ecg", "there is no file /nowhere/ecg.py"),
        ("no_such_module:Task", "no module 'no_such_module' is installed here"),
        ("tests.some_tasks:Lines", "Lines is not in tests.some_tasks; tasks there: Points"),
        ("tests.some_tasks:nn", "nn is no subclass of strategies.task.Task; tasks there: Points"),
        ("strategies.task:Task", "Task has no method loss, model, test, training"),
    ],
)
def test_a_name_that_is_no_task_is_refused(task: str, message: str) -> None:
    with pytest.raises(EdgeFlError, match=re.escape(message)):
        preflight(of(task))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "from tests.some_tasks import Points\nfrom strategies.task import *\n"
            "class T(Points): metrics = (PERPLEXITY, ACCURACY)",
            "the metric 'accuracy' of T must be the first, or have another name",
        ),
        ("import nothing_of_the_kind", "cannot be imported: ModuleNotFoundError: No module named"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero (own.py, line 1)"),
        ("def", "cannot be imported: SyntaxError"),
        ("from tests.some_tasks import Points\nclass T(Points):\n  metrics = ()", "is empty"),
        (
            "from tests.some_tasks import Points\nclass T(Points):\n  def training(self): return 1",
            "training() returned int; return Examples(inputs, targets)",
        ),
        (
            "from tests.some_tasks import Points\nclass T(Points):\n  def test(self): 1 / 0",
            "test() failed: ZeroDivisionError: division by zero",
        ),
        (
            "from tests.some_tasks import Points\nclass T(Points):\n  def model(self, role): pass",
            "model('small') returned NoneType, which is no torch.nn.Module",
        ),
        (
            "from tests.some_tasks import *\nclass T(Points):\n"
            "  def model(self, role): return nn.Linear(2, 2).double()",
            "the small model: weight is torch.float64",
        ),
        (
            "from tests.some_tasks import *\nclass T(Points):\n  def model(self, role):\n"
            "    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, momentum=None))",
            "the small model: 1 is a BatchNorm1d with momentum=None, whose statistics depend",
        ),
        (
            "from tests.some_tasks import *\nclass T(Points):\n"
            "  def model(self, role): return nn.LazyLinear(2)",
            "the small model: weight is of a lazy module, and has no size before inputs are seen",
        ),
        *[
            (f"{POINTS_OF_ONES_OWN}  classes = {classes}", message)
            for classes, message in [
                ("'ab'", "T.classes must be a tuple of names, which are texts of a line"),
                ("(0, 1)", "T.classes must be a tuple of names, which are texts of a line"),
                ("('', 'b')", "T.classes must be a tuple of names, which are texts of a line"),
                ("('a', '\\n')", "T.classes must be a tuple of names, which are texts of a line"),
                ("('a', 'b', 'a')", "T.classes has 'a' twice; give each its own name"),
                ("('a',)", "a training example has the class 1, and there are 1 names in classes"),
            ]
        ],
        *[
            (f"{POINTS_OF_ONES_OWN}  metrics = {metrics}", message)
            for metrics, message in [
                ("ACCURACY", "T.metrics must be a tuple of strategies.task.Metric"),
                (
                    "(ACCURACY, PERPLEXITY, PERPLEXITY)",
                    "the metric 'perplexity' of T is there twice",
                ),
                ("(replace(MAE, name='round'),)", "the metric 'round' of T is a name that records"),
                (
                    "(ACCURACY, replace(MAE, name='t'))",
                    "the metric 't' of T is a name that records",
                ),
                (
                    "(ACCURACY, replace(MAE, name='a_ema'))",
                    "the metric 'a_ema' of T is a name that",
                ),
            ]
        ],
        *[
            (f"{POINTS_OF_ONES_OWN}  def groups(self, examples): return {groups}", message)
            for groups, message in [
                ("examples.targets.numpy() - 1", "groups() returned -1; groups are numbers from 0"),
                (
                    "examples.targets.numpy() * 1.0",
                    "groups() returned float64 (120,); return a whole",
                ),
                ("['a'] * 120", "groups() returned <U1 (120,); return a whole number for each"),
                (
                    "[0, 1]",
                    "groups() returned int64 (2,); return a whole number for each of the 120",
                ),
                ("{}['site']", "groups() failed: KeyError: 'site'"),
            ]
        ],
        *[
            (
                f"{POINTS_OF_ONES_OWN}  def {which}(self):\n    drawn = self._drawn(0)\n"
                f"    drawn.inputs[7, 1] = float({value!r})\n    return drawn",
                f"1 of 120 {which} examples, the first of them number 7, have inputs that are not",
            )
            for which, value in [("training", "nan"), ("test", "inf")]
        ],
    ],
)
def test_what_somebodys_task_does_wrong_is_told_in_a_line(
    source: str, message: str, tmp_path: Path
) -> None:
    path = written(tmp_path, "own.py", source)
    with pytest.raises(EdgeFlError, match=re.escape(message)) as raised:
        preflight(of(f"{path}:T"))
    assert "\n" not in str(raised.value)


def test_a_file_is_found_from_where_one_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = parse_assignments(["task=own.py:T"])
    assert values == {"task": f"{tmp_path / 'own.py'}:T"}
    assert parse_assignments(["task=a.b:T"]) == {"task": "a.b:T"}


def test_a_partition_by_class_needs_classes(tmp_path: Path) -> None:
    source = "from tests.some_tasks import Points\nclass T(Points):\n  classes = ()"
    task = f"{written(tmp_path, 'own.py', source)}:T"
    with pytest.raises(EdgeFlError, match="have none: use partition=iid"):
        preflight(of(task, partition="dirichlet"))
    with pytest.raises(EdgeFlError, match="attack='label-flip' needs classes"):
        preflight(of(task, attack="label-flip", attackers=1))
    for mode in ("consensus", "distill", "average"):
        with pytest.raises(EdgeFlError, match=r"adjust-logits=0\.5 needs classes"):
            preflight(of(task, mode=mode, **{"adjust-logits": 0.5}))
    preflight(of(POINTS, partition="dirichlet", alpha=5.0))


def test_numbers_have_no_temperature(tmp_path: Path) -> None:
    """Their distillation is a mean squared error."""
    hot: dict[str, Any] = {"distill.temperature": 5.0}
    numbers: dict[str, Any] = {"task": "tables", "table": "diabetes"}
    with pytest.raises(ConfigError, match=r"temperature=5\.0 has no effect with task='tables'"):
        preflight(resolve({**numbers, **hot}))
    preflight(resolve({**numbers, "distill.temperature": 2.0}))
    preflight(resolve({**numbers, **hot, "table": "breast-cancer"}))
    preflight(of(POINTS, **hot))
    source = (
        "from strategies.task import Task\nfrom tests.some_tasks import Points\n"
        "class T(Points):\n  distillation = Task.distillation"
    )
    with pytest.raises(ConfigError, match="whose outputs are numbers: leave it at"):
        preflight(of(f"{written(tmp_path, 'own.py', source)}:T", **hot))


def test_batch_norm_is_for_distill_and_not_for_consensus(tmp_path: Path) -> None:
    source = (
        "from tests.some_tasks import *\nclass T(Points):\n  def model(self, role):\n"
        "    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))"
    )
    task = f"{written(tmp_path, 'own.py', source)}:T"
    preflight(of(task))
    with pytest.raises(EdgeFlError, match="1 is a BatchNorm1d, whose running statistics"):
        preflight(of(task, mode="consensus"))


def test_a_small_set_leaves_something_for_everybody() -> None:
    """A quarter for the distillation server, a twentieth for choices, of 120."""
    split = split_of(problem_of(of(POINTS)))
    assert (len(split.proxy), len(split.validation)) == (30, 6)
    assert [len(part) for part in split.participants] == [28, 28, 28]


# ----------------------------------------------------------------------------------------- models


def test_initial_values_follow_from_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (
        flat_model(problem_of(of(POINTS, seed=seed)), "small") for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first.checksum() == again.checksum() != other.checksum()


class Shared(nn.Module):
    """Words with one matrix for input and output, a frozen part of another type, and an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.norm, self.cell = nn.LayerNorm(4), nn.LSTM(4, 4, batch_first=True)
        self.frozen = nn.Linear(4, 4).to(torch.bfloat16).requires_grad_(False)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.cell(self.norm(self.words(x)))[0]
        return self.head(x + self.frozen(x.to(torch.bfloat16)).float()).transpose(1, 2)


def test_what_is_trained_is_the_flat_vector() -> None:
    """Shared once, frozen not at all; the gradient is autograd's."""
    model = FlatModel(module := Shared())
    assert len(model.weights) == 7 * 4 + 2 * 4 + 4 * (4 * 4 + 4 * 4 + 4 + 4)
    assert module.head.weight.data_ptr() == model.weights.data_ptr()
    words = torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(0))
    functional.cross_entropy(model.module(words), words).backward()
    gradient, weights = model.gradient.clone(), model.weights.clone()

    def loss(vector: torch.Tensor) -> torch.Tensor:
        parameters = model.unflatten(vector)
        outputs = torch.func.functional_call(model.module, parameters, (words,))
        return functional.cross_entropy(outputs, words)

    torch.testing.assert_close(torch.func.grad(loss)(weights), gradient)
    assert gradient.abs().min() < gradient.abs().max() < 10
    with pytest.raises(ValueError, match="nothing to learn"):
        FlatModel(nn.Linear(2, 2).requires_grad_(False))


# ---------------------------------------------------------------------------------------- metrics


def test_metrics_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    right = torch.tensor([0, 0, 0])
    assert ACCURACY.finish(float(ACCURACY.each(logits, right).mean())) == pytest.approx(2 / 3)
    surprise = float(functional.cross_entropy(logits, right))
    assert PERPLEXITY.finish(float(PERPLEXITY.each(logits, right).mean())) == pytest.approx(
        math.exp(surprise)
    )
    guess, truth = torch.tensor([[1.0], [4.0]]), torch.tensor([[1.0], [1.0]])
    assert RMSE.finish(float(RMSE.each(guess, truth).mean())) == pytest.approx(math.sqrt(4.5))
    assert MAE.finish(float(MAE.each(guess, truth).mean())) == pytest.approx(1.5)
    assert ACCURACY.higher_is_better
    assert not PERPLEXITY.higher_is_better
    assert not RMSE.higher_is_better


def test_an_even_guess_among_bytes_has_a_perplexity_of_256() -> None:
    text = Text()
    model = FlatModel(text.model("small"))
    model.weights.zero_()
    found = measured(text, model, text.test_set.take(np.arange(20))).values
    assert found["perplexity"] == pytest.approx(256)
    assert found.keys() == {"perplexity", "byte_accuracy", "loss"}


# ------------------------------------------------------------------------------------------- text


def test_a_byte_is_predicted_from_those_before_it() -> None:
    model = Text().model("large").eval()
    text = torch.randint(0, 256, (1, 64), dtype=torch.uint8)
    other = text.clone()
    other[0, 40] ^= 1
    changed = (model(text) != model(other)).any(1)[0]
    assert not changed[:40].any()
    assert changed[40:].any()


def test_texts_of_ones_own_are_cut_into_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tenth is for the test; targets are the next bytes."""
    (tmp_path / "a.txt").write_bytes(bytes(range(250)) * 3)
    (tmp_path / "b.txt").write_bytes(b"short")
    task = Text(data_path=str(tmp_path))
    assert (len(task.train_set), len(task.test_set)) == (10, 1)
    assert torch.equal(task.train_set.inputs[:, 1:].long(), task.train_set.targets[:, :-1])
    assert task.groups(task.train_set).tolist() == [0] * 10
    assert len(task.own(str(tmp_path))) == 11
    with pytest.raises(EdgeFlError, match="more than 64 bytes"):
        Text(data_path=written(tmp_path, "c.txt", "short")).training()
    with pytest.raises(EdgeFlError, match="cannot be read"):
        Text(data_path=str(tmp_path / "d.txt")).training()
    with pytest.raises(EdgeFlError, match="/dev/zero cannot be read: it is no file"):
        Text(data_path="/dev/zero").training()
    with monkeypatch.context() as patch:
        patch.setattr("fl_app.tasks.text._MOST_BYTES", 700)
        with pytest.raises(EdgeFlError, match=r"a\.txt cannot be read: it has more than"):
            Text(data_path=str(tmp_path / "a.txt")).training()


# ------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of docs/tasks.md, as one would name it."""
    source = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)[0]
    assert len(source.splitlines()) <= 30
    return f"{written(tmp_path_factory.mktemp('own'), 'ecg.py', source)}:Ecg"


@pytest.mark.parametrize("mode", ["distill", "average"])
def test_the_file_of_the_docs_runs(mode: str, example: str, tmp_path: Path) -> None:
    """In the distillation server's process, too."""
    summary, run = harness.run(tmp_path, {"task": example, "mode": mode}, TINY)
    assert summary["status"] == "completed"
    assert summary["task"] == example
    assert 0 < summary["final"]["published"] <= 1
    assert latest(run.events(), "run_started")["metric"]["name"] == "accuracy"


def test_nodes_agree_on_a_language_model(tmp_path: Path) -> None:
    """Perplexities, in the field that has the main metric, and by their own name."""
    run = test_consensus.run(tmp_path, {**NODES, "task": "text"})
    nodes, average = (of_kind(run.events(), kind)[-1] for kind in ("nodes", "evaluate"))
    assert all(1 < perplexity < 300 for perplexity in nodes["accuracy"])
    assert set(nodes["reference"]) == {"same-steps"}
    assert average["perplexity"] == average["accuracy"] == pytest.approx(math.exp(average["loss"]))


def test_a_task_is_tried_out(example: str) -> None:
    lines = list(try_out({"task": example}))
    assert lines[0] == "training: 600 examples; inputs (1, 64) float32, targets () int64"
    assert any(line.startswith("large model: 40 steps on one minibatch") for line in lines)
    assert "mode=consensus: possible" in lines
    assert "engine stacked: possible" in lines


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("def loss(self, o, t): return o.mean() * float('nan')", "is not finite"),
        ("def loss(self, o, t): return o", "return the mean, a scalar"),
        ("def loss(self, o, t): return o.detach().mean() + 0 * o.mean()", "try a smaller"),
        (
            "def training(self): return Examples(torch.rand(50, 2), torch.zeros(50).long())",
            "other examples when asked again",
        ),
        (
            "def prepare(self, augmented): return 1 / 0",
            "prepare(augmented=True) failed: ZeroDivisionError",
        ),
        (
            "def about(self, role): return {'mean': torch.zeros(2)}",
            "about('small') returned what JSON cannot hold, or failed: TypeError",
        ),
        (
            "def test(self): return Examples(torch.ones(9, 2), torch.full((9,), -100))",
            "the small model: accuracy of 9 test examples is no number",
        ),
    ],
)
def test_a_trial_says_what_is_wrong(method: str, message: str, tmp_path: Path) -> None:
    source = f"from tests.some_tasks import *\nclass T(Points):\n  {method}"
    with pytest.raises(EdgeFlError, match=re.escape(message)):
        list(try_out({"task": f"{written(tmp_path, 'own.py', source)}:T"}))


@pytest.mark.parametrize("change", [torch.Tensor.bfloat16, torch.Tensor.requires_grad_])
def test_inputs_may_be_of_any_type(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """NumPy knows no bfloat16, and takes no tensor that requires a gradient."""
    points = Points().train_set
    changed = Examples(change(points.inputs.clone()), points.targets)
    assert not changed.inputs.requires_grad
    assert changed.digest == Examples(changed.inputs.clone(), points.targets).digest
    assert (changed.digest == points.digest) == (changed.inputs.dtype == points.inputs.dtype)


SEVERAL = """
from strategies.task import Classification, Examples
import torch
from torch import nn

class Positions(Classification):
    classes = ("low", "high")
    def model(self, role): return nn.Conv1d(1, 2, 3, padding=1)
    def _drawn(self, seed):
        drawn = torch.randn(60, 1, 6, generator=torch.Generator().manual_seed(seed))
        return Examples(drawn, (drawn[:, 0] > 0).long())
    def training(self): return self._drawn(0)
    def test(self): return self._drawn(1)

class Padded(Positions):
    def model(self, role): return nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    def _drawn(self, seed):
        drawn = super()._drawn(seed)
        targets = drawn.targets[:, 0].clone()
        targets[::3] = -100
        return Examples(drawn.inputs, targets)
"""


def test_named_classes_of_positions_and_of_some_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a class for each position examples are divided evenly. Where an example has none, it
    counts in no class, before a run and in one of nodes."""
    path = written(tmp_path, "own.py", SEVERAL)
    assert "mode=consensus: possible" in list(try_out({"task": f"{path}:Positions"}))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "show", "task=own.py:Positions"]) == 2
    assert "have no classes to be shown" in capsys.readouterr().err
    assert cli.main(["data", "show", "task=own.py:Padded", "participants=1"]) == 0
    [shown] = re.findall(r"(\d+) examples; per class", capsys.readouterr().out)
    assert int(shown) == 28
    run = test_consensus.run(tmp_path, {**NODES, "task": f"{path}:Padded"})
    labels = latest(run.events(), "labels")
    assert labels["classes"] == ["low", "high"]
    assert sum(map(sum, labels["histogram"])) == 40


def test_groups_that_are_no_classes_have_no_names_of_classes(tmp_path: Path) -> None:
    source = "  def groups(self, examples): return [k % 5 for k in range(120)]"
    path = written(tmp_path, "own.py", POINTS_OF_ONES_OWN + source)
    found = histogram_of(problem_of(of(f"{path}:T", mode="consensus")))
    assert found is not None
    assert found[1] == ("0", "1", "2", "3", "4")
    assert found[0].sum(0).tolist() == [24] * 5


def test_examples_have_a_target_each() -> None:
    for inputs, targets in [(3, 2), (0, 0)]:
        with pytest.raises(ValueError, match="one target for each"):
            Examples(torch.zeros(inputs, 2), torch.zeros(targets))
    points = Points().train_set
    assert points.digest == Points().train_set.digest != Points().test_set.digest
    assert task_of(problem_of(of(POINTS))) is task_of(problem_of(of(POINTS)))


def test_the_file_of_a_task_travels_in_the_bundle_for_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy there is taken, and not what a device has at the same path."""
    path = written(tmp_path, "own.py", "from tests.some_tasks import Points\nclass T(Points): pass")
    app = tmp_path / "edge-fl"
    (app / "strategies").mkdir(parents=True)
    with with_own_files(app, {"task": f"{path}:T"}, remote=False) as bundle:
        assert bundle == app
    with with_own_files(app, {"task": POINTS}, remote=True) as bundle:
        assert bundle == app
    with with_own_files(app, {"task": f"{path}:T"}, remote=True) as bundle:
        [copy] = (bundle / "strategies" / "own").iterdir()
        assert copy.name == plugins.bundled(Path(path)).name
        assert copy.read_text() == Path(path).read_text()
    with (
        pytest.raises(EdgeFlError, match="U is not in"),
        with_own_files(app, {"task": f"{path}:U"}, remote=True),
    ):
        pass
    kept = tmp_path / "kept.py"
    kept.write_text("from tests.some_tasks import Points\nclass T(Points): count = 7")
    monkeypatch.delitem(sys.modules, plugins.load("task", f"{path}:T").__module__)
    monkeypatch.setattr(plugins, "bundled", lambda _: kept)
    found: Any = task_reference.class_of.__wrapped__(f"{path}:T")
    assert found.count == 7


# ------------------------------------------------------------------------- a partition of one's own

BY_SIZE = """
import numpy as np

def by_size(labels, participants, generator):
    return np.split(np.arange(len(labels)), [5 * k for k in range(1, participants)])

def empty(labels, participants, generator): return [[] for _ in range(participants)]
def twice(labels, participants, generator): return [[0, 1]] * participants
def few(labels, participants, generator): return [[0]]
def far(labels, participants, generator): return [[k, 10**6 + k] for k in range(participants)]
def raises(labels, participants, generator): 1 / 0

class Alternating:
    def __call__(self, labels, participants, generator):
        return [np.arange(k, len(labels), participants) for k in range(participants)]

    def __repr__(self): return "an object"

alternating = Alternating()
"""


def test_a_function_of_ones_own_divides_the_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same ones in every process, and its file travels to devices beside the task's."""
    path = written(tmp_path, "sites.py", BY_SIZE)
    split = split_of(problem_of(of(POINTS, partition=f"{path}:by_size")))
    assert [len(part) for part in split.participants] == [5, 5, 74]
    assert all(np.all(np.diff(part) > 0) for part in split.participants)
    assert not set(split.proxy) & set(np.concatenate(split.participants))
    preflight(of(POINTS, partition=f"{path}:by_size"))
    preflight(of(POINTS, partition=f"{path}:alternating"))
    monkeypatch.chdir(tmp_path)
    assert parse_assignments(["partition=sites.py:by_size"]) == {"partition": f"{path}:by_size"}
    app = tmp_path / "edge-fl"
    (app / "strategies").mkdir(parents=True)
    with with_own_files(
        app, {"task": POINTS, "partition": f"{path}:by_size"}, remote=True
    ) as bundle:
        [copy] = (bundle / "strategies" / "own").iterdir()
        assert copy.name == plugins.bundled(Path(path)).name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "empty gave participant 0 float64 (0,)"),
        ("twice", "twice returned a sample twice"),
        ("few", "few returned 1 parts for 3 participants"),
        ("far", "far returned a sample twice, or one that is not among the 84"),
        ("raises", "failed: ZeroDivisionError: division by zero"),
        ("absent", "absent is not in"),
        ("np", "np is no function"),
        ("few:foo=1", "few has no setting 'foo'; its settings: none"),
    ],
)
def test_what_such_a_function_does_wrong_is_told_in_a_line(
    name: str, message: str, tmp_path: Path
) -> None:
    path = written(tmp_path, "sites.py", BY_SIZE)
    with pytest.raises(EdgeFlError, match=re.escape(message)) as raised:
        preflight(of(POINTS, partition=f"{path}:{name}"))
    assert str(raised.value).count("partition=") < 2
