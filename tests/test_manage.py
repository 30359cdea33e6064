"""Sweeps, groups of seeds, the list of runs and their removal."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fl_app.cli import main
from fl_app.config import resolve
from fl_app.launch.supervise import ENDING
from fl_app.manage import execute, plan
from fl_app.problem import problem_of
from fl_app.record.books import open_books
from fl_app.record.groups import Group, Run, band, grouped, mean_and_error, paired
from fl_app.record.run_dir import RunDirectory, reserve
from fl_app.record.writer import LOCK
from strategies.problem import task_of
from tests.record_events import distill_events, fill


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def make(root: Path, name: str, final: float = 0.5, status: str = "completed", **keys: Any) -> None:
    given = {key.replace("__", ".").replace("_", "-"): value for key, value in keys.items()}
    run = RunDirectory.create(root, resolve(given).flat(), name=name)
    fill(run, distill_events(2, seed=int(keys.get("seed", 0))), status)
    run.write_summary({"status": status, "final": {"published": final}})


# ------------------------------------------------------------------------------------------ groups


def run_of(seed: int, final: float | None, **config: Any) -> Run:
    points = [] if final is None else [(1.0, 0.1), (2.0, final)]
    return Run(f"{config}-{seed}", {"seed": seed, "name": "x", **config}, points)


def test_runs_that_differ_by_seed_or_name_alone_are_one_group() -> None:
    runs = [run_of(seed, 0.5, variant=v, rounds=3) for v in ("a", "b") for seed in (0, 1)]
    groups = grouped(runs)
    assert [group.label for group in groups] == ["variant=a", "variant=b"]
    assert [[run.seed for run in group.runs] for group in groups] == [[0, 1], [0, 1]]
    assert [group.label for group in grouped(runs[:2])] == ["all"]
    different = {f"key-{k}": k for k in range(9)}
    many = [replace(run_of(0, 0.5, rate=rate, **different), about="plus") for rate in (1, 2)]
    labels = [group.label for group in grouped([*many, replace(runs[0], about="sync")])]
    assert labels == ["plus rate=1", "plus rate=2", "sync"]


def test_means_errors_and_paired_differences_are_those_of_the_textbook() -> None:
    assert mean_and_error([]) == (None, None)
    assert mean_and_error([0.25]) == (0.25, None)
    assert mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / 3**0.5))
    first = Group("a", tuple(run_of(s, v) for s, v in ((0, 0.5), (1, 0.7), (2, None))))
    other = Group("b", tuple(run_of(s, v) for s, v in ((1, 0.8), (0, 0.55), (3, 0.9))))
    assert paired(other, first) == pytest.approx([0.1, 0.05])


def test_a_band_is_the_mean_and_standard_error_at_common_times() -> None:
    one = Run("one", {"seed": 0}, [(0.0, 0.0), (2.0, 0.4), (4.0, 0.8)])
    two = Run("two", {"seed": 1}, [(1.0, 0.4), (3.0, 0.8)])
    found = band(Group("all", (one, two, run_of(2, None))))
    assert found
    times, mean, error = found
    assert times.tolist() == [1.0, 3.0]
    assert mean == pytest.approx([0.3, 0.7])
    assert error == pytest.approx([0.1, 0.1])


def test_compare_tells_groups_in_a_table_a_figure_and_a_csv(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for variant in ("async-plus", "sync"):  # their order, within a second or not
        for seed in (0, 1):
            make(root, f"s-{variant}-{seed}", seed=seed, distill__variant=variant)
    assert main(["compare", "s-", "--out", "out"]) == 0
    output = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines()]
    rows = rows[rows.index([]) + 1 :]
    finals = {
        seed: 100
        * [e for e in distill_events(2, seed=seed) if e.get("model") == "global"][-1][
            "accuracy_ema"
        ]
        for seed in (0, 1)
    }
    mean = sum(finals.values()) / 2
    error = abs(finals[0] - finals[1]) / 2
    assert rows[2] == ["distill.variant=async-plus", "2", f"{mean:.1f} ± {error:.1f}", ""]
    assert rows[3] == [
        "distill.variant=sync", "2", f"{mean:.1f} ± {error:.1f}", "+0.0 ± 0.0",
    ]  # fmt: skip
    lines = (root.parent / "out" / "compare.csv").read_text().splitlines()
    assert lines[0] == "configuration,seed,run,status,final"
    assert len(lines) == 5
    assert float(lines[1].split(",")[-1]) == pytest.approx(finals[0] / 100)
    assert (root.parent / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_what_has_not_come_to_its_end_is_in_no_mean(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that diverges can stand high before it does."""
    for seed, status in ((0, "completed"), (1, "completed"), (2, "diverged"), (3, "stopped")):
        make(root, f"s-{seed}", seed=seed, status=status)
    assert main(["compare", "s-", "--out", "out"]) == 0
    output = capsys.readouterr().out
    assert "Note: in no mean, because not complete: 1 diverged, 1 stopped." in output
    assert "| all | 2 |" in output
    lines = (root.parent / "out" / "compare.csv").read_text().splitlines()
    assert [bool(line.split(",")[-1]) for line in lines[1:]] == [True, True, False, False]


