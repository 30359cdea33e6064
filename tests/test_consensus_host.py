"""Hosts: the same bits however nodes are spread, no mail used twice or waited for in vain, and what
every event of a timeline does."""

import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from strategies.carriers.exchange import Report
from strategies.consensus.algorithms import ALGORITHMS
from strategies.consensus.descent import LocalSGD
from strategies.consensus.free_host import FreeHost
from strategies.consensus.host import Host
from strategies.consensus.node import Node, Tensors
from strategies.consensus.participant import MODEL, NEWCOMER, Mail, Participant, Tally
from strategies.consensus.rows import Chosen, Link, Rows
from strategies.consensus.schedule import Conditions, Event, Kind
from strategies.consensus.state import pack, unpack
from strategies.consensus.topologies import build_topology
from strategies.contracts.convex import STRESSES, bits_of, disturbed, worst_error

# ----------------------------------------------------------- the same bits for any number of hosts


@pytest.mark.parametrize("stress", STRESSES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_hosting_does_not_change_a_bit(algorithm: str, stress: str) -> None:
    expected = bits_of(disturbed(algorithm, stress=stress).run(3))
    for hosts in (2, 4, 8):
        assert bits_of(disturbed(algorithm, stress=stress, hosts=hosts).run(3)) == expected


@pytest.mark.parametrize("stress", STRESSES)
@pytest.mark.parametrize("algorithm", ["c-ecl", "choco-sgd"])
def test_hosting_does_not_change_a_bit_of_top_k(algorithm: str, stress: str) -> None:
    options: dict[str, Any] = {"stress": stress, "compression": "top-k"}
    expected = bits_of(disturbed(algorithm, **options).run(3))
    assert bits_of(disturbed(algorithm, hosts=4, **options).run(3)) == expected


@pytest.mark.parametrize("algorithm", ["ecl", "d-psgd"])
def test_hosting_does_not_change_a_bit_on_a_sequence_of_graphs(algorithm: str) -> None:
    one = disturbed(algorithm, graph="one-peer-exponential", stress="outages").run(3)
    four = disturbed(algorithm, graph="one-peer-exponential", stress="outages", hosts=4).run(3)
    assert bits_of(one) == bits_of(four)


# ------------------------------------------------------------------------------------------- rows

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ALGORITHMS},
    "ecl with forgetting": ("ecl", {"forget": 0.5}),
    "ecl with anchors": ("ecl", {"hold": False, "kappa": 0.5}),
    "ecl with rho": ("ecl", {"hold": False, "rho": 0.3}),
    "gossip without momentum": ("gossip", {"momentum": 0.0}),
    "ecl with weight decay": ("ecl", {"weight_decay": 0.1}),
    "ecl with a clip": ("ecl", {"clip": 2.0}),
}


@pytest.mark.parametrize("stress", STRESSES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_has_the_same_bits_alone_and_among_others(variant: str, stress: str) -> None:
    """All that nodes are, whatever happens to them and however they are spread."""
    algorithm, changes = VARIANTS[variant]
    options: dict[str, Any] = {"stress": stress, "changes": changes}
    alone = bits_of(disturbed(algorithm, most=1, **options).run(3))
    for most, hosts in ((None, 1), (3, 1), (None, 3)):
        found = disturbed(algorithm, most=most, hosts=hosts, **options).run(3)
        assert bits_of(found) == alone


@pytest.mark.parametrize("algorithm", ["ecl", "d-psgd"])
def test_rows_have_the_same_bits_on_a_sequence_of_graphs(algorithm: str) -> None:
    options: dict[str, Any] = {"graph": "one-peer-exponential", "stress": "outages"}
    alone = disturbed(algorithm, most=1, **options).run(3)
    assert bits_of(disturbed(algorithm, **options).run(3)) == bits_of(alone)


@pytest.mark.parametrize("parameters", [1, 17, 1003])
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in ("relay-sgd", "choco-sgd")])
def test_a_row_of_float32_has_the_same_bits_alone_and_among_others(
    variant: str, parameters: int
) -> None:
    """In the width of real models, of lengths that no vector of the processor divides."""
    algorithm, changes = VARIANTS[variant]

    def found(most: int | None) -> Any:
        run = disturbed(algorithm, stress="mail", changes=changes, most=most)
        generator = torch.Generator().manual_seed(0)
        for participant in run.participants:
            node = participant.node
            node.weights = torch.randn(parameters, generator=generator)
            participant.algorithm.start(node)
            participant.weight = 0.3 + node.index
        drawn = [torch.randn(64, parameters, generator=generator) for _ in range(8)]

        def gradients(due: Sequence[tuple[Node, int]]) -> Iterator[torch.Tensor]:
            return (drawn[node.index][step].clone() for node, step in due)

        host = Host(run.participants, gradients, initial=run.initial, most=most)
        assert host.run(*run.timelines(0))
        return bits_of(run)

    assert found(1) == found(3) == found(None)


