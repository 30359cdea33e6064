"""Flower's SuperLink with a gate: from other machines, only what SuperNodes need passes.

    python -m fl_app.deploy.gate [the arguments of flower-superlink]

A SuperLink serves its three interfaces on one port: Fleet, for SuperNodes, which sign their
requests; Control, for `flwr run`, which starts any code on the server and on every device, and asks
nobody who they are; and Runtime, for the processes of the apps. So whoever reaches the port of a
bare SuperLink owns the deployment. Here Control and Runtime are for this machine alone; from
another one, use a tunnel (`ssh -L 8000:127.0.0.1:8000 SERVER`).

Until the gate stands, nothing in this process can listen for other machines: a Flower that serves
in another way than today's does not start, nor one in which another interface has moved to where
SuperNodes may ask.
"""

import ipaddress
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.middleware.gzip import GZipMiddleware

from fl_app import flower

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Callable[..., Any], Callable[..., Awaitable[None]]], Awaitable[None]]

OPEN_TO_ALL = ("/v1/fleet/", "/health")
_BUNDLE = "/v1/fleet/get-fab"
# Whose answers these are.
_FLEET = ("flwr.superlink.routers.fleet.", "flwr.supercore.routers.health")


class Gate:
    """An ASGI application in front of another one. A run's bundle goes through it compressed."""

    def __init__(self, behind: Application) -> None:
        self._behind = behind
        # The code of a run, which is text; nothing else that is large would get smaller.
        self._packed = GZipMiddleware(behind, compresslevel=6)
        self.stands = False  # it is what is served

    async def __call__(
        self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Awaitable[None]]
    ) -> None:
        self.stands = self.stands or scope["type"] == "lifespan"  # comes before the first socket
        if scope["type"] == "http" and scope.get("path") == _BUNDLE:
            await self._packed(scope, receive, send)
        elif scope["type"] == "lifespan" or allowed(scope.get("path", ""), scope.get("client")):
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
    return _is_loopback(client[0] if client else "")


def _is_loopback(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def main() -> None:
    """`flower-superlink`, with the gate around the application that it serves."""
    import grpc

    try:
        flower.check(flower.GATE)
    except flower.FlowerError as error:
        sys.exit(f"edge-fl: {error}")
    create, gates = flower.part("create_app"), list[Gate]()

    def create_gated(*arguments: Any, **options: Any) -> Gate:
        behind = create(*arguments, **options)
        if found := strangers(behind):
            _refuse(f"the SuperLink would answer other machines at {', '.join(found)}")
        print("edge-fl: other machines reach only the Fleet interface", flush=True)
        gates.append(Gate(behind))
        return gates[-1]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.bind" and not any(gate.stands for gate in gates):
            host, *_ = arguments[1] if isinstance(arguments[1], tuple) else ("127.0.0.1",)
            if not _is_loopback(str(host)):
                _refuse("the SuperLink was about to listen without edge-fl's gate")

    # Flower looks the function up when it starts to serve. Should it serve something else one day,
    # or by gRPC, whose sockets Python does not see, it ends here.
    flower.replace("create_app", create_gated)
    grpc.server = lambda *_, **__: _refuse("the SuperLink was about to serve by gRPC")
    sys.addaudithook(watch)
    flower.part("flower_superlink")()


def strangers(application: Any) -> list[str]:
    """The paths at which an application of FastAPI would answer what may come from other machines,
    and which are not of Flower's Fleet interface."""
    from fastapi.routing import iter_route_contexts

    found = []
    for context in iter_route_contexts(application.routes):
        path, endpoint = context.path or "/", getattr(context.route, "endpoint", None)
        fixed = path.partition("{")[0]
        # With parameters, or as an application of its own, it may answer what begins so.
        begins = fixed if fixed != path or endpoint is None else path + "\0"
        open_ = any(fixed.startswith(each) or each.startswith(begins) for each in OPEN_TO_ALL)
        if open_ and not str(getattr(endpoint, "__module__", "")).startswith(_FLEET):
            found.append(path)
    return found


def _refuse(what: str) -> Any:
    raise RuntimeError(
        f"{what}: is FLWR_INTERNAL_GRPC_... set, or is this another Flower than the one that "
        f"edge-fl is for (flwr{flower.TRIED})?"
    )


if __name__ == "__main__":
    main()
