"""The two systems in somebody else's ServerApp and ClientApp."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from edge_fl import Consensus, Distillation
from fl_app.client_app import mount
from fl_app.config import resolve
from fl_app.problem import problem_of
from fl_app.record.run_dir import list_runs
from strategies.errors import ConfigError, EdgeFlError
from strategies.problem import flat_model
from tests import fake_grid, some_tasks
from tests.fake_grid import FakeGrid
from tests.harness import run

TINY: dict[str, Any] = {
    "small-width": 2,
    "proxy-examples": 40,
    "validation-examples": 40,
    "evaluate-examples": 40,
}
AVERAGE = {**TINY, "mode": "average", "participants": 2}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def plain(adds: float = 1.0) -> ClientApp:
    """Somebody else's ClientApp: "trains" by adding to every float of the state dict."""
    app = ClientApp()
    app.orders = []  # type: ignore[attr-defined]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        app.orders.append(dict(message.content["config"]))  # type: ignore
        state = message.content["arrays"].to_torch_state_dict()  # type: ignore
        for value in state.values():
            if value.is_floating_point():
                value += adds
        metrics = MetricRecord({"num-examples": 10, "train_loss": 0.5})
        content = RecordDict({"arrays": ArrayRecord(state), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def page(name: str) -> dict[str, Any]:
    """What the code of docs/library.md defines whose first line is the comment `name`."""
    text = (Path(__file__).resolve().parents[1] / "docs" / "library.md").read_text()
    [code] = re.findall(rf"^```python\n# {name}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    defined: dict[str, Any] = {}
    exec(compile(code, name, "exec"), defined)
    return defined


def test_the_tutorial_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fake_grid, "client_app", page("client_app.py")["app"])
    page("server_app.py")["main"](FakeGrid({}), None)
    for name, role in (("small", "small"), ("global", "large")):
        state = torch.load(f"{name}.pt", weights_only=True)
        flat_model(problem_of(resolve({"small-width": 2})), role).module.load_state_dict(state)
    monkeypatch.setattr(fake_grid, "client_app", plain())
    result = page("plain_server_app.py")["main"](FakeGrid({}), None)
    assert len(result.train_metrics_clientapp) == 2


def test_a_task_is_named_apart_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_grid, "client_app", plain())
    settings = {"mode": "average", "participants": 2}
    result = Distillation(settings, task="tables", clients="plain").start(
        FakeGrid({}), num_rounds=1
    )
    expected = flat_model(problem_of(resolve({"task": "tables"})), "small").module.state_dict()
    assert list(result.arrays.to_torch_state_dict()) == list(expected)


def weights(record: ArrayRecord, settings: dict[str, Any]) -> np.ndarray:
    model = flat_model(problem_of(resolve(settings)), "small")
    model.module.load_state_dict(record.to_torch_state_dict())
    return model.state()["weights"]


def test_plain_clients_of_another_app_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_grid, "client_app", client := plain())
    seen: list[tuple[int, float]] = []

    def evaluate(version: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append((version, float(weights(arrays, AVERAGE)[0])))
        return MetricRecord({"first": seen[-1][1]})

    strategy = Distillation(AVERAGE, clients="plain")
    first = flat_model(problem_of(resolve(AVERAGE)), "small").weights.numpy()
    result = strategy.start(
        FakeGrid({}), num_rounds=3, train_config=ConfigRecord({"lr": 0.1}), evaluate_fn=evaluate
    )
    np.testing.assert_allclose(weights(result.arrays, AVERAGE), first + 3, rtol=1e-6)
    assert [version for version, _ in seen] == [0, 1, 2, 3]
    assert seen[0][1] == first[0]
    assert result.evaluate_metrics_serverapp[3]["first"] == seen[3][1]
    orders = sorted(client.orders, key=lambda order: order["server-round"])  # type: ignore
    assert orders == [{"lr": 0.1, "server-round": n} for n in (1, 1, 2, 2, 3, 3)]


def test_a_run_starts_from_the_arrays_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_grid, "client_app", plain())
    model = flat_model(problem_of(resolve(AVERAGE)), "small")
    model.weights.fill_(7.0)
    strategy = Distillation(AVERAGE, clients="plain")
    initial = ArrayRecord(model.module.state_dict())
    result = strategy.start(FakeGrid({}), initial, num_rounds=1)
    assert set(weights(result.arrays, AVERAGE)) == {8.0}
    with pytest.raises(ConfigError, match="initial_arrays is no state dict of the small model"):
        strategy.start(FakeGrid({}), ArrayRecord({}), num_rounds=1)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({}),
        RecordDict({"arrays": ArrayRecord({}), "metrics": MetricRecord({"num-examples": 1})}),
        RecordDict({"arrays": ArrayRecord({}), "metrics": MetricRecord({})}),
    ],
)
def test_what_is_no_plain_reply_is_rejected_by_name(
    content: RecordDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = ClientApp()
    app.train()(lambda message, context: Message(content, reply_to=message))
    monkeypatch.setattr(fake_grid, "client_app", app)
    with pytest.raises(EdgeFlError, match="no plain train reply"):
        Distillation(AVERAGE, clients="plain").start(FakeGrid({}), num_rounds=5)


def test_mounted_clients_give_the_bits_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an app with a `train` of its own, whose run configuration knows nothing of us."""
    expected, directory = run(tmp_path / "runs", {**AVERAGE, "num-server-rounds": 2}, {})
    monkeypatch.setattr(fake_grid, "client_app", mount(plain()))
    strategy = Distillation(AVERAGE, record=tmp_path / "mine")
    result = strategy.start(FakeGrid({"their-key": 1}), num_rounds=2)
    small, _ = directory.load_checkpoint("small")
    assert np.array_equal(weights(result.arrays, AVERAGE), small["weights"])
    [mine] = list_runs(tmp_path / "mine")
    assert mine.summary()["checksum"] == expected["checksum"]


def test_nodes_agree_and_nothing_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(fake_grid, "client_app", mount(ClientApp()))
    settings = {
        "small-width": 2, "evaluate-examples": 20, "participants": 3, "consensus.window": 2,
        "consensus.batch-size": 4, "consensus.references": "", "consensus.settle": 1,
    }  # fmt: skip
    seen: dict[int, np.ndarray] = {}

    def evaluate(window: int, arrays: ArrayRecord) -> MetricRecord:
        seen[window] = weights(arrays, {**settings, "mode": "consensus"})
        return MetricRecord({"first": float(seen[window][0])})

    result = Consensus(settings).start(FakeGrid({}, nodes=1), num_rounds=2, evaluate_fn=evaluate)
    assert list(seen) == [0, 1, 2]
    first = flat_model(problem_of(resolve({**settings, "mode": "consensus"})), "small")
    np.testing.assert_array_equal(seen[0], first.weights.numpy())
    assert len({one.tobytes() for one in seen.values()}) == 3
    assert {n: m["first"] for n, m in result.evaluate_metrics_serverapp.items()} == {
        n: float(one[0]) for n, one in seen.items()
    }
    state = result.arrays.to_torch_state_dict()
    assert all(bool(value.isfinite().all()) for value in state.values())
    assert list(tmp_path.glob("edge-fl-*")) == []


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Distillation({"distill.varaint": "sync"}), "did you mean distill.variant"),
        (lambda: Distillation({"num-server-rounds": 3}), r"num-server-rounds: say it to start\(\)"),
        (lambda: Distillation({"consensus.loss": 0.5}), "has no effect"),
        (lambda: Distillation({"mode": "consensus"}), "the strategy Consensus"),
        (
            lambda: Distillation({"task": "images"}, task="text"),
            "task='text', and 'images' in the settings",
        ),
        (lambda: Consensus(task="no.such:Task"), "no.such"),
        (lambda: Distillation(clients="other"), "choose one of: mounted, plain"),
        (
            lambda: Distillation({"averaging": "fedprox"}, clients="plain"),
            "done by the clients: use fedavg",
        ),
        (lambda: Consensus({"consensus.window": 2.5}), "consensus.window"),
        (lambda: Consensus({"consensus.window": 0}), "consensus.window"),
        (lambda: Consensus({"consensus.steps": 5}), r"consensus.steps: say it to start\(\)"),
        (lambda: Consensus({"averaging": "krum"}), "has no effect"),
    ],
)
def test_a_wrong_setting_is_refused_when_the_strategy_is_made(make: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("adjust-logits", 0.5),
        ("attackers", 1),
        ("distill.calibrate", "on"),
        ("local-steps", 5),
        ("mail-precision", "int8"),
        ("partition", "dirichlet"),
        ("privacy.samples", True),  # it would be told in the summary, and done by nobody
        ("secure-aggregation", True),
    ],
)
def test_plain_clients_are_not_told_what_only_mounted_ones_do(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: plain clients know nothing of it"):
        Distillation({key: value}, clients="plain")


@pytest.mark.parametrize("window", [1, 50, 84])
def test_the_rounds_of_consensus_are_of_any_length(window: int) -> None:
    strategy = Consensus({"consensus.window": window, "consensus.references": ""})
    config = strategy._config(3, 1.0)
    assert (config.consensus.steps, config.consensus.window) == (3 * window, window)


def test_arguments_that_have_no_meaning_are_refused() -> None:
    some = ConfigRecord({"lr": 0.1})
    with pytest.raises(ConfigError, match="no client evaluates here"):
        Distillation().start(FakeGrid({}), evaluate_config=some)
    with pytest.raises(ConfigError, match="train_config is for clients='plain'"):
        Distillation().start(FakeGrid({}), train_config=some)
    with pytest.raises(ConfigError, match="train_config: has no meaning for Consensus"):
        Consensus().start(FakeGrid({}), train_config=some)


def test_nodes_with_a_buffer_in_their_state_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = type("Its", (some_tasks.Words,), {"kind": some_tasks.Placed})
    monkeypatch.setattr(some_tasks, "PlacedTask", task, raising=False)
    strategy = Consensus(task="tests.some_tasks:PlacedTask")
    with pytest.raises(ConfigError, match="register constants with persistent=False"):
        strategy.start(FakeGrid({}))
