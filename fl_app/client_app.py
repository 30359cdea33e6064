"""The ClientApp: one app serves both systems, the message type chooses the handler."""

from collections.abc import Callable
from importlib import import_module

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client_apps import HANDLERS


def _handler(target: str) -> Callable[[Message, Context], Message]:
    module, name = target.split(":")

    def handle(message: Message, context: Context) -> Message:
        return getattr(import_module(module), name)(message, context)

    return handle


app = ClientApp()
for _type, _target in HANDLERS.items():
    _category, _action = _type.split(".")
    getattr(app, _category)(_action)(_handler(_target))
