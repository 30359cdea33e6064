"""The command line that every experiment of planned runs has."""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.flower_runs import load_json
from experiments.planned_runs import label_of, merged, still_valid
from strategies.errors import EdgeFlError
from strategies.paths import runs_root

REPORTS = Path(__file__).resolve().parent / "reports"


@dataclass(frozen=True)
class Experiment:
    """An experiment by what it does.

    sizes: its names of how much is computed, the default first, with what each is meant for.
    example: words that `--only` takes.
    plan: (size, seeds, only, data_root) -> runs; ValueError for unknown words.
    execute: (runs, root, jobs): does what is not complete in `root`; EdgeFlError.
    collect: (runs, root, size, invocation) -> results, of the runs that are complete.
    write: (results, directory) -> the report's path.
    seeds: those that are run unless others are named.
    """

    name: str
    description: str
    sizes: dict[str, str]
    example: str
    plan: Callable[[str, Sequence[int], Sequence[str], str], list[Any]]
    execute: Callable[[Sequence[Any], Path, int], None]
    collect: Callable[[Sequence[Any], Path, str, str], dict[str, Any]]
    write: Callable[[dict[str, Any], Path], Path]
    seeds: str = "0,1"

    def main(self, words: Sequence[str] | None = None) -> int:
        """Do what the command line says; returns the exit status."""
        arguments = self.parser().parse_args(words)
        suffix = "" if arguments.size == next(iter(self.sizes)) else f"-{arguments.size}"
        out = (arguments.out or REPORTS / f"{self.name}{suffix}").absolute()
        root = (
            arguments.runs or runs_root().parent / "experiments" / f"{self.name}-{arguments.size}"
        )
        root = root.absolute()
        data_root = str(Path(arguments.data_root).absolute()) if arguments.data_root else ""
        try:
            earlier = _results_in(out)
            if arguments.report_only:
                if not earlier:
                    raise EdgeFlError(f"there is no results.json in {out}")
                print(self.write(earlier, out))
                return 0
            seeds = [int(seed) for seed in parts(arguments.seeds)]
            only = list(parts(arguments.only))
            chosen = self.plan(arguments.size, seeds, only, data_root)
            if not arguments.collect_only:
                there = still_valid(earlier, chosen)
                self.execute([r for r in chosen if label_of(r) not in there], root, arguments.jobs)
        except (EdgeFlError, ValueError) as error:
            print(f"experiments.{self.name}: {error}", file=sys.stderr)
            return 1
        invocation = f"python -m experiments.{self.name} --size {arguments.size}"
        invocation += f" --seeds {shlex.quote(arguments.seeds)}"
        seeds = sorted({*seeds, *(entry["seed"] for entry in earlier.get("runs", ()))})
        everything = self.plan(arguments.size, seeds, (), data_root)
        results = self.collect(everything, root, arguments.size, invocation)
        if not (found := merged(earlier, results, everything))["runs"]:
            print(f"experiments.{self.name}: no run is complete in {root}", file=sys.stderr)
            return 1
        print(self.write(found, out))
        return 0

    def parser(self) -> argparse.ArgumentParser:
        made = argparse.ArgumentParser(
            prog=f"python -m experiments.{self.name}",
            description=f"{self.description} Complete runs are kept and used again. Those in the "
            "results.json of --out are not done again while their configuration is the same. So "
            "this can be interrupted, continued and done in parts.",
        )
        first = next(iter(self.sizes))
        sizes = "; ".join(f"{name}: {what}" for name, what in self.sizes.items())
        reports = f"experiments/reports/{self.name}[-SIZE]"
        add = made.add_argument
        add("--size", choices=list(self.sizes), default=first, help=sizes)
        add("--out", type=Path, help=f"of the report (default: {reports})")
        add("--runs", type=Path, help="where run directories are kept (default: under ~/.edge-fl)")
        add("--data-root", default="", help="where the data are, if not to be downloaded once")
        add("--seeds", default=self.seeds, help="whole numbers with commas between them")
        add(
            "--only",
            default="",
            help=f"run only these, e.g. {self.example}; the report has all that is complete",
        )
        add("--jobs", type=int, default=0, help="virtual-clock runs at a time (default: the cores)")
        add("--collect-only", action="store_true", help="run nothing; take what is complete")
        add("--report-only", action="store_true", help="draw results.json of --out again")
        return made


def _results_in(directory: Path) -> dict[str, Any]:
    """Earlier results; {} where there are none. Raises EdgeFlError for a damaged file."""
    path = directory / "results.json"
    try:
        return load_json(path) if path.exists() else {}
    except ValueError as error:
        raise EdgeFlError(f"{path} is damaged ({error}): restore it, or delete it") from error


def parts(text: str) -> Iterable[str]:
    return (part.strip() for part in text.split(",") if part.strip())