def test_nodes_of_all_speeds_step_together() -> None:
    """In as many calls as the fastest has steps, and not in one for each step of each node."""
    found = disturbed("ecl", stress="mail")
    sizes = []

    def gradients(due: Sequence[tuple[Node, int]]) -> torch.Tensor:
        sizes.append(len(due))
        return torch.stack(list(found.problem.gradients(due)))

    host = Host(found.participants, gradients, initial=found.initial)
    assert host.run(*found.timelines(0))
    steps = [p.tally.steps for p in found.participants]
    assert len(set(steps)) > 1
    assert sum(sizes) == sum(steps)
    assert len(sizes) <= 1.5 * max(steps)


@pytest.mark.parametrize(("parameters", "together"), [(2**10, 8), (2**18, 4), (2**20, 1)])
def test_on_a_cpu_as_many_rows_are_worked_on_as_its_caches_hold(
    parameters: int, together: int
) -> None:
    """So gradients need no matrix of all nodes, and those who are due first go first."""
    algorithm = LocalSGD(build_topology("ring", 8), 0.0, 0.0)
    participants = [Participant(Node(i, torch.zeros(parameters)), algorithm) for i in range(8)]
    asked: list[list[int]] = []

    def gradients(due: Sequence[tuple[Node, int]]) -> Iterator[torch.Tensor]:
        asked.append([node.index for node, _ in due])
        return (torch.zeros(parameters) for _ in due)

    host = Host(participants, gradients, initial=lambda _: torch.zeros(parameters))
    late = {i: 1.0 + (i < 4) for i in range(8)}
    assert host.run({i: [Event(late[i], Kind.STEP)] for i in range(8)}, {})
    assert max(map(len, asked)) == together
    first = [node for part in asked for node in part][:4]
    assert together == 8 or first == [4, 5, 6, 7]


