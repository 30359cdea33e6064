"""The `edge-fl` command. Each subcommand imports what it needs, so that --help is instant."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fl_app.deploy.commands import add_commands
from fl_app.launch.screen import JSON, LINES, QUIET, Screen
from fl_app.manage import commands as managing
from fl_app.pictures import add_data, add_topology
from fl_app.streams import say, written_out
from fl_app.task_commands import add_check
from fl_app.watch import commands as watching
from strategies.errors import ConfigError, EdgeFlError
from strategies.paths import absolute

USAGE_ERROR, INTERRUPTED = 2, 130
# Keys that say where a run is kept and not what it is.
RUN_OPTIONS = {
    "name": "of the run's directory",
    "output": "directory of runs",
    "resume": "a run's directory, to go on with",
    "sinks": "tensorboard, wandb, mlflow",
}
EXPORTS = ("hf", "onnx", "safetensors", "state_dict")


def run(arguments: argparse.Namespace) -> int:
    """train: `edge-fl run participants=8 distill.variant=sync`"""
    return _launch(arguments, lambda: _given(arguments))


def resume(arguments: argparse.Namespace) -> int:
    """continue a run from its last checkpoint"""
    return _launch(arguments, lambda: _interrupted(arguments.run))


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    from fl_app.launch.values import parse_assignments

    options = (f"{key}={getattr(arguments, key)}" for key in RUN_OPTIONS if getattr(arguments, key))
    given = parse_assignments([*arguments.values, *options])
    if not arguments.trace:
        return given
    from fl_app.launch.replay import replayed
    from fl_app.record.find import find_run

    return replayed(find_run(arguments.trace), given)


def _interrupted(name: str) -> dict[str, Any]:
    from fl_app.record.find import find_run

    found = find_run(name)
    return found.config() | {"resume": str(found.path)}


def _launch(arguments: argparse.Namespace, overrides: Callable[[], dict[str, Any]]) -> int:
    with _page(arguments.watch) as begun, Screen(arguments.form, begun) as screen:
        screen.stage("setting up")  # what comes next imports PyTorch
        from fl_app.launch.run import run
        from fl_app.launch.surroundings import settle

        settle()
        place = {"superlink": arguments.superlink, "ray": arguments.ray}
        return run(overrides(), **place, verbose=arguments.verbose, screen=screen)


@contextlib.contextmanager
def _page(wanted: bool) -> Iterator[Callable[[Path], None] | None]:
    """While this command lasts, a page of the runs, which turns to the run that has begun."""
    if not wanted:
        yield None
        return
    from fl_app.watch.feed import Feeds
    from fl_app.watch.server import served
    from strategies.paths import runs_root

    feeds = Feeds(runs_root(), awaited=True)
    with served(feeds) as address:
        say(f"edge-fl: watch it at {address}", sys.stderr)
        yield feeds.choose


def config(arguments: argparse.Namespace) -> int:
    """print every configuration key with its default, its values and its meaning"""
    from fl_app.keys import printed, reference

    if arguments.markdown:
        print(reference(), end="")
    else:
        print("\n".join(printed(arguments.mode)))
    return 0


def new(arguments: argparse.Namespace) -> int:
    """write a small Flower app that depends on edge-fl: `edge-fl new ecg --task tables`"""
    from fl_app.new import create

    folder = create(arguments.name, absolute("."), arguments.task)
    print(f"{folder}\nin it: `edge-fl run`, `flwr run .`, pytest")
    return 0


def devices(arguments: argparse.Namespace) -> int:
    """on the server: which devices are there, and what they told and did in their last run"""
    from fl_app.deploy.devices import show
    from fl_app.launch.surroundings import settle

    settle()
    show(absolute(arguments.site))
    return 0


def report(arguments: argparse.Namespace) -> int:
    """draw a run's figures and report.html anew"""
    from fl_app.record.find import find_run
    from fl_app.record.report import render

    found = find_run(arguments.run)
    with found.reading():
        print(render(found))
    return 0


def export(arguments: argparse.Namespace) -> int:
    """write a run's model, with what one must know to use it elsewhere"""
    from fl_app.record.export import export
    from fl_app.record.find import find_run

    where = arguments.onnx or arguments.out
    path = absolute(where) if where else None
    kind = "onnx" if arguments.onnx else arguments.to
    said, place = export(find_run(arguments.run), arguments.model, kind, path)
    print(f"{said}\n{place}")
    return 0


