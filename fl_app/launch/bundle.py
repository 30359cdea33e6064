"""What `edge-fl run` submits: this app without data that devices get in another way, or the app in
the working directory that depends on it."""

import contextlib
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fl_app.config import TASKS, RunConfig, Value, defaults
from fl_app.data import embedded
from fl_app.launch.values import toml_lines
from fl_app.record.run_dir import flatten
from strategies import pyproject
from strategies.errors import ConfigError

NAME = "edge-fl"
_PACKAGES = ("fl_app", "strategies", "client_apps")
_FILES = ("pyproject.toml", "LICENSE")
_CONFIG = "[tool.flwr.app.config"


def own_app(folder: Path) -> Path | None:
    """`folder`, if it has a Flower app that is made of edge-fl, as `edge-fl new` makes it: it has a
    table [tool.edge-fl], or depends on it."""
    project = _project(folder)
    tools, needs = project.get("tool", {}), project.get("project", {}).get("dependencies", ())
    named = any(re.match(rf"{NAME}(?![\w.-])", str(each)) for each in needs)
    return folder if (named or NAME in tools) and "app" in tools.get("flwr", {}) else None


def settings_of(app: Path) -> dict[str, Value]:
    """The keys of somebody's app that are not as they are shipped. ConfigError for one that there
    is not."""
    values = flatten(_project(app)["tool"]["flwr"]["app"].get("config", {}))
    if unknown := values.keys() - defaults().keys():
        raise ConfigError(
            f"{app / 'pyproject.toml'}: edge-fl has no key {', '.join(sorted(unknown))}; see "
            f"`edge-fl config`"
        )
    return {key: value for key, value in values.items() if value != defaults()[key]}


def with_own_app(overrides: Mapping[str, Value]) -> dict[str, Value]:
    """In the folder of somebody's app its settings, with the `overrides` above them, and its task
    can be imported from now on; elsewhere the overrides. ConfigError as above."""
    if not (app := own_app(Path.cwd())):
        return dict(overrides)
    if str(app) not in sys.path:
        sys.path.insert(0, str(app))
    return {**settings_of(app), **overrides}


def _project(folder: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@contextlib.contextmanager
def submitted(config: RunConfig, *, remote: bool, app: Path | None = None) -> Iterator[Path]:
    """The folder of which Flower is to make the bundle: the clone, or a copy of the app.

    A copy of somebody's `app` with all keys in it, for Flower lets nobody change others. A copy
    where edge-fl is installed from a wheel, beside packages of others. And for a SuperLink of
    others (`remote`), without the embedded data, which are three quarters of it: there the bundle
    goes to every device of the run, and one that reads some of these data and has none asks for
    them over the mail router, once (`strategies.link.files`); there is none for a run without
    sessions.
    """
    if app is not None:
        with tempfile.TemporaryDirectory(prefix="edge-fl-") as place:
            yield _with_all_keys(app, Path(place, NAME))
        return
    lean = remote and config.sessions != "off"
    if pyproject.PATH.parent == pyproject.PACKAGES and not lean:
        yield pyproject.PACKAGES
        return
    # Somebody's own task may read the tables or the text, and nothing tells which.
    data = embedded.FILES if config.task in TASKS else embedded.IMAGES
    left_out = ["__pycache__", *_FILES, *(data if lean else ())]
    with tempfile.TemporaryDirectory(prefix="edge-fl-") as place:
        copy = Path(place, NAME)
        for name in _PACKAGES:
            shutil.copytree(
                pyproject.PACKAGES / name,
                copy / name,
                ignore=shutil.ignore_patterns(*left_out),
            )
        for name in _FILES:
            shutil.copyfile(pyproject.PATH.parent / name, copy / name)
        yield copy


def _with_all_keys(app: Path, copy: Path) -> Path:
    """A copy of somebody's app; its pyproject.toml lists every key with its shipped value."""
    shutil.copytree(app, copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    kept, left_out = [], False
    for line in (copy / "pyproject.toml").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            left_out = line.startswith(_CONFIG)
        if not left_out:
            kept.append(line)
    kept += [f"{_CONFIG}]", *toml_lines(defaults()), ""]
    (copy / "pyproject.toml").write_text("\n".join(kept), encoding="utf-8")
    return copy
