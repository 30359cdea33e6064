"""The ClientApp: one app serves both systems, the message type chooses the handler."""

from collections.abc import Callable
from importlib import import_module

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client_apps import HANDLERS
from client_apps.failures import account_of

_RAISED = 2  # Flower's error code of a ClientApp that raised


def _handler(target: str) -> Callable[[Message, Context], Message]:
    module, name = target.split(":")

    def handle(message: Message, context: Context) -> Message:
        try:
            return getattr(import_module(module), name)(message, context)
        except Exception as error:  # Flower would tell the server its text alone
            return Message(Error(_RAISED, account_of(error)), reply_to=message)

    return handle


app = ClientApp()
for _type, _target in HANDLERS.items():
    _category, _action = _type.split(".")
    getattr(app, _category)(_action)(_handler(_target))
