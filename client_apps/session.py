"""A session: one long message of Flower's, in which a device serves the orders of a whole run.

Flower starts a process for every message to a device, which costs seconds; here one process stays,
keeps model and data, and gets its orders through the mail router. It is a child of Flower's, which
only keeps it alive: what dies of too little memory is started again within seconds, where Flower
would take a minute to notice (see `client_apps.session_worker` for the other way round).
"""

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from flwr.app import Message

from client_apps.device import Device
from strategies import child
from strategies.errors import EdgeFlError
from strategies.messages.codec import message_of, records_of
from strategies.messages.queries import Invitation, SessionEnd
from strategies.site import Site, device_site

# Where the packages are: the process must import the code that runs here, not another copy.
_APP = Path(__file__).resolve().parents[1]
_WORKER = "client_apps.session_worker"
_NURSERY = "EDGE_FL_NURSERY"  # by supernode.py of the device
_SHORT_SECONDS = 30.0  # a process that has lived for less has not got far
_MOST_SHORT = 3  # so many of them in a row are no accident
_PAUSES = (0.0, 2.0, 8.0)  # seconds, after a first, second ... short life


def serve(message: Message, device: Device) -> Message:
    """Accept an `Invitation`: have the device's process serve until the server says that the run is
    over, or is silent for too long. The reply is a `SessionEnd`."""
    invitation = message_of(Invitation, message.content)
    served, why = 0, ""
    try:
        site = device_site(device.context.node_config)
        if site is None:
            raise EdgeFlError("its node configuration has no `site`")
        if site.name in invitation.names:
            served, why = _kept_alive(site, _job_of(invitation, device))
    except EdgeFlError as error:
        why = str(error)
    name = str(device.context.node_config.get("name", ""))
    return Message(records_of(SessionEnd(name, served, why)), reply_to=message)


def _job_of(invitation: Invitation, device: Device) -> dict[str, Any]:
    """All that the process needs, as JSON."""
    context = device.context
    return {
        "run": invitation.run,
        "patience": invitation.patience,
        # Whose end means that the device is to stop: that of the start script, if it says so, and
        # else that of Flower's SuperExec, which has started this process.
        "keeper": int(os.environ.get("EDGE_FL_KEEPER") or os.getppid()),
        "run_id": context.run_id,
        "node_id": context.node_id,
        "node_config": dict(context.node_config),
        "run_config": dict(context.run_config),
        "application": device.application,
    }


def _kept_alive(site: Site, job: dict[str, Any]) -> tuple[int, str]:
    """(orders done, why it could not serve) of the process that got to the end. Raises EdgeFlError
    for processes that do not live."""
    short = 0
    while True:
        began = time.monotonic()
        result, status = _work(job)
        if result is not None:
            return int(result["served"]), str(result["why"])
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        short = short + 1 if time.monotonic() - began < _SHORT_SECONDS else 0
        if short >= _MOST_SHORT:
            raise EdgeFlError(
                f"its process has ended {short} times within {_SHORT_SECONDS:g} s of its start, at "
                f"last with {how}; why may be in the device's log"
            )
        print(
            f"edge-fl: the process of {site.name} ended with {how}; starting it again", flush=True
        )
        time.sleep(_PAUSES[short])


def _work(job: dict[str, Any]) -> tuple[dict[str, Any] | None, int]:
    """Start the process and wait for its end: what it says at last, and its exit status. Where the
    device has a warm process, it is a fork of that."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return _forked(int(os.environ[_NURSERY]), job)
    process = child.start(_WORKER)
    said, _ = process.communicate(json.dumps(job).encode() + b"\n")
    return (json.loads(said) if said and not process.returncode else None), process.returncode


def _forked(nursery: int, job: dict[str, Any]) -> tuple[dict[str, Any] | None, int]:
    """The same by `nurse` in the device's supernode.py, at the socket with that number. Raises
    OSError or ValueError where that is gone."""
    order = {"path": str(_APP), "module": _WORKER, "function": "serve", "argument": job}
    with socket.socket(fileno=os.dup(nursery)) as orders:
        orders.sendall(json.dumps(order).encode() + b"\n")
        answer = json.loads(orders.makefile("rb").readline())
    return answer["result"], answer["status"]
