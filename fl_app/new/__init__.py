"""`edge-fl new`: a small Flower app that depends on this package."""

import re
from keyword import iskeyword
from pathlib import Path

from fl_app import flower
from fl_app.config import TASKS, defaults
from fl_app.launch.values import toml_lines
from strategies.errors import ConfigError

# What its pyproject.toml lists, because Flower lets nobody change a key that is not there. Values
# as shipped are not taken for given, so that those of one mode do not disturb the other.
KEYS = (
    "mode", "clock", "participants", "num-server-rounds", "seed", "task", "data-path", "partition",
    "local-steps", "learning-rate", "averaging", "distill.variant", "consensus.algorithm",
    "consensus.topology", "consensus.steps", "consensus.window",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9-]*[A-Za-z0-9])?")
_TEMPLATES = Path(__file__).with_name("templates")


def create(name: str, place: Path, task: str = "images") -> Path:
    """Write the app `name` into a new folder in `place`; returns the folder. Raises ConfigError for
    a name or a task that cannot be, and for a folder that is there already."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name for an app: use letters, digits and dashes within")
    if task not in TASKS:
        raise ConfigError(f"--task {task}: choose one of: {', '.join(TASKS)}")
    templates = {each.stem: each.read_text() for each in sorted(_TEMPLATES.glob("*.txt"))}
    templates["task.py"] = (_TEMPLATES / "tasks" / f"{task}.py.txt").read_text()
    folder, kind = place / name, _class_name(name, "\n".join(templates.values()))
    keys = toml_lines({key: defaults()[key] for key in KEYS} | {"task": f"task:{kind}"})
    values = {"NAME": name, "CLASS": kind, "FLWR": flower.TRIED, "KEYS": "\n".join(keys)}
    try:
        folder.mkdir()
        for file, template in templates.items():
            text = re.sub("@([A-Z]+)@", lambda gap: values[gap[1]], template)
            (folder / file).write_text(text)
    except FileExistsError as error:
        raise ConfigError(f"{folder} is there already; choose another name") from error
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def _class_name(name: str, code: str) -> str:
    """That of the app's task: "heart-rate" -> "HeartRate"; another than all names in `code`, of
    which it would hide one."""
    joined = "".join(part[:1].upper() + part[1:] for part in name.split("-"))
    return f"{joined}Task" if iskeyword(joined) or joined in re.findall(r"\w+", code) else joined
