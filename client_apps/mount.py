"""A device's side of both systems, on anybody's ClientApp."""

import json
from collections.abc import Callable
from importlib import import_module
from typing import Any

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client_apps import HANDLERS
from client_apps.failures import account_of
from strategies.grids import SETTINGS

_RAISED = 2  # Flower's error code of a ClientApp that raised


def mount(app: ClientApp) -> ClientApp:
    """Have `app` answer the messages of both systems, beside its own handlers; returns it.

    All of these messages have an action ("train.local", "query.hello" ...), so that an app keeps
    its own `train`, `evaluate` and `query`.
    """
    for kind, target in HANDLERS.items():
        category, action = kind.split(".")
        getattr(app, category)(action)(_handler(target))
    return app


def _handler(target: str) -> Callable[[Message, Context], Message]:
    module, name = target.split(":")

    def handle(message: Message, context: Context) -> Message:
        try:
            return getattr(import_module(module), name)(message, _told(message, context))
        except Exception as error:  # Flower would tell the server its text alone
            return Message(Error(_RAISED, account_of(error)), reply_to=message)

    return handle


def _told(message: Message, context: Context) -> Context:
    """The context with the settings that came with the message, where a run has none of its own."""
    if not message.has_content() or SETTINGS not in message.content:
        return context
    record: Any = message.content[SETTINGS]
    settings = json.loads(record["json"])
    return Context(
        context.run_id, context.node_id, context.node_config, context.state, run_config=settings
    )
