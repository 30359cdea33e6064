"""What a local step of a node costs among very many nodes on one host.

    python -m experiments.benchmarks.many_nodes [--nodes 10000] [--steps 3] [--out FILE]

prints JSON. A ring of LeNets of 62,000 parameters with the default algorithm, K = 6, images of
noise, four of 3x32x32 a minibatch: so few that the cost of a node beside its gradient is seen. A
node of either ring has sixteen of them. Timetable, host, gradients, algorithm, mail; no evaluation,
no files; one process with one thread, for each ring a process of its own, in seconds of the
processor. ratio: a node-step of the large ring by one of eight nodes, which is measured before and
after it. gib: by how much the process has grown for all nodes, whose weights, momentum and two
corrections are 9.2 GiB at 10,000 nodes.
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

_IMAGES = 4  # of a minibatch
_MINIBATCHES = 4  # of a node: an epoch's order and augmentation are drawn once for all of them
_FEW = 8


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

        def ring(nodes: int, windows: int) -> dict[str, float]:
            say(f"{nodes} nodes")
            path = Path(folder, f"{nodes}.npz")
            arrays = {}
            for name, count in (("train", _MINIBATCHES * _IMAGES * nodes), ("test", 100)):
                images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
                arrays[f"x_{name}"], arrays[f"y_{name}"] = images, np.arange(count) % 10
            np.savez(path, **arrays)  # type: ignore[arg-type]
            values: dict[str, Value] = {
                "mode": "consensus", "participants": nodes, "partition": "iid",
                "dataset": "files", "data-path": str(path), "small-model": "lenet",
                "validation-examples": 0, "consensus.topology": "ring",
                "consensus.interval": 6.0, "consensus.batch-size": _IMAGES,
                "consensus.window": 1, "consensus.steps": 1 + windows,
                "consensus.settle": 0, "consensus.references": "",
            }  # fmt: skip
            [found] = at_once([(steps_of, (values, windows))])
            return found

        windows = max(100, arguments.steps)
        before = ring(_FEW, windows)
        many = ring(arguments.nodes, arguments.steps)
        after = ring(_FEW, windows)
    few = (before["ms_a_node_step"] + after["ms_a_node_step"]) / 2
    return {
        "hardware": hardware(describe()),
        "ratio": many["ms_a_node_step"] / few,
        "few_before": before,
        "many": many,
        "few_after": after,
    }


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=3, help="of each node that count")
    return benchmark("many_nodes", parser, measure, words)


if __name__ == "__main__":
    sys.exit(main())
