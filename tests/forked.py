"""The processes beside a run, forked from one that has imported PyTorch: that import takes each of
them seconds of a core."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.reduction import DupFd
from types import SimpleNamespace
from typing import Any
from unittest import mock

from strategies import child

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["strategies.distillation.worker", "strategies.distillation.reference_worker"]
)


@contextmanager
def forked() -> Iterator[None]:
    """Within it, what a run starts beside itself is forked. Nobody finds it by its command line."""
    stand_in = SimpleNamespace(
        Popen=Forked, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )
    with mock.patch.object(child, "subprocess", stand_in):
        yield


class Forked:
    """What `child` uses of a Popen of [python, "-P", "-m", MODULE, DIRECTORY]."""

    def __init__(
        self, command: list[str], *, stderr: Any, env: Mapping[str, str], **_: Any
    ) -> None:
        orders, self_in = os.pipe()
        self_out, words = os.pipe()
        ends = [DupFd(number) for number in (orders, words, stderr.fileno())]
        self._process = _CONTEXT.Process(
            target=_work, args=(command[3], command[4], ends, dict(env)), daemon=True
        )
        self._process.start()
        os.close(orders)
        os.close(words)
        self.stdin, self.stdout = os.fdopen(self_in, "w"), os.fdopen(self_out)
        self.pid = self._process.pid
        self._ended = threading.Event()
        threading.Thread(target=self._reap, daemon=True).start()

    def _reap(self) -> None:
        self._process.join()  # by one thread: two cannot ask
        self._ended.set()

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("forked", timeout or 0.0)
        return self._process.exitcode or 0

    def kill(self) -> None:
        self._process.kill()


def _work(module: str, directory: str, ends: list[Any], environment: dict[str, str]) -> None:
    for number, end in enumerate(ends):
        os.dup2(end.detach(), number)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    os.environ.update(environment)
    sys.path += [path for path in environment["PYTHONPATH"].split(os.pathsep) if path]
    sys.argv = [module, directory]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that it has been imported before
        runpy.run_module(module, run_name="__main__", alter_sys=False)
