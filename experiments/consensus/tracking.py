"""The published protocol of momentum tracking (Takezawa et al., TMLR 2023), in one process.

    python -m experiments.consensus.tracking --data DIR

Eight nodes in a ring with four of the ten classes of CIFAR-10 each train a LeNet for 500 epochs
with steps of one size, and exchange after every minibatch: first the four published methods, then
ours. The application's own timetable, host, algorithms and gradients, without Flower, Ray or files
of runs. See `tracking_data` for who has which images.

Step sizes are heavy-ball's. Of each method the one is taken whose nodes are best on the validation
images in the end; test images are looked at once, when a run is over. `--out` gets all that was
measured, after every evaluation; runs that are complete in it are not done again.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from client_apps.gradients import Gradients
from client_apps.logit_adjustment import logit_shift
from client_apps.row_gradients import PASSES, RowGradients
from experiments.consensus import tracking_data
from experiments.consensus.tracking_cases import EVERY, METHODS, Case, plan
from experiments.consensus.tracking_data import MEAN, STD, Data
from experiments.consensus.tracking_results import Results, render
from fl_app.data import ImageSet, Preparation, normalise
from fl_app.models import build_model
from fl_app.provenance import provenance
from fl_app.tasks.images import examples_of
from strategies.consensus.algorithms import Settings, make_algorithm
from strategies.consensus.host import Host
from strategies.consensus.node import AVERAGE, Node
from strategies.consensus.participant import Participant
from strategies.consensus.rates import HEAVY_BALL, step_size
from strategies.consensus.schedule import Conditions, Timetable
from strategies.consensus.state import pack, unpack
from strategies.consensus.topologies import build_topology
from strategies.consensus.weight_average import Averaged
from strategies.flat import FlatModel

NODES, BATCH = 8, 100
SETTINGS = Settings(
    interval=1.0, hold=True, forget=0.0, theta=0.5, kappa=1.0, mult=1.0, penalty="isvr", alpha=1.0,
    rho=0.0, momentum=0.9, weight_decay=1e-3, keep=0.1, compression="random-k", gamma=0.3, seed=0,
)  # fmt: skip
SEQUENTIAL = "sequential"
_CHUNK = 2500  # images that are evaluated at once


class Run:
    """All nodes of a case. engine: SEQUENTIAL, or how gradients are computed side by side."""

    def __init__(self, case: Case, data: Data, device: str, engine: str = SEQUENTIAL) -> None:
        method = METHODS[case.method]
        topology = build_topology("ring", NODES)
        settings = replace(SETTINGS, interval=float(case.interval), **method.changes)
        algorithm = Averaged(make_algorithm(method.algorithm, settings, topology))
        module = build_model(
            "lenet-tracking", in_channels=3, num_classes=10, image_size=32, norm="group",
            seed=case.seed,
        )  # fmt: skip
        self.model = FlatModel(module, device)
        initial = self.model.weights.clone()
        self.gradients = gradients = Gradients(
            self.model,
            {i: examples_of(images) for i, images in enumerate(data.nodes)},
            dict.fromkeys(range(NODES), BATCH),
            seed=case.seed,
            prepare=Preparation(MEAN, STD, True, True, shift=4, erasing=(32, 32)),
            loss=functional.cross_entropy,
            rest=True,
            shift=partial(logit_shift, classes=10, strength=case.adjusted),
        )
        self.steps = -(-len(data.nodes[0]) // BATCH)  # of an epoch
        rate = step_size(case.learning_rate, settings.momentum, HEAVY_BALL)
        self.participants = [
            Participant(Node(i, initial.clone()), algorithm, topology.neighbours[i], rate=rate)
            for i in range(NODES)
        ]
        for participant in self.participants:
            algorithm.start(participant.node)
        if method.all_reduce:
            self._all_reduce(gradients)
        many = gradients if engine == SEQUENTIAL else RowGradients(gradients, PASSES[engine])

        def make_host(participants: list[Participant]) -> Host:
            return Host(participants, many, initial=lambda _: initial, most=NODES)

        self._make_host, self._host = make_host, make_host(self.participants)
        epochs = min(EVERY, case.epochs)
        self._timetable = Timetable(
            topology,
            Conditions(loss=case.loss, delay_seconds=case.delay),
            interval=case.interval,
            window_steps=_multiple(epochs * self.steps, 1 if case.asynchronous else case.interval),
            seed=case.seed,
            synchronous=not case.asynchronous,
        )
        self.windows = case.epochs // epochs

    def _all_reduce(self, gradients: Callable[..., Any]) -> None:
        """c_i = m_i = (g_i - mean_j g_j) / (1 - beta) as heavy-ball's momentum and correction: as
        running mean M_i = g_i - mean_j g_j, and M_i - C_i, which is the tracker, is 0."""
        nodes = [participant.node for participant in self.participants]
        found = torch.stack([g.clone() for g in gradients([(node, 0) for node in nodes])])
        for participant, own in zip(self.participants, found - found.mean(0), strict=True):
            participant.node.vectors["momentum"].copy_(own)
            # In a ring each sends so many of NODES parts of a vector (Patarasuk and Yuan 2009).
            participant.tally.bytes += 2 * (NODES - 1) * own.nbytes // NODES

    def save(self, path: Path, entry: Mapping[str, Any]) -> None:
        """Write all that the nodes are, and what has been found so far."""
        packed = [pack(participant) for participant in self.participants]
        arrays = {f"{i}/{n}": a for i, (own, _) in enumerate(packed) for n, a in own.items()}
        told = json.dumps({"nodes": [metadata for _, metadata in packed], "entry": entry})
        aside = path.with_suffix(".new.npz")
        np.savez(aside, metadata=np.array(told), **arrays)  # type: ignore[arg-type]
        os.replace(aside, path)

    def load(self, path: Path) -> dict[str, Any]:
        """Have the nodes be what `save` has written, and return what had been found."""
        with np.load(path) as saved:
            arrays: list[dict[str, np.ndarray]] = [{} for _ in range(NODES)]
            for name in set(saved.files) - {"metadata"}:
                node, _, vector = name.partition("/")
                arrays[int(node)][vector] = saved[name]
            told = json.loads(str(saved["metadata"]))
        device = str(self.model.weights.device)
        for i, (own, metadata) in enumerate(zip(arrays, told["nodes"], strict=True)):
            old = self.participants[i]
            self.participants[i] = unpack(
                own, metadata, old.algorithm,
                neighbours=old.neighbours, weight=old.weight, device=device,
            )  # fmt: skip
        self._host = self._make_host(self.participants)
        return told["entry"]

    def go_on(self, windows: int = 0) -> Iterator[int]:
        """Run on after so many windows; yields how many epochs are over, EVERY by EVERY."""
        for window in range(windows + 1, self.windows + 1):
            self._host.run(
                {i: self._timetable.timeline(i, window) for i in range(NODES)},
                {i: self._timetable.in_flight(i, window) for i in range(NODES)},
            )
            yield round(self.participants[0].tally.steps / self.steps)

    def weights(self) -> torch.Tensor:
        """Of all nodes, (NODES, p)."""
        return torch.stack([participant.node.weights for participant in self.participants])

    def over_time(self) -> torch.Tensor:
        """The running average of each node's weights, (NODES, p); see `weight_average`."""
        return torch.stack([participant.node.vectors[AVERAGE] for participant in self.participants])

    @property
    def bytes(self) -> int:
        return sum(participant.tally.bytes for participant in self.participants)


