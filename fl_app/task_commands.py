"""`edge-fl check TASK`: its words, and what it prints."""

import argparse

_ABOUT = "try a task out in seconds: its shapes, gradient, whether it learns, and what cannot work"


def check(arguments: argparse.Namespace) -> int:
    """Print what was found. Raises EdgeFlError for a task that cannot be learnt."""
    from fl_app.config import configure
    from fl_app.launch.values import parse_assignments
    from fl_app.trial import try_out

    values = parse_assignments([f"task={arguments.task}", *arguments.values])
    for line in try_out(configure(values)):
        print(line, flush=True)
    return 0


def add_check(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Give the command line this command."""
    made = commands.add_parser("check", help=_ABOUT, description=_ABOUT)
    made.set_defaults(function=check)
    made.add_argument("task", metavar="TASK", help="images, text, module:Class or file.py:Class")
    made.add_argument("values", nargs="*", metavar="key=value", help="see `edge-fl config`")
