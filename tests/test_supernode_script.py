"""The device's own start of Flower: bundles that are kept, and processes that are forked."""

import gc
import hashlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab

from fl_app.deploy.templates.device import supernode

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

# What the nursery's processes import, from a path of their own.
WORK = """
import os, time
def double(argument):
    return 2 * argument
def die(argument):
    os.kill(os.getpid(), argument)
def last(argument):
    parent = os.getppid()
    print(os.getpid(), file=open(argument + ".pid", "w"), flush=True)
    while os.getppid() == parent:
        time.sleep(0.02)
    open(argument, "w").close()
"""


def fab(content: bytes, **verifications: str) -> Fab:
    return Fab(hashlib.sha256(content).hexdigest(), content, verifications)


class Server:
    """What the SuperNode would ask, and how often it has."""

    def __init__(self, *fabs: Fab) -> None:
        self.fabs, self.asked = {each.hash_str: each for each in fabs}, list[str]()

    def __call__(self, fab_hash: str, run_id: int) -> Fab:
        self.asked.append(fab_hash)
        return self.fabs[fab_hash]


def test_a_bundle_comes_once(tmp_path: Path) -> None:
    one, two = fab(b"one"), fab(b"two")
    server = Server(one, two)
    for each in (one, two, one, two, one):
        assert supernode.bundle(server, tmp_path / "kept", each.hash_str, 1) == each
    assert server.asked == [one.hash_str, two.hash_str]


def test_a_damaged_bundle_comes_again(tmp_path: Path) -> None:
    server = Server(one := fab(b"one"))
    supernode.bundle(server, tmp_path, one.hash_str, 1)
    [kept] = tmp_path.iterdir()
    kept.write_bytes(b"on")
    assert supernode.bundle(server, tmp_path, one.hash_str, 2) == one
    assert len(server.asked) == 2
    assert kept.read_bytes() == b"one"


def test_what_has_not_its_hash_and_what_is_signed_is_not_kept(tmp_path: Path) -> None:
    false = Fab(hashlib.sha256(b"other").hexdigest(), b"one", {})
    outside = Fab("../../outside", b"one", {})
    signed = fab(b"signed", key="signature")
    for each in (false, outside, signed):
        assert supernode.bundle(Server(each), tmp_path / "kept", each.hash_str, 1) == each
    assert not (tmp_path / "kept").exists()
    assert not list(tmp_path.parent.glob("outside*"))


def test_the_newest_bundles_are_kept(tmp_path: Path) -> None:
    fabs = [fab(bytes([number])) for number in range(5)]
    server = Server(*fabs)
    for position, each in enumerate(fabs):
        supernode.bundle(server, tmp_path, each.hash_str, 1)
        for path in tmp_path.iterdir():  # a file system's clock may be coarse
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9 * (5 - position)))
    supernode.bundle(server, tmp_path, fabs[-1].hash_str, 1)
    assert len(server.asked) == 5
    assert len(list(tmp_path.iterdir())) == supernode.KEPT_BUNDLES


def test_a_bundle_is_not_kept_without_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert supernode.bundle(Server(one := fab(b"one")), tmp_path, one.hash_str, 1) == one


def test_a_fork_ends_with_the_status_of_its_work() -> None:
    def ending(work: object) -> int:
        pid = supernode.fork("name", work)  # type: ignore[arg-type]
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert ending(lambda: None) == 0
    assert ending(lambda: sys.exit(7)) == 7
    assert ending(lambda: sys.exit("a text")) == 1
    assert ending(lambda: {}["no such thing"]) == 1
    assert ending(lambda: os.kill(os.getpid(), signal.SIGTERM)) == -signal.SIGTERM


