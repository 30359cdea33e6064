"""Hostile devices: whatever one sends under its own name, it hurts nobody but itself.

A rogue with a valid certificate of its own, over a real router with mutual TLS; and, faster, what
its bytes do to whoever reads them, with Hypothesis.
"""

import contextlib
import copy
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_app.config import resolve
from fl_app.record.run_dir import RunDirectory
from fl_app.settings import consensus_run_of, nodes_run_of
from strategies.carriers.checks import expected_vectors
from strategies.carriers.zenoh import ZenohExchange
from strategies.checks import last_line, updates_of
from strategies.consensus.algorithms import Settings, make_algorithm
from strategies.consensus.answers import Answer, read_report
from strategies.consensus.fleet import Fleet
from strategies.consensus.free_host import FreeHost
from strategies.consensus.node import Node
from strategies.consensus.participant import Mail, Participant
from strategies.consensus.settings import NodesRun
from strategies.consensus.shared import nodes_of
from strategies.consensus.strategy import Consensus
from strategies.consensus.topologies import build_topology
from strategies.contracts.convex import SETTINGS, quadratics, worst_error
from strategies.errors import DataError, DivergedError, EdgeFlError
from strategies.fingerprint import fingerprint
from strategies.link import keys
from strategies.link.connection import Connection
from strategies.link.device_session import DeviceSession
from strategies.link.records import content_of, parts_of
from strategies.link.sessions import SessionGrid
from strategies.link.wire import encode
from strategies.messages.codec import records_of
from strategies.messages.windows import (
    NEVER,
    NOBODY,
    Heard,
    MailHead,
    Moment,
    NodeNumbers,
    OfClass,
    Refused,
    RunOrder,
    WindowReport,
    WindowTerms,
)
from strategies.roster import SuperNode, prepare_hosts
from strategies.schedule import Job
from strategies.site import SERVER, Site
from tests.certificates import deployment
from tests.fake_grid import FakeGrid

NAMES = {0: "ann", 1: "bob", 2: "eve"}
HONEST, ROGUE = ("ann", "bob"), "eve"
RING = build_topology("ring", 3)
NEIGHBOURS = {NAMES[i]: [NAMES[j] for j in RING.neighbours[i]] for i in NAMES}
PATIENCE = 60.0
FLOOD = 3000


def wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --------------------------------------------------------------------- over a real router


