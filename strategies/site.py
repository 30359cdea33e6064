"""What a machine of a deployment knows of itself: files that `edge-fl deploy` wrote for it.

They belong to the machine, not to a run, so a run's configuration never names them: the server
finds its directory in the environment variable EDGE_FL_SITE, a device in `site` of its node
configuration.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strategies.errors import ConfigError
from strategies.paths import expanded

SITE_FILE = "site.json"
SERVER = "server"  # the common name in the server's certificate; no device may have it
CREDENTIALS = ("ca.crt", "site.crt", "site.key")


@dataclass(frozen=True)
class Credentials:
    """PEM files: the deployment's certificate authority, and one's own certificate and key."""

    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Site:
    """One machine of a deployment.

    name: the device's, or "server". host: the server's name or address as devices reach it.
    mail_port: where the run's mail router listens; 0 = there is none, mail goes through Flower.
    devices: the names of all devices; known to the server alone.
    credentials: None in the insecure mode, which exists on the loopback interface alone.
    """

    directory: Path
    name: str
    host: str
    mail_port: int
    devices: tuple[str, ...]
    credentials: Credentials | None

    @property
    def endpoint(self) -> str:
        """Where the mail router is, as Zenoh writes it."""
        return f"{'tls' if self.credentials else 'tcp'}/{self.host}:{self.mail_port}"


def server_site(environment: Mapping[str, str] = os.environ) -> Site | None:
    """The server's site; None where EDGE_FL_SITE is not set. Raises ConfigError."""
    directory = environment.get("EDGE_FL_SITE", "")
    return read_site(directory) if directory else None


def device_site(node_config: Mapping[str, Any]) -> Site | None:
    """The device's site; None where its node configuration has no `site`. Raises ConfigError."""
    directory = str(node_config.get("site", ""))
    return read_site(directory) if directory else None


def read_site(directory: str | Path) -> Site:
    """The site whose files are in `directory`. Raises ConfigError for what is missing or broken."""
    place = expanded(str(directory), "the site directory")
    try:
        content = json.loads((place / SITE_FILE).read_text())
        files = [place / name for name in CREDENTIALS]
        if not content["insecure"]:
            for path in files:
                path.open("rb").close()
        return Site(
            place,
            str(content["name"]),
            str(content["host"]),
            int(content["mail-port"]),
            tuple(map(str, content.get("devices", ()))),
            None if content["insecure"] else Credentials(*files),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{place} is no complete site directory ({error}); copy there what `edge-fl deploy` "
            f"wrote for this machine"
        ) from error
