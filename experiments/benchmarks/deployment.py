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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from experiments.benchmarks import distill_overhead
from experiments.benchmarks.bare_loop import bare_nodes
from experiments.benchmarks.consensus_events import steady_state
from experiments.benchmarks.consensus_overhead import random_images
from experiments.benchmarks.device_runs import DEVICES, DeviceRuns, Values, events_of
from experiments.benchmarks.exchange import measure_exchange
from experiments.benchmarks.output import benchmark
from experiments.benchmarks.rejoin import REJOIN, measure_rejoin
from experiments.benchmarks.usage import Usage
from experiments.flower_runs import hardware, say
from fl_app.config import Value
from fl_app.models import MODELS
from fl_app.record.environment import describe
from fl_app.record.metrics import Event, of_kind
from fl_app.record.run_dir import RunDirectory

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
_TRIAL_STEPS = 40
_WARM_UP_ROUNDS = 2
_SETTLE_SECONDS = 5.0  # from being on line to being idle


# -- the parts --------------------------------------------------------------------------------


def measure_exchanges(runs: DeviceRuns) -> dict[str, Any]:
    found = {}
    for megabytes in runs.arguments.sizes:
        say(f"exchanges of {megabytes:g} MB")
        place = runs.directory / f"exchange-{megabytes:g}"
        found[f"{megabytes:g} MB"] = measure_exchange(place, megabytes, runs.arguments.exchanges)
    return {"exchange": found}


def measure_rounds(runs: DeviceRuns) -> dict[str, Any]:
    many, few = runs.arguments.rounds, max(1, runs.arguments.rounds // 3)

    def values(name: str, rounds: int, **changes: Value) -> Values:
        return runs.values(name, ROUNDS, changes, {"num-server-rounds": rounds + _WARM_UP_ROUNDS})

    with runs.site("rounds", DEVICES) as site:
        sessions = runs.run(site, values("rounds-sessions", many))
        plain = runs.run(site, values("rounds-plain", few, sessions="off"))
    simulated = runs.simulate(values("rounds-simulated", many), len(DEVICES))
    made = {"sessions": sessions, "flower_messages": plain, "simulation": simulated}
    return {"rounds": {name: round_seconds(run.events()) for name, run in made.items()}}


def round_seconds(events: Sequence[Event]) -> dict[str, float]:
    """Of the rounds after the first ones."""
    durations = distill_overhead.steady_state(events, _WARM_UP_ROUNDS)["durations"]
    return {"rounds": len(durations), "median": median(durations), "max": max(durations)}


def measure_windows(runs: DeviceRuns) -> dict[str, Any]:
    images = runs.directory / "noise.npz"
    random_images(images)
    data: Values = {"dataset": "files", "data-path": str(images)}
    plan = runs.values("windows", WINDOWS, data)
    trial = bare_nodes(plan, 2, _TRIAL_STEPS)["wall"] / _TRIAL_STEPS
    window = max(12, round(runs.arguments.window_seconds / trial))

    def values(name: str, windows: int, **changes: Value) -> Values:
        steps = {"consensus.window": window, "consensus.steps": window * (1 + windows)}
        return runs.values(name, WINDOWS, data, steps, changes)

    pair, usage = DEVICES[:2], Usage()
    with runs.site("windows", pair) as site:
        time.sleep(_SETTLE_SECONDS)
        usage.look(site)
        time.sleep(runs.arguments.idle_seconds)
        usage.look(site)
        idle, usage = usage.found(), Usage()
        windows = runs.arguments.windows

        def watch(run: RunDirectory) -> None:
            if 1 <= len(of_kind(events_of(run), "round")) <= windows:  # after the first, at work
                usage.look(site)

        run = runs.run(site, values("windows", windows), watch)
    say("the same steps in a bare loop")
    bare = bare_nodes(plan, 2, window)["wall"] / window
    simulated = runs.simulate(values("windows-simulated", 1), 2)
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


def measure_models(runs: DeviceRuns) -> dict[str, Any]:
    found = {}
    for name in MODELS:
        say(f"models: {name}")
        command = [sys.executable, "-m", "experiments.benchmarks.device_model", name]
        found[name] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return {"models": found}


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


PARTS: dict[str, Callable[[DeviceRuns], dict[str, Any]]] = {
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
        runs = DeviceRuns(Path(directory), arguments)
        for name in arguments.only:
            found |= PARTS[name](runs)
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
