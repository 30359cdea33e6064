"""The command line that every experiment of planned runs has."""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.flower_runs import load_json
from experiments.planned_runs import completed, label_of, lost, merged, still_valid
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
        try:
            if arguments.report_only:
                self._draw_again(out)
            else:
                self._do(arguments, out, root)
            return 0
        except EdgeFlError as error:
            print(f"experiments.{self.name}: {error}", file=sys.stderr)
            return 1

    def _draw_again(self, out: Path) -> None:
        with _only_writer(out):
            if not (found := _results_in(out)):
                raise EdgeFlError(f"there is no results.json in {out}")
            print(self.write(found, out))

    def _do(self, arguments: argparse.Namespace, out: Path, root: Path) -> None:
        size = arguments.size
        data_root = str(Path(arguments.data_root).absolute()) if arguments.data_root else ""
        earlier = _results_in(out)
        try:
            seeds = [int(seed) for seed in parts(arguments.seeds)]
            chosen = self.plan(size, seeds, list(parts(arguments.only)), data_root)
        except ValueError as error:
            raise EdgeFlError(str(error)) from error

        def everything() -> list[Any]:
            """All seeds of which there are results, too."""
            more = (entry["seed"] for entry in earlier.get("runs", ()))
            return self.plan(size, sorted({*seeds, *more}), (), data_root)

        def refuse_losses(coming: Iterable[Any] = ()) -> None:
            fresh = [*coming, *(run for run in everything() if completed(run, root))]
            gone = lost(earlier, size, everything(), fresh)
            if gone and not arguments.replace:
                raise EdgeFlError(
                    f"{gone} of the {len(earlier['runs'])} results in {out} are of another size or "
                    "configuration and would be gone: do all of them again, or choose another "
                    "--out; --replace drops them"
                )

        if not arguments.collect_only:
            refuse_losses(coming=chosen)
            there = still_valid(earlier, chosen)
            self.execute([r for r in chosen if label_of(r) not in there], root, arguments.jobs)
        invocation = f"python -m experiments.{self.name} --size {size}"
        invocation += f" --seeds {shlex.quote(arguments.seeds)}"
        with _only_writer(out):
            earlier = _results_in(out)  # others may have added to it while ours were running
            refuse_losses()
            results = self.collect(everything(), root, size, invocation)
            if not (found := merged(earlier, results, everything()))["runs"]:
                raise EdgeFlError(f"no run is complete in {root}")
            print(self.write(found, out))

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
        replacing = "drop results of --out that are of another size or configuration"
        add("--replace", action="store_true", help=replacing)
        add("--report-only", action="store_true", help="draw results.json of --out again")
        return made


def _only_writer(out: Path) -> FileLock:
    """Held while a report is read, added to and written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(out.with_name(f"{out.name}.lock"))


def _results_in(directory: Path) -> dict[str, Any]:
    """Earlier results; {} where there are none. Raises EdgeFlError for a damaged file."""
    path = directory / "results.json"
    try:
        return load_json(path) if path.exists() else {}
    except ValueError as error:
        raise EdgeFlError(f"{path} is damaged ({error}): restore it, or delete it") from error


def parts(text: str) -> Iterable[str]:
    return (part.strip() for part in text.split(",") if part.strip())
