"""The programs in examples/ do what their pages say."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate

from tests import fake_grid
from tests.fake_grid import FakeGrid

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_an_app_of_another_layout_distils_from_its_plain_clients(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ClientApp and its network import nothing of edge-fl."""
    folder = EXAMPLES / "plain_clients"
    _, warnings = load_and_validate(folder / "pyproject.toml")
    assert warnings == []
    assert build_fab_from_disk(folder)
    for name in ("client.py", "learning.py"):
        source = (folder / "walks" / name).read_text()
        assert not re.search(r"import.*(edge_fl|strategies|client_apps|fl_app)", source)
    monkeypatch.syspath_prepend(folder)
    from walks import client, server  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    monkeypatch.setattr(fake_grid, "client_app", client.app)
    config = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    given = config["config"] | {"rounds": 5}
    server.main(FakeGrid(given), Context(1, 1, {}, RecordDict(), given))
    told = re.findall(r"the (small|large) model is right in (\d+\.\d) %", capsys.readouterr().out)
    assert [name for name, _ in told] == ["small", "large"]
    small, large = (float(percent) for _, percent in told)
    assert small > 45  # of three kinds
    assert large > 80
