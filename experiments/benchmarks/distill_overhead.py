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
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from statistics import mean, median
from typing import Any

from experiments.benchmarks.bare_loop import bare
from experiments.benchmarks.output import benchmark
from experiments.benchmarks.watching import Sampler, epoch_of_run, phases
from experiments.flower_runs import flower_run, hardware, say
from fl_app.config import Value
from fl_app.launch.superlink import Link, local_superlink
from fl_app.record.metrics import Event, of_kind
from fl_app.record.run_dir import RunDirectory

WARM_UP_ROUNDS = 3
_CALIBRATION_STEPS = 100

SETTINGS: dict[str, Value] = {
    "clock": "real",
    "distill.variant": "async-continuous",
    "participants": 3,
    "evaluate-examples": 100,
}
NULL_ROUND: dict[str, Value] = {"local-steps": 1, "batch-size": 2}


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
    found = phases(began, moments)
    return {
        **found,
        "until the first round has ended": sum(found.values()),
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--round-seconds", type=float, nargs="+", default=[2.0])
    parser.add_argument("--rounds", type=int, default=12, help="rounds that count")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each length")
    parser.add_argument("--null-rounds", type=int, default=40)
    return benchmark("distill_overhead", parser, measure, words)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All of it. Raises EdgeFlError when a run fails."""
    lengths: list[dict[str, Any]] = []
    startups, samplers, machine = [], [], {}
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
                    samplers.append(sampler)
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
        "memory": max(samplers, key=lambda sampler: sampler.peak["pss"]).memory(),
    }


if __name__ == "__main__":
    sys.exit(main())