class Server:
    """Sessions with three devices, of which the test plays all; one of them is hostile."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        pytest.importorskip("zenoh")
        self.said: list[str] = []
        self.sites: dict[str, Site] = deployment(root / "sites", *NAMES.values())
        flower = FakeGrid({}, node_configs=[{"name": ROGUE}])
        flower.contexts = {}  # nobody is to be invited
        self.grid = SessionGrid(
            flower,
            self.sites[SERVER],
            tuple(NAMES.values()),
            NEIGHBOURS,
            patience=PATIENCE,
            limit=1 << 20,
            log=root / "router.log",
            say=self.said.append,
        )
        stack.callback(self.grid.close)
        self.run = self.grid.token
        self.connections = {name: Connection(self.sites[name]) for name in NAMES.values()}
        for connection in self.connections.values():
            stack.callback(connection.close)
        wait(lambda: all(c.connected for c in self.connections.values()))
        facts = {"fingerprint": fingerprint(), "node": 7}
        self.lines = {
            name: DeviceSession(self.connections[name], self.sites[name], self.run, facts, PATIENCE)
            for name in HONEST
        }
        for line in self.lines.values():
            stack.callback(line.close)
        wait(lambda: self.grid.here() == list(HONEST))

    def send(self, payload: bytes, *names: str) -> None:
        """As the rogue: `payload` under each key; waits where its own outbox is full."""
        for key in names:
            wait(lambda k=key: self.connections[ROGUE].publish(k, payload, urgent=True))

    def serve(self, name: str) -> None:
        """An order to an honest device, and its answer."""
        node = 1 + list(NAMES.values()).index(name)
        message = Message(RecordDict({"config": ConfigRecord({"x": 1})}), node, "train.local")
        [message_id] = self.grid.push_messages([message])
        order = self.lines[name].next()
        assert order is not None
        header = {"config": {"config": {"y": 2}}, "metrics": {}, "arrays": []}
        self.lines[name].answer(order, header, {})
        found: list[Message] = []
        wait(lambda: bool(found.extend(self.grid.pull_messages([message_id])) or found))
        assert dict(found[0].content["config"]) == {"y": 2}  # type: ignore[call-overload]

    def refused(self, kind: str) -> int:
        return sum(n for what, n in self.grid.refused.items() if what.startswith(kind))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("cryptography")
    with ExitStack() as stack:
        yield Server(tmp_path_factory.mktemp("server"), stack)


def test_orders_are_served_beside_a_flood(server: Server) -> None:
    """Of beats, replies and questions that nobody asked for, and what no device may send."""
    state = {"session": "s", "newest": 0, "answered": 0, "told": 0, "fingerprint": 1}
    beat = encode("beat", state, {})
    own = keys.beat(server.run, ROGUE), keys.reply(server.run, ROGUE)
    others = (
        keys.beat(server.run, "ann"),
        keys.reply(server.run, "ann"),
        keys.order(server.run, "ann"),
        keys.NOW,
    )
    want = encode("want", {"name": "order/1", "begin": 0}, {})

    def rage() -> None:
        for _ in range(FLOOD):
            server.send(beat, *own, *others)
            server.send(want, keys.want(server.run, ROGUE), keys.want(server.run, "ann"))

    flood = threading.Thread(target=rage, daemon=True)
    flood.start()
    served = 0
    while flood.is_alive() or not served:
        for name in HONEST:
            server.serve(name)
        served += 1
    flood.join()
    server.send(b"the last", own[1])
    wait(lambda: server.grid.refused["reply: unasked"] > FLOOD)
    assert server.grid.here() == list(HONEST), "beats of other code are no sign of life"
    assert server.refused("beat") > FLOOD / 2
    assert [line.over for line in server.lines.values()] == ["", ""]
    assert all(line._orders.empty() for line in server.lines.values())
    assert server.grid._connection.failed == 0
    assert "ann" not in server.grid.pieces.sent, "nobody can ask for it in its name"
    assert len([line for line in server.said if line.startswith(ROGUE)]) <= 4
    assert not server.grid._done
    for name in HONEST:
        server.serve(name)


def test_training_goes_on_beside_a_flood_of_bad_mail(server: Server) -> None:
    """Two nodes agree on the optimum of their own data; the third sends what is no mail, and none
    of it is used, kept or waited for."""
    problem, rate = quadratics(3, parameters=10, condition=5.0, seed=3), 0.2
    algorithm = make_algorithm("ecl", Settings(**SETTINGS), RING)

    def lengths(_: Mail) -> dict[str, tuple[int, torch.dtype]]:
        return {"reflection": (10, torch.float64)}

    def gradients(due: Any) -> list[torch.Tensor]:
        time.sleep(0.001)  # a step takes longer than a mail
        return list(problem.gradients(due))

    began, over = time.monotonic(), threading.Event()
    participants, exchanges, threads = [], [], []
    for index, name in enumerate(HONEST):
        connection = server.connections[name]
        own, neighbours = {index: name}, {index: RING.neighbours[index]}
        exchange = ZenohExchange(
            connection, server.run, own, NAMES, lengths, neighbours, parameters=10
        )
        node = Node(index, torch.zeros(10, dtype=torch.float64))
        algorithm.start(node)
        heard = dict.fromkeys(node.links, 0.0)
        participant = Participant(node, algorithm, RING.neighbours[index], 1.0, rate, heard=heard)
        host = FreeHost(
            [participant],
            gradients,
            initial=lambda _: torch.zeros(10, dtype=torch.float64),
            exchange=exchange,
            silence=1.0,
        )
        run = ({index: range(100_000)}, 4.0, lambda: time.monotonic() - began, 0)
        options = {"over": over.is_set}
        participants.append(participant)
        exchanges.append(exchange)
        threads.append(threading.Thread(target=host.run_freely, args=run, kwargs=options))
    for thread in threads:
        thread.start()
    rogue = server.connections[ROGUE]
    bad = list(bad_mails(server.run))
    for _ in range(FLOOD // len(bad)):
        for key, payload in bad:
            wait(lambda k=key, p=payload: rogue.publish(k, p, urgent=True))
    optimum = problem.optimum({0: 1.0, 1: 1.0, 2: 0.0})
    wait(lambda: all(ROGUE_NODE not in p.node.links for p in participants))
    wait(lambda: all(p.tally.used > 50 for p in participants))
    wait(lambda: worst_error([p.node.weights for p in participants], optimum) < 1e-3)
    wait(lambda: len(exchanges[0].refused) >= 6)
    over.set()
    for thread in threads:
        thread.join()
    for exchange in exchanges:
        exchange.close()
        assert len(exchange._boxes) <= 2
    assert set(exchanges[0].refused) == {
        "truncated", "bad magic", "wrong kind", "wrong run", "wrong sender", "too long",
        "not finite", "wrong shape", "bad arrays", "bad header", "no time",
    }  # fmt: skip
    assert all(ROGUE_NODE not in p.received for p in participants)
    assert server.connections["ann"].failed == 0


def fleet_of(server: Server, **changes: Any) -> Fleet:
    """A consensus run on the server's devices."""
    return fleet_with(server, nodes_with(changes), lambda _: {}, PARAMETERS)


