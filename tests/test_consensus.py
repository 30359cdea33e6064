"""The consensus system end to end in this process: strategy, ClientApp and run directory."""

import math
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message
from torch.nn import functional

from client_apps.node_store import NODES, NodeStore
from fl_app.assemble import dataset_of
from fl_app.config import resolve
from fl_app.data import normalise, spec_of
from fl_app.problem import problem_of
from fl_app.record import consensus_metrics as summary
from fl_app.record.consensus_metrics import node_spread
from fl_app.record.export import trained_model
from fl_app.record.metrics import of_kind
from fl_app.record.report import render
from fl_app.record.run_dir import RunDirectory
from fl_app.settings import consensus_run_of
from strategies.consensus import fleet
from strategies.consensus.strategy import Consensus
from strategies.errors import ConfigError, EdgeFlError
from strategies.evaluation import Evaluator, evaluation_set
from strategies.learning_rate import rate_of
from strategies.messages.windows import MailHead
from strategies.problem import module_of, split_of, task_of
from strategies.randomness import rng
from tests.fake_grid import FakeGrid, Tamper
from tests.frozen import frozen

TINY: dict[str, Any] = {
    "mode": "consensus",
    "small-width": 2,
    "evaluate-examples": 50,
    "consensus.carrier": "grid",
    "consensus.steps": 12,
    "consensus.window": 6,
    "consensus.interval": 3.0,
    "consensus.batch-size": 8,
    "consensus.settle": 0,
    "consensus.references": "",
    "consensus.step-seconds": 1.0,
}
STRESS: dict[str, Any] = {
    "consensus.delay-seconds": 4.0,
    "consensus.loss": 0.2,
    "consensus.duplication": 0.3,
    "consensus.speed-spread": 0.4,
    "consensus.silence-seconds": 4.0,
    "consensus.outages": "crash:3@2-4.5, cut:0-1@0-9, leave:5@7, join:7@3.5, pause:2@4-8",
    "consensus.references": "same-steps",
}


class Dying(FakeGrid):
    """Its SuperLink goes away before the window `dies` is given out."""

    dies = math.inf

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            order: Any = message.content.get("config") if message.has_content() else None
            if order and order.get("window", 0) >= self.dies:
                raise ConnectionError("the SuperLink is gone")
        return super().push_messages(messages)


def run(
    output: Path,
    overrides: dict[str, Any],
    *,
    nodes: int = 1,
    dies: float = math.inf,
    **grid: Any,
) -> RunDirectory:
    """Run to the end, or until `dies`, with TINY and `overrides` on `nodes` hosts; returns the run
    directory."""
    torch.set_num_threads(1)
    config = resolve({**TINY, "output": str(output), **overrides})
    directory = (
        RunDirectory.open(config.resume)
        if config.resume
        else RunDirectory.create(output, config.flat())
    )
    connection = Dying(config.flat(), nodes=nodes, **grid)
    connection.dies = dies
    Consensus(consensus_run_of(config), directory).start(connection)
    return directory


def checksum(directory: RunDirectory) -> str:
    return directory.load_checkpoint("nodes")[1]["checksum"]


def measured(directory: RunDirectory) -> list[dict[str, Any]]:
    """All events of the run, without how long it took and on how many hosts."""
    timing = {"t_wall", "seconds", "seconds_evaluation"}
    kinds = ("topology", "labels", "trace", "round", "nodes", "incident", "evaluate")
    return sorted(
        (
            {key: value for key, value in event.items() if key not in timing}
            for event in directory.events()
            if event["event"] in kinds
        ),
        key=lambda event: (kinds.index(event["event"]), event.get("round", 0), event.get("t", 0)),
    )


def weights_of(directory: RunDirectory, node: int, window: int = 2) -> np.ndarray:
    return NodeStore(directory.path / NODES).load(window, node)[0]["weights"]


# ----------------------------------------------------------- the same bits for any number of hosts

