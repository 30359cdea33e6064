"""The experiments: plan, numbers, tables and figures from made-up results; and one tiny run."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks import distill_overhead as overhead
from experiments.benchmarks.process_tree import processes
from experiments.command_line import Experiment
from experiments.distillation import report
from experiments.distillation.__main__ import EXPERIMENT
from experiments.distillation.claims import Claim, claims_of
from experiments.distillation.plan import OURS, ROWS, SIZES, Planned, Setting, plan
from experiments.distillation.results import (
    Line,
    barrier,
    collect,
    difference,
    equal_steps,
    equal_time,
    estimate,
    lines_of,
    speedups,
    target_of,
)
from experiments.flower_runs import command, in_process_run
from experiments.mail_precision import report as mail_report
from experiments.planned_runs import (
    choose,
    collect_entries,
    completed,
    merged,
    missing,
    name_of,
    still_valid,
    values_of,
)
from experiments.reporting import band, write_report
from fl_app.config import defaults, resolve
from fl_app.provenance import provenance
from fl_app.record.metrics import of_kind
from fl_app.record.run_dir import RunDirectory
from fl_app.record.writer import Writer
from strategies.errors import RunDirectoryError
from tests.harness import SMALL

LABELLED, UNLABELLED = (
    next(s for s in SIZES["small"].settings if bool(s.labels) == labels) for labels in (True, False)
)


def curve(end: float, pace: float = 1.0) -> list[tuple[float, float]]:
    """Ten evaluations, one every 10 s / pace, that rise by two points each up to `end`."""
    return [(10 * i / pace, round(end - 0.02 * (10 - i), 5)) for i in range(1, 11)]


def entry(
    row: str,
    seed: int,
    end: float,
    setting: Setting = LABELLED,
    pace: float = 1.0,
    **controls: float,
) -> dict[str, Any]:
    """A made-up run: its row ends at `end`, and each of the controls where it is said."""
    points = curve(end, pace)
    return {
        "seed": seed,
        "name": "-".join((*setting.words, row, f"seed{seed}", "0123abcd")),
        "code": [],
        "command": f"flwr run {row}",
        "settings": {"dataset": "embedded", "seed": seed},
        "setting": setting.name,
        "row": row,
        "clock": "virtual",
        "curves": {
            "published": points,
            "raw": curve(end - 0.01, pace),
            "average": points,
            "small": curve(0.5, pace),
            **{name: curve(value, pace) for name, value in controls.items()},
        },
        "steps": [(t, 20 * i) for i, (t, _) in enumerate(points, 1)],
        "bytes": 2_000_000,
        "wall_seconds": 12.0,
        "client_idle_fraction": {"clients": 0.0, "server": 0.25, "total": 0.25},
        "worker_busy_fraction": 0.5,
        "teacher_staleness": {"mean": 0.5, "max": 1},
        "checksum": "00",
    }


def of_rows(ends: dict[str, float], seeds: int = 3, **controls: float) -> dict[str, Any]:
    """Results of LABELLED: every row ends at its number, a point higher with every seed; so do the
    controls of our row."""
    runs = []
    for row, end in ends.items():
        for seed in range(seeds):
            own = controls if row == OURS else {}
            higher = {name: control + 0.01 * seed for name, control in own.items()}
            runs.append(entry(row, seed, end + 0.01 * seed, LABELLED, 1.0, **higher))
    machine = {"cpu": "a processor", "cpus_usable": 2, "gpu": None}
    described = {"size": "small", "command": "python -m x", "code": [], "hardware": machine}
    return {**described, "defaults": dict(defaults()), "runs": runs}


ENDS = {OURS: 0.85, "sync-forward": 0.8, "sync": 0.82, "async-continuous": 0.84}


@pytest.fixture
def results() -> dict[str, Any]:
    return of_rows(ENDS, small_average=0.83, server_alone=0.7)


# -- plan -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_every_planned_configuration_is_valid_and_has_a_name_of_its_own(size: str) -> None:
    runs = plan(size, (0, 1))
    for run in runs:
        resolve(run.values)
    assert len({name_of(run) for run in runs}) == len(runs)
    assert len({run.words for run in runs}) == len(runs)


@pytest.mark.parametrize("size", SIZES)
def test_within_a_setting_only_the_row_differs(size: str) -> None:
    differing = {
        "distill.variant",
        "distill.lift",
        "distill.calibrate",
        "distill.teacher-average",
        "distill.references",
        "distill.reverse-steps",
        "cost.reverse-ratio",
        "averaging",
        "server-learning-rate",  # the averaging rule's own
    }
    settings: dict[Setting, set[str]] = {}
    for run in plan(size, (0,)):
        rest = {k: v for k, v in resolve(run.values).flat().items() if k not in differing}
        assert rest["distill.publish-ema"] == "on"  # a weight average for all: like with like
        settings.setdefault(run.setting, set()).add(json.dumps(rest, sort_keys=True))
    assert all(len(values) == 1 for values in settings.values())


def test_more_steps_a_round_are_charged_as_more_time() -> None:
    for size, given in SIZES.items():
        paces = {
            row: resolve(next(r.values for r in plan(size, (0,)) if r.row == row))
            for row in given.settings[0].rows
            if row.startswith("sync")
        }
        for row in ("sync", "sync-forward", "sync-plus"):
            if {row, f"{row}-x3"} <= paces.keys():
                few, many = paces[row], paces[f"{row}-x3"]
                assert many.distill.reverse_steps == 3 * few.distill.reverse_steps
                assert many.cost.reverse_ratio == pytest.approx(3 * few.cost.reverse_ratio)


def test_our_row_alone_computes_the_controls_that_exist() -> None:
    for run in plan("small", (0,)):
        names = str(run.values["distill.references"])
        assert bool(names) == (run.row == OURS)
        assert ("server-alone" in names) == (run.row == OURS and run.setting.labels > 0)
        assert ("centralized-large" in names) == (run.row == OURS and run.setting.centralized)


def test_only_chooses_by_every_kind_that_is_named() -> None:
    words = ["dirichlet-0.1", "participants3", "even", "sync", OURS, "seed1"]
    chosen = plan("small", (0, 1), words)
    assert [run.words for run in chosen] == [
        ("dirichlet-0.1", "labels0", "participants3", "even", row, "seed1")
        for row in (OURS, "sync")
    ]


def test_only_names_an_unknown_word() -> None:
    with pytest.raises(ValueError, match=r"seed7 is none of .*async-continuous"):
        plan("small", (0, 1), ["seed7"])


def test_the_name_does_not_depend_on_where_the_data_are() -> None:
    here, there = (plan("small", (0,), data_root=root)[0] for root in ("", "/data"))
    assert name_of(here) == name_of(there)
    assert name_of(here) != name_of(plan("full", (0,))[0])


# -- numbers ----------------------------------------------------------------------------------


def line(*ends: float, pace: float = 1.0) -> Line:
    """A line of as many seeds."""
    return Line(
        "sync", {seed: entry("sync", seed, end, pace=pace) for seed, end in enumerate(ends)}
    )


def test_a_mean_has_the_standard_error_of_its_seeds() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.mean, found.n) == (2.0, 3)
    assert found.error == pytest.approx(1 / np.sqrt(3))
    assert estimate([]) is None
    alone = estimate([4.0])
    assert alone is not None
    assert (alone.mean, alone.error) == (4.0, None)


def test_differences_are_paired_by_seed() -> None:
    assert difference({0: 0.5, 1: 0.75}, {1: 0.25, 2: 0.1}) == [0.5]


def test_a_speedup_is_that_of_each_seed() -> None:
    slow, fast = line(0.8, 0.8), line(0.8, 0.8, pace=2)
    assert speedups(slow, fast, 0.7) == ([2.0, 2.0], False)


def test_a_slow_run_without_the_target_gives_a_lower_bound() -> None:
    ratios, at_least = speedups(line(0.6), line(0.8), 0.74)
    assert (ratios, at_least) == ([pytest.approx(100 / 80)], True)


def test_a_fast_run_without_the_target_gives_nothing() -> None:
    assert speedups(line(0.8), line(0.6), 0.7) == ([], False)


def test_the_target_is_one_that_the_server_alone_does_not_reach() -> None:
    """Its highest mean of three is two points below its end: 0.7 with the best seed."""
    lines = lines_of(of_rows(ENDS, server_alone=0.70), LABELLED.name)
    assert barrier(lines) == 0.71
    assert target_of(lines, OURS, "sync-forward") == 0.78  # what the lower one reaches with seed 0
    assert target_of(lines, OURS, "sync") == 0.80
    lines = lines_of(of_rows(ENDS, server_alone=0.80), LABELLED.name)
    assert target_of(lines, OURS, "sync-forward") == barrier(lines) == 0.81
    assert target_of(lines_of(of_rows(ENDS), LABELLED.name), OURS, "sync-forward") == 0.78


def test_equal_time_and_equal_steps_are_those_of_the_run_that_did_least() -> None:
    lines = {"a": line(0.8, 0.8), "b": line(0.8, pace=2)}
    assert equal_time(lines) == {0: 50.0, 1: 100.0}
    lines["b"].entries[0]["steps"] = [(5.0, 30), (10.0, 90)]
    assert equal_steps(lines) == 90
    assert lines["a"].after(90)[0] == pytest.approx(0.8 - 0.02 * 6)  # the fourth, after 80 steps
    assert lines["a"].at({0: 50.0, 1: 5.0}) == {0: pytest.approx(0.7)}


def test_the_last_fifth_says_whether_a_line_still_rises() -> None:
    assert line(0.8, 0.7).last_gain() == pytest.approx(0.04)


def test_a_band_covers_what_all_curves_cover() -> None:
    times, values = band([[(0, 0.0), (4, 4.0)], [(1, 2.0), (3, 6.0)]])
    assert (times[0], times[-1]) == (1, 3)
    np.testing.assert_allclose(values[:, 0], [1, 2])
    np.testing.assert_allclose(values[:, -1], [3, 6])


# -- claims -----------------------------------------------------------------------------------


def claim(values: list[float], aim: float = 1.0) -> Claim:
    return Claim("iid", "ends above", "server-alone", aim, "points", estimate(values))


def test_met_is_only_what_the_mean_less_one_standard_error_meets() -> None:
    assert claim([1.0, 1.5, 2.0]).verdict == "met"  # 1.5 - 0.29
    assert claim([0.0, 1.0, 2.6]).verdict == "**missed**"  # 1.2 - 0.76
    assert claim([5.0, 5.0]).verdict == "open: 2 of 3 seeds"
    assert claim([]).verdict == "open: 0 of 3 seeds"


def test_a_target_that_only_the_server_alone_comes_near_is_missed() -> None:
    found = verdicts(LABELLED, of_rows(ENDS, server_alone=0.9))
    assert found["sync-forward"] == "**missed**: 3 of 3 seeds do not reach it"


def verdicts(setting: Setting, results: dict[str, Any]) -> dict[str, str]:
    """Of a setting whose planned rows have all been run."""
    lines = lines_of(results, setting.name)
    planned = replace(setting, rows=tuple(row for row in ROWS if row in lines))
    return {c.control: c.verdict for c in claims_of(planned, lines)}


def test_a_lead_that_is_the_servers_own_labels_meets_nothing() -> None:
    met = verdicts(LABELLED, of_rows(ENDS, small_average=0.83, server_alone=0.7))
    assert met["server-alone"] == "met"
    assert verdicts(LABELLED, of_rows(ENDS, server_alone=0.849))["server-alone"] == "**missed**"


def test_without_labels_the_small_models_average_is_the_control() -> None:
    for small, verdict in ((0.83, "met"), (0.845, "**missed**")):
        runs = [entry(OURS, s, 0.85, UNLABELLED, small_average=small) for s in range(3)]
        found = verdicts(UNLABELLED, {"size": "small", "runs": runs})
        assert found == {"small-average": verdict}
    assert verdicts(LABELLED, of_rows(ENDS, small_average=0.845))["small-average"] == "met"


def test_the_best_synchronous_variant_is_what_ours_is_held_against() -> None:
    found = verdicts(LABELLED, of_rows(ENDS | {"sync-x3": 0.86}))
    assert found["the best synchronous variant, sync-x3"] == "**missed**"
    assert verdicts(LABELLED, of_rows(ENDS))["the best synchronous variant, sync"] == "met"


def test_a_harder_control_that_has_not_been_run_leaves_a_claim_open() -> None:
    """It can turn a claim that is met into one that is missed, and none that is missed."""
    lines = lines_of(of_rows(ENDS), LABELLED.name)
    lines["sync-plus"] = Line("sync-plus", {0: entry("sync-plus", 0, 0.84)})
    planned = replace(LABELLED, rows=(OURS, "sync", "sync-forward", "sync-plus", "sync-x3"))
    found = {c.control: c.verdict for c in claims_of(planned, lines)}
    assert found["the best synchronous variant, sync-plus"] == "open: 1 of 3 seeds"
    del lines["sync-plus"]
    found = {c.control: c.verdict for c in claims_of(planned, lines)}
    what = "open: not run: sync-plus, sync-x3"
    assert found["the best synchronous variant, sync"] == what
    assert found["the soonest synchronous variant, sync"] == "**missed**"


def test_ours_and_a_row_are_timed_at_what_both_reach() -> None:
    """Twice as soon at 80 %, whatever a third row does."""
    results = of_rows({OURS: 0.85})
    for seed in range(3):
        for row, end in (("sync", 0.82), ("sync-forward", 0.6)):
            results["runs"].append(entry(row, seed, end + 0.01 * seed, LABELLED, pace=0.4))
    lines = lines_of(results, LABELLED.name)
    claims = {c.control: c for c in claims_of(LABELLED, lines) if c.unit == "times"}
    assert {c.control: c.target for c in claims.values()} == {
        "sync-forward": 0.58,
        "the soonest synchronous variant, sync": 0.80,
    }
    assert not any(claim.at_least for claim in claims.values())


def test_who_never_gets_there_is_not_the_soonest() -> None:
    """Its run is short, which says nothing; a lower bound below the aim decides nothing."""
    results = of_rows({OURS: 0.9, "sync-x3": 0.9}, server_alone=0.8)
    results["runs"] += [entry("sync", s, 0.7, LABELLED, pace=3.0) for s in range(3)]
    assert "the soonest synchronous variant, sync-x3" in verdicts(LABELLED, results)
    alone = {**results, "runs": [e for e in results["runs"] if e["row"] != "sync-x3"]}
    found = verdicts(LABELLED, alone)
    assert found["the soonest synchronous variant, sync"] == "open: only a lower bound is known"


def test_the_soonest_synchronous_variant_is_what_ours_is_timed_against() -> None:
    found = verdicts(LABELLED, of_rows(ENDS | {"sync-x3": 0.95}))
    assert found["the soonest synchronous variant, sync-x3"] == "**missed**"


# -- report -----------------------------------------------------------------------------------


def test_the_report_begins_with_the_claims(results: dict[str, Any]) -> None:
    text = report.render(results)
    row = "| `plus` ends at least 1 point above server-alone | +15.0 ± 0.0 | met |"
    assert row in text
    row = "`plus` ends no lower than the best synchronous variant, sync | +3.0 ± 0.0 | open: "
    assert row + "not run: sync-x3, sync-plus, sync-forward-x3 |" in text
    assert text.index("## What is claimed") < text.index(f"## {LABELLED.title}")


def test_the_report_says_what_was_missed(results: dict[str, Any]) -> None:
    """Ours reaches the target two or three evaluations sooner, which is not 1.79 times as soon."""
    text = report.render(results)
    assert "reaches 78 % 1.79 times as soon as sync-forward | 1.32 ± 0.05 | **missed** |" in text
    assert "with at least three seeds: 2 met, 2 missed, 1 open." in text


def test_a_table_has_every_row_and_control_beside_each_other(results: dict[str, Any]) -> None:
    text = report.render(results)
    first = text[text.index("**Accuracy**") : text.index("**Time and effort**")]
    rows = re.findall(r"^\| ([a-z -]+) \| ([0-9.]+) ± ([0-9.]+) \|", first, re.MULTILINE)
    assert [row for row, *_ in rows] == [
        *(row for row in ROWS if row in ENDS),
        *("small model", "small-average", "server-alone", "plus-raw"),
    ]
    assert rows[0][1:] == ("86.0", "0.6")
    assert "| server-alone | 71.0 ± 0.6 | -13.0 ± 0.0 | - | -15.0 ± 0.0 |" in first


def test_a_row_that_still_rises_is_named(results: dict[str, Any]) -> None:
    assert "Not at their plateau: plus (+4.0), " in report.render(results)
    for run in results["runs"]:
        run["curves"] = {
            name: [(t, 0.8) for t, _ in points] for name, points in run["curves"].items()
        }
    assert "All rows and controls are at their plateau." in report.render(results)


def test_a_part_of_the_runs_makes_a_report_too(results: dict[str, Any]) -> None:
    results["runs"] = results["runs"][-1:]  # none of ours, so that there are no controls either
    text = report.render(results)
    assert "## What is claimed" not in text
    assert "| async-continuous | 86.0 |" in text
    results["runs"] = of_rows(ENDS, seeds=1)["runs"]
    assert "open: 1 of 3 seeds" in report.render(results)


def test_adjusted_rows_are_compared_with_those_of_the_plain_setting() -> None:
    """Paired by seed; a row that only one of them has is not in the table."""
    setting = Setting("dirichlet-0.1", adjusted=True)
    results = of_rows(ENDS)
    for own, ends in ((replace(setting, adjusted=False), (0.8, 0.7)), (setting, (0.83, 0.72))):
        for row, end in zip((OURS, "sync-x3"), ends, strict=True):
            results["runs"] += [entry(row, seed, end + 0.01 * seed, own) for seed in range(3)]
    results["runs"].append(entry("plus-no-calibration", 0, 0.6, setting))
    section = report.render(results).split("## Adjusted logits")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| dir")]
    title = "dirichlet-0.1, no labels, 3 participants"
    cells = [[cell.strip("| ") for cell in row] for row in rows]
    assert cells[:2] == [
        [title, "plus", "81.0 ± 0.6", "84.0 ± 0.6", "+3.0 ± 0.0"],
        [title, "sync-x3", "71.0 ± 0.6", "73.0 ± 0.6", "+2.0 ± 0.0"],
    ]
    assert [row for _, row, *_ in cells[2:]] == ["small model", "plus-raw"]
    assert "## Adjusted logits" not in report.render(of_rows(ENDS))


def test_written_files_can_be_read_and_drawn_again(results: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("## By hand\n")
    text = report.write(results, tmp_path).read_text()
    assert "## By hand" in text
    again = json.loads((tmp_path / "results.json").read_text())
    assert report.render(again, "## By hand\n") == text
    assert (tmp_path / "figures" / f"{LABELLED.name}.png").read_bytes().startswith(b"\x89PNG")


# -- runs -------------------------------------------------------------------------------------

TINY = Setting()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Planned, Path]:
    """A complete run of four rounds, planned as the experiment's runs are."""
    values = {**SMALL, "clock": "virtual", "distill.variant": "async-continuous"}
    planned = Planned(TINY, OURS, 0, {**values, "distill.references": "small-average", "seed": 0})
    root = tmp_path_factory.mktemp("runs")
    in_process_run(values_of(planned, root))
    return planned, root


