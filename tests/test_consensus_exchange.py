"""Carriers of mail: one contract for all of them, and what the broker behind them promises."""

import contextlib
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import pytest
import torch

from strategies.carriers.broker import Broker, Packet
from strategies.carriers.checks import mail_fault
from strategies.carriers.exchange import Exchange
from strategies.carriers.grid import GridExchange, from_arrays, to_arrays
from strategies.carriers.sockets import SocketBroker, SocketExchange, meet
from strategies.consensus.fleet import forgeries
from strategies.consensus.participant import Mail
from strategies.errors import EdgeFlError
from strategies.messages.windows import MailHead
from strategies.roster import SuperNode
from tests.mails import mail, same

# Nodes 0 and 1 are on host 0, 2 on host 1 and 3 on host 2.
EDGES = frozenset({(0, 1), (1, 2), (2, 3), (0, 3)})
PLACEMENT = {0: 0, 1: 0, 2: 1, 3: 2}


# --------------------------------------------------------------------------- all carriers


class Net(Protocol):
    """A carrier between the hosts 0, 1 and 2."""

    def post(self, host: int, mail: Mail) -> None: ...

    def collect(self, host: int, count: int = 0) -> list[Mail]:
        """What has come; waits for `count` of them."""
        ...

    def restart(self, host: int, collected: bool) -> None:
        """The host's process goes on to its next message; `collected` if the states that it has
        saved contain what it has collected."""
        ...

    def refused(self) -> int: ...


class GridNet:
    """What the fleet does with mail in messages, without the messages."""

    def __init__(self, newest: bool) -> None:
        self._broker = Broker(EDGES, PLACEMENT, newest)
        self._seats: dict[int, list[Mail]] = {0: [], 1: [], 2: []}

    def post(self, host: int, mail: Mail) -> None:
        exchange = GridExchange()
        exchange.post(mail)
        for m in from_arrays(*to_arrays(exchange.report().outgoing)):
            self._broker.post(host, Packet(m.sender, m.receiver, m.seq, m.sent, m.vectors))

    def collect(self, host: int, count: int = 0) -> list[Mail]:
        packets = self._broker.collect(host)
        self._broker.forget(host, max((number for number, _ in packets), default=0))
        new = [Mail(p.sender, p.receiver, p.seq, p.content, p.sent) for _, p in packets]
        self._seats[host] += new
        exchange = GridExchange(from_arrays(*to_arrays(new)))
        return exchange.collect(10.0) + exchange.collect(10.0)  # the second time there is nothing

    def restart(self, host: int, collected: bool) -> None:
        again = [] if collected else self._seats[host]
        for m in again:
            self._broker.post(
                PLACEMENT[m.sender], Packet(m.sender, m.receiver, m.seq, m.sent, m.vectors)
            )
        self._seats[host] = []

    def refused(self) -> int:
        return self._broker.take_forged().total()


class SocketNet:
    """A real broker, with an exchange per host."""

    def __init__(self, broker: SocketBroker) -> None:
        self._broker = broker
        self._exchanges = {host: SocketExchange(broker.access, host) for host in (0, 1, 2)}
        self._kept = dict.fromkeys(self._exchanges, 0)

    def post(self, host: int, mail: Mail) -> None:
        self._exchanges[host].post(mail)

    def collect(self, host: int, count: int = 0) -> list[Mail]:
        found = self._exchanges[host].collect(0.3)
        deadline = time.monotonic() + 30
        while len(found) < count and time.monotonic() < deadline:
            found += self._exchanges[host].collect(1.0)
        return found

    def restart(self, host: int, collected: bool) -> None:
        if collected:
            self._kept[host] = self._exchanges[host].report().collected
        self._exchanges[host].close()
        self._exchanges[host] = SocketExchange(self._broker.access, host, self._kept[host])

    def refused(self) -> int:
        for exchange in self._exchanges.values():
            exchange.close()  # then the broker has seen all that was posted
        return self._broker.take_forged().total()


def socket_broker(newest: bool) -> SocketBroker:
    broker = SocketBroker(EDGES, newest=newest, address="127.0.0.1")
    broker.place(PLACEMENT)
    return broker


@pytest.fixture(params=["grid", "sockets"])  # zenoh: see test_consensus_zenoh
def net_of(request: pytest.FixtureRequest) -> Iterator[Callable[[bool], Net]]:
    """Makes a net, which keeps all mail or only the newest."""
    if request.param == "grid":
        yield GridNet
        return
    with contextlib.ExitStack() as brokers:
        yield lambda newest: SocketNet(brokers.enter_context(socket_broker(newest)))


