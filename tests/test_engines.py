"""Which engine computes gradients, and that it stays the same one for the whole run."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict

from client_apps import engine_query, engines
from client_apps.device import Device
from client_apps.engine_query import choose
from client_apps.engines import race
from client_apps.local_model import local_model_of
from fl_app.config import resolve
from fl_app.problem import problem_of
from fl_app.record.metrics import latest
from strategies.consensus.node import Node
from strategies.messages.codec import records_of
from strategies.messages.queries import EngineOrder, FastestEngine
from tests.test_consensus import TINY, checksum, run, weights_of

NODES = [Node(i, torch.zeros(3)) for i in range(4)]


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Engine:
    """Takes `seconds` for all nodes; a hundred times as long for its first rounds, and after
    `memory` rounds once an error."""

    def __init__(self, clock: Clock, seconds: float, *, memory: int = 99) -> None:
        self._clock, self._seconds, self._memory = clock, seconds, memory
        self.steps: list[int] = []

    def __call__(self, due: Sequence[tuple[Node, int]]) -> Iterator[torch.Tensor]:
        self.steps.append(due[0][1])
        if len(self.steps) == self._memory + 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self._clock.now += self._seconds * (100 if len(self.steps) <= 3 else 1)
        return (torch.zeros(3) for _ in due)


def test_a_race_tells_the_seconds_of_a_node_without_those_of_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(engines, "time", clock)
    pair = {"sequential": Engine(clock, 2.0), "stacked": Engine(clock, 1.0)}
    assert race(pair, NODES, 5) == {"sequential": 0.5, "stacked": 0.25}
    assert pair["sequential"].steps == pair["stacked"].steps == list(range(8))


@pytest.mark.parametrize("rounds", [0, 2, 4])
def test_an_engine_without_enough_memory_loses(
    rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if that shows in its first round alone."""
    clock = Clock()
    monkeypatch.setattr(engines, "time", clock)
    pair = {"sequential": Engine(clock, 2.0), "stacked": Engine(clock, 1.0, memory=rounds)}
    seconds = race(pair, NODES, 5)
    assert seconds == {"sequential": 0.5, "stacked": float("inf")}


# -------------------------------------------------------------------------------- a host is asked


def ask(nodes: Sequence[int]) -> dict[str, Any]:
    """What a host answers that is asked for `nodes`."""
    config = resolve(TINY).flat()
    message = Message(records_of(EngineOrder(list(nodes))), 11, "query.engine")
    context = Context(1, 11, {"partition-id": 0}, RecordDict(), dict(config))
    return dict(choose(message, Device(context, "fl_app.device")).content["config"])


def test_on_a_cpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_query, "race", None)
    monkeypatch.setattr(
        engine_query,
        "local_model_of",
        lambda problem: replace(local_model_of(problem), device="cpu"),
    )
    assert ask(range(8)) == {"engine": "sequential", "gain": 0.0}


@pytest.mark.parametrize(
    ("stacked", "streams", "engine", "gain"),
    [
        (1.0, 1.5, "stacked", 2.0),
        (1.0, 0.5, "streams", 4.0),
        (4.0, 3.0, "sequential", 1.0),
        (float("inf"), float("inf"), "sequential", 1.0),
    ],
)
def test_elsewhere_the_fastest_one_is_taken(
    stacked: float, streams: float, engine: str, gain: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"sequential": 2.0, "stacked": stacked, "streams": streams}
    monkeypatch.setattr(engine_query, "race", lambda *_: seconds)
    monkeypatch.setattr(
        engine_query, "local_model_of", lambda problem: replace(local_model_of(problem), device="?")
    )
    assert ask(range(8)) == {"engine": engine, "gain": gain}


