"""Settling: equal to the readable reference, the same bits anywhere, the mean of all models in the
limit whatever is lost, and as fast as its theory says."""

import math
import threading
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from strategies.carriers.grid import GridExchange
from strategies.consensus.free_host import FreeHost
from strategies.consensus.host import Host
from strategies.consensus.node import Node
from strategies.consensus.participant import Mail, Participant
from strategies.consensus.schedule import Conditions, Kind, Timetable, parse_outages
from strategies.consensus.settling import (
    SETTLING,
    Settling,
    SettlingTimetable,
    bring_in,
    penalty_strength,
    settling,
    undisturbed,
)
from strategies.consensus.topologies import build_topology
from strategies.consensus.topology import Topology
from strategies.contracts.alone import receive
from strategies.contracts.convex import STRESSES, bits_of, disturbed
from strategies.randomness import rng

PARAMETERS, WINDOWS = 12, 3
PATIENCE = (100.0, 100.0)


@cache
def models(nodes: int, parameters: int = PARAMETERS) -> list[torch.Tensor]:
    return list(torch.tensor(rng(3, "models").standard_normal((nodes, parameters))))


def trained(topology: Topology, conditions: dict[str, Any], outages: str = "") -> Timetable:
    return Timetable(
        topology,
        Conditions(**conditions),
        interval=4,
        window_steps=8,
        seed=2,
        outages=parse_outages(outages, topology),
    )


def settled(
    topology: Topology,
    rounds: int,
    conditions: dict[str, Any] | None = None,
    outages: str = "",
    guests: Sequence[int] = (),
) -> list[torch.Tensor]:
    """The nodes after as many rounds, all on one host."""
    timetable = SettlingTimetable(trained(topology, conditions or {}, outages), WINDOWS, rounds)
    nodes = range(topology.size)
    participants = [_participant(topology, rounds, i, models(topology.size)[i]) for i in nodes]
    for participant in participants:
        participant.settle(guest=participant.node.index in guests)
    host = Host(participants, lambda _: [], initial=lambda _: torch.full((PARAMETERS,), math.nan))
    assert host.run({i: timetable.timeline(i, WINDOWS + 1) for i in nodes}, {})
    assert all(timetable.in_flight(i, WINDOWS + 1) == [] for i in nodes)
    return [p.node.weights for p in participants]


@cache
def averaging(graph: str, size: int, rounds: int) -> Settling:
    return settling(build_topology(graph, size), rounds)


def _participant(topology: Topology, rounds: int, index: int, weights: torch.Tensor) -> Participant:
    algorithm = averaging(topology.name, topology.size, rounds)
    return Participant(Node(index, weights.clone()), algorithm, topology.neighbours[index])


def far(found: Sequence[torch.Tensor], mean: torch.Tensor) -> float:
    """The root mean square distance from `mean`, of that before."""
    before = torch.stack(models(len(found))) - torch.stack(models(len(found))).mean(0)
    return float((torch.stack(list(found)) - mean).norm() / before.norm())


# --------------------------------------------------------------------------------- the reference


def oracle(timetable: Timetable, rounds: int, window: int) -> list[torch.Tensor]:
    """As the formulas stand, from all models and a timetable: slow, and with nothing left out."""
    topology = timetable.topology
    alpha = penalty_strength(topology, rounds)
    own = models(topology.size)
    anchors: list[dict[int, torch.Tensor]] = [{} for _ in own]

    def model(i: int) -> torch.Tensor:
        pulled = sum((alpha * s for s in anchors[i].values()), own[i])
        return pulled / (1 + alpha * len(anchors[i]))

    events = [(e, i) for i in range(topology.size) for e in timetable.timeline(i, window)]
    under_way: dict[tuple[int, int, int], torch.Tensor] = {}
    for event, i in sorted(events, key=lambda each: (each[0].t, each[0].kind)):
        j = event.peer
        if event.kind is Kind.SEND:
            x = model(i)
            under_way[i, j, event.seq] = 2 * x - anchors[i].get(j, x)
        if event.kind is Kind.RECEIVE:
            anchors[i][j] = under_way[j, i, event.seq]
    return [model(i) for i in range(topology.size)]