def test_a_complete_run_is_found_again_and_an_interrupted_one_is_not(
    tiny: tuple[Planned, Path], tmp_path: Path
) -> None:
    planned, root = tiny
    assert completed(planned, root) is not None
    assert completed(planned, tmp_path) is None
    RunDirectory.create(tmp_path, {"mode": "distill"}, name=name_of(planned))
    assert completed(planned, tmp_path) is None


def test_collected_runs_make_a_report(tiny: tuple[Planned, Path]) -> None:
    planned, root = tiny
    results = collect([planned], root, "small", "python -m x")
    [run] = results["runs"]
    assert {name: len(points) for name, points in run["curves"].items()} == dict.fromkeys(
        ("published", "raw", "average", "small", "small_average"), 4
    )
    trace = resolve(planned.values).trace()
    assert run["steps"][-1][1] == trace.publications[-1].step
    assert run["curves"]["published"][-1][0] == pytest.approx(trace.duration, abs=0.01)
    assert f"## {TINY.title}" in report.render(results)


def test_what_is_in_the_results_is_not_done_again(
    tiny: tuple[Planned, Path], tmp_path: Path
) -> None:
    """The runs' directories are gone on another day, and results.json is what there is."""
    planned, root = tiny
    done: list[Planned] = []
    written: list[dict[str, Any]] = []
    experiment = Experiment(
        name="x",
        description="",
        sizes={"small": ""},
        example="",
        plan=lambda size, seeds, only, data_root: [planned] if 0 in seeds else [],
        execute=lambda runs, root, jobs: done.extend(runs),
        collect=collect,
        write=lambda results, out: written.append(results) or report.write(results, out),
    )
    there = ["--out", str(tmp_path / "out"), "--runs"]
    assert experiment.main([*there, str(root), "--collect-only"]) == 0
    assert not done
    assert experiment.main([*there, str(tmp_path / "none"), "--seeds", "0,1"]) == 0
    assert not done
    assert experiment.main([*there, str(tmp_path / "none"), "--seeds", "1"]) == 0
    assert [len(results["runs"]) for results in written] == [1, 1, 1]
    assert json.dumps(written[0]["runs"]) == json.dumps(written[2]["runs"])


