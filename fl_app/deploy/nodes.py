"""The SuperNodes that a SuperLink knows: listed, and brought into line with the devices."""

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_app import flower
from fl_app.deploy.directory import settings_of
from strategies.errors import EdgeFlError
from strategies.site import read_site

ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Node:
    """A SuperNode as its SuperLink sees it. status: registered, online, offline, unregistered."""

    node_id: int
    name: str
    key: bytes
    status: str


def list_nodes(server: Path) -> list[Node]:
    """All SuperNodes that the SuperLink of the site `server` on this machine knows.

    Raises EdgeFlError when it does not answer.
    """
    with _control(server) as control:
        return _nodes(control)


def register(server: Path, say: Callable[[str], None] = print) -> None:
    """Make the SuperLink know exactly the devices that the site has; can be repeated at any time.

    A device that is none of them any more is cut off at once, also where its key is left over in
    `server`/devices: whoever copies a folder over another one removes nothing. Waits until the
    SuperLink answers; raises EdgeFlError when it does not, and, when all others are registered, for
    devices without a good key, which it leaves as they are.
    """
    import httpx

    names = read_site(server).devices
    if settings_of(server)["insecure"]:
        return
    keys, faults = dict[str, bytes](), dict[str, str]()
    for name in names:
        try:
            keys[name] = _key(server / "devices" / f"{name}.pub")
        except EdgeFlError as error:
            faults[name] = str(error)
    for path in sorted((server / "devices").glob("*.pub")):
        if path.stem not in names:
            say(f"left over, and of no device of the site: {path}")
    with _control(server) as control:
        known = [node for node in _nodes(control) if node.status != "unregistered"]
        for node in known:
            if node.key not in keys.values() and node.name not in faults:
                control.UnregisterNode(flower.part("UnregisterNodeRequest")(node_id=node.node_id))
                say(f"cut off: {node.name or node.node_id}")
        held = {node.key for node in known}
        for name, key in keys.items():
            if key in held:
                continue
            request = flower.part("RegisterNodeRequest")(public_key=key, name=name)
            try:
                control.RegisterNode(request)
            except httpx.HTTPStatusError as error:
                faults[name] = f"the SuperLink refuses its key: {error.response.text}"
            else:
                say(f"registered: {name}")
    if faults:
        told = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
        raise EdgeFlError(
            f"all others are registered, but not: {told}; copy the folder `server` here again"
        )


def _nodes(control: Any) -> list[Node]:
    found = control.ListNodes(flower.part("ListNodesRequest")()).nodes_info
    return [Node(node.node_id, node.name, node.public_key, node.status) for node in found]


def _key(path: Path) -> bytes:
    """A public key as the SuperLink compares them. EdgeFlError for what is none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        key = load_ssh_public_key(path.read_bytes())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("not of an elliptic curve")
        return flower.part("public_key_to_bytes")(key)
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise EdgeFlError(f"{path} holds no public key of a SuperNode ({error})") from error


@contextlib.contextmanager
def _control(server: Path) -> Iterator[Any]:
    """Flower's client of the SuperLink's Control interface, once it answers.

    The `flwr supernode` command shows neither names nor keys, and starts a process per device.
    """
    import httpx
    from click import ClickException

    try:
        flower.check(flower.CONTROL)
    except flower.FlowerError as error:
        raise EdgeFlError(str(error)) from error
    settings = settings_of(server)
    address, insecure = f"127.0.0.1:{settings['port']}", settings["insecure"]
    root = None if insecure else str((server / "ca.crt").absolute())
    connection = flower.part("connection")("edge-fl", address, root, insecure=insecure)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it says every time where it connects to
            control = flower.part("control_client")(connection)
    except ClickException as error:
        raise EdgeFlError(error.message) from error
    deadline = time.monotonic() + ANSWER_SECONDS
    try:
        while True:
            try:
                control.ListNodes(flower.part("ListNodesRequest")())
                break
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    raise EdgeFlError(f"no SuperLink answers at {address}: {error}") from error
                time.sleep(0.2)
        yield control
    except httpx.TransportError as error:
        raise EdgeFlError(f"the SuperLink at {address} went away: {error}") from error
    except httpx.HTTPStatusError as error:
        raise EdgeFlError(f"the SuperLink at {address} refuses: {error.response.text}") from error
    finally:
        control.close()
