"""What a local step of a node costs among very many nodes on one host.

    python -m experiments.benchmarks.many_nodes [--nodes 10000] [--steps 3] [--out FILE]

prints JSON. A ring of LeNets of 62,000 parameters with the default algorithm, K = 6, images of
noise, four of 3x32x32 a node and minibatch: so few that the cost of a node beside its gradient is
seen. Timetable, host, gradients, algorithm, mail; no evaluation, no files; one process with one
thread, for each ring a process of its own, in seconds of the processor. ratio: a node-step of the
large ring by one of eight nodes. gib: by how much the process has grown for all nodes. At 10,000
nodes weights, momentum and two corrections are 9.2 GiB; while nodes become rows of matrices, a
process that keeps the memory that it frees has twice that.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.bare_loop import at_once
from experiments.benchmarks.host_loop import Nodes, resident
from experiments.benchmarks.output import benchmark
from experiments.flower_runs import hardware, say
from fl_app.config import Value
from fl_app.record.environment import describe
from strategies.randomness import rng

_IMAGES = 4  # of a node, and of a minibatch


def steps_of(values: dict[str, Value], windows: int) -> dict[str, float]:
    """A ring's node-steps, in windows after one that does not count."""
    before = resident()
    nodes = Nodes(values)
    nodes.run_window()
    grown, first = resident() - before, nodes.tally.steps
    seconds = sum(nodes.run_window() for _ in range(windows))
    return {
        "ms_a_node_step": 1000 * seconds / (nodes.tally.steps - first),
        "gib": grown / 2**30,
        "parameters": nodes.parameters,
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    generator = rng(0, "benchmark")
    with tempfile.TemporaryDirectory(prefix="edge-fl-benchmark-") as folder:
        path = Path(folder, "noise.npz")
        arrays = {}
        for name, count in (("train", _IMAGES * arguments.nodes + 100), ("test", 100)):
            arrays[f"x_{name}"] = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            arrays[f"y_{name}"] = np.arange(count) % 10
        np.savez(path, **arrays)  # type: ignore[arg-type]
        found: dict[str, Any] = {}
        for nodes in (8, arguments.nodes):
            say(f"{nodes} nodes")
            windows = arguments.steps if nodes > 8 else max(20, arguments.steps)
            values: dict[str, Value] = {
                "mode": "consensus", "participants": nodes, "partition": "iid",
                "dataset": "files", "data-path": str(path), "small-model": "lenet",
                "validation-examples": 0, "consensus.topology": "ring",
                "consensus.interval": 6.0, "consensus.batch-size": _IMAGES,
                "consensus.window": 1, "consensus.steps": 1 + windows,
                "consensus.settle": 0, "consensus.references": "",
            }  # fmt: skip
            [found[str(nodes)]] = at_once([(steps_of, (values, windows))])
    few, many = found["8"], found[str(arguments.nodes)]
    ratio = many["ms_a_node_step"] / few["ms_a_node_step"]
    return {"hardware": hardware(describe()), "ratio": ratio, **found}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=3, help="of each node that count")
    return benchmark("many_nodes", parser, measure, words)


if __name__ == "__main__":
    sys.exit(main())
