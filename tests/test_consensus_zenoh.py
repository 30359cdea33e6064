"""Neighbours' mail through the mail router, and what happens to all that is none."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from strategies.carriers.zenoh import ZenohExchange
from strategies.consensus.algorithms import Settings, make_algorithm
from strategies.consensus.free_host import FreeHost
from strategies.consensus.node import Node
from strategies.consensus.participant import MODEL, Mail, Participant
from strategies.consensus.settling import SETTLING, settling
from strategies.consensus.topologies import build_topology
from strategies.contracts.convex import SETTINGS, quadratics, worst_error
from strategies.link import keys
from strategies.link.connection import Connection
from strategies.link.router import Router, access_control
from strategies.link.sealing import Sealing
from strategies.link.wire import decode, encode
from strategies.site import SERVER, Site
from tests.certificates import deployment
from tests.mails import mail, same

RUN = "0123456789abcdef"
NAMES = {0: "ann", 1: "bob", 2: "cyd", 3: "dan"}
RING = build_topology("ring", 4)
PATIENCE = 30.0


def expected(mail: Mail) -> dict[str, tuple[int, torch.dtype]]:
    if mail.seq < 0:
        return {MODEL: (50, torch.float32)} if mail.vectors else {}
    return {"reflection": (5, torch.float32), "indices": (3, torch.int32)}


def exchange_of(
    node: int, connection: Any, lengths: Any = expected, sealing: Sealing | None = None
) -> ZenohExchange:
    own, neighbours = {node: NAMES[node]}, {node: RING.neighbours[node]}
    return ZenohExchange(connection, RUN, own, NAMES, lengths, neighbours, sealing, parameters=50)


# --------------------------------------------------------------------- through a real router


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Site]:
    pytest.importorskip("cryptography")
    return deployment(tmp_path_factory.mktemp("sites"), *NAMES.values())


@pytest.fixture(scope="module")
def connections(sites: dict[str, Site], tmp_path_factory) -> Iterator[dict[int, Connection]]:
    """Of every node to a router with the rules of a ring, over mutual TLS."""
    pytest.importorskip("zenoh")
    log = tmp_path_factory.mktemp("router") / "log"
    neighbours = {NAMES[i]: [NAMES[j] for j in RING.neighbours[i]] for i in NAMES}
    with ExitStack() as stack:
        router = Router(sites[SERVER], access_control(RUN, neighbours, neighbours), log)
        stack.callback(router.stop)
        found = {node: Connection(sites[name]) for node, name in NAMES.items()}
        for connection in found.values():
            stack.callback(connection.close)
        deadline = time.monotonic() + PATIENCE
        while not all(c.connected for c in found.values()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield found


@pytest.fixture(params=[False, True], ids=["plain", "sealed"])
def exchanges(
    request: pytest.FixtureRequest, sites: dict[str, Site], connections: dict[int, Connection]
) -> Iterator[dict[int, ZenohExchange]]:
    """Of every node; all of them hear each other."""
    found = {
        node: exchange_of(node, connection, expected, sealing_of(node, sites, request.param))
        for node, connection in connections.items()
    }
    lacking = {(j, i) for i in NAMES for j in RING.neighbours[i]}
    deadline = time.monotonic() + PATIENCE
    while lacking and time.monotonic() < deadline:
        for j, i in lacking:
            found[j].post(Mail(j, i, -1, {}))
        time.sleep(0.05)
        lacking -= {(m.sender, i) for i, e in found.items() for m in e.collect(0.0)}
    assert not lacking
    time.sleep(0.1)  # what was posted twice
    for each in found.values():
        each.collect(0.0)
    yield found
    for each in found.values():
        each.close()


def sealing_of(node: int, sites: dict[str, Site], sealed: bool = True) -> Sealing | None:
    return Sealing(sites[NAMES[node]], RUN) if sealed else None


def wait_for(exchange: ZenohExchange, count: int = 1) -> list[Mail]:
    found, deadline = [], time.monotonic() + PATIENCE
    while len(found) < count and time.monotonic() < deadline:
        found += exchange.collect(1.0)
    return found


def test_mail_arrives_as_it_was_sent(exchanges: dict[int, ZenohExchange]) -> None:
    sent = [
        mail(1, 2, (3 << 32) + 7, 0.1),
        Mail(1, 2, -1, {MODEL: torch.linspace(0, 1, 50)}, 1e9 + 0.125),
    ]
    for each in sent:
        exchanges[1].post(each)
        [found] = wait_for(exchanges[2])
        assert same(found, each)
        for vector in found.vectors.values():
            vector.add_(1)  # the receiver may work with it
    assert exchanges[2].collect(0.0) == []


def test_everybody_gets_its_own_mail_only(exchanges: dict[int, ZenohExchange]) -> None:
    edges = [(j, i) for i in NAMES for j in RING.neighbours[i]]
    for sender, receiver in edges:
        exchanges[sender].post(mail(sender, receiver, 1))
    for node, exchange in exchanges.items():
        pairs = {(s, r) for s, r in edges if r == node}
        assert {m[:2] for m in wait_for(exchange, len(pairs))} == pairs


def test_the_newest_mail_is_enough(exchanges: dict[int, ZenohExchange]) -> None:
    """Of each neighbour, and an older one that comes late is none."""
    node = exchanges[2]
    received, overwritten = node.received, node.overwritten  # before any of these
    for seq in (5, 7, 6):
        exchanges[1].post(mail(1, 2, seq))
        time.sleep(0.1)  # or the outbox would keep the last of them alone
    exchanges[3].post(mail(3, 2, 2))
    time.sleep(0.1)
    assert {(m.sender, m.seq) for m in wait_for(exchanges[2], 2)} == {(1, 7), (3, 2)}
    # 5 and 6, and what came twice because its acknowledgement was late on a busy machine.
    assert node.overwritten - overwritten == node.received - received - 2 >= 2


@pytest.mark.parametrize(
    ("host", "sender", "receiver"),
    [
        (0, 1, 2),  # in the name of another
        (0, 0, 2),  # to a node that is no neighbour
    ],
)
def test_mail_that_is_not_allowed_does_not_come(
    exchanges: dict[int, ZenohExchange], host: int, sender: int, receiver: int
) -> None:
    exchanges[host].post(mail(sender, receiver, 9))
    time.sleep(0.1)
    exchanges[1].post(mail(1, 2, 4))
    assert [m.seq for m in wait_for(exchanges[2])] == [4]
    assert exchanges[2].refused == {}


def test_nodes_settle_over_real_links(connections: dict[int, Connection]) -> None:
    """Four hosts end with the mean of their four models."""
    algorithm = settling(RING, 16)
    models = torch.arange(40, dtype=torch.float64).view(4, 10).sin()

    def lengths(mail: Mail) -> dict[str, tuple[int, torch.dtype]]:
        return {SETTLING: (10, torch.float64)}

    participants, threads = [], []
    exchanges = [exchange_of(i, connections[i], lengths) for i in NAMES]
    for index, exchange in enumerate(exchanges):
        node = Node(index, models[index].clone())
        heard = dict.fromkeys(RING.neighbours[index], time.monotonic())
        participant = Participant(node, algorithm, RING.neighbours[index], heard=heard)
        participant.settle(guest=False)
        host = FreeHost([participant], lambda _: [], initial=lambda i: models[i], exchange=exchange)
        participants.append(participant)
        run = (range(100, 116), time.monotonic, 0)
        options = {"patience": (60.0, 60.0)}  # more than it takes
        threads.append(threading.Thread(target=host.settle_freely, args=run, kwargs=options))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for exchange in exchanges:
        exchange.close()
    assert all(p.tally.messages == 32 for p in participants)
    for participant in participants:
        torch.testing.assert_close(participant.node.weights, models.mean(0), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "precision"), [("ecl", "float32"), ("ecl", "int8"), ("c-ecl", "float32")]
)
def test_nodes_on_real_links_agree_on_the_optimum_of_all(
    name: str, precision: str, connections: dict[int, Connection]
) -> None:
    """Four hosts, each with a node of its own curvature and its own minimum, run freely."""
    problem, rate = quadratics(4, parameters=10, condition=5.0, seed=3), 0.2
    algorithm = make_algorithm(name, Settings(**SETTINGS, mail_precision=precision), RING)

    def lengths(mail: Mail) -> dict[str, tuple[int, torch.dtype]]:
        wanted = algorithm.lengths(10, mail.sender, mail.receiver, mail.seq)
        whole = {"reflection", "values"}  # which are of the problem's type
        return {n: (k, torch.float64 if n in whole else kind) for n, (k, kind) in wanted.items()}

    def initial(_: int) -> torch.Tensor:
        return torch.zeros(10, dtype=torch.float64)

    def gradients(due):
        time.sleep(0.001)  # a step takes longer than a mail
        return list(problem.gradients(due))

    time.sleep(1.0)  # mail of the case before, which is still under way, is none of this one's
    participants, threads = [], []
    began = time.monotonic()
    exchanges = [exchange_of(i, connections[i], lengths) for i in NAMES]
    for index, exchange in enumerate(exchanges):
        node = Node(index, initial(index))
        algorithm.start(node)
        heard = dict.fromkeys(node.links, 0.0)
        participant = Participant(node, algorithm, RING.neighbours[index], 1.0, rate, heard=heard)
        host = FreeHost([participant], gradients, initial=initial, exchange=exchange)
        run = ({index: range(1500)}, 4.0, lambda: time.monotonic() - began, 0)
        participants.append(participant)
        threads.append(threading.Thread(target=host.run_freely, args=run))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for exchange in exchanges:
        exchange.close()
    assert all(p.tally.steps == 1500 and p.tally.used > 100 for p in participants)
    assert [e.refused for e in exchanges] == [{}] * len(exchanges)
    optimum = problem.optimum(dict.fromkeys(NAMES, 1.0))
    assert worst_error([p.node.weights for p in participants], optimum) < 1e-3


# -------------------------------------------------------------------- what comes is not believed


class Loopback:
    """Carries what is published to whoever subscribes, at once and with no rules."""

    def __init__(self) -> None:
        self.subscriptions: list[tuple[str, Callable[[str, bytes], None]]] = []
        self.up = True

    def publish(self, key: str, payload: bytes, *, urgent: bool = False, kind: str = "") -> bool:
        for expression, callback in list(self.subscriptions) if self.up else ():
            if expression in (key, key.rsplit("/", 1)[0] + "/*"):
                callback(key, payload)
        return self.up

    def subscribe(
        self, expression: str, callback: Callable[[str, bytes], None]
    ) -> Callable[[], None]:
        self.subscriptions.append((expression, callback))
        return lambda: self.subscriptions.remove((expression, callback))


KEY = keys.mail(RUN, "cyd", "bob")
HEADER = {"run": RUN, "sender": 1, "receiver": 2, "seq": 8, "sent": 0.5}
ARRAYS = {"reflection": np.ones(5, np.float32), "indices": np.arange(3, dtype=np.int32)}
GOOD = encode("mail", HEADER, ARRAYS)


def with_header(**changes: Any) -> bytes:
    return encode("mail", HEADER | changes, ARRAYS)


def with_vector(reflection: np.ndarray, **more: np.ndarray) -> bytes:
    return encode("mail", HEADER, {**ARRAYS, "reflection": reflection, **more})


def with_indices(*indices: int) -> bytes:
    return encode("mail", HEADER, ARRAYS | {"indices": np.array(indices, np.int32)})


FAULTS = {
    "ten times too large": (KEY, GOOD + bytes(1 << 20), "too long"),
    "another's model": (KEY, with_vector(np.ones(6, np.float32)), "wrong shape"),
    "indices of another model": (KEY, with_indices(0, 1, 50), "wrong shape"),
    "indices before the first": (KEY, with_indices(0, -1, 1), "wrong shape"),
    "another type": (KEY, with_vector(np.ones(5, np.float64)), "wrong shape"),
    "one vector more": (KEY, with_vector(ARRAYS["reflection"], more=np.ones(1)), "wrong shape"),
    "no vectors": (KEY, encode("mail", HEADER, {}), "wrong shape"),
    "nan": (KEY, with_vector(np.full(5, np.nan, np.float32)), "not finite"),
    "infinite": (KEY, with_vector(np.full(5, np.inf, np.float32)), "not finite"),
    "truncated": (KEY, GOOD[:50], "truncated"),
    "truncated vectors": (KEY, GOOD[:-5], "bad arrays"),
    "noise": (KEY, bytes(range(256)), "bad magic"),
    "a pickle": (KEY, b"\x80\x04\x95\x00", "bad magic"),
    "another kind": (KEY, encode("order", HEADER, ARRAYS), "wrong kind"),
    "another run": (KEY, with_header(run="f" * 16), "wrong run"),
    "another sender": (KEY, with_header(sender=3), "wrong sender"),
    "another receiver": (KEY, with_header(receiver=0), "wrong sender"),
    "no neighbour": (keys.mail(RUN, "cyd", "ann"), with_header(sender=0), "wrong sender"),
    "nobody": (keys.mail(RUN, "cyd", "eve"), GOOD, "wrong sender"),
    "no number": (KEY, with_header(seq="8"), "bad header"),
    "a huge number": (KEY, with_header(seq=1 << 80), "bad header"),
    "a number that is a truth": (KEY, with_header(seq=True), "bad header"),
    "no time": (KEY, with_header(sent=None), "bad header"),
    "a time that is none": (KEY, with_header(sent=float("nan")), "no time"),
    "a time before all time": (KEY, with_header(sent=-1e17), "no time"),
    "a time that no float can hold": (KEY, with_header(sent=10**400), "no time"),
    "a greeting of another model": (
        KEY, encode("mail", HEADER | {"seq": -1}, {MODEL: np.ones(51, np.float32)}), "wrong shape"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_what_is_no_mail_is_dropped_and_counted(what: str) -> None:
    link = Loopback()
    exchange = exchange_of(2, link)
    key, payload, reason = FAULTS[what]
    link.publish(key, payload)
    assert exchange.collect(0.0) == []
    assert exchange.refused == {reason: 1}
    link.publish(KEY, GOOD)
    assert [m.seq for m in exchange.collect(0.0)] == [8]


def test_a_flood_costs_the_memory_of_one_mail() -> None:
    link = Loopback()
    exchange = exchange_of(2, link)
    for seq in range(1000):
        link.publish(KEY, with_header(seq=seq))
        link.publish(keys.mail(RUN, "cyd", f"eve-{seq}"), GOOD)
    assert len(exchange._boxes) == 1
    assert [m.seq for m in exchange.collect(0.0)] == [999]
    assert (exchange.received, exchange.overwritten) == (1000, 999)
    assert exchange.refused == {"wrong sender": 1000}


def test_mail_of_newcomers_and_other_mail_do_not_replace_each_other() -> None:
    link = Loopback()
    exchange = exchange_of(2, link)
    for seq, arrays in ((-1, {}), (8, ARRAYS), (-1, {MODEL: np.ones(50, np.float32)})):
        link.publish(KEY, encode("mail", HEADER | {"seq": seq}, arrays))
    found = {m.seq: m.vectors.keys() for m in exchange.collect(0.0)}
    assert found == {8: ARRAYS.keys(), -1: {MODEL}}


def test_nobody_waits_longer_than_its_patience() -> None:
    link = Loopback()
    exchange = exchange_of(2, link)
    assert exchange.collect(0.05) == []
    threading.Timer(0.05, link.publish, (KEY, GOOD)).start()
    assert [m.seq for m in exchange.collect(PATIENCE)] == [8]


def test_mail_that_the_link_does_not_take_is_counted() -> None:
    link = Loopback()
    exchange = exchange_of(1, link)
    exchange.post(mail(1, 2, 1))
    link.up = False
    exchange.post(mail(1, 0, 2))
    assert (exchange.sent, exchange.unsent) == (1, 1)
    assert exchange.report().unsent[1] == (1, mail(1, 0, 2).size)


def test_one_mail_is_under_way_and_only_what_was_sent_counts() -> None:
    link = Loopback()
    sender = exchange_of(1, link)
    sent: list[int] = []
    key = keys.mail(RUN, "cyd", "bob")

    def hear(_: str, payload: bytes) -> None:
        sent.append(decode(payload, kind="mail", limit=1 << 20)[0]["seq"])

    link.subscribe(key, hear)
    for seq in (1, 2, 3):
        sender.post(mail(1, 2, seq))
    sender.post(Mail(1, 2, -1, {}))
    assert sent == [1, -1]
    assert sender.report().unsent[1] == (2, 2 * mail(1, 2, 1).size)  # one is overtaken, one waits
    receipt = keys.receipt(RUN, "bob", "cyd")
    for payload in (
        b"none",
        encode("receipt", {"seq": "1"}, {}),
        encode("receipt", {"seq": 2}, {}),
    ):
        link.publish(receipt, payload)
    assert sent == [1, -1]
    link.publish(receipt, encode("receipt", {"seq": 1}, {}))
    assert sent == [1, -1, 3]
    assert sender.report().unsent[1] == (-1, -mail(1, 2, 1).size)


def test_what_comes_is_acknowledged_to_its_sender() -> None:
    link = Loopback()
    exchange_of(2, link)
    receipts: list[int] = []

    def hear(_: str, payload: bytes) -> None:
        receipts.append(decode(payload, kind="receipt", limit=1 << 20)[0]["seq"])

    link.subscribe(keys.receipt(RUN, "bob", "cyd"), hear)
    for payload in (GOOD, with_header(seq=3), with_header(run="f" * 16)):
        link.publish(KEY, payload)
    assert receipts == [8, 3]


def test_an_exchange_that_is_closed_hears_nothing() -> None:
    link = Loopback()
    exchange = exchange_of(2, link)
    exchange.close()
    link.publish(KEY, GOOD)
    assert exchange.collect(0.0) == []
    assert exchange.received == 0


# ------------------------------------------------------------------------------------- sealed mail


def test_sealed_mail_is_for_its_receiver_alone(sites: dict[str, Site]) -> None:
    """The carrier sees who writes to whom and how much; plain mail is not taken for sealed mail."""
    link, carried = Loopback(), []
    link.subscribe(KEY, lambda _, payload: carried.append(payload))
    one = exchange_of(1, link, sealing=sealing_of(1, sites))
    one.post(mail(1, 2, 1))
    assert (one.sent, one.unsent, carried) == (0, 1, [])  # nobody's key has come
    other = exchange_of(2, link, sealing=sealing_of(2, sites))
    other.collect(0.0)  # it announces its key, and is answered
    letter = mail(1, 2, 2, 1 / 3)
    one.post(letter)
    assert letter.vectors["reflection"].numpy().tobytes()[:4] not in carried[0]
    [found] = other.collect(0.0)
    assert same(found, letter)
    link.publish(KEY, carried[0])
    link.publish(KEY, carried[0].replace(b'"seq": 2', b'"seq": 3'))
    assert other.collect(0.0) == []
    link.publish(KEY, carried[0])
    assert other.collect(0.0) == []
    link.publish(KEY, GOOD)
    link.publish(keys.announcement(RUN, "bob"), b"")
    assert other.collect(0.0) == []
    assert other.refused == {"forged": 1, "replayed": 1, "wrong kind": 1, "bad magic": 1}


def test_a_device_that_restarts_is_heard_again(sites: dict[str, Site]) -> None:
    link = Loopback()
    other = exchange_of(2, link, sealing=sealing_of(2, sites))
    for seq in (1, 2):
        one = exchange_of(1, link, sealing=sealing_of(1, sites))
        one.collect(0.0)
        one.post(mail(1, 2, seq))
        assert [m.seq for m in other.collect(0.0)] == [seq]
        other.post(mail(2, 1, seq))
        assert [m.seq for m in one.collect(0.0)] == [seq]
        one.close()
    assert other.refused == {}