@pytest.mark.parametrize("algorithm", ["ecl", "momentum-tracking"])
def test_long_rows_have_the_bits_of_short_ones(
    algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = bits_of(disturbed(algorithm, stress="mail").run(2))
    monkeypatch.setattr("strategies.consensus.batches._LONG", 1)
    assert bits_of(disturbed(algorithm, stress="mail").run(2)) == expected


@pytest.mark.parametrize(("parameters", "parts"), [(2**10, 1), (2**14, 2)])
def test_long_rows_that_do_not_follow_each_other_are_not_copied(
    parameters: int, parts: int
) -> None:
    """A gather and a scatter of a row take longer than a call, from some length on."""

    class Watched(LocalSGD):
        def step(self, rows: Rows, chosen: Chosen, gradients: torch.Tensor, rate: float) -> None:
            indices.append(chosen.index)

    algorithm = Watched(build_topology("ring", 8), 0.0, 0.0)
    participants = [Participant(Node(i, torch.zeros(parameters)), algorithm) for i in range(8)]
    indices: list[slice | torch.Tensor] = []
    nothing = torch.zeros(8, parameters)
    host = Host(participants, lambda due: nothing[: len(due)], initial=lambda _: nothing[0])
    assert host.run({i: [Event(1.0, Kind.STEP)] if i != 3 else [] for i in range(8)}, {})
    assert len(indices) == parts
    assert parts == 1 or indices == [slice(0, 3), slice(4, 8)]


@pytest.mark.parametrize("stress", ["none", "outages"])
def test_hosts_at_the_same_time(stress: str) -> None:
    """Four hosts in threads, which wait for each other's mail."""
    expected = bits_of(disturbed("ecl", stress=stress).run(2))
    found = disturbed("ecl", stress=stress, hosts=4)
    for _ in range(2):
        done: list[bool] = []

        def work(number: int, done: list[bool] = done) -> None:
            done.append(found.host(number).run(*found.timelines(number), 30.0))

        threads = [threading.Thread(target=work, args=(h,)) for h in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert done == [True] * 4
        found.window += 1
    assert bits_of(found) == expected


def test_a_host_stops_where_mail_lacks_and_goes_on_from_there() -> None:
    """Host 0 alone gets as far as to the first mail it needs; what it has done, it does not do
    again."""
    expected = bits_of(disturbed("ecl").run(1))
    found = disturbed("ecl", hosts=2)
    first, second = found.host(0), found.host(1)
    assert not first.run(*found.timelines(0))
    cursors = [p.cursor for p in found.parts[0]]
    assert all(0 < c < len(found.timelines(0)[0][i]) for i, c in enumerate(cursors))
    assert not first.run(*found.timelines(0))
    assert [p.cursor for p in found.parts[0]] == cursors
    turns = [(second, 1), (first, 0)]
    while turns:
        turns = [(host, h) for host, h in turns if not host.run(*found.timelines(h))]
    assert bits_of(found) == expected
    assert all(p.cursor == 0 for p in found.participants)


def test_who_waits_goes_on_as_soon_as_its_mail_is_there() -> None:
    """And not only when nobody else has anything to do: neighbours elsewhere wait for it."""

    class SecondPost(Letters):
        """Has nothing when it is first asked."""

        asked = False

        def collect(self, patience: float) -> list[Mail]:
            first, self.asked = not self.asked, True
            return [] if first else super().collect(patience)

    algorithm = Diary(build_topology("chain", 3), 0.0, 0.0)
    participants = []
    for index, neighbours in ((0, (1,)), (1, (0, 2))):
        node = Node(index, torch.zeros(2))
        algorithm.start(node)
        participants.append(Participant(node, algorithm, neighbours, rate=1.0))
    told: list[Any] = []
    host = Host(
        participants,
        lambda due: (torch.ones(2) for _ in due),
        initial=lambda _: torch.zeros(2),
        exchange=SecondPost(Mail(2, 1, 0, {"weights": torch.ones(2)}, 1.0)),
        listener=lambda t, what, node, *_: told.append((what, node)),
    )
    steps = [Event(float(t), Kind.STEP, seq=t) for t in range(1, 6)]
    assert host.run({0: steps, 1: [Event(1.0, Kind.RECEIVE, 2, 0, 1.0)]}, {0: [], 1: []})
    assert told.index(("receive", 1)) == 1
    assert told.count(("step", 0)) == 5


def test_a_window_ends_when_all_that_is_under_way_is_there() -> None:
    found = disturbed("ecl", stress="mail", hosts=2).run(1)
    _, in_flight = found.timelines(0)
    assert any(in_flight.values())
    found.window = 0
    for number in (0, 1):
        for index, keys in found.timelines(number)[1].items():
            assert set(found.participants[index].mail) == set(keys)


# ------------------------------------------------------------------- what each event does to a node


@dataclass(frozen=True)
class Diary(LocalSGD):
    """Does local SGD, and notes what it is told."""

    notes: list[Any] = field(default_factory=list)

    def connect(self, node: Node, j: int) -> None:
        super().connect(node, j)
        self.notes.append(("connect", node.index, j))

    def disconnect(self, node: Node, j: int) -> None:
        super().disconnect(node, j)
        self.notes.append(("disconnect", node.index, j))

    def message(self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int]) -> Tensors:
        self.notes.extend(("message", *end, seq) for end, seq in zip(ends, seqs, strict=True))
        return {"weights": torch.stack([rows.node(end).weights for end in ends])}

    def receive(
        self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int], mails: Sequence[Tensors]
    ) -> None:
        for end, seq, mail in zip(ends, seqs, mails, strict=True):
            self.notes.append(("receive", *end, seq, mail["weights"].tolist()))

    def mix(self, rows: Rows, chosen: Chosen, round_: int) -> None:
        self.notes.extend(("mix", node.index, round_) for node in chosen.nodes)

    def rescale(self, node: Node, old_rate: float, new_rate: float) -> None:
        self.notes.append(("rescale", node.index, old_rate, new_rate))


