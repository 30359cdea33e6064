"""`edge-fl check`: its words, and what it prints."""

import argparse

_ABOUT = (
    "try a task out in seconds: its shapes, gradient, whether it learns, and what cannot work; or, "
    "with its kind before its name, an algorithm, an averaging rule, a topology or a partition"
)
PARTS = ("algorithm", "partition", "rule", "topology")


def check(arguments: argparse.Namespace) -> int:
    """Print what was found. Raises EdgeFlError for a task that cannot be learnt, and for a part
    that does not keep to its contract."""
    from fl_app.launch.bundle import with_own_app
    from fl_app.launch.values import parse_assignments
    from fl_app.trial import try_out
    from fl_app.trial_parts import try_part
    from strategies.errors import ConfigError

    name, values = arguments.task, arguments.values
    if name in PARTS:
        if not values:
            raise ConfigError(f"which {name}? edge-fl check {name} path/to/file.py:NAME")
        lines = try_part(name, values[0], values[1:])
    else:
        lines = try_out(with_own_app(parse_assignments([f"task={name}", *values])))
    for line in lines:
        print(line, flush=True)
    return 0


def add_check(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Give the command line this command."""
    made = commands.add_parser("check", help=_ABOUT, description=_ABOUT)
    made.set_defaults(function=check)
    made.add_argument(
        "task",
        metavar="[KIND] NAME",
        help=f"images, text, tables, module:Class or file.py:Class; KIND: {', '.join(PARTS)}",
    )
    made.add_argument("values", nargs="*", metavar="key=value", help="see `edge-fl config`")
