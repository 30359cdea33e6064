"""The mail router and connections to it: real processes, mutual TLS, and what must not pass."""

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client_apps import session_worker
from strategies.errors import ConfigError, EdgeFlError
from strategies.link import connection as connection_module
from strategies.link import keys
from strategies.link.connection import Connection
from strategies.link.router import Router, access_control
from strategies.link.transport import MESSAGE_LIMIT, import_zenoh
from strategies.site import SERVER, Site
from tests.certificates import HOST, deployment, free_port, issue, make_ca

pytest.importorskip("zenoh")

RUN = "0123456789abcdef"
NEIGHBOURS = {"ann": ["bob"], "bob": ["ann", "cyd"], "cyd": ["bob"]}
PATIENCE = 30.0


@contextmanager
def connecting(*sites: Site) -> Iterator[list[Connection]]:
    with ExitStack() as stack:
        connections = [Connection(site) for site in sites]
        for connection in connections:
            stack.callback(connection.close)
        yield connections


def until(true: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class Heard(queue.SimpleQueue):
    """Subscribes, and keeps what comes."""

    def __init__(self, connection: Connection, expression: str) -> None:
        self.end = connection.subscribe(expression, lambda key, data: self.put((key, data)))

    def next(self) -> tuple[str, bytes]:
        return self.get(timeout=PATIENCE)


def sent(connection: Connection, key: str, heard: Heard, payload: bytes = b"hello") -> bool:
    """Publish until it is heard: a subscription takes a moment to reach the router."""

    def arrived() -> bool:
        connection.publish(key, payload, urgent=True)
        time.sleep(0.05)
        return not heard.empty()

    return until(arrived) and heard.next() == (key, payload)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Site]:
    return deployment(tmp_path_factory.mktemp("sites"), *NEIGHBOURS)


