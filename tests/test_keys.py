"""The keys in words: complete, of one source, and as the documentation has them."""

from pathlib import Path

import pytest

from fl_app.cli import main
from fl_app.config import MODES, defaults, resolve
from fl_app.effects import of_mode
from fl_app.keys import keys, reference

ROOT = Path(__file__).resolve().parents[1]


def test_the_documentation_has_the_keys_as_they_are() -> None:
    told = "out of date: edge-fl config --markdown > docs/keys.md"
    assert (ROOT / "docs" / "keys.md").read_text(encoding="utf-8") == reference(), told


def test_every_key_has_a_meaning_and_a_range() -> None:
    found = {key.name: key for key in keys()}
    assert found.keys() == defaults().keys()
    assert [name for name, key in found.items() if not key.meaning or not key.extent] == []


@pytest.mark.parametrize(
    ("name", "extent"),
    [
        ("participants", "a whole number, 1 to 10000"),
        ("fraction-train", "a number, above 0 to 1"),
        ("learning-rate", "a number, above 0"),
        ("distill.label-weight", "a number, 0 or more"),
        ("cost.dropout-probability", "a number, 0 to below 1"),
        ("consensus.hold", "true, false"),
        ("mode", "average, consensus, distill"),
        ("name", "a text"),
    ],
)
def test_ranges_are_those_of_the_checks(name: str, extent: str) -> None:
    [key] = (key for key in keys() if key.name == name)
    assert key.extent == extent


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_shown_its_own_keys(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", mode]) == 0
    section, shown = "", set()
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("config"):
            section = line.partition(":")[0].removeprefix("config").lstrip(".")
        elif " = " in line.partition("#")[0]:
            shown.add(f"{section}.{line.split()[0]}".lstrip("."))
    assert shown == {key for key in defaults() if of_mode(key, mode)}
    assert ("consensus.loss" in shown) is (mode == "consensus")
    assert ("distill.lift" in shown) is (mode == "distill")
    assert ("averaging" in shown) is (mode != "consensus")


def test_there_is_no_other_mode(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "gossip"]) == 2
    assert "choose one of: average, consensus, distill" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["name=b"], ["--name", "b"]])
def test_where_a_run_is_kept_is_an_option_and_a_key(
    given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values: list[object] = []
    monkeypatch.setattr("fl_app.cli._launch", lambda _, found: values.append(found()) or 0)
    assert main(["run", "seed=3", "--output", "there", *given, "participants=4"]) == 0
    [found] = values
    assert found == {
        "seed": 3, "participants": 4, "name": "b", "output": str(Path("there").absolute())
    }  # fmt: skip
    assert resolve(found).name == "b"  # type: ignore[arg-type]
    assert main(["run", "--name", "a", "name=b"]) == 2
