"""Runs what is planned and not there yet, and evaluates what it ended with."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client_apps.node_store import NODES, NodeStore
from experiments.consensus.plan import Planned
from experiments.flower_runs import in_process_run, load_json, say
from experiments.planned_runs import COMPLETED, DIVERGED, Values, missing, run_in_parallel
from fl_app.config import resolve
from fl_app.launch.sizing import count_cores, count_gpus
from fl_app.problem import problem_of
from fl_app.record.run_dir import RunDirectory
from strategies.consensus.state import published
from strategies.consensus.strategy import MODELS
from strategies.errors import DivergedError, EdgeFlError
from strategies.evaluation import evaluation_set, measured
from strategies.problem import flat_model, pick_device, task_of

_FINAL = "final.json"


def execute(
    runs: Sequence[Planned], root: Path, jobs: int = 0, *, may_diverge: bool = False
) -> None:
    """Run every planned run that is not complete in `root`; what is half done is done again.

    `jobs` runs at a time (default: as many as cores, or GPUs), each in one process without Flower.
    may_diverge: a run that has diverged has ended, and is not done again.
    Raises EdgeFlError when a run fails, and before any is begun where one has to be tuned first.
    """
    if commands := list(dict.fromkeys(run.tuning for run in runs if run.tuning)):
        told = "\n  ".join(commands)
        raise EdgeFlError(
            f"not every step size of the grid has been tried for these rows; first\n  {told}\n"
            "or leave them out by --only"
        )
    lacking = missing(runs, root, (COMPLETED, DIVERGED) if may_diverge else (COMPLETED,))
    if not lacking:
        return
    jobs = jobs or count_gpus("auto") or count_cores()
    needed = sum(run.minutes for run in lacking)
    say(f"{len(lacking)} runs to do, about {needed:.0f} core-minutes, {jobs} at a time")
    # The longest first, so that no core idles long at the end.
    ordered = sorted(lacking, key=lambda run: -run.minutes)
    run_in_parallel(ordered, root, jobs, _work_or_diverge if may_diverge else work, _result)


def _work_or_diverge(values: Values) -> RunDirectory:
    try:
        return work(values)
    except DivergedError:
        return RunDirectory.open(Path(str(values["output"]), str(values["name"])))


def work(values: Values) -> RunDirectory:
    """One run and the evaluation of what it ended with."""
    run = in_process_run(values)
    final(run)
    return run


def final(run: RunDirectory) -> dict[str, Any]:
    """What `evaluate` finds on *all* test images: the run itself evaluates fewer, but often. It is
    kept in final.json."""
    path = run.path / _FINAL
    if not path.exists():
        path.write_text(json.dumps(evaluate(run)))
    return load_json(path)


def evaluate(run: RunDirectory, examples: int = 0) -> dict[str, Any]:
    """Accuracies in the end, on `examples` test images (0 = all): {"nodes": [...] as the training
    has left them, "settled": [...] as they have settled, [] if they have not, "average": a,
    "reference": {name: a}, "examples": how many}."""
    config = resolve({**run.config(), "evaluate-examples": examples})
    model = flat_model(problem_of(config), "small", pick_device(config.device))
    data, task = (
        evaluation_set(problem_of(config), str(model.weights.device)),
        task_of(problem_of(config)),
    )

    def accuracy(weights: np.ndarray) -> float:
        model.weights.copy_(torch.from_numpy(weights))
        return measured(task, model, data).values["accuracy"]

    store, nodes = NodeStore(run.path / NODES), config.participants
    references = config.consensus.reference_list

    def at(window: int, everybody: int) -> list[float]:
        return [accuracy(published(store.load(window, node)[0])) for node in range(everybody)]

    everybody = at(config.rounds, nodes + len(references))
    return {
        "nodes": everybody[:nodes],
        "settled": at(config.rounds + 1, nodes) if config.consensus.settling_rounds else [],
        "average": accuracy(run.load_checkpoint(MODELS)[0]["average"]),
        "reference": dict(zip(references, everybody[nodes:], strict=True)),
        "examples": len(data),
    }


def _result(run: RunDirectory) -> str:
    if run.summary()["status"] == DIVERGED:
        return f"diverged: {run.summary()['reason']}"
    found = final(run)
    nodes = [100 * accuracy for accuracy in found["nodes"]]
    references = "".join(f", {name} {100 * a:.1f} %" for name, a in found["reference"].items())
    return (
        f"nodes {np.mean(nodes):.1f} % ({min(nodes):.1f} to {max(nodes):.1f}), "
        f"average {100 * found['average']:.1f} %{references}"
    )
