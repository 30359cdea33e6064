"""Run a deployment on this machine for hours while its devices die and return.

    make soak HOURS=2                         # python -m experiments.soak --hours 2 --out DIRECTORY
    python -m experiments.soak --judge DIRECTORY    # table and plot of what is there so far

Everything is real (`fl_app.deploy.loopback`): SuperLink, SuperNodes, mail router, TLS. Runs of the
distill system follow each other, each with a round every --pace seconds, of the smallest models, so
that all of it takes a few hundredths of a core. At random a device loses its power for a while, or
one of its processes or the mail router is killed. Every --sample seconds the memory, file handles
and threads of every process and the size of the folders go to samples.csv; at the end (Ctrl-C is
one, too) soak.md has the slope of each and the verdict, and soak.png the lines. Exit code 1 if one
grows faster than its bound.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from experiments.benchmarks.process_tree import process
from experiments.soak.verdict import Sample, figure, lines, read, table, write
from fl_app.config import Value
from fl_app.deploy.loopback import Loopback
from fl_app.launch.signals import Stopped, stop
from fl_app.launch.supervise import heed
from fl_app.record.figures import to_png
from strategies.site import SERVER

SAMPLES, EVENTS = "samples.csv", "events.txt"
DEVICES = ("pi-1", "pi-2", "pi-3")
RUN: Mapping[str, Value] = {
    "clock": "real",
    "participants": len(DEVICES),
    "min-participants": 1,
    "link-patience": 20.0,
    "small-width": 4,
    "large-width": 4,
    "local-steps": 1,
    "batch-size": 16,
    "proxy-examples": 100,
    "evaluate-examples": 50,
    "distill.variant": "async-round",
    "distill.references": "",
    "distill.reverse-steps": 1,
    "distill.batch-size": 16,
}
_MEBIBYTE = 2**20
_POLL_SECONDS = 1.0
_DARK_SECONDS = (5.0, 120.0)  # that a device without power stays so


class Soak:
    """A deployment in `place`, what befalls it, and the notes about it in `out`."""

    def __init__(self, site: Loopback, out: Path, options: argparse.Namespace) -> None:
        self._site, self._out, self._options = site, out, options
        self._random = random.Random(options.seed)
        self._began = time.monotonic()
        self._run: subprocess.Popen[bytes] | None = None
        self._runs = 0
        self._dark: dict[str, float] = {}  # devices without power, and when they get it back
        self._next_accident = self._pause()

    def go(self) -> None:
        """Until the time is over."""
        due = 0.0
        try:
            while (now := self._now()) < self._options.hours * 3600:
                self._keep_running()
                self._give_power_back(now)
                if now >= self._next_accident:
                    self._accident(now)
                    self._next_accident = now + self._pause()
                if now >= due:
                    write(self._out / SAMPLES, self._look(now))
                    due += self._options.sample
                time.sleep(_POLL_SECONDS)
        finally:
            if self._run is not None:
                self._run.terminate()
                self._run.wait()

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _pause(self) -> float:
        return self._random.expovariate(1 / self._options.accident)

    def _note(self, text: str) -> None:
        with (self._out / EVENTS).open("a") as file:
            file.write(f"{self._now() / 60:.1f} min: {text}\n")

    def _keep_running(self) -> None:
        """Start the next run when there is none."""
        if self._run is not None:
            if self._run.poll() is None:
                return
            self._note(f"run {self._runs} ended with exit code {self._run.returncode}")
        self._runs += 1
        rounds = max(1, round(self._options.run_minutes * 60 / self._options.pace))
        pace = {"round-seconds": self._options.pace, "num-server-rounds": rounds}
        words = [f"{key}={value}" for key, value in {**RUN, **pace}.items()]
        command = [sys.executable, "-m", "fl_app.cli", "run", "--superlink", self._site.connection]
        with (self._out / "runs.log").open("ab") as log:
            self._run = subprocess.Popen(
                [*command, *words], env=self._site.environment, stdout=log, stderr=log
            )
        self._note(f"run {self._runs} of {rounds} rounds began")

    def _give_power_back(self, now: float) -> None:
        for name in [name for name, when in self._dark.items() if now >= when]:
            del self._dark[name]
            self._site.start(name)
            self._note(f"{name} has power again")

    def _accident(self, now: float) -> None:
        """One thing that happens in weeks."""
        lit = [name for name in DEVICES if name not in self._dark]
        victim = self._random.choice(DEVICES)
        kind = self._random.choice(["power", "power", "session", "clientapp", "router"])
        if kind == "router":
            self._kill(SERVER, "strategies.link.router", "mail router")
        elif victim not in lit:
            return
        elif kind == "power":
            self._site.kill(victim)
            self._dark[victim] = now + self._random.uniform(*_DARK_SECONDS)
            self._note(f"{victim} lost its power")
        elif kind == "session":
            self._kill(victim, "client_apps.session_worker", "working process")
        else:
            self._kill(victim, "flwr-clientapp", "ClientApp")

    def _kill(self, machine: str, program: str, called: str) -> None:
        killed = 0
        for pid in self._site.pids(machine, program):
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
                killed += 1
        self._note(f"{machine}: killed {called} ({killed})")

    def _look(self, now: float) -> Iterator[Sample]:
        """All processes, and the folders that grow."""
        for name in (SERVER, *(name for name in DEVICES if name not in self._dark)):
            yield from _samples(now, name, self._site.pids(name))
        run = [self._run.pid] if self._run is not None else []
        yield from _samples(now, "user", [*run, os.getpid()])
        for folder in sorted(self._site.directory.iterdir()):
            size = sum(_size(path) for path in (folder, *folder.rglob("*")))
            yield Sample(now, "disk", folder.name, 0, size / _MEBIBYTE, 0, 0, 0.0)


def _samples(now: float, machine: str, pids: Iterable[int]) -> Iterator[Sample]:
    """Of those that are there: some have ended since they were listed, or are waited for by their
    parents, and then have no files or no memory any more."""
    for pid in pids:
        with suppress(OSError, LookupError):
            yield _sample(now, machine, pid)


def _sample(now: float, machine: str, pid: int) -> Sample:
    found, place = process(pid), Path("/proc", str(pid))
    status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines())
    # Not what it has of files: the kernel takes that back where memory is short.
    memory = int(status["RssAnon"].split()[0]) / 1024
    handles, threads = len(os.listdir(place / "fd")), int(status["Threads"])
    return Sample(now, machine, found.name, pid, memory, handles, threads, found.cpu)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def judge(out: Path) -> int:
    """Write table and plot of the samples in `out`; 1 if something grows."""
    samples, events = read(out / SAMPLES), (out / EVENTS).read_text().splitlines()
    text = table(samples, events)
    (out / "soak.md").write_text(text)
    (out / "soak.png").write_bytes(to_png(figure(samples)))
    print(text)
    return int(any(not line.flat for line in lines(samples)))


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=Path("soak"), metavar="DIRECTORY")
    parser.add_argument("--judge", type=Path, metavar="DIRECTORY", help="of an earlier soak, only")
    parser.add_argument("--pace", type=float, default=15.0, help="seconds a round")
    parser.add_argument("--run-minutes", type=float, default=30.0, help="of each run")
    parser.add_argument("--accident", type=float, default=300.0, help="mean seconds between two")
    parser.add_argument("--sample", type=float, default=60.0, help="seconds between two looks")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.judge:
        return judge(options.judge)
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    for name in (SAMPLES, EVENTS):
        (out / name).unlink(missing_ok=True)
    heed(stop)
    with tempfile.TemporaryDirectory(prefix="edge-fl-soak-") as place:
        environment = {"EDGE_FL_HOME": f"{place}/home", "OMP_NUM_THREADS": "1"}
        options_of_site = {"environment": environment, "timeout": 600.0}
        try:
            with Loopback(Path(place), DEVICES, **options_of_site) as site:
                Soak(site, out, options).go()
        except Stopped as stopped:
            print(f"soak: {stopped}", file=sys.stderr)
    return judge(out)


if __name__ == "__main__":
    sys.exit(main())
