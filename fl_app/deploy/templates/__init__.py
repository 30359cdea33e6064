"""The scripts, units and container files of a site: templates with @NAMES@ in them."""

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from textwrap import indent
from typing import Any

from fl_app import flower

CONNECTION = "edge"
SERVER_FILES = (
    "start-superlink.sh",
    "edge-fl-superlink.service",
    "edge-fl-register.service",
    "edge-fl-superexec.service",
    "compose.yaml",
)
DEVICE_FILES = (
    "start-supernode.sh",
    "supernode.py",
    "edge-fl-device.service",
    "requirements-device.txt",
    "Dockerfile",
    ".dockerignore",
    "compose.yaml",
)
# Where only this machine is meant, nobody else is served.
_LISTEN = {"127.0.0.1": "127.0.0.1", "::1": "localhost", "localhost": "localhost"}
# Who owns a site's files where containers read them: nobody's else, in no distribution.
CONTAINER_USER = 10001
_HERE = Path(__file__).parent
_GAP = re.compile("@([A-Z-]+)@")


def of_server(settings: Mapping[str, Any]) -> dict[str, str]:
    """{file name: text} of what goes to the server beside its credentials."""
    values = _values(settings) | {"CONTAINER": _container("  ")}
    return {name: _filled(f"server/{name}", values) for name in SERVER_FILES}


def of_device(settings: Mapping[str, Any], name: str, port: int) -> dict[str, str]:
    """{file name: text} of what goes to the device called `name` beside its credentials.

    port: between its SuperNode and the processes that it starts.
    """
    values = _values(settings) | {
        "DEVICE": name,
        "NODE-PORT": str(port),
        "CONTAINER": _container("    "),
    }
    adapter = Path(flower.__file__)
    files = {file: _filled(f"device/{file}", values) for file in DEVICE_FILES}
    return files | {adapter.name: adapter.read_text()}


def configuration(settings: Mapping[str, Any], server: Path) -> str:
    """A Flower configuration with this deployment alone, as seen from the server."""
    return f'[superlink]\ndefault = "{CONNECTION}"\n\n{connection(settings, server)}'


def connection(settings: Mapping[str, Any], server: Path) -> str:
    """The deployment as a connection in a Flower configuration. server: the server's folder."""
    # A JSON text is a TOML one, whatever signs the path has.
    certificate = json.dumps(str(server.absolute() / "ca.crt"), ensure_ascii=False)
    security = f"root-certificates = {certificate}"
    return (
        f"[superlink.{CONNECTION}]\n"
        f'address = "127.0.0.1:{settings["port"]}"\n'
        f"{'insecure = true' if settings['insecure'] else security}\n"
    )


def _values(settings: Mapping[str, Any]) -> dict[str, str]:
    host, port = str(settings["host"]), str(settings["port"])
    return {
        "SECURITY": "insecure" if settings["insecure"] else "tls",
        "LISTEN": _LISTEN.get(host, "0.0.0.0"),
        "SUPERLINK": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "PORT": port,
        "HARDENING": (_HERE / "hardening.conf").read_text(),
        "SURROUNDINGS": (_HERE / "surroundings.sh").read_text().rstrip(),
        # A device speaks to this very server, so it gets this machine's versions.
        "FLWR": version("flwr"),
        "ZENOH": version("eclipse-zenoh"),
        "TORCH": version("torch").partition("+")[0],
        "USER": str(CONTAINER_USER),
    }


def _container(margin: str) -> str:
    """What every service of a compose file has."""
    return indent((_HERE / "container.yaml").read_text().rstrip(), margin)


def _filled(template: str, values: Mapping[str, str]) -> str:
    return _GAP.sub(lambda gap: values[gap[1]], (_HERE / template).read_text())