def by_number(mails: list[Mail]) -> list[Mail]:
    return sorted(mails, key=lambda m: m[:3])


def test_mail_arrives_as_it_was_sent(net_of: Callable[[bool], Net]) -> None:
    net = net_of(False)
    sent = [mail(1, 2, (3 << 32) + 7, 0.1), Mail(3, 2, -1, {"model": torch.ones(2)}), mail(1, 2, 9)]
    sent.append(Mail(1, 2, 10, {}, 1e9 + 0.125))
    sent.append(Mail(1, 2, 11, {"wide": torch.full((2,), 1 / 3, dtype=torch.float64)}, 0.5))
    for each in sent:
        net.post(PLACEMENT[each.sender], each)
    found = net.collect(1, len(sent))
    assert len(found) == len(sent)
    for a, b in zip(by_number(found), by_number(sent), strict=True):
        assert same(a, b)
    found[0].vectors.get("reflection", torch.zeros(1)).add_(1)  # it may be worked with
    assert net.collect(1) == []


def test_mail_can_be_used_when_the_sender_goes_on(net_of: Callable[[bool], Net]) -> None:
    net, letter = net_of(False), mail(1, 2, 1, 0.5)
    net.post(0, letter)
    letter.vectors["reflection"].fill_(9)
    [found] = net.collect(1, 1)
    assert found.vectors["reflection"].tolist() == [0.5] * 5


def test_everybody_gets_the_mail_of_its_own_nodes_only(net_of: Callable[[bool], Net]) -> None:
    net = net_of(False)
    for sender, receiver in [(1, 2), (2, 1), (2, 3), (3, 0), (0, 3)]:
        net.post(PLACEMENT[sender], mail(sender, receiver, 1))
    expected = {0: {(2, 1), (3, 0)}, 1: {(1, 2)}, 2: {(2, 3), (0, 3)}}
    for host, pairs in expected.items():
        assert {m[:2] for m in net.collect(host, len(pairs))} == pairs


def test_the_virtual_clock_needs_every_mail(net_of: Callable[[bool], Net]) -> None:
    net = net_of(False)
    for seq in (5, 7, 6):
        net.post(0, mail(1, 2, seq))
    assert [m.seq for m in by_number(net.collect(1, 3))] == [5, 6, 7]


def test_the_real_clock_needs_the_newest_mail(net_of: Callable[[bool], Net]) -> None:
    """Of each neighbour, and an older one that comes late is none."""
    net = net_of(True)
    net.collect(1)
    for seq in (5, 7, 6):
        net.post(0, mail(1, 2, seq, float(seq)))
    net.post(2, mail(3, 2, 2))
    time.sleep(0.2)
    net.restart(1, collected=True)  # an earlier request may have been answered with the first
    found = net.collect(1, 2)
    assert {(m.sender, m.seq) for m in found} >= {(1, 7), (3, 2)}
    assert [m.seq for m in found if m.sender == 1][-1] == 7


@pytest.mark.parametrize("carrier", ["grid", "sockets"])
def test_a_report_is_of_what_happened_since_the_last_one(carrier: str) -> None:
    with socket_broker(False) as broker:
        made: Exchange = GridExchange() if carrier == "grid" else SocketExchange(broker.access, 0)
        made.post(mail(1, 2, 1))
        first, second = made.report(), made.report()
        made.close()
    assert [m.seq for m in first.outgoing] == ([1] if carrier == "grid" else [])
    assert (list(second.outgoing), second.collected, second.unsent, second.refused) == (
        [],
        0,
        {},
        {},
    )


@pytest.mark.parametrize(
    ("host", "sender", "receiver"),
    [
        (1, 1, 2),  # in the name of a node of host 0
        (0, 0, 2),  # to a node that is no neighbour
        (0, 0, 0),  # to itself
        (0, 9, 1),  # from nobody
        (0, 1, 9),  # to nobody
    ],
)
def test_mail_that_is_not_allowed_is_refused(
    net_of: Callable[[bool], Net], host: int, sender: int, receiver: int
) -> None:
    net = net_of(False)
    net.post(host, mail(sender, receiver, 1))
    net.post(0, mail(1, 2, 4))
    assert [m.seq for m in net.collect(1, 1)] == [4]
    assert net.refused() == 1


def test_who_fails_gets_again_what_its_states_do_not_contain(net_of: Callable[[bool], Net]) -> None:
    net = net_of(False)
    net.post(0, mail(1, 2, 1))
    assert [m.seq for m in net.collect(1, 1)] == [1]
    net.restart(1, collected=False)
    net.post(0, mail(1, 2, 2))
    assert [m.seq for m in by_number(net.collect(1, 2))] == [1, 2]
    net.restart(1, collected=True)
    net.post(0, mail(1, 2, 3))
    assert [m.seq for m in net.collect(1, 1)] == [3]


