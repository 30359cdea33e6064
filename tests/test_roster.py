"""Who takes part: devices by name, from the site, the configuration or the topology."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message
from flwr.proto.node_pb2 import NodeInfo

from fl_app.assemble import devices_of, expected_devices
from fl_app.config import resolve
from fl_app.launch.opening import linked
from fl_app.record.run_dir import RunDirectory
from fl_app.settings import distillation_run_of
from strategies.errors import ConfigError, DataError, EdgeFlError
from strategies.roster import SuperNode, assemble_roster, gather, prepare_hosts
from strategies.site import Site, read_site
from tests.fake_grid import FakeGrid


@pytest.fixture
def site(tmp_path: Path) -> Site:
    content = {"name": "server", "host": "127.0.0.1", "mail-port": 0, "insecure": True}
    content["devices"] = ["cyd", "ann", "bob"]
    (tmp_path / "site.json").write_text(json.dumps(content))
    return read_site(tmp_path)


def roster(
    names: list[str], participants: int, expected: tuple[str, ...], timeout: float = 60.0
) -> tuple[SuperNode, ...]:
    grid = FakeGrid({}, node_configs=[{"name": name} for name in names])
    return assemble_roster(grid, participants, timeout, print, names=expected)


def test_all_devices_of_the_site_in_the_order_of_their_names(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve({"participants": 3})
    assert expected_devices(config) == ()
    monkeypatch.setenv("EDGE_FL_SITE", str(site.directory))
    assert expected_devices(config) == ("ann", "bob", "cyd")


def test_references_are_refused_on_devices_before_anybody_is_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_FL_SITE", str(site.directory))
    config = resolve({"mode": "consensus", "clock": "real", "participants": 3})
    run, grid = RunDirectory(site.directory), FakeGrid({})
    with (
        pytest.raises(ConfigError, match=r"consensus\.references need all data in one place"),
        linked(grid, config, run),
    ):
        pass


def test_the_configuration_chooses(site: Site) -> None:
    assert devices_of(resolve({"participants": 2, "devices": "cyd, ann"}), site) == ("cyd", "ann")


def test_who_takes_no_part_is_sent_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_FL_SITE", str(site.directory))
    values = {"participants": 2, "devices": "cyd,ann", "small-width": 4}
    # The last of them was registered by hand, under no name of the site's: it may be any device.
    names = ["bob", "ann", "dan", "cyd", "pi"]
    grid = FakeGrid(values, node_configs=[{"name": name} for name in names])
    told = distillation_run_of(resolve(values))
    hosts, _ = gather(grid, told.problem, 60.0, print, names=told.devices, others=told.others)
    assert [host.name for host in hosts] == ["cyd", "ann"]
    asked = {
        grid.contexts[message.metadata.dst_node_id].node_config["name"] for message in grid.sent
    }
    assert asked == {"ann", "cyd", "dan", "pi"}


def topology(tmp_path: Path, *names: str) -> dict:
    path = tmp_path / "topology.json"
    pairs = [list(pair) for pair in pairwise(names)]
    path.write_text(json.dumps({"nodes": list(names), "edges": pairs}))
    return {
        "mode": "consensus",
        "participants": len(names),
        "consensus.topology": "file",
        "consensus.topology-file": str(path),
    }


def test_a_topology_file_names_devices(site: Site, tmp_path: Path) -> None:
    config = resolve(topology(tmp_path, "bob", "cyd", "ann"))
    assert devices_of(config, site) == ("bob", "cyd", "ann")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"participants": 8}, r"participants=8, but there are 3 device\(s\): ann, bob, cyd"),
        ({"participants": 2, "devices": "ann,eve"}, r"unknown device\(s\): eve; .*ann, bob, cyd"),
        ({"participants": 3, "devices": "ann,bob"}, "use participants=2"),
    ],
)
def test_devices_that_do_not_fit_are_named(values: dict, message: str, site: Site) -> None:
    with pytest.raises(ConfigError, match=message):
        devices_of(resolve(values), site)


def test_names_of_topology_and_configuration_must_agree(site: Site, tmp_path: Path) -> None:
    values = topology(tmp_path, "ann", "bob") | {"devices": "ann,cyd"}
    with pytest.raises(ConfigError, match="topology-file names ann, bob"):
        devices_of(resolve(values), site)
    with pytest.raises(ConfigError, match=r"unknown device\(s\): eve"):
        devices_of(resolve(topology(tmp_path, "ann", "eve")), site)


def test_one_device_cannot_be_named_twice() -> None:
    with pytest.raises(ConfigError, match="names one twice"):
        resolve({"devices": "ann,ann"})


def test_hosts_are_those_that_are_asked_for() -> None:
    hosts = roster(["cyd", "ann", "eve", "bob"], 2, ("cyd", "bob"))
    assert hosts == (SuperNode(11, "cyd", 0), SuperNode(14, "bob", 1))


def test_without_a_site_they_are_taken_by_their_names() -> None:
    assert [host.name for host in roster(["cyd", "ann", "bob"], 2, ())] == ["ann", "bob"]


def test_who_is_lacking_is_named() -> None:
    with pytest.raises(ConfigError, match=r"only 1 node.*: ann; lacking: bob"):
        roster(["ann", "eve"], 2, ("ann", "bob"), timeout=3.0)


class Registered(FakeGrid):
    """Nodes 11, 12, ... were registered by these names, whatever they say that they are called."""

    names: tuple[str, ...] = ()

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=11 + i, name=name) for i, name in enumerate(self.names)]


def _dead(message: Message, reply: Message) -> Message:
    bad = message.metadata.dst_node_id == 11
    return Message(Error(2, "none of your business"), reply_to=message) if bad else reply


@pytest.mark.parametrize(
    ("registered", "told", "tamper"),
    [
        ("bob", {"name": "ann"}, None),
        ("bob", {"name": "ann", "partition-id": 0, "num-partitions": 1}, None),
        ("pi", {"name": "ann"}, None),
        ("pi", {"name": "pi"}, _dead),
    ],
)
def test_in_a_deployment_a_node_is_who_it_was_registered_as(
    registered: str, told: dict, tamper: Any, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no other one than the run's devices can end it, or take somebody's place."""
    secure: Any = replace(site, credentials="some")
    monkeypatch.setattr("strategies.roster.server_site", lambda: secure)
    configs = [told, {"name": "cyd"}, {"name": "ann"}]
    grid = Registered({}, node_configs=configs, tamper=tamper)
    grid.names = (registered, "cyd", "ann")
    hosts = assemble_roster(grid, 2, 60.0, print, names=("ann", "cyd"))
    assert hosts == (SuperNode(13, "ann", 0), SuperNode(12, "cyd", 1))


