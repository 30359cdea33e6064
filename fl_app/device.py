"""What the device's side of the two systems asks this app (see `client_apps.device`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from client_apps.settings import DeviceSettings
from fl_app.config import RunConfig, resolve
from fl_app.data import embedded
from fl_app.own_code import own_digest
from fl_app.settings import device_settings_of


def settings(run_config: Mapping[str, Any]) -> DeviceSettings:
    """What a device is told of the run. Raises ConfigError."""
    return device_settings_of(resolve(run_config))


def own_code(run_config: Mapping[str, Any]) -> str:
    """The digest of code of somebody's own, as this machine has it."""
    return own_digest(resolve(run_config))


def lacking(
    run_config: Mapping[str, Any], node_config: Mapping[str, Any]
) -> dict[str, tuple[Path, str]]:
    """Files of the embedded data that the device reads and has not."""
    reads = _read(resolve(run_config), own_data=bool(node_config.get("data-path")))
    names = [name for name in reads if embedded.find(name) is None]
    return {name: (embedded.kept(name), embedded.FILES[name]) for name in names}


def _read(config: RunConfig, own_data: bool) -> Sequence[str]:
    """Names of the embedded files that a device reads."""
    if config.of_images:
        # Nodes of the consensus system are evaluated where they are, on the test images.
        needed = config.agrees or not own_data
        return embedded.IMAGES if config.dataset == "embedded" and needed else ()
    if config.data_path:
        return ()
    # With own data, too: columns of a device's table are encoded as those of the run's.
    files = {"text": embedded.TEXT, "tables": f"{config.table}.jsonl"}
    return [files[config.task]] if config.task in files else ()