@pytest.mark.parametrize("graph", ["ring", "star", "erdos-renyi", "one-peer-exponential"])
@pytest.mark.parametrize("conditions", [{}, {"loss": 0.4, "one_way": True, "delay_seconds": 2.0}])
def test_it_is_the_reference(graph: str, conditions: dict[str, Any]) -> None:
    """What a duplicate would do is tried elsewhere; delays end with their round."""
    topology = build_topology(graph, 8)
    training = Timetable(
        topology, Conditions(**conditions), interval=4, window_steps=8, seed=2,
        synchronous=not topology.static,
    )  # fmt: skip
    timetable = SettlingTimetable(training, WINDOWS, 9)
    participants = [_participant(topology, 9, i, w) for i, w in enumerate(models(8))]
    for participant in participants:
        participant.settle(guest=False)
    host = Host(participants, lambda _: [], initial=lambda _: torch.zeros(PARAMETERS))
    assert host.run({i: timetable.timeline(i, WINDOWS + 1) for i in range(8)}, {})
    for found, expected in zip(participants, oracle(timetable, 9, WINDOWS + 1), strict=True):
        torch.testing.assert_close(found.node.weights, expected, rtol=1e-12, atol=1e-12)


def test_no_round_is_left_out_and_none_is_of_a_sequence() -> None:
    """All edges exchange in all rounds, after the training and in its clock."""
    topology = build_topology("one-peer-exponential", 8)
    training = Timetable(
        topology, Conditions(delay_seconds=0.5), interval=2, window_steps=6, seed=0,
        synchronous=True,
    )  # fmt: skip
    timetable = SettlingTimetable(training, 5, 4)
    events = timetable.timeline(0, 6)
    assert {e.kind for e in events} == {Kind.SEND, Kind.RECEIVE, Kind.MIX}
    sent = [e.peer for e in events if e.kind is Kind.SEND]
    assert sorted(sent) == sorted(topology.neighbours[0] * 4)
    assert timetable.border(5) == training.border(5) < events[0].t
    assert events[-1].t == timetable.border(6) == training.border(5) + 4 * 1.5


# -------------------------------------------------------------------------- the same bits anywhere


@pytest.mark.parametrize("stress", STRESSES)
def test_the_same_bits_on_any_number_of_hosts_and_of_rows(stress: str) -> None:
    def found(**options: Any) -> list[Any]:
        run = disturbed("ecl", stress=stress, **options).run(2)
        topology = run.timetable.topology
        for participant in run.participants:
            participant.algorithm = settling(topology, 6)
            participant.settle(guest=False)
        run.timetable = SettlingTimetable(run.timetable, 2, 6)
        return bits_of(run.run(1))

    expected = found()
    assert found() == expected
    for hosts in (1, 3):
        assert found(hosts=hosts, most=1) == found(hosts=hosts) == expected


# -------------------------------------------------------------------------------------- the limit

REGULAR = {"ring": 8, "torus": 16, "complete": 8, "hypercube": 8, "exponential": 8}


