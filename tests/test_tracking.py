"""The protocol of momentum tracking: who has which images, its own start, runs of a few steps."""

import argparse
import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.consensus import tracking, tracking_data
from experiments.consensus.tracking import METHODS, Case, Results, Run, main, render
from experiments.consensus.tracking_cases import plan
from experiments.consensus.tracking_data import classes_of, read, split, write
from fl_app.data import ImageSet
from strategies.contracts import alone
from strategies.randomness import rng


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1000 training images 100 are for validation."""
    monkeypatch.setattr(tracking_data, "TRAIN", 1000)
    monkeypatch.setattr(tracking_data, "VALIDATION", 100)


def images(count: int, seed: int = 0) -> ImageSet:
    generator = rng(seed, "images")
    return ImageSet(
        generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8),
        np.arange(count) % 10,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files like the original ones: five with 200 training images each, one with 60 of the test."""
    train, test = images(1000), images(60, seed=1)
    parts = [(f"data_batch_{n + 1}", train, slice(200 * n, 200 * n + 200)) for n in range(5)] + [
        ("test_batch", test, slice(0, 60))
    ]
    for name, whole, part in parts:
        batch = {
            b"data": whole.images[part].reshape(-1, 3072),
            b"labels": whole.labels[part].tolist(),
        }
        (tmp_path / name).write_bytes(pickle.dumps(batch))
    return tmp_path


# ---------------------------------------------------------------------------------------- the data


def test_small_files_have_the_same_images(folder: Path, tmp_path: Path) -> None:
    paths = list(write(folder, tmp_path / "small"))
    assert len(paths) == 2
    for original, unpacked in zip(read(folder), read(tmp_path / "small"), strict=True):
        assert np.array_equal(original.images, unpacked.images)
        assert np.array_equal(original.labels, unpacked.labels)
        assert unpacked.labels.dtype == np.int64
    assert np.array_equal(read(folder)[0].images, images(1000).images)