# ------------------------------------------------------------------------------------- the broker


def packet(sender: int, receiver: int, seq: int) -> Packet:
    return Packet(sender, receiver, seq, 0.0, f"{sender}-{receiver}-{seq}")


def seqs(packets: list[tuple[int, Packet]]) -> list[int]:
    return [p.seq for _, p in packets]


def test_a_broker_gives_until_it_is_told_to_forget() -> None:
    broker = Broker(EDGES, PLACEMENT, newest=False)
    assert broker.collect(1) == []
    broker.post(0, packet(1, 2, 2))
    broker.post(0, packet(1, 2, 1))
    both = broker.collect(1)
    assert seqs(both) == [2, 1], "in the order in which they came"
    assert broker.collect(1) == both
    broker.post(0, packet(1, 2, 3))
    last = both[-1][0]
    [new] = broker.collect(1, last)
    assert seqs([new]) == [3]
    assert broker.collect(1, new[0]) == []
    broker.forget(1, last)
    assert broker.collect(1) == [new]
    broker.forget(1, new[0])
    assert broker.collect(1) == []
    broker.forget(7, 3)  # a host without mail


def test_mail_that_is_posted_again_is_one() -> None:
    """A host that failed in the middle of a window does it once more."""
    broker = Broker(EDGES, PLACEMENT, newest=False)
    for _ in range(2):
        assert broker.post(0, packet(1, 2, 1))
    assert seqs(broker.collect(1)) == [1]


def test_the_newest_replaces_what_was_collected_but_not_forgotten() -> None:
    broker = Broker(EDGES, PLACEMENT, newest=True)
    broker.post(0, packet(1, 2, 5))
    [(last, _)] = broker.collect(1)
    broker.post(0, packet(1, 2, 6))
    broker.post(0, packet(1, 2, 4))
    broker.forget(1, last)
    assert seqs(broker.collect(1, last)) == [6]


def test_what_is_not_allowed_is_counted_and_told_once() -> None:
    broker = Broker(EDGES, PLACEMENT, newest=False)
    assert not broker.post(1, packet(1, 2, 1))
    for _ in range(2):
        assert not broker.post(0, packet(0, 2, 1))
    assert broker.take_forged() == {(1, 1, 2): 1, (0, 0, 2): 2}
    assert broker.take_forged() == {}
    assert [broker.collect(host) for host in (0, 1, 2)] == [[], [], []]


def test_what_is_not_allowed_at_the_simulations_broker_is_told_of_its_host() -> None:
    hosts = [SuperNode(10 + number, f"host-{number}") for number in (0, 1, 2)]
    with socket_broker(False) as broker:
        net = SocketNet(broker)
        net.post(1, mail(1, 2, 1))
        for exchange in net._exchanges.values():
            exchange.close()
        told = forgeries([Broker(EDGES, PLACEMENT, newest=False), broker], hosts)
        assert told == [(hosts[1], "it may not send from node 1 to node 2")]
        assert forgeries([broker], hosts) == []


# --------------------------------------------------------------------------------- mail as arrays


def test_mails_as_arrays_and_back() -> None:
    mails = [mail(1, 2, k, float(k)) for k in range(12)]
    mails[3] = Mail(1, 2, 3, {}, 0.1 + 0.2)
    headers, arrays = to_arrays(mails)
    assert headers[3] == (1, 2, 3, 0.1 + 0.2)
    assert arrays.keys() == {
        f"{k}/{name}" for k in range(12) if k != 3 for name in ("reflection", "indices")
    }
    for a, b in zip(from_arrays(headers, arrays), mails, strict=True):
        assert same(a, b)
    assert from_arrays(*to_arrays([])) == []


@pytest.mark.parametrize(
    ("number", "name"),
    [(0, "0/reflection"), (1, "1/reflection"), (1, "-1/reflection"), (1, "reflection")],
)
def test_what_is_no_mail(number: int, name: str) -> None:
    """A vector that belongs to none."""
    with pytest.raises(ValueError, match=rf"'{name}' belongs to none of {number} mails"):
        from_arrays([MailHead(1, 2, 3, 0.0)] * number, {name: np.zeros(2)})


# --------------------------------------------------------------------------------------- meetings


