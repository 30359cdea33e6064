"""`edge-fl check TASK`: whether a task can be learnt by the two systems, tried in seconds."""

import json
import math
from collections.abc import Iterator, Mapping

import torch
from torch.func import vmap

from client_apps.gradients import loss_of
from fl_app.config import RunConfig, Value, configure, resolve, with_effect
from fl_app.preflight import check_sets, preflight
from fl_app.problem import problem_of
from fl_app.tasks.tables import Tables
from strategies.errors import ConfigError, EdgeFlError
from strategies.evaluation import measured
from strategies.flat import FlatModel
from strategies.optimisers import sgd_step
from strategies.plugins import told_as
from strategies.problem import (
    flat_model,
    make_task,
    pick_device,
    task_of,
    test_set_of,
    train_set_of,
)
from strategies.randomness import rng
from strategies.task import AsStored, Examples, Task, prepared

_BATCH = 32
_STEPS = 40  # on one minibatch
_EVALUATED = 200  # examples at most


def try_out(given: Mapping[str, Value]) -> Iterator[str]:
    """A line about each thing that was tried, in its order. given: keys of a configuration, `task`
    among them. Raises ConfigError or DataError for what keeps the task from being learnt."""
    config = configure(given)
    task, device = task_of(problem_of(config)), pick_device(config.device)
    yield from _data(config, task)
    with told_as("prepare(augmented=True) failed", ConfigError):
        batch = _batch(task, train_set_of(problem_of(config)), device)
    roles = ("small", "large") if config.distils else ("small",)
    for role in roles:
        with told_as(f"about({role!r}) returned what JSON cannot hold, or failed", ConfigError):
            json.dumps(dict(task.about(role)))
        model = flat_model(problem_of(config), role, device)
        yield f"{role} model: {len(model.weights):,} trained parameters{_frozen(model)}"
        yield from _model(config, task, role, model, batch)
    preflight(config)
    yield f"mode={config.mode}: everything fits"
    if not config.agrees and not config.of_images:
        yield _consensus(given)
    yield _side_by_side(flat_model(problem_of(config), "small", device), task, batch)


def _data(config: RunConfig, task: Task) -> Iterator[str]:
    check_sets(config)
    for name, examples in (
        ("training", train_set_of(problem_of(config))),
        ("test", test_set_of(problem_of(config))),
    ):
        yield f"{name}: {len(examples)} examples; {_shapes(examples)}"
    if isinstance(task, Tables):
        yield from task.taken
    again = make_task.__wrapped__(problem_of(config).task)
    if again.digest != task.digest:
        raise ConfigError(
            "training() or test() returned other examples when asked again; they must follow from "
            "the seed and data_path alone, because several processes ask"
        )


def _shapes(examples: Examples) -> str:
    parts = {"inputs": examples.inputs, "targets": examples.targets}
    return ", ".join(
        f"{name} {tuple(tensor.shape[1:])} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in parts.items()
    )


def _batch(task: Task, examples: Examples, device: str) -> Examples:
    """The first minibatch of a random order, prepared."""
    generator = rng(0, "check")
    some = examples.take(generator.permutation(len(examples))[:_BATCH]).to(device)
    return Examples(prepared(task.prepare(augmented=True), some.inputs, generator), some.targets)


def _frozen(model: FlatModel) -> str:
    frozen = sum(p.numel() for p in model.module.parameters() if not p.requires_grad)
    return f", {frozen:,} frozen" if frozen else ""


def _model(
    config: RunConfig, task: Task, role: str, model: FlatModel, batch: Examples
) -> Iterator[str]:
    if flat_model(problem_of(config), role).checksum() != model.checksum():
        raise ConfigError(
            f"model({role!r}) has other initial values when asked again; draw them from PyTorch's "
            f"generator, which is seeded"
        )
    with told_as(f"the {role} model: its loss failed", ConfigError):
        model.look(AsStored(), batch.inputs)
        first = _gradient(task, model, batch)
    if not (math.isfinite(first) and bool(model.gradient.isfinite().all())):
        raise ConfigError(f"the {role} model: the loss ({first:g}) or its gradient is not finite")
    draws = "; draws random numbers" if model.draws else ""
    yield f"{role} model: loss {first:.4g}, finite gradient{draws}"
    velocity, loss = torch.zeros_like(model.weights), first
    for _ in range(_STEPS):
        sgd_step(
            model.weights,
            model.gradient,
            velocity,
            learning_rate=config.learning_rate,
            momentum=config.momentum,
        )
        loss = _gradient(task, model, batch)
    rate = f"learning-rate={config.learning_rate:g}"
    if not loss < first:
        raise ConfigError(
            f"the {role} model: after {_STEPS} steps on one minibatch with {rate} the loss is "
            f"{loss:.4g}, and was {first:.4g}; try a smaller learning-rate"
        )
    yield f"{role} model: {_STEPS} steps on one minibatch with {rate}: loss {loss:.4g}"
    with told_as("prepare(augmented=False) failed", ConfigError):
        examples = _test(config, task, batch.inputs.device)
    with told_as(f"the {role} model: its metrics failed", ConfigError):
        found = measured(task, model, examples).values
    if math.isnan(found[task.metric.name]):
        raise ConfigError(
            f"the {role} model: {task.metric.name} of {len(examples)} test examples is no number: "
            f"either the loss of these is not finite, or there is nothing to judge in any of them"
        )
    yield f"{role} model: then on test examples: " + ", ".join(
        f"{name} {value:.4g}" for name, value in found.items()
    )


def _test(config: RunConfig, task: Task, device: torch.device) -> Examples:
    examples, generator = test_set_of(problem_of(config)), rng(0, "check", "test")
    some = examples.take(generator.permutation(len(examples))[:_EVALUATED]).to(device)
    return Examples(prepared(task.prepare(augmented=False), some.inputs, generator), some.targets)


def _gradient(task: Task, model: FlatModel, batch: Examples) -> float:
    """The loss, whose gradient is put into the model."""
    model.module.train()
    model.zero_grad()
    outputs = model.module(batch.inputs)
    before = torch.get_rng_state()
    loss = task.loss(outputs, batch.targets)
    if loss.shape != ():
        raise ConfigError(
            f"loss() returned a tensor {tuple(loss.shape)}; return the mean, a scalar"
        )
    if not torch.equal(before, torch.get_rng_state()):
        raise ConfigError("loss() draws random numbers, and no run could be repeated")
    loss.backward()
    return loss.item()


def _consensus(given: Mapping[str, Value]) -> str:
    """Of the keys that are given, those that have an effect there are as they are here."""
    try:
        preflight(resolve(with_effect({**given, "mode": "consensus"})))
    except EdgeFlError as error:
        return f"mode=consensus: not possible: {error}"
    return "mode=consensus: possible"


def _side_by_side(model: FlatModel, task: Task, batch: Examples) -> str:
    """Whether torch.func can compute several models at once, as a GPU does."""
    if len(model.buffers):
        return "engine stacked: not possible: the model has buffers"
    both = torch.stack([model.weights, model.weights])
    inputs, targets = (torch.stack([each, each]) for each in (batch.inputs, batch.targets))
    try:
        vmap(
            lambda w, x, y: loss_of(model, task.loss, {}, model.unflatten(w), x, y, x.new_empty(0))
        )(both, inputs, targets)
    except Exception as error:  # whatever torch.func says of somebody's model
        return f"engine stacked: not possible: {str(error).splitlines()[0]}"
    return "engine stacked: possible"