@pytest.mark.parametrize("graph", REGULAR)
def test_the_error_falls_as_that_of_second_order_gossip(graph: str) -> None:
    """x(t + 1) = (1 + beta) P x(t) - beta x(t - 1), to the last digits."""
    topology = build_topology(graph, REGULAR[graph])
    degree = topology.degree(0)
    adjacency = np.zeros((topology.size, topology.size))
    for i, j in topology.edges:
        adjacency[i, j] = adjacency[j, i] = 1 / degree
    spectrum, vectors = np.linalg.eigh(adjacency)
    before = torch.stack(models(topology.size))
    for rounds in (1, 2, 7, 16):
        strong = penalty_strength(topology, rounds) * degree
        beta = (strong - 1) / (strong + 1)
        left = torch.tensor(undisturbed(spectrum, beta, rounds))
        basis = torch.tensor(vectors)
        expected = basis @ (left[:, None] * (basis.T @ before))
        found = torch.stack(settled(topology, rounds))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_best_penalty_is_that_of_chebyshev() -> None:
    """On a long run, beta = ((1 - sqrt(1 - rho^2)) / rho)^2 with rho, the second eigenvalue."""
    topology = build_topology("ring", 8)
    rho = math.cos(2 * math.pi / 8)
    best = ((1 - math.sqrt(1 - rho**2)) / rho) ** 2
    strong = penalty_strength(topology, 32) * 2
    assert (strong - 1) / (strong + 1) == pytest.approx(best, abs=0.03)
    # Plain gossip with the same edges leaves (1/3 + 2/3 rho)^16 = 0.03 after 16 rounds.
    assert far(settled(topology, 16), torch.stack(models(8)).mean(0)) < 1e-5


LOSSES: dict[str, tuple[dict[str, Any], int, float]] = {
    "calm": ({}, 60, 1e-12),
    "30 % lost": ({"loss": 0.3}, 120, 1e-9),
    "70 % lost": ({"loss": 0.7}, 240, 1e-6),
    "one-way": ({"one_way": True, "loss": 0.3, "duplication": 0.2}, 200, 1e-6),
}


