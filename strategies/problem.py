"""What a run learns, from whose examples: a task by name, and who has which of its examples.

All of it follows from a few values that travel, so that every process of a run makes the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from strategies import plugins
from strategies.arithmetic import allow_tf32, lack
from strategies.distillation.proxy import ProxyData
from strategies.errors import ConfigError, DataError
from strategies.flat import FlatModel
from strategies.partition import ADAPTER, PARTITIONS, Split, label_histogram, make_split
from strategies.plugins import told_as
from strategies.randomness import rng
from strategies.task import NO_CLASS, Examples, Task
from strategies.task_reference import check_made, class_of

# Held out of the training set where nothing else is said, and at most a share of it.
_PROXY, _VALIDATION = 1500, 300
Value = str | int | float | bool


@dataclass(frozen=True)
class TaskReference:
    """A task by name: `place` is a `plugin_name`, of a class that is made of seed, data_path, the
    options, and settings that stand in its name. name: what people call it, for messages."""

    name: str
    place: str
    seed: int
    data_path: str = ""
    options: tuple[tuple[str, Value], ...] = ()


@dataclass(frozen=True)
class Problem:
    """A task whose training examples `participants` share, by a scheme of `strategies.partition`.

    device: "auto", "cpu" or "cuda". arithmetic: in which models are trained, see
    `strategies.arithmetic`; arithmetic_key: the key that says so, and source: where the examples
    are from, both for messages.
    proxy_examples, validation_examples: how many are held out of the training set, for the
    distillation server and for evaluation: 0 for the usual number, None for none.
    proxy_labelled_examples: of how many the distillation server has the targets; -1: of all.
    evaluate_on: "test" or "validation"; evaluate_examples: how many of the test's, 0 for all.
    """

    task: TaskReference
    participants: int
    seed: int
    device: str
    arithmetic: str
    arithmetic_key: str
    source: str
    partition: str
    parameters: tuple[tuple[str, Value], ...]
    proxy_examples: int | None
    proxy_labelled_examples: int
    validation_examples: int | None
    evaluate_on: str
    evaluate_examples: int


def pick_device(name: str) -> str:
    """The configured device, cuda or cpu. Raises ConfigError for a GPU that is not there.

    With a GPU, cuDNN is told to take only convolutions that give equal bits for equal input, which
    is not its default. Nothing else in the models is among the operations that PyTorch lists as
    nondeterministic (torch.use_deterministic_algorithms).
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device='cuda', but PyTorch sees no GPU here; use device=auto or cpu")
    if not available or name == "cpu":
        return "cpu"
    torch.backends.cudnn.deterministic = True
    return "cuda"


def check_arithmetic(problem: Problem, device: str) -> None:
    """Have PyTorch compute in the configured precision. Raises ConfigError where this machine's
    `device` cannot."""
    key = problem.arithmetic_key
    if why := lack(problem.arithmetic, device):
        raise ConfigError(f"{key}={problem.arithmetic!r}: {why}; use {key}=float32")
    allow_tf32(problem.arithmetic)


def task_of(problem: Problem) -> Task:
    """The task, made once a process. Raises ConfigError, and DataError for data that it cannot
    read."""
    return make_task(problem.task)


@lru_cache(maxsize=2)  # a host's participants share one; two fit a run and a comparison
def make_task(reference: TaskReference) -> Task:
    """See `task_of`."""
    made = class_of(reference.place)
    options = dict(reference.options)
    own = plugins.arguments("task", reference.place, made, ("seed", "data_path", *options))
    with told_as(f"task={reference.name!r} cannot be made", ConfigError):
        task = made(seed=reference.seed, data_path=reference.data_path, **options, **own)
    check_made(f"task={reference.name!r}", task)
    return task


def train_set_of(problem: Problem) -> Examples:
    """All training examples in one place. EdgeFlError for what somebody's task does wrong."""
    return _asked(problem, "training", lambda task: task.train_set)


def test_set_of(problem: Problem) -> Examples:
    """What models are evaluated on; see `train_set_of`."""
    return _asked(problem, "test", lambda task: task.test_set)


def _asked(problem: Problem, method: str, ask: Callable[[Task], Examples]) -> Examples:
    task, name = task_of(problem), problem.task.name
    with told_as(f"task={name!r}: {method}() failed", DataError):
        found = ask(task)
    if not isinstance(found, Examples):
        raise ConfigError(
            f"task={name!r}: {method}() returned {type(found).__name__}; return "
            f"Examples(inputs, targets)"
        )
    return found


