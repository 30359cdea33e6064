"""What real devices cost: processes on this machine that talk as machines do, over TLS.

    python -m experiments.benchmarks.deployment [--only exchange,windows] [--out FILE]

prints JSON. Nothing else should run on the machine meanwhile. `aims` has what it is for: each aim
beside what was measured.

exchange: mail between two processes through the mail router, over mutual TLS (see `exchange`).
rounds: seconds of a distill round of three devices: with sessions (a process a device for the whole
    run), with Flower's own messages (a process for each), and in a simulation of three hosts; the
    same work, after the first rounds.
windows: consensus windows of about a minute, two devices that exchange with each other, a CNN of
    0.28 M parameters on images of 3x32x32. overhead = (window - compute) / window, where compute is
    what the same steps take in a bare loop: two processes that do plain SGD at the same time, on
    the same data, without exchange, messages or files. The window is counted from the end of the
    one before it to its own end, less evaluation; gap_seconds is what of it is not work in a
    device: the way of its orders and answers, the server's checkpoint; below 0 where one device
    works on the next window already. The same in a simulation.
processes: of a device and of the server, processor seconds a second (1 = a core) and resident
    memory of each program: idle (on line, no run), and busy in a window.
models: what training a model needs of a device, one process for each (see `device_model`).
rejoin: a device of three in a run of short windows loses its session's process, Flower's own
    ClientApp process, its SuperNode, or its power, and is left to itself (its power comes back at
    once). Seconds until it has done a whole window that began after that; heard: until the server
    hears from its new process, if it has one.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from experiments.benchmarks import distill_overhead
from experiments.benchmarks.bare_loop import bare_nodes
from experiments.benchmarks.consensus_events import steady_state
from experiments.benchmarks.consensus_overhead import random_images
from experiments.benchmarks.exchange import measure_exchange
from experiments.benchmarks.output import benchmark
from experiments.benchmarks.usage import Usage
from experiments.flower_runs import flower_run, hardware, say
from fl_app.config import Value
from fl_app.deploy.loopback import Loopback
from fl_app.launch.superlink import local_superlink, tail
from fl_app.models import MODELS
from fl_app.record.environment import describe
from fl_app.record.metrics import Event, of_kind
from fl_app.record.run_dir import METRICS, RunDirectory
from strategies.errors import EdgeFlError

Values = dict[str, Value]
DEVICES = ("pi-1", "pi-2", "pi-3")
VICTIM = "pi-2"
# What is killed ("" = everything, as by a power cut), and whether the work is interrupted by it.
ACCIDENTS = {
    "session_process": ("client_apps.session_worker", True),
    "clientapp_process": ("flwr-clientapp", False),
    "supernode": ("flower-supernode", False),
    "power_cut": ("", True),
}
ROUNDS: Values = {
    "clock": "real",
    "participants": 3,
    "distill.variant": "async-continuous",
    "evaluate-examples": 100,
}
WINDOWS: Values = {
    "mode": "consensus",
    "clock": "real",
    "participants": 2,
    "partition": "iid",
    "small-model": "cnn6",
    "small-width": 32,
    "evaluate-examples": 100,
    "consensus.topology": "chain",
    "consensus.references": "",
}
REJOIN: Values = {
    "mode": "consensus",
    "clock": "real",
    "participants": 3,
    "link-patience": 20.0,
    "evaluate-examples": 100,
    "consensus.references": "",
    "consensus.window": 100,
    "consensus.steps": 1_000_000,  # until it is stopped
}
_TRIAL_STEPS = 40
_WARM_UP_ROUNDS = 2
_POLL_SECONDS = 0.1
_WATCH_SECONDS = 1.0  # between two looks at a run whose processor time is measured
_SETTLE_SECONDS = 5.0  # from being on line to being idle
_LONGEST = 300.0  # that a device is waited for


class Bench:
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


def _events(run: RunDirectory) -> list[Event]:
    """Of a run that may not have begun."""
    return run.events() if (run.path / METRICS).exists() else []


# -- the parts --------------------------------------------------------------------------------


def measure_exchanges(bench: Bench) -> dict[str, Any]:
    found = {}
    for megabytes in bench.arguments.sizes:
        say(f"exchanges of {megabytes:g} MB")
        place = bench.directory / f"exchange-{megabytes:g}"
        found[f"{megabytes:g} MB"] = measure_exchange(place, megabytes, bench.arguments.exchanges)
    return {"exchange": found}


def measure_rounds(bench: Bench) -> dict[str, Any]:
    many, few = bench.arguments.rounds, max(1, bench.arguments.rounds // 3)

    def values(name: str, rounds: int, **changes: Value) -> Values:
        return bench.values(name, ROUNDS, changes, {"num-server-rounds": rounds + _WARM_UP_ROUNDS})

    with bench.site("rounds", DEVICES) as site:
        sessions = bench.run(site, values("rounds-sessions", many))
        plain = bench.run(site, values("rounds-plain", few, sessions="off"))
    simulated = bench.simulate(values("rounds-simulated", many), len(DEVICES))
    runs = {"sessions": sessions, "flower_messages": plain, "simulation": simulated}
    return {"rounds": {name: round_seconds(run.events()) for name, run in runs.items()}}


def round_seconds(events: Sequence[Event]) -> dict[str, float]:
    """Of the rounds after the first ones."""
    durations = distill_overhead.steady_state(events, _WARM_UP_ROUNDS)["durations"]
    return {"rounds": len(durations), "median": median(durations), "max": max(durations)}


def measure_windows(bench: Bench) -> dict[str, Any]:
    images = bench.directory / "noise.npz"
    random_images(images)
    data: Values = {"dataset": "files", "data-path": str(images)}
    plan = bench.values("windows", WINDOWS, data)
    trial = bare_nodes(plan, 2, _TRIAL_STEPS)["wall"] / _TRIAL_STEPS
    window = max(12, round(bench.arguments.window_seconds / trial))

    def values(name: str, windows: int, **changes: Value) -> Values:
        steps = {"consensus.window": window, "consensus.steps": window * (1 + windows)}
        return bench.values(name, WINDOWS, data, steps, changes)

    pair, usage = DEVICES[:2], Usage()
    with bench.site("windows", pair) as site:
        time.sleep(_SETTLE_SECONDS)
        usage.look(site)
        time.sleep(bench.arguments.idle_seconds)
        usage.look(site)
        idle, usage = usage.found(), Usage()
        windows = bench.arguments.windows

        def watch(run: RunDirectory) -> None:
            if 1 <= len(of_kind(_events(run), "round")) <= windows:  # after the first, at work
                usage.look(site)

        run = bench.run(site, values("windows", windows), watch)
    say("the same steps in a bare loop")
    bare = bare_nodes(plan, 2, window)["wall"] / window
    simulated = bench.simulate(values("windows-simulated", 1), 2)
    found = {
        "steps_a_window": window,
        "compute_ms_a_step": 1000 * bare,
        "devices": against_compute(steady_state(run.events(), 1), 2, bare),
        "simulation": against_compute(steady_state(simulated.events(), 1), 2, bare),
    }
    return {"windows": found, "processes": {"idle": idle, "busy": usage.found()}}


def against_compute(state: Mapping[str, Any], nodes: int, step_seconds: float) -> dict[str, float]:
    """Windows beside what their steps take alone. state: see `steady_state`; step_seconds: of the
    bare loop, in which as many nodes work at the same time."""
    compute = state["steps"] / nodes * step_seconds
    return {
        "windows": state["windows"],
        "window_seconds": state["seconds"] / state["windows"],
        "compute_seconds": compute / state["windows"],
        "overhead": (state["seconds"] - compute) / state["seconds"],
        "gap_seconds": (state["seconds"] - state["in_hosts"]) / state["windows"],
        "mails": state["messages"],
    }


def measure_models(bench: Bench) -> dict[str, Any]:
    found = {}
    for name in MODELS:
        say(f"models: {name}")
        command = [sys.executable, "-m", "experiments.benchmarks.device_model", name]
        found[name] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return {"models": found}


def measure_rejoin(bench: Bench) -> dict[str, Any]:
    values = bench.values("rejoin", REJOIN)

    found: dict[str, dict[str, float]] = {}
    with bench.site("rejoin", DEVICES) as site:
        process, run = bench.start(site, values), bench.record(values)

        def wait(condition: Callable[[list[Event]], bool]) -> float:
            """When it holds of the run's events (time.monotonic)."""
            deadline = time.monotonic() + _LONGEST
            while not condition(_events(run)):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise EdgeFlError(f"{VICTIM} did not come back:\n{bench.said(values)}")
                time.sleep(_POLL_SECONDS)
            return time.monotonic()

        def accident(program: str, renewed: bool) -> dict[str, float]:
            so_far = len(_events(run))
            wait(lambda events: len(of_kind(events[so_far:], "nodes")) >= 2)
            before, began = run.events(), time.monotonic()
            _happen(site, program)
            heard = wait(lambda events: bool(returns(events, before))) if renewed else 0.0
            back = wait(lambda events: worked_again(events, before, renewed)) - began
            return {"seconds": back} | ({"heard": heard - began} if renewed else {})

        try:
            for name, (program, renewed) in ACCIDENTS.items():
                say(f"rejoin: {name}")
                found[name] = accident(program, renewed)
        finally:
            process.terminate()
            process.wait()
    return {"rejoin": found}


