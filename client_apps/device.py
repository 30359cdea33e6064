"""Where a message is answered: the node, and what the app around it says of the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flwr.app import Context

if TYPE_CHECKING:  # it imports torch, which a node that only answers need not wait for
    from client_apps.settings import DeviceSettings
    from strategies.link.device_session import DeviceSession


class Application(Protocol):
    """The app around, a module: it knows what the keys of a run configuration mean."""

    def settings(self, run_config: Mapping[str, Any]) -> "DeviceSettings":
        """What a device is told of the run. Raises ConfigError."""
        ...

    def own_code(self, run_config: Mapping[str, Any]) -> str:
        """The digest of code of somebody's own that the run names, as it is here. ConfigError."""
        ...

    def lacking(
        self, run_config: Mapping[str, Any], node_config: Mapping[str, Any]
    ) -> dict[str, tuple[Path, str]]:
        """Files of the run's data that the device reads and has not: where they are to be, and
        their SHA-256, by name."""
        ...


@dataclass(frozen=True)
class Device:
    """context: Flower's, of the message. application: the name of the `Application`. session: over
    which the message has come, if it is not Flower's own."""

    context: Context
    application: str
    session: "DeviceSession | None" = None

    @property
    def settings(self) -> "DeviceSettings":
        app: Any = import_module(self.application)
        return app.settings(self.context.run_config)

    @property
    def own_code(self) -> str:
        app: Any = import_module(self.application)
        return app.own_code(self.context.run_config)

    @property
    def own_data(self) -> str:
        """The path of the device's own data, "" if it has none."""
        return str(self.context.node_config.get("data-path", ""))

    @property
    def simulated(self) -> bool:
        return int(self.context.node_config.get("partition-id", -1)) >= 0
