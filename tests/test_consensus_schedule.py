"""The schedule of a decentralised run: it forgets nothing and invents nothing, has no state, keeps
its rates, and does to nodes and links what the conditions say."""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.consensus.schedule import (
    OUTAGES,
    Conditions,
    Event,
    Kind,
    Outage,
    Timetable,
    parse_outages,
)
from strategies.consensus.topologies import build_topology
from strategies.consensus.topology import Topology

PAIR = build_topology("chain", 2)
RING = build_topology("ring", 5)
STRESS = Conditions(
    step_seconds=0.1,
    speed_spread=0.5,
    delay_seconds=4.0,
    loss=0.2,
    duplication=0.3,
    one_way=True,
)


def timetable(
    topology: Topology = RING, conditions: Conditions = STRESS, **changes: Any
) -> Timetable:
    plan: dict[str, Any] = {"interval": 4, "window_steps": 20, "seed": 3, **changes}
    return Timetable(topology, conditions, **plan)


def events(table: Timetable, windows: int, *kinds: Kind) -> list[tuple[int, Event]]:
    """(node, event) of the first windows, those of `kinds` if there are any."""
    return [
        (node, event)
        for window in range(1, windows + 1)
        for node in range(table.topology.size)
        for event in table.timeline(node, window)
        if not kinds or event.kind in kinds
    ]


def of_node(table: Timetable, node: int, windows: int) -> list[Event]:
    return [event for window in range(1, windows + 1) for event in table.timeline(node, window)]


def sent(table: Timetable, windows: int, *kinds: Kind) -> set[tuple[int, int, int, float]]:
    """(sender, receiver, seq, when) of all mails, or of the SENDs alone or the LOSTs alone."""
    found = events(table, windows, *(kinds or (Kind.SEND, Kind.LOST)))
    return {(node, e.peer, e.seq, e.t) for node, e in found}


def received(table: Timetable, windows: int, kind: Kind = Kind.RECEIVE) -> list[Any]:
    """(sender, receiver, seq, sent, arrived) of all mails that have come."""
    return [(e.peer, node, e.seq, e.sent, e.t) for node, e in events(table, windows, kind)]


# ----------------------------------------------------------------------------- nothing gets lost

conditions_ = st.builds(
    Conditions,
    step_seconds=st.sampled_from([0.1, 1.0, 3.7]),
    speed_spread=st.sampled_from([0.0, 0.8]),
    delay_seconds=st.sampled_from([0.0, 1e-13, 0.7, 9.0, 60.0]),
    loss=st.sampled_from([0.0, 0.3, 1.0]),
    duplication=st.sampled_from([0.0, 0.5]),
    one_way=st.booleans(),
)
moments = st.sampled_from([0.0, 1.0, 2.5, 6.0, 8.0, 11.3, 19.0])


@st.composite
def outages_(draw: st.DrawFn, topology: Topology) -> list[Outage]:
    found = []
    for kind in draw(st.lists(st.sampled_from(OUTAGES), max_size=4)):
        first, last = sorted((draw(moments), draw(moments)))
        last = last if last > first else math.inf
        node, peer = draw(st.sampled_from(topology.edges))
        if kind == "join":
            first, last = -1.0, first
        found.append(Outage(kind, node, first, last, *([peer] if kind == "cut" else [])))
    return found


@st.composite
def makers(draw: st.DrawFn) -> Callable[[], Timetable]:
    topology = draw(st.sampled_from([PAIR, RING, build_topology("base-k", 6, degree=1)]))
    synchronous = not topology.static or draw(st.booleans())
    interval, rounds = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    return partial(
        Timetable,
        topology,
        draw(conditions_),
        interval=interval,
        window_steps=interval * rounds,
        seed=draw(st.integers(0, 99)),
        synchronous=synchronous,
        outages=draw(outages_(topology)),
    )


timetables = makers().map(lambda make: make())


