"""What the device's side of the two systems asks this app (see `client_apps.device`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client_apps.settings import DeviceSettings
from fl_app.config import resolve
from fl_app.data import embedded
from fl_app.settings import device_settings_of


def settings(run_config: Mapping[str, Any]) -> DeviceSettings:
    """What a device is told of the run. Raises ConfigError."""
    return device_settings_of(resolve(run_config))


def lacking(
    run_config: Mapping[str, Any], node_config: Mapping[str, Any]
) -> dict[str, tuple[Path, str]]:
    """Files of the embedded data set that the device reads and has not."""
    config = resolve(run_config)
    # Nodes of the consensus system are evaluated where they are, on the test images.
    reads = config.agrees or not node_config.get("data-path")
    if not config.of_images or config.dataset != "embedded" or not reads:
        return {}
    names = [name for name in embedded.FILES if embedded.find(name) is None]
    return {name: (embedded.kept(name), embedded.FILES[name]) for name in names}
