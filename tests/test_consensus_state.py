"""A participant as arrays and plain data: whoever comes back goes on as if nothing had happened."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client_apps.node_store import PARKED, NodeStore
from strategies.consensus.algorithms import ALGORITHMS
from strategies.consensus.node import Node
from strategies.consensus.participant import Mail, Participant, Tally
from strategies.consensus.state import pack, unpack
from strategies.contracts import alone
from strategies.contracts.convex import Simulation, bits_of, disturbed
from strategies.errors import ConfigError


def reload(found: Simulation, store: NodeStore, place: int | str) -> None:
    """Save all participants, and put what is read in their places."""
    for position, p in enumerate(found.participants):
        store.save(place, p.node.index, *pack(p), durable=False)
        found.participants[position] = unpack(
            *store.load(place, p.node.index),
            p.algorithm,
            neighbours=p.neighbours,
            weight=p.weight,
        )


def run_interrupted(found: Simulation, store: NodeStore, windows: int) -> int:
    """`Simulation.run` with everything forgotten but the files, whenever a host stops. Returns how
    often that was in the middle of a window."""
    parked = 0
    for _ in range(windows):
        turns = list(range(found.hosts))
        while turns:
            stuck = [h for h in turns if not found.host(h).run(*found.timelines(h))]
            parked += len(stuck)
            turns = stuck
            reload(found, store, PARKED if stuck else found.window)
        found.window += 1
    return parked


@pytest.mark.parametrize("stress", ["none", "outages"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_is_forgotten_at_the_end_of_a_window(
    algorithm: str, stress: str, tmp_path: Path
) -> None:
    expected = bits_of(disturbed(algorithm, stress=stress).run(3))
    found = disturbed(algorithm, stress=stress)
    assert run_interrupted(found, NodeStore(tmp_path), 3) == 0
    assert bits_of(found) == expected


@pytest.mark.parametrize("compression", ["random-k", "top-k"])
@pytest.mark.parametrize(
    "algorithm", ["ecl", "c-ecl", "choco-sgd", "momentum-tracking", "relay-sgd"]
)
def test_nothing_is_forgotten_in_the_middle_of_a_window(
    algorithm: str, compression: str, tmp_path: Path
) -> None:
    for stress in ("none", "outages"):
        options: dict[str, Any] = {"stress": stress, "compression": compression}
        expected = bits_of(disturbed(algorithm, **options).run(3))
        found = disturbed(algorithm, hosts=3, **options)
        assert run_interrupted(found, NodeStore(tmp_path), 3) > 3
        assert bits_of(found) == expected


def test_a_device_forgets_runs_that_nobody_goes_on_with(tmp_path: Path) -> None:
    stores = {name: NodeStore(tmp_path / "nodes" / name) for name in ("old", "young", "own")}
    for store in stores.values():
        store.save(1, 0, {"weights": np.zeros(2)}, {}, durable=False)
    week = 7 * 24 * 3600
    before = time.time() - week - 9
    for name in ("old", "own"):
        os.utime(stores[name].root, (before, before))
    stores["own"].forget_other_runs(week)
    assert {path.name for path in (tmp_path / "nodes").iterdir()} == {"young", "own"}
    NodeStore(tmp_path / "none" / "own").forget_other_runs(week)


@pytest.fixture
def participant() -> Participant:
    """One with something everywhere, and more than a digit in its numbers."""
    link = {"anchor": torch.full((3,), 0.1), "sent": torch.full((3,), 0.2)}
    mail = Mail(11, 1, (7 << 32) + 5, {"reflection": torch.full((3,), 0.4)}, 0.1 + 0.2)
    again = Mail(11, 1, (7 << 32) + 12, {"indices": torch.tensor([2], dtype=torch.int32)}, 0.7)
    return Participant(
        Node(1, torch.full((3,), 0.5), {"momentum": torch.ones(3)}, {11: link, 2: {}}),
        ALGORITHMS,  # type: ignore[arg-type]  # which is handed through
        (2, 11),
        1.5,
        0.05,
        {11: (7 << 32) + 3},
        {11: 1 / 3, 2: 0.0},
        17,
        {(11, mail.seq): mail, (11, again.seq): again},
        [(2.5, Mail(1, 2, 9, {"reflection": torch.full((3,), 0.6)}, 0.1))],
        Tally(5, 4, 96, 1, 2, 3, 0.3),
    )


def same(a: Participant, b: Participant) -> bool:
    (arrays, metadata), (arrays_, metadata_) = pack(a), pack(b)
    return metadata == metadata_ and all(
        np.array_equal(arrays[k], arrays_[k]) and arrays[k].dtype == arrays_[k].dtype
        for k in arrays.keys() | arrays_.keys()
    )


def copy_of(participant: Participant) -> Participant:
    arrays, metadata = pack(participant)
    return unpack(
        arrays,
        json.loads(json.dumps(metadata)),
        participant.algorithm,
        neighbours=participant.neighbours,
        weight=participant.weight,
    )


def test_everything_comes_back(participant: Participant) -> None:
    copy = copy_of(participant)
    assert same(copy, participant)
    assert copy.algorithm is participant.algorithm
    assert (copy.neighbours, copy.weight) == ((2, 11), 1.5)
    assert (copy.rate, copy.cursor, copy.tally) == (0.05, 17, participant.tally)
    assert (copy.received, copy.heard) == (participant.received, participant.heard)
    assert list(copy.node.links) == [11, 2]  # in their order, in which anchors are summed up
    assert copy.node.links[2] == {}
    assert list(copy.mail) == list(participant.mail)
    mail = copy.mail[11, (7 << 32) + 12]
    assert mail[:3] == (11, 1, (7 << 32) + 12)
    assert mail.sent == 0.7
    assert mail.vectors["indices"].dtype == torch.int32
    [(due, late)] = copy.late
    assert (due, late[:3], late.sent) == (2.5, (1, 2, 9), 0.1)
    assert torch.equal(late.vectors["reflection"], torch.full((3,), 0.6))


def test_what_cannot_be_kept_is_named(participant: Participant) -> None:
    participant.node.links[2]["x"] = torch.tensor(1.0)  # of no dimension, which can be
    assert copy_of(participant).node.links[2]["x"].shape == ()
    participant.node.vectors["trace"] = torch.zeros(3, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match=r"a node's 'trace' is of torch\.bfloat16"):
        pack(participant)


def test_the_copy_is_on_its_own(participant: Participant) -> None:
    copy, twin = copy_of(participant), copy_of(participant)
    copy.node.weights.add_(1)
    copy.node.vectors["momentum"].add_(1)
    copy.node.links[11]["anchor"].add_(1)
    copy.tally.steps += 1
    copy.received[2] = 1
    assert same(twin, participant)
    assert not same(copy, participant)


@pytest.mark.parametrize("hold", [True, False], ids=["hold", "anchors"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_who_goes_on_never_waits_for_its_device_to_step(algorithm: str, hold: bool) -> None:
    """The device here has shapes and no values: to read a number of it is an error."""
    participant = disturbed(algorithm, changes={"hold": hold}).participants[0]
    moved = unpack(
        *pack(participant), participant.algorithm, neighbours=(), weight=1.0, device="meta"
    )
    alone.step(moved.algorithm, moved.node, torch.zeros_like(moved.node.weights), 0.1)
    moved.change_rate(0.05)
    assert moved.node.weights.device.type == "meta"


def test_the_counts_of_relayed_models_stay_where_a_restored_node_has_them() -> None:
    """On the CPU: what comes in on the device would not add up with what was restored."""
    found = disturbed("relay-sgd").run(1)
    sender = max(found.participants, key=lambda p: len(p.neighbours))
    j, k, *_ = sender.neighbours
    moved = unpack(*pack(sender), sender.algorithm, neighbours=(), weight=1.0, device="meta")
    mail = alone.message(moved.algorithm, moved.node, j, 1)
    assert mail["sum"].device.type == "meta"
    assert (
        mail["count"].tolist()
        == alone.message(sender.algorithm, sender.node, j, 1)["count"].tolist()
    )
    alone.receive(moved.algorithm, moved.node, k, 1, mail)
    alone.mix(moved.algorithm, moved.node, 1)
    assert moved.node.weights.device.type == "meta"
