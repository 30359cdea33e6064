"""The process that serves a device's session; `client_apps.session` starts it, and starts it again.

It goes on when that process of Flower's dies, or the whole SuperNode: its orders do not come that
way. Only when the device is to stop it does, too. Flower notices the death after a minute, and the
session that it then begins waits for the end of this one.
"""

import contextlib
import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from strategies.child import watch_parent
from strategies.errors import EdgeFlError
from strategies.site import SITE_FILE, Site, read_site

_CONNECT_SECONDS = 60.0  # each connection of a stranger's holds the router up for 0.1 s
_ASK_SECONDS = 20.0  # until it is asked whether a certificate is the reason, which no time mends


def main() -> None:
    """Do the job that comes on stdin, and say on stdout how it went, both as JSON."""
    says = os.dup(1)
    os.dup2(2, 1)
    result = serve(json.loads(sys.stdin.buffer.readline()))
    with contextlib.suppress(BrokenPipeError):  # its parent is gone; nobody asks any more
        os.write(says, json.dumps(result).encode())


def serve(job: dict[str, Any]) -> dict[str, Any]:
    """Do the job (see `session._job_of`); served: how many orders, and why: what has kept it
    from any, or ""."""
    site = read_site(job["node_config"]["site"])
    serving = threading.Event()
    # The device may outlive the process of Flower's that has started this one.
    watch_parent(lambda: os._exit(1), lambda: serving.is_set() and _exists(job["keeper"]))
    served, why = 0, ""
    with _alone(site):
        serving.set()
        try:
            served = _serve(site, job)
        except EdgeFlError as error:
            why = str(error)
    return {"served": served, "why": why}


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def _alone(site: Site) -> Iterator[None]:
    """Wait until no other process serves this device, and be the one that does."""
    with (site.directory / SITE_FILE).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back by the kernel, however the process ends
        yield


def _serve(site: Site, job: dict[str, Any]) -> int:
    """Connect, and do orders until there are no more; how many it has been. Raises EdgeFlError
    when the router cannot be reached."""
    # Here, for a process that only waits for its turn needs nothing of this.
    from flwr.app import RecordDict

    from strategies.fingerprint import fingerprint
    from strategies.link.connection import Connection
    from strategies.link.device_session import DeviceSession
    from strategies.link.files import fetch

    served, state = 0, RecordDict()
    connection = Connection(site)
    try:
        _await_router(connection, site)
        if lacking := _lacking(job):
            fetch(connection, job["run"], site.name, lacking)
        facts = {"fingerprint": fingerprint(), "node": job["node_id"]}
        session = DeviceSession(connection, site, job["run"], facts, job["patience"])
        try:
            while (order := session.next()) is not None:
                session.answer(order, *_done(order, job, state, session))
                served += 1
        finally:
            session.close()
    finally:
        connection.close()
    return served


def _await_router(connection: Any, site: Site) -> None:
    """Return when the connection stands. Raises EdgeFlError when it does not come to that."""
    began, asked = time.monotonic(), False
    while not connection.connected:
        waited = time.monotonic() - began
        if waited > _CONNECT_SECONDS or (waited > _ASK_SECONDS and not asked):
            why, asked = connection.fault(), True
            if waited > _CONNECT_SECONDS or "certificate" in why:
                raise EdgeFlError(why or f"the mail router at {site.endpoint} does not answer")
        time.sleep(0.05)


def _lacking(job: dict[str, Any]) -> dict[str, tuple[Path, str]]:
    """Files of the run's data set that the device reads and has not: in `fetch`'s terms."""
    application: Any = import_module(job["application"])
    return application.lacking(job["run_config"], job["node_config"])


def _done(
    order: Any, job: dict[str, Any], state: Any, session: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Do an order as if it had come as Flower's own message; header and arrays of the reply. What
    handlers keep in their context's state is there for the next order."""
    from flwr.app import Context, Message, Metadata

    from client_apps import HANDLERS
    from client_apps.device import Device
    from client_apps.failures import account_of
    from strategies.link.records import content_of, parts_of

    node, run = job["node_id"], job["run_id"]
    try:
        module, name = HANDLERS[order.kind].split(":")
        handle: Callable[[Message, Device], Message] = getattr(import_module(module), name)
        metadata = Metadata(
            run_id=run,
            message_id=str(order.number),
            src_node_id=1,
            dst_node_id=node,
            reply_to_message_id="",
            group_id="",
            created_at=time.time(),
            ttl=1e6,
            message_type=order.kind,
        )
        content = content_of(order.header, order.arrays)
        message = Message(content, metadata=metadata)  # type: ignore[call-overload]
        context = Context(run, node, job["node_config"], state, job["run_config"])
        device = Device(context, job["application"], session)
        return parts_of(handle(message, device).content)
    except Exception as error:  # whatever it is, the server must hear of it
        return {"error": account_of(error)}, {}


if __name__ == "__main__":
    main()