def test_runs_of_different_metrics_are_shown_each_by_its_own(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for table, name, unit, direction in (
        ("breast-cancer", "accuracy", "%", "higher"), ("diabetes", "RMSE", "", "lower"),
    ):  # fmt: skip
        for seed in (0, 1):
            values = {"task": "tables", "table": table, "seed": seed}
            # Two runs of one name, in two places.
            run = RunDirectory.create(root / table, resolve(values).flat(), name=f"run-{seed}")
            told = {"name": name, "unit": unit, "direction": direction}
            run.emit("run_started", config=run.config(), metric=told)
            for event in distill_events(2, seed=seed):
                run.emit(**event)
            status = "stopped" if (table, seed) == ("diabetes", 1) else "completed"
            run.emit("finished", status=status)
            run.write_summary({"status": status})
            run.close()
    paths = [str(path) for path in sorted(root.glob("*/run-*"))]
    assert main(["compare", *paths, "--out", "out"]) == 0
    output = capsys.readouterr().out
    note = "the metric differs: accuracy (compare.png), RMSE (compare-2.png)."
    assert f"Note: results are not comparable, {note}" in output
    assert "task differs: tables (breast-cancer), tables (diabetes)." in output
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines()]
    first, second = rows[rows.index([]) + 1 :][2:4]
    assert first[:3] == ["table=breast-cancer", "2", "accuracy (%)"]
    assert second[:3] == ["table=diabetes", "1", "RMSE (lower is better)"]
    assert (first[-1], second[-1]) == ("", "-")
    assert 0 < float(second[3]) < 1 < float(first[3].split()[0])
    lines = [
        line.split(",") for line in (root.parent / "out" / "compare.csv").read_text().splitlines()
    ]
    assert [line[3] for line in lines[1:]] == ["completed", "completed", "completed", "stopped"]
    assert [line[5] for line in lines] == ["metric", "accuracy", "accuracy", "RMSE", "RMSE"]
    for picture in ("compare.png", "compare-2.png"):
        assert (root.parent / "out" / picture).read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------------------------------ sweeps


