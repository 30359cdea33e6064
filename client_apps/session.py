"""A session: one long message of Flower's, in which a device serves the orders of a whole run.

Flower starts a process for every message to a device, which costs seconds; here one process stays,
keeps model and data, and gets its orders through the mail router.
"""

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict

from client_apps import HANDLERS
from fl_app.errors import EdgeFlError
from fl_app.fingerprint import fingerprint
from fl_app.site import device_site
from strategies.link.connection import Connection
from strategies.link.line import Line, Order, serve_on
from strategies.link.records import content_of, parts_of

_CONNECT_SECONDS = 20.0


def serve(message: Message, context: Context) -> Message:
    """Serve until the server says that the run is over, or is silent for too long.

    In: config run (the token of the run), patience (seconds of silence), names (of the devices that
    take part). Out: config name (of the device), why, "" or what kept it from taking part at all,
    and served, how many orders it has done.
    """
    order: Any = message.content["config"]
    served, why = 0, ""
    try:
        served = _serve(message, context, order["run"], order["patience"], list(order["names"]))
    except EdgeFlError as error:
        why = str(error)
    name = str(context.node_config.get("name", ""))
    answer = ConfigRecord({"name": name, "served": served, "why": why})
    return Message(RecordDict({"config": answer}), reply_to=message)


def _serve(message: Message, context: Context, run: str, patience: float, names: list[str]) -> int:
    site = device_site(context.node_config)
    if site is None:
        raise EdgeFlError("its node configuration has no `site`")
    if site.name not in names:
        return 0  # it is not asked for
    served = 0
    connection = Connection(site)
    try:
        deadline = time.monotonic() + _CONNECT_SECONDS
        while not connection.connected:
            if time.monotonic() > deadline:
                why = connection.fault() or f"the mail router at {site.endpoint} does not answer"
                raise EdgeFlError(why)
            time.sleep(0.05)
        facts = {"fingerprint": fingerprint(), "node": context.node_id}
        line = Line(connection, site, run, facts, patience)
        serve_on(line)
        try:
            while (order := line.next()) is not None:
                line.answer(order, *_done(order, message, context))
                served += 1
        finally:
            line.close()
    finally:
        connection.close()
    return served


def _done(
    order: Order, message: Message, context: Context
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Do an order as if it had come as Flower's own message; header and arrays of the reply."""
    try:
        module, name = HANDLERS[order.kind].split(":")
        handle: Callable[[Message, Context], Message] = getattr(import_module(module), name)
        content = content_of(order.header, order.arrays)
        return parts_of(handle(Message(content, reply_to=message), context).content)
    except Exception as error:  # whatever it is, the server must hear of it
        return {"error": f"{type(error).__name__}: {error}"}, {}
