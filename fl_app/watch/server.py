"""The server of the page: it answers this machine's browser alone, and only reads."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fl_app.record.page.html import page
from fl_app.watch.feed import Feeds
from strategies.errors import ConfigError, EdgeFlError

HOST, PORT = "127.0.0.1", 8470
_TRIES = 20  # ports after the first, where that is taken
_LOOK_SECONDS, _IDLE_SECONDS = 0.5, 10.0
_FILES = re.compile(
    r"(config|environment|summary)\.json|metrics\.jsonl|report\.html|figures/[a-z0-9-]+\.png"
)
_HEADERS = {
    b"cache-control": b"no-store",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
}


class Guard:
    """Lets in only what a page of this server asks for, or a person who types its address.

    A name of somebody's own that leads to 127.0.0.1 (DNS rebinding) is refused by the Host header,
    pages of other sites by what browsers tell of them; nothing says that others may read answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS.items()]
            await send(message)

        if reason := refusal(Request(scope)):
            await PlainTextResponse(reason, 403)(scope, receive, guarded)  # type: ignore[arg-type]
            return
        await self._app(scope, receive, guarded)  # type: ignore[arg-type]


def refusal(request: Request) -> str:
    """Why a request is not answered; "" if it is."""
    host = request.headers.get("host", "")
    if re.fullmatch(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", host) is None:
        return "this server answers 127.0.0.1 and localhost alone"
    origin = request.headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return "this server does not answer pages of other sites"
    site, mode = (request.headers.get(f"sec-fetch-{name}") for name in ("site", "mode"))
    followed = mode == "navigate" and request.url.path == "/"  # a link to the page itself
    if site not in (None, "none", "same-origin") and not followed:
        return "this server does not answer pages of other sites"
    return ""


def application(feeds: Feeds) -> ASGIApp:
    """The page, the list of runs, and of each run its document, stream of changes and files."""

    async def index(_: Request) -> Response:
        return HTMLResponse(page())

    async def runs(_: Request) -> Response:
        return JSONResponse(await run_in_threadpool(feeds.listing))

    async def run(request: Request) -> Response:
        feed = await run_in_threadpool(feeds.feed, request.path_params["name"])
        return JSONResponse(await run_in_threadpool(feed.document))

    async def stream(request: Request) -> Response:
        await run_in_threadpool(feeds.feed, request.path_params["name"])
        lines = _changes(feeds, request.path_params["name"])
        return StreamingResponse(lines, media_type="text/event-stream")

    async def file(request: Request) -> Response:
        name, path = request.path_params["name"], request.path_params["path"]
        folder = (await run_in_threadpool(feeds.paths)).get(name)
        if folder is None or not _FILES.fullmatch(path):
            return PlainTextResponse("there is no such file", 404)
        found, home = (folder / path).resolve(), folder.resolve()
        if not found.is_relative_to(home) or not found.is_file():  # a link may lead elsewhere
            return PlainTextResponse("there is no such file", 404)
        return FileResponse(found)

    async def unreadable(_: Request, error: Exception) -> Response:
        return PlainTextResponse(str(error), 404)

    routes = [
        Route("/", index),
        Route("/api/runs", runs),
        Route("/api/run/{name}", run),
        Route("/api/run/{name}/stream", stream),
        Route("/run/{name}/{path:path}", file),
    ]
    app = Starlette(routes=routes, exception_handlers={EdgeFlError: unreadable})
    app.router.redirect_slashes = False
    return Guard(app)


async def _changes(feeds: Feeds, name: str) -> AsyncIterator[str]:
    """Server-sent events: the document, then what of it has changed; "problem" says in words why
    there is none, and the stream goes on: a run may be mended, or only begin."""
    known: dict[str, object] = {}
    problem, said = "", time.monotonic()
    while True:
        began = time.monotonic()
        try:
            feed = await run_in_threadpool(feeds.feed, name)
            document = await run_in_threadpool(feed.document)
        except EdgeFlError as error:
            if str(error) != problem:
                problem, said = str(error), began
                yield f"event: problem\ndata: {json.dumps(problem)}\n\n"
        else:
            changes = {k: v for k, v in document.items() if k not in known or known[k] != v}
            if changes or problem:
                known, problem, said = document, "", began
                yield f"data: {json.dumps(changes, allow_nan=False)}\n\n"
        if began - said > _IDLE_SECONDS:
            said = began
            yield ": still here\n\n"
        # Of a run so long that reading it takes time, a fifth of one core at most.
        await asyncio.sleep(max(_LOOK_SECONDS, 4 * (time.monotonic() - began)))


def bound(port: int | None) -> socket.socket:
    """A socket that listens on 127.0.0.1: at `port` (0: any), or near the usual one if None is
    given. ConfigError if it is taken."""
    wanted = range(PORT, PORT + _TRIES) if port is None else [port]
    for number in wanted:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, number))
            listener.listen()  # else another process can have the port, too
        except (OSError, OverflowError) as error:  # the latter: there is no such port
            listener.close()
            reason = getattr(error, "strerror", error)
            continue
        return listener
    raise ConfigError(f"cannot listen on {HOST}, port {wanted[0]}: {reason}; give another --port")


def serve(feeds: Feeds, listener: socket.socket) -> None:
    """Answer until the process is interrupted."""
    _server(feeds).run(sockets=[listener])


def _server(feeds: Feeds) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            application(feeds),
            log_config=None,
            log_level="critical",
            access_log=False,
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=1,  # streams do not end by themselves
        )
    )


@contextmanager
def served(feeds: Feeds, port: int | None = None) -> Iterator[str]:
    """Within it a thread of this process answers; the address of the page."""
    with bound(port) as listener:
        server = _server(feeds)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield address(listener)
        finally:
            server.should_exit = True
            thread.join(5)


def address(listener: socket.socket) -> str:
    """Where the page is."""
    return f"http://{HOST}:{listener.getsockname()[1]}/"
