"""The commands over many runs."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from fl_app.streams import say
from strategies.errors import ConfigError
from strategies.paths import absolute


def runs(arguments: argparse.Namespace) -> int:
    """list the runs, oldest first: those that begin with a word, or have key=value or status=..."""
    from fl_app.manage.listing import listed
    from strategies.paths import runs_root

    found = listed(arguments.which, arguments.sort)
    width = max((len(each.run.name) for each in found), default=0)
    for each in found:
        damaged = each.state == "damaged"
        how = f"damaged: {each.text}" if damaged else f"{each.state:12}  {each.text}"
        print(f"{each.run.name:{width}}  {how}".rstrip())
    if not found:
        which = f" for {' '.join(arguments.which)}" if arguments.which else ""
        print(f"no runs in {runs_root()}{which or ' yet'}", file=sys.stderr)
    return 0


def rm(arguments: argparse.Namespace) -> int:
    """remove runs: each by its path or name, or with --all several by the beginning of theirs"""
    from fl_app.manage.listing import removed

    for name in removed(arguments.runs, yes=arguments.all):
        print(f"removed {name}")
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """put runs side by side, those that differ by their seed alone as one: tables, and
    compare.png, .md and .csv in --out"""
    from fl_app.record.compare import compare, readable
    from fl_app.record.find import find_runs

    out = absolute(arguments.out)
    found = {str(run.path): run for name in arguments.runs for run in find_runs(name)}
    for run in found.values():
        readable(run)
    print(compare(list(found.values()), out))
    print(out / "compare.png")
    return 0


def sweep(arguments: argparse.Namespace) -> int:
    """run those combinations of KEY=A,B,C and KEY=0..4 that have not been run, and compare all"""
    say("edge-fl: setting up ...")
    from fl_app.launch.sizing import count_cores
    from fl_app.manage.execute import execute, own_command, side_by_side
    from fl_app.manage.plan import planned
    from fl_app.record.compare import compare

    if arguments.parallel < 0:
        raise ConfigError(f"--parallel {arguments.parallel} must be at least 0")
    plan = planned(arguments.values, arguments.name)
    states = [each.state for each in plan]
    parallel = arguments.parallel or side_by_side(plan, count_cores())
    counted = ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states)))
    say(f"{len(plan)} runs: {counted}; {parallel} at a time")
    for each in plan:
        for line in each.outdated if each.state != "done" else ():
            say(f"{line}; it does not count")
    if arguments.dry_run:
        for each in plan:
            say(f"{each.state:10} {' '.join(each.words)}")
        return 0
    failed = execute(plan, parallel, say, own_command())
    done = [p.existing for p in planned(arguments.values, arguments.name) if p.state == "done"]
    directories = [run for run in done if run]
    if directories:
        out: Path = absolute(arguments.out or arguments.name)
        print(compare(directories, out))
        print(out / "compare.png")
    return 1 if failed else 0


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands to edge-fl's; `command` makes the parser of one."""
    sub = command(runs)
    sub.add_argument("which", metavar="WORD", nargs="*", help="all of them must fit")
    sub.add_argument(
        "--sort", default="started", metavar="BY", help="started, name or result, the best last"
    )
    sub = command(rm)
    sub.add_argument("runs", metavar="RUN", nargs="+")
    sub.add_argument("--all", action="store_true", help="all runs that begin with RUN")
    sub = command(compare)
    sub.add_argument("runs", metavar="RUN", nargs="+", help="also the beginning of several names")
    sub.add_argument("--out", default=".", metavar="DIRECTORY")
    sub = command(sweep)
    sub.add_argument("values", metavar="KEY=A,B,C", nargs="+", help="see `edge-fl config`")
    sub.add_argument("--name", default="sweep", help="what the runs' names begin with")
    sub.add_argument("--parallel", type=int, default=0, help="runs at a time (0: as they fit)")
    sub.add_argument("--dry-run", action="store_true", help="say what is missing")
    sub.add_argument("--out", default="", metavar="DIRECTORY", help="of the comparison")