class Letters:
    """Gives what it was given, at the first time of asking, and takes everything."""

    def __init__(self, *mails: Mail) -> None:
        self.mails, self.posted, self.patience = list(mails), list[Mail](), 0.0

    def post(self, mail: Mail) -> None:
        self.posted.append(mail)

    def collect(self, patience: float) -> list[Mail]:
        self.patience = max(self.patience, patience)
        mails, self.mails = self.mails, []
        return mails

    def report(self) -> Report:
        return Report()

    def close(self) -> None:
        pass


class Pair:
    """Nodes 0 and 1 that start at the model [0, 0], with a diary and a listener's record."""

    def __init__(
        self, silence: float = math.inf, gradient: float = -1.0, adopts: bool = True
    ) -> None:
        self.diary = Diary(build_topology("chain", 2), 0.0, 0.0)
        self.participants = []
        for index in (0, 1):
            node = Node(index, torch.zeros(2))
            self.diary.start(node)
            self.participants.append(
                Participant(node, self.diary, (1 - index,), rate=1.0, heard={1 - index: 0.0})
            )
        self.diary.notes.clear()
        self.told: list[Any] = []
        self.host = Host(
            self.participants,
            lambda due: (torch.full((2,), gradient) for _ in due),
            initial=lambda _: torch.full((2,), 7.0),
            silence=silence,
            adopts=adopts,
            listener=lambda *event: self.told.append(event),
        )

    def run(self, first: Sequence[Event] = (), second: Sequence[Event] = ()) -> "Pair":
        assert self.host.run({0: first, 1: second}, {0: [], 1: []})
        return self

    def links(self) -> list[list[int]]:
        return [list(p.node.links) for p in self.participants]

    def model(self, index: int) -> list[float]:
        return self.participants[index].node.weights.tolist()


def swap(t: float, seq: int) -> tuple[list[Event], list[Event]]:
    """(events of node 0, events of node 1) of mails in both directions at one moment."""
    return (
        [Event(t, Kind.SEND, 1, seq), Event(t, Kind.RECEIVE, 1, seq, t)],
        [Event(t, Kind.SEND, 0, seq), Event(t, Kind.RECEIVE, 0, seq, t)],
    )


def test_steps_and_swaps_in_the_order_of_each_timeline() -> None:
    """Node 0 steps once and node 1 twice before they swap, and each gets the other's model as it
    was then."""
    a, b = swap(2.0, 4)
    pair = Pair().run(
        [Event(1.0, Kind.STEP, seq=0), *a, Event(3.0, Kind.STEP, seq=1)],
        [Event(1.0, Kind.STEP, seq=0), Event(2.0, Kind.STEP, seq=1), *b],
    )
    assert sorted(pair.diary.notes) == [
        ("message", 0, 1, 4),
        ("message", 1, 0, 4),
        ("receive", 0, 1, 4, [2.0, 2.0]),
        ("receive", 1, 0, 4, [1.0, 1.0]),
    ]
    assert pair.model(0) == pair.model(1) == [2.0, 2.0]
    assert pair.participants[0].heard == {1: 2.0}
    assert pair.participants[0].received == {1: 4}
    told = [[event for event in pair.told if event[2] == node] for node in (0, 1)]
    assert told == [
        [
            (1.0, "step", 0, None, None),
            (2.0, "send", 0, 1, None),
            (2.0, "receive", 0, 1, 2.0),
            (3.0, "step", 0, None, None),
        ],
        [
            (1.0, "step", 1, None, None),
            (2.0, "step", 1, None, None),
            (2.0, "send", 1, 0, None),
            (2.0, "receive", 1, 0, 2.0),
        ],
    ]


def test_what_is_counted() -> None:
    pair = Pair().run(
        [Event(1.0, Kind.STEP), Event(2.0, Kind.SEND, 1, 1), Event(3.0, Kind.LOST, 1, 2)],
        [Event(5.0, Kind.RECEIVE, 0, 1, 2.0), Event(6.0, Kind.DUPLICATE, 0, 1, 2.0)],
    )
    sender, receiver = (p.tally for p in pair.participants)
    assert sender == Tally(steps=1, messages=2, bytes=16, lost=1)
    assert receiver == Tally(used=1, age=3.0, duplicates=1)
    assert sender + receiver == Tally(1, 2, 16, 1, 1, 1, 3.0)


