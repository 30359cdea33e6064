"""Build hook: an *editable* install also ships two start-up lines for Flower.

`flwr run .` starts a SuperLink, and a SuperLink reinstalls the app's dependencies (torch
included) into a fresh environment before every run: minutes on line, a failed run off line.
The environment of a clone already has them, because installing the clone put them there.
Flower's only switch that reaches the SuperLink behind a plain `flwr run .` is an environment
variable, so a .pth file, which Python reads at start-up, sets it for the programs of this one
virtual environment. An exported value wins over it; `uv pip uninstall edge-fl` removes it. A
regular wheel does not contain it: there it could change how other people's apps are run.

Its second line is for machines behind a proxy: Flower's programs talk to one another over HTTP on
the loopback interface, and would ask the proxy for it; so no_proxy gets this machine's names.
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

START_UP = "flower_environment.pth"


class EditableHook(BuildHookInterface):
    """Adds the start-up lines to editable wheels."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            build_data["force_include_editable"][START_UP] = START_UP