@settings(max_examples=60, deadline=None)
@given(timetables, st.integers(1, 6))
def test_what_is_sent_arrives_once_and_is_in_flight_until_then(
    table: Timetable, windows: int
) -> None:
    """Each SEND of a node has its RECEIVE at the neighbour, in this window or a later one, within
    the delay; between windows it is among `in_flight` of the receiver; and nothing else is."""
    sends, come = sent(table, windows, Kind.SEND), received(table, windows)
    assert len({mail[:3] for mail in come}) == len(come)
    assert {mail[:4] for mail in come} <= sends
    most = table.conditions.delay_seconds + 1e-9  # rounding
    assert all(0 <= t - when <= most for _, _, _, when, t in come)
    arrival = {mail[:3]: mail[4] for mail in come}
    for window in range(1, windows + 1):
        end = window * table.window_seconds
        waiting = {
            (s, r, seq)
            for s, r, seq, when in sends
            if when <= end < arrival.get((s, r, seq), math.inf)
        }
        for node in range(table.topology.size):
            expected = {(s, seq) for s, r, seq in waiting if r == node}
            flying = table.in_flight(node, window)
            assert set(flying) == expected
            assert len(flying) == len(expected)


@settings(max_examples=40, deadline=None)
@given(timetables, st.integers(1, 5))
def test_timelines_are_in_order_within_their_window(table: Timetable, windows: int) -> None:
    for window in range(1, windows + 1):
        begin = (window - 1) * table.window_seconds if window > 1 else -math.inf
        for node in range(table.topology.size):
            timeline = table.timeline(node, window)
            assert all(begin < event.t <= window * table.window_seconds for event in timeline)
            assert timeline == sorted(timeline)


@settings(max_examples=40, deadline=None)
@given(timetables, st.integers(1, 5))
def test_mails_of_an_edge_are_numbered_as_they_are_sent(table: Timetable, windows: int) -> None:
    mails = sorted((s, r, when, seq) for s, r, seq, when in sent(table, windows))
    for (s, r, _, seq), (s_, r_, _, next_) in pairwise(mails):
        assert (s, r) != (s_, r_) or seq < next_


@settings(max_examples=30, deadline=None)
@given(makers(), st.randoms(use_true_random=False))
def test_the_schedule_has_no_state(make: Callable[[], Timetable], order: random.Random) -> None:
    """Timelines are the same in whatever order they are asked for, and by whom."""
    table, twin = make(), make()
    places = [(node, window) for node in range(table.topology.size) for window in range(1, 5)]
    expected = {place: (table.timeline(*place), table.in_flight(*place)) for place in places}
    order.shuffle(places)
    for place in places:
        assert (twin.timeline(*place), twin.in_flight(*place)) == expected[place]


def test_seeds_differ() -> None:
    assert events(timetable(seed=1), 2) != events(timetable(seed=2), 2)


# ------------------------------------------------------------------------------------------ rates


def rate_test(found: int, expected: float, deviation: float) -> None:
    """Four standard deviations: the seeds are fixed, so this fails for a wrong rate alone."""
    assert abs(found - expected) < 4 * deviation, (found, expected)


def test_an_edge_is_a_poisson_clock_of_its_interval() -> None:
    """2000 windows of 20 steps at K = 8: 5000 exchanges expected, and gaps that are exponential:
    a share e^-1 of them is longer than the mean. 2.5 swaps a window have a variance of 2.5."""
    table = timetable(PAIR, Conditions(step_seconds=0.5), interval=8)
    sends = [e for e in of_node(table, 0, 2000) if e.kind is Kind.SEND]
    rate_test(len(sends), 5000, math.sqrt(5000))
    gaps = np.diff([e.t for e in sends])
    assert abs(gaps.mean() / 4.0 - 1) < 0.06
    rate_test(int((gaps > 4.0).sum()), len(gaps) / math.e, math.sqrt(len(gaps) / math.e))
    per_window = Counter(e.seq >> 32 for e in sends)
    counts = np.array([per_window[window] for window in range(1, 2001)])
    assert 0.85 < counts.var() / 2.5 < 1.15


