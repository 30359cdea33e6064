"""Flower's private parts: named in one place, and looked at before anything depends on them."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_app import flower
from fl_app.deploy import gate
from fl_app.deploy.templates import of_device
from fl_app.flower import FlowerError, Part, check, part

ROOT = Path(__file__).resolve().parents[1]
PROMISED = {"flwr", "flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}
PROGRAMS = {
    "serverapp": flower.SERVERAPP,
    "gate": flower.GATE,
    "control": flower.CONTROL,
    "device": flower.DEVICE,
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_this_flower_fits(program: str) -> None:
    check(PROGRAMS[program])


def test_every_part_is_checked_by_the_program_that_uses_it() -> None:
    assert {name for names in PROGRAMS.values() for name in names} == flower.PARTS.keys()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (Part("flwr.superlink.main", "make_app"), r"has no flwr\.superlink\.main\.make_app"),
        (Part("flwr.superlink.gone", "create_app"), r"has no flwr\.superlink\.gone\.create_app"),
        (Part("flwr.superlink.main", "create_app", ("routes",)), "create_app takes no routes"),
    ],
)
def test_another_flower_is_refused_in_a_sentence(
    changed: Part, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(flower.PARTS, "create_app", changed)
    with pytest.raises(FlowerError, match=rf"^Flower [\d.]+ is not what .*{reason}.*pip install"):
        part("create_app")
    with pytest.raises(SystemExit, match=reason):
        gate.main()


def test_the_versions_that_were_tried_are_those_that_can_be_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [flwr] = (each for each in project["dependencies"] if each.startswith("flwr["))
    assert flwr == f"flwr[simulation]{flower.TRIED}"


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_nobody_else_reaches_into_flower() -> None:
    for package in ("client_apps", "fl_app", "strategies"):
        for path in (ROOT / package).rglob("*.py"):
            private = {n for n in imported(path.read_text()) if re.match(r"flwr(\.|$)", n)}
            assert private <= PROMISED, path


def test_a_device_has_its_copy_which_needs_nothing_of_the_app(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"host": "hub", "port": 9092, "insecure": True}
    text = of_device(settings, "pi", 9000)["flower.py"]
    assert not [name for name in imported(text) if name.startswith(("fl_app", "strategies"))]
    namespace: dict[str, Any] = {"__name__": "copied"}
    exec(compile(text, "flower.py", "exec"), namespace)
    namespace["check"](namespace["DEVICE"])