def test_a_folder_without_data_is_named(tmp_path: Path) -> None:
    message = "has neither data_batch_1 ... nor cifar10-0.npz, cifar10-1.npz"
    with pytest.raises(FileNotFoundError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("each", [2, 4])
def test_classes_of_the_published_splits(each: int, seed: int) -> None:
    nodes = classes_of(each, seed)
    assert len(nodes) == 8
    assert all(len(set(own)) == each and set(own) <= set(range(10)) for own in nodes)
    assert set().union(*nodes) == set(range(10))
    assert classes_of(4, 0)[0] == (0, 2, 6, 9)
    with pytest.raises(ValueError, match="no published split of 3 classes a node for seed 0"):
        classes_of(3, 0)


def test_nodes_have_their_classes_in_equal_parts_and_no_image_twice() -> None:
    """90 or so of each class are left; class 3 goes to nodes 3, 4 and 6 in thirds. All nodes are as
    large as the smallest."""
    train = images(1000)
    data = split(train, images(60, seed=1), 4, 0)
    assert len(data.validation) == 100
    assert {len(node) for node in data.nodes} == {min(len(node) for node in data.nodes)}
    for node, own in zip(data.nodes, classes_of(4, 0), strict=True):
        assert set(node.labels) == set(own)
    everything = [
        pixels.tobytes() for part in (*data.nodes, data.validation) for pixels in part.images
    ]
    assert len(set(everything)) == len(everything) <= 1000
    threes = [int((data.nodes[node].labels == 3).sum()) for node in (3, 4, 6)]
    assert max(threes) - min(threes) <= 8  # what was cut at random
    kept = sum(len(node) for node in data.nodes)
    assert 0.85 * 900 < kept <= 900


# ----------------------------------------------------------------------------------------- the runs


def data_of(seed: int = 0) -> tracking_data.Data:
    return split(images(1000), images(60, seed=1), 4, seed)


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs(name: str, engine: str) -> None:
    """One epoch: all exchange, models stay finite, and the bytes are those of 16 mails a step."""
    case = Case(name, METHODS[name].rate, epochs=1)
    run = Run(case, data_of(), "cpu", engine)
    assert list(run.go_on()) == [1]
    models = run.weights()
    assert bool(models.isfinite().all())
    assert bool((models != run.model.weights).any())
    vectors = 2 if "tracking" in name else 1
    start = 14 if METHODS[name].all_reduce else 0  # 2 (N - 1) / N of a model at each of N nodes
    assert run.steps == 2
    assert run.bytes == pytest.approx((run.steps * 16 * vectors + start) * models[0].nbytes, abs=16)


def test_momentum_tracking_begins_with_everybodys_gradient() -> None:
    """With the momenta of the protocol's start the first step is along the mean of the gradients of
    the first minibatches, at all nodes alike."""
    case = Case("momentum-tracking", 0.01, epochs=1)
    run = Run(case, data_of(), "cpu")
    momenta = torch.stack([p.node.vectors["momentum"] for p in run.participants])
    torch.testing.assert_close(momenta.sum(0), torch.zeros_like(momenta[0]), rtol=0, atol=1e-6)
    assert momenta.norm() > 0.1
    host, before = run._host, run.weights()
    gradients: Any = host._gradients
    found = torch.stack([g.clone() for g in gradients([(p.node, 0) for p in run.participants])])
    for participant, gradient in zip(run.participants, found, strict=True):
        alone.step(participant.algorithm, participant.node, gradient.clone(), participant.rate)
    moved = run.weights() - before
    # Heavy-ball's first step, lr times the gradient with its L2 term.
    expected = -0.01 * (found.mean(0) + 1e-3 * before[0])
    torch.testing.assert_close(moved, expected.expand(8, -1), rtol=1e-3, atol=1e-7)


def test_equal_cases_give_equal_bits() -> None:
    case = Case("ecl", 0.001, epochs=1)
    models = []
    for _ in range(2):
        run = Run(case, data_of(), "cpu")
        list(run.go_on())
        models.append(run.weights())
    assert torch.equal(*models)


def test_exchanges_at_random_times_with_loss_and_delay() -> None:
    case = Case("ecl", 0.001, interval=2, asynchronous=True, loss=0.5, delay=3.0, epochs=10)
    run = Run(case, data_of(), "cpu")
    assert torch.equal(run.over_time(), run.weights())
    assert list(run.go_on()) == [10]
    # The mean of the last third or so of 20 steps is near where the nodes are now, not at it.
    assert 0 < (run.over_time() - run.weights()).norm() < 0.1 * run.weights().norm()
    lost = sum(p.tally.lost for p in run.participants)
    sent = sum(p.tally.messages for p in run.participants)
    assert 100 < sent < 220  # 20 steps, 16 directed edges, every second step: 160
    assert 0.3 * sent < lost < 0.7 * sent


def test_nodes_that_allow_for_their_shares_of_the_classes() -> None:
    """The same minibatches, other gradients: whoever has no example of a class leaves what the
    others teach of it nearly alone, so the last layer's bias hardly moves there."""
    biases = {}
    for adjusted in (0.0, 1.0):
        run = Run(Case("gossip", 0.001, epochs=1, adjusted=adjusted), data_of(), "cpu")
        [gradient] = run.gradients([(run.participants[0].node, 0)])
        biases[adjusted] = run.model.unflatten(gradient[None])["head.bias"][0].clone()
    absent = [c for c in range(10) if c not in classes_of(4, 0)[0]]
    assert biases[1.0][absent].abs().max() < 0.1 * biases[0.0][absent].abs().min()


def test_a_run_of_before_a_condition_was_there_counts(tmp_path: Path) -> None:
    out, case = tmp_path / "runs.json", Case("dsgdm", 0.005)
    old = {name: value for name, value in vars(case).items() if name != "adjusted"}
    out.write_text(json.dumps([{**old, "test": {"mean": 1.0}}]))
    assert Results(out).has(case)
    assert not Results(out).has(replace(case, adjusted=0.5))


def test_processes_that_share_a_file_keep_each_others_runs(tmp_path: Path) -> None:
    """Each has read it before the other writes, and none is in the other's way."""
    out = tmp_path / "runs.json"
    cases = [Case("dsgdm", 0.005, seed=seed) for seed in range(4)]
    processes = [Results(out) for _ in cases]

    def write(process: Results, case: Case) -> None:
        for value in range(5):
            process.keep({**vars(case), "curve": [], "test": {"mean": value}})

    with ThreadPoolExecutor(len(cases)) as pool:
        list(pool.map(write, processes, cases))
    runs = json.loads(out.read_text())
    assert sorted((run["seed"], run["test"]["mean"]) for run in runs) == [(n, 4) for n in range(4)]
    assert all(process.has(case) for process in processes for case in cases)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["runs.json"]


def test_a_run_is_kept_and_not_done_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "runs.json"
    words = ["--data", str(folder), "--out", str(out), "--epochs", "1", "--best", "--device", "cpu"]
    assert main([*words, "--only", "dsgdm", "ecl:0.01"]) == 0
    first = json.loads(out.read_text())
    assert [(run["method"], run["learning_rate"]) for run in first] == [
        ("dsgdm", 0.005), ("ecl", 0.01)
    ]  # fmt: skip
    for run in first:
        assert len(run["curve"]) == 1
        assert run["test"]["lowest"] <= run["test"]["mean"]
        assert len(run["test"]["nodes"]) == len(run["test"]["over_time"]["nodes"]) == 8
    assert "dsgdm lr 0.005 seed 0 epoch 1: mean" in capsys.readouterr().out
    assert main([*words, "--only", "dsgdm"]) == 0
    assert json.loads(out.read_text()) == first
    assert "epoch 1:" not in capsys.readouterr().out


@pytest.mark.parametrize("engine", ["sequential", "streams"])
def test_what_was_cut_short_goes_on_where_it_was(engine: str, folder: Path, tmp_path: Path) -> None:
    """With the same bits."""
    case = Case("ecl", 0.001, epochs=20)
    words = ["--data", str(folder), "--only", "ecl:0.001", "--device", "cpu", "--epochs", "20"]

    def found(out: Path, *more: str) -> dict[str, Any]:
        assert main([*words, "--engine", engine, "--out", str(out), *more]) == 0
        [run] = json.loads(out.read_text())
        return run

    # Also into a folder that is not there yet.
    whole, out = found(tmp_path / "whole.json"), tmp_path / "new" / "runs.json"
    run = found(out, "--limit", "0")
    assert (len(run["curve"]), run["test"]) == (1, None)
    assert not Results(out).has(case)
    assert Results(out).state(case).exists()
    again = found(out)
    assert Results(out).has(case)
    assert not Results(out).state(case).exists()
    assert [again[name] for name in ("curve", "test", "bytes")] == [
        whole[name] for name in ("curve", "test", "bytes")
    ]


def test_a_run_says_with_which_engines_and_code_it_was_computed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs.json"
    words = ["--data", str(folder), "--only", "ecl:0.001", "--device", "cpu", "--epochs", "30"]
    first, second = ({"commit": c, "dirty": False, "fingerprint": c} for c in "ab")
    for engine, code in (("streams", first), ("sequential", second), ("sequential", second)):
        monkeypatch.setattr(tracking, "provenance", lambda now=code: now)
        assert main([*words, "--engine", engine, "--out", str(out), "--limit", "0"]) == 0
    [run] = json.loads(out.read_text())
    assert (run["engine"], run["device"]) == ("streams, then sequential", "cpu")
    assert run["code"] == [first, second]


def test_a_state_from_before_codes_were_listed_keeps_its_code() -> None:
    assert tracking._with_code({"commit": "a"}, {"commit": "b"}) == [
        {"commit": "a"}, {"commit": "b"}
    ]  # fmt: skip
    assert tracking._with_code({"commit": "a"}, {"commit": "a"}) == [{"commit": "a"}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "nobody"], "--only nobody is unknown; choose from: dsgdm, "),
        (["--only", "dsgdm", "--asynchronous"], "dsgdm works in synchronous rounds only"),
        (["--only", "gossip"], "gossip works at random times (--asynchronous) only"),
        (["--epochs", "15"], "--epochs 15 must be a multiple of 10, or less"),
        (["--seeds", "7"], "there is no published split of 4 classes a node for seed 7"),
    ],
)
def test_what_cannot_be_run(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asynchronous", "left_out"),
    [(False, {"gossip"}), (True, {"dsgdm", "qg-dsgdm", "decentlam", "momentum-tracking",
                                  "momentum-tracking-atc"})],
)  # fmt: skip
def test_without_a_choice_all_are_run_that_can_be(asynchronous: bool, left_out: set[str]) -> None:
    given = argparse.Namespace(
        only=None, best=True, seeds=[0], classes=4, interval=1, asynchronous=asynchronous,
        loss=0.0, delay=0.0, epochs=500, adjusted=0.0,
    )  # fmt: skip
    assert {case.method for case in plan(given)} == METHODS.keys() - left_out


