"""Which code makes a result: its commit, whether that is all of it, and its fingerprint."""

import json
import os
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from strategies.fingerprint import ROOT, fingerprint

# What decides on results. Reports, which are results, may change while more of them are made.
_DECIDES = (
    "client_apps", "fl_app", "strategies", "experiments", ":!experiments/reports",
    "pyproject.toml", "uv.lock",
)  # fmt: skip
_GIT_SECONDS = 10.0


def provenance() -> dict[str, Any]:
    """Return {commit, dirty, fingerprint} of the code that runs.

    dirty: whether code or defaults differ from those of the commit. Flower runs a copy of the app,
    which has no history: it counts as the clone that this environment was installed from, if it is
    equal to that. commit and dirty are None where there is no such clone, or no git.
    """
    return _provenance(ROOT, _clone())


@cache
def _provenance(root: Path, clone: Path | None) -> dict[str, Any]:
    for place in (root, clone):
        if place and fingerprint(place) == fingerprint(root) and (commit := _head(place)):
            changes = _git(place, "status", "--porcelain", "--", *_DECIDES)
            dirty = None if changes is None else bool(changes)
            return {"commit": commit, "dirty": dirty, "fingerprint": fingerprint(root)}
    return {"commit": None, "dirty": None, "fingerprint": fingerprint(root)}


def _clone() -> Path | None:
    """The clone that this environment was installed from (PEP 610)."""
    try:
        told = json.loads(distribution("edge-fl").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    url = urlparse(told.get("url", ""))
    return Path(unquote(url.path)) if url.scheme == "file" else None


def installed() -> list[Path]:
    """Where the packages of the installed edge-fl are: its clone, and the environment's own."""
    try:
        site = Path(str(distribution("edge-fl").locate_file("")))
    except PackageNotFoundError:
        return []
    return [place for place in (_clone(), site) if place]


def _head(root: Path) -> str | None:
    """The commit that is checked out at `root`; None in a folder of somebody else's repository."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != root.resolve():
        return None
    return _git(root, "rev-parse", "HEAD")


def _git(root: Path, *words: str) -> str | None:
    """What git says; None if it cannot be asked."""
    # Variables like GIT_DIR, which git sets for its hooks, would name another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    try:
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_GIT_SECONDS
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def described(code: Mapping[str, Any] | None) -> str:
    """Return a `provenance` in words; of results that have none, that they have none."""
    if not code:
        return "not recorded"
    commit = f"commit {code['commit'][:12]}" if code["commit"] else "no commit known"
    changed = " with uncommitted changes" if code["dirty"] else ""
    own = "".join(f", {key} from {digest}" for key, digest in code.get("own", {}).items())
    return f"{commit}{changed}, fingerprint {code['fingerprint'] or 'not known'}{own}"