def test_a_lost_mail_is_written_but_not_received() -> None:
    """Its writer cannot know."""
    pair = Pair().run([Event(1.0, Kind.LOST, 1, 3)])
    assert pair.diary.notes == [("message", 0, 1, 3)]
    assert pair.told == [(1.0, "lost", 0, 1, None)]


def test_mail_that_was_overtaken_is_dropped() -> None:
    pair = Pair().run(
        [Event(1.0, Kind.SEND, 1, 1), Event(2.0, Kind.SEND, 1, 2)],
        [Event(3.0, Kind.RECEIVE, 0, 2, 2.0), Event(4.0, Kind.RECEIVE, 0, 1, 1.0)],
    )
    assert [note for note in pair.diary.notes if note[0] == "receive"] == [
        ("receive", 1, 0, 2, [0.0, 0.0])
    ]
    assert pair.participants[1].tally == Tally(used=1, age=1.0, duplicates=1)
    assert pair.told[-1] == (4.0, "drop", 1, 0, 1.0)


def test_the_same_mail_is_used_once() -> None:
    [_, participant] = Pair().participants
    mail = Mail(0, 1, 5, {"weights": torch.zeros(2)}, 1.0)
    participant.tally.steps = 20
    assert participant.accept(mail, 2.0)
    assert participant.node.ages == {0: 10.0}  # the steps that it has done in the meantime
    assert not participant.accept(mail, 3.0)
    assert participant.accept(mail._replace(seq=6), 4.0)
    assert not participant.accept(mail, 5.0)
    assert participant.tally == Tally(steps=20, used=2, age=4.0, duplicates=2)
    assert participant.heard == {0: 4.0}


def test_mail_that_nobody_needs_any_more_is_forgotten() -> None:
    """A carrier may bring again what was used in the window before."""
    pair = Pair()
    again = Mail(1, 0, 3, {"weights": torch.zeros(2)}, 0.5)
    late = Mail(1, 0, 4, {"weights": torch.zeros(2)}, 0.9)
    options: dict[str, Any] = {
        "initial": lambda _: torch.zeros(2),
        "exchange": Letters(again, late),
    }
    host = Host(pair.participants[:1], lambda due: (torch.ones(2) for _ in due), **options)
    assert host.run({0: [Event(1.0, Kind.STEP)]}, {0: [(1, 4)]})
    assert list(pair.participants[0].mail) == [(1, 4)]


def test_rounds_end_by_mixing() -> None:
    pair = Pair().run([Event(1.0, Kind.MIX, seq=8)])
    assert pair.diary.notes == [("mix", 0, 8)]


def test_weights_multiply_gradients() -> None:
    pair = Pair()
    pair.participants[1].weight = 0.25
    pair.run([Event(1.0, Kind.STEP)], [Event(1.0, Kind.STEP)])
    assert pair.model(0) == [1.0, 1.0]
    assert pair.model(1) == [0.25, 0.25]


def test_the_rate_changes_once() -> None:
    pair = Pair()
    participant = pair.participants[0]
    for rate in (1.0, 0.5, 0.5, 0.1):
        participant.change_rate(rate)
    assert pair.diary.notes == [("rescale", 0, 1.0, 0.5), ("rescale", 0, 0.5, 0.1)]
    participant.rate = 0.0  # it has made no step yet, so there is nothing to keep
    participant.change_rate(0.3)
    assert len(pair.diary.notes) == 2


# ------------------------------------------------------------------------------ silence and returns


def step(*times: float) -> list[Event]:
    return [Event(t, Kind.STEP) for t in times]


def test_a_silent_neighbour_is_dropped_and_comes_back_with_a_fresh_link() -> None:
    """Node 1 hears last of node 0 at 1 s; 10 s later, not earlier, it gives it up."""
    mails = [Event(1.0, Kind.SEND, 1, 1), Event(20.0, Kind.SEND, 1, 2)]
    pair = Pair(silence=10.0).run(
        mails,
        [
            Event(1.0, Kind.RECEIVE, 0, 1, 1.0),
            *step(11.0, 11.5, 12.0),
            Event(20.0, Kind.RECEIVE, 0, 2, 20.0),
            *step(21.0),
        ],
    )
    assert [note[:3] for note in pair.diary.notes if note[1] == 1] == [
        ("receive", 1, 0),
        ("disconnect", 1, 0),
        ("connect", 1, 0),
        ("receive", 1, 0),
    ]
    assert [event for event in pair.told if event[1] in ("silent", "returned")] == [
        (11.5, "silent", 1, 0, None),
        (20.0, "returned", 1, 0, None),
    ]
    assert pair.links() == [[1], [0]]


