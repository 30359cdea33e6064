"""The directory of a deployment: made, changed and renewed as a whole or not at all.

    site.json  ca/{ca.crt,ca.key}             stays with whoever runs the deployment
    server/    site.json ca.crt site.* ...    goes to the server
    devices/NAME/                             goes to the device

Whoever has ca.key can add machines. A device is one of the deployment when server/site.json says
so, which is written last when it comes and first when it goes: what an interruption leaves behind
counts for nothing and is replaced the next time. (Names that are never to be used again are noted
in site.json even before.)
"""

import contextlib
import ipaddress
import json
import os
import re
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fl_app.deploy import templates
from fl_app.deploy.authority import (
    LEAF_DAYS,
    Authority,
    certificate_pem,
    key_pem,
    load_key,
    new_key,
    node_key_pair,
)
from strategies.errors import ConfigError
from strategies.site import CREDENTIALS, SERVER, SITE_FILE

DEVICE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")
FIRST_NODE_PORT = 9094  # Flower's default for the port between a SuperNode and its own processes
SECRETS = frozenset({"ca.key", "site.key", "supernode.key", "superexec.secret"})
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


def create(
    directory: Path,
    host: str,
    *,
    devices: Sequence[str] = (),
    port: int = 8000,
    mail_port: int = 7447,
    days: int = LEAF_DAYS,
    insecure: bool = False,
) -> None:
    """Write a new deployment. host: the server's name or address as devices reach it; port and
    mail_port: of Flower's SuperLink and of the mail router there (mail_port 0: no router).

    insecure: no TLS and no keys, which the loopback interface alone is good for.
    Raises ConfigError for what cannot work, and when `directory` exists.
    """
    _check(host, devices, (port, mail_port), days, insecure)
    if not str(directory).isprintable():
        raise ConfigError(f"{str(directory)!r} has signs that no configuration can hold")
    if directory.exists() or directory.is_symlink():
        raise ConfigError(f"{directory} exists already and is left alone; choose another place")
    settings = {
        "host": host,
        "port": port,
        "mail-port": mail_port,
        "insecure": insecure,
        "days": days,
    }
    with _complete(directory) as place:
        _write_json(place / SITE_FILE, settings)
        authority = None
        if not insecure:
            authority = Authority.new(f"edge-fl {host}")
            _directory(place / "ca")
            _write(place / "ca" / "ca.key", key_pem(authority.key))
            _write(place / "ca" / "ca.crt", certificate_pem(authority.certificate))
        _write_server(place / "server", settings, authority)
        _directory(place / "devices")
        for name in devices:
            _add(place, settings, authority, name)
        # The only file with this directory's own path in it: a Flower configuration for here.
        _directory(place / "flower")
        _write(
            place / "flower" / "config.toml", templates.configuration(settings, directory / SERVER)
        )


def add_device(directory: Path, name: str) -> None:
    """Add a device. Raises ConfigError for a bad or taken name, or one that a device had which was
    removed, and for what is no deployment."""
    settings, names = settings_of(directory), device_names(directory)
    _check(settings["host"], [*names, name], (), settings["days"], settings["insecure"])
    if name in _removed(directory):
        raise ConfigError(
            f"a device named {name!r} was removed, and its certificate would let it in again under "
            f"this name; take another name"
        )
    _add(directory, settings, authority_of(directory), name)


def remove_device(directory: Path, name: str) -> None:
    """Remove a device's files and the server's knowledge of it. ConfigError if there is none."""
    names = device_names(directory)
    _known(directory, name, names)
    if not settings_of(directory)["insecure"]:
        # Nothing recalls a certificate: whoever has the old one would be the new device, too.
        settings = json.loads((directory / SITE_FILE).read_text())
        removed = sorted({*_removed(directory), name})
        _write_json(directory / SITE_FILE, settings | {"removed": removed})
    _list_devices(directory, [each for each in names if each != name])
    (directory / "server" / "devices" / f"{name}.pub").unlink(missing_ok=True)
    if (place := machine(directory, name)).exists():  # it may have been moved to the device
        shutil.rmtree(place)


