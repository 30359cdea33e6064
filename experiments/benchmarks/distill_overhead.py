"""What a `flwr run` of the distill system costs beyond its SGD and distillation steps.

    python -m experiments.benchmarks.distill_overhead [--round-seconds 2 8] [--out FILE]

prints JSON. Everything is measured in one invocation on the same cores:

1. *Run*: `flwr run` (a SuperLink of its own, Ray, real clock, variant async-continuous) with one
   SuperNode, whose process trains the three participants one after the other, and the distillation
   server's process; one thread each. Its *steady state* are the rounds after the first three.
2. *Bare loop*, after the run: two processes at the same time, one thread each, which do as many
   steps of local training and of reverse distillation as the run did in its steady state, in plain
   PyTorch (ordinary parameters, torch.optim) with the same models, batch sizes and augmentation;
   no averaging, no messages, no files, no evaluation. (The run evaluates both models every round,
   on 100 images.)

ratio = seconds of the run's steady state / seconds of the bare loop until both of its processes
have ended; the aim is at most 1.05 for rounds of two seconds and longer. clients and worker look at
each side alone, as seconds a step. cpu.ratio gives the same of processor seconds, those of all
processes of the run. gap_seconds is what a round takes beyond the training in it: averaging,
checkpoint, and Flower's way to the clients and back.

null_round: the duration of rounds with one step on two images. startup: seconds of each phase from
nothing to the end of the first round. memory: the largest sum over the run's processes.
"""

import argparse
import json
import math
import os
import shlex
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from experiments.benchmarks.bare_loop import bare
from experiments.benchmarks.process_tree import Process, processes
from experiments.flower_runs import flower_run, hardware, say
from fl_app.config import Value
from fl_app.errors import EdgeFlError
from fl_app.launch.superlink import Link, local_superlink
from fl_app.record.metrics import Event, of_kind
from fl_app.record.run_dir import RunDirectory

WARM_UP_ROUNDS = 3
_MEMORY_SECONDS = 3.0  # between two looks at memory, which cost some processor time
_CALIBRATION_STEPS = 100
_MEBIBYTE = 2**20

SETTINGS: dict[str, Value] = {
    "clock": "real",
    "distill.variant": "async-continuous",
    "participants": 3,
    "evaluate-examples": 100,
}
NULL_ROUND: dict[str, Value] = {"local-steps": 1, "batch-size": 2}


class Sampler:
    """Looks at a run's processes, all below this one; give it to `flower_run` as `watch`."""

    def __init__(self) -> None:
        self._next_memory = 0.0
        self.cpu: list[tuple[float, dict[str, float]]] = []  # (epoch s, seconds so far by name)
        self.starts: dict[str, float] = {}  # when the first process of each name started
        self.peak: dict[str, Any] = {"pss": 0, "rss": 0}
        self._ended: dict[str, float] = defaultdict(float)
        self._last: dict[int, Process] = {}

    def __call__(self, _run: RunDirectory | None) -> None:
        now = time.time()
        memory = now >= self._next_memory
        if memory:
            self._next_memory = now + _MEMORY_SECONDS
        alive = {process.pid: process for process in processes(os.getpid(), memory)}
        for pid, process in self._last.items():
            if pid not in alive:
                self._ended[process.name] += process.cpu
        self._last = alive
        used = defaultdict(float, self._ended)
        for process in alive.values():
            used[process.name] += process.cpu
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

    def between(self, start: float, end: float) -> dict[str, float]:
        """Processor seconds used from `start` to `end` (epoch s), by name of process."""
        first = _nearest(self.cpu, start)
        return {name: used - first.get(name, 0.0) for name, used in _nearest(self.cpu, end).items()}


def _nearest(samples: Sequence[tuple[float, Any]], moment: float) -> Any:
    return min(samples, key=lambda sample: abs(sample[0] - moment))[1]


# -- reading a run ----------------------------------------------------------------------------


