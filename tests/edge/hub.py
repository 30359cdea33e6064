"""A deployment whose server is this machine, with one ordinary device beside the one on trial."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_app.deploy.directory import machine
from fl_app.launch import supervise
from strategies.site import SERVER
from tests.deployed import Run, Site
from tests.edge.machines import SERVER_ADDRESS, use_local_wheel

DOCS = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"
ORDINARY = "pc-1"
ON_TRIAL = "pi-1"
PATIENCE = 600.0  # what is emulated starts slowly
# With every wait as it is shipped.
COMMON: dict[str, Any] = {
    "clock": "real",
    "participants": 2,
    "small-model": "lenet",
    "evaluate-examples": 100,
}
SYSTEMS: dict[str, dict[str, Any]] = {
    "distill": {
        **COMMON,
        "mode": "distill",
        "num-server-rounds": 3,
        "local-steps": 2,
        "batch-size": 8,
        "large-model": "cnn6",
        "large-width": 4,
    },
    "consensus": {
        **COMMON,
        "mode": "consensus",
        "consensus.topology": "chain",
        "consensus.references": "",
        "consensus.batch-size": 8,
        "consensus.window": 10,
        "consensus.steps": 30,
    },
}


class Hub(Site):
    """The deployment; the device on trial is started by the trial."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, [ORDINARY, ON_TRIAL], late=[ON_TRIAL], host=SERVER_ADDRESS)
        self.environment["EDGE_FL_HOME"] = str(directory / "home")

    @property
    def folder(self) -> Path:
        """What is copied to the device on trial."""
        return machine(self.site, ON_TRIAL)

    def copy(self, place: Path) -> Path:
        """The folder of the device on trial, copied to `place` as a user would."""
        shutil.copytree(self.folder, place)
        use_local_wheel(place / "requirements-device.txt")
        return place

    def seconds_until(
        self, condition: Callable[[list[str]], bool], limit: float = PATIENCE
    ) -> float:
        """Until `condition` holds of the devices on line."""
        began = time.monotonic()
        while not condition(self.online()):
            assert time.monotonic() < began + limit, self.log(SERVER)[-4000:]
            time.sleep(0.2)
        return time.monotonic() - began

    def train(self, system: str, **changes: Any) -> dict[str, Any]:
        """The summary of a run of both devices in which nothing went wrong, its "seconds", and the
        "events" of its rounds."""
        began = time.monotonic()
        run = Run(self, f"{system}-{time.time_ns()}", SYSTEMS[system] | changes)
        try:
            summary = run.end(2 * PATIENCE)
        finally:
            run.stop()
        assert summary["status"] == "completed"
        assert summary["processes"] == {ORDINARY: 1, ON_TRIAL: 1}, run.output
        assert summary["rejected"] == 0, run.output
        return summary | {"seconds": time.monotonic() - began, "events": run.events("round")}


def commands(title: str, block: int = 0) -> str:
    """The commands of docs/deploy.md under the heading `title`, as a user would type them."""
    _, _, text = DOCS.read_text().partition(f"### {title}\n")
    text = re.split(r"^##", text, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)[block]


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """A command, and all that it starts, while the context lasts."""
    scratch = log.with_suffix(".tmp")
    scratch.mkdir()
    supervisor = [sys.executable, "-P", supervise.__file__, str(os.getpid()), str(scratch)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*supervisor, *command],
            env={**environment, "TMPDIR": str(scratch)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(supervise.GRACE_SECONDS + 30)
