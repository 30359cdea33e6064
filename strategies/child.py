"""A process beside this one: its start, its end, and how it notices that it is alone.

It is ``python -P -m MODULE``, with the code that runs here and every place from which this process
imports, and nothing of the directory in which it happens to be. It reads stdin and writes stdout.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Where the packages are: the process must import the code that runs here, not another copy.
_APP = Path(__file__).resolve().parents[1]
_WATCH_SECONDS = 0.5

# -- the outer end ---------------------------------------------------------------------------------


def start(
    module: str,
    *arguments: str,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
    text: bool = False,
) -> "subprocess.Popen[Any]":
    """Start the process. log: file that its stderr is added to, None for that of this process.
    environment: beside what this process has. text: whether its pipes carry texts, or bytes."""
    # A task may be in somebody else's app.
    paths = [str(_APP), os.environ.get("PYTHONPATH", ""), *sys.path]
    places = {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    with log.open("ab") if log is not None else contextlib.nullcontext() as errors:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=text,
            env={**os.environ, **(environment or {}), **places},
        )


def stop(process: "subprocess.Popen[Any]", patience: float = 0.0) -> None:
    """Kill a process that does not end by itself within `patience` seconds."""
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_words(log: Path, lines: int = 1) -> str:
    """The last lines of a log, as one; "" if there are none."""
    with contextlib.suppress(OSError):
        said = log.read_text(errors="replace").strip().splitlines()
        return " | ".join(said[-lines:])
    return ""


# -- the inner end ---------------------------------------------------------------------------------


def watch_parent(gone: Callable[[], object], unless: Callable[[], bool] = lambda: False) -> None:
    """From now on, in a thread: call `gone` when the process that has started this one is no more,
    and not `unless`. The end of stdin does not tell it: others may hold that pipe open."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent or unless():
            time.sleep(_WATCH_SECONDS)
        gone()

    threading.Thread(target=watch, name="parent", daemon=True).start()
