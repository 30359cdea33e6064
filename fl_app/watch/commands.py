"""The command `edge-fl watch`."""

import argparse
import webbrowser

from fl_app.streams import say


def watch(arguments: argparse.Namespace) -> int:
    """show runs as they go, in the browser: curves, who is busy when, topology, warnings"""
    from fl_app.record.find import find_run
    from fl_app.watch.feed import Feeds
    from fl_app.watch.server import address, bound, serve
    from strategies.paths import runs_root

    run = find_run(arguments.run) if arguments.run else None
    feeds = Feeds(runs_root(), [run.path] if run else [], run.name if run else "")
    with bound(arguments.port) as listener:
        place = address(listener)
        say(
            f"{place}  (Ctrl-C ends it; of another machine: ssh -L {place[7:-1].split(':')[1]}:"
            f"{place[7:-1]} MACHINE)"
        )
        if arguments.open:
            webbrowser.open(place)
        serve(feeds, listener)
    return 0


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The arguments of `watch`."""
    command.add_argument("run", metavar="RUN", nargs="?", help="the newest run, if not given")
    command.add_argument("--port", type=int, help="of 127.0.0.1; 0: any (default: 8470 or near it)")
    command.add_argument("--open", action="store_true", help="open the browser")