def nodes_with(changes: dict[str, Any]) -> NodesRun:
    values = {"mode": "consensus", "clock": "real", "participants": 3, "consensus.references": ""}
    return nodes_run_of(resolve(values | changes))


def fleet_with(
    server: Server, nodes: NodesRun, lengths: Callable[[Mail], Any], parameters: int
) -> Fleet:
    return Fleet(
        nodes,
        RING,
        server.grid,
        [SuperNode(node + 1, name, node) for node, name in NAMES.items()],
        first=1,
        order=RunOrder("", "", "", 0.0),
        resources=contextlib.ExitStack(),
        engine={},
        lengths=lengths,
        parameters=parameters,
    )


def fleet_at(server: Server, windows: Sequence[int], **changes: Any) -> Fleet:
    """Whose devices have come to these windows."""
    fleet = fleet_of(server, **changes)
    for state, window in zip(fleet._states, windows, strict=True):
        state.window = window
    return fleet


@pytest.mark.parametrize(
    ("carrier", "windows", "held"),
    [
        # (rounds = 45)
        ("auto", (1, 1, 3), [False, False, True]),
        ("auto", (1, 1, 2), [False, False, False]),
        ("auto", (1, 9, 9), [False, False, False]),  # most hurry the slow one instead
        ("auto", (45, 45, 46), [False, False, True]),  # it would settle alone
        ("auto", (45, 46, 46), [False, False, False]),
        ("grid", (45, 46, 46), [False, True, True]),  # nobody waits there within a window
        ("grid", (46, 46, 47), [False, False, True]),
    ],
)
def test_a_fast_minority_waits_for_most_of_the_others(
    carrier: str, windows: tuple[int, ...], held: list[bool], server: Server
) -> None:
    fleet = fleet_at(server, windows, **{"consensus.carrier": carrier, "num-server-rounds": 45})
    going = {state.number for state in fleet._may_begin(fleet._states)}
    assert [state.number not in going for state in fleet._states] == held


