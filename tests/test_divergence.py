"""What has diverged says so: every number of it, how its run ends, and why."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message

from fl_app.config import resolve
from fl_app.problem import problem_of
from fl_app.record.books import recorded
from fl_app.record.metrics import latest, of_kind
from fl_app.record.run_dir import RunDirectory, list_runs
from fl_app.settings import consensus_run_of
from strategies.consensus.agreement import average, consensus_distance, fixed_point
from strategies.consensus.strategy import Consensus
from strategies.errors import ConfigError, DivergedError
from strategies.evaluation import measured
from strategies.problem import flat_model
from strategies.task import Examples
from tests.fake_grid import FakeGrid
from tests.frozen import frozen
from tests.harness import run as run_distill
from tests.some_tasks import Points
from tests.test_consensus import TINY

NOT_FINITE = (math.nan, math.inf, -math.inf)


# ----------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("value", [*NOT_FINITE, 1e30])
def test_one_node_that_is_not_finite_leaves_no_average_and_no_distance(value: float) -> None:
    """Of the values that it has spoiled; and those of another host are spoiled with it."""
    wild = torch.tensor([value, 1.0])
    sums = [fixed_point([torch.ones(2), wild]), fixed_point([torch.ones(2)])]
    mean = average(sums, 3)
    assert math.isnan(mean[0])
    assert mean[1] == 1.0
    norms = [2.0, float(wild.double().square().sum()), 2.0]
    assert not math.isfinite(consensus_distance(norms, mean))


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_makes_no_distance_of_zero(norm: float) -> None:
    assert not math.isfinite(consensus_distance([1.0, norm], np.ones(1)))
    assert math.isnan(consensus_distance([1.0, 1.0], np.array([math.nan])))


def test_opposite_nodes_are_infinitely_far_from_their_average_of_zero() -> None:
    assert consensus_distance([1.0, 1.0], np.zeros(3)) == math.inf
    assert consensus_distance([0.0, 0.0], np.zeros(3)) == 0.0


@pytest.mark.parametrize("value", [*NOT_FINITE, 1e38])
@pytest.mark.parametrize("position", [0, -1])
def test_a_model_that_is_not_finite_has_no_accuracy(value: float, position: int) -> None:
    """It would answer one class for everything, and be right in a tenth of the cases. -inf, as a
    bias before a ReLU, does not even show in the answers; 1e38 in each of them does."""
    model = flat_model(problem_of(resolve({"small-width": 2})), "small")
    examples = Examples(torch.randn(20, 1, 28, 28), torch.arange(20) % 10)
    assert 0 <= measured(Points(), model, examples).values["accuracy"] <= 1
    model.weights[position] = value
    if value == 1e38:
        model.weights.fill_(value)
    found = measured(Points(), model, examples).values
    assert found.keys() == {"accuracy", "loss"}
    assert all(map(math.isnan, found.values()))


# ------------------------------------------------------------------------------------------- runs


def consensus(output: Path, overrides: dict[str, Any], **grid: Any) -> RunDirectory:
    """A run with the books that a real one has; its directory."""
    torch.set_num_threads(1)
    config = resolve({**TINY, "output": str(output), **overrides})
    with recorded(config) as directory:
        Consensus(consensus_run_of(config), directory).start(FakeGrid(config.flat(), **grid))
    return directory


def ended(output: Path, capsys: pytest.CaptureFixture[str], *words: str) -> RunDirectory:
    """The only run in `output`, which has diverged, and says so wherever one looks; `words` are in
    its reason."""
    [run] = list_runs(output)
    summary = run.summary()
    assert summary["status"] == "diverged"
    assert summary["checksum"] is None
    last = latest(run.events(), "finished")
    assert (last["status"], last["reason"]) == ("diverged", summary["reason"])
    shown = capsys.readouterr().out
    assert f"! {summary['reason']}" in shown
    assert "final accuracy" not in shown
    assert frozen(run.path / "report.html")["status"] == "diverged"
    for word in words:
        assert word in summary["reason"]
    return run


def numbers_of(reply: Message) -> Any:
    """What a reply tells of nodes: nothing, unless a window is done."""
    return reply.content.get("nodes") if reply.has_content() else None


CLOCKS = ("virtual", "real")


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("hosts", [1, 3])
def test_nodes_with_too_large_steps(
    clock: str, hosts: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"clock": clock, "consensus.learning-rate": 1e6, "consensus.references": "same-steps"}
    with pytest.raises(DivergedError, match=r"window 1, nodes 0, 1, .*consensus.learning-rate=1e"):
        consensus(tmp_path, config, nodes=hosts)
    run = ended(tmp_path, capsys, "window 1, nodes 0")
    [nodes] = of_kind(run.events(), "nodes")
    assert nodes["diverged"]
    assert all(nodes["accuracy"][i] is None and nodes["loss"][i] is None for i in nodes["diverged"])
    assert latest(run.events(), "round")["distance"] is None
    final = run.summary()["final"]
    assert [final[f"node_{which}"] for which in ("mean", "min", "max")] == [None] * 3
    assert final["average"] is None
    assert final["reference"] == {"same-steps": None}


def test_a_liar_whose_words_are_too_large(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"attack": "sign-flip", "attackers": 1, "attack-scale": 1e38}
    with pytest.raises(DivergedError):
        consensus(tmp_path, config, nodes=2)
    run = ended(tmp_path, capsys, "attack-scale=1e+38 or consensus.learning-rate=")
    assert run.summary()["final"]["node_honest"] is None


def test_one_node_of_many_is_named_by_its_name_and_the_others_keep_theirs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Devices on the real clock; all that the server knows of their models is what they say."""
    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path / "home"))

    def say_nan(message: Message, reply: Message) -> Message:
        told = numbers_of(reply)
        if told and told["norm"] and message.metadata.dst_node_id == 13:
            told["norm"] = [math.nan]
        return reply

    config = {"clock": "real", "participants": 3, "consensus.topology": "complete"}
    devices = [{"name": name} for name in ("anna", "bert", "carl")]
    with pytest.raises(DivergedError, match=r"window 1, node carl: not finite"):
        consensus(tmp_path / "runs", config, node_configs=devices, tamper=say_nan)
    run = ended(tmp_path / "runs", capsys)
    [nodes] = of_kind(run.events(), "nodes")
    assert nodes["diverged"] == [2]
    assert None not in nodes["accuracy"]
    assert run.summary()["final"]["node_mean"] is None