SYSTEMS: dict[str, dict[str, Any]] = {
    "ecl": {},
    "ecl under stress": STRESS,
    "compressed, under stress": {**STRESS, "consensus.algorithm": "c-ecl"},
    "few bits, under stress": {**STRESS, "mail-precision": "int8"},
    "averages, under stress": {**STRESS, "consensus.publish-average": True},
    "adjusted": {"adjust-logits": 0.5},
    "gossip": {"consensus.algorithm": "gossip", "consensus.topology": "complete"},
    "tracking under stress": {**STRESS, "consensus.algorithm": "momentum-tracking"},
    "a sequence of graphs": {
        "consensus.topology": "base-k",
        "consensus.degree": 2,
        "consensus.exchange": "synchronous",
    },
    "on a tree": {"consensus.algorithm": "relay-sgd", "consensus.topology": "tree"},
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_same_run_on_any_number_of_hosts(system: str, tmp_path: Path) -> None:
    """All that is measured, to the last bit."""
    one = run(tmp_path, SYSTEMS[system])
    for hosts in (2, 4, 8) if system == "ecl under stress" else (3,):
        several = run(tmp_path, SYSTEMS[system], nodes=hosts)
        assert checksum(several) == checksum(one)
        assert measured(several) == measured(one)
    assert of_kind(one.events(), "hosts")[0]["hosts"] == 1


# ------------------------------------------------------------------------------------- settling

SETTLES: dict[str, Any] = {**STRESS, "consensus.settle": 5}


def test_nodes_settle_on_any_number_of_hosts(tmp_path: Path) -> None:
    """With the same bits, and after a training that is that of a run without settling."""
    one, without = (run(tmp_path, values) for values in (SETTLES, STRESS))
    several = run(tmp_path, SETTLES, nodes=3)
    assert checksum(several) == checksum(one)
    assert measured(several) == measured(one)
    told, before = (summary.measure(directory.events()) for directory in (one, without))
    assert of_kind(one.events(), "nodes")[:2] != []
    assert told["unsettled"] == {
        **{name: before["final"][name] for name in ("node_mean", "node_min", "node_max")},
        "distance": before["distance"],
    }
    assert before["unsettled"] is before["settling"] is None
    assert told["rounds"] == before["rounds"] == 2
    assert told["distance"] < 0.6 * before["distance"]
    for name in ("messages", "bytes"):
        assert told["settling"][name] == told[name] - before[name] > 0
    for node in (0, 5):
        assert np.array_equal(weights_of(one, node), weights_of(without, node))
    _, model = trained_model(one, resolve({**TINY, **SETTLES}), "node-0")
    assert np.array_equal(model.weights.numpy(), weights_of(one, 0, window=3))


def test_all_have_the_averaged_model_in_the_end(tmp_path: Path) -> None:
    found = run(tmp_path, {"consensus.settle": 30})
    [*_, before, after] = of_kind(found.events(), "round")
    assert (before["settled"], after["settled"]) == (False, True)
    assert after["distance"] < 1e-6 < before["distance"]
    average = sum(weights_of(found, i).astype(np.float64) for i in range(8)) / 8
    for node in range(8):
        assert np.abs(weights_of(found, node, window=3) - average).max() < 1e-6
    assert of_kind(found.events(), "incident") == []
    # A vector of float32 over each of 8 edges, both ways, in each of 30 rounds.
    length = len(weights_of(found, 0))
    assert after["bytes"] - before["bytes"] == 30 * 8 * 2 * 4 * length


def test_who_dies_while_nodes_settle_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Parked in the middle of it, too: three hosts on the grid carrier wait in every round."""
    whole = run(tmp_path, SETTLES, nodes=3)
    with pytest.raises(ConnectionError):
        run(tmp_path / "killed", SETTLES, nodes=3, dies=3)
    [killed] = (tmp_path / "killed").iterdir()
    resumed = run(tmp_path / "killed", {**SETTLES, "resume": str(killed)}, nodes=3)
    assert checksum(resumed) == checksum(whole)
    settled = [event["settled"] for event in of_kind(resumed.events(), "round")]
    assert settled == [False, False, True]


def test_nodes_settle_on_the_real_clock(tmp_path: Path) -> None:
    """On one host; and in a window a round where mail rides in messages."""
    values = {"clock": "real", "consensus.settle": 12, "consensus.silence-seconds": 5.0}
    for hosts, windows in ((1, 1), (2, 12)):
        found = run(tmp_path, values, nodes=hosts)
        settled = [e["settled"] for e in of_kind(found.events(), "round")]
        assert settled == [False, False] + [True] * windows
        told = summary.measure(found.events())
        assert told["rounds"] == 2
        assert told["distance"] < 0.5 * told["unsettled"]["distance"]


@pytest.mark.parametrize("values", [{"consensus.algorithm": "isolated"}, {"consensus.clip": 2.0}])
def test_who_has_no_mail_or_clips_it_does_not_settle(values: dict[str, Any]) -> None:
    assert resolve({"mode": "consensus", **values}).consensus.settling_rounds == 0


def test_more_hosts_than_nodes(tmp_path: Path) -> None:
    config = {"participants": 3, "consensus.topology": "chain"}
    several = run(tmp_path, config, nodes=5)
    assert checksum(several) == checksum(run(tmp_path, config))
    assert of_kind(several.events(), "hosts")[0]["hosts"] == 3


def test_devices_are_one_node_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of their names; what they are stays with them."""
    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path / "home"))
    config = {**STRESS, "participants": 8, "consensus.references": ""}
    devices = [{"name": f"device-{i}"} for i in range(8)]
    directory = run(tmp_path, config, node_configs=devices)
    assert checksum(directory) == checksum(run(tmp_path, config))
    assert not (directory.path / NODES).exists()
    [states] = (tmp_path / "home" / NODES).iterdir()
    assert states.name.startswith(f"{directory.name}-")
    assert (states / "000002").is_dir()
    with pytest.raises(EdgeFlError, match="references need all data in one place"):
        run(tmp_path, {"consensus.references": "same-steps"}, node_configs=devices)