def steady_state(events: Sequence[Event], warm_up: int = WARM_UP_ROUNDS) -> dict[str, Any]:
    """What a run did after its first `warm_up` rounds.

    start, end: seconds on the run's clock; wall: between them; rounds; jobs; worker_steps:
    distillation steps, interpolated between publications; durations: of each round; gaps: of each
    round, what was not training (one host trains one participant after the other).
    """
    times = {event["round"]: event["t"] for event in of_kind(events, "round")}
    last = max(times)
    if last <= warm_up:
        raise ValueError(f"{last} rounds are not more than the {warm_up} that do not count")
    counted = range(warm_up + 1, last + 1)
    jobs = [job for job in of_kind(events, "job") if job["round"] in counted]
    training: dict[int, float] = defaultdict(float)
    for job in jobs:
        training[job["round"]] += job["t_upload"] - job["t_compute"]
    durations = [times[number] - times[number - 1] for number in counted]
    start, end = times[warm_up], times[last]
    return {
        "start": start,
        "end": end,
        "wall": end - start,
        "rounds": len(durations),
        "jobs": len(jobs),
        "training": sum(training.values()),
        "worker_steps": _steps_at(events, end) - _steps_at(events, start),
        "durations": durations,
        "gaps": [d - training[number] for number, d in zip(counted, durations, strict=True)],
    }


def _steps_at(events: Sequence[Event], t: float) -> float:
    """Distillation steps done at `t`, linearly inside each segment."""
    steps = 0.0
    for segment in of_kind(events, "segment"):
        length = segment["t_end"] - segment["t_start"]
        share = (t - segment["t_start"]) / length if length > 0 else 1.0
        steps += segment["steps"] * min(1.0, max(0.0, share))
    return steps


def epoch_of_run(run: RunDirectory) -> float:
    """When t_wall was zero: the run's environment is written once, then the clock starts."""
    return (run.path / "environment.json").stat().st_mtime


def startup(run: RunDirectory, sampler: Sampler, began: float, ready: float) -> dict[str, float]:
    """Seconds of the phases from nothing to the end of the first round, in their order.

    The distillation server and Ray start side by side.
    """
    events = run.events()
    first = next(event for event in of_kind(events, "round") if event["round"] == 1)
    moments = {
        "SuperLink up": ready,
        "run submitted, simulation process started": sampler.starts["ServerApp and simulation"],
        "ServerApp imported, configuration and data checked": epoch_of_run(run),
        "distillation server's process started": sampler.starts["distillation server"],
        "Ray's actors started": sampler.starts["clients"],
        "everybody ready": epoch_of_run(run) + _offset(events),
        "first round": epoch_of_run(run) + first["t_wall"],
    }
    phases, before = {}, began
    for name, moment in sorted(moments.items(), key=lambda item: item[1]):
        phases[name] = moment - before
        before = moment
    return {
        **phases,
        "until the first round has ended": before - began,
        "of which are training": median(steady_state(events)["durations"]),
    }


# -- measuring --------------------------------------------------------------------------------


def calibrate(values: dict[str, Value], round_seconds: float) -> int:
    """Local steps with which the participants' training takes `round_seconds` together."""
    trial = bare(values, _CALIBRATION_STEPS, _CALIBRATION_STEPS)
    seconds_a_step = trial["clients"] / _CALIBRATION_STEPS
    return max(1, round(round_seconds / int(values["participants"]) / seconds_a_step))


def measure_run(
    link: Link, values: dict[str, Value], rounds: int, began: float
) -> tuple[RunDirectory, Sampler, dict[str, float]]:
    """One `flwr run` of `rounds` rounds that count, and its start-up counted from `began`."""
    sampler, submitted = Sampler(), time.time()
    values = {**values, "num-server-rounds": rounds + WARM_UP_ROUNDS}
    say(f"{values['name']}: flwr run, {values['num-server-rounds']} rounds")
    run = flower_run(link, values, 1, sampler)
    return run, sampler, startup(run, sampler, began, submitted)