def test_both_ends_swap_at_one_moment_and_edges_do_so_independently() -> None:
    mails = {(s, r, t) for s, r, _, t in sent(timetable(RING, Conditions()), 20)}
    assert mails == {(r, s, t) for s, r, t in mails}
    moments = Counter(t for *_, t in mails)
    assert set(moments.values()) == {2}


def test_the_speed_of_a_node_does_not_change_its_exchanges() -> None:
    slow = sent(timetable(conditions=Conditions(speed_spread=0.9)), 10)
    assert slow == sent(timetable(conditions=Conditions()), 10)


def test_chances_of_loss_duplication_and_pushes() -> None:
    """About 4000 swaps, two mails each."""
    windows = 800
    swaps = len(sent(timetable(PAIR, Conditions()), windows)) // 2

    def count(kind: Kind, **conditions: Any) -> int:
        return len(events(timetable(PAIR, Conditions(**conditions)), windows, kind))

    rate_test(count(Kind.LOST, loss=0.3), 0.6 * swaps, math.sqrt(2 * swaps * 0.21))
    rate_test(count(Kind.DUPLICATE, duplication=0.3), 0.6 * swaps, math.sqrt(2 * swaps * 0.21))
    assert count(Kind.LOST) == count(Kind.DUPLICATE) == 0
    assert count(Kind.LOST, loss=1.0) == 2 * swaps
    pushes = sent(timetable(PAIR, Conditions(one_way=True)), windows)
    assert len(pushes) == swaps
    rate_test(sum(s == 0 for s, *_ in pushes), swaps / 2, math.sqrt(swaps / 4))


def test_delays_are_uniform_so_mails_overtake() -> None:
    table = timetable(PAIR, Conditions(delay_seconds=12.0))
    come = received(table, 400)
    delays = np.array([t - when for *_, when, t in come])
    assert 0 <= delays.min() < 0.1 < 11.9 < delays.max() <= 12
    assert abs(delays.mean() - 6) < 0.3
    to_0 = [mail for mail in come if mail[1] == 0]
    overtaken = [a for a, b in pairwise(to_0) if a[2] > b[2]]
    assert len(overtaken) > 100


def test_a_duplicate_comes_after_what_it_repeats() -> None:
    table = timetable(PAIR, Conditions(duplication=0.5, delay_seconds=12.0))
    first = {mail[:3]: mail[4] for mail in received(table, 100)}
    again = received(table, 100, Kind.DUPLICATE)
    assert again
    assert all(first[mail[:3]] <= mail[4] <= mail[3] + 12 for mail in again)


# --------------------------------------------------------- no condition changes another one's draw


def test_loss_duplication_and_pushes_only_take_away_or_add() -> None:
    plain = Conditions(delay_seconds=3.0)
    base, base_come = sent(timetable(conditions=plain), 5), received(timetable(conditions=plain), 5)

    lossy = timetable(conditions=Conditions(delay_seconds=3.0, loss=0.4))
    assert sent(lossy, 5) == base
    assert set(received(lossy, 5)) < set(base_come)

    twice = timetable(conditions=Conditions(delay_seconds=3.0, duplication=0.4))
    assert sent(twice, 5) == base
    repeated = {mail[:3] for mail in received(twice, 6, Kind.DUPLICATE)}
    once = [mail for mail in received(twice, 5) if mail[:3] not in repeated]
    assert set(once) < set(base_come)

    pushes = timetable(conditions=Conditions(delay_seconds=3.0, one_way=True))
    assert sent(pushes, 5) < base
    assert set(received(pushes, 5)) < set(base_come)

    late = timetable(conditions=Conditions(delay_seconds=6.0))
    assert sent(late, 5) == base


