"""Sessions: orders to devices and their replies over a real router, through what can go wrong."""

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from client_apps import session
from fl_app.launch.supervise import descendants
from strategies.dispatch import Dispatcher
from strategies.errors import EdgeFlError
from strategies.fingerprint import fingerprint
from strategies.link import keys, pieces, sessions, under_way
from strategies.link.connection import Connection
from strategies.link.device_session import DeviceSession
from strategies.link.orders import Order
from strategies.link.pieces import PIECE
from strategies.link.records import content_of, parts_of
from strategies.link.sessions import SessionGrid
from strategies.link.wire import encode
from strategies.site import Site, read_site
from tests.fake_grid import FakeGrid
from tests.narrow import Narrow

RUN_CONFIG = {"participants": 2}


def wait(done: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def site_of(tmp_path: Path) -> Callable[[str], Site]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def make(name: str) -> Site:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        content = {"name": name, "host": "127.0.0.1", "mail-port": port, "insecure": True}
        (place / "site.json").write_text(json.dumps(content))
        return read_site(place)

    return make


class Setup:
    """A server with two devices, of which "one" is in the hands of a fake grid if asked for."""

    def __init__(self, tmp_path: Path, site_of: Callable[[str], Site], patience: float) -> None:
        self.site_of, self.said = site_of, list[str]()
        node = {"name": "one", "site": str(site_of("one").directory)}
        self.flower = FakeGrid(RUN_CONFIG, node_configs=[node])
        self.flower.contexts = {}  # nobody is online
        self.node = FakeGrid(RUN_CONFIG, node_configs=[node]).contexts
        self.grid = SessionGrid(
            self.flower,
            site_of("server"),
            ("one", "two"),
            {},
            patience=patience,
            limit=1 << 20,
            log=tmp_path / "router.log",
            say=self.said.append,
        )
        self.dispatcher = Dispatcher(self.grid)
        self.closing: list[Callable[[], None]] = []

    def line(
        self, name: str = "one", kind: type[DeviceSession] = DeviceSession, port: int = 0
    ) -> DeviceSession:
        """A device that the test plays; port: of another way to the router."""
        site = self.site_of(name)
        connection = Connection(replace(site, mail_port=port) if port else site)
        wait(lambda: connection.connected)
        facts = {"fingerprint": fingerprint(), "node": 7}
        line = kind(connection, self.site_of(name), self.grid.token, facts, 20.0)
        self.closing += [line.close, connection.close]
        wait(lambda: name in self.grid.here())
        return line

    def send(
        self, kind: str = "train.local", node: int = 1, length: int = 0, **config: int | str
    ) -> str:
        content = RecordDict({"config": ConfigRecord({**config})})
        if length:
            content["arrays"] = ArrayRecord({"w": Array(np.arange(length, dtype=np.float32))})
        message = Message(content, node, kind)
        message_id = self.dispatcher.send(message, 60.0)
        assert message_id
        return message_id

    def reply(self) -> Message:
        found: list[Message] = []
        wait(lambda: bool(found.extend(self.dispatcher.collect()) or found))
        return found[0]

    def fault(self) -> str:
        return self.reply().error.reason or ""


@pytest.fixture
def make(tmp_path: Path, site_of: Callable[[str], Site]) -> Iterator[Callable[..., Setup]]:
    made: list[Setup] = []

    def start(patience: float = 20.0) -> Setup:
        made.append(Setup(tmp_path, site_of, patience))
        return made[-1]

    yield start
    for setup in made:
        for close in setup.closing:
            close()
        setup.grid.close()


def answer(line: DeviceSession, order: Order | None, **config: int) -> None:
    assert order is not None
    line.answer(order, {"config": {"config": config}, "metrics": {}, "arrays": []}, {})


def test_records_are_the_same_after_the_journey() -> None:
    content = RecordDict(
        {
            "config": ConfigRecord({"a": [1, 2], "b": 0.1, "c": "x", "d": True, "e": []}),
            "metrics": MetricRecord({"loss": 1 / 3, "tally": [1, 2]}),
            "arrays": ArrayRecord({"w/x": Array(np.arange(3.0)), "b": Array(np.zeros(0))}),
            "none": ArrayRecord({}),
        }
    )
    header, arrays = parts_of(content)
    again = content_of(json.loads(json.dumps(header)), arrays)
    assert again == content


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"config": 1, "metrics": {}, "arrays": []},
        {"config": {"config": {"a": None}}, "metrics": {}, "arrays": []},
        {"config": {}, "metrics": {"m": {"a": "text"}}, "arrays": []},
        {"config": {}, "metrics": {}, "arrays": 5},
    ],
)
def test_what_is_no_record_is_refused(header: dict) -> None:
    with pytest.raises(ValueError, match="no records"):
        content_of(header, {})