def test_a_report_of_devices_has_what_they_tell_of_their_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many images, of what they train on; the run's own split is of nobody's data then."""
    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path / "home"))
    devices = []
    for count in (20, 31, 42):
        path = tmp_path / f"{count}.npz"
        labels = np.arange(count) % 10
        np.savez(path, images=np.zeros((count, 28, 28), np.uint8), labels=labels)
        devices.append({"name": f"device-{count}", "data-path": str(path)})
    directory = run(tmp_path, {"participants": 3}, node_configs=devices)
    assert of_kind(directory.events(), "labels") == []
    assert of_kind(directory.events(), "nodes")[-1]["examples"] == [20, 31, 42]
    page = frozen(render(directory))
    assert "devices do not tell it" in page["absent"][-1]
    nodes = next(table["rows"] for table in page["tables"] if table["title"] == "Nodes")
    assert not (directory.path / "figures" / "labels.png").exists()
    for index, count in enumerate((20, 31, 42)):
        assert nodes[index][:2] == [f"{index}: device-{count}", f"{count}"]


def test_nodes_are_told_by_class(tmp_path: Path) -> None:
    """The mean over the test images of all classes is the nodes' mean; nothing of references."""
    directory = run(tmp_path, {"consensus.references": "same-steps"}, nodes=2)
    problem = problem_of(resolve({**TINY, "output": str(tmp_path)}))
    counts = np.bincount(evaluation_set(problem, "cpu").targets, minlength=10)
    names = task_of(problem).classes
    for event in of_kind(directory.events(), "nodes"):
        told = event["per_class"]
        assert list(told) == [n for n, count in zip(names, counts, strict=True) if count]
        of_all = sum(told[n]["mean"] * c for n, c in zip(names, counts, strict=True) if c)
        assert of_all / sum(counts) == pytest.approx(node_spread(event)["mean"], abs=1e-3)
        assert all(0 <= each["min"] <= each["mean"] <= each["max"] <= 1 for each in told.values())
    assert "Accuracy by class" in {t["title"] for t in frozen(render(directory))["tables"]}


def test_side_by_side_gradients_differ_by_rounding_alone(tmp_path: Path) -> None:
    one, other = (run(tmp_path, {"consensus.engine": e}) for e in ("sequential", "stacked"))
    for node in range(8):
        assert np.allclose(weights_of(one, node), weights_of(other, node), rtol=1e-3, atol=1e-5)
    for a, b in zip(*(of_kind(each.events(), "nodes") for each in (one, other)), strict=True):
        assert a["loss"] != b["loss"]  # evaluated side by side, too
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


def test_hundreds_of_nodes(tmp_path: Path) -> None:
    config = {
        "participants": 200,
        "consensus.topology": "random-regular",
        "consensus.steps": 2,
        "consensus.window": 2,
        "consensus.interval": 2.0,
        "consensus.batch-size": 4,
    }
    several = run(tmp_path, config, nodes=3)
    [last] = of_kind(several.events(), "round")
    assert last["steps"] == 400
    # 300 edges at half a swap a step: about 300 swaps of 2 mails.
    assert 450 < last["messages"] < 750
    assert len(of_kind(several.events(), "nodes")[0]["accuracy"]) == 200