def test_an_outage_changes_nothing_for_those_it_does_not_concern() -> None:
    """Nodes 2 and 3 are no neighbours of 0 on the ring of five."""
    quiet, cut = timetable(), timetable(outages=[Outage("cut", 0, 1.0, 4.0, 1)])
    crashed = timetable(outages=[Outage("pause", 0, 1.0, 4.0)])
    for node in (2, 3):
        assert of_node(crashed, node, 4) == of_node(quiet, node, 4)
        assert of_node(cut, node, 4) == of_node(quiet, node, 4)
    assert of_node(cut, 4, 4) == of_node(quiet, 4, 4)


# ------------------------------------------------------------------------------ order and speeds


def test_at_one_moment_nodes_step_then_send_then_receive_then_mix() -> None:
    table = timetable(conditions=Conditions(), synchronous=True)
    for node in range(5):
        for window in (1, 2, 3):
            kinds = [e.kind for e in table.timeline(node, window)]
            a_round = [Kind.STEP] * 4 + [Kind.SEND] * 2 + [Kind.RECEIVE] * 2 + [Kind.MIX]
            assert kinds == 5 * a_round
    at_once = timetable(conditions=Conditions())
    for node, event in events(at_once, 3, Kind.RECEIVE):
        sends = [e for e in of_node(at_once, node, 3) if e.kind is Kind.SEND and e.t == event.t]
        assert [e.peer for e in sends] == [event.peer]
        assert sends[0] < event  # formed before the other's mail was used


@pytest.mark.parametrize("spread", [0.0, 0.8])
def test_steps_are_numbered_without_a_gap(spread: float) -> None:
    table = timetable(conditions=Conditions(step_seconds=0.1, speed_spread=spread), window_steps=7)
    for node in range(5):
        steps = [e for e in of_node(table, node, 30) if e.kind is Kind.STEP]
        assert [e.seq for e in steps] == list(range(len(steps)))
        lengths = np.diff([0.0, *(e.t for e in steps)])
        assert np.allclose(lengths, lengths[0], rtol=1e-6)
        assert 0 <= 30 * 0.7 - steps[-1].t < lengths[0] + 1e-9
    if not spread:
        assert all(
            sum(e.kind is Kind.STEP for e in table.timeline(n, w)) == 7
            for n in range(5)
            for w in range(1, 31)
        )


def test_speeds_are_log_normal() -> None:
    """Of 400 nodes the logarithm of a step's length has the mean 0 and the deviation 0.5; 1000
    seconds tell it to a thousandth."""
    ring = build_topology("ring", 400)
    table = timetable(ring, Conditions(speed_spread=0.5), interval=1e6, window_steps=1000)
    counts = [sum(e.kind is Kind.STEP for e in table.timeline(n, 1)) for n in range(400)]
    logs = -np.log(np.array(counts) / 1000)
    assert abs(logs.mean()) < 4 * 0.5 / 20
    assert 0.43 < logs.std() < 0.57


def test_somebody_alone_does_the_steps_of_speed_1() -> None:
    table = timetable(conditions=Conditions(step_seconds=0.1, speed_spread=0.8))
    steps = [e for window in (1, 2, 3) for e in table.lone(window)]
    assert {e.kind for e in steps} == {Kind.STEP}
    assert [e.seq for e in steps] == list(range(60))
    assert np.allclose([e.t for e in steps], 0.1 * np.arange(1, 61))


def test_nobody_exchanges_with_an_infinite_interval() -> None:
    kinds = {e.kind for _, e in events(timetable(interval=math.inf), 5)}
    assert kinds == {Kind.STEP}


# ----------------------------------------------------------------------------- synchronous rounds


