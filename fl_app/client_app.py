"""The ClientApp: one app serves both systems, the message type chooses the handler."""

from flwr.clientapp import ClientApp

from client_apps.mount import mount

app = mount(ClientApp())