def test_a_device_of_the_run_that_cannot_answer_is_named(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_FL_SITE", str(site.directory))
    grid = Registered({}, node_configs=[{"name": "ann"}, {"name": "cyd"}], tamper=_dead)
    grid.names = ("ann", "cyd")
    with pytest.raises(EdgeFlError, match="node 11 could not answer: none of your business"):
        assemble_roster(grid, 2, 60.0, print, names=("ann", "cyd"))


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two devices are called 'ann'"):
        roster(["ann", "ann"], 2, ())


def test_a_device_that_cannot_take_part_stops_nobody_if_enough_others_can(tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_text("no archive")
    own = {"data-path": str(tmp_path / "broken.npz")}
    configs = [{"name": "ann"}, {"name": "bob", **own}, {"name": "cyd"}]
    grid = FakeGrid({"participants": 3}, node_configs=configs)
    hosts = [SuperNode(11 + i, str(config["name"]), i) for i, config in enumerate(configs)]
    said: list[str] = []
    for least in (0, 3):
        with pytest.raises(DataError, match=r"bob: .*broken\.npz"):
            prepare_hosts(grid, hosts, 3, 60.0, said.append, least)
    examples = prepare_hosts(grid, hosts, 3, 60.0, said.append, 2)
    assert [count > 0 for count in examples.values()] == [True, False, True]
    assert len(said) == 1
    assert "bob" in said[0]
