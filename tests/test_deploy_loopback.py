"""A deployment as real processes: TLS, node authentication, the gate, kills, and a clean end."""

import asyncio
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from flwr.supercore.routers.health import router as health_router
from flwr.superlink.routers.control.router import router as control_router
from flwr.superlink.routers.fleet.router import router

from fl_app.deploy import directory as deployment
from fl_app.deploy import gate, loopback, serve
from fl_app.deploy.gate import Gate, Scope, allowed
from fl_app.deploy.loopback import Loopback
from fl_app.deploy.nodes import register
from strategies.errors import EdgeFlError
from strategies.site import SERVER

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@pytest.mark.parametrize(
    ("path", "client", "passes"),
    [
        ("/v1/fleet/activate-node", ("10.0.0.7", 5000), True),
        ("/health", ("10.0.0.7", 5000), True),
        ("/v1/control/start-run", ("10.0.0.7", 5000), False),
        ("/v1/control/start-run", ("2001:db8::7", 5000), False),
        ("/v1/control/start-run", ("::ffff:10.0.0.7", 5000), False),
        ("/v1/control/start-run", ("127.0.0.1", 5000), True),
        ("/v1/control/start-run", ("::1", 5000), True),
        ("/v1/control/start-run", ("::ffff:127.0.0.1", 5000), True),
        ("/v1/control/start-run", None, False),
        ("/v1/control/start-run", ("", 0), False),
        ("/v1/runtime/acquire-task", ("10.0.0.7", 5000), False),
        ("/v1/fleet/../control/start-run", ("10.0.0.7", 5000), False),
        ("//v1/fleet/", ("10.0.0.7", 5000), False),
        ("/docs", ("10.0.0.7", 5000), False),
        ("/", ("10.0.0.7", 5000), False),
    ],
)
def test_the_gate_lets_others_reach_the_fleet_interface_alone(
    path: str, client: tuple[str, int] | None, passes: bool
) -> None:
    assert allowed(path, client) is passes


def test_a_bundle_goes_compressed_and_nothing_else() -> None:
    async def behind(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"text " * 1000})

    def asked(path: str) -> tuple[int, bytes]:
        async def ask() -> tuple[int, bytes]:
            transport = httpx.ASGITransport(Gate(behind), client=("10.0.0.7", 5000))
            async with httpx.AsyncClient(transport=transport, base_url="http://hub") as client:
                answer = await client.post(path)
                return int(answer.headers.get("content-length", 5000)), answer.content

        return asyncio.run(ask())

    assert asked("/v1/fleet/pull-object") == (5000, b"text " * 1000)
    length, content = asked("/v1/fleet/get-fab")
    assert (length < 200, content) == (True, b"text " * 1000)


def test_flower_asks_for_bundles_where_the_gate_expects_it() -> None:
    assert any(getattr(each, "path", "") == gate._BUNDLE for each in router.routes)


SERVED = """
import socket
import sys
import flwr.superlink.cli.flower_superlink
from flwr.superlink import main as application
from fl_app.deploy import gate

class Behind:
    routes = ()
    def __init__(self, config=None):
        pass

def listen(host):
    with socket.socket() as server:
        server.bind((host, 0))
    print("listens", host, flush=True)

def serve():
    import grpc
    if {gated!r} != "not made":
        app = application.create_app()
    if {gated!r} == "served":
        app.stands = True
    if {gated!r} == "by grpc":
        grpc.server(None)
    listen("127.0.0.1")
    listen("0.0.0.0")

application.create_app = Behind
sys.modules["flwr.superlink.cli.flower_superlink"].flower_superlink = serve
gate.main()
"""


@pytest.mark.parametrize("gated", ["served", "made", "not made", "by grpc"])
def test_a_superlink_without_its_gate_does_not_listen(gated: str) -> None:
    """Whatever Flower changes: what is for this machine may be there before."""
    code = SERVED.format(gated=gated)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ("listens 0.0.0.0" in done.stdout) is (gated == "served")
    assert (done.returncode == 0) is (gated == "served")
    assert ("listens 127.0.0.1" in done.stdout) is (gated != "by grpc")
    refused = "by gRPC" if gated == "by grpc" else "without edge-fl's gate"
    assert (refused in done.stderr) is (gated != "served")