def test_old_mail_of_a_dropped_neighbour_does_not_bring_it_back() -> None:
    pair = Pair(silence=10.0).run(
        [Event(0.5, Kind.SEND, 1, 1), Event(1.0, Kind.SEND, 1, 2)],
        [Event(1.0, Kind.RECEIVE, 0, 2, 1.0), *step(12.0), Event(13.0, Kind.RECEIVE, 0, 1, 0.5)],
    )
    assert pair.links() == [[1], []]
    assert [event[1] for event in pair.told if event[2] == 1][-2:] == ["step", "drop"]


def test_who_has_dropped_a_neighbour_still_greets_it() -> None:
    """Both may have given each other up; the greeting is that of a fresh link, and is forgotten."""
    pair = Pair(silence=1.0).run([*step(5.0), Event(6.0, Kind.SEND, 1, 1)])
    assert pair.diary.notes == [
        ("disconnect", 0, 1),
        ("connect", 0, 1),
        ("message", 0, 1, 1),
        ("disconnect", 0, 1),
    ]
    assert pair.links() == [[], [0]]


def test_who_was_away_does_not_blame_its_neighbours() -> None:
    events = [Event(2.0, Kind.DOWN), Event(30.0, Kind.UP), *step(39.0, 41.0)]
    pair = Pair(silence=10.0).run(events)
    assert [event[:2] for event in pair.told] == [
        (2.0, "down"),
        (30.0, "up"),
        (39.0, "step"),
        (41.0, "silent"),
        (41.0, "step"),
    ]


# ---------------------------------------------------------------------------------- come and go


def test_who_restarts_has_the_initial_model_and_fresh_links() -> None:
    pair = Pair().run([*step(1.0), Event(2.0, Kind.DOWN), Event(9.0, Kind.RESTART), *step(10.0)])
    assert pair.model(0) == [8.0, 8.0]
    assert pair.diary.notes == [("connect", 0, 1)]
    assert pair.participants[0].heard == {1: 9.0}


def test_who_comes_adopts_a_neighbours_model() -> None:
    """Its links start from that model: they are made once more."""
    pair = Pair().run(
        [Event(9.0, Kind.RESTART), Event(9.0, Kind.ADOPT, 1, -1, 9.0)],
        [*step(1.0, 2.0, 9.0), Event(9.0, Kind.INVITE, 0, -1), *step(10.0)],
    )
    assert pair.model(0) == [3.0, 3.0]
    assert pair.model(1) == [4.0, 4.0]
    assert pair.diary.notes == [("connect", 0, 1), ("connect", 0, 1)]


def test_who_may_be_lied_to_takes_over_nobodys_model() -> None:
    """It begins as everybody did. On the real clock it asks nobody either."""
    pair = Pair(adopts=False).run(
        [Event(9.0, Kind.RESTART), Event(9.0, Kind.ADOPT, 1, -1, 9.0)],
        [*step(1.0, 2.0, 9.0), Event(9.0, Kind.INVITE, 0, -1), *step(10.0)],
    )
    assert pair.model(0) == [7.0, 7.0]
    assert pair.diary.notes == [("connect", 0, 1)]
    letters = Letters(Mail(1, 0, NEWCOMER, {MODEL: torch.full((2,), 1e30)}))
    options: dict[str, Any] = {"initial": lambda _: torch.zeros(2), "exchange": letters}
    newcomer = pair.participants[:1]
    host = FreeHost(newcomer, lambda due: (torch.ones(2) for _ in due), adopts=False, **options)
    host.adopt([0], Ticks(), 10.0)
    assert pair.model(0) == [7.0, 7.0]
    assert letters.posted == []
    host = FreeHost(newcomer, lambda due: (torch.ones(2) for _ in due), **options)
    host.adopt([0], Ticks(), 10.0)
    assert pair.model(0) == [pytest.approx(1e30)] * 2


