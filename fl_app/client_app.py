"""The ClientApp: one app serves both systems, the message type chooses the handler."""

from flwr.clientapp import ClientApp

from client_apps import mounting


def mount(app: ClientApp) -> ClientApp:
    """Have `app` answer the messages of both systems, beside its own handlers; returns it."""
    return mounting.mount(app, "fl_app.device")


app = mount(ClientApp())
