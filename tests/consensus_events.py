"""Plausible events of a consensus run, made up without training, for the tests of fl_app/record."""

import math
from typing import Any

import numpy as np

WINDOW, STEP = 50, 0.01  # local steps of a window; seconds of a step
BYTES = 1_200_000  # of a message
CLASSES = 10


def ring(nodes: int) -> list[list[int]]:
    return [sorted([i, (i + 1) % nodes]) for i in range(nodes)]


def consensus_events(
    windows: int = 20,
    nodes: int = 8,
    *,
    churn: bool = True,
    references: tuple[str, ...] = ("same-steps", "same-samples"),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The events of an asynchronous run on a ring; with `churn` node 2 is off in windows 6 to 8."""
    generator = np.random.default_rng(seed)
    edges = ring(nodes)
    events: list[dict[str, Any]] = []

    def add(event: str, **fields: Any) -> None:
        events.append({"event": event, **fields})

    add("hosts", hosts=2, carrier="grid")
    add(
        "topology", names=[str(i) for i in range(nodes)], edges=edges, degree_max=2,
        diameter=nodes // 2, spectral_gap=2 / 3 * (1 - math.cos(2 * math.pi / nodes)),
    )  # fmt: skip
    add("labels", classes=[f"class {c}" for c in range(CLASSES)], histogram=_labels(nodes))
    handicap = 0.03 * generator.random(nodes)
    counts = {"steps": 0, "messages": 0, "lost": 0, "duplicates": 0}
    for number in range(1, windows + 1):
        t = number * WINDOW * STEP
        off = {2} if churn and 6 <= number <= 8 else set()
        if churn and number == 6:
            add("incident", round=6, t=t - 0.2, node=2, kind="down", peer=None)
            add("incident", round=6, t=t - 0.1, node=1, kind="silent", peer=2)
            add("rejected", participant=4, round=6, reason="weights has NaN")
        if churn and number == 9:
            add("incident", round=9, t=t - 0.2, node=2, kind="up", peer=None)
            add("incident", round=9, t=t - 0.1, node=1, kind="returned", peer=2)
        counts["steps"] += WINDOW * (nodes - len(off))
        counts["messages"] += round(2 * len(edges) * WINDOW / 6)
        counts["lost"] += int(generator.poisson(0.02 * nodes))
        counts["duplicates"] += int(generator.poisson(0.01 * nodes))
        gap = 0.2 * math.exp(-number / 8) + 0.01
        common = 0.7 - 0.5 * math.exp(-number / 6)
        accuracy = common - gap * handicap / 0.03 + 0.01 * generator.standard_normal(nodes)
        shown = [None if i in off else float(a) for i, a in enumerate(accuracy)]
        add(
            "nodes", round=number, t=t, accuracy=shown, examples=[500] * nodes,
            loss=[None if a is None else 2.3 - 2 * a for a in shown],
            heard=[[i, j, float(generator.exponential(6 * STEP))]
                   for a, b in edges for i, j in ((a, b), (b, a))],
            reference={name: common + 0.01 * (k + 1) for k, name in enumerate(references)},
        )  # fmt: skip
        add("evaluate", round=number, t=t, model="average", accuracy=common + 0.004, loss=1.0)
        add(
            "round", round=number, t=t, **counts, bytes=counts["messages"] * BYTES,
            stale=2 + float(generator.random()), age=0.025,
            distance=gap**3 * (5 if off else 1), seconds=0.4, seconds_evaluation=0.1,
        )  # fmt: skip
    add("trace", events=trace(nodes, seed=seed))
    return events


def _labels(nodes: int) -> list[list[int]]:
    """Half of the classes a node, as many images of each."""
    held = [[(i + c) % CLASSES for c in range(CLASSES // 2)] for i in range(nodes)]
    return [[100 * (c in classes) for c in range(CLASSES)] for classes in held]


def trace(
    nodes: int, steps: int = 25, seed: int = 0
) -> list[tuple[float, str, int, int | None, float | None]]:
    """A slice in which every edge swaps at random, and node 2 is off for a third of it."""
    generator = np.random.default_rng(seed)
    start, length = 10.0, steps * STEP
    off = (start + length / 3, start + 2 * length / 3)

    def works(node: int, t: float) -> bool:
        return node != 2 or not off[0] < t <= off[1]

    found: list[tuple[float, str, int, int | None, float | None]] = [
        (off[0], "down", 2, None, None), (off[1], "up", 2, None, None)
    ]  # fmt: skip
    for node in range(nodes):
        for number in range(steps):
            t = start + (number + node / nodes) * STEP
            if works(node, t):
                found.append((t, "step", node, None, None))
    for i, j in ring(nodes):
        for t in start + length * generator.random(generator.poisson(steps / 6)):
            for sender, receiver in ((i, j), (j, i)):
                arrives = t + STEP * (0.5 + 2 * generator.random())
                if not works(sender, t):
                    continue
                lost = generator.random() < 0.1 or not works(receiver, arrives)
                found.append((t, "lost" if lost else "send", sender, receiver, None))
                if not lost:
                    kind = "drop" if generator.random() < 0.1 else "receive"
                    found.append((arrives, kind, receiver, sender, t))
                if not lost and generator.random() < 0.1:
                    found.append((arrives + 2 * STEP, "duplicate", receiver, sender, t))
    return sorted(found, key=lambda entry: entry[:3])


def config(
    windows: int = 20, nodes: int = 8, algorithm: str = "ecl", topology: str = "ring"
) -> dict[str, Any]:
    """The flat configuration that goes with `consensus_events`."""
    return {
        "mode": "consensus", "clock": "virtual", "dataset": "cifar10", "seed": 0,
        "participants": nodes, "partition": "classes-per-participant", "targets": "0.5,0.6,0.75",
        "consensus.algorithm": algorithm, "consensus.topology": topology,
        "consensus.steps": windows * WINDOW, "consensus.window": WINDOW,
    }  # fmt: skip