def test_an_invitation_from_another_host() -> None:
    pair, letters = Pair(), Letters()
    options: dict[str, Any] = {"initial": lambda _: torch.zeros(2), "exchange": letters}
    host = FreeHost([pair.participants[1]], lambda due: (torch.ones(2) for _ in due), **options)
    assert host.run({1: [Event(9.0, Kind.INVITE, 0, -1)]}, {1: []})
    [mail] = letters.posted
    assert mail[:3] == (1, 0, -1)
    assert mail.vectors[MODEL].tolist() == [0.0, 0.0]
    assert mail.size == 8


def test_goodbye_and_hello() -> None:
    pair = Pair().run(
        [
            Event(1.0, Kind.DISCONNECT, 1),
            Event(1.0, Kind.DISCONNECT, 1),  # it was silent already: nothing to forget
            Event(4.0, Kind.CONNECT, 1),
            Event(4.0, Kind.CONNECT, 1),
        ]
    )
    assert pair.diary.notes == [("disconnect", 0, 1), ("connect", 0, 1)]
    assert pair.participants[0].heard == {1: 4.0}


# --------------------------------------------------------------------------------- the real clock


class Ticks:
    """A clock on which every look takes a hundredth of a second."""

    def __init__(self) -> None:
        self._ticks = itertools.count(1)

    def __call__(self) -> float:
        return next(self._ticks) / 100


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("algorithm", ["pdmm-isvr", "ecl"])
def test_free_running_nodes_agree_on_the_optimum(algorithm: str, apart: bool) -> None:
    """Also when at the beginning nobody knows who is there."""
    found = disturbed(algorithm)
    if apart:
        for participant in found.parts[0]:
            participant.part()
    found.free_host(0).run_freely(dict.fromkeys(range(8), range(2000)), 4.0, Ticks(), seed=3)
    optimum = found.problem.optimum(dict.fromkeys(range(8), 1.0))
    assert worst_error(found.models(), optimum) < 1e-6


def test_free_running_hosts_take_turns_of_any_length() -> None:
    """Two hosts, each of which runs 50 steps while the other stands still."""
    found = disturbed("pdmm-isvr", hosts=2)
    hosts, clock = [found.free_host(0), found.free_host(1)], Ticks()
    for begin in range(0, 4000, 50):
        for part, host in zip(found.parts, hosts, strict=True):
            steps = {p.node.index: range(begin, begin + 50) for p in part}
            host.run_freely(steps, 4.0, clock, seed=3)
    optimum = found.problem.optimum(dict.fromkeys(range(8), 1.0))
    assert worst_error(found.models(), optimum) < 1e-6


def test_the_newest_mail_wins() -> None:
    pair = Pair()
    letters = [Mail(1, 0, seq, {"weights": torch.full((2,), float(seq))}, 0.0) for seq in (5, 7, 6)]
    options: dict[str, Any] = {"initial": lambda _: torch.zeros(2), "exchange": Letters(*letters)}
    host = FreeHost(pair.participants[:1], lambda due: (torch.ones(2) for _ in due), **options)
    host.run_freely({0: range(3)}, math.inf, Ticks(), seed=0)
    assert pair.diary.notes == [("receive", 0, 1, 7, [7.0, 7.0])]
    assert pair.participants[0].tally.used == 1
    assert pair.participants[0].mail == {}


def test_nobody_waits_for_somebody_who_is_not_there() -> None:
    """It does all its steps, drops the neighbour that is silent for long, and pushes on."""
    pair, letters = Pair(), Letters()
    told: list[Any] = []
    host = FreeHost(
        pair.participants[:1],
        lambda due: (torch.ones(2) for _ in due),
        initial=lambda _: torch.zeros(2),
        exchange=letters,
        silence=1.0,
        listener=lambda *event: told.append(event[1]),
    )
    host.run_freely({0: range(2000)}, 5.0, Ticks(), seed=0)
    assert pair.participants[0].tally.steps == 2000
    assert letters.patience == 0.0
    assert told.count("silent") == 1
    # 2000 steps at a chance of 1/5: 400 pushes with a deviation of 18.
    assert 330 < len(letters.posted) == told.count("send") < 470
    assert [m.seq for m in letters.posted] == sorted(m.seq for m in letters.posted)


