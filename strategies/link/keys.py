"""Under which keys the mail router carries what; names in keys are those in the certificates."""

import re

from strategies.errors import ConfigError

NOW = "edge-fl/now"  # which run is served now; from the server to everybody


def order(run: str, device: str) -> str:
    """From the server to a device."""
    return f"edge-fl/{run}/order/{device}"


def reply(run: str, device: str) -> str:
    """From a device to the server."""
    return f"edge-fl/{run}/reply/{device}"


def beat(run: str, device: str) -> str:
    """From a device to the server: that it is there, and what it is doing."""
    return f"edge-fl/{run}/beat/{device}"


def want(run: str, device: str) -> str:
    """From a device to the server: which piece of a whole it lacks (see `pieces`)."""
    return f"edge-fl/{run}/want/{device}"


def piece(run: str, device: str) -> str:
    """From the server to a device: that piece."""
    return f"edge-fl/{run}/piece/{device}"


def mail(run: str, receiver: str, sender: str) -> str:
    """Between neighbours; the sender's name is a part of it, so that the router can check it."""
    return f"edge-fl/{run}/mail/{receiver}/{sender}"


def receipt(run: str, sender: str, receiver: str) -> str:
    """From a mail's receiver to its sender: that it has come."""
    return f"edge-fl/{run}/receipt/{sender}/{receiver}"


def announcement(run: str, device: str) -> str:
    """From a device to its neighbours: its public key of the session (see `sealing`)."""
    return f"edge-fl/{run}/key/{device}"


def check_name(name: str) -> str:
    """`name`, if it can be a part of a key. Raises ConfigError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
        raise ConfigError(
            f"a device cannot be called {name!r}: use up to 63 letters, digits and . _ -"
        )
    return name