def renew(directory: Path, names: Sequence[str] = ()) -> list[str]:
    """New certificates for the same keys, of these machines or of all; returns their names.

    Raises ConfigError for a name that is not there, for a machine whose key is not, and in an
    insecure deployment; no certificate is new then.
    """
    settings, known = settings_of(directory), [SERVER, *device_names(directory)]
    authority = authority_of(directory)
    if authority is None:
        raise ConfigError(f"{directory} was made insecure: it has no certificates")
    for name in names:
        _known(directory, name, known)
    found, lacking = {}, []
    for name in names or known:
        try:
            found[name] = load_key(machine(directory, name) / "site.key").public_key()
        except (OSError, ValueError) as error:
            lacking.append(f"{machine(directory, name)} has no key that can be read ({error})")
    if lacking:
        others = shlex.join(["edge-fl", "deploy", "renew", str(directory), *found])
        way = f"; put it back, or renew the others: `{others}`" if found else "; put it back"
        raise ConfigError("; ".join(lacking) + way)
    for name, key in found.items():
        addresses = _addresses(settings["host"]) if name == SERVER else ()
        certificate = authority.sign(name, key, settings["days"], addresses)
        _write(machine(directory, name) / "site.crt", certificate_pem(certificate))
    return list(found)


def upgrade(directory: Path) -> dict[str, list[str]]:
    """Write scripts, units and container files anew, as this version makes them; credentials,
    names and ports stay. Returns which files have changed, by machine. ConfigError where there is
    no deployment, or a machine's folder is not there; nothing has been written then."""
    settings, changed = settings_of(directory), {}
    for name in device_names(directory):
        _machine_settings(machine(directory, name) / SITE_FILE)
    for name in (SERVER, *device_names(directory)):
        place = machine(directory, name)
        if name == SERVER:
            files = templates.of_server(settings)
        else:
            files = templates.of_device(settings, name, _node_port(directory, name))
        old = {file: path.read_text() for file in files if (path := place / file).is_file()}
        changed[name] = [file for file, text in files.items() if old.get(file) != text]
        for file in changed[name]:
            _write(place / file, files[file])
    connection = templates.configuration(settings, directory / SERVER)
    if not (directory / "flower").is_dir():
        _directory(directory / "flower")
    _write(directory / "flower" / "config.toml", connection)
    return changed


def _node_port(directory: Path, name: str) -> int:
    """The port of a device's own processes; one that it was made without is given to it now."""
    path = machine(directory, name) / SITE_FILE
    content = _machine_settings(path)
    if "port" not in content:
        content["port"] = _free_port(directory)
        _write_json(path, content)
    return int(content["port"])


def _free_port(directory: Path) -> int:
    found = (directory / "devices").glob(f"*/{SITE_FILE}")
    taken = {_machine_settings(path).get("port") for path in found}
    return next(p for p in range(FIRST_NODE_PORT, 65536) if p not in taken)


def _machine_settings(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        content["name"]
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): put the folder back; see `edge-fl deploy check`"
        ) from error


def server_of(directory: Path) -> Path:
    """The server's folder, of a deployment or of what is that folder itself."""
    return directory / SERVER if (directory / SERVER).is_dir() else directory


def machine(directory: Path, name: str) -> Path:
    """The folder that goes to the machine called `name`."""
    return directory / SERVER if name == SERVER else directory / "devices" / name


def settings_of(directory: Path) -> dict[str, Any]:
    """What the deployment was made with. ConfigError where there is none."""
    try:
        settings = json.loads((directory / SITE_FILE).read_text())
        return {key: settings[key] for key in ("host", "port", "mail-port", "insecure", "days")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{directory} is no deployment ({error!r}); make one with `edge-fl deploy init`"
        ) from error