@pytest.mark.parametrize("spread", [0.0, 0.5])
@pytest.mark.parametrize("delay", [0.0, 0.07, 3.0])
@pytest.mark.parametrize("graph", ["ring", "one-peer-exponential", "base-k"])
def test_rounds(graph: str, delay: float, spread: float) -> None:
    """Everybody does K steps, swaps with the round's neighbours and mixes. 0.1 is no binary number:
    summed up in two ways its multiples differ in the last bit, over 400 rounds often."""
    topology = build_topology(graph, 6, degree=2)
    table = timetable(
        topology,
        Conditions(step_seconds=0.1, speed_spread=spread, delay_seconds=delay),
        interval=6,
        window_steps=60,
        synchronous=True,
    )
    for node in range(6):
        timeline = of_node(table, node, 40)
        ends = [k + 1 for k, e in enumerate(timeline) if e.kind is Kind.MIX]
        assert len(ends) == 400
        assert ends[-1] == len(timeline)
        for round_, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            part = timeline[begin:end]
            peers = [j for j in range(6) if topology.weight(round_, node, j)]
            assert [e.seq for e in part[:6]] == list(range(6 * round_, 6 * round_ + 6))
            assert {e.kind for e in part[:6]} == {Kind.STEP}
            sends = part[6 : 6 + len(peers)]
            assert [(e.kind, e.peer) for e in sends] == [(Kind.SEND, j) for j in peers]
            receives = part[6 + len(peers) : -1]
            assert {e.kind for e in receives} <= {Kind.RECEIVE}
            assert sorted(e.peer for e in receives) == peers
            assert part[-1].seq == round_


def test_a_round_waits_for_the_slowest_and_for_the_mail() -> None:
    table = timetable(RING, STRESS, synchronous=True)
    slowest = max(
        np.diff([e.t for e in table.timeline(n, 1) if e.kind is Kind.STEP])[0] for n in range(5)
    )
    assert table.window_seconds == pytest.approx(5 * (4 * slowest + 4.0))


def test_mail_of_a_round_can_be_lost_and_come_twice() -> None:
    table = timetable(
        RING, Conditions(delay_seconds=2.0, loss=0.5, duplication=0.5), synchronous=True
    )
    found = Counter(e.kind for _, e in events(table, 20))
    assert found[Kind.SEND] + found[Kind.LOST] == 20 * 5 * 10
    rate_test(found[Kind.LOST], 500, math.sqrt(250))
    assert found[Kind.RECEIVE] == found[Kind.SEND]
    rate_test(found[Kind.DUPLICATE], found[Kind.SEND] / 2, math.sqrt(found[Kind.SEND] / 4))


# ---------------------------------------------------------------------------------------- outages


def around(table: Timetable, node: int, *kinds: Kind) -> list[tuple[float, Kind, int]]:
    """(when, what, whom) of the given kinds, in the first 10 windows."""
    return [(e.t, e.kind, e.peer) for e in of_node(table, node, 10) if e.kind in kinds]


CHANGES = (
    Kind.DOWN, Kind.UP, Kind.RESTART, Kind.INVITE, Kind.ADOPT, Kind.DISCONNECT, Kind.CONNECT,
)  # fmt: skip


def activity(table: Timetable, node: int) -> Iterable[float]:
    return [e.t for e in of_node(table, node, 10) if e.kind not in CHANGES]


def test_who_pauses_comes_back_as_it_was() -> None:
    table = timetable(outages=[Outage("pause", 2, 3.0, 9.0)])
    assert around(table, 2, *CHANGES) == [(3.0, Kind.DOWN, -1), (9.0, Kind.UP, -1)]
    assert not any(3.0 < t <= 9.0 for t in activity(table, 2))
    assert any(t <= 3.0 for t in activity(table, 2))
    assert any(t > 9.0 for t in activity(table, 2))
    assert around(table, 1, *CHANGES) == []  # nobody is told


def test_mail_to_who_is_off_is_lost() -> None:
    table = timetable(conditions=Conditions(step_seconds=0.1), outages=[Outage("pause", 2, 3, 9)])
    quiet = timetable(conditions=Conditions(step_seconds=0.1))
    lost = sent(table, 10, Kind.LOST)
    assert {r for _, r, _, _ in lost} == {2}
    assert lost == {m for m in sent(quiet, 10) if m[1] == 2 and 3 < m[3] <= 9}


def test_mail_that_would_arrive_in_an_outage_is_lost() -> None:
    """With a delay of 4 s, some of what is sent before it."""
    table = timetable(outages=[Outage("pause", 2, 3.0, 9.0)])
    before = {m for m in sent(table, 10, Kind.LOST) - sent(timetable(), 10, Kind.LOST) if m[3] <= 3}
    assert before
    assert all(receiver == 2 for _, receiver, _, _ in before)


