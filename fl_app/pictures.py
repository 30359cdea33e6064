"""`edge-fl data` and `edge-fl topology`: commands that show what a run would have, and draw it."""

import argparse
from collections.abc import Callable
from pathlib import Path

from strategies.errors import ConfigError, RunDirectoryError
from strategies.paths import absolute, read_text

Command = Callable[..., argparse.ArgumentParser]  # of a function, in the group of a command


def add_data(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", command: Command
) -> None:
    """Give the command line `edge-fl data show` and `edge-fl data check`."""
    data = commands.add_parser("data", help="look at the data of a run").add_subparsers(
        required=True, metavar="COMMAND"
    )
    sub = command(show, data)
    _assignments(sub)
    sub.add_argument("--out", default="label-histogram.png", metavar="PNG")
    sub = command(check, data)
    sub.add_argument("path", metavar="PATH")
    _assignments(sub)


def _assignments(of: argparse.ArgumentParser) -> None:
    of.add_argument("values", nargs="*", metavar="key=value", help="see `edge-fl config`")


def add_topology(command: Command) -> None:
    """Give the command line `edge-fl topology`."""
    sub = command(topology)
    sub.add_argument(
        "name",
        metavar="NAME",
        help="base-k, chain, complete, erdos-renyi, exponential, file, grid, hypercube, "
        "one-peer-exponential, random-regular, ring, star, torus, tree, watts-strogatz, or "
        "your own: file.py:function",
    )
    sub.add_argument("size", metavar="N", type=int, help="the number of participants")
    sub.add_argument("--degree", type=int, help="of random-regular, watts-strogatz and base-k")
    sub.add_argument("--probability", type=float, help="of erdos-renyi and watts-strogatz")
    sub.add_argument("--seed", type=int, help="of the random ones")
    sub.add_argument("--file", metavar="PATH", help="an edge list, or JSON with names")
    sub.add_argument("--out", default="topology.png", metavar="PNG")


def show(arguments: argparse.Namespace) -> int:
    """draw which participant holds how many examples of which class"""
    from fl_app.config import configure
    from fl_app.launch.bundle import with_own_app
    from fl_app.launch.values import parse_assignments
    from fl_app.problem import problem_of
    from fl_app.record.figures import printed
    from fl_app.record.label_figure import label_figure
    from strategies.problem import histogram_of, task_of

    settings = configure(with_own_app(parse_assignments(arguments.values)))
    problem = problem_of(settings)
    found = histogram_of(problem)
    if found is None:
        raise ConfigError(f"the examples of task={settings.task!r} have no classes to be shown")
    histogram, names = found
    for participant, counts in enumerate(histogram):
        print(f"participant {participant}: {counts.sum()} examples; per class {counts.tolist()}")
    for line in task_of(problem).unused:
        print(line)
    title = f"{settings.data_source}, partition {settings.partition}, seed {settings.seed}"
    drawn = printed(lambda: label_figure(histogram, names, title))
    print(_write_png(arguments.out, drawn))
    return 0


def check(arguments: argparse.Namespace) -> int:
    """check own data, an .npz file or a folder of images: a training and a test set as a data set
    of its own, other images as a device's part of dataset=NAME (or dataset=files data-path=PATH)"""
    from fl_app.assemble import dataset_of
    from fl_app.config import FILES, configure
    from fl_app.data import is_whole, load_shard, spec_of
    from fl_app.launch.values import parse_assignments

    path = str(absolute(arguments.path))
    values = parse_assignments(arguments.values)
    whole = values["dataset"] == FILES if "dataset" in values else is_whole(path)
    if whole and "data-path" not in values:
        settings = configure({**values, "dataset": FILES, "data-path": path})
        dataset = dataset_of(settings)
        parts, classes = {"train": dataset.train, "test": dataset.test}, dataset.classes
        unused = dataset.unused
    else:
        settings = configure(values)
        spec = spec_of(settings.dataset, settings.data_path)
        shard = load_shard(path, spec)
        parts, classes, unused = {"train": shard}, spec.class_names, shard.unused
    for name, images in parts.items():
        shape = "x".join(map(str, images.images.shape[1:]))
        print(f"{name}: {len(images)} images of {shape}, fit dataset={settings.dataset}")
        for held, label in zip(images.counts(len(classes)), classes, strict=True):
            print(f"{held:9}  {label}")
    for line in unused:
        print(line)
    return 0


def topology(arguments: argparse.Namespace) -> int:
    """describe who is whose neighbour in mode=consensus, and draw it"""
    from fl_app.launch.values import own_name
    from fl_app.record.figures import printed
    from fl_app.record.topology_figure import topology_figure
    from strategies.consensus.own import TOPOLOGY, topology_named

    name, given = own_name(TOPOLOGY, arguments.name), ("degree", "probability", "seed")
    options = {key: getattr(arguments, key) for key in given if getattr(arguments, key) is not None}
    if (name == "file") != bool(arguments.file):
        raise ConfigError("the topology 'file' and --file PATH go together")
    if arguments.file:
        try:
            options["text"] = read_text(absolute(arguments.file))
        except ConfigError as error:
            raise ConfigError(f"cannot read {arguments.file}: {error}") from error
    try:
        built = topology_named(name, arguments.size, **options)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    degrees = [built.degree(node) for node in range(built.size)]
    print(f"nodes: {built.size}; edges: {len(built.edges)}; diameter: {built.diameter}")
    mean = sum(degrees) / built.size
    print(f"degree: min {min(degrees)}, mean {mean:.2f}, max {max(degrees)}")
    print(f"spectral gap: {built.spectral_gap:.4g}")
    if not built.static:
        edges = ", ".join(str(len(active)) for active in built.rounds)
        print(f"rounds: {len(built.rounds)}, over and over, of {edges} edges")
    title = f"{built.name}, {built.size} nodes, {len(built.edges)} edges"
    drawn = printed(
        lambda: topology_figure(built.name, built.size, built.edges, title, names=built.names)
    )
    print(_write_png(arguments.out, drawn))
    return 0


def _write_png(name: str, content: bytes) -> Path:
    """Write a picture and return where it is. RunDirectoryError."""
    path = absolute(name)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise RunDirectoryError(f"cannot write {path}: {error.strerror}") from error
    return path
