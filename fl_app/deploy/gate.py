"""Flower's SuperLink with a gate: from other machines, only what SuperNodes need passes.

    python -m fl_app.deploy.gate [the arguments of flower-superlink]

A SuperLink serves its three interfaces on one port: Fleet, for SuperNodes, which sign their
requests; Control, for `flwr run`, which starts any code on the server and on every device, and asks
nobody who they are; and Runtime, for the processes of the apps. So whoever reaches the port of a
bare SuperLink owns the deployment. Here Control and Runtime are for this machine alone; from
another one, use a tunnel (`ssh -L 8000:127.0.0.1:8000 SERVER`).
"""

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Callable[..., Any], Callable[..., Awaitable[None]]], Awaitable[None]]

OPEN_TO_ALL = ("/v1/fleet/", "/health")


class Gate:
    """An ASGI application in front of another one."""

    def __init__(self, behind: Application) -> None:
        self._behind = behind

    async def __call__(
        self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Awaitable[None]]
    ) -> None:
        if scope["type"] == "lifespan" or allowed(scope.get("path", ""), scope.get("client")):
            await self._behind(scope, receive, send)
        elif scope["type"] == "http":
            head = {"type": "http.response.start", "status": 403, "headers": []}
            await send(head)
            body = b"for this machine only; use a tunnel: see docs/deploy.md\n"
            await send({"type": "http.response.body", "body": body})
        else:
            await send({"type": "websocket.close", "code": 1008})


def allowed(path: str, client: tuple[str, int] | None) -> bool:
    """Whether `client`, its (address, port), may ask for `path`; an unknown client is remote."""
    if path.startswith(OPEN_TO_ALL) and ".." not in path:
        return True
    try:
        address = ipaddress.ip_address(client[0] if client else "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def main() -> None:
    """`flower-superlink`, with the gate around the application that it serves."""
    from flwr.superlink import main as application
    from flwr.superlink.cli.flower_superlink import flower_superlink

    create = application.create_app

    def create_gated(*arguments: Any, **options: Any) -> Gate:
        print("edge-fl: other machines reach only the Fleet interface", flush=True)
        return Gate(create(*arguments, **options))

    # Flower looks the function up when it starts to serve. test_deploy_loopback asks a real
    # SuperLink from another address, so a Flower that looks elsewhere does not go unnoticed.
    application.create_app = create_gated  # pyright: ignore[reportAttributeAccessIssue]
    flower_superlink()


if __name__ == "__main__":
    main()