def test_what_is_measured_are_gradients_of_the_nodes_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not of models that somebody still trains."""
    raced: list[list[int]] = []
    weights = local_model_of(problem_of(resolve(TINY))).model.weights.clone()

    def watched(pair: dict[str, Any], nodes: Sequence[Node], *rounds: int) -> dict[str, float]:
        raced.append([node.index for node in nodes])
        seconds = race(pair, nodes, *rounds)
        assert all(torch.equal(node.weights, weights) for node in nodes)
        return seconds

    monkeypatch.setattr(engine_query, "race", watched)
    monkeypatch.setattr(
        engine_query, "local_model_of", lambda problem: replace(local_model_of(problem), device="?")
    )
    answer = ask([2, 3, 4])
    assert raced == [[2, 3, 4]]
    assert answer["gain"] >= 1
    assert (answer["engine"] == "sequential") == (answer["gain"] == 1)


# ------------------------------------------------------------------------------------------ a run


class Hosts:
    """Tampers with what hosts answer: stacked gradients are `gain` times as fast on them. Counts
    how often they are asked, and keeps the engines with which they are told to work."""

    def __init__(self, gain: float) -> None:
        self._gain, self.asked = gain, 0
        self.told: set[str] = set()

    def __call__(self, message: Message, reply: Message) -> Message:
        kind = message.metadata.message_type
        if kind == "query.engine":
            self.asked += 1
            found = FastestEngine("stacked" if self._gain > 1 else "sequential", self._gain)
            return Message(records_of(found), reply_to=message)
        if kind == "train.consensus":
            order: Any = message.content["config"]
            self.told.add(order["engine"])
        return reply


@pytest.mark.parametrize(("gain", "engine"), [(3.0, "stacked"), (0.5, "sequential")])
def test_all_hosts_take_the_engine_that_one_of_them_has_found(
    gain: float, engine: str, tmp_path: Path
) -> None:
    hosts = Hosts(gain)
    directory = run(tmp_path / "auto", {}, nodes=2, tamper=hosts)
    assert (hosts.asked, hosts.told) == (1, {engine})
    recorded = latest(directory.events(), "hosts")
    assert (recorded["engine"], recorded["engine_gain"]) == (engine, gain)
    chosen = run(tmp_path / "chosen", {"consensus.engine": engine}, nodes=2)
    assert checksum(directory) == checksum(chosen)
    assert latest(chosen.events(), "hosts")["engine"] == engine


def test_a_resumed_run_keeps_its_engine(tmp_path: Path) -> None:
    """Though the machine on which it goes on may find another one faster."""
    config = {"consensus.steps": 12, "consensus.window": 3}
    expected = run(tmp_path / "undisturbed", {**config, "consensus.engine": "stacked"})
    with pytest.raises(ConnectionError):
        run(tmp_path / "killed", config, dies=3, tamper=Hosts(3.0))
    [path] = (tmp_path / "killed").iterdir()
    elsewhere = Hosts(0.5)
    resumed = run(tmp_path / "killed", {**config, "resume": str(path)}, tamper=elsewhere)
    assert (elsewhere.asked, elsewhere.told) == (0, {"stacked"})
    assert latest(resumed.events(), "hosts")["engine_gain"] == 3.0
    assert checksum(resumed) == checksum(expected)


@pytest.mark.parametrize(
    ("config", "hosts"),
    [
        ({"consensus.engine": "sequential"}, 1),
        ({"consensus.engine": "stacked"}, 1),
        ({}, 8),
        ({"clock": "real"}, 1),
    ],
)
def test_nobody_is_asked_where_there_is_nothing_to_choose(
    config: dict[str, Any], hosts: int, tmp_path: Path
) -> None:
    """As configured; a node a host; on the real clock no two nodes are due at one moment."""
    answers = Hosts(3.0)
    run(tmp_path, config, nodes=hosts, tamper=answers)
    assert answers.asked == 0
    assert answers.told == {config.get("consensus.engine", "sequential")}


# ------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("engine", ["sequential", "streams"])
def test_less_precise_arithmetic_makes_nearly_the_same_models(engine: str, tmp_path: Path) -> None:
    config = {"consensus.engine": engine}
    exact = run(tmp_path / "float32", config)
    rough, again = (
        run(tmp_path / name, {**config, "consensus.precision": "bf16"}) for name in ("one", "two")
    )
    assert checksum(rough) == checksum(again) != checksum(exact)
    for node in range(8):
        a, b = weights_of(exact, node), weights_of(rough, node)
        assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(a)