def test_a_device_is_invited_and_serves_orders(
    make: Callable[..., Setup], capfd: pytest.CaptureFixture[str]
) -> None:
    setup = make()
    setup.flower.contexts |= setup.node
    wait(lambda: setup.grid.here() == ["one"])
    assert list(setup.grid.get_node_ids()) == [1]
    setup.send("query.hello")
    config = dict(setup.reply().content["config"])  # type: ignore[call-overload]
    assert (config["name"], config["fingerprint"]) == ("one", fingerprint())
    setup.send("query.prepare", participants=0, data="")  # a number where there must be a list
    fault = setup.fault()
    assert fault.startswith("ValueError: no PrepareOrder: participants: int, not list (")
    assert re.search(r"client_apps/local_training.py:\d+ in prepare", fault)
    log = capfd.readouterr().err
    assert "Traceback (most recent call last)" in log
    assert "in prepare" in log
    setup.send("query.hello")
    assert not setup.reply().has_error()  # and goes on
    invitation = setup.flower.sent[0]
    assert invitation.metadata.message_type == "train.session"
    setup.grid.close()
    found: list[Message] = []
    ids = [invitation.metadata.message_id]
    wait(lambda: bool(found.extend(setup.flower.pull_messages(ids)) or found))
    assert dict(found[0].content["config"])["served"] == 3  # type: ignore[call-overload]


def test_devices_that_take_no_part_are_not_invited(make: Callable[..., Setup]) -> None:
    setup = make()
    setup.grid._invitations._others = frozenset({"two", "three"})
    configs = [{"name": name} for name in ("two", "one", "three")]
    setup.flower.contexts |= FakeGrid(RUN_CONFIG, node_configs=configs).contexts
    wait(lambda: bool(setup.flower.sent))
    time.sleep(2 * sessions._ONLINE_SECONDS)
    assert {message.metadata.dst_node_id for message in setup.flower.sent} == {12}


