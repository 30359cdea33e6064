"""What only a GPU can show."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client_apps.engines import ENGINES
from fl_app.record.metrics import latest
from tests.harness import run as distil
from tests.test_consensus import SYSTEMS, checksum, run, weights_of
from tests.test_learner import bits, config_with, steps_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_equal_seeds_give_equal_bits(system: str, engine: str, tmp_path: Path) -> None:
    config = {**SYSTEMS[system], "consensus.engine": engine}
    one, other = (run(tmp_path, config) for _ in range(2))
    assert checksum(one) == checksum(other)
    assert latest(one.events(), "hosts")["engine"] == engine


@pytest.mark.parametrize("system", SYSTEMS)
def test_one_after_the_other_the_bits_are_those_of_any_number_of_hosts(
    system: str, tmp_path: Path
) -> None:
    config = {**SYSTEMS[system], "consensus.engine": "sequential"}
    assert checksum(run(tmp_path, config)) == checksum(run(tmp_path, config, nodes=3))


def test_side_by_side_gradients_differ_by_rounding_alone(tmp_path: Path) -> None:
    one, *others = (run(tmp_path, {"consensus.engine": e}) for e in ENGINES)
    for other in others:
        for node in range(8):
            a, b = weights_of(one, node), weights_of(other, node)
            assert np.linalg.norm(a - b) < 1e-2 * np.linalg.norm(a)


def test_the_fastest_engine_is_found(tmp_path: Path) -> None:
    found = latest(run(tmp_path, {}).events(), "hosts")
    assert found["engine_gain"] > 1
    assert found["engine"] != "sequential"


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    config: dict[str, Any] = {"consensus.steps": 18, "consensus.window": 3}
    config["consensus.engine"] = "stacked"
    expected = run(tmp_path / "undisturbed", config)
    with pytest.raises(ConnectionError):
        run(tmp_path / "killed", config, dies=4)
    [path] = (tmp_path / "killed").iterdir()
    resumed = run(tmp_path / "killed", {**config, "resume": str(path)})
    assert checksum(resumed) == checksum(expected)


@pytest.mark.parametrize("overrides", [{}, {"precision": "bf16"}], ids=["float32", "bf16"])
def test_the_distillation_servers_step_is_a_graph(overrides: dict[str, Any]) -> None:
    """It repeats bit by bit, and does what steps one by one do there."""
    config = config_with(**overrides)
    plain, graph, again = (
        steps_of(records, config, device="cuda") for records in (False, True, True)
    )
    assert bits(graph) == bits(again)
    for name, vector in plain.items():
        assert np.linalg.norm(graph[name] - vector) <= 0.02 * np.linalg.norm(vector), name


def test_distillation_gives_equal_bits(tmp_path: Path) -> None:
    (one, _), (other, _) = (distil(tmp_path / name, {}) for name in ("one", "other"))
    assert one["checksum"] == other["checksum"]
