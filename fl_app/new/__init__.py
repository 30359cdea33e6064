"""`edge-fl new`: a small Flower app that depends on this package."""

import re
from pathlib import Path

from fl_app import flower
from fl_app.config import defaults, resolve
from fl_app.launch.values import toml_lines
from strategies.errors import ConfigError

TASKS = ("images", "text", "tables")
# What its pyproject.toml lists, because Flower lets nobody change a key that is not there. Values
# as shipped are not taken for given, so that those of one mode do not disturb the other.
KEYS = (
    "mode", "clock", "participants", "num-server-rounds", "seed", "task", "partition",
    "small-model", "small-width", "local-steps", "learning-rate", "averaging", "distill.variant",
    "consensus.algorithm", "consensus.topology", "consensus.steps", "consensus.window",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_TEMPLATES = Path(__file__).with_name("templates")


def create(name: str, place: Path, task: str = "images") -> Path:
    """Write the app `name` into a new folder in `place`; returns the folder. Raises ConfigError for
    a name or a task that cannot be, and for a folder that is there already."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name for an app: use letters, digits and dashes")
    if task not in TASKS:
        raise ConfigError(f"--task {task}: choose one of: {', '.join(TASKS)}")
    resolve({"task": task})  # which refuses one that this version lacks
    folder = place / name
    values = {"NAME": name, "FLWR": flower.TRIED, "KEYS": "\n".join(_keys(task))}
    try:
        folder.mkdir()
        for template in sorted(_TEMPLATES.glob("*.txt")):
            text = re.sub("@([A-Z]+)@", lambda gap: values[gap[1]], template.read_text())
            (folder / template.stem).write_text(text)
    except FileExistsError as error:
        raise ConfigError(f"{folder} is there already; choose another name") from error
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def _keys(task: str) -> list[str]:
    """The lines of its configuration: dotted keys are tables in TOML."""
    return toml_lines({key: defaults()[key] for key in KEYS} | {"task": task})