@pytest.fixture(scope="module")
def router(sites: dict[str, Site], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    rules = access_control(RUN, NEIGHBOURS, NEIGHBOURS)
    router = Router(sites[SERVER], rules, tmp_path_factory.mktemp("log") / "router.log")
    yield router
    router.stop()


# ------------------------------------------------------------------------------------- the rules


def test_the_rules_name_nothing_but_a_partys_own_keys() -> None:
    rules = access_control(RUN, ["ann", "bob", "cyd"], NEIGHBOURS)
    assert (rules["enabled"], rules["default_permission"]) == (True, "deny")
    assert {tuple(s["cert_common_names"]) for s in rules["subjects"]} == {
        ("ann",), ("bob",), ("cyd",), ("server",)
    }  # fmt: skip
    allowed = {rule["id"]: set(rule["key_exprs"]) for rule in rules["rules"]}
    start = f"edge-fl/{RUN}"
    assert allowed["ann publishes"] == {
        f"{start}/{rest}"
        for rest in (
            "beat/ann",
            "reply/ann",
            "want/ann",
            "key/ann",
            "mail/bob/ann",
            "receipt/bob/ann",
        )
    }
    hears = {
        f"{start}/{rest}"
        for rest in ("order/ann", "piece/ann", "mail/ann/*", "receipt/ann/*", "key/bob")
    }
    assert allowed["ann subscribes"] == allowed["ann receives"] == {*hears, "edge-fl/now"}
    assert allowed["server publishes"] == {
        "edge-fl/now", f"{start}/order/*", f"{start}/piece/*"
    }  # fmt: skip
    assert allowed["server subscribes"] == {
        f"{start}/{kind}/*" for kind in ("beat", "reply", "want")
    }
    assert all(rule["permission"] == "allow" for rule in rules["rules"])


@pytest.mark.parametrize("name", ["", "*", "a/b", "a b", "$*", "é", "a" * 64, "-a"])
def test_a_name_that_would_be_more_than_a_name_in_a_key_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be called"):
        access_control(RUN, [name], {})


def test_who_needs_no_certificate_has_no_rules(tmp_path: Path) -> None:
    """On the loopback interface alone, and asked for by name."""
    found = deployment(tmp_path / "sites", "ann", insecure=True)
    router = Router(found[SERVER], access_control(RUN, ["ann"], {}), tmp_path / "log")
    try:
        with connecting(found[SERVER], found["ann"]) as (server, ann):
            heard = Heard(server, keys.beat(RUN, "*"))
            assert until(lambda: ann.connected)
            assert sent(ann, keys.beat(RUN, "ann"), heard)
        with socket.socket() as probe:  # another address of the same machine
            assert probe.connect_ex(("127.0.0.2", found[SERVER].mail_port)) != 0
    finally:
        router.stop()


# --------------------------------------------------------------------------------- what may pass


ALLOWED = {
    "the run that is served": (SERVER, keys.NOW, "ann", keys.NOW),
    "an order": (SERVER, keys.order(RUN, "ann"), "ann", keys.order(RUN, "ann")),
    "a reply": ("ann", keys.reply(RUN, "ann"), SERVER, keys.reply(RUN, "*")),
    "a beat": ("cyd", keys.beat(RUN, "cyd"), SERVER, keys.beat(RUN, "*")),
    "mail": ("ann", keys.mail(RUN, "bob", "ann"), "bob", keys.mail(RUN, "bob", "*")),
    "a receipt": ("bob", keys.receipt(RUN, "ann", "bob"), "ann", keys.receipt(RUN, "ann", "*")),
    "a question for a file": ("ann", keys.want(RUN, "ann"), SERVER, keys.want(RUN, "*")),
    "a piece of a file": (SERVER, keys.piece(RUN, "ann"), "ann", keys.piece(RUN, "ann")),
    "a public key": ("bob", keys.announcement(RUN, "bob"), "cyd", keys.announcement(RUN, "bob")),
}


@pytest.mark.parametrize("what", ALLOWED)
def test_what_is_allowed_arrives(sites: dict[str, Site], router: Router, what: str) -> None:
    sender, key, receiver, expression = ALLOWED[what]
    with connecting(sites[sender], sites[receiver]) as (one, other):
        heard = Heard(other, expression)
        assert until(lambda: one.connected and other.connected)
        assert sent(one, key, heard)


OURS = f"edge-fl/{RUN}/"
FORBIDDEN = {
    "mail to whom is no neighbour": (
        "ann",
        keys.mail(RUN, "cyd", "ann"),
        "cyd",
        OURS + "mail/cyd/*",
    ),
    "mail under another's name": ("ann", keys.mail(RUN, "bob", "cyd"), "bob", OURS + "mail/bob/*"),
    "mail to everybody": ("ann", keys.mail(RUN, "*", "ann"), "bob", OURS + "mail/bob/*"),
    "an order by a device": ("ann", keys.order(RUN, "bob"), "bob", OURS + "order/bob"),
    "a reply of another device": ("ann", keys.reply(RUN, "bob"), SERVER, OURS + "reply/*"),
    "a beat of another device": ("ann", keys.beat(RUN, "bob"), SERVER, OURS + "beat/*"),
    "a public key of another": ("ann", keys.announcement(RUN, "bob"), "cyd", OURS + "key/bob"),
    "a run by a device": ("ann", keys.NOW, "bob", keys.NOW),
    "another run": ("ann", keys.beat("f" * 16, "ann"), SERVER, keys.beat("f" * 16, "ann")),
    "mail by the server": (SERVER, keys.mail(RUN, "bob", "ann"), "bob", OURS + "mail/bob/*"),
    # From here on the publication is fine, and the subscription is not.
    "another's mailbox": ("ann", keys.mail(RUN, "bob", "ann"), "cyd", OURS + "mail/bob/ann"),
    "all mailboxes": ("ann", keys.mail(RUN, "bob", "ann"), "cyd", OURS + "mail/**"),
    "mail read by the server": ("ann", keys.mail(RUN, "bob", "ann"), SERVER, OURS + "mail/**"),
    "everything": ("ann", keys.mail(RUN, "bob", "ann"), "cyd", "**"),
    "a receipt of another": ("cyd", keys.receipt(RUN, "bob", "ann"), "bob", OURS + "receipt/bob/*"),
    "another's question": ("ann", keys.want(RUN, "bob"), SERVER, OURS + "want/*"),
    "a piece by a device": ("ann", keys.piece(RUN, "bob"), "bob", OURS + "piece/bob"),
    "another's pieces": (SERVER, keys.piece(RUN, "ann"), "bob", OURS + "piece/*"),
    "another's orders": (SERVER, keys.order(RUN, "ann"), "bob", OURS + "order/*"),
    "another's replies": ("ann", keys.reply(RUN, "ann"), "bob", OURS + "reply/ann"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_is_forbidden_does_not(sites: dict[str, Site], router: Router, what: str) -> None:
    """An allowed message that was sent later to the same receiver has come by then."""
    sender, key, receiver, expression = FORBIDDEN[what]
    sign = keys.beat(RUN, "bob") if receiver == SERVER else keys.order(RUN, receiver)
    authors = {SERVER: sites["bob"], "bob": sites[SERVER], "cyd": sites[SERVER]}
    with connecting(sites[sender], sites[receiver], authors[receiver]) as (one, other, author):
        forbidden = Heard(other, expression)
        signs = Heard(other, sign)
        assert until(lambda: one.connected and other.connected and author.connected)
        assert sent(author, sign, signs)
        for _ in range(3):
            assert one.publish(key, b"forbidden", urgent=True)
            time.sleep(0.05)
        assert sent(author, sign, signs, b"later")
        taken = [forbidden.get() for _ in range(forbidden.qsize())]
        assert [payload for _, payload in taken if payload == b"forbidden"] == []


STRANGERS = {
    "no certificate": "",  # it does not even speak TLS
    "foreign authority": "has a certificate that is not trusted here",
    "foreign certificate": "does not take the certificate in .*: .*UNKNOWN_CA",
    "expired": "does not take the certificate in .*: .*EXPIRED",
}


@pytest.mark.parametrize("who", STRANGERS)
def test_strangers_cannot_connect(tmp_path: Path, who: str) -> None:
    authority, foreign, port = make_ca(), make_ca("another authority"), free_port()
    known = [issue(authority, name, tmp_path / name, port=port) for name in (SERVER, "ann")]
    issuer = foreign if who.startswith("foreign") else authority
    days, insecure = -1 if who == "expired" else 30, who == "no certificate"
    place = tmp_path / "stranger"
    stranger = issue(issuer, "bob", place, port=port, days=days, insecure=insecure)
    if who == "foreign certificate":  # it trusts the router, but not the other way round
        (place / "ca.crt").write_bytes((tmp_path / "ann" / "ca.crt").read_bytes())
    router = Router(known[0], access_control(RUN, ["ann", "bob"], {}), tmp_path / "log")
    try:
        with connecting(stranger, known[1]) as (one, ann):
            assert until(lambda: ann.connected)
            time.sleep(1.0)  # two attempts
            assert not one.connected
            assert not one.publish(keys.beat(RUN, "bob"), b"")
            assert one.dropped == 1
            assert re.search(STRANGERS[who], one.fault())
            assert ann.fault() == ""
    finally:
        router.stop()


# ------------------------------------------------------------------------------------ the process


def test_a_router_that_was_killed_comes_back_and_so_does_everybody(tmp_path: Path) -> None:
    sites = deployment(tmp_path, "ann", "bob")
    neighbours = {"ann": ["bob"], "bob": ["ann"]}
    with connecting(sites["ann"], sites["bob"]) as (ann, bob):  # before there is a router
        heard = Heard(bob, keys.mail(RUN, "bob", "*"))
        assert not ann.connected
        assert not ann.publish(keys.mail(RUN, "bob", "ann"), b"nobody is there")
        assert "cannot be reached" in ann.fault()
        router = Router(sites[SERVER], access_control(RUN, neighbours, neighbours), tmp_path / "l")
        try:
            assert until(lambda: ann.connected and bob.connected)
            assert sent(ann, keys.mail(RUN, "bob", "ann"), heard)
            assert not router.tend()
            for killed in (1, 2):
                os.kill(router.pid, 9)
                assert until(lambda: not ann.connected and not bob.connected)
                assert router.tend()
                assert router.restarts == killed
                assert until(lambda: ann.connected and bob.connected)
                assert sent(ann, keys.mail(RUN, "bob", "ann"), heard, b"again %d" % killed)
        finally:
            router.stop()


def test_a_router_that_hangs_is_noticed(tmp_path: Path) -> None:
    sites = deployment(tmp_path, "ann")
    router = Router(sites[SERVER], access_control(RUN, ["ann"], {}), tmp_path / "log")
    try:
        with connecting(sites["ann"]) as (ann,):
            assert until(lambda: ann.connected)
            os.kill(router.pid, signal.SIGSTOP)
            assert until(lambda: not ann.connected)
            os.kill(router.pid, signal.SIGCONT)
            assert until(lambda: ann.connected)
    finally:
        router.stop()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    site = deployment(tmp_path, insecure=True)[SERVER]
    with socket.socket() as taken:
        taken.bind((HOST, site.mail_port))
        taken.listen()
        with pytest.raises(EdgeFlError, match=rf"cannot listen on port {site.mail_port}: .*in use"):
            Router(site, {}, tmp_path / "log")


PARENT = """
import json, sys, time
from pathlib import Path
from strategies.site import read_site
from strategies.link.router import Router
router = Router(read_site(sys.argv[1]), {}, Path(sys.argv[2]))
print(router.pid, flush=True)
time.sleep(600)
"""


def test_a_router_dies_with_its_parent(tmp_path: Path) -> None:
    site = deployment(tmp_path, insecure=True)[SERVER]
    command = [sys.executable, "-c", PARENT, str(site.directory), str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.kill()

    def gone() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, site.mail_port)) != 0

    assert until(gone)


# -------------------------------------------------------------------------------- the connection


def test_a_big_message_arrives_whole(sites: dict[str, Site], router: Router) -> None:
    payload, key = os.urandom(10_000_000), keys.mail(RUN, "bob", "ann")
    with connecting(sites["ann"], sites["bob"]) as (ann, bob):
        heard = Heard(bob, keys.mail(RUN, "bob", "*"))
        assert until(lambda: ann.connected and bob.connected)
        assert sent(ann, key, heard)
        while not heard.empty():
            heard.get()
        assert ann.publish(key, payload)
        assert until(lambda: not heard.empty())
        assert payload in [heard.next()[1] for _ in range(heard.qsize())]
        assert not ann.publish(key, bytes(MESSAGE_LIMIT + 1))
        assert ann.dropped == 1


def test_what_was_published_is_sent_before_the_end(sites: dict[str, Site], router: Router) -> None:
    key, replies = keys.reply(RUN, "ann"), [os.urandom(2_000_000) for _ in range(5)]
    with connecting(sites[SERVER]) as (server,):
        heard = Heard(server, keys.reply(RUN, "*"))
        ann = Connection(sites["ann"])
        assert until(lambda: ann.connected and server.connected)
        assert sent(ann, key, heard)
        for reply in replies:
            assert ann.publish(key, reply, urgent=True)
        ann.close()
        assert not ann.connected
        assert not ann.publish(key, b"too late", urgent=True)
        ann.close()
        found = [heard.next()[1] for _ in range(len(replies))]
        while found[0] == b"hello":
            found = [*found[1:], heard.next()[1]]
        assert found == replies


def test_a_callback_that_fails_is_counted_and_the_next_is_called(
    sites: dict[str, Site], router: Router
) -> None:
    with connecting(sites[SERVER], sites["ann"]) as (server, ann):

        def fail(key: str, payload: bytes) -> None:
            raise ValueError(key)

        ann.subscribe(keys.order(RUN, "ann"), fail)
        heard = Heard(ann, keys.order(RUN, "ann"))
        assert until(lambda: server.connected and ann.connected)
        assert sent(server, keys.order(RUN, "ann"), heard)
        assert until(lambda: ann.failed > 0)


def test_what_the_session_does_not_take_after_all_is_counted_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`publish` has said yes by then."""
    zenoh = pytest.importorskip("zenoh")

    def put(*_: Any, **__: Any) -> None:
        raise zenoh.ZError("no buffers")

    info = SimpleNamespace(routers_zid=lambda: [1])
    broken = SimpleNamespace(info=info, put=put, close=lambda: None)
    monkeypatch.setattr(connection_module, "open_session", lambda _: broken)
    connection = Connection(deployment(tmp_path, "ann")["ann"])
    assert until(lambda: connection.connected)
    for number in range(3):
        assert connection.publish(f"key/{number}", b"", urgent=number < 2)
    assert until(lambda: connection.dropped == 3)
    told = [r.getMessage() for r in caplog.records if "no buffers" in r.getMessage()]
    assert len(told) == 1
    connection.close()


def test_a_callback_may_answer(sites: dict[str, Site], router: Router) -> None:
    with connecting(sites[SERVER], sites["ann"]) as (server, ann):
        answer = keys.reply(RUN, "ann")
        ann.subscribe(keys.order(RUN, "ann"), lambda key, data: ann.publish(answer, data * 2))
        heard = Heard(server, answer)
        assert until(lambda: server.connected and ann.connected)

        def answered() -> bool:
            server.publish(keys.order(RUN, "ann"), b"go", urgent=True)
            time.sleep(0.05)
            return not heard.empty()

        assert until(answered)
        assert heard.next() == (answer, b"gogo")
        assert ann.failed == 0


def test_a_subscription_ends(sites: dict[str, Site], router: Router) -> None:
    with connecting(sites[SERVER], sites["ann"]) as (server, ann):
        first = Heard(ann, keys.order(RUN, "ann"))
        assert until(lambda: server.connected and ann.connected)
        assert sent(server, keys.order(RUN, "ann"), first)
        first.end()
        while not first.empty():
            first.get()
        second = Heard(ann, keys.order(RUN, "ann"))
        assert sent(server, keys.order(RUN, "ann"), second, b"later")
        assert b"later" not in [first.get()[1] for _ in range(first.qsize())]


def test_of_mail_in_the_outbox_the_newest_is_sent(sites: dict[str, Site], router: Router) -> None:
    """More than the link can take at once; nobody waits, and the last one arrives."""
    key = keys.mail(RUN, "bob", "ann")
    with connecting(sites["ann"], sites["bob"]) as (ann, bob):
        heard = Heard(bob, keys.mail(RUN, "bob", "*"))
        assert until(lambda: ann.connected and bob.connected)
        assert sent(ann, key, heard)
        for number in range(100):
            assert ann.publish(key, number.to_bytes(1, "big") * 5_000_000)
        last = b"hello"
        while last[0] != 99:
            last = heard.next()[1]
        assert ann.overtaken > 0


def test_the_application_runs_without_zenoh(tmp_path: Path) -> None:
    """It is imported when a connection is made, and its absence has a way out."""
    site = deployment(tmp_path, insecure=True)[SERVER]
    code = f"""
import sys
sys.modules["zenoh"] = None
from strategies.site import read_site
from strategies.link.connection import Connection
Connection(read_site({json.dumps(str(site.directory))}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'cryptography>=" in done.stderr


def test_a_beat_overtakes_a_reply_that_is_long_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was to follow the reply does."""
    slow, sent, ways = threading.Event(), list[bytes](), list[tuple[Any, Any]]()

    def put(_: str, payload: bytes, **how: Any) -> None:
        if payload == b"reply":
            assert slow.wait(PATIENCE)
        sent.append(payload)
        ways.append((how["priority"], how["congestion_control"]))

    info = SimpleNamespace(routers_zid=lambda: [1])
    session = SimpleNamespace(info=info, put=put, close=lambda: None)
    monkeypatch.setattr(connection_module, "open_session", lambda _: session)
    connection = Connection(deployment(tmp_path, "ann")["ann"])
    assert until(lambda: connection.connected)
    assert connection.publish("reply/ann", b"reply", sure=True)
    assert connection.publish("beat/ann", b"behind it", sure=True)
    assert connection.publish("mail/ann", b"mail")
    assert until(lambda: sent == [b"mail"])
    assert connection.publish("beat/ann", b"beat", urgent=True)
    assert until(lambda: sent == [b"mail", b"beat"])
    slow.set()
    assert until(lambda: sent == [b"mail", b"beat", b"reply", b"behind it"])
    assert ways[2] == ways[3] != ways[1] != ways[0], "within one priority nothing overtakes"
    block = import_zenoh().CongestionControl.BLOCK
    assert [control == block for _, control in ways] == [False, True, True, True]
    connection.close()


def test_the_router_is_not_held_up_as_long_as_a_device_may_be_silent(
    sites: dict[str, Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it sends a mail to a slow device, it reads nothing from who has sent the mail: for a
    quarter of that time at most."""
    monkeypatch.setattr(Router, "_start", lambda self: None)
    router = Router(sites[SERVER], {}, tmp_path / "log", patience=20.0)
    path = "transport/link/tx/queue/congestion_control"
    assert router._configuration[path]["drop"]["max_wait_before_drop_fragments"] == 5_000_000


@pytest.mark.parametrize(
    ("fault", "asked"),
    [("does not take the certificate", 1), ("cannot be reached", 2), ("", 2)],
)
def test_a_device_waits_for_a_router_that_is_held_up_but_not_for_one_that_refuses_it(
    sites: dict[str, Site], monkeypatch: pytest.MonkeyPatch, fault: str, asked: int
) -> None:
    faults: list[str] = []

    def ask() -> str:
        faults.append(fault)
        return fault

    monkeypatch.setattr(session_worker, "_ASK_SECONDS", 0.0)
    monkeypatch.setattr(session_worker, "_CONNECT_SECONDS", 0.3)
    never = SimpleNamespace(connected=False, fault=ask)
    with pytest.raises(EdgeFlError, match=fault or "does not answer"):
        session_worker._await_router(never, sites["ann"])
    assert len(faults) == asked
    session_worker._await_router(SimpleNamespace(connected=True), sites["ann"])
