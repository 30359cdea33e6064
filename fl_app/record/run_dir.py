"""The directory of one run: configuration, events, checkpoints and summary on disk."""

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np

from fl_app.record.environment import describe
from fl_app.record.json_data import event_of, plain, read_json, write_json
from fl_app.record.metrics import Event, effective
from fl_app.record.writer import Writer
from strategies.checkpoint import atomic_save, load_tensors
from strategies.errors import RunDirectoryError

CONFIG, ENVIRONMENT = "config.json", "environment.json"
METRICS, SUMMARY = "metrics.jsonl", "summary.json"
_RESERVED = "reserved"
CHECKPOINTS, FIGURES, REPORT = "checkpoints", "figures", "report.html"


def list_runs(root: Path) -> list["RunDirectory"]:
    """Return the runs under `root`, oldest first; what is not a run directory is passed over.

    Damaged ones are among them: reading them says what is wrong. Raises RunDirectoryError if `root`
    cannot be read.
    """
    try:
        found = [RunDirectory(path) for path in sorted(root.iterdir()) if _is_run(path)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RunDirectoryError(f"cannot read {root}: {error.strerror or error}") from error
    return sorted(found, key=_started)


def list_reserved(root: Path) -> list["RunDirectory"]:
    """Return the directories under `root` whose runs have not begun, and may never: what reserved
    them can be starting, or have been killed. `create` does without one that is removed."""
    with contextlib.suppress(OSError):
        return [RunDirectory(path.parent) for path in sorted(root.glob(f"*/{_RESERVED}"))]
    return []


def _is_run(path: Path) -> bool:
    """Whether `path` is meant for a run: there is one of the files that every run has."""
    try:
        return (path / CONFIG).exists() or (path / METRICS).exists()
    except OSError:  # a directory that may not be looked into
        return True


def _started(run: "RunDirectory") -> str:
    with contextlib.suppress(RunDirectoryError):
        return str(run.environment().get("started", ""))
    return ""


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
        self._writer: Writer | None = None
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
            write_json(path / CONFIG, config)
            write_json(path / ENVIRONMENT, describe())
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
        try:
            if not path.is_dir():
                raise RunDirectoryError(f"there is no run directory {path}")
            missing = [name for name in (CONFIG, METRICS) if not (path / name).is_file()]
        except OSError as error:
            raise RunDirectoryError(f"cannot read {path}: {error.strerror or error}") from error
        if missing:
            raise RunDirectoryError(f"{path} is not a run directory: no {' and no '.join(missing)}")
        run = cls(path)
        run.config()
        return run

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def identity(self) -> str:
        """The name, and a trace of when it was started: names are taken again."""
        started = str(self.environment().get("started"))
        return f"{self.name}-{hashlib.sha256(started.encode()).hexdigest()[:8]}"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within it this process alone writes the run. Raises RunDirectoryError that says who does,
        then or, if another has taken over, when something is to be written."""
        with Writer(self.path) as self._writer:
            try:
                yield
            finally:
                self._writer = None

    def emit(self, event: str, **fields: Any) -> None:
        """Append one event to metrics.jsonl, then hand it to every listener.

        `t_wall` is added: real seconds since the run's start, going on where a resumed run stopped.
        Numpy numbers become plain ones; NaN and infinities become null, which JSON can hold.
        Raises RunDirectoryError when it cannot be written; the file is then as it was.
        """
        with self._lock:
            self._check_held()
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
        raw = self._raw_events()
        with self.reading():
            return effective(raw)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Within it what the run has recorded is used. What of it does not fit together, because it
        is damaged or of a much older edge-fl, becomes a RunDirectoryError that names the run."""
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise RunDirectoryError(
                f"{self.path} is damaged: what it has recorded does not fit together ({error!r})"
            ) from error

    def save_checkpoint(
        self,
        name: str,
        tensors: Mapping[str, np.ndarray],
        metadata: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write checkpoints/<name>.safetensors atomically (see `checkpoint.atomic_save`).

        After a power cut it is no further than the events are.
        """
        self._check_held()
        with self._lock:
            if self._metrics is not None:
                os.fsync(self._metrics)
        path = self.checkpoint_path(name)
        atomic_save(path, tensors, metadata)
        return path

    def load_checkpoint(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return (arrays, metadata); RunDirectoryError names a missing or damaged file."""
        return load_tensors(self.checkpoint_path(name))

    def has_checkpoint(self, name: str) -> bool:
        return self.checkpoint_path(name).exists()

    def checkpoint_path(self, name: str) -> Path:
        return self.path / CHECKPOINTS / f"{name}.safetensors"

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json atomically."""
        self._check_held()
        write_json(self.path / SUMMARY, summary)

    def summary(self) -> dict[str, Any]:
        """Return summary.json, or {} for a run that has not ended."""
        return read_json(self.path / SUMMARY)

    def written_up(self, status: str) -> bool:
        """Whether the summary and a report of the run that ended with `status` are there."""
        return self.summary().get("status") == status and (self.path / REPORT).exists()

    def config(self) -> dict[str, Any]:
        return read_json(self.path / CONFIG)

    def environment(self) -> dict[str, Any]:
        return read_json(self.path / ENVIRONMENT)

    def _check_held(self) -> None:
        if self._writer is not None:
            self._writer.check()

    def _raw_events(self) -> list[Event]:
        path = self.path / METRICS
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise RunDirectoryError(f"cannot read {path}: {error.strerror or error}") from error
        events = []
        for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn
            event = event_of(line)
            if event is None:
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


def reserve(root: Path, config: Mapping[str, Any]) -> Path:
    """Make the empty directory of a run that is about to be created under `root` with its name, so
    that the name can be told before: RunDirectory.create takes it. RunDirectoryError.

    `release` gives back one that was not taken.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        path = _claim(root, "", config)
        (path / _RESERVED).touch()
    except OSError as error:
        raise RunDirectoryError(
            f"cannot make a run directory in {root}: {error.strerror or error}; choose another "
            f"place for runs, or set EDGE_FL_HOME"
        ) from error
    return path


def release(path: Path) -> None:
    """Remove the directory of `reserve` if no run has taken it."""
    if _taken_over(path):
        with contextlib.suppress(OSError):
            path.rmdir()
            path.parent.rmdir()  # if it is empty, too


def _taken_over(path: Path) -> bool:
    """Whether `path` was reserved, and now is the caller's: of two that ask, one gets it."""
    try:
        (path / _RESERVED).unlink()
    except OSError:
        return False
    return True


def _claim(root: Path, name: str, config: Mapping[str, Any]) -> Path:
    """Make and return a directory that did not exist; mkdir decides between two that want it."""
    if name:
        try:
            (root / name).mkdir()
        except FileExistsError:
            if not _taken_over(root / name):
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
