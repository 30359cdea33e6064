"""The consensus system through Flower's SuperLink, simulation engine and Ray."""

import json
from pathlib import Path
from typing import Any

import pytest

from fl_app.config import resolve
from fl_app.launch.run import run as launch
from fl_app.launch.sizing import size_for
from fl_app.record.run_dir import RunDirectory
from fl_app.settings import consensus_run_of
from strategies.consensus.strategy import Consensus
from tests.fake_grid import FakeGrid
from tests.wheel import edge_fl

# Every window has mail between hosts, late mail that a window leaves to the next, and losses.
TINY: dict[str, Any] = {
    "mode": "consensus",
    "evaluate-examples": 100,
    "consensus.steps": 24,
    "consensus.window": 12,
    "consensus.interval": 3.0,
    "consensus.delay-seconds": 0.5,
    "consensus.loss": 0.1,
}


def in_one_process(output: Path, **values: Any) -> str:
    """The checksum of the same run on a single host, without SuperLink and Ray."""
    config = resolve({**TINY, **values, "output": str(output)})
    run = RunDirectory.create(output, config.flat())
    Consensus(consensus_run_of(config), run).start(FakeGrid(config.flat(), nodes=1))
    return run.load_checkpoint("nodes")[1]["checksum"]


def summary_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "summary.json").read_text())


def test_a_new_app_on_two_hosts_equals_one_host_in_one_process(
    installed: Path, tmp_path: Path
) -> None:
    """By a wheel in an environment of its own; what is learnt is a class in the app's folder."""
    made = edge_fl(installed, tmp_path, "new", "ecg", "--task", "tables")
    assert made.returncode == 0, made.stdout + made.stderr
    app = tmp_path / "ecg"
    values = [f"{key}={value}" for key, value in TINY.items()]
    done = edge_fl(installed, tmp_path, "run", *values, "name=two", folder=app)
    assert done.returncode == 0, done.stdout + done.stderr
    directory = tmp_path / "runs" / "two"
    assert done.stdout.strip().splitlines()[-1] == f"run directory: {directory}"
    summary = summary_of(directory)
    assert summary["status"] == "completed"
    task = f"{app / 'task.py'}:Ecg"
    assert summary["checksum"] == in_one_process(tmp_path / "in-process", task=task)
    assert summary["final"]["reference"].keys() == {"same-steps"}
    for name in ("accuracy", "distance", "labels", "spacetime", "topology"):
        assert (directory / "figures" / f"{name}.png").stat().st_size > 1000


@pytest.mark.slow
def test_hosts_spread_over_a_ray_cluster(tmp_path: Path, monkeypatch) -> None:
    """Two raylets with a GPU each, which is Ray's word alone: a host on each, though one has
    CPUs for both, and the same bits as on one machine."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
    try:
        cluster.add_node(num_cpus=2, num_gpus=1)
        assert size_for(resolve(TINY), str(cluster.address))["client-resources-num-gpus"] == 1
        assert launch({**TINY, "small-width": 2, "name": "cluster"}, ray=str(cluster.address)) == 0
    finally:
        cluster.shutdown()
    summary = summary_of(tmp_path / "runs" / "cluster")
    assert (summary["hosts"], summary["carrier"]) == (2, "sockets")
    assert summary["checksum"] == in_one_process(tmp_path / "in-process", **{"small-width": 2})
