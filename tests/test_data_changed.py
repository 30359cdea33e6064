"""Data that are others than those with which a run, a host or a node began."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_apps.local_model import shard_of
from fl_app.config import resolve
from fl_app.data import load_dataset, sets
from fl_app.record.books import check_resumable, recorded
from fl_app.record.metrics import of_kind
from strategies.errors import DataError, EdgeFlError
from strategies.roster import SuperNode, prepare_hosts
from tests.fake_grid import FakeGrid
from tests.test_consensus import run

RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (40, 1, 28, 28), np.uint8)
LABELS = np.arange(40) % 10
SPLIT = {"participants": 2, "proxy-examples": 5, "validation-examples": 5, "partition": "iid"}


@pytest.fixture(autouse=True)
def _nothing_cached() -> None:
    forget()


def forget() -> None:
    """As a new process would know nothing."""
    sets._load_files.cache_clear()
    shard_of.cache_clear()


def write_set(path: Path, labels: np.ndarray = LABELS, **more: np.ndarray) -> dict[str, Any]:
    """A whole data set, as the values of a run."""
    whole = {"x_train": IMAGES, "y_train": labels, "x_test": IMAGES, "y_test": labels, **more}
    np.savez(path, allow_pickle=False, **whole)
    forget()
    return {"dataset": "files", "data-path": str(path)}


def test_a_run_is_not_resumed_with_other_data(tmp_path: Path) -> None:
    """Labels that were shifted by one in between: every number of it would be another thing's."""
    values = write_set(tmp_path / "a.npz") | {"output": str(tmp_path)}
    with pytest.raises(ZeroDivisionError), recorded(resolve(values)) as run:
        raise ZeroDivisionError
    resumed = resolve(values | {"resume": str(run.path)})
    write_set(tmp_path / "a.npz", (LABELS + 1) % 10)
    with pytest.raises(DataError, match=r"a.npz are others than when that run started; put back"):
        check_resumable(resumed)
    write_set(tmp_path / "a.npz")
    check_resumable(resumed)
    assert run.summary()["data"] == load_dataset("files", data_path=values["data-path"]).digest


def test_a_run_is_not_resumed_with_another_topology_in_its_file(tmp_path: Path) -> None:
    edges = tmp_path / "edges.txt"
    edges.write_text("0 1\n1 2\n")
    values: dict[str, Any] = {
        "mode": "consensus",
        "participants": 3,
        "consensus.topology": "file",
        "consensus.topology-file": str(edges),
        "output": str(tmp_path / "runs"),
    }
    with pytest.raises(ZeroDivisionError), recorded(resolve(values)) as run:
        raise ZeroDivisionError
    resumed = resolve(values | {"resume": str(run.path)})
    edges.write_text("0 1\n0 2\n")
    with pytest.raises(DataError, match=r"the lines of .*edges.txt are others than when that run"):
        check_resumable(resumed)
    edges.write_text("0 1\n1 2\n")
    check_resumable(resumed)


@pytest.mark.parametrize("what", ["images", "labels", "names", "order"])
def test_a_digest_is_of_all_that_is_learnt_from(tmp_path: Path, what: str) -> None:
    names = np.array(list("abcdefghij"))
    changed = IMAGES.copy()
    changed[-1, -1, -1, -1] ^= 1
    other: dict[str, Any] = {
        "images": {"x_test": changed},
        "labels": {"labels": LABELS[::-1]},
        "names": {"classes": names[::-1]},
        "order": {"x_train": IMAGES[::-1], "labels": LABELS[::-1], "x_test": IMAGES[::-1]},
    }[what]
    digests = set()
    for arrays in ({}, {}, other):
        path = write_set(tmp_path / "a.npz", **({"classes": names} | arrays))["data-path"]
        digests.add(load_dataset("files", data_path=path).digest)
    assert len(digests) == 2


def test_what_is_not_used_is_told_when_a_run_begins(tmp_path: Path) -> None:
    values = write_set(tmp_path / "a.npz", x_val=IMAGES) | {"output": str(tmp_path)}
    with pytest.raises(ZeroDivisionError), recorded(resolve(values)) as run:
        raise ZeroDivisionError
    (warning,) = of_kind(run.events(), "warning")
    assert "1 array(s) not used: x_val" in warning["message"]


def test_a_host_that_reads_another_set_cannot_take_part(tmp_path: Path) -> None:
    values = write_set(tmp_path / "a.npz")
    digest = load_dataset("files", data_path=values["data-path"]).digest
    write_set(tmp_path / "a.npz", LABELS[::-1])
    grid = FakeGrid(resolve({**values, **SPLIT}).flat(), nodes=1)
    host = SuperNode(11, "host-0")
    with pytest.raises(DataError, match=r"a.npz holds other examples or class names here"):
        prepare_hosts(grid, [host], 2, 60.0, print, data=digest)
    write_set(tmp_path / "a.npz")
    assert prepare_hosts(grid, [host], 2, 60.0, print, data=digest) == {0: 15, 1: 15}


def test_what_a_device_does_not_use_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", images=IMAGES, labels=LABELS, extra=LABELS)
    config = [{"name": "ann", "data-path": str(tmp_path / "own.npz")}]
    grid = FakeGrid(resolve({"participants": 1}).flat(), node_configs=config)
    said: list[str] = []
    assert prepare_hosts(grid, [SuperNode(11, "ann", 0)], 1, 60.0, said.append) == {0: 40}
    assert said == [f"ann: {tmp_path}/own.npz: 1 array(s) not used: extra"]


def test_a_device_does_not_go_on_with_other_images_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path / "home"))
    runs = tmp_path / "runs"

    def own(labels: np.ndarray) -> None:
        np.savez(tmp_path / "own.npz", images=IMAGES, labels=labels)
        forget()

    devices = [{"name": f"device-{i}", "data-path": str(tmp_path / "own.npz")} for i in range(2)]
    values = {"participants": 2, "consensus.topology": "chain"}
    own(LABELS)
    with pytest.raises(ConnectionError):
        run(runs, values, node_configs=devices, dies=2)
    (directory,) = (path for path in runs.iterdir())
    values["resume"] = str(directory)
    own((LABELS + 1) % 10)
    with pytest.raises(EdgeFlError, match=r"own.npz holds other images or labels than those with"):
        run(runs, values, node_configs=devices)
    own(LABELS)
    run(runs, values, node_configs=devices)