def test_the_table_takes_the_step_size_that_is_best_on_validation_images() -> None:
    case = Case("decentlam", 0.005)

    def made_up(rate: float, validation: float, test: float, **more: Any) -> dict[str, Any]:
        found = {"mean": test, "lowest": test - 2, "average": test + 1}
        return {
            **vars(replace(case, learning_rate=rate)), "curve": [{"mean": validation}],
            "test": {**found, **more}, "bytes": 4e9, "seconds": 30.0,
        }  # fmt: skip

    def cells(*runs: dict[str, Any]) -> list[str]:
        [line] = render(runs).splitlines()[2:]
        return [cell.strip() for cell in line.strip("|").split("|")]

    first = ["decentlam lr 0.005 seed 0", "500", "0.005, 0.001", "55.0", "54.0", "52.0", "55.0"]
    other = made_up(0.001, 50.0, 58.0)
    # A run of before running averages were measured has none.
    assert cells(made_up(0.005, 55.0, 54.0), other) == [*first, *"---", "54.9", "4.0", "30"]
    over_time = {"mean": 60.0, "lowest": 59.0, "average": 61.0}
    assert cells(made_up(0.005, 55.0, 54.0, over_time=over_time), other) == [
        *first, "60.0", "59.0", "61.0", "54.9", "4.0", "30"
    ]  # fmt: skip


@pytest.mark.parametrize("module", ["consensus.tracking", "benchmarks.gpu"])
def test_neither_flower_nor_ray_is_needed(module: str) -> None:
    """Where there is PyTorch and nothing else."""
    code = (
        f"import sys, experiments.{module}; "
        "print([m for m in ('flwr', 'ray', 'torchvision', 'networkx') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(tracking.__file__).parents[2],
    )  # fmt: skip
    assert found.stdout.strip() == "[]"