# -------------------------------------------------------------------------- death and resumption


@pytest.mark.parametrize(
    ("system", "every"),
    [("ecl under stress", 2), ("tracking under stress", 1), ("few bits, under stress", 1)],
)
def test_a_run_that_was_interrupted_ends_with_the_same_bits(
    system: str, every: int, tmp_path: Path
) -> None:
    """In the fourth of six windows, on other hosts than those it goes on with. With a checkpoint
    every second window, the third one is done twice and counted once."""
    config = {**SYSTEMS[system], "consensus.steps": 18, "consensus.window": 3}
    config["checkpoint-every"] = every
    expected = run(tmp_path / "undisturbed", config)
    with pytest.raises(ConnectionError):
        run(tmp_path / "killed", config, nodes=2, dies=4)
    [path] = (tmp_path / "killed").iterdir()
    resumed = run(tmp_path / "killed", {**config, "resume": str(path)}, nodes=3)
    assert checksum(resumed) == checksum(expected)
    assert measured(resumed) == measured(expected)
    assert of_kind(resumed.events(), "resumed")[0]["round"] == (3 if every == 1 else 2)


def test_what_a_kill_left_unevaluated_is_evaluated_by_the_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The averages of all windows, however far the evaluation was behind."""
    config = {"consensus.steps": 24}
    undisturbed = run(tmp_path / "undisturbed", config)
    killed = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "_evaluate", lambda *_: killed.wait())
        patch.setattr(Evaluator, "close", lambda _: None)
        with pytest.raises(ConnectionError):
            run(tmp_path / "killed", config, dies=4)
    [path] = (tmp_path / "killed").iterdir()
    resumed = run(tmp_path / "killed", {**config, "resume": str(path)})
    expected, found = (
        [(e["round"], e["t"], e["accuracy"]) for e in of_kind(directory.events(), "evaluate")]
        for directory in (undisturbed, resumed)
    )
    assert len(expected) == 4
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_other_rounds_than_the_configured_are_refused(clock: str, tmp_path: Path) -> None:
    config = resolve({**TINY, "clock": clock})
    strategy = Consensus(consensus_run_of(config), RunDirectory.create(tmp_path, config.flat()))
    for rounds in (1, 3):
        with pytest.raises(ConfigError, match=f"configured for 2: .*consensus.steps={6 * rounds}"):
            strategy.start(FakeGrid(config.flat()), num_rounds=rounds)


class Unregistered(FakeGrid):
    """From its first window on, the SuperLink does not take messages for node 12 any more."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        [message] = messages
        window = message.metadata.message_type == "train.consensus"
        if window and message.metadata.dst_node_id == 12:
            return [""]
        return super().push_messages([message])


def test_a_device_that_is_unregistered_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path / "home"))
    values = {**TINY, "clock": "real", "participants": 3, "consensus.steps": 24}
    config = resolve(values)
    directory = RunDirectory.create(tmp_path, config.flat())
    devices = [{"name": f"device-{i}"} for i in range(3)]
    Consensus(consensus_run_of(config), directory).start(
        Unregistered(config.flat(), node_configs=devices)
    )
    events = directory.events()
    assert len(of_kind(events, "round")) == 4
    reasons = {e["participant"]: e["reason"] for e in of_kind(events, "rejected")}
    assert list(reasons) == ["device-1"]
    assert "the SuperLink does not take messages" in reasons["device-1"]
    assert of_kind(events, "nodes")[-1]["accuracy"][1] is None


def test_what_nobody_will_go_on_from_is_deleted(tmp_path: Path) -> None:
    config = {"consensus.window": 3, "checkpoint-every": 2}
    directory = run(tmp_path, config, nodes=2)
    windows = {path.name for path in (directory.path / NODES).iterdir() if path.name.isdigit()}
    assert windows == {"000002", "000003", "000004"}


# ------------------------------------------------------------------------------ hosts that fail