def device_names(directory: Path) -> list[str]:
    """The deployment's devices, sorted. ConfigError where there is none."""
    path = directory / SERVER / SITE_FILE
    try:
        return sorted(map(str, json.loads(path.read_text())["devices"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} does not list the devices ({error!r})") from error


def _removed(directory: Path) -> list[str]:
    """The names of devices that were removed: none can be given to another device."""
    return list(map(str, json.loads((directory / SITE_FILE).read_text()).get("removed", ())))


def authority_of(directory: Path) -> Authority | None:
    """Who signs here; None in an insecure deployment. ConfigError when its files are missing."""
    if settings_of(directory)["insecure"]:
        return None
    try:
        return Authority.load(directory / "ca" / "ca.crt", directory / "ca" / "ca.key")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the certificate authority in {directory / 'ca'} cannot be used ({error}); without it "
            f"nothing can be added or renewed: put its files back, or make a new deployment"
        ) from error


def _check(
    host: str, devices: Iterable[str], ports: Iterable[int], days: int, insecure: bool
) -> None:
    seen: set[str] = set()
    for name in devices:
        if not DEVICE_NAME.fullmatch(name) or name == SERVER:
            raise ConfigError(
                f"{name!r} is no name for a device; take up to 63 of a-z, 0-9 and -, beginning "
                f"with a letter or digit, and not {SERVER!r}"
            )
        # Its certificate would have the server's name.
        if name in (host.lower(), "localhost"):
            raise ConfigError(
                f"{name!r} is what the server is reached by; a device needs another name"
            )
        if name in seen:
            raise ConfigError(f"there is a device named {name!r} already; names must differ")
        seen.add(name)
    if not _HOST.fullmatch(host) and not _is_address(host):
        raise ConfigError(f"host={host!r} is neither a name nor an IP address; leave out the port")
    if ":" in host and host not in LOOPBACK_HOSTS:
        raise ConfigError(
            f"host={host!r} is an IPv6 address, on which SuperLink and mail router do not listen: "
            f"give a name, or an IPv4 address"
        )
    if insecure and host not in LOOPBACK_HOSTS:
        raise ConfigError(
            f"--insecure-loopback is for trials on one machine, with --host "
            f"{' or '.join(LOOPBACK_HOSTS)}, not {host!r}"
        )
    port, mail_port = (*ports, 1, 2)[:2]
    if not 1 <= port <= 65535 or not 0 <= mail_port <= 65535 or port == mail_port:
        raise ConfigError("ports must be two different numbers up to 65535 (mail port 0: none)")
    if not 1 <= days <= 3650:
        raise ConfigError(f"days={days} is out of range: a certificate lives 1 to 3650 days")


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def _addresses(host: str) -> tuple[str, ...]:
    # SuperExec and `flwr run` on the server itself come over the loopback interface.
    return tuple(dict.fromkeys((host, "localhost", "127.0.0.1", "::1")))


def _known(directory: Path, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise ConfigError(f"{directory} has no {name!r}; it has: {', '.join(names) or 'no device'}")


def _write_server(place: Path, settings: dict[str, Any], authority: Authority | None) -> None:
    _directory(place)
    _directory(place / "devices")
    _write_json(place / SITE_FILE, {"name": SERVER, **settings, "devices": []})
    if authority is not None:
        _write_credentials(place, SERVER, settings, authority, _addresses(settings["host"]))
        _write(place / "superexec.secret", secrets.token_hex(32))
    for name, text in templates.of_server(settings).items():
        _write(place / name, text)


def _add(directory: Path, settings: dict[str, Any], authority: Authority | None, name: str) -> None:
    names = device_names(directory)
    place, public = directory / "devices" / name, directory / "server" / "devices" / f"{name}.pub"
    shutil.rmtree(place, ignore_errors=True)  # of an addition that was interrupted
    port = _free_port(directory)
    site = {key: settings[key] for key in ("host", "mail-port", "insecure")}
    with _complete(place) as new:
        _write_json(new / SITE_FILE, {"name": name, **site, "port": port})
        if authority is not None:
            _write_credentials(new, name, settings, authority, ())
            private, shown = node_key_pair(name)
            _write(new / "supernode.key", private)
            _write(new / "supernode.key.pub", shown)
            _write(public, shown)
        for file, text in templates.of_device(settings, name, port).items():
            _write(new / file, text)
    _list_devices(directory, [*names, name])


def _list_devices(directory: Path, names: Iterable[str]) -> None:
    path = directory / SERVER / SITE_FILE
    _write_json(path, json.loads(path.read_text()) | {"devices": sorted(names)})


def _write_credentials(
    place: Path,
    name: str,
    settings: dict[str, Any],
    authority: Authority,
    addresses: tuple[str, ...],
) -> None:
    key = new_key()
    certificate = authority.sign(name, key.public_key(), settings["days"], addresses)
    contents = (authority.certificate, certificate)
    for file, content in zip(
        CREDENTIALS, (*map(certificate_pem, contents), key_pem(key)), strict=True
    ):
        _write(place / file, content)


@contextlib.contextmanager
def _complete(directory: Path) -> Iterator[Path]:
    """A new folder that takes the name `directory` when everything is in it, else vanishes."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield place
        os.rename(place, directory)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _directory(path: Path) -> None:
    path.mkdir(mode=0o700)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write(path, json.dumps(content, indent=2) + "\n")


def _write(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: private ones for their owner alone, programs to be run."""
    data = content.encode() if isinstance(content, str) else content
    mode = 0o600 if path.name in SECRETS else 0o755 if data.startswith(b"#!") else 0o644
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # of mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
