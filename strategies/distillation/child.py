"""The inner end of a process beside the run: orders in, events out, and no longer life than it."""

import json
import os
import queue
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import TypeAdapter, ValidationError

from strategies.allocator import keep_freed_memory
from strategies.child import watch_parent
from strategies.distillation.settings import DistillationRun
from strategies.errors import WorkerError

_RUN = "run.json"
# While it computes, it says so this often: who waits for it can tell slow from stuck.
_STEP_SECONDS = 5.0
# A stop waits for the running minibatch; what has not ended by then is stuck.
_PATIENCE_SECONDS = 10.0


class Work(Protocol):
    """What such a process does."""

    def __init__(self, directory: Path, run: DistillationRun) -> None: ...

    def run(self) -> None: ...


def do(work: type[Work]) -> None:
    """The main function of such a process: `work` in the directory that is its argument, with what
    was written there of the run."""
    keep_freed_memory()
    directory = Path(sys.argv[1])
    run = read_run(directory)
    torch.set_num_threads(run.distill.threads)
    work(directory, run).run()


def write_run(directory: Path, run: DistillationRun) -> None:
    """Leave what such a process needs to know of the run."""
    (directory / _RUN).write_bytes(_adapter().dump_json(run))


def read_run(directory: Path) -> DistillationRun:
    """What `write_run` left. Raises WorkerError for what is nothing of the kind."""
    path = directory / _RUN
    try:
        return _adapter().validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise WorkerError(f"{path} cannot be read: {where}: {first['msg']}") from error


@cache
def _adapter() -> TypeAdapter[DistillationRun]:
    return TypeAdapter(DistillationRun)


class RunIsOver(Exception):  # noqa: N818 - no error
    """The run is over or gone."""


class Parent:
    """Who started this process, heard on stdin and told on stdout: one JSON object a line.

    Nobody ever waits for this process to listen: `orders` has what came since the last call.
    """

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._gone = threading.Event()
        self._said = time.monotonic()  # that it is at work

    def listen(self) -> None:
        """From now on, hear orders and notice the end of the run, in threads."""
        threading.Thread(target=self._listen, daemon=True).start()
        watch_parent(self._end)

    def check(self) -> None:
        """Raise RunIsOver when stdin has ended or the parent is gone."""
        if self._gone.is_set():
            raise RunIsOver

    def orders(self) -> list[dict[str, Any]]:
        """What was ordered since the last call. Raises RunIsOver as `check` does."""
        self.check()
        heard = []
        while not self._inbox.empty():
            heard.append(self._inbox.get())
        return heard

    def say(self, event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, "at": time.monotonic(), **fields}), flush=True)

    def say_step(self, step: int) -> None:
        """Say now and then that step `step` is done."""
        if time.monotonic() - self._said >= _STEP_SECONDS:
            self._said = time.monotonic()
            self.say("step", step=step)

    def _listen(self) -> None:
        for line in sys.stdin:
            self._inbox.put(json.loads(line))
        self._end()

    def _end(self) -> None:
        self._gone.set()
        time.sleep(_PATIENCE_SECONDS)
        os._exit(1)  # a step that never ends must not keep the process alive