def test_a_run_whose_devices_all_fail_for_good_ends(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To try them again and again is no work."""
    fleet = fleet_of(server, **{"round-timeout": 0.5})
    monkeypatch.setattr(fleet, "_is_out", lambda state: False)
    fleet._send = lambda *_: str(next(numbers))  # type: ignore[method-assign]
    numbers = itertools.count()

    def terms(window: int) -> WindowTerms:
        return WindowTerms(window, 0.1, 0, False, 0, [0] * 3, 0.0)

    for state in fleet._states:
        state.failures = 2
    time.sleep(0.6)
    fleet.dispatch(1, terms)  # the last try that counts
    fleet._under_way.clear()
    for state in fleet._states:
        state.failures = 3
    fleet.dispatch(1, terms)
    fleet._under_way.clear()
    time.sleep(0.6)
    with pytest.raises(EdgeFlError, match="no device could work"):
        fleet.dispatch(1, terms)


def test_devices_have_no_ray_to_wait_for(server: Server) -> None:
    with pytest.raises(EdgeFlError, match="carrier='sockets' is for simulations"):
        fleet_of(server, **{"consensus.carrier": "sockets"})


@pytest.mark.parametrize(
    ("changes", "carried"),
    [
        ({}, False),
        ({"consensus.carrier": "zenoh"}, False),
        ({"consensus.settle": 0}, False),
        ({"mail-precision": "int8"}, False),  # settling sends whole models
        ({"mail-precision": "int8", "consensus.settle": 0}, True),
        ({"consensus.algorithm": "c-ecl", "consensus.keep": 0.1, "consensus.settle": 0}, True),
        ({"consensus.algorithm": "c-ecl", "consensus.keep": 0.1}, False),
        ({"consensus.carrier": "grid"}, True),
    ],
)
def test_mail_that_is_too_long_for_the_router_is_told_before_the_run(
    server: Server, changes: dict[str, Any], carried: bool
) -> None:
    """It would be dropped, mail by mail, without a word; and each way out is one."""
    parameters, nodes = 17_000_000, nodes_with(changes)  # 65 MiB
    algorithm = nodes_of(nodes, "")[1]

    def made() -> Fleet:
        lengths = partial(expected_vectors, algorithm=algorithm, parameters=parameters)
        return fleet_with(server, nodes, lengths, parameters)

    if carried:
        assert made().carrier == changes.get("consensus.carrier", "zenoh")
    else:
        with pytest.raises(EdgeFlError, match="has 65 MiB, and the mail router takes 64"):
            made()


def test_of_the_mail_for_a_device_that_keeps_failing_the_newest_is_kept(server: Server) -> None:
    """Each try would add to it, in the server's memory and on the way."""
    fleet, mail = fleet_of(server), Mail(0, 2, 1, {})
    waiting: list[Mail] = []
    for seq in range(1, 100):
        waiting = fleet._undone([*waiting, mail._replace(seq=seq), mail._replace(sender=1, seq=1)])
    assert [(each.sender, each.seq) for each in waiting] == [(0, 99), (1, 1)]


def test_who_claims_to_be_done_at_once_hurries_nobody(server: Server) -> None:
    """A window is over for those who work on it when half of all have done it."""
    facts = {"fingerprint": fingerprint(), "node": 9}
    rogue = DeviceSession(
        server.connections[ROGUE], server.sites[ROGUE], server.run, facts, PATIENCE
    )
    lines = server.lines | {ROGUE: rogue}
    wait(lambda: len(server.grid.here()) == 3)
    fleet = fleet_of(server)

    def terms(window: int) -> WindowTerms:
        return WindowTerms(window, 0.1, 0, False, 0, [0] * 3, 0.0)

    def work(name: str, last: int) -> int:
        """A window of one device; which one it was. last: to be given out."""
        fleet.dispatch(last, terms)
        order = lines[name].next()
        assert order is not None
        node = list(NAMES.values()).index(name)
        report = WindowReport(
            True, 0, 1.0, [], {}, [], [NUMBERS._replace(node=node)], total=REPORT.total
        )
        lines[name].answer(order, *parts_of(records_of(report)))
        found: list[Answer] = []
        wait(lambda: bool(found.extend(fleet.collect()[0]) or found))
        return found[0].window

    assert [work(ROGUE, window) for window in (1, 2)] == [1, 2]
    assert server.grid._window == 1
    # Nor is it let further ahead: windows are the clock of the step sizes.
    fleet.dispatch(3, terms)
    assert {state.host.name for state in fleet._under_way.values()} == {"ann", "bob"}
    assert work("ann", 1) == 1
    wait(lambda: server.lines["bob"].window == 2)
    assert work("bob", 1) == 1
    rogue.close()


ROGUE_NODE = 2


def bad_mails(run: str) -> Iterator[tuple[str, bytes]]:
    """Mail to both neighbours, with all that can be wrong with it, forged mail too."""
    header = {"run": run, "sender": ROGUE_NODE, "receiver": 0, "seq": 1, "sent": 0.0}
    vector = np.ones(10)

    def mail(reflection: np.ndarray = vector, **changes: Any) -> bytes:
        return encode("mail", header | changes, {"reflection": reflection})

    good = mail()
    payloads = [
        good[:20],
        good[:-3],
        b"\x80\x04\x95" + bytes(100),
        encode("order", header, {}),
        mail(run="f" * 16),
        mail(sender=1),
        mail(receiver=1 << 70),
        mail(seq={"a": 1}),
        mail(seq=[], sent="now"),
        mail(sent=float("nan")),
        mail(np.full(10, np.nan)),
        mail(np.full(10, np.inf)),
        mail(np.ones(11)),
        mail(np.ones((10, 1))),
        mail(np.ones(10, np.uint16)),
        mail(np.ones(10, np.complex64)),
        mail(np.zeros(0)),
        encode("mail", header, {"reflection": vector, "more": vector}),
        encode("mail", header, {}),
        good + bytes(10 * (len(good) + (1 << 16))),
    ]
    for payload in payloads:
        yield keys.mail(run, "ann", ROGUE), payload
    # What is in another's name the router does not let through.
    yield keys.mail(run, "ann", "bob"), encode("mail", header | {"sender": 1}, {})
    yield keys.mail(run, ROGUE, "ann"), good


# --------------------------------------------------------------------------- fuzzed, in memory

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([1 << 70, -(10**400), 1e308, 5e-324])
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["", "[]", "{}", "[[]]", '{"0": 1}', "1 2 3 4", "\ud800", "\x1b[2J\n"])
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)
FUZZED = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def mutated(draw: st.DrawFn, tree: Any) -> Any:
    """`tree` with up to three of its parts replaced or removed."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = None
        name: Any = None
        inner = tree
        while isinstance(inner, dict | list) and inner:
            names = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            place, name = inner, draw(st.sampled_from(names))
            inner = place[name]
            if draw(st.booleans()):
                break
        if place is None:
            return draw(JSON)
        if draw(st.integers(0, 3)):
            place[name] = draw(JSON)
        else:
            del place[name]
    return tree


BEAT: dict[str, Any] = {"session": "s", "newest": 3, "answered": 3, "told": 3, "node": 1}
BEAT["fingerprint"] = fingerprint()
REPLY = {"number": 1, "config": {"config": {"a": [1, 2]}}, "metrics": {}, "arrays": ["arrays"]}


@FUZZED
@given(payload=st.binary(max_size=200), header=mutated(BEAT))
def test_no_beat_harms_the_server(server: Server, payload: bytes, header: Any) -> None:
    for content in (payload, encode("beat", header if isinstance(header, dict) else {}, {})):
        server.grid._devices[ROGUE].beats.count = 0
        server.grid._on_beat(keys.beat(server.run, ROGUE), content)
    server.grid._on_beat(keys.beat(server.run, "nobody"), payload)


@FUZZED
@given(payload=st.binary(max_size=200), header=mutated(REPLY))
def test_no_reply_harms_the_server(server: Server, payload: bytes, header: Any) -> None:
    """Each ends the rogue's own order, at most, and is taken for what it is."""
    device = server.grid._devices[ROGUE]
    arrays = {"arrays/w": np.ones(3)}
    for content in (payload, encode("reply", header if isinstance(header, dict) else {}, arrays)):
        device.beats.count = 0
        server.grid._on_beat(keys.beat(server.run, ROGUE), encode("beat", BEAT, {}))
        device.order = None
        message = Message(RecordDict(), 1 + ROGUE_NODE, "train.local")
        [message_id] = server.grid.push_messages([message])
        assert device.order is not None
        server.grid._on_reply(keys.reply(server.run, ROGUE), content)
        for reply in server.grid.pull_messages([message_id]):
            assert device.order is None
            assert reply.has_error() or isinstance(reply.content, RecordDict)
    server.grid._on_reply(keys.reply(server.run, "nobody"), payload)


