"""What a `flwr run` of the consensus system costs beyond its SGD steps.

    python -m experiments.benchmarks.consensus_overhead [--only hosts,null] [--out FILE]

prints JSON. Everything is measured in one invocation on the same cores; nothing else should run on
the machine meanwhile. Eight nodes in a ring, K = 6, batch 32, a CNN of 0.28 M parameters with
GroupNorm on images of 3x32x32, virtual clock, windows of 180 steps (an epoch of a node that has an
eighth of CIFAR-10).

hosts: `flwr run` (a SuperLink of its own, Ray) with one and with two hosts of one thread each,
    against a *bare loop* that does the same SGD steps on the same data with the same augmentation,
    in as many processes: the gradient of a plain PyTorch model and SGD with momentum on one flat
    vector, in float32 whatever --precision the runs have; no exchange, no messages, no files. From
    the end of the run's first window on, run and loop have the cores in turn, four seconds each:
    the processes of the run are stopped while the loop goes on, so that what else happens to the
    machine meets both. The run's *steady state* are the windows after the first: the seconds from
    the end of the first to the end of the last, less those of evaluation and those in which it was
    stopped. ratio = these seconds / those of the loop until all its processes have ended. What is
    left out stands beside it: evaluation, start-up by phases, peak memory. window_gap_seconds: what
    of a window is not its hosts' work (Flower's way to them and back, the server's checkpoint).
arithmetic: what the algorithm itself takes of a step, in one process without Flower: share is that
    of step, message and receipt; beyond_sgd leaves out what SGD without any exchange takes there.
null: the cost without gradients, in one process in seconds of the processor. host: vectors of the
    model's size. host_of_many: a thousand nodes with a model that is next to nothing. flwr: a run
    of such a model, less the bare loop of the same: all of it, and the part of
    the hosts' windows. Per exchange of a node: a mail sent, one received, the steps in between.
engines: the gradients of the eight nodes by each engine, on a core, or on the GPU if there is one:
    gain is how many times as fast as one node after the other the fastest of the others is.
scale: a ring of a thousand nodes beside one of eight, one host, a smaller model: ratio is that of
    what a local step of a node takes in the hosts' windows of a `flwr run`. A node keeps so many
    vectors of the model's size, and adds so many to the process: without Flower and gradients, and
    (with its images) to the process that hosts it in the run.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from experiments.benchmarks.bare_loop import Loop, Work, at_once, node_loops, total
from experiments.benchmarks.consensus_events import WARM_UP_WINDOWS, startup, steady_state
from experiments.benchmarks.host_loop import arithmetic, engines, null
from experiments.benchmarks.output import benchmark, rounded
from experiments.benchmarks.turns import Turns
from experiments.benchmarks.watching import Sampler, epoch_of_run
from experiments.flower_runs import flower_run, hardware, say
from fl_app.config import Value, resolve
from fl_app.launch.superlink import Link, local_superlink
from fl_app.problem import problem_of
from fl_app.record.environment import describe
from strategies.arithmetic import ARITHMETICS
from strategies.problem import flat_model, pick_device
from strategies.randomness import rng

HOSTS = (1, 2)
ENGINE_ROUNDS = 20
TRAINING_IMAGES, TEST_IMAGES = 8000, 200
_MEBIBYTE = 2**20

Values = dict[str, Value]
SETTINGS: Values = {
    "mode": "consensus",
    "clock": "virtual",
    "participants": 8,
    "partition": "iid",
    "small-model": "cnn6",
    "small-width": 32,
    "evaluate-examples": 100,
    "consensus.topology": "ring",
    "consensus.interval": 6.0,
    "consensus.batch-size": 32,
    "consensus.window": 180,
    "consensus.augment": True,
    "consensus.settle": 0,
    "consensus.references": "",
}
# In one process without Flower a window has no cost of its own.
SHORT: Values = {"consensus.window": 60}
# Next to no model and data, so that what is left is the cost of everything else.
TINY: Values = {"small-width": 2, "consensus.batch-size": 1, "consensus.window": 600}
# A thousand nodes on one machine: fewer parameters, steps and images of each.
MANY: Values = {
    "small-width": 8,
    "consensus.batch-size": 8,
    "consensus.window": 12,
    "evaluate-examples": 20,
}


def random_images(path: Path) -> None:
    """Write a data set of noise in the size of CIFAR-10's images: no download, the same work."""
    generator = rng(0, "benchmark")
    arrays = {}
    for name, count in (("train", TRAINING_IMAGES), ("test", TEST_IMAGES)):
        arrays[f"x_{name}"] = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{name}"] = np.arange(count) % 10
    np.savez(path, **arrays)  # type: ignore[arg-type]


# -- measuring --------------------------------------------------------------------------------


