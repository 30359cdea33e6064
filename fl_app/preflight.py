"""Whether all that a configuration names fits together, before anything starts: here, or, as far as
that can be told from here, on the machines of a SuperLink of others."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch.nn.modules.batchnorm import _NormBase

from fl_app.assemble import topology_text
from fl_app.config import OWN_KEYS, RunConfig, defaults
from fl_app.problem import problem_of
from fl_app.settings import averaging_of, nodes_run_of
from strategies import own_rules as rules
from strategies import plugins
from strategies.attacks import LABEL_FLIP
from strategies.consensus import own as algorithms
from strategies.consensus.shared import nodes_of
from strategies.contracts import ContractError
from strategies.contracts.algorithms import (
    Subject,
    lengths_are_those_of_a_message,
    works_in_both_kinds_of_exchange,
)
from strategies.errors import ConfigError, DataError, EdgeFlError
from strategies.flat import FlatModel
from strategies.plugin_name import path_of
from strategies.plugins import told_as
from strategies.problem import (
    check_arithmetic,
    flat_model,
    pick_device,
    split_of,
    task_of,
    test_set_of,
    train_set_of,
)
from strategies.pyproject import install
from strategies.rules import Update, make_rule
from strategies.schedule import Job


def check_model_of_nodes(model: FlatModel) -> None:
    """What the consensus system needs of the nodes' model."""
    for name, layer in model.module.named_modules():
        if isinstance(layer, _NormBase) and layer.running_mean is not None:
            raise ConfigError(
                f"mode='consensus': {name or 'the model'} is a {type(layer).__name__}, whose "
                f"running statistics describe a node's own data; neighbours can neither exchange "
                f"nor average them; use GroupNorm or LayerNorm"
            )
    for name in model.unflatten_buffers(model.buffers):
        raise ConfigError(
            f"mode='consensus': the model's state has the buffer {name}, and nodes exchange "
            f"parameters alone; register constants with persistent=False"
        )


def _without_statistics(config: RunConfig) -> str:
    if config.of_images:
        return f"normalisation='group', not {config.normalisation!r}"
    return "a model without buffers"


def _check_privacy_needs(config: RunConfig, model: FlatModel) -> None:
    """What differential privacy needs of the participants' model and of this machine."""
    if not config.privacy.on:
        return
    if len(model.buffers):
        raise ConfigError(
            f"differential privacy needs {_without_statistics(config)}: running statistics of the "
            f"participants' examples would travel without noise, and the gradient of an example "
            f"depends on the others in its batch"
        )
    if config.privacy.samples and model.draws:
        raise ConfigError(
            "privacy.samples cannot be with dropout or other random numbers in a model, which "
            "torch.func does not draw"
        )


def _check_class_needs(config: RunConfig) -> None:
    """What needs classes, which not every task has."""
    asked = [f"attack={LABEL_FLIP!r}"] if config.attack == LABEL_FLIP else []
    asked += [f"adjust-logits={config.adjust_logits}"] if config.adjust_logits else []
    if asked and not task_of(problem_of(config)).classes:
        raise ConfigError(f"{' and '.join(asked)} needs classes, and task={config.task!r} has none")
    temperature = config.distill.temperature
    default = defaults()["distill.temperature"]
    if config.distils and temperature != default and not task_of(problem_of(config)).softens:
        raise ConfigError(
            f"distill.temperature={temperature} has no effect with task={config.task!r}, whose "
            f"outputs are numbers: leave it at {default}"
        )


def _check_machine(config: RunConfig) -> None:
    """Whether this machine has what the run computes with."""
    check_arithmetic(problem_of(config), pick_device(config.device))
    if config.privacy.on and find_spec("opacus") is None:
        raise ConfigError(
            f"differential privacy needs the accountant of Opacus: {install('privacy')}"
        )


def _check_best_metric(config: RunConfig) -> None:
    names = [each.name for each in task_of(problem_of(config)).metrics]
    known = [*names, *([] if "loss" in names else ["loss"])]
    if config.best_metric and config.best_metric not in known:
        raise ConfigError(
            f"best-metric={config.best_metric!r} is no metric of task={config.task!r}; choose one "
            f"of: {', '.join(known)}"
        )


def _check_own_algorithm(name: str) -> None:
    """That it does not fail at its first steps; `edge-fl check algorithm` tries the rest."""
    subject = Subject(name)
    for clause in (lengths_are_those_of_a_message, works_in_both_kinds_of_exchange):
        try:
            with told_as(f"consensus.algorithm={name!r} failed", ConfigError):
                clause(subject)
        except ContractError as error:
            raise ConfigError(f"consensus.algorithm={name!r}: {error}") from error