def failing(times: int, node: int = 12, first: int = 0) -> tuple[Tamper, list[int]]:
    """A tamperer that loses `times` answers of a host in a row, from its `first` one on; and the
    list in which it counts them all."""
    seen: list[int] = []

    def tamper(message: Message, reply: Message) -> Message:
        training = message.metadata.message_type == "train.consensus"
        if not training or message.metadata.dst_node_id != node:
            return reply
        seen.append(len(seen))
        if first <= seen[-1] < first + times:
            return Message(Error(0, "Traceback\n  somewhere\nMemoryError: full"), reply_to=message)
        return reply

    return tamper, seen


TORUS = {**STRESS, "consensus.topology": "torus"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run(tmp_path_factory.mktemp("undisturbed"), TORUS)


@pytest.mark.parametrize("first", range(4))
def test_a_host_that_fails_does_the_same_once_more(
    first: int, undisturbed: RunDirectory, tmp_path: Path
) -> None:
    """Whether it had done the window or parked its nodes, and although its work was done and only
    the answer got lost."""
    tamper, seen = failing(2, first=first)
    directory = run(tmp_path, TORUS, nodes=3, tamper=tamper)
    assert len(seen) > first + 2
    assert checksum(directory) == checksum(undisturbed)
    assert measured(directory) == measured(undisturbed)
    rejected = [(e["participant"], e["reason"]) for e in of_kind(directory.events(), "rejected")]
    assert rejected == [("host-1", "MemoryError: full")] * 2


def test_a_host_that_fails_three_times_ends_the_run(tmp_path: Path) -> None:
    tamper, seen = failing(3)
    with pytest.raises(
        EdgeFlError, match=r"^host-1 has failed 3 times in a row: MemoryError: full"
    ):
        run(tmp_path, {}, nodes=3, tamper=tamper)
    assert len(seen) == 3


@pytest.mark.parametrize("window", [1, 2])
def test_a_host_that_is_stuck_is_asked_again_on_the_virtual_clock(
    window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is alive and never answers. There is no time in which a window must be done, but how long
    others have taken is known; and in the first one, what no device takes."""
    monkeypatch.setattr(fleet, "_PATIENCE_WINDOWS", 1)
    monkeypatch.setattr(fleet, "_SLOWEST_IMAGE_SECONDS", 0.001)
    stuck: list[Message] = []

    def get_stuck(message: Message, reply: Message) -> Message | None:
        order: Any = message.content.get("config", {})
        if not stuck and order.get("window") == window:
            stuck.append(message)
            return None
        return reply

    expected = run(tmp_path / "undisturbed", {})
    found = run(tmp_path / "stuck", {"round-timeout": 3.0}, nodes=2, tamper=get_stuck)
    assert stuck
    assert checksum(found) == checksum(expected)
    reasons = {e["reason"] for e in of_kind(found.events(), "rejected")}
    assert reasons == {"no reply in time"}


def test_an_answer_whose_mail_is_none_is_a_failure(tmp_path: Path) -> None:
    def tamper(message: Message, reply: Message) -> Message:
        if (
            message.metadata.message_type == "train.consensus"
            and message.metadata.dst_node_id == 12
        ):
            content: Any = reply.content
            content["mail"]["sent"] = ["no mail"]
        return reply

    with pytest.raises(EdgeFlError, match=r"^host-1 has failed 3 times in a row: "):
        run(tmp_path, {}, nodes=3, tamper=tamper)


def test_mail_that_is_not_its_senders_is_told_once(tmp_path: Path) -> None:
    """The broker passes it on to nobody."""
    done: list[int] = []

    def forge(message: Message, reply: Message) -> Message:
        kind, node = message.metadata.message_type, message.metadata.dst_node_id
        if kind == "train.consensus" and node == 12 and not done:
            heads: Any = reply.content["mail"]
            arrays: Any = reply.content["vectors"]
            for _ in range(2 if heads["seq"] else 0):
                position = len(heads["seq"])
                for column, value in MailHead(0, 1, 99, 0.0)._asdict().items():
                    heads[column] = [*heads[column], value]
                arrays[f"{position}/reflection"] = arrays["0/reflection"]
                done.append(position)
        return reply

    plain = run(tmp_path / "plain", {}, nodes=2)
    forged = run(tmp_path / "forged", {}, nodes=2, tamper=forge)
    assert checksum(forged) == checksum(plain)
    [told] = of_kind(forged.events(), "rejected")
    assert told["participant"] == "host-1"
    assert told["reason"] == "it may not send from node 0 to node 1 (2 times)"


def test_mail_that_vanishes_is_noticed(tmp_path: Path) -> None:
    """A host that keeps its mail to itself."""

    def tamper(message: Message, reply: Message) -> Message:
        if (
            message.metadata.message_type == "train.consensus"
            and message.metadata.dst_node_id == 12
        ):
            content: Any = reply.content
            content["mail"] = ConfigRecord({column: [] for column in MailHead._fields})
            content["vectors"] = ArrayRecord({})
        return reply

    with pytest.raises(EdgeFlError, match="no host can go on: each waits for mail"):
        run(tmp_path, {}, nodes=2, tamper=tamper)


# ------------------------------------------------------------------------------------- references


def gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize("reference", ["same-steps", "same-samples"])
def test_a_reference_is_training_with_all_data_in_one_place(reference: str, tmp_path: Path) -> None:
    """Against a plain loop over the pooled images: minibatches of 8, or of all nodes' 4 x 8."""
    overrides = {"participants": 4, "consensus.references": reference, "consensus.augment": False}
    directory = run(tmp_path, overrides, nodes=2)
    config = resolve({**TINY, **overrides})

    spec, train = spec_of("embedded", ""), dataset_of(config).train
    chosen = np.concatenate(split_of(problem_of(config)).participants)
    images = normalise(torch.from_numpy(train.images[chosen]), spec.mean, spec.std)
    labels = torch.from_numpy(train.labels[chosen])
    size = 8 if reference == "same-steps" else 32
    order = rng(config.seed, "epoch", 4, 0).permutation(len(labels))
    module = module_of(problem_of(config), "small")
    momenta = [torch.zeros_like(p) for p in module.parameters()]
    module.train()
    for step in range(12):
        rate = rate_of("cosine", config.consensus.learning_rate, step // 6 + 1, 2)
        batch = order[step * size : (step + 1) * size]
        module.zero_grad()
        functional.cross_entropy(module(images[batch]), labels[batch]).backward()
        with torch.no_grad():
            for parameter, momentum in zip(module.parameters(), momenta, strict=True):
                momentum.lerp_(gradient_of(parameter), 0.1)
                parameter.sub_(rate * momentum)
    expected = torch.cat([p.detach().flatten() for p in module.parameters()]).numpy()
    assert np.allclose(weights_of(directory, 4), expected, rtol=1e-4, atol=1e-6)

    last = of_kind(directory.events(), "nodes")[-1]
    assert last["reference"].keys() == {reference}
    assert len(last["accuracy"]) == 4


def test_references_do_not_touch_the_nodes(tmp_path: Path) -> None:
    alone = run(tmp_path, {})
    both = run(tmp_path, {"consensus.references": "same-samples,same-steps"}, nodes=3)
    assert checksum(both) == checksum(alone)
    reference = of_kind(both.events(), "nodes")[-1]["reference"]
    assert reference.keys() == {"same-steps", "same-samples"}


# ---------------------------------------------------------------------------------------- weights


def test_nodes_count_by_their_examples(tmp_path: Path) -> None:
    """After one step of a node alone w_0 - w_i = eta p_i g_i, and p_i = N n_i / sum_j n_j."""
    alone = {
        "participants": 4,
        "partition": "dirichlet",
        "consensus.algorithm": "isolated",
        "consensus.momentum": 0.0,
        "consensus.steps": 1,
        "consensus.window": 1,
    }
    by_examples = run(tmp_path, {**alone, "consensus.weights": "examples"})
    equally = run(tmp_path, {**alone, "consensus.weights": "equal"})
    config = resolve({**TINY, **alone})
    sizes = [len(part) for part in split_of(problem_of(config)).participants]
    assert len(set(sizes)) > 1
    start = torch.cat(
        [p.detach().flatten() for p in module_of(problem_of(config), "small").parameters()]
    )
    for node, size in enumerate(sizes):
        step, plain = (start.numpy() - weights_of(d, node, 1) for d in (by_examples, equally))
        assert np.allclose(step, 4 * size / sum(sizes) * plain, atol=1e-6)
        assert np.abs(plain).max() > 1e-4


# ---------------------------------------------------------------------------------- what is told


def test_what_a_run_tells(tmp_path: Path) -> None:
    overrides = {"participants": 4, "consensus.references": "same-steps", "seed": 3}
    directory = run(tmp_path, overrides, nodes=2)
    config, events = resolve({**TINY, **overrides}), directory.events()

    [hosts] = of_kind(events, "hosts")
    assert (hosts["hosts"], hosts["carrier"]) == (2, "grid")
    [topology] = of_kind(events, "topology")
    assert topology["names"] == ["0", "1", "2", "3"]
    assert topology["edges"] == [[0, 1], [0, 3], [1, 2], [2, 3]]
    assert (topology["degree_max"], topology["diameter"]) == (2, 2)
    assert 0 < topology["spectral_gap"] <= 1

    [labels] = of_kind(events, "labels")
    train, parts = dataset_of(config).train, split_of(problem_of(config)).participants
    assert labels["histogram"] == [
        np.bincount(train.labels[part], minlength=10).tolist() for part in parts
    ]
    assert len(labels["classes"]) == 10

    rounds = of_kind(events, "round")
    assert [(e["round"], e["t"], e["steps"]) for e in rounds] == [(1, 6.0, 24), (2, 12.0, 48)]
    assert 0 < rounds[0]["messages"] < rounds[1]["messages"]
    parameters = len(weights_of(directory, 0))
    assert rounds[1]["bytes"] == rounds[1]["messages"] * parameters * 4
    assert (rounds[1]["lost"], rounds[1]["duplicates"], rounds[1]["stale"]) == (0, 0, 0.0)

    for window, event in enumerate(of_kind(events, "nodes"), 1):
        assert (event["round"], event["t"]) == (window, 6.0 * window)
        assert len(event["accuracy"]) == len(event["loss"]) == 4
        assert all(0 <= a <= 1 for a in event["accuracy"])
        assert {(i, j) for i, j, _ in event["heard"]} == {
            (i, (i + d) % 4) for i in range(4) for d in (1, 3)
        }
        assert all(0 <= age <= event["t"] for _, _, age in event["heard"])
        models = np.stack([weights_of(directory, i, window) for i in range(4)]).astype(float)
        spread = models - models.mean(axis=0)
        distance = math.sqrt((spread**2).sum(axis=1).mean()) / np.linalg.norm(models.mean(axis=0))
        assert rounds[window - 1]["distance"] == pytest.approx(distance, rel=1e-4)

    evaluations = of_kind(events, "evaluate")
    assert [(e["round"], e["t"], e["model"]) for e in evaluations] == [
        (1, 6.0, "average"),
        (2, 12.0, "average"),
    ]
    average = directory.load_checkpoint("nodes")[0]["average"]
    models = np.stack([weights_of(directory, i) for i in range(4)])
    assert np.allclose(average, models.mean(axis=0), atol=1e-6)


def test_the_trace_is_what_was_done_at_first(tmp_path: Path) -> None:
    directory = run(tmp_path, STRESS, nodes=3)
    [trace] = of_kind(directory.events(), "trace")
    events = trace["events"]
    assert events == sorted(events, key=lambda event: (event[0], event[2]))
    kinds = {event[1] for event in events}
    assert kinds >= {"step", "send", "receive", "lost", "down", "up"}
    assert all(event[0] <= 6.0 for event in events)  # the first window
    sends = {(node, peer, t) for t, what, node, peer, _ in events if what == "send"}
    for t, what, node, peer, sent in events:
        assert (peer is None) == (what in ("step", "down", "up"))
        if what in ("receive", "drop", "duplicate"):
            assert (peer, node, sent) in sends
            assert 0 <= t - sent <= 4.0


def test_incidents(tmp_path: Path) -> None:
    directory = run(tmp_path, STRESS, nodes=2)
    incidents = of_kind(directory.events(), "incident")
    found = [(e["round"], e["t"], e["node"], e["kind"], e["peer"]) for e in incidents]
    assert found == sorted(found, key=lambda incident: incident[:2])
    for expected in [
        (1, 2.0, 3, "down", None),
        (1, 4.5, 3, "up", None),
        (1, 0.0, 0, "cut", 1),
        (1, 3.5, 7, "up", None),
        (2, 7.0, 5, "down", None),
        (2, 8.0, 2, "up", None),
        (2, 9.0, 0, "healed", 1),
    ]:
        assert found.count(expected) == 1
    silent = [(node, peer) for _, _, node, kind, peer in found if kind == "silent"]
    assert {(0, 1), (1, 0)} & set(silent)  # the link was cut for 9 seconds, and 4 are silence
    nodes = of_kind(directory.events(), "nodes")
    off = [[i for i, a in enumerate(event["accuracy"]) if a is None] for event in nodes]
    assert off == [[2], [5]]  # node 2 pauses from 4 s to 8 s
    assert [event["loss"][i] for event, i in zip(nodes, (2, 5), strict=True)] == [None, None]


def test_lost_and_late_mail_is_counted(tmp_path: Path) -> None:
    directory = run(tmp_path, STRESS, nodes=2)
    first, last = of_kind(directory.events(), "round")
    assert 0 < first["lost"] < last["lost"] < last["messages"]
    assert last["duplicates"] > 0
    assert 0 < last["stale"] <= 4.0

    def tallies(window: int) -> np.ndarray:
        store = NodeStore(directory.path / NODES)
        each = [store.load(window, node)[1]["tally"] for node in range(8)]
        return np.array([[t["used"], t["age"]] for t in each]).sum(axis=0)

    used, age = tallies(2) - tallies(1)
    assert last["stale"] == last["age"] == pytest.approx(age / used)  # of this window alone


def test_who_is_alone_misses_nobody(tmp_path: Path) -> None:
    overrides = {"consensus.algorithm": "isolated", "consensus.silence-seconds": 2.0}
    events = run(tmp_path, overrides).events()
    assert of_kind(events, "incident") == []
    assert of_kind(events, "round")[-1]["messages"] == 0


# --------------------------------------------------------------------------------- the real clock


@pytest.mark.parametrize("hosts", [1, 3])
def test_free_running_nodes_learn(hosts: int, tmp_path: Path) -> None:
    """300 steps are enough for much more than the tenth that guessing would give."""
    overrides = {
        "clock": "real",
        "partition": "iid",
        "small-width": 4,
        "evaluate-examples": 200,
        "consensus.steps": 300,
        "consensus.window": 20,  # between hosts, mail travels at its end only
        "consensus.interval": 20.0,
        "consensus.learning-rate": 0.1,
        "consensus.schedule": "cosine",
        "participants": 4,
    }
    directory = run(tmp_path, overrides, nodes=hosts)
    events = directory.events()
    nodes, rounds = of_kind(events, "nodes"), of_kind(events, "round")
    assert [e["round"] for e in rounds] == list(range(1, 16))
    assert [e["steps"] for e in rounds][-1] >= 4 * 300
    assert np.mean(nodes[-1]["accuracy"]) > 0.25
    assert sorted(e["t"] for e in rounds) == [e["t"] for e in rounds]
    # 1,200 steps, each with two neighbours and a push with probability 1/20.
    assert 70 < rounds[-1]["messages"] < 180
    assert rounds[-1]["stale"] is None
    assert rounds[-1]["age"] > 0


def test_devices_run_freely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path / "home"))
    devices = [{"name": f"device-{i}"} for i in range(3)]
    directory = run(tmp_path, {"clock": "real", "participants": 3}, node_configs=devices)
    assert of_kind(directory.events(), "round")[-1]["steps"] == 36
    assert of_kind(directory.events(), "hosts")[0]["hosts"] == 3


def test_too_few_devices_are_named(tmp_path: Path) -> None:
    config = {"participants": 3, "round-timeout": 1.0}
    with pytest.raises(ConfigError, match=r"only 2 node.*anna, bert"):
        run(tmp_path, config, node_configs=[{"name": "anna"}, {"name": "bert"}])


@pytest.mark.parametrize("diagnosis", ["auto", "on"])
def test_the_server_sees_a_devices_model_on_demand_only(
    diagnosis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path / "home"))
    sums: list[int] = []

    def look(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train.consensus":
            total: Any = reply.content["total"]
            sums.append(len(total["sum"].numpy()))
        return reply

    devices = [{"name": f"device-{i}"} for i in range(3)]
    config = {"clock": "real", "participants": 3, "consensus.diagnosis": diagnosis}
    directory = run(tmp_path, config, node_configs=devices, tamper=look)
    assert all(bool(length) == (diagnosis == "on") for length in sums)
    for event in of_kind(directory.events(), "round"):
        assert (event["distance"] is None) == (diagnosis == "auto")
    averages = [e["accuracy"] for e in directory.events() if e.get("model") == "average"]
    assert len(averages) == len(of_kind(directory.events(), "round"))
    assert (averages[-1] is None) == (diagnosis == "auto")