class Bench:
    """A SuperLink, a directory for runs, and what the command line says."""

    def __init__(
        self, link: Link, values: Values, arguments: argparse.Namespace, began: float
    ) -> None:
        self.link, self.values, self.arguments = link, values, arguments
        self._began = began  # epoch s: when the SuperLink was started, for the first run
        self.startups: list[dict[str, float]] = []

    @property
    def windows(self) -> int:
        """How many of them count."""
        return self.arguments.windows

    def configuration(self, changes: Values, times: int = 1) -> Values:
        """With `times` as many windows that count as the command line says."""
        values = {**self.values, **changes}
        steps = (WARM_UP_WINDOWS + times * self.windows) * int(values["consensus.window"])
        return {**values, "consensus.steps": steps}

    def run(
        self, values: Values, hosts: int, work: Work = ()
    ) -> tuple[dict[str, Any], Sampler, list[Loop]]:
        """One `flwr run`, in turn with `work`: its steady state, who watched it, and the loops."""
        assert self.link.supervisor is not None
        root = self.link.supervisor.pid
        sampler, submitted = Sampler(root), time.time()
        say(f"{values['name']}: flwr run")
        with Turns(root, work, sampler) as turns:
            run = flower_run(self.link, values, hosts, turns)
            loops = turns.results()
        began, self._began = self._began or submitted, 0.0
        self.startups.append(startup(run, sampler, began, submitted))
        state = steady_state(run.events(), frozen=turns.frozen, zero=epoch_of_run(run))
        used = sampler.between(state["start"], state["end"])
        return {**state, "cpu": sum(used.values()), "cpu_by_process": used}, sampler, loops


def against_bare(bench: Bench, name: str, hosts: int, changes: Values) -> dict[str, Any]:
    """A run beside the bare loop that does the same steps."""
    values = bench.configuration({**changes, "name": name})
    steps = bench.windows * int(values["consensus.window"])
    plain: Values = {**values, "consensus.precision": "float32"}
    state, sampler, loops = bench.run(values, hosts, node_loops(plain, hosts, steps))
    loop = total(loops)
    return {
        "windows": state["windows"],
        "node_steps": state["steps"],
        "run_seconds": state["seconds"],
        "bare_seconds": loop["wall"],
        "ratio": state["seconds"] / loop["wall"],
        "ms_a_step": {
            "run": 1000 * hosts * state["seconds"] / state["steps"],
            "bare": 1000 * hosts * loop["wall"] / state["steps"],
        },
        "in_hosts_ratio": state["in_hosts"] / loop["wall"],
        "window_gap_seconds": (state["seconds"] - state["in_hosts"]) / state["windows"],
        "evaluation_seconds": state["evaluation"],
        "cpu": {
            "run": state["cpu"],
            "bare": loop["cpu"],
            "ratio": state["cpu"] / loop["cpu"],
            "run_by_process": state["cpu_by_process"],
        },
        "messages": state["messages"],
        "memory": sampler.memory(),
    }


def measure_hosts(bench: Bench) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {str(hosts): [] for hosts in HOSTS}
    for repeat in range(1, bench.arguments.repeats + 1):
        for hosts in HOSTS:
            run = against_bare(bench, f"hosts-{hosts}-{repeat}", hosts, {})
            found[str(hosts)].append(run)
    return {
        hosts: {"ratio": mean(run["ratio"] for run in repeats), "repeats": repeats}
        for hosts, repeats in found.items()
    }


def measure_arithmetic(bench: Bench) -> dict[str, Any]:
    """Of ours and others; SGD without any exchange is what all of them contain."""
    found: dict[str, Any] = {}
    for name in ("isolated", "gossip", "pdmm-isvr", "ecl"):
        say(f"arithmetic of {name}")
        values = bench.configuration({**SHORT, "consensus.algorithm": name})
        [found[name]] = at_once([(arithmetic, (values, bench.windows))])
    sgd = found["isolated"]["own"]
    for of in found.values():
        of["beyond_sgd"] = (of["own"] - sgd) / of["whole"]
    return found


def measure_null(bench: Bench) -> dict[str, Any]:
    [host] = at_once([(null, (bench.configuration(SHORT), bench.windows))])
    few = {**TINY, **SHORT, "participants": bench.arguments.nodes}
    [many] = at_once([(null, (bench.configuration(few), bench.windows))])
    run = against_bare(bench, "null", 1, TINY)
    each = 1000 / run["messages"]
    bare = run["bare_seconds"]
    return {
        "host": host,
        "host_of_many": many,
        "flwr": {
            "parameters": parameters_of(bench.configuration(TINY)),
            "ms_per_exchange": each * (run["run_seconds"] - bare),
            "ms_per_exchange_in_hosts": each * (run["in_hosts_ratio"] - 1) * bare,
            "ms_per_step": 1000 * (run["run_seconds"] - bare) / run["node_steps"],
            "window_gap_seconds": run["window_gap_seconds"],
        },
    }