@pytest.mark.parametrize("prefix", ["", "/v1/fleet", "/v1/{anything}"])
def test_a_superlink_whose_control_interface_has_moved_to_the_fleets_place_is_refused(
    prefix: str,
) -> None:
    application = FastAPI()
    for each in (health_router, router):
        application.include_router(each)
    application.include_router(control_router, prefix=prefix)
    found = gate.strangers(application)
    assert (f"{prefix}/v1/control/start-run" in found) is bool(prefix)
    assert bool(found) is bool(prefix)
    application.mount("/v1", FastAPI())
    assert "/v1" in gate.strangers(application)


def test_devices_are_registered_however_long_the_superlink_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([EdgeFlError("no answer")] * 3 + [EdgeFlError("away"), None])

    def register_(server: Path, say: object) -> None:
        if (error := next(answers)) is not None:
            raise error

    monkeypatch.setattr(serve, "register", register_)
    monkeypatch.setattr(serve, "REGISTER_SECONDS", 0.0)
    serve._register(tmp_path)
    assert next(answers, "all") == "all"
    told = capsys.readouterr().err.splitlines()
    assert told == ["edge-fl: no answer; trying again", "edge-fl: away; trying again"]


def test_a_superlink_that_does_not_answer_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([EdgeFlError("no answer"), [], ["pi-1"]])

    def nodes(_: Path) -> list[str]:
        answer = next(answers)
        if isinstance(answer, EdgeFlError):
            raise answer
        return answer

    monkeypatch.setattr(loopback, "list_nodes", nodes)
    started = Loopback(tmp_path, ("pi-1",))
    assert [started._registered() for _ in range(3)] == [False, False, True]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    place, scratch = tmp_path_factory.mktemp("loopback"), tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(scratch))
        listen = {"EDGE_FL_LISTEN": "0.0.0.0"}
        with Loopback(place, ["pi-1", "pi-2"], environment=listen) as running:
            assert len(list(scratch.iterdir())) == 3, "a folder for each machine's processes"
            yield running
            pids = [pid for name in (SERVER, "pi-1") for pid in running.pids(name)]
            assert pids
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert list(scratch.iterdir()) == []


def other_address() -> str:
    """This machine's address on some network, or ""."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            return probe.getsockname()[0]
        except OSError:
            return ""


def status(site: Loopback, host: str, path: str) -> int:
    """The HTTP status of a POST there. The certificate is not for `host`: nobody looks at it."""
    port = deployment.settings_of(site.site)["port"]
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(
            f"https://{host}:{port}{path}", data=b"", timeout=30
        ) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@linux
def test_devices_are_on_line_by_their_names(site: Loopback) -> None:
    assert site.online() == ["pi-1", "pi-2"]
    listed = subprocess.run(
        [Path(sys.executable).with_name("flwr"), "supernode", "list", site.connection],
        env=site.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed.stdout.count("online") == 2, "the connection entry works for Flower's own command"


@linux
def test_other_machines_cannot_start_runs(site: Loopback) -> None:
    address = other_address()
    if not address or address.startswith("127."):
        pytest.skip("this machine has no other address")
    assert status(site, address, "/v1/control/start-run") == 403
    assert status(site, address, "/v1/runtime/acquire-task") == 403
    # Past the gate, Flower itself refuses what is no request.
    assert status(site, address, "/v1/fleet/activate-node") not in (403, 404)
    assert status(site, "127.0.0.1", "/v1/control/start-run") not in (403, 404)


@linux
def test_who_is_not_registered_stays_out_and_who_is_removed_is_cut_off(site: Loopback) -> None:
    deployment.add_device(site.site, "pi-3")
    site.start("pi-3")
    site.wait_for("pi-3", "is refused", lambda: "Failed to activate" in site.log("pi-3"))
    said: list[str] = []
    register(site.site / SERVER, said.append)
    site.wait_online(["pi-1", "pi-2", "pi-3"])
    deployment.remove_device(site.site, "pi-3")
    register(site.site / SERVER, said.append)
    register(site.site / SERVER, said.append)  # again: nothing to do
    assert said == ["registered: pi-3", "cut off: pi-3"]
    assert site.online() == ["pi-1", "pi-2"]
    site.kill("pi-3")


@linux
def test_the_superlink_comes_back_with_all_it_knew(site: Loopback) -> None:
    starter = site.pids(SERVER, "flower-superexec")
    assert site.kill_superlink() == 1
    site.wait_online()
    assert site.online() == ["pi-1", "pi-2"]
    assert site.pids(SERVER, "flower-superexec") == starter, "its ServerApps live on"