def against_bare(run: RunDirectory, sampler: Sampler, values: dict[str, Value]) -> dict[str, Any]:
    """The steady state of a run beside the bare loop that does the same steps, which runs now."""
    state = steady_state(run.events())
    client_steps = state["jobs"] * int(values["local-steps"])
    say(f"{run.name}: bare loop")
    loop = bare(values, client_steps, round(state["worker_steps"]))
    offset = epoch_of_run(run) + _offset(run.events())
    used = sampler.between(offset + state["start"], offset + state["end"])
    total = sum(used.values())
    wall = state["wall"]
    return {
        "local_steps": values["local-steps"],
        "rounds": state["rounds"],
        "round_seconds": mean(state["durations"]),
        "client_steps": client_steps,
        "worker_steps": round(state["worker_steps"]),
        "run_seconds": wall,
        "bare_seconds": loop["wall"],
        "ratio": wall / loop["wall"],
        "clients": _side(wall, loop["clients"], client_steps),
        "worker": _side(wall, loop["distillation"], state["worker_steps"]),
        "training_seconds_a_step": state["training"] / client_steps,
        "gap_seconds": {"median": median(state["gaps"]), "max": max(state["gaps"])},
        "cpu": {
            "run": total,
            "bare": loop["cpu"],
            "ratio": total / loop["cpu"],
            "run_by_process": used,
        },
    }


def _side(wall: float, bare_seconds: float, steps: float) -> dict[str, float]:
    return {
        "seconds_a_step": wall / steps,
        "bare_seconds_a_step": bare_seconds / steps,
        "ratio": wall / bare_seconds,
    }


def _offset(events: Sequence[Event]) -> float:
    """t_wall minus t: the run's clock starts when everything is ready."""
    return median(event["t_wall"] - event["t"] for event in of_kind(events, "round"))


def _memory(peak: dict[str, Any]) -> dict[str, Any]:
    return {
        "pss_mib": round(peak["pss"] / _MEBIBYTE),
        "rss_mib": round(peak["rss"] / _MEBIBYTE),
        "processes": peak["processes"],
        "pss_mib_by_process": {k: round(v / _MEBIBYTE) for k, v in peak["by_name"].items()},
    }


def measure_null_round(link: Link, values: dict[str, Value], rounds: int) -> dict[str, Any]:
    """Rounds in which there is next to nothing to train."""
    say(f"flwr run: {rounds} null rounds")
    rounds += WARM_UP_ROUNDS
    values = {**values, **NULL_ROUND, "name": "null-rounds", "num-server-rounds": rounds}
    run = flower_run(link, values, 1)
    durations = sorted(steady_state(run.events())["durations"])
    return {
        "rounds": len(durations),
        "median_seconds": median(durations),
        "mean_seconds": mean(durations),
        "p90_seconds": durations[int(0.9 * len(durations))],
    }


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--round-seconds", type=float, nargs="+", default=[2.0])
    parser.add_argument("--rounds", type=int, default=12, help="rounds that count")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each length")
    parser.add_argument("--null-rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, help="write the JSON to this file too")
    arguments = parser.parse_args(words)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        result = measure(arguments)
    except EdgeFlError as error:
        print(f"distill_overhead: {error}", file=sys.stderr)
        return 1
    command = shlex.join(["python", "-m", "experiments.benchmarks.distill_overhead", *words])
    text = json.dumps(_rounded({"command": command, **result}), indent=1)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All of it. Raises EdgeFlError when a run fails."""
    lengths: list[dict[str, Any]] = []
    startups, peaks, machine = [], [], {}
    with tempfile.TemporaryDirectory(prefix="edge-fl-benchmark-") as directory:
        values: dict[str, Value] = {**SETTINGS, "output": directory}
        steps = {s: calibrate(values, s) for s in arguments.round_seconds}
        began = time.time()
        with local_superlink() as link:
            for seconds, local_steps in steps.items():
                repeats = []
                for repeat in range(1, arguments.repeats + 1):
                    name = f"rounds-of-{seconds:g}-s-{repeat}"
                    given = {**values, "local-steps": local_steps, "name": name}
                    run, sampler, phases = measure_run(link, given, arguments.rounds, began)
                    repeats.append(against_bare(run, sampler, given))
                    startups.append(phases)
                    peaks.append(sampler.peak)
                    machine, began = hardware(run.environment()), time.time()
                ratio = mean(repeat["ratio"] for repeat in repeats)
                lengths.append({"aimed_at": seconds, "ratio": ratio, "repeats": repeats})
            null_round = measure_null_round(link, values, arguments.null_rounds)
    return {
        "hardware": machine,
        "settings": SETTINGS,
        "steady_state": lengths,
        "null_round": null_round,
        "startup": startups[0],  # the only one with the start of the SuperLink
        "memory": _memory(max(peaks, key=lambda peak: peak["pss"])),
    }


def _rounded(value: Any) -> Any:
    """Four significant digits: more than the measurement has."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
