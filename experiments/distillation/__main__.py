"""The command line of the experiment; see the package."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.distillation import report
from experiments.distillation.execute import execute
from experiments.distillation.plan import SIZES, plan
from experiments.distillation.results import collect
from experiments.flower_runs import load_json
from fl_app.errors import EdgeFlError
from fl_app.record.run_dir import runs_root

REPORTS = Path(__file__).resolve().parents[1] / "reports"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m experiments.distillation",
        description="Reproduce the figure and the table of Yajima et al. Complete runs are kept "
        "and used again, so this can be interrupted, continued and done in parts.",
    )
    add = made.add_argument
    add("--size", choices=SIZES, default="small", help="small: 2 cores, 30 minutes; full: one GPU")
    add("--out", type=Path, help="of the report (default: experiments/reports/distillation[-full])")
    add("--runs", type=Path, help="where run directories are kept (default: under ~/.edge-fl)")
    add("--data-root", default="", help="where CIFAR-10 is, if not to be downloaded once")
    add("--seeds", default="0,1", help="whole numbers with commas between them")
    add(
        "--only",
        default="",
        help="run only these, e.g. real,iid,sync,seed0; the report has all that is complete",
    )
    add("--jobs", type=int, default=0, help="virtual-clock runs at a time (default: the cores)")
    add("--report-only", action="store_true", help="draw results.json of --out again")
    return made


def main(words: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(words)
    suffix = "" if arguments.size == "small" else f"-{arguments.size}"
    out = (arguments.out or REPORTS / f"distillation{suffix}").absolute()
    if arguments.report_only:
        print(report.write(load_json(out / "results.json"), out))
        return 0
    root = arguments.runs or runs_root().parent / "experiments" / f"distillation-{arguments.size}"
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    data_root = str(Path(arguments.data_root).absolute()) if arguments.data_root else ""
    only = [word for word in arguments.only.split(",") if word]
    try:
        chosen = plan(arguments.size, seeds, only, data_root)
        execute(chosen, root.absolute(), arguments.jobs)
    except (EdgeFlError, ValueError) as error:
        print(f"experiments.distillation: {error}", file=sys.stderr)
        return 1
    invocation = f"python -m experiments.distillation --size {arguments.size}"
    invocation += f" --seeds {shlex.quote(arguments.seeds)}"
    everything = plan(arguments.size, seeds, data_root=data_root)
    results = collect(everything, root.absolute(), arguments.size, invocation)
    print(report.write(results, out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
