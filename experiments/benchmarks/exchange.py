"""Mail between two processes through the mail router: how long it takes, and what it weighs."""

import contextlib
import os
import queue
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch

from fl_app.deploy.directory import create, machine
from fl_app.launch.superlink import free_port
from strategies.allocator import keep_freed_memory
from strategies.carriers.zenoh import ZenohExchange
from strategies.consensus.participant import Mail
from strategies.errors import EdgeFlError
from strategies.link import keys
from strategies.link.connection import Connection
from strategies.link.router import Router, access_control
from strategies.link.wire import encode
from strategies.randomness import rng
from strategies.site import SERVER, Site, read_site

RUN = "0123456789abcdef"
HERE, THERE = "pi-1", "pi-2"
_WARM_UP = 3
_PATIENCE = 60.0
_PAUSE = 0.02  # exchanges do not follow each other at once in a run either
_BURST = 100e6  # bytes, for the throughput


def measure_exchange(directory: Path, megabytes: float, count: int) -> dict[str, Any]:
    """`count` exchanges of vectors of that size to and fro between two processes, over mutual TLS.

    mail_ms: from the vectors of a sender to the checked vectors of the receiver, half of the time
    to and fro; bytes_ms: the same of bytes that nobody reads. megabytes_per_second: of such bytes,
    as many at once as 100 MB, each way. wire: TCP payload (TLS and all) of an exchange on either
    half of its way, to the router and from it; ratio: of their mean to the vectors' bytes.
    """
    _become_a_device()
    length = round(megabytes * 1e6 / 4)
    values = rng(0, "benchmark").standard_normal(length, dtype=np.float32)
    payload = encode("mail", {}, {"x": values})
    with _pair(directory / "mail", _echo_mail, length) as (connection, port):
        exchange, vectors = _exchange(connection, 0, length), {"x": torch.from_numpy(values)}
        _timed(lambda number: _to_and_fro(exchange, vectors, number), _WARM_UP)
        before = _traffic(port)
        mails = _timed(lambda number: _to_and_fro(exchange, vectors, _WARM_UP + number), count)
        sent, received = (b - a for a, b in zip(before, _traffic(port), strict=True))
    with _pair(directory / "bytes", _echo_bytes, length) as (connection, _):
        answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        connection.subscribe(keys.mail(RUN, HERE, "*"), lambda _key, got: answers.put(got))

        def throw(times: int) -> None:
            for _ in range(times):
                connection.publish(keys.mail(RUN, THERE, HERE), payload, urgent=True)
            for _ in range(times):
                answers.get(timeout=_PATIENCE)

        _timed(lambda _: throw(1), _WARM_UP)
        plain = _timed(lambda _: throw(1), count)
        burst = max(4, round(_BURST / len(payload)))
        [seconds] = _timed(lambda _: throw(burst), 1)
    return {
        "exchanges": count,
        "mail_ms": _spread(mails),
        "bytes_ms": _spread(plain),
        "megabytes_per_second": 1e-6 * burst * len(payload) / seconds,
        "wire": {
            "vector_bytes": 4 * length,
            "to_router_bytes": sent / count,
            "from_router_bytes": received / count,
            "ratio": (sent + received) / 2 / count / (4 * length),
        },
    }


def _timed(work: Callable[[int], None], times: int) -> list[float]:
    """Seconds of work(1), work(2) ..., with pauses between them."""
    found = []
    for number in range(1, times + 1):
        began = time.perf_counter()
        work(number)
        found.append(time.perf_counter() - began)
        time.sleep(_PAUSE)
    return found


def _spread(seconds: list[float]) -> dict[str, float]:
    """Of one way, in milliseconds."""
    half = [500 * value for value in seconds]
    return {"median": median(half), "p90": quantiles(half, n=10)[-1], "max": max(half)}


def _to_and_fro(exchange: ZenohExchange, vectors: dict[str, torch.Tensor], number: int) -> None:
    exchange.post(Mail(0, 1, number, vectors))
    deadline = time.monotonic() + _PATIENCE
    while [mail.seq for mail in exchange.collect(_PATIENCE)] != [number]:
        if time.monotonic() > deadline:
            raise EdgeFlError(f"mail {number} did not come back within {_PATIENCE:g} s")


# -- the two processes, and the router between them -------------------------------------------


@contextlib.contextmanager
def _pair(
    directory: Path, echo: Callable[..., None], length: int
) -> Iterator[tuple[Connection, int]]:
    """One's own connection to a router, and its port; `echo` sends everything back from there."""
    create(directory, "127.0.0.1", devices=[HERE, THERE], port=free_port(), mail_port=free_port())
    sites = [read_site(machine(directory, name)) for name in (SERVER, HERE, THERE)]
    rules = access_control(RUN, [HERE, THERE], {HERE: [THERE], THERE: [HERE]})
    router = Router(sites[0], rules, directory / "router.log")
    there = get_context("spawn").Process(target=echo, args=(sites[2], length), daemon=True)
    connection = Connection(sites[1])
    try:
        there.start()
        _await_echo(connection)
        yield connection, sites[0].mail_port
    finally:
        connection.close()
        there.terminate()
        there.join()
        router.stop()


def _await_echo(connection: Connection) -> None:
    """Wait until the other process says that it hears."""
    heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    end = connection.subscribe(keys.announcement(RUN, THERE), lambda _key, got: heard.put(got))
    try:
        heard.get(timeout=_PATIENCE)
    except queue.Empty as error:
        raise EdgeFlError(f"no echo: {connection.fault() or 'its process is too slow'}") from error
    end()


def _exchange(connection: Connection, node: int, length: int) -> ZenohExchange:
    names = {0: HERE, 1: THERE}
    return ZenohExchange(
        connection,
        RUN,
        own={node: names[node]},
        names=names,
        expected=lambda _mail: {"x": (length, torch.float32)},
        parameters=length,
    )


def _become_a_device() -> None:
    """What the process of a device does at its start."""
    keep_freed_memory()
    torch.set_num_threads(1)


def _echo_mail(site: Site, length: int) -> None:
    _become_a_device()
    connection = Connection(site)
    exchange = _exchange(connection, 1, length)
    while True:
        for mail in exchange.collect(0.5):
            exchange.post(Mail(1, 0, mail.seq, mail.vectors))
        if not exchange.received:
            connection.publish(keys.announcement(RUN, THERE), b"here")


def _echo_bytes(site: Site, length: int) -> None:
    _become_a_device()
    connection = Connection(site)
    back = keys.mail(RUN, HERE, THERE)
    connection.subscribe(
        keys.mail(RUN, THERE, "*"), lambda _key, got: connection.publish(back, got, urgent=True)
    )
    while True:
        connection.publish(keys.announcement(RUN, THERE), b"here")
        time.sleep(0.5)


def _traffic(port: int) -> tuple[int, int]:
    """(bytes sent, bytes received) by this process's TCP connection to the router so far."""
    command = ["ss", "-tinpHO", f"dport = :{port}"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise EdgeFlError(f"`ss` of iproute2 is needed to count bytes: {error}") from error
    own = [line for line in found.splitlines() if f"pid={os.getpid()}," in line]
    counts = [
        [int(number[1]) for line in own if (number := re.search(rf"\b{name}:(\d+)", line))]
        for name in ("bytes_sent", "bytes_received")
    ]
    return sum(counts[0]), sum(counts[1])