def test_who_crashes_comes_back_with_a_neighbours_model() -> None:
    table = timetable(outages=[Outage("crash", 2, 3.0, 9.0)])
    assert around(table, 2, *CHANGES) == [
        (3.0, Kind.DOWN, -1),
        (9.0, Kind.RESTART, -1),
        (9.0, Kind.ADOPT, 1),
    ]
    assert around(table, 1, *CHANGES) == [(9.0, Kind.INVITE, 2)]
    assert around(table, 3, *CHANGES) == []
    [invite] = [e for e in of_node(table, 1, 10) if e.kind is Kind.INVITE]
    [adopt] = [e for e in of_node(table, 2, 10) if e.kind is Kind.ADOPT]
    assert adopt.seq == invite.seq < 0  # no number of a mail


def test_who_leaves_says_goodbye_and_hello() -> None:
    table = timetable(outages=[Outage("leave", 2, 3.0, 9.0)])
    assert around(table, 2, *CHANGES)[-1] == (9.0, Kind.ADOPT, 1)
    assert around(table, 1, *CHANGES) == [
        (3.0, Kind.DISCONNECT, 2),
        (9.0, Kind.INVITE, 2),
        (9.0, Kind.CONNECT, 2),
    ]
    assert around(table, 3, *CHANGES) == [(3.0, Kind.DISCONNECT, 2), (9.0, Kind.CONNECT, 2)]


def test_who_leaves_for_good() -> None:
    table = timetable(outages=[Outage("leave", 2, 3.0, math.inf)])
    assert around(table, 2, *CHANGES) == [(3.0, Kind.DOWN, -1)]
    assert max(activity(table, 2)) <= 3.0
    assert around(table, 3, *CHANGES) == [(3.0, Kind.DISCONNECT, 2)]
    assert not table.present(2, 1e9)


@pytest.mark.parametrize("when", [0.0, 9.0])
def test_who_joins_was_not_there_before(when: float) -> None:
    table = timetable(outages=[Outage("join", 2, -1.0, when)])
    assert min(activity(table, 2)) > when
    assert around(table, 2, *CHANGES) == [
        (-1.0, Kind.DOWN, -1),
        (when, Kind.RESTART, -1),
        (when, Kind.ADOPT, 1),
    ]
    assert around(table, 3, *CHANGES) == [(-1.0, Kind.DISCONNECT, 2), (when, Kind.CONNECT, 2)]


def test_an_outage_from_the_start_or_at_the_border_of_a_window_happens_once() -> None:
    """A window lasts 2 seconds."""
    table = timetable(outages=[Outage("crash", 2, 0.0, 2.0), Outage("crash", 3, 2.0, 4.0)])
    assert [kind for _, kind, _ in around(table, 2, *CHANGES)].count(Kind.DOWN) == 1
    assert Kind.RESTART in [e.kind for e in table.timeline(2, 1)]
    assert Kind.RESTART not in [e.kind for e in table.timeline(2, 2)]
    assert Kind.DOWN in [e.kind for e in table.timeline(3, 1)]


def test_the_model_comes_from_a_neighbour_that_can_be_reached() -> None:
    """Of the neighbours 1 and 3 of node 2, 1 is off, or the link to it is cut."""
    back = Outage("crash", 2, 3.0, 9.0)
    for trouble in (Outage("pause", 1, 5.0, 11.0), Outage("cut", 1, 5.0, 11.0, 2)):
        table = timetable(outages=[back, trouble])
        assert (9.0, Kind.ADOPT, 3) in around(table, 2, Kind.ADOPT)
        assert around(table, 3, Kind.INVITE) == [(9.0, Kind.INVITE, 2)]
        assert around(table, 1, Kind.INVITE) == []
    nobody = [back, Outage("pause", 1, 5.0, 11.0), Outage("pause", 3, 5.0, 11.0)]
    assert around(timetable(outages=nobody), 2, Kind.ADOPT) == []
    assert around(timetable(outages=nobody), 2, Kind.DISCONNECT) == [
        (9.0, Kind.DISCONNECT, 1),
        (9.0, Kind.DISCONNECT, 3),
    ]


