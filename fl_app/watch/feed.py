"""Runs as the page asks for them, read again only where their files have changed."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_app.record.metrics import effective
from fl_app.record.page.snapshot import snapshot
from fl_app.record.run_dir import CONFIG, METRICS, SUMMARY, RunDirectory, list_runs
from fl_app.record.tail import Tail
from fl_app.record.writer import is_written
from strategies.errors import RunDirectoryError

_LISTED = 300  # the newest


class Feed:
    """What the page shows of one run, as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: object = None
        self._document: dict[str, Any] = {}
        self._tail = Tail(path)

    def document(self) -> dict[str, Any]:
        """The page's document of now. Raises RunDirectoryError that says what cannot be read."""
        with self._lock:
            now = self._state()
            if now != self._seen:
                run = RunDirectory.open(self._path)
                with run.reading():
                    self._tail.grow()
                    document = snapshot(run, effective(self._tail.events))
                self._document = document | {"running": is_written(self._path)}
                self._seen = now
            return self._document

    def _state(self) -> object:
        return (*map(self._stat, (METRICS, SUMMARY, CONFIG)), is_written(self._path))

    def _stat(self, name: str) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path / name)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


class Feeds:
    """The runs under `root` and those at `others`, by name: a request names a run, never a path.

    awaited: the run that is to be shown will be chosen, and no other is shown until it is there.
    """

    def __init__(
        self, root: Path, others: Sequence[Path] = (), chosen: str = "", *, awaited: bool = False
    ) -> None:
        self._root = root
        self._others = {path.name: path for path in others}
        self._known: dict[Path, Feed] = {}
        self.chosen = chosen  # what the page shows first; "" for the newest
        self._awaited = awaited

    def choose(self, path: Path) -> None:
        """Have pages turn to the run at `path`, wherever it is, as soon as it is there."""
        if path.parent != self._root:
            self._others[path.name] = path
        self.chosen = path.name

    def paths(self) -> dict[str, Path]:
        """The runs that there are, those that were named before the newest: one of them also
        stands for another run of its name."""
        found = {run.name: run.path for run in reversed(list_runs(self._root))}
        elsewhere = {name: path for name, path in self._others.items() if path.is_dir()}
        return elsewhere | {n: path for n, path in found.items() if n not in elsewhere}

    def feed(self, name: str) -> Feed:
        """The feed of the run of this name. RunDirectoryError where there is none."""
        path = self.paths().get(name)
        if path is None:
            raise RunDirectoryError(f"there is no run {name!r}")
        return self._known.setdefault(path, Feed(path))

    def listing(self) -> dict[str, Any]:
        """Names and states of the newest runs, and which is to be shown."""
        there = self.paths()
        newest = list(there.items())[:_LISTED]
        return {
            "chosen": self.chosen,
            "awaited": self._awaited and self.chosen not in there,
            "runs": [{"name": name, "state": state(path)} for name, path in newest],
        }


def state(path: Path) -> str:
    """How a run stands, by the least that has to be read for it."""
    if is_written(path):
        return "running"
    try:
        return str(RunDirectory(path).summary().get("status") or "not finished")
    except RunDirectoryError:
        return "damaged"