def test_a_session_that_ends_without_a_word_is_none_of_the_servers_business(
    server: Server,
) -> None:
    invitation = Message(RecordDict(), 7, "train.session")
    for content in ({}, {"config": ConfigRecord({"name": "\x1b[2J"})}):
        reply = Message(RecordDict(content), reply_to=invitation)  # type: ignore[arg-type]
        server.grid._invitations._over(7, reply, server.grid.here())
    assert "node 7 has ended its session with no SessionEnd: name: it is not there" in server.said
    server.serve("ann")


@pytest.mark.parametrize(
    "answer",
    [{}, {"fault": ""}, {"fault": "", "examples": [1, 2]}, {"fault": "", "examples": [-1]},
     {"fault": "", "examples": ["7"]}, {"fault": "\x1b[2J", "examples": [1]}],
)  # fmt: skip
def test_a_host_that_tells_nonsense_of_itself_is_named(answer: dict[str, Any]) -> None:
    def tamper(message: Message, _: Message) -> Message:
        return Message(RecordDict({"config": ConfigRecord(answer)}), reply_to=message)

    grid = FakeGrid({}, nodes=1, tamper=tamper)
    with pytest.raises(DataError, match="eve: ") as found:
        prepare_hosts(grid, [SuperNode(11, ROGUE, 0)], 1, PATIENCE, print)
    assert str(found.value).isprintable()