def made_up(name: str = "small") -> tuple[Experiment, list[Planned]]:
    """An experiment of two rows, in two sizes, and what it has executed. A run leaves a record as
    it would, and its result is that of the real one; `local-steps` is in every configuration."""
    done: list[Planned] = []

    def plan_of(size: str, seeds: Any, only: Any, data_root: str) -> list[Planned]:
        values = {**SMALL, "clock": "virtual", "local-steps": 2 if size == "small" else 3}
        runs = [Planned(TINY, row, seed, values) for row in (OURS, "sync") for seed in seeds]
        return choose(runs, only)

    def execute(runs: Any, root: Path, jobs: int) -> None:
        for planned in runs:
            run = RunDirectory.create(root, {"mode": "distill"}, name=name_of(planned))
            (run.path / "summary.json").write_text('{"status": "completed"}')
            done.append(planned)

    def collect_made_up(runs: Any, root: Path, size: str, invocation: str) -> dict[str, Any]:
        return collect_entries(runs, root, size, invocation, lambda *_: {"value": name})

    def write(results: dict[str, Any], out: Path) -> Path:
        return write_report(results, out, {}, lambda *_: "")

    sizes = {"small": "", "large": ""}
    return (
        Experiment("x", "", sizes, "", plan_of, execute, collect_made_up, write, seeds="0"),
        done,
    )