def _happen(site: Loopback, program: str) -> None:
    """Kill the victim's processes of a program, or, without one, all of them, and start it."""
    for pid in site.pids(VICTIM, program) if program else ():
        os.kill(pid, signal.SIGKILL)
    if not program:
        site.kill(VICTIM)
        site.start(VICTIM)


def returns(events: Sequence[Event], before: Sequence[Event]) -> list[int]:
    """Where in `events`, after those of `before`, the victim is back with a new process."""
    words = f"{VICTIM} is back with a new process"
    return [
        position
        for position, event in enumerate(events)
        if position >= len(before) and event["event"] == "warning" and event["message"] == words
    ]


def worked_again(events: Sequence[Event], before: Sequence[Event], renewed: bool) -> bool:
    """Whether the victim has done a window that began after the events `before`; renewed: with a
    new process."""
    start = len(before)
    if renewed:
        found = returns(events, before)
        if not found:
            return False
        start = found[0]
    # That after the last one may be done already but for others' work, and the next one begun.
    begun = max((event["round"] for event in of_kind(before, "nodes")), default=0) + 2
    return any(
        event["round"] > begun and event["accuracy"][DEVICES.index(VICTIM)] is not None
        for event in of_kind(events[start:], "nodes")
    )


def aims(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is aimed at beside what was measured, of the parts that were."""
    rows: list[tuple[str, str, float, float]] = []
    by_size = sorted(found.get("exchange", {}).items(), key=lambda item: float(item[0].split()[0]))
    smallest = by_size[0] if by_size else None
    if smallest:
        rows.append((f"exchange of {smallest[0]}", "ms", smallest[1]["mail_ms"]["median"], 5.0))
    if "windows" in found:
        rows.append(("overhead of a window", "", found["windows"]["devices"]["overhead"], 0.05))
    limits = {"session_process": 15.0, "clientapp_process": 15.0}
    for name, measured in found.get("rejoin", {}).items():
        limit = limits.get(name, 75.0)
        rows.append((f"back at work: {name}", "s", measured["seconds"], limit))
    return [
        {"what": what, "unit": unit, "measured": value, "aim": aim, "met": value <= aim}
        for what, unit, value, aim in rows
    ]


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "exchange": measure_exchanges,
    "rounds": measure_rounds,
    "windows": measure_windows,
    "models": measure_models,
    "rejoin": measure_rejoin,
}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts that are asked for. Raises EdgeFlError when a run fails."""
    began, found = time.monotonic(), {}
    with tempfile.TemporaryDirectory(prefix="edge-fl-benchmark-") as directory:
        bench = Bench(Path(directory), arguments)
        for name in arguments.only:
            found |= PARTS[name](bench)
    return {
        "hardware": hardware(describe()),
        "aims": aims(found),
        **found,
        "settings": {"rounds": ROUNDS, "windows": WINDOWS, "rejoin": REJOIN},
        "seconds": time.monotonic() - began,
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = made.add_argument
    add("--only", type=_parts, default=list(PARTS), help=f"parts of {','.join(PARTS)}")
    add("--sizes", type=float, nargs="+", default=[1.2, 10.0], help="of exchanges, in MB")
    add("--exchanges", type=int, default=50, help="of each size")
    add("--rounds", type=int, default=12, help="that count; a third with Flower's own messages")
    add("--windows", type=int, default=2, help="that count, on devices")
    add("--window-seconds", type=float, default=60.0)
    add("--idle-seconds", type=float, default=10.0)
    return made


def _parts(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := set(names) - PARTS.keys():
        raise argparse.ArgumentTypeError(f"{sorted(unknown)} are not among {', '.join(PARTS)}")
    return names


def main(words: Sequence[str] | None = None) -> int:
    return benchmark("deployment", parser(), measure, words)


if __name__ == "__main__":
    sys.exit(main())
