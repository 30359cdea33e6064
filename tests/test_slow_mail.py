"""Mail through a real router over a link with little room: how old it is when it comes."""

import json
import socket
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from strategies.carriers.zenoh import ZenohExchange
from strategies.consensus.participant import Mail
from strategies.link.connection import Connection
from strategies.link.router import Router
from strategies.site import Site, read_site
from tests.narrow import Narrow

pytestmark = pytest.mark.slow
pytest.importorskip("zenoh")

RUN = "0123456789abcdef"
NAMES = {0: "ann", 1: "bob"}
RATE = 250_000  # bytes a second: 2 Mbit/s
# Of a vector of 75,000 numbers as many float32 as it takes in each mail-precision.
LENGTHS = {"float32": 75_000, "bfloat16": 37_500, "int8": 19_050}
EVERY = 0.1  # seconds, in which the link carries a third of the smallest mail
SECONDS = 40.0


def site_of(place: Path, name: str, port: int) -> Site:
    (place / name).mkdir()
    content = {"name": name, "host": "127.0.0.1", "mail-port": port, "insecure": True}
    (place / name / "site.json").write_text(json.dumps(content))
    return read_site(place / name)


def ages(place: Path, length: int, paced: bool) -> list[float]:
    """Of the mails that come, in seconds."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    with ExitStack() as stack:
        router = Router(site_of(place, "server", port), {}, place / "log")
        stack.callback(router.stop)
        cable = Narrow(port, RATE)
        stack.callback(cable.close)
        sites = {0: site_of(place, "ann", port), 1: site_of(place, "bob", cable.port)}
        ends = {}
        for node, site in sites.items():
            connection = Connection(site)
            stack.callback(connection.close)
            ends[node] = exchange_of(node, length, connection)
            wait_until(lambda connection=connection: connection.connected)
        found: list[float] = []
        over = threading.Event()

        def listen() -> None:
            while not over.is_set():
                found.extend(time.monotonic() - mail.sent for mail in ends[1].collect(0.5))

        listener = threading.Thread(target=listen)
        listener.start()
        began, number = time.monotonic(), 0
        while time.monotonic() < began + SECONDS:
            number += 1
            mail = Mail(0, 1, number, {"x": torch.rand(length)}, time.monotonic())
            if paced:
                ends[0].post(mail)
                ends[0].collect(0.0)
            else:
                ends[0]._send(mail)
            time.sleep(EVERY)
        over.set()
        listener.join()
        return found


def exchange_of(node: int, length: int, connection: Connection) -> ZenohExchange:
    return ZenohExchange(
        connection,
        RUN,
        own={node: NAMES[node]},
        names=NAMES,
        expected=lambda _: {"x": (length, torch.float32)},
        parameters=length,
    )


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("precision", LENGTHS)
def test_mail_on_a_slow_link_is_as_old_as_the_link_makes_it(precision: str, tmp_path: Path) -> None:
    told, length = {}, LENGTHS[precision]
    for paced in (True, False):
        place = tmp_path / str(paced)
        place.mkdir()
        told[paced] = found = ages(place, length, paced)[
            4:
        ]  # until it is known how slow the link is
        least = 4 * length / RATE
        how = "paced" if paced else "as fast as it is written"
        print(
            f"MEASURED {precision}, {how}: {len(found)} mails, "
            f"median age {statistics.median(found):.2f} s, oldest {max(found):.2f} s; "
            f"the link's least {least:.2f} s"
        )
        assert min(found) > 0.9 * least
    assert statistics.median(told[True]) < 0.7 * statistics.median(told[False])