def test_a_sweep_is_the_product_of_its_values() -> None:
    words = ["distill.variant=sync,async-plus", "seed=0..2", "targets=0.5,0.6"]
    found = plan.combinations(words)
    assert len(found) == 6
    assert len(plan.combinations(["consensus.outages=crash:3@20-40,cut:0-1@10-30"])) == 1
    assert found[0] == ("distill.variant=sync", "seed=0", "targets=0.5,0.6")
    assert found[-1] == ("distill.variant=async-plus", "seed=2", "targets=0.5,0.6")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["seed"], "not an assignment"),
        (["seed=0,0"], "a value twice"),
        (["seed=0,00"], "seed=00 is the same as seed=0; give it once"),
        (["learning-rate=0.1,0.2,0.10"], "learning-rate=0.10 is the same as learning-rate=0.1;"),
        (["seed=3..1"], "a range goes up"),
        (["seed=0..20000"], "that is 20001 runs; a sweep has at most 10000"),
        (["seed=0..999", "participants=1..999"], "at most 10000"),
        (["name=x"], "names its runs itself"),
        (["seeds=0..1"], "did you mean seed"),
        (["seed=0", "alpha=0.1,0.2"], "no effect"),
        (["participants=3,-1"], "participants"),
        (["seed=0", "--name", "a/b"], "--name a/b, with a number behind it, must be the name of"),
        (["seed=0", "--parallel", "-1"], "--parallel -1 must be at least 0"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_runs(
    words: list[str], complaint: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *words]) == 2
    assert complaint in capsys.readouterr().err
    assert not root.exists()


def test_what_is_there_already_is_not_run_again(root: Path) -> None:
    make(root, "by-hand", seed=0)
    make(root, "stopped", seed=1, status="stopped")
    RunDirectory(root / "stopped").save_checkpoint("server", {})
    make(root, "working", seed=2, status="stopped")
    (root / "working" / "summary.json").unlink()
    (root / "working" / LOCK).write_text("")
    make(root, "failed", seed=3, status="failed")
    make(root, "damaged", seed=4)
    (root / "damaged" / "summary.json").write_text("{")
    found = plan.planned(["seed=0..5"], "sweep")
    states = [each.state for each in found]
    assert states == ["done", "resumable", "running", "missing", "missing", "missing"]
    assert found[1].existing
    assert found[1].existing.name == "stopped"
    assert len({each.name for each in found}) == 6


OWN = "def rule({given}):\n    return {given}\n"