def models(_arguments: argparse.Namespace) -> int:
    """list the models with their default widths and sizes"""
    from fl_app.models import MODELS, build_model

    for name, spec in MODELS.items():
        model = build_model(name, in_channels=1, num_classes=10, image_size=32, seed=0)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name:10} width {spec.width:3}  {spec.layers:3} weight layers  {parameters:9,}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line of all subcommands."""
    root = argparse.ArgumentParser(prog="edge-fl", description="Asynchronous federated learning.")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def command(
        function: Callable[[argparse.Namespace], int], group=commands
    ) -> argparse.ArgumentParser:
        made = group.add_parser(
            function.__name__, help=function.__doc__, description=function.__doc__
        )
        made.set_defaults(function=function)
        return made

    def assignments(of: argparse.ArgumentParser) -> None:
        of.add_argument("values", nargs="*", metavar="key=value", help="see `edge-fl config`")

    for function in (run, resume):
        sub = command(function)
        if function is run:
            assignments(sub)
            sub.add_argument(
                "--trace",
                default="",
                metavar="RUN",
                help="simulate a run that has happened: its configuration, and the same rounds",
            )
            for key, meaning in RUN_OPTIONS.items():
                sub.add_argument(f"--{key}", default="", help=meaning)
        else:
            sub.add_argument("run", metavar="RUN", help="a path, or the beginning of a name")
        sub.add_argument(
            "--superlink",
            default="",
            metavar="NAME",
            help="a connection of your Flower configuration, instead of a simulation here",
        )
        sub.add_argument(
            "--ray",
            default="",
            metavar="ADDRESS",
            help="a Ray cluster that runs already, to spread the simulation over its machines",
        )
        sub.add_argument("--verbose", action="store_true", help="show all of Flower's log")
        sub.add_argument("--watch", action="store_true", help="with its page, see `edge-fl watch`")
        sub.set_defaults(form=LINES)
        for form, meaning in (
            (QUIET, "say nothing but the run's directory, and what goes wrong"),
            (JSON, "write the run's events to the standard output, a line each"),
        ):
            sub.add_argument(
                f"--{form}", action="store_const", dest="form", const=form, help=meaning
            )
    sub = command(config)
    sub.add_argument("mode", nargs="?", default="", metavar="MODE", help="only what it uses")
    sub.add_argument("--markdown", action="store_true", help="as docs/keys.md has them")
    sub = command(new)
    sub.add_argument("name", metavar="NAME", help="of the app and its folder")
    sub.add_argument("--task", default="images", help="images, text or tables")
    sub = command(devices)
    sub.add_argument("site", metavar="SITE", help="a deployment, or its server's folder")
    watching.add_arguments(command(watching.watch))
    command(report).add_argument("run", metavar="RUN")
    managing.add_commands(command)
    add_data(commands, command)
    add_check(commands)
    sub = command(export)
    sub.add_argument("run", metavar="RUN")
    kind = sub.add_mutually_exclusive_group(required=True)
    kind.add_argument("--to", choices=EXPORTS, help="the format; hf: a folder as on the Hub")
    kind.add_argument("--onnx", metavar="PATH", help="as --to onnx --out PATH")
    sub.add_argument(
        "--out",
        default="",
        metavar="PATH",
        help="default: the model's name in this directory, and what it ends in",
    )
    sub.add_argument(
        "--model",
        default="",
        metavar="NAME",
        help="global, small, best or, of mode=consensus, node-0 ... (default: the published one)",
    )
    command(models)
    add_commands(commands.add_parser("deploy", help="real devices: set up and run a deployment"))
    add_topology(command)
    return root


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 2 for whatever could be found out before anything ran."""
    with written_out():
        try:
            arguments = _parse(words)
            _check_place()
            return arguments.function(arguments)
        except EdgeFlError as error:
            print(f"edge-fl: {error}", file=sys.stderr)
            return USAGE_ERROR
        except OSError as error:
            if error.filename is None:  # of a stream: see `written_out`
                raise
            print(f"edge-fl: {error.filename}: {error.strerror}", file=sys.stderr)
            return USAGE_ERROR
        except KeyboardInterrupt:
            return INTERRUPTED


def _check_place() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError("the working directory is gone; change to another one") from error


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    root = parser()
    arguments, rest = root.parse_known_args(words)
    # argparse stops to collect key=value words at an option in their midst.
    if any(word.startswith("-") for word in rest) or (rest and "values" not in arguments):
        root.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.values += rest
    return arguments


if __name__ == "__main__":
    sys.exit(main())