def measure_engines(bench: Bench) -> dict[str, Any]:
    values = bench.configuration(SHORT)
    device = pick_device(resolve(values).device)
    [found] = at_once([(engines, (values, ENGINE_ROUNDS * bench.windows))])
    return {"device": device, **found}


def measure_scale(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = {"parameters": parameters_of(bench.configuration(MANY))}
    for nodes in (8, bench.arguments.nodes):
        changes = {**MANY, "participants": nodes, "name": f"nodes-{nodes}"}
        # Those of few nodes are too short to be seen.
        values = bench.configuration(changes, times=20 if nodes == 8 else 1)
        state, sampler, _ = bench.run(values, 1)
        [host] = at_once([(null, (values, bench.windows))])
        found[str(nodes)] = {
            "ms_per_step": 1000 * state["in_hosts"] / state["steps"],
            "ms_per_step_with_gaps": 1000 * state["seconds"] / state["steps"],
            "cpu_ms_per_step": 1000 * state["cpu_by_process"]["clients"] / state["steps"],
            "window_gap_seconds": (state["seconds"] - state["in_hosts"]) / state["windows"],
            "without_gradients": host,
            "memory": sampler.memory(),
        }
    few, many = (found[str(nodes)] for nodes in (8, bench.arguments.nodes))
    models = 4 * found["parameters"] * (bench.arguments.nodes - 8)  # bytes, of one a node

    def ratio(key: str) -> float:
        return many[key] / few[key]

    def grown(bytes_of: Callable[[dict[str, Any]], float]) -> float:
        return (bytes_of(many) - bytes_of(few)) / models

    return {
        "ratio": ratio("ms_per_step"),
        "ratio_of_cpu": ratio("cpu_ms_per_step"),
        "ratio_with_gaps": ratio("ms_per_step_with_gaps"),
        "models_a_node_keeps": many["without_gradients"]["models"],
        "models_a_node_adds": grown(lambda of: of["without_gradients"]["bytes"]),
        "models_a_node_adds_to_its_host": grown(_bytes_of_host),
        **found,
    }


def _bytes_of_host(measured: dict[str, Any]) -> float:
    """Of the process that hosts the nodes, when all processes together were largest."""
    return _MEBIBYTE * measured["memory"]["pss_mib_by_process"]["clients"]


def parameters_of(values: Values) -> int:
    return len(flat_model(problem_of(resolve(values)), "small").weights)


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "hosts": measure_hosts,
    "arithmetic": measure_arithmetic,
    "null": measure_null,
    "engines": measure_engines,
    "scale": measure_scale,
}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts that are asked for. Raises EdgeFlError when a run fails."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edge-fl-benchmark-") as directory:
        data: Values = {"dataset": "cifar10", "data-root": arguments.data_root}
        if not arguments.data_root:
            images = Path(directory, "noise.npz")
            random_images(images)
            data = {"dataset": "files", "data-path": str(images)}
        values: Values = {**SETTINGS, **data, "output": directory}
        values["consensus.precision"] = arguments.precision
        submitted = time.time()
        with local_superlink() as link:
            bench = Bench(link, values, arguments, submitted)
            found: dict[str, Any] = {}
            for name in arguments.only:
                found[name] = PARTS[name](bench)
                say(f"{name}: {json.dumps(rounded(found[name]))}")  # should a later one fail
            startups = bench.startups
        parameters = parameters_of(bench.configuration({}))
    return {
        "hardware": hardware(describe()),
        "settings": {
            **SETTINGS,
            "dataset": data["dataset"],
            "consensus.precision": arguments.precision,
        },
        "parameters": parameters,
        **found,
        "startup": startups[0] if startups else None,  # the only one with that of the SuperLink
        "startup_again": startups[1:],
        "seconds": time.monotonic() - began,
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = made.add_argument
    add("--only", type=_parts, default=list(PARTS), help=f"parts of {','.join(PARTS)}")
    add("--repeats", type=int, default=2, help="runs and loops for each number of hosts")
    add("--windows", type=int, default=3, help="windows of a run that count")
    add("--precision", choices=ARITHMETICS, default="float32", help="of the runs; loops: float32")
    add("--nodes", type=int, default=1000, help="nodes of the large ring")
    add("--data-root", default="", help="where CIFAR-10 is; without it, images of noise are used")
    return made


def _parts(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(PARTS)}")
    return names


def main(words: Sequence[str] | None = None) -> int:
    return benchmark("consensus_overhead", parser(), measure, words)


if __name__ == "__main__":
    sys.exit(main())
