"""What `edge-fl run` finds out about a run's place before it begins: the directory of the run, and
the SuperLink of others that it names."""

import contextlib
import os
import socket
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_app.assemble import check_devices
from fl_app.config import RunConfig
from fl_app.preflight import preflight_elsewhere
from fl_app.record.books import check_resumable
from fl_app.record.sinks import check_sinks
from fl_app.streams import say
from strategies.errors import ConfigError, RunDirectoryError
from strategies.paths import expanded, runs_root
from strategies.site import SERVER, Site, read_site


def check_output(config: RunConfig) -> None:
    """Raise EdgeFlError if the directory of a run on this machine could not be made, or the run
    that is to be resumed cannot be; leaves nothing behind."""
    check_sinks(config.sink_list)
    if config.resume:
        check_resumable(config)
        return
    root = runs_root(config.output)
    try:
        _check_name(config)
        existing = next(folder for folder in (root, *root.parents) if folder.exists())
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise RunDirectoryError(
            f"cannot make run directories in {root}: {error.strerror}; choose another place with "
            f"output=PATH or EDGE_FL_HOME"
        ) from error


def _check_name(config: RunConfig) -> None:
    root = runs_root(config.output)
    if config.name and (root / config.name).exists():
        raise RunDirectoryError(f"there is a run named {config.name!r} in {root}; choose another")


def check_elsewhere(config: RunConfig, superlink: str, *, followed: bool = False) -> None:
    """Raise EdgeFlError for a run on a SuperLink of others that cannot work, or not be `followed`
    by its directory, as far as that can be told from here; its ServerApp tries the rest."""
    connection = _connection(superlink)
    host = str(connection.get("address", "")).rpartition(":")[0].strip("[]")
    if followed and host and not _is_here(host):
        raise ConfigError(
            f"--watch and --json read the run's directory, and SuperLink {superlink!r} has it on "
            f"another machine ({host}); give them there, or leave them out"
        )
    if site := _site(connection):
        check_devices(config, site)
    if not config.resume:
        _check_name(config)
    elif os.access(config.resume, os.W_OK):  # else it is on the server, or belongs to its user
        check_resumable(config)
    preflight_elsewhere(config, lambda text: say(f"edge-fl: {text}", sys.stderr))


def _is_here(host: str) -> bool:
    """Whether `host` is this machine: nobody can listen at an address of another one."""
    with contextlib.suppress(OSError):
        for family, kind, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
                probe.bind(address)
                return True
    return False


def _flower_home() -> Path:
    return expanded(os.environ.get("FLWR_HOME") or "~/.flwr", "FLWR_HOME")


def _connection(name: str) -> Mapping[str, Any]:
    """What the user's Flower configuration says of the connection; {} where Flower has yet to make
    one. ConfigError for a name that is not in it."""
    path = _flower_home() / "config.toml"
    try:
        known = tomllib.loads(path.read_text(encoding="utf-8")).get("superlink", {})
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    found = known.get(name)
    if not isinstance(found, dict):
        names = ", ".join(key for key, value in known.items() if isinstance(value, dict))
        raise ConfigError(f"--superlink {name}: {path} has no such connection; it has: {names}")
    return found


def _site(connection: Mapping[str, Any]) -> Site | None:
    """The server's folder of the deployment that the connection belongs to, if it is here."""
    certificate = str(connection.get("root-certificates", ""))
    beside = Path(certificate).parent if certificate else _flower_home().parent / SERVER
    try:
        found = read_site(beside)
    except ConfigError:  # there is none, or it is for the service's user alone
        return None
    return found if found.name == SERVER else None