def test_a_window_that_was_finite_stays_and_the_run_is_not_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint of the window before is kept, as is what was measured until then; on the
    virtual clock a resumed run would diverge once more."""
    output, config, calls = tmp_path / "runs", {"consensus.steps": 24}, []

    def later(message: Message, reply: Message) -> Message:
        told = numbers_of(reply)
        calls.append(bool(told and told["norm"]))
        if calls[-1] and sum(calls) == 3:
            told["norm"] = [*list(told["norm"])[:-1], math.inf]
        return reply

    with pytest.raises(DivergedError, match="window 3, node 7: not finite"):
        consensus(output, config, tamper=later, nodes=1)
    run = ended(output, capsys)
    assert run.summary()["rounds"] == 3
    assert run.load_checkpoint("server")[1]["window"] == 2
    with pytest.raises(ConfigError, match=r"has diverged and would do it again \(.*window 3"):
        consensus(output, {**config, "resume": str(run.path)})


def test_a_reference_may_diverge_alone_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(message: Message, reply: Message) -> Message:
        told = numbers_of(reply)
        if told and told["metric"]:
            told["metric"] = [*list(told["metric"])[:-1], math.nan]
        return reply

    run = consensus(tmp_path, {"consensus.references": "same-steps"}, tamper=spoil, nodes=1)
    assert run.summary()["status"] == "completed"
    assert run.summary()["final"]["reference"] == {"same-steps": None}
    assert "diverged" in capsys.readouterr().out


DISTILL: dict[str, tuple[dict[str, Any], str]] = {
    "global": (
        {"distill.learning-rate": 1e9},
        r"round \d, the global model: not finite.*distill.learning-rate=1e\+09",
    ),
    "small, whose weights are finite, but not its answers": (
        {"mode": "average", "averaging": "buffered", "server-learning-rate": 1e9},
        r"round 1, the small model: .*: learning-rate=.* or server-learning-rate=1e\+09",
    ),
    "a liar": (
        {"attack": "sign-flip", "attackers": 1, "attack-scale": 1e38, "mode": "average"},
        r"round 1, the small model: .*: attack-scale=1e\+38 or learning-rate=",
    ),
    "everybody": (
        {"learning-rate": 1e9, "mode": "average", "local-steps": 6},
        r"round 3, the model of every participant: .*: learning-rate=1e\+09",
    ),
}


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("what", DISTILL)
def test_a_model_of_the_server(
    what: str, clock: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, reason = DISTILL[what]
    with pytest.raises(DivergedError, match=reason):
        run_distill(tmp_path, {**overrides, "clock": clock})
    run = ended(tmp_path, capsys)
    if what != "everybody":  # whose model stayed as it was
        assert run.summary()["final"]["published"] is None