def test_nothing_passes_a_link_that_is_cut() -> None:
    table = timetable(
        conditions=Conditions(), window_steps=20, outages=[Outage("cut", 1, 9, 50, 2)]
    )
    quiet = timetable(conditions=Conditions(), window_steps=20)
    assert sent(table, 5) == sent(quiet, 5)
    lost = sent(table, 5, Kind.LOST)
    assert lost == {m for m in sent(quiet, 5) if {m[0], m[1]} == {1, 2} and 9 < m[3] <= 50}
    assert {m[0] for m in lost} == {1, 2}


# ----------------------------------------------------------------------------------------- errors


def test_outages_as_text() -> None:
    text = "crash:3@200-400, cut:1-0@100.5-300,leave:4@500, join:2@300,, pause:0@0-7 ,"
    assert parse_outages(text, RING) == (
        Outage("crash", 3, 200, 400),
        Outage("cut", 1, 100.5, 300, 0),
        Outage("leave", 4, 500, math.inf),
        Outage("join", 2, -1, 300),
        Outage("pause", 0, 0, 7),
    )
    assert parse_outages("", RING) == ()
    again = parse_outages("crash:1@3-5, pause:1@6-7, cut:1-2@4-8, cut:1-2@5-9", RING)
    assert [outage.start for outage in again] == [3, 6, 4, 5]


FORM = "must look like crash:3@200-400, cut:0-1@100-300, leave:5@500 or join:7@300"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crash", f"'crash' {FORM}"),
        ("crash:3", f"'crash:3' {FORM}"),
        ("crash:x@3-4", f"'crash:x@3-4' {FORM}"),
        ("crash:3@soon", f"'crash:3@soon' {FORM}"),
        ("crash:1-2@3-4", f"'crash:1-2@3-4' {FORM}"),
        ("cut:1@3-4", f"'cut:1@3-4' {FORM}"),
        ("join:1@3-4", f"'join:1@3-4' {FORM}"),
        (
            "leave:1@2, crsh:3@3-4",
            "'crsh:3@3-4': 'crsh' is unknown; choose one of: crash, cut, join",
        ),
        ("crash:3@4-4", "'crash:3@4-4': it must end after it has begun"),
        ("crash:3@5-4", "'crash:3@5-4': it must end after it has begun"),
        ("crash:3@nan-4", "'crash:3@nan-4': it must end after it has begun"),
        ("cut:0-2@3-4", "'cut:0-2@3-4': ring has no link 0-2"),
        ("pause:5@3-4", "'pause:5@3-4': the nodes are 0 to 4"),
        ("pause:1@3-9,crash:1@5-6", "node 1 goes at 5 s, but is off until 9 s already"),
        ("join:2@9, leave:2@8", "node 2 goes at 8 s, but is off until 9 s already"),
        ("crash:1@3-5,crash:1@5-6", "node 1 goes at 5 s, but is off until 5 s already"),
        ("leave:1@3,crash:1@5-6", "node 1 goes at 5 s, but is off until inf s already"),
    ],
)
def test_outages_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^" + message.replace("(", r"\(")):
        parse_outages(text, RING)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interval": 0.5}, "interval=0.5 must be at least 1 local step"),
        ({"interval": math.nan}, "interval=nan must be at least 1 local step"),
        (
            {"interval": 2.5, "synchronous": True},
            "interval=2.5 and window=20; take e.g. interval=2 and window=20",
        ),
        (
            {"interval": 3, "synchronous": True},
            "interval=3 and window=20; take e.g. interval=3 and window=21",
        ),
        ({"topology": build_topology("base-k", 6)}, "base-k is a sequence of graphs"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timetable(**changes)
