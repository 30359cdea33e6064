"""What devices tell of themselves: checked before a run, recorded, and shown."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import fl_app.device
from client_apps import local_training
from client_apps.holdings import holdings
from client_apps.local_model import local_model_of, shard_of
from fl_app.cli import main
from fl_app.config import Value, resolve
from fl_app.deploy import devices
from fl_app.deploy import directory as deployment
from fl_app.deploy.nodes import Node
from fl_app.problem import problem_of
from fl_app.record.books import recorded
from fl_app.record.run_dir import METRICS
from strategies.condition import Holdings, condition, shortage, told
from strategies.consensus.algorithms import ALGORITHMS
from strategies.consensus.state import pack, size_of
from strategies.errors import DataError, EdgeFlError
from strategies.messages.queries import PrepareOrder
from strategies.roster import gather
from tests.fake_grid import FakeGrid
from tests.test_consensus_convex import simulation

MB = 10**6


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path / "home"))


def test_a_device_tells_how_it_is() -> None:
    found = condition() | {"data": "own"}
    assert told(found) == found
    assert found["memory"] != 0
    assert float(found["disk"]) > MB, "of the disk on which the folder is to be made"


@pytest.mark.parametrize(
    "lie",
    [{"load": float("nan")}, {"memory": "much"}, {"disk": []}, {"python": 3}, {"flwr": None}],
)
def test_what_is_no_condition_is_refused(lie: dict[str, Any]) -> None:
    answer: dict[str, Any] = condition() | {"data": "own"} | lie
    with pytest.raises((TypeError, ValueError)):
        told(answer)


def test_texts_are_short_and_for_a_terminal() -> None:
    answer: dict[str, Any] = condition() | {"data": "own", "machine": "\x1b[2J" + 100 * "x"}
    assert told(answer)["machine"] == "[2J" + 36 * "x"


@pytest.mark.parametrize("name", ["memory", "disk"])
def test_a_run_that_holds_more_needs_more(name: str) -> None:
    found = {"memory": -1.0, "disk": -1.0} | {name: 100.0 * MB}
    assert shortage(found, Holdings(8 * MB, 8 * MB)) == ""
    assert f"it has 100 MB of {name} free" in shortage(found, Holdings(400 * MB, 400 * MB))
    unknown = {"memory": -1.0, "disk": -1.0}
    assert shortage(unknown, Holdings(400 * MB, 400 * MB)) == "", "not known"


def gathered(
    monkeypatch: pytest.MonkeyPatch,
    found: Mapping[str, float] = MappingProxyType({}),
    mode: str = "distill",
    **besides: str | int,
) -> list[dict]:
    """The events of a run's beginning, whose devices have so much."""
    monkeypatch.setattr(local_training, "condition", lambda: condition() | dict(found))
    names = ("pi-1", "pi-2") if mode == "distill" else ("pi-1", "pi-2", "pi-3")
    config = resolve({"participants": len(names), "mode": mode})
    places = [{"name": name, "site": "/etc/edge-fl"} for name in names]
    events: list[dict] = []

    def emit(kind: str, **fields: Any) -> None:
        events.append({"event": kind, **fields})

    grid = FakeGrid(config.flat(), node_configs=places)
    gather(grid, problem_of(config), 60.0, emit, besides=besides)
    return events


