"""`edge-fl deploy ...`: each subcommand imports what it needs, so that --help is instant."""

import argparse
from collections.abc import Callable
from pathlib import Path

PROBLEMS = 1


def init(arguments: argparse.Namespace) -> int:
    """write a new deployment: certificates, keys, and everything else its machines need"""
    from fl_app.deploy.directory import create

    place = Path(arguments.directory).absolute()
    create(
        place,
        arguments.host,
        devices=arguments.device,
        port=arguments.port,
        mail_port=arguments.mail_port,
        days=arguments.days,
        insecure=arguments.insecure_loopback,
    )
    print(f"server:  copy {place}/server to it, and run start-superlink.sh there")
    for name in arguments.device:
        print(f"{name}:  copy {place}/devices/{name} to it, and run start-supernode.sh there")
    print(f"runs:    on the server: export FLWR_HOME={place}/flower; edge-fl run --superlink edge")
    print(f"         (or: edge-fl deploy connection {place}/server >> ~/.flwr/config.toml)")
    if not arguments.insecure_loopback:
        print(f"keep {place}/ca to yourself: whoever has ca.key can add machines")
    return 0


def add_device(arguments: argparse.Namespace) -> int:
    """add a device to a deployment"""
    from fl_app.deploy.directory import add_device

    place = Path(arguments.directory).absolute()
    add_device(place, arguments.name)
    print(f"copy {place}/devices/{arguments.name} to it; {_TELL.format(place=place)}")
    return 0


def remove_device(arguments: argparse.Namespace) -> int:
    """remove a device from a deployment"""
    from fl_app.deploy.directory import remove_device

    place = Path(arguments.directory).absolute()
    remove_device(place, arguments.name)
    print(_TELL.format(place=place))
    print(f"a run that {arguments.name} takes part in keeps it until its end: stop that run")
    return 0


_TELL = (
    "copy {place}/server to the server again and run there: start-superlink.sh register "
    "(it cuts off what was removed; `flwr supernode unregister` does so by hand)"
)


def renew(arguments: argparse.Namespace) -> int:
    """sign new certificates for the same keys, of the machines named or of all"""
    from fl_app.deploy.directory import renew

    for name in renew(Path(arguments.directory), arguments.names):
        print(f"{name}: copy its new site.crt to it")
    return 0


def upgrade(arguments: argparse.Namespace) -> int:
    """write the scripts and units of an existing deployment as this version has them"""
    from fl_app.deploy.directory import machine, upgrade

    place = Path(arguments.directory).absolute()
    for name, files in upgrade(place).items():
        if not files:
            print(f"{name}: nothing has changed, nothing to do")
            continue
        print(f"{name}: copy {machine(place, name)} to it ({', '.join(files)}); there:")
        for step in _steps(files):
            print(f"    {step}")
    return 0


# What is to be done on a machine when one of these files of its has changed, in this order.
_STEPS = (
    (("requirements-device.txt",), "pip install -r requirements-device.txt, in its environment"),
    ((".service",), "copy its units to /etc/systemd/system; systemctl daemon-reload"),
    (("Dockerfile", ".dockerignore", "compose.yaml"), "docker compose up -d --build, if it is one"),
    (("start-supernode.sh", "supernode.py", "-device.service", "requirements-device.txt"),
     "restart it: systemctl restart edge-fl-device, or start-supernode.sh again"),
    (("start-superlink.sh", "-superlink.service", "-superexec.service"),
     "restart it when no run is at work: systemctl restart edge-fl-superlink edge-fl-superexec, or "
     "start-superlink.sh again"),
)  # fmt: skip


def _steps(files: list[str]) -> list[str]:
    return [step for ends, step in _STEPS if any(file.endswith(ends) for file in files)]


def check(arguments: argparse.Namespace) -> int:
    """list when certificates expire, and what is wrong with a deployment or a machine's folder"""
    from fl_app.deploy.check import check

    findings = check(Path(arguments.directory))
    for finding in findings:
        print(finding)
    return PROBLEMS if any(finding.wrong for finding in findings) else 0


def register(arguments: argparse.Namespace) -> int:
    """tell the running SuperLink of the devices in SERVER/devices"""
    from fl_app.deploy.directory import server_of
    from fl_app.deploy.nodes import register
    from fl_app.launch.surroundings import settle

    settle()
    register(server_of(Path(arguments.directory)))
    return 0


def connection(arguments: argparse.Namespace) -> int:
    """print the deployment as a connection for your own Flower configuration"""
    from fl_app.deploy.directory import server_of, settings_of
    from fl_app.deploy.templates import connection

    place = server_of(Path(arguments.directory).absolute())
    print(connection(settings_of(place), place), end="")
    return 0


def serve(arguments: argparse.Namespace) -> int:
    """run the server's processes until Ctrl-C (what start-superlink.sh does)"""
    from fl_app.deploy.directory import server_of
    from fl_app.deploy.serve import serve
    from fl_app.launch.surroundings import settle

    settle()
    return serve(server_of(Path(arguments.directory).absolute()))


def demo(arguments: argparse.Namespace) -> int:
    """show it: a server and four devices on this machine, both systems, and a device that dies"""
    from fl_app.deploy.demo import demo
    from fl_app.launch.surroundings import settle

    settle()
    return demo()


def add_commands(deploy: argparse.ArgumentParser) -> None:
    """The subcommands of `edge-fl deploy`."""
    commands = deploy.add_subparsers(required=True, metavar="COMMAND")

    def command(
        function: Callable[[argparse.Namespace], int], what: str = "DIR"
    ) -> argparse.ArgumentParser:
        name = function.__name__.replace("_", "-")
        made = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        made.set_defaults(function=function)
        if what:
            made.add_argument("directory", metavar=what)
        return made

    sub = command(init)
    sub.add_argument(
        "--host", required=True, metavar="NAME_OR_IP", help="the server's, as devices reach it"
    )
    sub.add_argument("--port", type=int, default=8000, help="of Flower's SuperLink (%(default)s)")
    sub.add_argument(
        "--mail-port",
        type=int,
        default=7447,
        help="of the mail router (%(default)s); 0: none, mail goes through Flower, slower",
    )
    sub.add_argument("--device", nargs="+", action="extend", default=[], metavar="NAME")
    sub.add_argument(
        "--days", type=int, default=365, help="a certificate's life in days (%(default)s)"
    )
    sub.add_argument(
        "--insecure-loopback",
        action="store_true",
        help="no TLS and no keys: for a trial on this machine alone",
    )
    for function in (add_device, remove_device):
        command(function).add_argument("name", metavar="NAME")
    command(renew).add_argument("names", nargs="*", metavar="NAME")
    command(upgrade)
    command(check)
    command(register, "SERVER")
    command(connection, "SERVER")
    command(serve, "SERVER")
    command(demo, "")
