"""What a person, or another program, sees of `edge-fl run` from its first moment on."""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fl_app.streams import say
from strategies.errors import RunDirectoryError

NOTHING, LINES, QUIET, JSON = "nothing", "lines", "quiet", "json"
_LOOK_SECONDS = 0.5


class Screen:
    """Tells stages, the lines of the run's log and its progress, in one of these forms:

    - lines: a line each and, in a terminal, a bar under them
    - quiet: nothing but the run's directory at the end, and what goes wrong
    - json: the run's events as they come, a line each, between those of stages
    - nothing: the lines of the log alone, for callers that are no command

    `begun` is called with the run's directory once that is known.
    """

    def __init__(self, form: str = NOTHING, begun: Callable[[Path], object] | None = None) -> None:
        self._form = form
        self._begun = begun
        self._bar: _Bar | None = None
        self._over = threading.Event()
        self._following: threading.Thread | None = None
        self._found = False

    @property
    def follows(self) -> bool:
        """Whether there is nothing to show without the run's directory: with a page, or as JSON."""
        return self._begun is not None or self._form == JSON

    def __enter__(self) -> Self:
        if self._form == LINES and sys.stdout is not None and sys.stdout.isatty():
            self._bar = _Bar()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._following:
            self._following.join()
        if self._bar:
            self._bar.stop()

    def stage(self, text: str) -> None:
        """Tell what happens now."""
        if self._bar:
            self._bar.describe(text)
        elif self._form == LINES:
            say(f"edge-fl: {text} ...")
        elif self._form == JSON:
            say(json.dumps({"stage": text}))

    def show(self, line: str) -> None:
        """Show a line of the run's log."""
        if self._form in (LINES, NOTHING):
            say(line)

    def begin(self, directory: Path) -> None:
        """Tell the run's directory, which may not be there yet, and follow the run."""
        if self._begun:
            self._begun(directory)
        if self._form == NOTHING:
            return
        if self._form == LINES:
            say(f"run directory: {directory}")
        elif self._form == JSON:
            say(json.dumps({"run_directory": str(directory)}))
        if self._bar or self._form == JSON:
            self._following = threading.Thread(target=self._follow, args=[directory], daemon=True)
            self._following.start()

    def found(self, directory: Path) -> None:
        """As `begin`, of the directory that a deployment has told, if it can be read here; once."""
        from fl_app.record.run_dir import METRICS

        if self._found:
            return
        self._found = True
        if os.access(directory / METRICS, os.R_OK):
            self.begin(directory)
        elif self.follows:
            say(
                f"edge-fl: the run cannot be followed (--watch, --json): its directory {directory} "
                f"is on another machine, or not for you to read",
                sys.stderr,
            )

    def end(self, directory: Path) -> None:
        """Tell where the results are."""
        if self._form == JSON:
            if self._following:
                self._over.set()
                self._following.join()
                self._following = None
            with contextlib.suppress(OSError, ValueError):
                say(json.dumps({"summary": json.loads((directory / "summary.json").read_text())}))
        else:
            say(f"run directory: {directory}")

    def _follow(self, directory: Path) -> None:
        from fl_app.record.progress import progress
        from fl_app.record.run_dir import RunDirectory, flatten
        from fl_app.record.tail import Tail

        tail, far = Tail(directory), None
        last = False
        while not last:
            last = self._over.wait(_LOOK_SECONDS)  # once more, for what the end has brought
            with contextlib.suppress(RunDirectoryError):
                far = far or progress((), flatten(RunDirectory(directory).config()))
                found = tail.grow()
                for event in found:
                    far.take(event)
                    if self._form == JSON:
                        say(json.dumps(event))
                if self._bar and found:
                    self._bar.update(far)


class _Bar:
    """A line at the foot of the terminal: a stage, then how far the run is and when it will end."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(),
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, left="")
        self._progress.start()

    def describe(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def update(self, progress: Any) -> None:
        from fl_app.record.formatting import duration

        if progress.total:
            self._progress.update(
                self._task,
                description=f"{progress.done} of {progress.total}",
                completed=progress.done,
                total=progress.total,
                left="" if progress.left is None else f"{duration(progress.left)} to go",
            )

    def stop(self) -> None:
        self._progress.stop()
