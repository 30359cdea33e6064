"""The scripts, units and container files of a site: templates with @NAMES@ in them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONNECTION = "edge"
# Nobody else is served where nobody else is meant.
_LOOPBACK = {"127.0.0.1": "127.0.0.1", "::1": "localhost", "localhost": "localhost"}
_HERE = Path(__file__).parent


def server(settings: Mapping[str, Any]) -> dict[str, str]:
    """{file name: text} of what goes to the server beside its credentials."""
    files = ("start-superlink.sh",)
    return {name: _fill(f"server/{name}", settings) for name in files}


def device(settings: Mapping[str, Any], name: str, port: int) -> dict[str, str]:
    """{file name: text} of what goes to the device called `name` beside its credentials."""
    values = {**settings, "device": name, "node-port": port}
    files = ("start-supernode.sh",)
    return {file: _fill(f"device/{file}", values) for file in files}


def shared(settings: Mapping[str, Any]) -> dict[str, str]:
    """{file name: text} of what is the same for all machines: containers, requirements."""
    return {}


def connection(settings: Mapping[str, Any], directory: Path) -> str:
    """A Flower configuration with the deployment as its connection, as seen from the server."""
    security = f'root-certificates = "{directory.absolute() / "server" / "ca.crt"}"'
    return (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "127.0.0.1:{settings["port"]}"\n'
        f"{'insecure = true' if settings['insecure'] else security}\n"
    )


def _fill(template: str, settings: Mapping[str, Any]) -> str:
    text = (_HERE / template).read_text()
    host = str(settings["host"])
    bracketed = f"[{host}]" if ":" in host else host
    values = {
        "SECURITY": "insecure" if settings["insecure"] else "tls",
        "LISTEN": _LOOPBACK.get(host, "0.0.0.0"),
        "SUPERLINK": f"{bracketed}:{settings['port']}",
        **{key.upper(): str(value) for key, value in settings.items()},
    }
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text