def test_a_session_that_raises_is_told_and_not_begun_again_at_once(
    make: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> dict:
        return {}["no such thing"]

    monkeypatch.setattr(session, "_job_of", broken)
    setup = make()
    setup.flower.contexts |= setup.node
    wait(lambda: bool(setup.said))
    time.sleep(3 * sessions._ONLINE_SECONDS)
    [said] = setup.said
    assert said.startswith("one has no session: KeyError: 'no such thing' (")
    assert len(setup.flower.sent) == 1


@pytest.mark.parametrize("here", [False, True])
def test_a_device_that_is_too_slow_for_flower_is_named(
    make: Callable[..., Setup], here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_job_of", {}.__getitem__)  # or it would serve

    def crashed(message: Message, _: Message) -> Message:
        return Message(Error(8, "ClientApp stopped responding."), reply_to=message)

    setup = make()
    if here:  # its own process serves, and it is Flower's that has died
        setup.line()
    setup.flower.tamper = crashed
    setup.flower.contexts |= setup.node
    wait(lambda: len(setup.flower.sent) > (2 if here else 0))
    time.sleep(2 * sessions._ONLINE_SECONDS)
    if here:
        assert setup.said == []
    else:
        [said] = setup.said
        assert said.startswith("one has no session: ClientApp stopped responding. (it was killed,")
        assert len(setup.flower.sent) == 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_devices_process_that_dies_is_started_again(make: Callable[..., Setup]) -> None:
    wait(lambda: not workers())  # those of the tests before are on their way out
    setup = make()
    setup.flower.contexts |= setup.node
    wait(lambda: setup.grid.here() == ["one"])
    assert setup.grid.started["one"] == 1
    found: list[int] = []

    def alone() -> bool:
        """It is; but a child that it has just forked has its command line for a moment."""
        found[:] = workers()
        return len(found) == 1

    wait(alone)
    os.kill(found[0], signal.SIGKILL)
    wait(lambda: setup.grid.started["one"] == 2)
    setup.send("query.hello")
    assert not setup.reply().has_error()
    assert len(setup.flower.sent) == 1, "no new message of Flower's"


def workers() -> list[int]:
    """The processes that serve sessions and come from this one."""
    found = []
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if b"client_apps.session_worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_who_is_not_there_fails_at_once(make: Callable[..., Setup]) -> None:
    setup = make()
    setup.send(node=2)
    assert setup.fault() == "two has not come yet"


def test_a_silent_device_is_given_up(make: Callable[..., Setup]) -> None:
    setup = make(patience=3.0)
    line = setup.line()
    setup.send()
    assert line.next() is not None
    line.close()
    assert "silent for 3 s" in setup.fault()
    assert setup.grid.here() == []


def test_an_order_goes_to_the_process_that_replaces_another(make: Callable[..., Setup]) -> None:
    setup, slept = make(), 0.0
    for _ in range(sessions._MOST_PROCESSES):
        line = setup.line()
        if not setup.dispatcher.busy():
            setup.send(index=4)
        order = line.next()
        assert order is not None
        assert order.header["config"] == {"config": {"index": 4}}
        # How old it is, for what is computed by the run's clock.
        assert (order.waited >= slept) if slept else (order.waited < 1.0)
        assert line.waited == order.waited
        time.sleep(0.3)
        slept += 0.3
        line.close()
        line.connection.close()
    line = setup.line()
    answer(line, line.next(), index=5)
    assert dict(setup.reply().content["config"]) == {"index": 5}  # type: ignore[call-overload]
    assert setup.said == ["one is back with a new process"] * sessions._MOST_PROCESSES


def test_an_order_that_ends_every_process_is_given_up(make: Callable[..., Setup]) -> None:
    setup = make()
    line = setup.line()
    setup.send()
    for _ in range(sessions._MOST_PROCESSES + 1):
        line.close()
        line = setup.line()
    assert "has lost 3 processes" in setup.fault()


class Deaf(DeviceSession):
    """Misses the first order, and loses its first reply."""

    def __init__(self, *arguments) -> None:
        self.missed, self.lost = 0, 0
        super().__init__(*arguments)

    def _take(self, key: str, payload: bytes) -> None:
        self.missed += 1
        if self.missed > 1:
            super()._take(key, payload)

    def _reply(self) -> None:
        self.lost += 1
        if self.lost > 1:
            super()._reply()


def test_what_gets_lost_is_sent_again_and_done_once(
    make: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_way, "REPEAT_SECONDS", 0.1)
    setup = make()
    line = setup.line(kind=Deaf)
    setup.send()
    answer(line, line.next(), index=1)
    assert dict(setup.reply().content["config"]) == {"index": 1}  # type: ignore[call-overload]
    assert line._orders.empty()


def test_what_is_on_its_way_is_not_sent_again(
    make: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it is: lost is what does not come before something that was sent later."""
    monkeypatch.setattr(sessions, "BEAT_SECONDS", 1e9)  # the test counts what everybody is told
    setup, ordered = make(), list[int]()
    grid, publish = setup.grid, setup.grid._connection.publish

    def counted(key: str, payload: bytes, **how: Any) -> bool:
        if key == keys.order(grid.token, "one"):
            ordered.append(grid._told)
        return publish(key, payload, **how)

    monkeypatch.setattr(grid._connection, "publish", counted)

    def beat(newest: int, answered: int, told: int) -> None:
        state = {"session": "s", "newest": newest, "answered": answered, "told": told}
        facts = {"fingerprint": fingerprint(), "node": 7}
        if (order := grid._devices["one"].order) is not None:
            order.repeat = 0.0  # the pause is over
        grid._on_beat(keys.beat(grid.token, "one"), encode("beat", {**facts, **state}, {}))

    wait(lambda: grid._told == 1)
    beat(0, 0, 0)
    first = grid._told
    setup.send()
    grid._publish_now()
    beat(0, 0, first)  # it hears of the order, perhaps
    assert ordered == [first]
    beat(0, 0, first + 1)
    assert ordered == [first, first + 1]
    beat(0, 0, first + 1)
    beat(1, 0, first + 1)
    grid._publish_now()
    beat(1, 0, first + 2)  # it works
    beat(1, 1, first + 1)  # it has answered the order that came first
    assert ordered == [first, first + 1]
    beat(1, 1, first + 2)  # and the one that came next: both replies are lost
    assert ordered == [first, first + 1, first + 2]


LONG = 5 * PIECE // 4  # numbers: five pieces, and what is told of them


def weights_of(order: Order | None) -> np.ndarray:
    assert order is not None
    arrays = content_of(order.header, order.arrays).array_records["arrays"]
    return arrays.to_numpy_ndarrays()[0]


class Losing(DeviceSession):
    """Loses the second piece that comes."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        take, come = self._pieces._take, []
        self._pieces.close()

        def lossy(key: str, payload: bytes) -> None:
            come.append(payload)
            if len(come) != 2:
                take(key, payload)

        self.connection.subscribe(keys.piece(self.run, self.site.name), lossy)


@pytest.mark.parametrize("kind", [DeviceSession, Losing])
def test_a_long_order_comes_in_pieces(
    kind: type[DeviceSession], make: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_ASK_SECONDS", 0.2)
    setup = make()
    line = setup.line(kind=kind)
    longest = 0
    publish = setup.grid._connection.publish

    def measured(key: str, payload: bytes, **how: Any) -> bool:
        nonlocal longest
        longest = max(longest, len(payload))
        return publish(key, payload, **how)

    monkeypatch.setattr(setup.grid._connection, "publish", measured)
    setup.send(length=LONG)
    order = line.next()
    np.testing.assert_array_equal(weights_of(order), np.arange(LONG, dtype=np.float32))
    assert PIECE < longest < 2 * PIECE
    assert setup.grid._asked("two", "order/1") == b"", "it is nobody else's"
    assert setup.grid.pieces.sent["one"] > 4 * LONG
    under_way = setup.grid._devices["one"].order
    assert under_way is not None
    wait(lambda: not under_way.content)  # it has come: the server needs it no more
    answer(line, order, index=1)
    assert dict(setup.reply().content["config"]) == {"index": 1}  # type: ignore[call-overload]


def test_a_process_that_ends_among_the_pieces_leaves_the_order_to_the_next(
    make: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = make()
    line = setup.line()
    monkeypatch.setattr(setup.grid.pieces, "_connection", Silent())
    setup.send(length=LONG)
    fetching = threading.Thread(target=line.next)
    fetching.start()
    wait(lambda: line._announced == 1)
    assert line._newest == 0
    line.over = "it is killed"
    fetching.join()
    line.close()
    monkeypatch.undo()
    np.testing.assert_array_equal(
        weights_of(setup.line().next()), np.arange(LONG, dtype=np.float32)
    )


class Silent:
    """Carries nothing."""

    def publish(self, *_: Any, **__: Any) -> bool:
        return False


def test_an_order_that_is_over_before_it_has_come_is_left(make: Callable[..., Setup]) -> None:
    """The next one is not: its device hears that there is no such order any more."""
    setup = make()
    line = setup.line()
    setup.send(length=LONG)
    wait(lambda: line._announced == 1)
    setup.grid._devices["one"].order = None
    setup.send(index=2)
    order = line.next()
    assert order is not None
    assert order.number == 2


def test_a_slow_device_holds_up_no_other(make: Callable[..., Setup]) -> None:
    """A router that sends one device an order of 16 MB at once reads nothing meanwhile: the other's
    order waits until nearly all of it has gone."""
    setup = make()
    cable = Narrow(setup.site_of("server").mail_port, rate=2e6)
    setup.closing.append(cable.close)
    slow, fast = setup.line("one", port=cable.port), setup.line("two")
    thread = threading.Thread(target=slow.next)
    thread.start()
    setup.send(node=1, length=4_000_000)
    wait(lambda: cable.sent["down"] > 1e6)
    setup.send(node=2, length=4_000_000)
    assert len(weights_of(fast.next())) == 4_000_000
    assert cable.sent["down"] < 8e6
    slow.over = "the test is"
    thread.join()


def test_a_second_reply_to_an_order_is_late_and_no_fault(make: Callable[..., Setup]) -> None:
    """An order that seems lost is sent again, and may be answered twice; one that was given up,
    too late."""
    setup = make()
    line = setup.line()
    setup.send()
    answer(line, line.next(), index=1)
    assert not setup.reply().has_error()
    line._reply()
    wait(lambda: setup.grid.refused == {"reply: late": 1})
    setup.send()
    line._reply()  # while another is under way
    wait(lambda: setup.grid.refused == {"reply: late": 2})
    assert setup.said == []
    answer(line, line.next(), index=2)
    assert not setup.reply().has_error()
    payload = encode("reply", {"number": 3, "config": {}, "metrics": {}, "arrays": []}, {})
    line.connection.publish(keys.reply(line.run, "one"), payload, urgent=True)
    wait(lambda: setup.grid.refused == {"reply: late": 2, "reply: unasked": 1})
    assert ["unasked" in said for said in setup.said] == [True]


def test_a_reply_that_is_none_is_an_error(make: Callable[..., Setup]) -> None:
    setup = make()
    line = setup.line()
    setup.send()
    assert line.next() is not None
    payload = encode("reply", {"number": 1, "config": 3}, {})
    line.connection.publish(keys.reply(line.run, "one"), payload, urgent=True)
    assert "a reply that is none" in setup.fault()


def test_other_code_is_refused(make: Callable[..., Setup]) -> None:
    setup = make()
    connection = Connection(setup.site_of("one"))
    wait(lambda: connection.connected)
    line = DeviceSession(
        connection, setup.site_of("one"), setup.grid.token, {"fingerprint": "old"}, 20.0
    )
    setup.closing += [line.close, connection.close]
    wait(lambda: setup.grid.unreachable() == {"one": "it runs other code than the server"})
    assert setup.grid.here() == []


def test_the_server_ends_a_window_and_the_run(make: Callable[..., Setup]) -> None:
    setup = make()
    line = setup.line()
    setup.grid.announce(3)
    wait(lambda: line.window == 3)
    setup.grid.announce(2)
    setup.grid.close()
    wait(lambda: line.over == "the run is over")
    assert line.window == 3
    assert line.next() is None


def test_a_router_that_dies_is_replaced(make: Callable[..., Setup]) -> None:
    setup = make()
    line = setup.line()
    setup.grid._router._process.kill()
    wait(lambda: setup.grid.restarts == 1)
    setup.send(index=1)
    answer(line, line.next(), index=2)
    assert dict(setup.reply().content["config"]) == {"index": 2}  # type: ignore[call-overload]
    assert "the mail router died and has been started again" in setup.said


def test_nothing_stands_still_while_the_superlink_is_away(
    make: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's calls last as long."""
    asked, back = threading.Event(), threading.Event()

    def away(_: FakeGrid) -> list[int]:
        asked.set()
        back.wait(60.0)
        return []

    monkeypatch.setattr(FakeGrid, "get_node_ids", away)
    setup = make(patience=3.0)
    setup.line().close()
    assert asked.wait(10.0)
    setup.send()
    assert "one has been silent for 3 s" in setup.fault()
    began = time.monotonic()
    setup.grid.close()
    assert time.monotonic() - began < 20.0
    back.set()


def test_flowers_failure_is_told_to_who_uses_the_grid(make: Callable[..., Setup]) -> None:
    setup = make()

    def broken() -> list[int]:
        raise RuntimeError("no such run")

    setup.flower.get_node_ids = broken  # type: ignore[method-assign]
    with pytest.raises(EdgeFlError, match="no such run"):
        wait(lambda: bool(list(setup.grid.get_node_ids())))


class Kept:
    """An exchange that is kept between orders."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_session_keeps_one_exchange_between_orders(make: Callable[..., Setup]) -> None:
    setup = make()
    session, made = setup.line(), [Kept(), Kept()]
    for key, expected in (("a", 0), ("a", 0), ("b", 1)):
        assert session.kept(key, lambda n=expected: made[n]) is made[expected]  # type: ignore[arg-type, return-value]
    assert [each.closed for each in made] == [1, 0]
    session.close()
    assert [each.closed for each in made] == [1, 1]
