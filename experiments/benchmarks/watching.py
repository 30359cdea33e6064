"""Watching a run from outside: processor time, memory, and when what started."""

import math
import os
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.benchmarks.process_tree import Process, processes
from fl_app.record.run_dir import RunDirectory

# Between two looks at memory, which cost processor time: the shorter after a new kind of process.
_SOON_SECONDS, _MEMORY_SECONDS = 2.0, 30.0
_MEBIBYTE = 2**20


class Sampler:
    """Looks at a run's processes, all below `root` (this one by default); give it to `flower_run`
    as `watch`."""

    def __init__(self, root: int = 0) -> None:
        self._root = root or os.getpid()
        self._next_memory, self._pause = 0.0, _SOON_SECONDS
        self.cpu: list[tuple[float, dict[str, float]]] = []  # (epoch s, seconds so far by name)
        self.starts: dict[str, float] = {}  # when the first process of each name started
        self.peak: dict[str, Any] = {"pss": 0, "rss": 0}
        self._ended: dict[str, float] = defaultdict(float)
        self._last: dict[int, Process] = {}

    def __call__(self, _run: RunDirectory | None) -> None:
        now = time.time()
        memory = now >= self._next_memory
        if memory:
            self._next_memory = now + self._pause
            self._pause = min(2 * self._pause, _MEMORY_SECONDS)
        alive = {process.pid: process for process in processes(self._root, memory)}
        for pid, process in self._last.items():
            if pid not in alive:
                self._ended[process.name] += process.cpu
        self._last = alive
        used = defaultdict(float, self._ended)
        for process in alive.values():
            used[process.name] += process.cpu
            if process.name not in self.starts:
                self._next_memory, self._pause = now, _SOON_SECONDS
            start = self.starts.get(process.name, math.inf)
            self.starts[process.name] = min(start, process.start)
        self.cpu.append((now, dict(used)))
        pss = sum(process.pss for process in alive.values())
        if pss > self.peak["pss"]:
            rss = sum(process.rss for process in alive.values())
            by_name: dict[str, int] = defaultdict(int)
            for process in alive.values():
                by_name[process.name] += process.pss
            self.peak = {"pss": pss, "rss": rss, "processes": len(alive), "by_name": dict(by_name)}

    def memory(self) -> dict[str, Any]:
        """The largest sum over the run's processes, in MiB."""
        return {
            "pss_mib": round(self.peak["pss"] / _MEBIBYTE),
            "rss_mib": round(self.peak["rss"] / _MEBIBYTE),
            "processes": self.peak["processes"],
            "pss_mib_by_process": {
                name: round(pss / _MEBIBYTE) for name, pss in self.peak["by_name"].items()
            },
        }

    def between(self, start: float, end: float) -> dict[str, float]:
        """Processor seconds used from `start` to `end` (epoch s), by name of process; between two
        looks they count as used evenly."""
        moments = [moment for moment, _ in self.cpu]

        def used(name: str, moment: float) -> float:
            values = [seen.get(name, 0.0) for _, seen in self.cpu]
            return float(np.interp(moment, moments, values))

        return {name: used(name, end) - used(name, start) for name in self.cpu[-1][1]}


def epoch_of_run(run: RunDirectory) -> float:
    """When t_wall was zero: the run's environment is written once, then the clock starts."""
    return (run.path / "environment.json").stat().st_mtime


def phases(began: float, moments: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each phase that ends at one of `moments` (epoch s), in the order in which they
    came, from `began` on."""
    found, before = {}, began
    for name, moment in sorted(moments.items(), key=lambda item: item[1]):
        found[name] = moment - before
        before = moment
    return found
