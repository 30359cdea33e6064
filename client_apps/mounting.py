"""A device's side of both systems, on anybody's ClientApp."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client_apps import HANDLERS
from client_apps.device import Device
from client_apps.failures import account_of
from strategies.messages import SETTINGS

_RAISED = 2  # Flower's error code of a ClientApp that raised


def mount(app: ClientApp, application: str) -> ClientApp:
    """Have `app` answer the messages of both systems, beside its own handlers; returns it.

    All of these messages have an action ("train.local", "query.hello" ...), so that an app keeps
    its own `train`, `evaluate` and `query`. application: the name of the module that is asked what
    a run's keys mean (see `client_apps.device.Application`).
    """
    for kind, target in HANDLERS.items():
        category, action = kind.split(".")
        getattr(app, category)(action)(_handler(target, application))
    return app


def _handler(target: str, application: str) -> Callable[[Message, Context], Message]:
    module, name = target.split(":")

    def handle(message: Message, context: Context) -> Message:
        try:
            device = Device(_told(message, context), application)
            return getattr(import_module(module), name)(message, device)
        except Exception as error:  # Flower would tell the server its text alone
            return Message(Error(_RAISED, account_of(error)), reply_to=message)

    return handle


def _told(message: Message, context: Context) -> Context:
    """The context with the settings that came with the message, where a run has none of its own."""
    if not message.has_content() or SETTINGS not in message.content:
        return context
    record: Any = message.content[SETTINGS]
    return Context(
        context.run_id, context.node_id, context.node_config, context.state, run_config=dict(record)
    )
