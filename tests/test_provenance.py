"""Results say which code made them: a run's files, its report, and the results of experiments."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from experiments.benchmarks.output import benchmark
from experiments.reporting import code_line
from fl_app import provenance as module
from fl_app.config import resolve
from fl_app.provenance import described, provenance
from fl_app.record.books import recorded
from fl_app.record.report import render
from fl_app.record.run_dir import RunDirectory
from strategies.fingerprint import PACKAGES, fingerprint
from tests.frozen import frozen
from tests.record_events import config as distill_config

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = sorted((ROOT / "experiments" / "reports").rglob("*.json"))


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@x"]
    done = subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)
    return done.stdout.decode().strip()


def write(root: Path, text: str = "x = 1\n") -> None:
    for package in PACKAGES:
        (root / package).mkdir(parents=True, exist_ok=True)
        (root / package / "a.py").write_text(text)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with code in its only commit."""
    root = tmp_path / "a clone"
    write(root)
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "code")
    return root


@pytest.fixture(autouse=True)
def look_again() -> None:
    """Code that changes under a process is of tests alone."""
    module._provenance.cache_clear()
    fingerprint.cache_clear()


def test_a_clean_clone_has_its_commit(clone: Path) -> None:
    assert module._provenance(clone, None) == {
        "commit": git(clone, "rev-parse", "HEAD"),
        "dirty": False,
        "fingerprint": fingerprint(clone),
    }


@pytest.mark.parametrize(
    ("name", "dirty"),
    [
        ("fl_app/a.py", True),
        ("strategies/new.py", True),
        ("pyproject.toml", True),
        ("experiments/reports/results.json", False),  # it is being written
        ("notes.txt", False),
    ],
)
def test_what_decides_on_results_makes_a_clone_dirty(name: str, dirty: bool, clone: Path) -> None:
    before = module._provenance(clone, None)
    (clone / name).parent.mkdir(parents=True, exist_ok=True)
    (clone / name).write_text("y = 2\n")
    module._provenance.cache_clear()
    fingerprint.cache_clear()
    found = module._provenance(clone, None)
    assert (found["commit"], found["dirty"]) == (before["commit"], dirty)
    assert (found["fingerprint"] == before["fingerprint"]) == (not name.endswith(".py"))


def test_a_copy_counts_as_the_clone_that_it_is_equal_to(clone: Path, tmp_path: Path) -> None:
    """Flower runs one. Of other code, and of a copy in somebody else's repository, nothing but the
    fingerprint is known."""
    copy = tmp_path / "copy"
    write(copy)
    assert module._provenance(copy, clone) == module._provenance(clone, None)
    other = tmp_path / "other"
    write(other, "x = 2\n")
    unknown = {"commit": None, "dirty": None}
    assert module._provenance(other, clone) == {**unknown, "fingerprint": fingerprint(other)}
    inside = clone / "vendored"
    write(inside)
    assert module._provenance(inside, None) == {**unknown, "fingerprint": fingerprint(clone)}


def test_git_that_is_not_there_or_was_told_of_another_repository(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))
    assert module._provenance(clone, None)["commit"] == module._git(clone, "rev-parse", "HEAD")
    module._provenance.cache_clear()
    monkeypatch.setenv("PATH", "/nowhere")
    found = module._provenance(clone, None)
    assert found == {"commit": None, "dirty": None, "fingerprint": fingerprint(clone)}


def test_in_words() -> None:
    code = {"commit": "0123456789abcdef", "dirty": True, "fingerprint": "f00"}
    assert described(code) == "commit 0123456789ab with uncommitted changes, fingerprint f00"
    clean = {**code, "dirty": False}
    assert described(clean) == "commit 0123456789ab, fingerprint f00"
    assert described({**clean, "commit": None}) == "no commit known, fingerprint f00"
    assert code_line({"code": [code, clean]}) == f"{described(code)}; {described(clean)}"
    assert code_line({"code": None}) == code_line({}) == described(None) == "not recorded"


# ------------------------------------------------------------------------------------------ files


def test_a_run_says_which_code_has_worked_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after it was resumed by another one."""
    config = resolve({"mode": "average", "output": str(tmp_path)})
    with recorded(config) as run:
        pass
    assert run.environment()["code"] == provenance()
    assert run.summary()["code"] == [provenance()]
    (run.path / "summary.json").unlink()
    later: dict[str, Any] = {"commit": "f" * 40, "dirty": False, "fingerprint": "0" * 16}
    monkeypatch.setattr("fl_app.record.books.provenance", lambda: later)
    with recorded(resolve({**config.flat(), "resume": str(run.path)})) as run:
        pass
    assert run.summary()["code"] == [provenance(), later]
    code = frozen(run.path / "report.html")["code"]
    assert code == f"{described(provenance())}; then {described(later)}"


def test_the_report_of_a_run_from_before_says_that_it_was_not_recorded(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, distill_config())
    assert frozen(render(run))["code"] == "not recorded"


def test_a_benchmark_says_which_code_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    out = tmp_path / "out.json"
    assert benchmark("x", argparse.ArgumentParser(), lambda _: {"a": 1}, ["--out", str(out)]) == 0
    assert json.loads(out.read_text())["code"] == [provenance()]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_a_committed_result_says_which_code_made_it_or_that_it_does_not_know(path: Path) -> None:
    told = json.loads(path.read_text())
    # A file of runs has the code of each of them.
    codes = _codes(told) if isinstance(told, list) else told["code"]
    assert codes is None or codes
    for code in codes or ():
        assert set(code) == {"commit", "dirty", "fingerprint"}
    report = path.parent / {"results.json": "report.md", "convex.json": "convex.md"}.get(
        path.name, path.name
    )
    if report != path:
        assert f"- Code: {code_line({'code': codes})}." in report.read_text()


def _codes(runs: list[dict[str, Any]]) -> list[Any]:
    """A run on which several codes have worked has a list of them."""
    found: list[Any] = []
    for run in runs:
        found += run["code"] if isinstance(run["code"], list) else [run["code"]]
    return found


def test_a_run_without_the_code_of_its_first_evaluations_says_how_many() -> None:
    """Running averages were measured from some commit on: what lacks them is older than that."""
    runs = json.loads((ROOT / "experiments" / "reports" / "tracking.json").read_text())
    told = {}
    for run in runs:
        without = sum("over_time" not in each for each in run["curve"])
        if 0 < without < len(run["curve"]):
            assert run["evaluations_by_earlier_unrecorded_code"] == without
            told[run["method"]] = without
        else:
            assert "evaluations_by_earlier_unrecorded_code" not in run
    assert told == {"decentlam": 33, "qg-dsgdm": 27, "dsgdm": 24, "ecl": 18}