def message_of(header: Any, arrays: dict[str, np.ndarray]) -> Message | None:
    """A reply as the server's grid makes it; None where it makes an error of it."""
    try:
        order = Message(RecordDict(), 1, "train.consensus")
        return Message(content_of(header, arrays), reply_to=order)
    except ValueError:
        return None


PARAMETERS = 6
REPORT = WindowReport(
    done=True,
    collected=0,
    seconds=1.5,
    mail=[MailHead(2, 0, 7, 0.5)],
    vectors={"0/reflection": np.ones(PARAMETERS, np.float32)},
    trace=[Moment(0.1, "step", 2, NOBODY, NEVER), Moment(0.2, "receive", 2, 0, 0.1)],
    nodes=[NodeNumbers(2, 0.0, 0.0, 0.0, 100, "0" * 64)],
    heard=[Heard(2, 0, 0.5)],
    refused=[Refused("not finite", 3)],
    classes=[OfClass(2, "Coat", 0.5)],
    total={"sum": np.zeros(PARAMETERS, np.int64)},
    seconds_evaluation=0.1,
)
WINDOW, ARRAYS = parts_of(records_of(REPORT))


class Unheard:
    """In place of the evaluator."""

    def put(self, task: Any) -> None:
        pass

    def pending(self, model: str) -> dict:
        return {}