def test_what_was_made_of_other_data_or_own_code_is_run_again(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = tmp_path / "rules.py"
    rules.write_text(OWN.format(given="one"))
    words = ["partition=rules.py:rule", "mode=average", "task=tables", "seed=0"]
    [before] = plan.planned(words, "s")
    config = resolve(before.config)

    def record(name: str) -> RunDirectory:
        run = RunDirectory.create(root, config.flat(), name=name)
        open_books(run, config)
        run.write_summary({"status": "completed"})
        return run

    record("first")
    [found] = plan.planned(words, "s")
    assert (found.state, found.outdated) == ("done", ())
    rules.write_text(OWN.format(given="other"))
    [found] = plan.planned(words, "s")
    assert (found.state, found.existing) == ("missing", None)
    assert main(["sweep", *words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "first was made with others: the code of partition; it does not count" in told
    second = record("second")
    [found] = plan.planned(words, "s")
    assert found.state == "done"
    assert found.existing
    assert found.existing.name == "second"
    metrics = second.path / "metrics.jsonl"
    data = task_of(problem_of(config)).digest
    metrics.write_text(metrics.read_text().replace(data, "0" * 64))  # of that time
    [found] = plan.planned(words, "s")
    assert found.state == "missing"
    assert [line.split(" was")[0] for line in found.outdated] == ["first", "second"]
    assert "the examples or the names of classes" in found.outdated[1]


FAKE = """
import json, os, sys, time
from fl_app.launch.values import parse_assignments
from fl_app.config import resolve
from fl_app.record.run_dir import RunDirectory
from strategies.paths import runs_root
from strategies.problem import task_of
from tests.record_events import distill_events, fill
words = [word for word in sys.argv[2:] if word != "--quiet"]
config = resolve(parse_assignments(words))
if config.seed == 2:
    sys.exit("edge-fl: no such thing")
run = RunDirectory.create(runs_root(), config.flat(), name=config.name)
fill(run, distill_events(2, seed=config.seed))
run.write_summary({"status": "completed", "final": {"published": config.seed / 10}})
print(f"run directory: {run.path}")
"""


def test_a_sweep_runs_what_is_missing_and_says_what_came_out(root: Path) -> None:
    make(root, "by-hand", seed=0)
    told: list[str] = []
    command = [sys.executable, "-c", FAKE]
    assert execute.execute(plan.planned(["seed=0..2"], "s"), 2, told.append, command) == 1
    assert sorted(line.split("  ")[1].split(" (")[0] for line in told) == [
        "seed=1: accuracy 10.0 %", "seed=2: failed: edge-fl: no such thing",
    ]  # fmt: skip
    states = [each.state for each in plan.planned(["seed=0..2"], "s")]
    assert states == ["done", "done", "missing"]


def test_a_sweep_finds_its_runs_where_the_app_keeps_them(root: Path, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        f"[tool.edge-fl]\n[tool.flwr.app.config]\noutput = {str(tmp_path / 'kept')!r}\n"
    )
    make(tmp_path / "kept", "by-hand", seed=0)
    found = plan.planned(["seed=0..1"], "s")
    assert [each.state for each in found] == ["done", "missing"]
    make(tmp_path / "kept", found[1].name, seed=1, status="failed")
    program = "import sys; sys.exit(sys.argv[3])"
    told: list[str] = []
    execute.execute(found, 1, told.append, [sys.executable, "-c", program])
    assert f"failed: name={found[1].name}-2" in told[0]


def test_a_run_that_says_much_ends_all_the_same(root: Path) -> None:
    told: list[str] = []
    program = "import sys; print('much\\n' * 100_000); sys.exit('edge-fl: at last')"
    command = [sys.executable, "-c", program]
    assert execute.execute(plan.planned(["seed=0"], "s"), 1, told.append, command) == 1
    assert "seed=0: failed: edge-fl: at last" in told[0]


def test_what_came_out_is_told_in_the_tasks_own_unit(root: Path) -> None:
    run = RunDirectory.create(root, resolve({"task": "text"}).flat(), name="text")
    metric = {"name": "perplexity", "unit": "", "direction": "lower"}
    run.emit("run_started", config={}, metric=metric)
    run.write_summary({"status": "completed", "final": {"published": 12.5}})
    planned = plan.Planned((), {"mode": "distill"}, "text", "missing", None)
    told = execute._told(planned, 0, f"run directory: {run.path}\n")
    assert told == "perplexity 12.500"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_that_is_interrupted_ends_what_it_started(
    number: signal.Signals, root: Path, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    program = (
        f"import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_DFL); "
        f"open({str(pid)!r}, 'w').write(str(os.getpid())); "
        f"time.sleep(0.5); os.kill(os.getppid(), {int(number)}); time.sleep(600)"
    )
    said: list[str] = []
    handlers = [signal.getsignal(each) for each in ENDING]
    with pytest.raises(KeyboardInterrupt):
        execute.execute(
            plan.planned(["seed=0..1"], "s"), 1, said.append, [sys.executable, "-c", program]
        )
    assert said == ["stopping; 2 of 2 are not done: the same command goes on with them"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert [signal.getsignal(each) for each in ENDING] == handlers


@pytest.mark.parametrize(
    ("cores", "participants", "mode", "runs"),
    [(2, 3, "distill", 1), (8, 3, "distill", 2), (16, 8, "consensus", 2), (64, 3, "average", 21)],
)
def test_as_many_runs_as_have_a_core_each_process(
    cores: int, participants: int, mode: str, runs: int
) -> None:
    config = {"participants": participants, "mode": mode}
    assert execute.side_by_side([plan.Planned((), config, "x", "missing", None)], cores) == runs


# ------------------------------------------------------------------------------------ list, remove


def test_runs_are_filtered_and_sorted_and_survive_damage(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(root, "b", 0.9, seed=1)
    make(root, "a", 0.3, seed=2)
    make(root, "c", 0.6, seed=1, status="failed")
    make(root, "d", 0.6)
    (root / "d" / "metrics.jsonl").write_text("nothing\n")
    (root / "e").mkdir()
    (root / "e" / "config.json").write_bytes(b"\xff\x00")

    def names(*words: str) -> list[str]:
        assert main(["runs", *words]) == 0
        return [line.split()[0] for line in capsys.readouterr().out.splitlines()]

    assert set(names()) == {"a", "b", "c", "d", "e"}
    assert names("--sort", "name") == ["a", "b", "c", "d", "e"]
    assert names("--sort", "result")[-3:] == ["a", "c", "b"]
    assert set(names("seed=1")) == {"b", "c"}
    assert names("seed=1", "status=completed") == ["b"]
    assert set(names("status=damaged")) == {"d", "e"}
    assert names("a") == ["a"]
    assert names("seed=7") == []
    assert set(names("seed=01", "learning-rate=5e-2", "mode=distill")) == {"b", "c"}
    assert set(names("secure-aggregation=False", "mode=Distill")) == {"a", "b", "c"}
    assert main(["runs", "--sort", "colour"]) == 2
    for word, complaint in (
        ("seeds=1", "did you mean seed"),
        ("seed=one", "seed is a whole number"),
        ("alpha=1,5", "alpha is a number"),
        ("secure-aggregation=maybe", "secure-aggregation is true or false"),
    ):
        assert main(["runs", word]) == 2
        assert complaint in capsys.readouterr().err


def test_the_best_result_is_the_last_one_whatever_the_metric(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(root, "good", 0.9)
    make(root, "bad", 0.1)
    for name, value in (("wide", 4.5), ("near", -0.5), ("nearer", -0.75)):
        run = RunDirectory.create(root, resolve({"mode": "average"}).flat(), name=name)
        told = {"name": "loss", "unit": "", "direction": "lower"}
        run.emit("run_started", config=run.config(), metric=told)
        run.write_summary({"status": "completed", "final": {"published": value}})
    make(root, "none", status="failed")
    RunDirectory(root / "none").write_summary({"status": "failed", "final": {"published": None}})
    assert main(["runs", "--sort", "result"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["none", "bad", "good", "wide", "near", "nearer"]
    assert lines[1].endswith("accuracy 10.0 %")
    assert lines[-1].endswith("loss -0.750")


def test_a_run_is_removed_by_name_and_what_is_written_or_unclear_stays(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two", "two-b", "lone"):
        make(root, name)
    (root / "two-b" / "metrics.jsonl").write_text("nothing\n")  # damaged
    (root / "one" / "config.json").write_text("{")
    (root / "lone" / LOCK).write_text("")
    (root.parent / "precious").mkdir()
    for words in (["t"], ["nobody"], ["lone"], [str(root.parent / "precious")], [str(root)], [""]):
        assert main(["rm", "two-b", *words]) == 2, words
    assert sorted(path.name for path in root.iterdir()) == ["lone", "one", "two", "two-b"]
    assert main(["rm", "one"]) == 0  # a damaged one, too
    assert main(["rm", "--all", "two"]) == 0
    assert "removed two" in capsys.readouterr().out
    assert main(["rm", "--all", "tw"]) == 0
    assert [path.name for path in root.iterdir()] == ["lone"]
    assert (root.parent / "precious").is_dir()


@pytest.mark.parametrize("words", [[""], ["--all", ""], ["o"], ["other", ""]])
def test_nothing_is_removed_that_was_not_named(
    words: list[str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root, "one")
    monkeypatch.chdir(root / "one")
    if "other" in words:
        make(root, "other")
    before = sorted(root.iterdir())
    assert main(["rm", *words]) == 2
    assert sorted(root.iterdir()) == before
    monkeypatch.chdir(root.parent)
    assert main(["rm", str(root / "one")]) == 0


def test_a_run_that_never_began_is_listed_and_removed(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its command was killed while it started. One that starts yet does without the directory."""
    killed = reserve(root, {"mode": "consensus"})
    assert main(["runs", "status=not begun"]) == 0
    assert capsys.readouterr().out.split() == [killed.name, "not", "begun"]
    assert main(["rm", killed.name]) == 0
    assert not killed.exists()
    starting = reserve(root, {"mode": "consensus"})
    assert main(["rm", "--all", "consensus"]) == 0
    assert RunDirectory.create(root, {"mode": "consensus"}, name=starting.name).path == starting
