"""The documents name what there is, and nothing that there is not."""

import re
from pathlib import Path

from fl_app.config import FLOWER_RULES
from strategies.pyproject import install

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
SOURCES = [
    path
    for package in ("client_apps", "experiments", "fl_app", "strategies")
    for path in sorted((ROOT / package).rglob("*.py"))
]


def test_every_averaging_rule_is_listed() -> None:
    [listed] = re.findall(
        r"Flower's `([a-z\s]+)` in synchronous", (ROOT / "docs" / "distill.md").read_text()
    )
    assert sorted(listed.split()) == sorted(FLOWER_RULES)


def test_nobody_is_told_to_install_edge_fl_from_a_registry() -> None:
    """Its name there is whoever's takes it first."""
    assert [path for path in (*DOCUMENTS, *SOURCES) if "edge-fl[" in path.read_text()] == []


def test_an_extra_is_installed_by_the_names_of_its_packages() -> None:
    assert install("hf") == "pip install 'flwr-datasets>=0.5'"
    extras = re.findall(r"install\([\"']([a-z]+)[\"']\)", "".join(p.read_text() for p in SOURCES))
    project = (ROOT / "pyproject.toml").read_text()
    assert extras
    assert all(f"\n{extra} = [" in project for extra in extras)
