"""Flower's SuperNode and the processes of its apps, all forked from this one, which is warm.

    python -P supernode.py [the arguments of flower-supernode, with --host and --port]

Flower starts a program for every message, and gives it up unless that answers within 30 seconds. To
import Flower alone takes a slow device as long, and torch after it longer. Here both are imported
once, before the device says that it is there. What Flower would start is a fork of this process: it
answers at once, whatever an import takes. Processes share the memory of what they import. There are
never more of Flower's than `MOST_APPS`.

What this uses of Flower's private parts is in flower.py, beside this script, and is checked first.
A run's bundle (the code of the app) is kept by its hash and asked for only when it is not there.

This process is the device's SuperExec; it ends with the SuperNode, which is its child, and the
other way round. It has no thread of its own, so that its forks have no locks that nobody opens.
"""

import contextlib
import ctypes
import errno
import gc
import hashlib
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

MOST_APPS = 2  # one that works, and one beside it when Flower has given that one up
KEPT_BUNDLES = 3
# What a run's working process needs besides Flower; without them a device takes less memory when
# it has nothing to do, and every run of it begins with their import.
PRELOADED = os.environ.get("EDGE_FL_PRELOAD", "torch safetensors.numpy PIL.Image").split()
NURSERY = "EDGE_FL_NURSERY"  # tells an app the socket at which it gets processes
_FLOWER = ("cli.flower_supernode", "main", "runtime.run_clientapp")
_POLL_SECONDS = 0.2


