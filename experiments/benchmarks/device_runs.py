"""Deployments on this machine, and runs on their devices, for benchmarks."""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments.flower_runs import flower_run, say
from fl_app.config import Value
from fl_app.deploy.loopback import Loopback
from fl_app.launch.superlink import local_superlink, tail
from fl_app.record.metrics import Event
from fl_app.record.run_dir import METRICS, RunDirectory
from strategies.errors import EdgeFlError

Values = dict[str, Value]
DEVICES = ("pi-1", "pi-2", "pi-3")
_WATCH_SECONDS = 1.0  # between two looks at a run whose processor time is measured


class DeviceRuns:
    """A directory for everything, and what the command line says."""

    def __init__(self, directory: Path, arguments: argparse.Namespace) -> None:
        self.directory, self.arguments = directory, arguments
        self._runs = directory / "runs"

    @contextmanager
    def site(self, name: str, devices: Sequence[str]) -> Iterator[Loopback]:
        say(f"{name}: a deployment of {len(devices)} devices")
        environment = {"EDGE_FL_HOME": str(self.directory / "home"), "OMP_NUM_THREADS": "1"}
        with Loopback(self.directory / name, devices, environment=environment) as site:
            yield site

    def values(self, name: str, *parts: Mapping[str, Value]) -> Values:
        """Of a run of that name, from settings of which later ones win."""
        found: Values = {"name": name, "output": str(self._runs)}
        for part in parts:
            found |= part
        return found

    def start(self, site: Loopback, values: Values) -> "subprocess.Popen[bytes]":
        """`edge-fl run` on the deployment; its output goes to a file."""
        say(f"{values['name']}: edge-fl run on devices")
        words = [f"{key}={value}" for key, value in values.items()]
        command = [sys.executable, "-m", "fl_app.cli", "run", "--superlink", site.connection]
        with self._log(values).open("wb") as log:
            return subprocess.Popen(
                [*command, *words], env=site.environment, stdout=log, stderr=subprocess.STDOUT
            )

    def run(
        self, site: Loopback, values: Values, watch: Callable[[RunDirectory], object] = id
    ) -> RunDirectory:
        """A whole run on the deployment. Raises EdgeFlError when it does not complete."""
        process, run = self.start(site, values), self.record(values)
        try:
            while process.poll() is None:
                watch(run)
                time.sleep(_WATCH_SECONDS)
        finally:
            process.terminate()
            process.wait()
        if process.returncode != 0 or run.summary().get("status") != "completed":
            raise EdgeFlError(f"{run.name} did not complete:\n{self.said(values)}")
        return run

    def simulate(self, values: Values, hosts: int) -> RunDirectory:
        say(f"{values['name']}: flwr run of {hosts} hosts in a simulation")
        with local_superlink() as link:
            return flower_run(link, values, hosts)

    def record(self, values: Values) -> RunDirectory:
        return RunDirectory(self._runs / str(values["name"]))

    def said(self, values: Values) -> str:
        """The end of what `edge-fl run` printed."""
        return tail(self._log(values))

    def _log(self, values: Values) -> Path:
        return self.directory / f"{values['name']}.log"


def events_of(run: RunDirectory) -> list[Event]:
    """Of a run that may not have begun."""
    return run.events() if (run.path / METRICS).exists() else []
