"""The parts of the benchmark on a GPU that are about averages, distillation and a default run
(see `gpu`)."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from client_apps.gradients import Gradients
from client_apps.local_model import local_model_of, shard_of
from client_apps.row_gradients import PASSES, Programs, RowGradients, everything
from client_apps.side_by_side import Job, train_side_by_side
from client_apps.training import train_locally
from experiments.benchmarks.gpu_bench import (
    CLASSES,
    LOSS,
    PRECISIONS,
    PREPARE,
    SIDE,
    Bench,
    precise,
    wait,
)
from fl_app.config import resolve
from fl_app.models import build_model
from fl_app.problem import problem_of
from fl_app.settings import distillation_run_of, nodes_run_of, training_of
from strategies.consensus.host import Host
from strategies.consensus.node import Node
from strategies.consensus.participant import Participant
from strategies.consensus.shared import nodes_of
from strategies.distillation.learner import Learner
from strategies.evaluation import evaluation_set
from strategies.flat import FlatModel
from strategies.learning_rate import rate_of
from strategies.problem import flat_model, proxy_data, task_of
from strategies.randomness import rng
from strategies.task import Examples


def average(bench: Bench) -> None:
    device = bench.device
    jobs_of = (3, 100) if device == "cuda" else (3,)
    for name, norm in (("lenet-tracking", "group"), ("cnn6", "batch")):
        for participants in jobs_of:
            for precision in ("float32", "bf16") if norm == "group" else ("float32",):
                if bench.over:
                    return
                bench.say("average", [_round(name, norm, participants, precision, device)])


def _round(name: str, norm: str, participants: int, precision: str, device: str) -> dict[str, Any]:
    """A round: everybody trains from one model, and the results are averaged."""
    dtype = precise(precision)
    images, epochs, batch = 500, 5 if device == "cuda" else 1, 50
    config = replace(
        resolve({"mode": "average", "participants": participants}),
        local_steps=epochs * images // batch, batch_size=batch,
    )  # fmt: skip
    model = FlatModel(
        build_model(name, in_channels=3, num_classes=10, image_size=SIDE, norm=norm, seed=0), device
    )
    model.module.train()
    pixels = torch.randint(0, 256, (images, 3, SIDE, SIDE), dtype=torch.uint8, device=device)
    labels = torch.randint(0, CLASSES, (images,), device=device)
    everybody = range(participants)
    everything_, all_labels, begins = everything((p, pixels, labels) for p in everybody)
    prepare = replace(PREPARE, flip=True, augmented=True)
    way = PASSES["streams" if len(model.buffers) or precision == "float32" else "stacked"]
    programs = Programs(model, everything_, all_labels, prepare, LOSS, way, dtype)
    state = model.state()

    def together() -> None:
        jobs = [
            Job(state["weights"], state["buffers"], begins[p], images, rng(0, "batches", p))
            for p in everybody
        ]
        trained = train_side_by_side(programs, jobs, training_of(config), config.learning_rate)
        np.mean([each.state["weights"] for each in trained], axis=0)

    def alone() -> None:
        model.load(state["weights"], state["buffers"])
        train_locally(
            model, Examples(pixels, labels), training_of(config), rng(0, "batches", 0),
            learning_rate=config.learning_rate, prepare=prepare, loss=LOSS,
        )  # fmt: skip

    together()  # programs are recorded
    seconds = []
    for work in (together, alone):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - began)
    round_seconds, one = seconds
    row = {
        "model": name, "normalisation": norm, "parameters": len(model.weights),
        "participants": participants, "precision": precision, "minibatches": config.local_steps,
        "engine": next(n for n, each in PASSES.items() if each is way),
        "round_seconds": round_seconds,
        "steps_a_second": participants * config.local_steps / round_seconds,
    }  # fmt: skip
    if precision == "float32":
        row["times_one_after_the_other"] = participants * one / round_seconds
    return row


def distill(bench: Bench) -> None:
    for precision in PRECISIONS if bench.device == "cuda" else ("float32", "bf16"):
        if bench.over:
            return
        bench.say("distill", [_distilled(precision, bench.device)])


def _distilled(precision: str, device: str) -> dict[str, Any]:
    precise(precision)
    config = resolve({"precision": precision})
    start = torch.from_numpy(flat_model(problem_of(config), "large").state()["weights"])
    learners = {
        name: Learner(
            distillation_run_of(config),
            task_of(problem_of(config)),
            flat_model(problem_of(config), "large", device),
            flat_model(problem_of(config), "small", device),
            proxy_data(problem_of(config)).to(device),
            records=name != "one by one",
        )
        for name in ("one by one", "recorded", "again")
    }
    steps = 50 if device == "cuda" else 2
    row: dict[str, Any] = {"precision": precision}
    changes, teacher = {}, flat_model(problem_of(config), "small").state()
    for name, learner in learners.items():
        learner.set_teacher(1, **teacher)
        learner.reverse_step()
        wait(device)
        began = time.perf_counter()
        for _ in range(steps):
            learner.reverse_step()
        wait(device)
        if name != "again":
            row[f"steps_a_second_{name.replace(' ', '_')}"] = steps / (time.perf_counter() - began)
        changes[name] = torch.from_numpy(learner.state()[0]["weights"]) - start
    plain, recorded, again = changes.values()
    difference = float((recorded - plain).norm() / plain.norm())
    return {**row, "difference": difference, "repeats": torch.equal(recorded, again)}


def accuracy(bench: Bench) -> None:
    """Three seeds of each precision, on streams: see what `agree` says of one node after the other,
    which takes twenty times as long."""
    on_gpu = bench.device == "cuda"
    for seed in range(3 if on_gpu else 1):
        for precision in PRECISIONS if on_gpu else ("float32",):
            if bench.over:
                return
            bench.say("accuracy", [_default_run(precision, seed, bench)])


def _default_run(precision: str, seed: int, bench: Bench) -> dict[str, Any]:
    """The default run of the consensus system without its reference."""
    dtype = precise(precision)
    values: dict[str, Any] = {
        "mode": "consensus", "seed": seed, "device": bench.device, "consensus.references": "",
    }  # fmt: skip
    if bench.device != "cuda":
        values |= {"consensus.steps": 84}
    config = resolve(values)
    c, everybody = config.consensus, range(config.participants)
    topology, algorithm, timetable = nodes_of(nodes_run_of(config), "")
    kit = local_model_of(problem_of(config))
    model = flat_model(problem_of(config), "small", bench.device)
    initial = model.weights.clone()
    gradients = Gradients(
        model,
        {i: shard_of(problem_of(config), i, "") for i in everybody},
        dict.fromkeys(everybody, c.batch_size),
        seed=seed,
        prepare=kit.task.prepare(c.augment),
        loss=kit.task.loss,
        dtype=dtype,
    )
    examples = [len(shard_of(problem_of(config), i, "")) for i in everybody]
    people = [
        Participant(
            Node(i, initial.clone()), algorithm, topology.neighbours[i],
            len(examples) * examples[i] / sum(examples),
        )
        for i in everybody
    ]  # fmt: skip
    for participant in people:
        algorithm.start(participant.node)
    options: dict[str, Any] = {"initial": lambda _: initial}
    host = Host(people, RowGradients(gradients, PASSES["streams"]), **options)
    wait(bench.device)
    began = time.perf_counter()
    for window in range(1, config.rounds + 1):
        for participant in people:
            participant.change_rate(rate_of(c.schedule, c.step_size, window, config.rounds))
        host.run(
            {i: timetable.timeline(i, window) for i in everybody},
            {i: timetable.in_flight(i, window) for i in everybody},
        )
    wait(bench.device)
    seconds = time.perf_counter() - began
    test = evaluation_set(problem_of(config), bench.device)
    weights = torch.stack([p.node.weights for p in people])
    model.module.eval()
    shares = list(_accuracies(model, weights, test.inputs, test.targets))
    spread = (weights - weights.mean(0)).square().sum(1).mean().sqrt() / weights.mean(0).norm()
    return {
        "engine": "streams", "precision": precision, "seed": seed, "seconds": seconds,
        "node_steps_a_second": sum(p.tally.steps for p in people) / seconds,
        "nodes_mean": 100 * float(np.mean(shares)), "nodes_lowest": 100 * min(shares),
        "consensus_distance": float(spread),
    }  # fmt: skip


@torch.no_grad()
def _accuracies(
    model: FlatModel, weights: torch.Tensor, inputs: torch.Tensor, labels: torch.Tensor
) -> Iterator[float]:
    for own in weights:
        model.weights.copy_(own)
        found = torch.cat([model.module(part).argmax(1) for part in inputs.split(1000)])
        yield float((found == labels).float().mean())