def test_hosts_that_meet_are_counted_and_nobody_waits_for_ever() -> None:
    with socket_broker(newest=False) as broker, ThreadPoolExecutor() as pool:
        seen = list(pool.map(lambda host: meet(broker.access, host, 2, 30.0), (0, 1)))
        assert seen == [2, 2]
        assert meet(broker.access, 2, 4, 0.1) == 3, "a fourth one does not come"


# ---------------------------------------------------------------------------------- Ray's broker


@pytest.fixture
def broker() -> Iterator[SocketBroker]:
    with socket_broker(newest=False) as found:
        yield found


def test_all_that_was_posted_arrives_though_the_host_hangs_up(broker: SocketBroker) -> None:
    """Also when mail for it has come that it has not looked at."""
    net = SocketNet(broker)
    large = {"reflection": torch.rand(1_000_000)}
    for seq in range(20):
        net.post(1, Mail(2, 1, seq, large))
        net.post(0, Mail(1, 2, seq, large))
    net.restart(0, collected=False)
    found = by_number(net.collect(1, 20))
    assert [m.seq for m in found] == list(range(20))
    assert all(torch.equal(m.vectors["reflection"], large["reflection"]) for m in found)
    assert len(net.collect(0, 20)) == 20


@pytest.mark.parametrize(
    "hello",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 64,  # a length beyond all memory
        struct.pack("!QQ", 40, 0) + bytes(32) + b"[1, 0]  ",  # without the secret
        struct.pack("!QQ", 2, 0) + b"hi",
        b"",
    ],
)
def test_who_does_not_know_the_secret_is_not_let_in(broker: SocketBroker, hello: bytes) -> None:
    net = SocketNet(broker)
    net.post(0, mail(1, 2, 1))
    address, port, secret = broker.access.split()
    assert len(set(secret)) > 1
    with socket.create_connection((address, int(port))) as stranger:
        stranger.settimeout(10)
        with contextlib.suppress(OSError):  # hung up on before it has said all
            stranger.sendall(hello)
            stranger.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    assert [m.seq for m in net.collect(1, 1)] == [1], "others are served all the same"


def test_a_broker_that_is_gone_is_told() -> None:
    with ThreadPoolExecutor() as pool:
        with socket_broker(newest=False) as broker:
            exchange = SocketExchange(broker.access, 0)
            meeting = pool.submit(meet, broker.access, 1, 3, 30.0)
            assert meet(broker.access, 0, 2, 30.0) == 2, "it has begun"
        with pytest.raises(EdgeFlError, match="broker of the neighbours' mail is gone"):
            exchange.collect(30.0)
        with pytest.raises(EdgeFlError, match="gone"):
            exchange.post(mail(1, 2, 1))
        exchange.close()
        with pytest.raises(EdgeFlError, match=r"gone.*consensus.carrier=.grid"):
            SocketExchange(broker.access, 0)
        with pytest.raises(EdgeFlError, match="gone"):
            meeting.result()


# ------------------------------------------------------------------------------------- mail faults


GOOD = {"reflection": torch.zeros(3)}


@pytest.mark.parametrize(
    ("vectors", "fault"),
    [
        (GOOD, None),
        ({}, "has nothing, not reflection"),
        ({**GOOD, "more": torch.zeros(3)}, "has more, reflection, not reflection"),
        ({"reflection": torch.zeros(4)}, r"shape \(4,\), not torch.float32 of shape \(3,\)"),
        ({"reflection": torch.zeros(3, 1)}, r"shape \(3, 1\)"),
        ({"reflection": torch.zeros(3, dtype=torch.float64)}, "is torch.float64"),
        ({"reflection": torch.tensor([0.0, float("nan"), 0.0])}, "NaN or infinite"),
        ({"reflection": torch.tensor([0.0, float("inf"), 0.0])}, "NaN or infinite"),
        ({"reflection": torch.tensor([float("inf"), -float("inf"), 0.0])}, "NaN or infinite"),
        ({"reflection": torch.tensor([3e38, 3e38, 0.0])}, None),  # whose sum is infinite
    ],
)
def test_mail_that_cannot_be_used_is_told_from_mail_that_can(vectors, fault: str | None) -> None:
    found = mail_fault(Mail(1, 2, 0, vectors), {"reflection": (3, torch.float32)}, 3)
    assert found is None if fault is None else re.search(fault, found or "")


@pytest.mark.parametrize("sent", [-1e17, 1e17, float("nan"), -float("inf")])
def test_mail_of_no_time_is_refused(sent: float) -> None:
    """The age of all mail is in the receiver's report, which would not be read any more."""
    mail = Mail(1, 2, 0, GOOD, sent)
    assert "was sent at" in (mail_fault(mail, {"reflection": (3, torch.float32)}, 3) or "")