def rows_in(out: Path) -> list[str]:
    return [entry["name"] for entry in json.loads((out / "results.json").read_text())["runs"]]


def test_results_that_came_while_ours_were_running_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    experiment, _ = made_up()

    def meanwhile(runs: Any, root: Path, jobs: int) -> None:
        words = ["--out", str(out), "--runs", str(tmp_path / "theirs"), "--only", "sync"]
        assert experiment.main(words) == 0
        experiment.execute(runs, root, jobs)

    ours = ["--out", str(out), "--runs", str(tmp_path / "ours"), "--only", OURS]
    assert replace(experiment, execute=meanwhile).main(ours) == 0
    assert len(rows_in(out)) == 2


def test_results_are_not_dropped_unless_one_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    experiment, done = made_up()

    def main(*words: str, runs: str = "runs") -> int:
        done.clear()
        return experiment.main(["--out", str(out), "--runs", str(tmp_path / runs), *words])

    assert main() == main("--seeds", "1", "--only", OURS) == 0  # in parts
    before = rows_in(out)
    assert len(before) == 3
    assert main("--size", "large") == 1  # of another size, none would be left
    assert "3 of the 3 results in" in capsys.readouterr().err
    then = json.loads((out / "results.json").read_text())
    del then["defaults"]  # so that nobody knows whether they are still valid
    (out / "results.json").write_text(json.dumps(then))
    assert main("--only", "sync", runs="other") == 1
    assert "2 of the 3 results in" in capsys.readouterr().err
    assert main("--collect-only", runs="other") == 1
    assert not done
    assert rows_in(out) == before
    assert main("--seeds", "0,1", runs="other") == 0  # all are done again, and one more
    assert len(done) == len(rows_in(out)) == 4
    assert main("--size", "large", "--replace") == 0
    assert len(rows_in(out)) == 2
    assert set(rows_in(out)).isdisjoint(before)