@pytest.fixture(scope="module")
def consensus(tmp_path_factory: pytest.TempPathFactory) -> Consensus:
    values = {"mode": "consensus", "clock": "real", "participants": 3, "consensus.references": ""}
    config = resolve({**values, "checkpoint-every": 10**6, "consensus.window": 84})
    run = RunDirectory.create(tmp_path_factory.mktemp("runs"), config.flat())
    strategy = Consensus(consensus_run_of(config), run)
    strategy._examples = [0] * 3
    return strategy


def test_what_an_absent_device_had_done_is_known_after_a_resume(tmp_path: Path) -> None:
    values = {"mode": "consensus", "clock": "real", "participants": 3, "consensus.references": ""}
    run = RunDirectory.create(tmp_path, resolve(values).flat())
    before, after = (Consensus(consensus_run_of(resolve(values)), run) for _ in range(2))
    numbers = NUMBERS._replace(node=1, metric=NEVER, examples=70, steps=84, used=9, age=2.5)
    before._known, before._applied = {1: numbers}, (9, 2.5)
    before._save(8.4, Unheard())  # type: ignore[arg-type]
    after._begin()
    assert (after._known_of(1).steps, after._known_of(1).examples) == (84, 70)
    assert after._known_of(0).examples == 0
    assert after._applied == (9, 2.5)


def told(consensus: Consensus, header: Any, arrays: dict[str, np.ndarray]) -> bool:
    """Whether the strategy took what node 2 tells; it takes the same from all the others."""
    message = message_of(header, arrays)
    if message is None:
        return False
    try:
        report = read_report(message, [2], 3, PARAMETERS)
    except ValueError as error:
        last_line(str(error)).encode()
        return False
    if report.done:
        [numbers] = report.nodes
        reports = [replace(report, nodes=[numbers._replace(node=node)]) for node in range(3)]
        answers = [Answer(1, each, each.trace) for each in reports]
        for answer in answers:
            consensus._hear(answer)
        consensus._window = 0
        try:
            consensus._close_window(answers, Unheard())  # type: ignore[arg-type]
        except DivergedError:
            assert not np.isfinite([numbers.norm, numbers.metric]).all()
        known = answers[0].total != np.iinfo(np.int64).min
        assert all(np.isfinite(consensus._average) == known)
    return True


def test_an_honest_answer_is_taken(consensus: Consensus) -> None:
    assert told(consensus, WINDOW, ARRAYS)


@FUZZED
@given(header=mutated(WINDOW), name=st.sampled_from(["0/reflection", "sum", "1/x", "x", ""]))
def test_no_answer_harms_the_consensus(consensus: Consensus, header: Any, name: str) -> None:
    told(consensus, header if isinstance(header, dict) else {}, ARRAYS)
    for array in (np.ones(3), np.zeros(0, np.uint16), np.ones((2, 3), np.complex64), np.ones(())):
        for record in ("vectors", "total"):
            told(consensus, WINDOW, ARRAYS | {f"{record}/{name}": array})


