"""The directory of one run: configuration, events, checkpoints and summary on disk."""

import contextlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np

from fl_app.errors import RunDirectoryError
from fl_app.record.checkpoint import atomic_save, atomic_write, load_tensors
from fl_app.record.environment import describe
from fl_app.record.metrics import Event, effective

CONFIG, ENVIRONMENT = "config.json", "environment.json"
METRICS, SUMMARY = "metrics.jsonl", "summary.json"
CHECKPOINTS, FIGURES, REPORT = "checkpoints", "figures", "report.html"


def runs_root(configured: str = "") -> Path:
    """Return where runs are kept: `configured`, or $EDGE_FL_HOME/runs, or ~/.edge-fl/runs.

    Raises RunDirectoryError for a relative path: the processes of one run have different working
    directories, so it would mean a different place to each of them.
    """
    home = os.environ.get("EDGE_FL_HOME") or "~/.edge-fl"
    root = Path(configured or os.path.join(home, "runs")).expanduser()
    if not root.is_absolute():
        named = f"the runs directory {configured!r}" if configured else f"EDGE_FL_HOME={home!r}"
        raise RunDirectoryError(
            f"{named} is a relative path; give an absolute one, e.g. {str(root.absolute())!r}"
        )
    return root


def list_runs(root: Path) -> list["RunDirectory"]:
    """Return the runs under `root`, oldest first; what is not a run directory is passed over."""
    found = []
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        try:
            found.append(RunDirectory.open(path))
        except RunDirectoryError:
            continue
    return sorted(found, key=lambda run: run.environment().get("started") or "")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested configuration as one level of dotted keys, as Flower's run config has it."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


