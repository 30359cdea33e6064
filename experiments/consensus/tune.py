"""Choose the step size of every row of every group, by one rule.

    python -m experiments.consensus.tune --size fashion-mnist [--only two,ecl] [--data-root DIR]

Every row is run with every step size of the size's grid and with one seed that is in no table, and
measured on validation images; the best is taken. Where it is the longest or the shortest that was
tried, one twice as long or half as long is tried, too, until the best lies between two that are no
better. Rows with centralized training beside them are there for that, and are judged by it. A step
size with which a run diverges is worth 0. What was measured is written into rates.json, from which
the plan of the experiment takes its step sizes.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.command_line import parts
from experiments.consensus.execute import execute, final
from experiments.consensus.plan import HOSTS, RATES, SIZES, TUNING_SEED, Planned, plan, untried
from experiments.flower_runs import say
from experiments.planned_runs import completed, has_diverged
from strategies.checkpoint import atomic_write
from strategies.errors import EdgeFlError
from strategies.paths import runs_root


def trials(size: str, only: Sequence[str] = (), data_root: str = "") -> list[Planned]:
    """The runs that have to be done next: every row with every step size that is `untried`."""
    return [
        replace(
            run,
            values={**run.values, "consensus.learning-rate": rate, "evaluate-on": "validation"},
            tuning="",
        )
        for run in plan(size, [TUNING_SEED], only, data_root)
        for rate in untried(size, run.group, run.row)
    ]


def score(row: str, found: Mapping[str, Any]) -> float:
    """What a row is judged by: the reference beside it, if it is there for one; else the mean of
    its nodes, as they have settled if they have."""
    if row in HOSTS:
        return found["reference"][HOSTS[row]]
    return mean(found["settled"] or found["nodes"])


def keep(size: str, runs: Sequence[Planned], root: Path) -> int:
    """Write what the runs that are over have found into rates.json; returns how many they are."""
    known = json.loads(RATES.read_text()) if RATES.exists() else {}
    table = known.setdefault(size, {"seed": TUNING_SEED, "validation": {}})["validation"]
    over = 0
    for planned in runs:
        run = completed(planned, root)
        if run or has_diverged(planned, root):
            over += 1
            rate = f"{planned.values['consensus.learning-rate']:g}"
            row = table.setdefault(planned.group, {}).setdefault(planned.row, {})
            row[rate] = round(score(planned.row, final(run)), 5) if run else 0.0
            say(f"{planned.group} {planned.row} {rate}: {100 * row[rate]:.2f} %")
    atomic_write(RATES, (json.dumps(known, indent=1) + "\n").encode())
    return over


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.consensus.tune")
    parser.add_argument("--size", choices=list(SIZES), default=next(iter(SIZES)))
    parser.add_argument("--only", default="", help="words of groups and rows")
    parser.add_argument("--data-root", default="")
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--runs", type=Path, help="where run directories are kept")
    parser.add_argument("--collect-only", action="store_true", help="run nothing")
    arguments = parser.parse_args(words)
    size, only = arguments.size, list(parts(arguments.only))
    root = arguments.runs or runs_root().parent / "experiments" / f"consensus-{size}-tune"
    root = root.absolute()
    data_root = str(Path(arguments.data_root).absolute()) if arguments.data_root else ""
    try:
        while runs := trials(size, only, data_root):
            if not arguments.collect_only:
                execute(runs, root, arguments.jobs, may_diverge=True)
            if not keep(size, runs, root):
                break
    except (EdgeFlError, ValueError) as error:
        print(f"experiments.consensus.tune: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