def _beside(name: str) -> Any:
    """The module in the file `name`.py beside this script; in the app, which has the script as a
    template, its own."""
    path = Path(__file__).with_name(f"{name}.py")
    if not path.exists():
        return importlib.import_module(f"fl_app.{name}")
    spec = importlib.util.spec_from_file_location(f"edge_fl_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as dataclasses want it
    spec.loader.exec_module(module)
    return module


flower = _beside("flower")


def main() -> None:
    """Import, fork the SuperNode, and start the processes that its messages need."""
    arguments = sys.argv[1:]
    host, port = (arguments[arguments.index(name) + 1] for name in ("--host", "--port"))
    _check_port(host, int(port))
    for name in (*(f"flwr.supernode.{part}" for part in _FLOWER), *PRELOADED):
        importlib.import_module(name)
    try:
        flower.check(flower.DEVICE)
    except flower.FlowerError as error:
        sys.exit(f"supernode.py: {error}")
    share_what_is_imported()
    node = fork("flower-supernode", partial(_supernode, [*arguments, "--isolation", "process"]))
    name_process("flower-superexec")
    forks = Forks(node)
    flower.replace("get_executor", lambda *_, **__: forks)
    _await_port(host, int(port))
    flower.part("run_superexec")(f"{host}:{port}", insecure=True)


def share_what_is_imported() -> None:
    """Have the garbage collector leave alone what is there by now, in this process and its forks.

    Where it looks at an object it writes to it, and a fork then has that page for itself: 65 MB of
    the SuperNode, that way. And it looks for garbage among old objects when a quarter as many have
    come since the last time: where all that was imported counts, tens of thousands wait for it.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # which counts the old ones: there are none


def fork(name: str, work: Callable[[], object]) -> int:
    """A child that does `work` under the name of that program, and ends; its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    signals = {signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    pid = os.fork()
    if not pid:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if pid:
        return pid
    status = 1
    try:
        name_process(name)
        sys.argv[0] = name
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def name_process(name: str) -> None:
    """Let `ps` show this process as `name` (Linux; elsewhere its name stays)."""
    with contextlib.suppress(Exception):
        stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        begin, end = int(stat[45]), int(stat[46])  # arg_start and arg_end
        shown = name.encode()[: end - begin - 1]
        ctypes.memmove(begin, shown.ljust(end - begin, b"\0"), end - begin)
        Path("/proc/self/comm").write_text(name)


# -- the SuperNode ---------------------------------------------------------------------------------


def _supernode(arguments: list[str]) -> None:
    sys.argv[1:] = arguments
    flower.part("parent_monitor")(os.getppid())
    connect = flower.part("connect")

    @contextlib.contextmanager
    def connected(*arguments: Any, **options: Any) -> Iterator[Any]:
        with connect(*arguments, **options) as calls:
            get_fab = partial(bundle, calls[4], Path("bundles").absolute())
            yield (*calls[:4], get_fab, *calls[5:])

    flower.replace("connect", connected)
    flower.part("flower_supernode")()


def bundle(get_fab: Callable[[str, int], Any], folder: Path, fab_hash: str, run_id: int) -> Any:
    """Flower's bundle with this hash (SHA-256): the one in `folder`, or else what `get_fab` gives,
    which is kept there if it is unsigned. Flower would ask for it in every run."""
    path = folder / f"{hashlib.sha256(fab_hash.encode()).hexdigest()}.fab"
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() == fab_hash:
            path.touch()
            return flower.part("Fab")(fab_hash, content, {})
    fab = get_fab(fab_hash, run_id)
    if hashlib.sha256(fab.content).hexdigest() == fab_hash and not fab.verifications:
        with contextlib.suppress(OSError):  # a full disk: it is asked for again the next time
            folder.mkdir(exist_ok=True)
            draft = path.with_suffix(".draft")
            draft.write_bytes(fab.content)
            draft.replace(path)
            by_age = sorted(folder.glob("*.fab"), key=lambda each: each.stat().st_mtime)
            for old in by_age[:-KEPT_BUNDLES]:
                old.unlink()
    return fab


def _check_port(host: str, port: int) -> None:
    """End this process if another program listens there: Flower would not say what to do."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Flower has it
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                sys.exit(f"supernode.py: port {port} is taken; EDGE_FL_PORT=... takes another")


def _await_port(host: str, port: int) -> None:
    """Return when the SuperNode listens; `Forks` ends this process if it never does."""
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), 1.0).close()
            return
        time.sleep(_POLL_SECONDS)


# -- the SuperExec ---------------------------------------------------------------------------------


class Forks:
    """Flower's executor (`flwr.supercore.superexec.executor.Executor`), whose processes are forks.
    Ends this process when the SuperNode `node` has ended, and the other way round."""

    def __init__(self, node: int) -> None:
        self._node, self._apps = node, set[int]()
        self._ended = set[int]()  # children that may have ended before `launch` knew of them
        self._self = os.getpid()
        signal.signal(signal.SIGCHLD, self._reap)
        self._reap()

    def get_eligible_capacity(self, *_: Any, **__: Any) -> tuple[set[Any], set[str]]:
        """Flower's question what may be started now: only messages' processes, and few of them."""
        one = {flower.part("TaskType").CLIENT_APP}
        return one if len(self._apps) < MOST_APPS else set(), set()

    def wait_for_capacity(self, *_: Any, **__: Any) -> None:
        """Flower asks `get_eligible_capacity` before."""

    def launch(self, spec: Any) -> Any:
        """Fork the process of a message."""
        self._ended.clear()
        self._apps.add(fork("flwr-clientapp", partial(_client_app, spec)))
        self._apps -= self._ended
        return flower.part("LaunchResult").accepted()

    def reconcile(self) -> None:
        """Between two questions for messages: nothing, children are waited for by a signal."""

    def close(self) -> None:
        """End the SuperNode, which tells the server so."""
        if os.getpid() == self._self and self._node:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._node, signal.SIGTERM)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._node, 0)

    def _reap(self, *_: Any) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                self._apps.discard(pid)
                self._ended.add(pid)
                if pid == self._node:
                    self._node = 0
                    sys.exit(os.waitstatus_to_exitcode(status))
                if not pid:
                    return


def _client_app(spec: Any) -> None:
    flower.part("exit_handlers").clear()  # of the process that this is a copy of
    here, there = socket.socketpair()
    fork("edge-fl-nursery", lambda: (here.close(), nurse(there)))
    there.close()
    os.environ[NURSERY] = str(here.fileno())
    flower.part("run_clientapp")(
        runtime_api_address=spec.runtime_api_address,
        token=spec.token,
        insecure=spec.insecure,
        parent_pid=spec.parent_pid,
    )


# -- the working processes -------------------------------------------------------------------------


def nurse(orders: socket.socket) -> None:
    """Fork the process that each line from `orders` asks for, and tell of its end; until nobody
    can ask any more. Flower's process could not do it: it has threads.

    A line is JSON: path (to import from), module and function (of one argument, called in the new
    process), argument. The answer: status, as `subprocess` has it, and result, what the function
    has returned, or null.
    """
    for line in orders.makefile("rb"):
        order = json.loads(line)
        reading, writing = os.pipe()

        def work(order: Any = order, reading: int = reading, writing: int = writing) -> None:
            os.close(orders.fileno())
            os.close(reading)
            sys.path.insert(0, order["path"])
            function = getattr(importlib.import_module(order["module"]), order["function"])
            with open(writing, "w") as file:
                json.dump(function(order["argument"]), file)

        pid = fork(order["module"], work)
        os.close(writing)
        result = _read(reading, orders)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        answer = {"status": status, "result": json.loads(result) if result else None}
        orders.sendall(json.dumps(answer).encode() + b"\n")


def _read(pipe: int, orders: socket.socket) -> bytes:
    """All that comes from `pipe`. Ends this process when `orders` does: what serves a run goes on
    without it (see `client_apps.session_worker`)."""
    found = b""
    with open(pipe, "rb", buffering=0) as file:
        while True:
            ready, _, _ = select.select([file, orders], [], [])
            if orders in ready and not orders.recv(1, socket.MSG_PEEK):
                os._exit(0)
            if file in ready:
                piece = file.read(1 << 16)
                if not piece:
                    return found
                found += piece


if __name__ == "__main__":
    main()