[NUMBERS] = REPORT.nodes
STEP = REPORT.trace[0]
FAULTY: dict[str, dict[str, Any]] = {
    "of a node that is not its own": {"heard": [Heard(0, 1, 0.5)]},
    "a trace of another's node": {"trace": [STEP._replace(node=0)]},
    "something that cannot happen": {"trace": [STEP._replace(what="explode")]},
    "with somebody who is not there": {"trace": [STEP._replace(peer=3)]},
    "at no time": {"trace": [STEP._replace(t=NEVER)]},
    "a trace without an end": {"trace": [STEP] * 10_001},
    "more images than there are": {"nodes": [NUMBERS._replace(examples=1 << 40)]},
    "a truth for a number": {"nodes": [NUMBERS._replace(examples=True)]},
    "two nodes": {"nodes": [NUMBERS] * 2},
    "another node": {"nodes": [NUMBERS._replace(node=1)]},
    "no digest": {"nodes": [NUMBERS._replace(digest="x" * 64)]},
    "fewer steps than none": {"nodes": [NUMBERS._replace(steps=-1)]},
    "an age that is no number": {"nodes": [NUMBERS._replace(age=NEVER)]},
    "reasons without number": {"refused": [Refused(str(i), 1) for i in range(51)]},
    "classes of another's node": {"classes": [OfClass(0, "Coat", 0.5)]},
    "a class without number": {"classes": [OfClass(2, "Coat", "all")]},  # type: ignore[arg-type]
    "a class of no number": {"classes": [OfClass(2, "Coat", NEVER)]},
    "classes without end": {"classes": [OfClass(2, str(i), 1.0) for i in range(10_001)]},
    "negative refusals": {"refused": [Refused("wrong run", -5)]},
    "mail from nobody": {"mail": [MailHead("a", 0, 7, 0.5)]},  # type: ignore[arg-type]
    "a time that is none": {"seconds": NEVER},
    "another sum": {"total": {"sum": np.zeros(PARAMETERS + 1, np.int64)}},
    "a sum of floats": {"total": {"sum": np.zeros(PARAMETERS)}},
}


def test_a_host_of_many_nodes_may_tell_much() -> None:
    two = [NUMBERS._replace(node=node) for node in (1, 2)]
    report = replace(REPORT, nodes=two, trace=[STEP] * 20_000)
    message = Message(records_of(report), reply_to=Message(RecordDict(), 1, "train.consensus"))  # type: ignore[call-overload]
    assert len(read_report(message, [1, 2], 3, PARAMETERS).trace) == 20_000


def refuses(content: RecordDict) -> None:
    message = Message(content, reply_to=Message(RecordDict(), 1, "train.consensus"))  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"\w"):
        read_report(message, [2], 3, PARAMETERS)


@pytest.mark.parametrize("what", FAULTY)
def test_answers_that_are_none_are_refused(what: str) -> None:
    refuses(records_of(replace(REPORT, **FAULTY[what])))


def test_records_that_are_no_answer_are_refused() -> None:
    """Without a part, with parts of other kinds, with columns of different lengths."""
    for name in ("config", "mail", "trace", "vectors"):
        content = records_of(REPORT)
        del content[name]
        refuses(content)
        content[name] = MetricRecord({"t": 1.0})
        refuses(content)
    content = records_of(REPORT)
    content.config_records["trace"]["t"] = [0.1]
    refuses(content)


UPDATE = {
    "config": {"config": {}},
    "metrics": {"metrics": {"examples.1.4": 10, "loss.1.4": 0.5, "seconds.1.4": 1.0}},
    "arrays": ["arrays"],
}
MODEL = {"weights": np.zeros(4, np.float32), "buffers": np.zeros(0, np.float32)}


@FUZZED
@given(header=mutated(UPDATE))
def test_no_update_harms_the_average(header: Any) -> None:
    """What is taken is finite, has the model's shape and a weight that can be computed with."""
    job = Job(1, 4, 0, 0.0, 0.0, 0.0, 0.0)
    arrays = {f"arrays/{name}.1.4": value for name, value in MODEL.items()}
    message = message_of(header if isinstance(header, dict) else {}, arrays)
    if message is None:
        return
    [result] = updates_of(message, [job], MODEL)
    assert (result.update is None) == bool(result.fault)
    result.fault.encode()
    if result.update is not None:
        assert 1 <= result.update.examples < 1 << 31
        assert np.isfinite([result.update.loss, result.seconds]).all()
        assert result.update.vectors["weights"].shape == (4,)


def test_a_devices_words_are_no_orders_to_a_terminal() -> None:
    text = "Error\nfirst\n\x1b[2Jrun \ud800 directory: /evil" + "x" * 1000
    assert last_line(text) == ("?[2Jrun ? directory: /evil" + "x" * 1000)[:300]
