"""The site of a machine: read whole or refused with the way out."""

import json

import pytest

from strategies.errors import ConfigError
from strategies.site import CREDENTIALS, device_site, read_site, server_site


@pytest.fixture
def place(tmp_path):
    content = {"name": "pi-1", "host": "hub.example", "mail-port": 7447, "insecure": False}
    (tmp_path / "site.json").write_text(json.dumps(content))
    for name in CREDENTIALS:
        (tmp_path / name).write_text("PEM")
    return tmp_path


def test_a_device_reads_its_site_from_its_node_configuration(place):
    site = device_site({"site": str(place)})
    assert site is not None
    assert site.credentials is not None
    assert (site.name, site.devices, site.endpoint) == ("pi-1", (), "tls/hub.example:7447")
    assert site.credentials.authority == place / "ca.crt"


def test_the_server_reads_its_site_from_the_environment(place):
    content = json.loads((place / "site.json").read_text())
    changed = {"name": "server", "devices": ["pi-1", "pi-2"], "insecure": True, "host": "127.0.0.1"}
    (place / "site.json").write_text(json.dumps(content | changed))
    site = server_site({"EDGE_FL_SITE": str(place)})
    assert site is not None
    assert site.credentials is None
    assert (site.devices, site.endpoint) == (("pi-1", "pi-2"), "tcp/127.0.0.1:7447")


def test_without_a_deployment_there_is_no_site():
    assert server_site({}) is None
    assert device_site({"partition-id": 0}) is None


@pytest.mark.parametrize("missing", ["site.json", *CREDENTIALS])
def test_a_missing_file_is_named(place, missing):
    (place / missing).unlink()
    with pytest.raises(ConfigError, match=missing):
        read_site(place)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "a", "host": "b", "mail-port": "x"}'])
def test_a_broken_description_is_refused(place, text):
    (place / "site.json").write_text(text)
    with pytest.raises(ConfigError, match="edge-fl deploy"):
        read_site(place)