def test_results_of_rows_that_are_planned_no_more_go_without_a_word_of_consent(
    tmp_path: Path,
) -> None:
    out, experiment = tmp_path / "out", made_up()[0]
    words = ["--out", str(out), "--runs", str(tmp_path / "runs")]
    assert experiment.main(words) == 0
    fewer = replace(
        experiment, plan=lambda *given: [r for r in experiment.plan(*given) if r.row == OURS]
    )
    assert fewer.main(words) == 0
    assert len(rows_in(out)) == 1


def test_where_no_run_is_complete_there_is_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--collect-only", "--runs", str(tmp_path), "--out", str(tmp_path / "out")]
    assert EXPERIMENT.main(words) == 1
    assert f"no run is complete in {tmp_path}" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    values = {**SMALL, "clock": "virtual", "num-server-rounds": 12, "distill.references": ""}
    planned = Planned(TINY, OURS, 0, {**values, "seed": 0})
    path = tmp_path / "killed" / name_of(planned)
    arguments = (values_of(planned, path.parent),)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=in_process_run, args=arguments, daemon=True)
    process.start()
    metrics, deadline = path / "metrics.jsonl", time.monotonic() + 300
    while not (metrics.exists() and '"event": "round"' in metrics.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    assert missing([planned], path.parent) == [planned]
    run = in_process_run(values_of(planned, path.parent))
    assert of_kind(run.events(), "resumed")
    undisturbed = in_process_run(values_of(planned, tmp_path / "undisturbed"))
    assert run.summary()["checksum"] == undisturbed.summary()["checksum"]


@pytest.mark.parametrize(
    ("changes", "code", "goes_on"),
    [
        ({}, provenance(), True),
        ({}, {"commit": "another", "dirty": False, "fingerprint": "another"}, False),
        ({"clock": "real"}, provenance(), False),
    ],
)
def test_only_what_can_have_the_bits_that_it_would_have_had_goes_on(
    changes: dict[str, str], code: dict[str, Any], goes_on: bool, tmp_path: Path
) -> None:
    planned = Planned(TINY, OURS, 0, {**SMALL, "clock": "virtual", **changes})
    flat = resolve(planned.values).flat()
    RunDirectory.create(tmp_path, flat, name=name_of(planned)).emit("code", **code)
    assert missing([planned], tmp_path) == [planned]
    assert ("resume" in values_of(planned, tmp_path)) == goes_on


def test_a_run_that_somebody_writes_is_not_thrown_away(
    tiny: tuple[Planned, Path], tmp_path: Path
) -> None:
    planned, _ = tiny
    run = RunDirectory.create(tmp_path, {"mode": "distill"}, name=name_of(planned))
    with Writer(run.path), pytest.raises(RunDirectoryError, match="is being written by process"):
        missing([planned], tmp_path)
    assert run.path.exists()
    assert missing([planned], tmp_path) == [planned]
    assert not run.path.exists()


def test_damaged_results_are_refused_before_anything_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text('{"runs": [')
    assert EXPERIMENT.main(["--out", str(tmp_path), "--seeds", "0"]) == 1
    assert "results.json is damaged" in capsys.readouterr().err


def test_results_of_another_configuration_are_done_again(tiny: tuple[Planned, Path]) -> None:
    planned, root = tiny
    results = collect([planned], root, "small", "python -m x")
    assert len(still_valid(results, [planned])) == 1
    other = Planned(TINY, OURS, 0, {**planned.values, "local-steps": 3})
    assert still_valid(results, [other]) == {}
    none = {**results, "runs": []}
    assert merged(results, none, [other])["runs"] == []
    assert merged(results, none, [planned])["runs"] == results["runs"]
    for key, now, valid in (
        ("learning-rate", 0.01, False),  # the default was another one
        ("consensus.rho", 0.5, True),  # a key without effect here
    ):
        then = {**results, "defaults": {**results["defaults"], key: now}}
        assert bool(still_valid(then, [planned])) == valid
    then = {**results, "defaults": {k: v for k, v in defaults().items() if k != "learning-rate"}}
    assert still_valid(then, [planned])  # a key that has come since then
    for key, valid in (("consensus.gone", True), ("distill.gone", False), ("gone", False)):
        then = {**results, "defaults": {**results["defaults"], key: 1}}
        assert bool(still_valid(then, [planned])) == valid


def test_the_recorded_command_is_a_flwr_run_of_the_same_configuration() -> None:
    text = command({"distill.variant": "sync", "participants": 3, "momentum": 0.5})
    assert text.startswith("flwr run . --stream --run-config ")
    assert 'distill.variant="sync" participants=3 momentum=0.5' in text
    assert "num-supernodes=" in text


# -- overhead ---------------------------------------------------------------------------------


def overhead_events() -> list[dict[str, Any]]:
    """Five rounds of 2 s, 1.8 s of them training; a distillation step every 0.1 s from t = 2 on."""
    events: list[dict[str, Any]] = []
    for number in range(1, 6):
        t = 2.0 * number
        for participant in range(3):
            times = {"t_start": t - 2, "t_compute": t - 1, "t_upload": t - 0.4, "t_end": t}
            events.append({"event": "job", "round": number, "participant": participant, **times})
        events.append({"event": "round", "round": number, "t": t, "t_wall": t + 0.5})
        segment = {"event": "segment", "kind": "reverse", "steps": 20}
        events.append({**segment, "t_start": t, "t_end": t + 2})
    return events


def test_the_steady_state_leaves_the_first_rounds_out() -> None:
    state = overhead.steady_state(overhead_events(), warm_up=3)
    assert (state["start"], state["end"], state["wall"]) == (6.0, 10.0, 4.0)
    assert (state["rounds"], state["jobs"], state["worker_steps"]) == (2, 6, 40.0)
    assert state["training"] == pytest.approx(6 * 0.6)
    assert state["gaps"] == pytest.approx([0.2, 0.2])


def test_a_run_of_warm_up_rounds_alone_has_no_steady_state() -> None:
    with pytest.raises(ValueError, match="5 rounds are not more than the 5"):
        overhead.steady_state(overhead_events(), warm_up=5)


def test_our_own_processes_are_seen() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        [found] = [p for p in processes(os.getpid(), memory=True) if p.pid == child.pid]
        assert found.rss >= found.pss > 0
        assert found.name == "other"
    finally:
        child.communicate(b"\n")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_experiment_leaves_no_run_behind(tmp_path: Path, sign: int) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    there = {**os.environ, "PYTHONPATH": f"{Path.cwd()}:{tmp_path}"}
    killed = subprocess.Popen([sys.executable, "sleeper.py"], cwd=tmp_path, env=there)
    try:
        pid = int(_appears(tmp_path / "pid"))
        killed.send_signal(sign)
        killed.wait(30)
        deadline = time.monotonic() + 30
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{pid}").exists()
    finally:
        killed.kill()


def _appears(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return path.read_text()


def test_a_key_that_is_new_had_its_default_before() -> None:
    """A run that was made without it is none of a plan that gives it another value."""
    [planned] = plan("small", (0,), ["plus", "dirichlet-0.1", "adjusted"])
    settings = {**planned.values}
    then = {key: value for key, value in defaults().items() if key != "adjust-logits"}
    entry = {"name": name_of(planned), "settings": settings}
    assert still_valid({"defaults": dict(defaults()), "runs": [entry]}, [planned])
    del settings["adjust-logits"]
    assert not still_valid({"defaults": then, "runs": [entry]}, [planned])


def test_the_report_of_mail_says_with_which_settings_its_runs_were_made() -> None:
    """Neither the plan nor the defaults of today are those of older runs."""
    given = {"mode": "distill", "participants": 5, "mail-precision": "int8", "seed": 0}
    run = {"mode": "distill", "row": "int8", "seed": 0, "accuracy": 0.8, "bytes": 1}
    then = {k: v for k, v in defaults().items() if k not in ("distill.calibrate", "consensus.rho")}
    then |= {"proxy-labelled-examples": -1, "consensus.theta": 0.1}
    machine = {"cpu": "a processor", "cpus_usable": 2, "gpu": None}
    results = {"command": "python -m x", "hardware": machine, "runs": [{**run, "settings": given}]}
    text = mail_report.render({**results, "defaults": then})
    assert (
        "\nmode=distill, participants=5; by defaults that are others now: "
        "proxy-labelled-examples=-1; without what has come since: distill.calibrate\n"
    ) in text
    text = mail_report.render({**results, "defaults": dict(defaults())})
    assert "\nmode=distill, participants=5\n" in text


def test_a_report_alone_needs_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert EXPERIMENT.main(["--report-only", "--out", str(tmp_path)]) == 1
    assert "no results.json" in capsys.readouterr().err


SLEEPER = """
import os, time
from pathlib import Path
from experiments.distillation.plan import plan
from experiments.planned_runs import run_in_parallel

def work(values):
    Path("writing").write_text(str(os.getpid()))
    os.rename("writing", "pid")
    time.sleep(120)

if __name__ == "__main__":
    run_in_parallel(plan("small", (0,), ["plus"])[:1], Path("runs"), 1, work, str)
"""