def test_a_neighbour_who_never_comes_does_not_hold_the_model_back() -> None:
    def models(absent: bool) -> torch.Tensor:
        node = Node(0, torch.zeros(12))
        found = disturbed("ecl")
        algorithm = found.parts[0][0].algorithm
        algorithm.start(node)
        participant = Participant(node, algorithm, (1, 2) if absent else (), rate=0.05)
        participant.part()
        options: dict[str, Any] = {"initial": lambda _: torch.zeros(12), "exchange": Letters()}
        host = FreeHost([participant], lambda due: (p.weights - 1 for p, _ in due), **options)
        host.run_freely({0: range(500)}, 4.0, Ticks(), seed=0)
        return node.weights

    assert torch.equal(models(absent=True), models(absent=False))
    assert torch.allclose(models(absent=True), torch.ones(12), atol=1e-3)


def test_pushes_follow_from_the_seed_and_the_step() -> None:
    def pushes(steps: Sequence[range]) -> list[int]:
        """After how many steps each was."""
        pair, clock, found = Pair(), Ticks(), []

        class Counted(Letters):
            def post(self, mail: Mail) -> None:
                found.append(pair.participants[0].tally.steps)

        options: dict[str, Any] = {"initial": lambda _: torch.zeros(2), "exchange": Counted()}
        host = FreeHost(pair.participants[:1], lambda due: (torch.ones(2) for _ in due), **options)
        for part in steps:
            host.run_freely({0: part}, 3.0, clock, seed=1)
        return found

    assert pushes([range(60)]) == pushes([range(25), range(25, 60)])
    assert len(pushes([range(60)])) > 10


def test_a_window_that_is_done_again_is_heard() -> None:
    """A process that was killed goes on with the state before its window: what it writes then is
    newer than all that it has written, whatever its steps are called."""
    here, there, letters = Pair().participants[0], Pair().participants[1], Letters()
    before, clock = pack(here), Ticks()
    options: dict[str, Any] = {"initial": lambda _: torch.zeros(2), "exchange": letters}

    def window() -> int:
        """How many of the mails of a window its neighbour uses."""
        again = unpack(*before, here.algorithm, neighbours=(1,), weight=1.0, device="cpu")
        host = FreeHost([again], lambda due: (torch.ones(2) for _ in due), **options)
        host.run_freely({0: range(40)}, 3.0, clock, seed=1)
        mails, letters.posted = letters.posted, []
        assert len(mails) > 5
        return sum(there.accept(mail, clock()) for mail in mails)

    first = window()
    assert window() == first > 5


def test_mail_that_comes_last_is_kept_for_the_next_window() -> None:
    pair, letters = Pair(), Letters()
    options: dict[str, Any] = {"initial": lambda _: torch.zeros(2), "exchange": letters}
    host = FreeHost(pair.participants[:1], lambda due: (torch.ones(2) for _ in due), **options)

    def late() -> float:
        letters.mails = [Mail(1, 0, 9, {"weights": torch.zeros(2)}, 0.0)]
        return 1.0

    host.run_freely({0: range(1)}, math.inf, late, seed=0)
    assert list(pair.participants[0].mail) == [(1, 9)]


@pytest.mark.parametrize("duplication", [0.0, 0.5])
def test_what_is_on_its_way_when_a_window_ends_arrives_in_a_later_one(duplication: float) -> None:
    """Each mail travels up to four windows of ten steps; nothing but the host's state is kept."""
    pair, letters, clock = Pair(), Letters(), Ticks()
    participant = pair.participants[0]
    link = Conditions(delay_seconds=1.0, loss=0.2, duplication=duplication)
    arrivals: list[float] = []
    for window in range(40):
        host = FreeHost(
            [participant],
            lambda due: (torch.ones(2) for _ in due),
            initial=lambda _: torch.zeros(2),
            exchange=letters,
        )
        host.run_freely({0: range(10 * window, 10 * window + 10)}, 2.0, clock, seed=0, link=link)
        arrivals += [clock()] * (len(letters.posted) - len(arrivals))
    tally = participant.tally
    assert tally.lost > 0
    assert all(t - mail.sent > 0 for t, mail in zip(arrivals, letters.posted, strict=True))
    assert participant.late, "the last ones are on their way still"
    host.run_freely({0: range(400, 401)}, math.inf, lambda: 1e6, seed=0, link=link)
    assert participant.late == []
    arrived = {mail.seq for mail in letters.posted}
    assert len(arrived) == tally.messages - tally.lost
    assert (len(letters.posted) > len(arrived)) == (duplication > 0)