def _check_own_rule(config: RunConfig, model: FlatModel) -> None:
    """That it makes a model of one update, and can be gone on with."""
    rule, state = make_rule(averaging_of(config)), model.state()
    update = Update(Job(0, 0, 0, 0.0, 0.0, 0.0, 0.0), 1, 0.0, state)
    rule.combine(1, state, [update], {0: state})
    rule.load_state(rule.state())


def preflight(config: RunConfig) -> None:
    """Try everything that can be wrong before anything starts; raises EdgeFlError."""
    _check_machine(config)
    _check_parts(config)
    _check_examples(config)


def preflight_elsewhere(config: RunConfig, say: Callable[[str], object]) -> None:
    """`preflight` for a run whose ServerApp need not be on this machine: raises EdgeFlError for
    what is wrong wherever it runs. What that may have and this machine has not - data, a package, a
    GPU, memory - is for its own preflight; `say` is told what therefore was not tried."""
    for key in OWN_KEYS:
        if path_of(str(config.flat()[key])):  # the run takes the file along
            plugins.load(key, str(config.flat()[key]))
    try:
        _check_parts(config)
    except EdgeFlError as error:
        if not _of_this_machine(error):
            raise
        say(f"cannot be tried here, the server will: {error}")


def _of_this_machine(error: BaseException | None) -> bool:
    """Whether a file or a package that is not here is the reason."""
    while error is not None:
        if isinstance(error, DataError | OSError | ImportError):
            return True
        error = error.__cause__
    return False


def _check_parts(config: RunConfig) -> None:
    """Models, algorithm, averaging rule, topology, schedule: all that needs no examples."""
    problem = problem_of(config)
    _check_best_metric(config)
    if config.agrees:
        nodes_of(nodes_run_of(config), topology_text(config))
        if algorithms.is_own(config.consensus.algorithm):
            _check_own_algorithm(config.consensus.algorithm)
    elif config.virtual:
        config.trace()
    small = flat_model(problem, "small")
    _check_privacy_needs(config, small)
    if config.agrees:
        check_model_of_nodes(small)
    if config.distils:
        flat_model(problem, "large")
    if not config.agrees and rules.is_own(config.averaging):
        _check_own_rule(config, small)
    _check_class_needs(config)


def _not_finite(values: torch.Tensor) -> list[int]:
    """Which examples of these have a NaN or an infinite value."""
    return torch.nonzero(~values.isfinite().reshape(len(values), -1).all(1))[:, 0].tolist()


def check_sets(config: RunConfig) -> None:
    """That all examples are numbers, and their classes have names."""
    problem = problem_of(config)
    names = task_of(problem).classes
    for which, examples in (("training", train_set_of(problem)), ("test", test_set_of(problem))):
        for part, values in (("inputs", examples.inputs), ("targets", examples.targets)):
            if values.is_floating_point() and (wild := _not_finite(values)):
                raise DataError(
                    f"task={config.task!r}: {len(wild)} of {len(values)} {which} examples, the "
                    f"first of them number {wild[0]}, have {part} that are not finite; leave them "
                    f"out, or put numbers there"
                )
        if names and (largest := int(examples.targets.max())) >= len(names):
            raise DataError(
                f"task={config.task!r}: a {which} example has the class {largest}, and there are "
                f"{len(names)} names in classes, of 0 to {len(names) - 1}; give a name for each"
            )


def _check_examples(config: RunConfig) -> None:
    problem = problem_of(config)
    check_sets(config)
    tests = len(test_set_of(problem))
    if config.evaluate_on == "test" and config.evaluate_examples > tests:
        raise ConfigError(
            f"evaluate-examples={config.evaluate_examples}, but {config.data_source} has {tests} "
            f"test examples; use at most that, or 0 for all"
        )
    split = split_of(problem)
    smallest = min(len(part) for part in split.participants)
    if smallest < 2:
        raise DataError(
            f"a participant would have {smallest} training example(s); use fewer participants or "
            f"another partition"
        )
    if config.privacy.samples:  # the model may draw without a layer that tells
        small = flat_model(problem, "small")
        with told_as("the small model failed", ConfigError):
            small.look(task_of(problem).prepare(augmented=True), train_set_of(problem).inputs)
        _check_privacy_needs(config, small)