class RunDirectory:
    """One run on disk: write events, checkpoints and a summary; read them back.

    `listeners` are called with every event after it has reached the disk. One that raises is
    dropped with a warning event, since a broken dashboard must not end a training run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listeners: list[Callable[[Event], None]] = []
        self._lock = threading.RLock()
        self._metrics: int | None = None  # file descriptor, opened by the first event
        self._origin: float | None = None  # time.monotonic() at which t_wall was zero

    @classmethod
    def create(cls, root: Path, config: Mapping[str, Any], *, name: str = "") -> Self:
        """Make the directory of a new run under `root` and write its configuration and environment.

        The default name is "<mode>-<variant>-<yyyymmdd-hhmmss>-<n>" with the first free n. Raises
        RunDirectoryError when `name` is taken or the place is not writable, and then leaves nothing
        behind, not even a `root` that had to be made.
        """
        root = Path(root)
        if not root.is_absolute():
            raise RunDirectoryError(f"the runs directory {str(root)!r} is not an absolute path")
        if name and (name in (".", "..") or Path(name).name != name):
            raise RunDirectoryError(f"a run's name is one path component, not {name!r}")
        made: list[Path] = []
        path: Path | None = None
        try:
            made = [folder for folder in (root, *root.parents) if not folder.exists()]
            root.mkdir(parents=True, exist_ok=True)
            path = _claim(root, name, config)
            run = cls(path)
            (path / CHECKPOINTS).mkdir()
            (path / FIGURES).mkdir()
            _write_json(path / CONFIG, config)
            _write_json(path / ENVIRONMENT, describe())
            (path / METRICS).touch()
            run._origin = time.monotonic()
            return run
        except BaseException as error:
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)
            for folder in made:
                with contextlib.suppress(OSError):  # never made, or in use by another run meanwhile
                    folder.rmdir()
            if isinstance(error, OSError):
                raise RunDirectoryError(
                    f"cannot make a run directory in {root}: {error.strerror or error}; choose "
                    f"another place for runs, or set EDGE_FL_HOME"
                ) from error
            raise

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open the existing run at `path`; RunDirectoryError names what is missing or damaged."""
        path = Path(path).absolute()
        if not path.is_dir():
            raise RunDirectoryError(f"there is no run directory {path}")
        missing = [name for name in (CONFIG, METRICS) if not (path / name).is_file()]
        if missing:
            raise RunDirectoryError(f"{path} is not a run directory: no {' and no '.join(missing)}")
        run = cls(path)
        run.config()
        return run

    @property
    def name(self) -> str:
        return self.path.name

    def emit(self, event: str, **fields: Any) -> None:
        """Append one event to metrics.jsonl, then hand it to every listener.

        `t_wall` is added: real seconds since the run's start, going on where a resumed run stopped.
        Numpy numbers become plain ones; NaN and infinities become null, which JSON can hold.
        Raises RunDirectoryError when it cannot be written; the file is then as it was.
        """
        with self._lock:
            if self._metrics is None:
                self._metrics = self._open_metrics()
            origin = self._start()
            record: Event = {"event": event, "t_wall": round(time.monotonic() - origin, 6)}
            record |= {name: plain(value) for name, value in fields.items()}
            self._append(json.dumps(record, allow_nan=False).encode() + b"\n")
        for listener in list(self.listeners):
            try:
                listener(record)
            except Exception as error:
                self.listeners.remove(listener)
                label = getattr(listener, "__qualname__", type(listener).__name__)
                self.emit("warning", message=f"listener {label} dropped: {error!r}")

    def close(self) -> None:
        """Close metrics.jsonl; a later `emit` opens it again."""
        with self._lock:
            if self._metrics is not None:
                os.close(self._metrics)
                self._metrics = None

    def events(self) -> list[Event]:
        """Return the events that count (see `metrics.effective`), in order.

        A last line cut short by a crash is left out; a damaged line before it is an error, because
        leaving it out could change what the run seems to have measured.
        """
        return effective(self._raw_events())

    def save_checkpoint(
        self,
        name: str,
        tensors: Mapping[str, np.ndarray],
        metadata: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write checkpoints/<name>.safetensors atomically (see `checkpoint.atomic_save`)."""
        path = self.checkpoint_path(name)
        atomic_save(path, tensors, metadata)
        return path

    def load_checkpoint(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return (arrays, metadata); RunDirectoryError names a missing or damaged file."""
        return load_tensors(self.checkpoint_path(name))

    def checkpoint_path(self, name: str) -> Path:
        return self.path / CHECKPOINTS / f"{name}.safetensors"

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json atomically."""
        _write_json(self.path / SUMMARY, summary)

    def summary(self) -> dict[str, Any]:
        """Return summary.json, or {} for a run that has not ended."""
        return _read_json(self.path / SUMMARY)

    def config(self) -> dict[str, Any]:
        return _read_json(self.path / CONFIG)

    def environment(self) -> dict[str, Any]:
        return _read_json(self.path / ENVIRONMENT)

    def _raw_events(self) -> list[Event]:
        path = self.path / METRICS
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise RunDirectoryError(f"cannot read {path}: {error.strerror or error}") from error
        events = []
        for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if not isinstance(event, dict) or not {"event", "t_wall"} <= event.keys():
                raise RunDirectoryError(f"{path}, line {number}, is not an event")
            events.append(event)
        return events

    def _start(self) -> float:
        origin = self._origin
        if origin is None:  # a run opened again goes on counting at its last event
            before = self._raw_events()
            origin = time.monotonic() - (before[-1]["t_wall"] if before else 0.0)
            self._origin = origin
        return origin

    def _open_metrics(self) -> int:
        path = self.path / METRICS
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            # A new event must not be glued to a line that a crash cut short.
            os.ftruncate(descriptor, path.read_bytes().rfind(b"\n") + 1)
        except OSError as error:
            raise RunDirectoryError(f"cannot write {path}: {error.strerror or error}") from error
        return descriptor

    def _append(self, line: bytes) -> None:
        assert self._metrics is not None
        start = os.fstat(self._metrics).st_size
        written = 0
        try:
            while written < len(line):
                written += os.write(self._metrics, line[written:])
        except OSError as error:
            os.ftruncate(self._metrics, start)
            raise RunDirectoryError(
                f"cannot write {self.path / METRICS}: {error.strerror or error}; free some space, "
                f"then resume the run"
            ) from error


def plain(value: Any) -> Any:
    """Return `value` as strict JSON data: numpy to Python, tuples to lists, NaN and inf to None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _claim(root: Path, name: str, config: Mapping[str, Any]) -> Path:
    """Make and return a directory that did not exist; mkdir decides between two that want it."""
    if name:
        try:
            (root / name).mkdir()
        except FileExistsError:
            raise RunDirectoryError(
                f"{root / name} exists already; choose another name, or resume that run"
            ) from None
        return root / name
    flat = flatten(config)
    mode = str(flat.get("mode", "run"))
    variant = flat.get(f"{mode}.variant", "")
    moment = datetime.now().strftime("%Y%m%d-%H%M%S")
    stem = "-".join(str(part) for part in (mode, variant, moment) if part)
    number = 1
    while True:
        try:
            (root / f"{stem}-{number}").mkdir()
            return root / f"{stem}-{number}"
        except FileExistsError:
            number += 1


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    atomic_write(path, json.dumps(plain(value), indent=2, allow_nan=False).encode() + b"\n")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path} is damaged: {error}") from error
