"""All of Flower's private parts that this app uses, and whether they are what we take them for.

Flower promises nothing about these modules. Each is named here with what we pass to it, and a
program checks the parts that it uses before it does anything else: another Flower, with which it
would fail in its midst, is refused in one sentence. Every device has a copy of this file beside its
script, so it imports nothing of this app.
"""

import importlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

TRIED = ">=1.41,<1.43"  # as pyproject.toml has it: the versions that were tried


class FlowerError(RuntimeError):
    """The installed Flower is not one that this app can be run with."""


@dataclass(frozen=True)
class Part:
    """`name` in `module`; takes: the parameters that we pass to it, or fields that we read."""

    module: str
    name: str
    takes: tuple[str, ...] = ()


_SUPERNODE = "flwr.supernode.start_client_internal"
_SUPEREXEC = "flwr.supercore.superexec"
PARTS = {
    "add_exit_handler": Part(
        "flwr.supercore.exit", "add_exit_handler", ("exit_handler", "run_before_force_exit")
    ),
    "exit_handlers": Part("flwr.supercore.exit.exit_handler", "registered_exit_handlers"),
    # The SuperLink behind the gate.
    "create_app": Part("flwr.superlink.main", "create_app", ("config",)),
    "flower_superlink": Part("flwr.superlink.cli.flower_superlink", "flower_superlink"),
    # Its Control interface.
    "control_client": Part("flwr.cli.utils", "init_http_client_from_connection", ("connection",)),
    "connection": Part(
        "flwr.cli.typing",
        "SuperLinkConnection",
        ("name", "address", "root_certificates", "insecure"),
    ),
    "ListNodesRequest": Part("flwr.proto.control_pb2", "ListNodesRequest"),
    "RegisterNodeRequest": Part("flwr.proto.control_pb2", "RegisterNodeRequest"),
    "UnregisterNodeRequest": Part("flwr.proto.control_pb2", "UnregisterNodeRequest"),
    "public_key_to_bytes": Part(
        "flwr.supercore.primitives.asymmetric", "public_key_to_bytes", ("public_key",)
    ),
    # A device's programs.
    "flower_supernode": Part("flwr.supernode.cli.flower_supernode", "flower_supernode"),
    "connect": Part(_SUPERNODE, "http_request_response"),
    "parent_monitor": Part(
        "flwr.supercore.app_utils", "start_parent_process_monitor", ("parent_pid",)
    ),
    "Fab": Part("flwr.supercore.fab", "Fab", ("hash_str", "content", "verifications")),
    "TaskType": Part("flwr.supercore.constant", "TaskType"),
    "get_executor": Part(f"{_SUPEREXEC}.run_superexec", "get_executor"),
    "run_superexec": Part(
        f"{_SUPEREXEC}.run_superexec", "run_superexec", ("runtime_api_address", "insecure")
    ),
    "LaunchResult": Part(f"{_SUPEREXEC}.executor", "LaunchResult"),
    "run_clientapp": Part(
        "flwr.supernode.runtime.run_clientapp",
        "run_clientapp",
        ("runtime_api_address", "token", "insecure", "parent_pid"),
    ),
}
# By the program that uses them.
SERVERAPP = ("add_exit_handler",)
GATE = ("create_app", "flower_superlink")
CONTROL = (
    "control_client", "connection", "ListNodesRequest", "RegisterNodeRequest",
    "UnregisterNodeRequest", "public_key_to_bytes",
)  # fmt: skip
DEVICE = (
    "flower_supernode", "connect", "parent_monitor", "Fab", "TaskType", "get_executor",
    "run_superexec", "LaunchResult", "run_clientapp", "exit_handlers",
)  # fmt: skip


def part(name: str) -> Any:
    """Flower's object that PARTS calls `name`. Raises FlowerError where it is not what we use."""
    this = PARTS[name]
    try:
        found = getattr(importlib.import_module(this.module), this.name)
    except (ImportError, AttributeError) as error:
        raise _misfit(f"it has no {this.module}.{this.name} ({error})") from error
    if lacking := [each for each in this.takes if each not in _parameters(found)]:
        raise _misfit(f"{this.module}.{this.name} takes no {', '.join(lacking)}")
    return found


def check(names: Iterable[str]) -> None:
    """Raise FlowerError, which says what does not fit, unless all these parts are what we use."""
    for name in names:
        part(name)


def replace(name: str, value: object) -> None:
    """Have Flower use `value` where it looks this part up in its module."""
    setattr(importlib.import_module(PARTS[name].module), PARTS[name].name, value)


def _parameters(found: Any) -> Iterable[str]:
    try:
        return inspect.signature(found).parameters
    except (TypeError, ValueError) as error:
        raise _misfit(f"{found!r} cannot be called") from error


def _misfit(what: str) -> FlowerError:
    try:
        here = version("flwr")
    except PackageNotFoundError:
        here = "(none)"
    return FlowerError(
        f"Flower {here} is not what edge-fl was made for: {what}; use one that was tried: "
        f"pip install 'flwr{TRIED}'"
    )
