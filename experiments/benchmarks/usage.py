"""What the programs of a deployment's machines use, seen from outside (Linux)."""

import os
import time
from collections import defaultdict
from typing import Any

from experiments.benchmarks.process_tree import Process, processes
from fl_app.deploy.loopback import Loopback
from strategies.errors import EdgeFlError
from strategies.site import SERVER

_MEBIBYTE = 2**20
_PAUSE_SECONDS = 1.0  # at least, between two looks


class Usage:
    """Of the server and one device of a deployment, between the first look and the last."""

    def __init__(self) -> None:
        self._looks: list[tuple[float, dict[str, list[Process]]]] = []

    def look(self, site: Loopback) -> None:
        """Take note of all processes, unless it is too soon: a look takes processor time from what
        is measured, so there are fewer the longer it lasts."""
        if self._looks:
            (first, _), (last, _) = self._looks[0], self._looks[-1]
            if time.monotonic() - first < max(_PAUSE_SECONDS, 2 * (last - first)):
                return
        alive = {process.pid: process for process in processes(os.getpid(), memory=True)}
        machines = {"server": SERVER, "device": site.devices[0]}
        found = {
            kind: [alive[pid] for pid in site.pids(name) if pid in alive]
            for kind, name in machines.items()
        }
        self._looks.append((time.monotonic(), found))

    def found(self) -> dict[str, Any]:
        """By machine and program, and of all programs: cores (processor seconds a second) and
        rss_mib, at the last look. EdgeFlError if there was one look only."""
        if len(self._looks) < 2:
            raise EdgeFlError("it was over too soon to look at its processes twice")
        (start, first), (end, last) = self._looks[0], self._looks[-1]
        found: dict[str, Any] = {}
        for machine, group in last.items():
            before = {process.pid: process.cpu for process in first[machine]}
            programs: dict[str, dict[str, float]] = defaultdict(lambda: {"cores": 0, "rss_mib": 0})
            for process in group:
                used = process.cpu - before.get(process.pid, 0.0)
                for name in ("all", process.name):
                    programs[name]["cores"] += used / (end - start)
                    programs[name]["rss_mib"] += process.rss / _MEBIBYTE
            found[machine] = dict(programs)
        return found
