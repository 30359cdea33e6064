"""Headless Chromium over its DevTools protocol: opens a page, evaluates, takes pictures."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 180.0  # on a machine with ten other processes a page takes a minute


def missing() -> str:
    """Why there is no browser to test with; "" if there is one."""
    if not program():
        return f"no browser on the PATH: {', '.join(PROGRAMS)}"
    try:
        import websockets.sync.client  # noqa: F401
    except ImportError:
        return "the package websockets, to talk to the browser, is not installed"
    return ""


def program() -> str | None:
    """The browser that is there."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """A tab. errors: what its console has said was wrong, and what it could not load."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._number = 0
        self._session = ""
        self.errors: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(PATIENCE))
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer.get("method"), answer.get("params") or {})

    def _note(self, method: str | None, told: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description", details)))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and told["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.errors.append(str([each.get("value") for each in told["args"]]))

    def leave(self) -> None:
        """Leave the page, whose server is about to end, and forget what was wrong with it."""
        self._call("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank'")
        self.errors.clear()

    def open(self, address: str, width: int = 1400, height: int = 1000, dark: bool = False) -> None:
        """Show a page and wait until it is loaded."""
        self.resize(width, height, dark)
        self._call("Page.navigate", url=address)
        # The page before it is complete, too.
        there = f"location.href.startsWith(new URL({json.dumps(address)}).href)"
        self.wait(f"{there} && document.readyState === 'complete'")

    def resize(self, width: int, height: int = 1000, dark: bool = False) -> None:
        """Make the window so large, in pixels, and its colours dark or light."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is; of a promise, what it comes to."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Wait until an expression is true, and return it."""
        deadline = time.monotonic() + PATIENCE
        while not (value := self.value(expression)):
            assert time.monotonic() < deadline, f"never true: {expression}; {self.errors}"
            time.sleep(0.05)
        return value

    def press(self, key: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def picture(self) -> bytes:
        """The whole page as a PNG."""
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def tall(self, width: int, dark: bool = False) -> None:
        """Make the window as high as the page."""
        self.resize(width, 1000, dark)
        time.sleep(0.3)
        self.resize(width, int(self.value("document.documentElement.scrollHeight")), dark)
        time.sleep(0.5)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser of its own, ended with the block."""
    from websockets.sync.client import connect

    found = program()
    assert found
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        command = [found, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--remote-debugging-port=0", f"--user-data-dir={home}", "--hide-scrollbars"]
        command += ["--disable-dev-shm-usage", "--disable-background-networking", "about:blank"]
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "HOME": home},
        )
        try:
            address = _address(process)
            with connect(address, max_size=2**27) as socket:
                yield Browser(socket)
        finally:
            process.terminate()
            process.wait(30)
            if process.stderr:
                process.stderr.close()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("DevTools listening on "):
            return line.split()[-1]
    raise AssertionError(f"the browser did not start: {''.join(said)}")