def _groups(problem: Problem) -> np.ndarray | None:
    """`groups` of the training examples. EdgeFlError for what somebody's task does wrong."""
    what, train = f"task={problem.task.name!r}: groups()", train_set_of(problem)
    with told_as(f"{what} failed", DataError):
        found = task_of(problem).groups(train)
        groups = None if found is None else np.asarray(found)
    if groups is None:
        return None
    if groups.shape != (len(train),) or groups.dtype.kind not in "iu":
        raise ConfigError(
            f"{what} returned {groups.dtype} {groups.shape}; return a whole number for each of the "
            f"{len(train)} examples, int64 ({len(train)},)"
        )
    if (wrong := groups[(groups < 0) & (groups != NO_CLASS)]).size:
        raise ConfigError(
            f"{what} returned {wrong[0]}; groups are numbers from 0, and {NO_CLASS} is none"
        )
    return groups.astype(np.int64)


def histogram_of(problem: Problem) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """How many examples of each group every participant has, (participants, groups), and what these
    are called; None where there are no groups."""
    groups, task = _groups(problem), task_of(problem)
    if groups is None:
        return None
    by_class = task.classes and np.array_equal(groups, train_set_of(problem).targets.cpu().numpy())
    names = tuple(task.classes) if by_class else tuple(map(str, range(max(groups.max(), 0) + 1)))
    return label_histogram(groups, split_of(problem).participants, len(names)), names


@lru_cache(maxsize=2)
def split_of(problem: Problem) -> Split:
    """Who has which training examples. Raises ConfigError for a split that cannot be made."""
    train, groups = train_set_of(problem), _groups(problem)
    own = problem.partition not in PARTITIONS and not problem.partition.startswith(ADAPTER)
    if groups is None:
        if problem.partition != "iid" and not own:
            raise ConfigError(
                f"partition={problem.partition!r} divides by class, and the examples of "
                f"task={problem.task.name!r} have none: use partition=iid"
            )
        groups = np.zeros(len(train), np.int64)
    proxy = _held_out(problem.proxy_examples, _PROXY, len(train) // 4)
    validation = _held_out(problem.validation_examples, _VALIDATION, len(train) // 20)
    if proxy + validation >= len(train):
        held = f"proxy-examples={proxy} and " if proxy else ""
        raise ConfigError(
            f"{held}validation-examples={validation} would hold out all {len(train)} training "
            f"examples of {problem.source}; use fewer"
        )
    labelled = problem.proxy_labelled_examples
    if labelled > proxy:
        raise ConfigError(
            f"proxy-labelled-examples={labelled} can be at most proxy-examples={proxy}: it says "
            f"how many of these have labels"
        )
    scheme = plugins.function_of("partition", problem.partition, 3) if own else problem.partition
    try:
        return make_split(
            groups,
            num_partitions=problem.participants,
            scheme=scheme,
            seed=problem.seed,
            proxy_size=proxy,
            validation_size=validation,
            labelled_size=proxy if labelled == -1 else labelled,
            **dict(problem.parameters),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except Exception as error:
        if not own:
            raise
        raise ConfigError(
            f"partition={problem.partition!r} failed: {type(error).__name__}: {error}"
        ) from error


def _held_out(configured: int | None, usual: int, most: int) -> int:
    return 0 if configured is None else configured or min(usual, max(1, most))


def module_of(problem: Problem, role: str) -> torch.nn.Module:
    """The "small" or the "large" model with its initial weights, which follow from the seed.

    Raises ConfigError when the model does not fit the data, or is none.
    """
    task, name = task_of(problem), problem.task.name
    # PyTorch's own initialisation uses the global generator, whose state is put back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng(problem.seed, "model", role).integers(2**63)))
        with told_as(f"task={name!r}: model({role!r}) failed", ConfigError):
            module = task.model(role)
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(
            f"task={name!r}: model({role!r}) returned {type(module).__name__}, which is no "
            f"torch.nn.Module"
        )
    return module


def flat_model(problem: Problem, role: str, device: str = "cpu") -> FlatModel:
    """`module_of` as flat vectors on `device`. Raises ConfigError for what cannot be one."""
    try:
        return FlatModel(module_of(problem, role), device)
    except ValueError as error:
        raise ConfigError(f"task={problem.task.name!r}: the {role} model: {error}") from error


def proxy_data(problem: Problem) -> ProxyData:
    """The distillation server's part of the training set, with the targets that it has."""
    examples = train_set_of(problem).take(split_of(problem).proxy)
    known = problem.proxy_labelled_examples
    known = len(examples) if known == -1 else known
    targets = examples.targets[:known] if known else None
    return ProxyData(examples.inputs, targets, task_of(problem).prepare(augmented=True))