def test_the_collector_leaves_alone_what_was_there_before_the_forks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    def forked(name: str, _: object) -> int:
        done.append(name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", ["supernode.py", "--host", "127.0.0.1", "--port", "1"])
        patched.setattr(supernode, "share_what_is_imported", lambda: done.append("shared"))
        patched.setattr(supernode, "fork", forked)
        with pytest.raises(KeyboardInterrupt):
            supernode.main()
    assert done == ["shared", "flower-supernode"]

    def look() -> None:
        before = len(gc.get_objects())
        supernode.share_what_is_imported()
        assert gc.get_freeze_count() > 0.9 * before
        assert len(gc.get_objects()) < 0.1 * before

    pid = supernode.fork("a-fork", look)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[tuple[socket.socket, int]]:
    (tmp_path / "own_work.py").write_text(WORK)
    here, there = socket.socketpair()
    here.settimeout(60)
    pid = supernode.fork("nursery", lambda: (here.close(), supernode.nurse(there)))
    there.close()
    yield here, pid
    here.close()
    os.waitpid(pid, 0)


def ask(nursery: socket.socket, path: Path, function: str, argument: object) -> None:
    order = {"path": str(path), "module": "own_work", "function": function, "argument": argument}
    nursery.sendall(json.dumps(order).encode() + b"\n")


def answer(nursery: socket.socket) -> dict:
    return json.loads(nursery.makefile("rb").readline())


def test_a_nursery_has_a_new_process_for_every_order(
    nursery: tuple[socket.socket, int], tmp_path: Path
) -> None:
    orders, _ = nursery
    ask(orders, tmp_path, "double", 21)
    assert answer(orders) == {"status": 0, "result": 42}
    ask(orders, tmp_path, "die", signal.SIGKILL)
    assert answer(orders) == {"status": -signal.SIGKILL, "result": None}
    ask(orders, tmp_path, "no_such_function", 1)
    assert answer(orders) == {"status": 1, "result": None}
    ask(orders, tmp_path, "double", "a")
    assert answer(orders) == {"status": 0, "result": "aa"}


def test_a_nursery_ends_with_who_asks_and_its_process_sees_that(
    nursery: tuple[socket.socket, int], tmp_path: Path
) -> None:
    orders, _ = nursery
    mark = tmp_path / "mark"
    ask(orders, tmp_path, "last", str(mark))
    wait_for(mark.with_suffix(".pid"))
    orders.close()  # as the death of Flower's process does
    wait_for(mark)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_process_that_ends_before_it_is_known_takes_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its end is told while `launch` has not heard its number yet."""
    handler, fork = signal.getsignal(signal.SIGCHLD), supernode.fork

    def forked(name: str, work: Callable[[], object]) -> int:
        pid = fork(name, work)
        while Path(f"/proc/{pid}").exists():  # until it has been waited for
            time.sleep(0.01)
        return pid

    try:
        forks = supernode.Forks(1 << 30)
        monkeypatch.setattr(supernode, "_client_app", lambda _: os._exit(1))
        monkeypatch.setattr(supernode, "fork", forked)
        for _ in range(supernode.MOST_APPS + 1):
            forks.launch(None)
        assert forks.get_eligible_capacity() == ({TaskType.CLIENT_APP}, set())
    finally:
        signal.signal(signal.SIGCHLD, handler)


def test_no_more_processes_than_two_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    ending, going = os.pipe()
    node = os.fork()
    if not node:
        os.close(going)
        os.read(ending, 1)
        os._exit(0)
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        forks = supernode.Forks(node)
        monkeypatch.setattr(supernode, "_client_app", lambda _: signal.pause())
        started = set(range(0))
        for _ in range(supernode.MOST_APPS):
            assert forks.get_eligible_capacity() == ({TaskType.CLIENT_APP}, set())
            forks.launch(None)
            started = set(forks._apps)
        assert forks.get_eligible_capacity() == (set(), set())
        os.kill(min(started), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while forks.get_eligible_capacity() == (set(), set()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(max(started), signal.SIGKILL)
        os.close(going)
        with pytest.raises(SystemExit):  # it ends with the SuperNode
            time.sleep(60)
    finally:
        signal.signal(signal.SIGCHLD, handler)