def _multiple(steps: int, interval: int) -> int:
    return -(-steps // interval) * interval


@torch.no_grad()
def accuracies(model: FlatModel, models: torch.Tensor, images: "Prepared") -> list[float]:
    """Of each of the models (k, p), in per cent."""
    before, right = model.weights.clone(), []
    for weights in models:
        model.weights.copy_(weights)
        found = torch.cat([model.module(part).argmax(1) for part in images.inputs.split(_CHUNK)])
        right.append((found == images.labels).sum())
    model.weights.copy_(before)
    return (100 / len(images.labels) * torch.stack(right)).tolist()


class Prepared:
    """Images as they are evaluated, on the device."""

    def __init__(self, images: ImageSet, device: str) -> None:
        self.inputs = normalise(torch.from_numpy(images.images).to(device), MEAN, STD)
        self.labels = torch.from_numpy(images.labels).to(device)


def measure(run: Run, images: Prepared) -> dict[str, Any]:
    """Accuracy of all nodes and of their average, which is what they have when they have settled;
    the same of their running averages (over_time); and how far the nodes are from their average:
    the square root of mean_i |w_i - w|^2, by |w|."""
    weights, over_time = run.weights(), run.over_time()
    average = weights.mean(0, keepdim=True)

    def found(models: torch.Tensor) -> dict[str, Any]:
        *nodes, of_average = accuracies(
            run.model, torch.cat([models, models.mean(0, keepdim=True)]), images
        )
        return {"mean": mean(nodes), "lowest": min(nodes), "nodes": nodes, "average": of_average}

    spread = (weights - average).square().sum(1).mean().sqrt() / average.norm()
    return {**found(weights), "distance": float(spread), "over_time": found(over_time)}


def faster(data: Data, device: str) -> str:
    """The engine that takes less time for two epochs: on a CPU one node after the other."""
    if device == "cpu":
        return SEQUENTIAL
    seconds = {}
    for engine in PASSES:
        for _ in range(2):  # the first one records the programs
            run, began = Run(Case("dsgdm", 1e-5, epochs=2), data, device, engine), time.monotonic()
            for _ in run.go_on():
                run.weights().cpu()
            seconds[engine] = time.monotonic() - began
    print(f"seconds for two epochs: {seconds}", flush=True)
    return min(seconds, key=lambda engine: seconds[engine])


def execute(
    case: Case, data: Data, device: str, engine: str, until: float, results: Results
) -> bool:
    """Run a case, or go on with it; keep all there is after every evaluation, and say whether it
    came to its end before `until` (of `time.monotonic`)."""
    run, validation = Run(case, data, device, engine), Prepared(data.validation, device)
    entry: dict[str, Any] = {**asdict(case), "curve": [], "test": None, "seconds": 0.0}
    state = results.state(case)
    if state.exists():
        entry = run.load(state)
    began = time.monotonic() - entry["seconds"]
    for epoch in run.go_on(len(entry["curve"])):
        found = measure(run, validation)
        seconds = time.monotonic() - began
        entry["curve"].append({"epoch": epoch, **found})
        entry |= {"bytes": run.bytes, "seconds": round(seconds, 1)}
        entry["code"] = _with_code(entry.get("code"), provenance())
        entry |= {
            name: _followed(entry.get(name), used)
            for name, used in (("device", device_name(device)), ("engine", engine))
        }
        print(
            f"{case.name} epoch {epoch}: {_shown(found)}; over time {_shown(found['over_time'])}; "
            f"distance {found['distance']:.1e}, {run.bytes / 1e9:.2f} GB, {seconds:.0f} s",
            flush=True,
        )
        broken = not math.isfinite(found["distance"])
        over = broken or len(entry["curve"]) == run.windows
        if over:
            entry["test"] = measure(run, Prepared(data.test, device))
        else:
            run.save(state, entry)
        results.keep(entry)
        if over:
            state.unlink(missing_ok=True)
            break
        if time.monotonic() > until:
            return False
    return True


def _shown(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {found[name]:.1f}" for name in ("mean", "lowest", "average"))


def _with_code(before: Any, now: Mapping[str, Any]) -> list[Any]:
    """Which code has made a run, the last one last; older states have the last one alone."""
    codes = before if isinstance(before, list) else [before] if before else []
    return codes if codes and codes[-1] == now else [*codes, now]


def _followed(before: str | None, now: str) -> str:
    """On what a run went on after another machine had been given back, say."""
    if not before:
        return now
    return before if before.endswith(now) else f"{before}, then {now}"


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.consensus.tracking")
    add = parser.add_argument
    add("--data", type=Path, required=True, help="CIFAR-10's original files, or those of "
        "`tracking_data`")  # fmt: skip
    add("--out", type=Path, default=Path("tracking.json"))
    add("--only", nargs="+", metavar="METHOD[:LR]", help=f"of {', '.join(METHODS)}")
    add("--best", action="store_true", help="one step size each: the published best")
    add("--epochs", type=int, default=500)
    add("--seeds", type=int, nargs="+", default=[0])
    add("--classes", type=int, default=4, help="of each node")
    add("--interval", type=int, default=1, help="K")
    add("--asynchronous", action="store_true", help="each edge exchanges at random times")
    add("--loss", type=float, default=0.0)
    add("--delay", type=float, default=0.0, help="of mail, in local steps, at most")
    add("--adjusted", type=float, default=0.0, help="adjust-logits")
    add("--limit", type=float, default=math.inf, metavar="SECONDS", help="then stop")
    add("--engine", choices=["auto", SEQUENTIAL, *PASSES], default="auto")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(words)
    until = time.monotonic() + arguments.limit
    try:
        cases = plan(arguments)
        train, test = tracking_data.read(arguments.data)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    torch.backends.cudnn.deterministic = True
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    results, engine = Results(arguments.out), arguments.engine
    for case in cases:
        if not results.has(case):
            data = tracking_data.split(train, test, case.classes, case.seed)
            engine = faster(data, arguments.device) if engine == "auto" else engine
            if not execute(case, data, arguments.device, engine, until, results):
                break
            if time.monotonic() > until:
                break
    print(render(results.runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