def held(mode: str, **changes: Value) -> Holdings:
    """What the first participant of a run with these settings holds."""
    values = {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
    config = resolve({"participants": 3, "mode": mode, **values})
    settings = fl_app.device.settings(config.flat())
    problem = settings.training.problem
    order = PrepareOrder([0], "", "", 2 if config.agrees else 0)
    return holdings(settings, order, local_model_of(problem), {0: shard_of(problem, 0, "")})


def test_what_each_setting_adds_is_held() -> None:
    """In models: what a participant has for its round, and a node for its neighbours."""
    model = local_model_of(problem_of(resolve({"participants": 3}))).model.weights.nbytes
    plain = held("average")
    assert plain.disk == 0

    def more(**changes: Value) -> float:
        return (held("average", **changes).memory - plain.memory) / model

    assert more(mail_precision="int8") == 2
    assert more(secure_aggregation=True) == 4
    assert more(proximal_mu=0.1, averaging="fedprox") == 1
    private = {"normalisation": "group", "privacy__samples": True}
    public = held("average", normalisation="group").memory
    assert held("average", **private).memory - public == 64 * model, "a gradient for each image"


def test_a_node_holds_what_its_algorithm_and_its_mail_need() -> None:
    settings = {"consensus__settle": 0, "small_model": "lenet"}
    model = local_model_of(
        problem_of(resolve({"mode": "consensus", "participants": 3, "small-model": "lenet"}))
    ).model.weights.nbytes
    whole, rounded = (
        held("consensus", **settings),
        held("consensus", mail_precision="int8", **settings),
    )
    assert whole.disk / model == pytest.approx(3 * (2 + 2 * 2), rel=0.01)
    # Four vectors for each of two neighbours, twice while they are saved, and mails of a quarter.
    assert (rounded.memory - whole.memory) / model == pytest.approx(2 * 8 - 2 * 2 * 0.75, rel=0.02)
    alone = held("consensus", consensus__algorithm="isolated", **settings)
    assert alone.memory < whole.memory


def test_a_minibatch_is_held() -> None:
    two, four, eight = (held("average", batch_size=size).memory for size in (2, 4, 8))
    assert 0 < four - two == (eight - four) / 2


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_a_nodes_state_is_what_was_said(name: str) -> None:
    """After it has exchanged with its neighbours, whose mail makes some of it."""
    entry = ALGORITHMS[name]
    for precision in ("float32",) if entry.unrounded else ("float32", "int8"):
        changes = {"mail_precision": precision, "momentum": 0.5}
        graph = "chain" if entry.trees_only else "ring"
        found = simulation(name, graph, size=4, changes=changes)
        found.run(1)
        for participant in found.participants:
            arrays, _ = pack(participant)
            parameters = len(arrays["weights"])
            real = sum(v.nbytes for key, v in arrays.items() if not key.startswith("mail/"))
            of_links, numbers = len(participant.node.links), 200
            state, mail = size_of(participant.algorithm, participant.node.index, parameters)
            # In float64, which doubles all but codes of fewer bits.
            assert real <= 2 * (state + mail) + numbers * of_links
            assert real >= 2 * state - numbers


def test_a_run_begins_with_how_its_devices_are(monkeypatch: pytest.MonkeyPatch) -> None:
    [event] = gathered(monkeypatch, {"memory": 5e8, "load": 0.25})
    assert event["event"] == "devices"
    assert set(event["devices"]) == {"pi-1", "pi-2"}
    pi = event["devices"]["pi-2"]
    assert (pi["memory"], pi["load"], pi["data"], pi["participant"]) == (5e8, 0.25, "its share", 1)
    assert pi["examples"] > 0


@pytest.mark.parametrize("name", ["memory", "disk"])
def test_a_device_with_too_little_cannot_take_part(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=rf"pi-1: it has 1 MB of {name} free.*; pi-2: it has"):
        gathered(monkeypatch, {name: 1.0 * MB})


def test_the_states_of_a_node_need_room(monkeypatch: pytest.MonkeyPatch) -> None:
    [_] = gathered(monkeypatch, {"disk": 33.0 * MB})
    told = {"topology": "", "states": 2}
    [_] = gathered(monkeypatch, {"disk": 35.0 * MB}, "consensus", **told)
    with pytest.raises(DataError, match=r"pi-1: it has 33 MB of disk free.* needs 33; "):
        gathered(monkeypatch, {"disk": 32.6 * MB}, "consensus", **told)
    with pytest.raises(DataError, match=r"it has 35 MB of disk free"):
        gathered(monkeypatch, {"disk": 35.0 * MB}, "consensus", **{**told, "states": 12})


def run_of(name: str, mode: str, told_by: dict[str, int], *events: dict[str, Any]) -> None:
    with recorded(resolve({"mode": mode, "name": name, "participants": 2})) as run:
        base = {**condition(), "data": "own", "memory": 5e8, "load": 0.25}
        run.emit("devices", devices={n: {**base, "participant": p} for n, p in told_by.items()})
    with (run.path / METRICS).open("a") as file:  # no run has so little in an event
        file.writelines(json.dumps({**event, "t_wall": 1.0}) + "\n" for event in events)


def test_who_is_there_and_what_they_did_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site"
    deployment.create(site, "hub.example", devices=["pi-1", "pi-2", "pi-3"])
    nodes = [Node(1, "pi-1", b"", "online"), Node(2, "pi-2", b"", "offline")]
    nodes += [Node(3, "pi-1", b"", "unregistered")]
    monkeypatch.setattr(devices, "list_nodes", lambda server: nodes)
    job = {"event": "job", "job": 0, "round": 7, "participant": 1}
    run_of("first", "distill", {"pi-1": 0, "pi-2": 1}, job)
    third = {"event": "nodes", "round": 3, "accuracy": [0.5, None]}
    fourth = {"event": "nodes", "round": 4, "accuracy": [None, 0.5]}
    run_of("second", "consensus", {"pi-1": 0}, third, fourth)
    capsys.readouterr()
    for place in (site, site / "server"):
        assert main(["devices", str(place)]) == 0
        title, *rows = capsys.readouterr().out.splitlines()
        assert title.split() == " ".join(devices.COLUMNS).split()
        assert [row.split()[:2] for row in rows] == [
            ["pi-1", "online"],
            ["pi-2", "offline"],
            ["pi-3", "-"],
        ]
        assert rows[0].split()[-2:] == ["3", "second"], "in window 4 it was away"
        assert rows[1].split()[-2:] == ["7", "first"]
        assert "500 MB" in rows[0]
        assert set(rows[2].split()[1:]) == {"-"}


def test_without_a_superlink_the_records_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(server: Path) -> list[Node]:
        raise EdgeFlError("no SuperLink answers at 127.0.0.1:8000")

    monkeypatch.setattr(devices, "list_nodes", away)
    deployment.create(tmp_path / "site", "hub.example", devices=["pi-1"])
    assert main(["devices", str(tmp_path / "site")]) == 0
    assert capsys.readouterr().out.startswith("edge-fl: no SuperLink answers")


def test_devices_of_what_is_no_deployment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment.create(tmp_path / "site", "hub.example", devices=["pi-1"])
    for place in (tmp_path, tmp_path / "site" / "devices" / "pi-1"):
        assert main(["devices", str(place)]) == 2
        assert str(place) in capsys.readouterr().err


def test_the_connection_of_the_server_where_it_lies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment.create(tmp_path / "site", "hub.example", devices=["pi-1"])
    place = tmp_path / "copied"
    (tmp_path / "site" / "server").rename(place)
    assert main(["deploy", "connection", str(place)]) == 0
    [table] = tomllib.loads(capsys.readouterr().out)["superlink"].values()
    assert table == {"address": "127.0.0.1:8000", "root-certificates": str(place / "ca.crt")}
    assert Path(table["root-certificates"]).is_file()