@pytest.mark.parametrize("graph", ["torus", "star"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_limit_is_the_mean(graph: str, loss: str) -> None:
    """Exactly, whatever is lost: nothing has to add up."""
    conditions, rounds, error = LOSSES[loss]
    found = settled(build_topology(graph, 8), rounds, conditions)
    assert far(found, torch.stack(models(8)).mean(0)) < error


def test_sixteen_rounds_of_a_bad_ring() -> None:
    """30 % lost: nodes that were 1 apart are 0.02 apart at most."""
    found = settled(build_topology("ring", 8), 16, {"loss": 0.3})
    assert far(found, torch.stack(models(8)).mean(0)) < 0.02


def test_a_large_graph_gains_in_few_rounds() -> None:
    """There is no wave that only passes by: after R rounds a ring's node has the mean of about R
    others, and so 1 / sqrt(R) of the differences is left."""
    found = settled(build_topology("ring", 100), 16)
    assert far(found, torch.stack(models(100)).mean(0)) < 0.2


# -------------------------------------------------------------------------------- who is not there


def test_who_is_away_does_not_count() -> None:
    """It keeps what it has; the others have the mean of those who are there."""
    topology = build_topology("complete", 8)
    found = settled(topology, 40, outages="crash:3@2, leave:5@20")
    there = [i for i in range(8) if i not in (3, 5)]
    mean = torch.stack([models(8)[i] for i in there]).mean(0)
    assert max(float((found[i] - mean).norm()) for i in there) < 1e-9
    assert torch.equal(found[3], models(8)[3])
    assert torch.equal(found[5], models(8)[5])


def test_who_comes_back_with_nothing_takes_over_what_the_others_have() -> None:
    """And leaves it as it is: its initial model, here not a number, is none that counts."""
    topology = build_topology("complete", 8)
    # The training ends at 24 s; a round takes a second.
    found = settled(topology, 40, outages="crash:3@10-30.5, join:5@26.5")
    others = torch.stack([models(8)[i] for i in range(8) if i not in (3, 5)]).mean(0)
    assert max(float((w - others).norm()) for w in found) < 0.2
    assert max(float((w - found[0]).norm()) for w in found) < 0.1


def test_who_comes_back_after_a_pause_is_a_guest_too() -> None:
    """Its model, which is far from all others, is not in their mean, however late it comes."""
    for back in (26.5, 62.5):  # the training ends at 24 s, the settling at 64 s
        found = settled(build_topology("complete", 8), 40, outages=f"pause:3@10-{back}")
        mean = torch.stack([w for i, w in enumerate(models(8)) if i != 3]).mean(0)
        others = [w for i, w in enumerate(found) if i != 3]
        apart = float((models(8)[3] - mean).norm())
        assert max(float((w - mean).norm()) for w in others) < 0.1 * apart


def test_a_guest_takes_over_what_the_others_have() -> None:
    found = settled(build_topology("torus", 8), 60, guests=(3,))
    mean = torch.stack([w for i, w in enumerate(models(8)) if i != 3]).mean(0)
    assert max(float((w - mean).norm()) for w in found) < 1e-6


def test_who_says_goodbye_in_the_middle_leaves_no_anchor() -> None:
    node = Node(0, torch.tensor([1.0, 2.0], dtype=torch.float64))
    algorithm = settling(build_topology("ring", 8), 16)
    algorithm.start(node)
    bring_in(node)
    for j, value in ((1, 5.0), (7, -3.0)):
        algorithm.connect(node, j)
        mail = {SETTLING: torch.full((2,), value, dtype=torch.float64)}
        receive(algorithm, node, j, 0, mail)
    algorithm.disconnect(node, 7)
    alone = Node(0, torch.tensor([1.0, 2.0], dtype=torch.float64))
    algorithm.start(alone)
    bring_in(alone)
    algorithm.connect(alone, 1)
    receive(algorithm, alone, 1, 0, {SETTLING: torch.full((2,), 5.0, dtype=torch.float64)})
    torch.testing.assert_close(node.weights, alone.weights)
    algorithm.disconnect(node, 1)
    torch.testing.assert_close(node.weights, torch.tensor([1.0, 2.0], dtype=torch.float64))


# ---------------------------------------------------------------------------------- the real clock


class Post:
    """Mail between hosts in threads; nobody is there who is not in `boxes`."""

    def __init__(self, boxes: dict[int, list[Mail]], own: int, changed: threading.Condition):
        self._boxes, self._own, self._changed = boxes, own, changed

    def post(self, mail: Mail) -> None:
        with self._changed:
            if mail.receiver in self._boxes:
                self._boxes[mail.receiver].append(mail)
                self._changed.notify_all()

    def collect(self, patience: float) -> list[Mail]:
        with self._changed:
            self._changed.wait_for(lambda: self._boxes[self._own], patience)
            found, self._boxes[self._own] = self._boxes[self._own], []
            return found


def freely(
    here: Sequence[int],
    rounds: int,
    link: dict[str, Any],
    heard: Sequence[int] = range(8),
    late: dict[int, list[Mail]] | None = None,
    guests: Sequence[int] = (),
    ago: float = 0.0,
) -> dict[int, torch.Tensor]:
    """Each node of `here` on a device of its own, on a ring of 8; `heard`: those who were there in
    the training, which has ended `ago` seconds ago. `guests`: those who were not, in the end.
    Patience is longer than anything takes, so nothing depends on speed."""
    topology = build_topology("ring", 8)
    boxes: dict[int, list[Mail]] = {i: list((late or {}).get(i, ())) for i in here}
    changed, found = threading.Condition(), {}

    def work(index: int) -> None:
        participant = _participant(topology, rounds, index, models(8)[index])
        if index not in guests:
            now = time.monotonic() - ago
            participant.heard = {j: now for j in participant.neighbours if j in heard}
        participant.settle(guest=index in guests)
        host = FreeHost(
            [participant],
            lambda _: [],
            initial=lambda _: torch.zeros(PARAMETERS),
            exchange=Post(boxes, index, changed),
            silence=60.0,
        )
        half = rounds // 2  # in two pieces, as where mail rides in messages
        for part in (range(100, 100 + half), range(100 + half, 100 + rounds)):
            host.settle_freely(part, time.monotonic, 0, link=Conditions(**link), patience=PATIENCE)
        found[index] = participant.node.weights

    threads = [threading.Thread(target=work, args=(i,)) for i in here]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_devices_settle() -> None:
    """To a hundredth of what they were apart. They have nearly what a timetable's rounds give: a
    node takes a neighbour's newest mail, which may be that of the next round already."""
    found = freely(range(8), 16, {})
    expected = settled(build_topology("ring", 8), 16)
    before = torch.stack(models(8))
    apart = float((before - before.mean(0)).abs().max())
    for i, weights in found.items():
        torch.testing.assert_close(weights, expected[i], rtol=0, atol=0.01 * apart)


def test_devices_settle_however_long_they_had_to_wait_for_it() -> None:
    """Those who were done with the training first have heard nobody for a while."""
    mean = torch.stack(models(8)).mean(0)
    found = freely(range(8), 40, {}, ago=1000.0)
    assert max(float((w - mean).norm()) for w in found.values()) < 1e-2


def test_a_device_that_missed_the_end_takes_over_what_the_others_have() -> None:
    """Its old model counts for nothing with anybody, from the first round on."""
    mean = torch.stack([models(8)[i] for i in range(8) if i != 3]).mean(0)
    found = freely(range(8), 40, {}, guests=[3])
    assert max(float((w - mean).norm()) for w in found.values()) < 1e-2


def test_devices_settle_where_mail_rides_in_messages() -> None:
    """A round for each order, in which what came with it is used before anything is written: as far
    as a timetable's rounds bring them, but for the last mail, which nobody takes any more."""
    topology, rounds = build_topology("ring", 8), 16
    participants = [_participant(topology, rounds, i, models(8)[i]) for i in range(8)]
    inboxes: dict[int, list[Mail]] = {i: [] for i in range(8)}
    for participant in participants:
        participant.settle(guest=False)
    for number in range(100, 100 + rounds + 1):
        posted: list[Mail] = []
        for index, participant in enumerate(participants):
            exchange = GridExchange(inboxes[index], newest=True)
            host = FreeHost(
                [participant], lambda _: [], initial=lambda _: models(8)[0], exchange=exchange
            )
            host.settle_freely(range(number, number + 1), time.monotonic, 0, patience=(0.0, 0.0))
            posted += exchange.report().outgoing
        inboxes = {i: [mail for mail in posted if mail.receiver == i] for i in range(8)}
    for participant, expected in zip(participants, settled(topology, rounds), strict=True):
        torch.testing.assert_close(participant.node.weights, expected, rtol=1e-12, atol=1e-12)


def test_devices_settle_without_those_who_are_away() -> None:
    """Nobody waits for them who were silent before."""
    here = [0, 1, 2, 3, 5, 6, 7]
    found = freely(here, 40, {}, heard=here)
    mean = torch.stack([models(8)[i] for i in here]).mean(0)
    assert max(float((w - mean).norm()) for w in found.values()) < 1e-2


def test_mail_of_the_training_is_not_taken_for_that_of_the_settling() -> None:
    """It comes late, and is dropped; that of a neighbour who settles already is kept, once."""
    topology = build_topology("ring", 8)
    wrong = Mail(1, 0, 99, {"reflection": torch.full((PARAMETERS,), 1e6, dtype=torch.float64)})
    found = freely(range(8), 16, {}, late={0: [wrong]})
    assert max(float(w.abs().max()) for w in found.values()) < 10
    participant = _participant(topology, 16, 0, models(8)[0])
    host = FreeHost([participant], lambda _: [], initial=lambda _: models(8)[0])
    vector = {SETTLING: models(8)[1]}
    participant.mail = {(1, n): Mail(1, 0, n, vector) for n in (100, 101)}
    host._use_newest(participant, 0.0)
    assert list(participant.mail) == [(1, 101)]
