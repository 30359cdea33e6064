"""From a configuration to what it names: device, data, models, nodes - and whether they fit."""

import math
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from importlib.util import find_spec

import numpy as np
import torch
from torch.nn.modules.batchnorm import _NormBase

from fl_app.config import RunConfig
from fl_app.data import Dataset
from fl_app.tasks import task_of, told_as
from fl_app.tasks.images import Images
from fl_app.tasks.reference import function_of
from strategies.arithmetic import allow_tf32, lack
from strategies.attacks import LABEL_FLIP
from strategies.consensus.algorithm import Algorithm
from strategies.consensus.algorithms import Settings, make_algorithm
from strategies.consensus.schedule import Conditions, Timetable, parse_outages
from strategies.consensus.settling import Settling, SettlingTimetable, settling
from strategies.consensus.topology import Topology, build_topology
from strategies.distillation.proxy import ProxyData
from strategies.errors import ConfigError, DataError
from strategies.flat import FlatModel
from strategies.partition import ADAPTER, PARTITIONS, Split, make_split
from strategies.paths import read_text
from strategies.pyproject import install
from strategies.randomness import rng
from strategies.site import Site, server_site
from strategies.task import Examples, Task

# Held out of the training set where nothing else is said, and at most a share of it.
_PROXY, _VALIDATION = 1500, 300


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


def check_arithmetic(config: RunConfig, device: str) -> None:
    """Have PyTorch compute in the configured precision. Raises ConfigError where this machine's
    `device` cannot."""
    key = "consensus.precision" if config.agrees else "precision"
    if why := lack(config.arithmetic, device):
        raise ConfigError(f"{key}={config.arithmetic!r}: {why}; use {key}=float32")
    allow_tf32(config.arithmetic)


def dataset_of(config: RunConfig) -> Dataset:
    """The images of a run of task=images. Raises DataError, and ConfigError for another task."""
    task = task_of(config)
    if not isinstance(task, Images):
        raise ConfigError(f"task={config.task!r} has no data set of images")
    return task.dataset


def train_set_of(config: RunConfig) -> Examples:
    """All training examples in one place. EdgeFlError for what somebody's task does wrong."""
    return _asked(config, "training", lambda task: task.train_set)


def test_set_of(config: RunConfig) -> Examples:
    """What models are evaluated on; see `train_set_of`."""
    return _asked(config, "test", lambda task: task.test_set)


def _asked(config: RunConfig, method: str, ask: Callable[[Task], Examples]) -> Examples:
    task = task_of(config)
    with told_as(f"task={config.task!r}: {method}() failed", DataError):
        found = ask(task)
    if not isinstance(found, Examples):
        raise ConfigError(
            f"task={config.task!r}: {method}() returned {type(found).__name__}; return "
            f"Examples(inputs, targets)"
        )
    return found


@lru_cache(maxsize=2)
def split_of(config: RunConfig) -> Split:
    """Who has which training examples. Raises ConfigError for a split that cannot be made."""
    train = train_set_of(config)
    groups = task_of(config).groups(train)
    own = config.partition not in PARTITIONS and not config.partition.startswith(ADAPTER)
    if groups is None:
        if config.partition != "iid" and not own:
            raise ConfigError(
                f"partition={config.partition!r} divides by class, and the examples of "
                f"task={config.task!r} have none: use partition=iid"
            )
        groups = np.zeros(len(train), np.int64)
    # Without a server's model there is nobody to hold examples out for.
    proxy = 0 if config.agrees else config.proxy_examples or min(_PROXY, max(1, len(train) // 4))
    measured = not config.agrees or config.evaluate_on == "validation"
    validation = config.validation_examples or min(_VALIDATION, max(1, len(train) // 20))
    validation = validation if measured else 0
    if proxy + validation >= len(train):
        held = f"proxy-examples={proxy} and " if proxy else ""
        raise ConfigError(
            f"{held}validation-examples={validation} would hold out all {len(train)} training "
            f"examples of {config.data_source}; use fewer"
        )
    labelled = config.proxy_labelled_examples if config.distils else 0
    if labelled > proxy:
        raise ConfigError(
            f"proxy-labelled-examples={labelled} can be at most proxy-examples={proxy}: it says "
            f"how many of these have labels"
        )
    try:
        return make_split(
            groups,
            num_partitions=config.participants,
            scheme=function_of("partition", config.partition) if own else config.partition,
            seed=config.seed,
            proxy_size=proxy,
            validation_size=validation,
            labelled_size=proxy if labelled == -1 else labelled,
            **config.partition_parameters(),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except Exception as error:
        if not own:
            raise
        raise ConfigError(
            f"partition={config.partition!r} failed: {type(error).__name__}: {error}"
        ) from error


def module_of(config: RunConfig, role: str) -> torch.nn.Module:
    """The "small" or the "large" model with its initial weights, which follow from the seed.

    Raises ConfigError when the model does not fit the data, or is none.
    """
    task = task_of(config)
    # PyTorch's own initialisation uses the global generator, whose state is put back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng(config.seed, "model", role).integers(2**63)))
        with told_as(f"task={config.task!r}: model({role!r}) failed", ConfigError):
            module = task.model(role)
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(
            f"task={config.task!r}: model({role!r}) returned {type(module).__name__}, which is no "
            f"torch.nn.Module"
        )
    return module


def flat_model(config: RunConfig, role: str, device: str = "cpu") -> FlatModel:
    """`module_of` as flat vectors on `device`. Raises ConfigError for what cannot be one."""
    try:
        return FlatModel(module_of(config, role), device)
    except ValueError as error:
        raise ConfigError(f"task={config.task!r}: the {role} model: {error}") from error


def proxy_data(config: RunConfig) -> ProxyData:
    """The distillation server's part of the training set, with the targets that it has."""
    examples = train_set_of(config).take(split_of(config).proxy)
    known = config.proxy_labelled_examples
    known = len(examples) if known == -1 else known
    targets = examples.targets[:known] if known else None
    return ProxyData(examples.inputs, targets, task_of(config).prepare(augmented=True))


def topology_text(config: RunConfig) -> str:
    """The content of the topology file, "" if there is none. Raises ConfigError."""
    path = config.consensus.topology_file
    try:
        return read_text(path) if path else ""
    except ConfigError as error:
        raise ConfigError(f"consensus.topology-file={path!r} cannot be read: {error}") from error


def topology_of(config: RunConfig, text: str) -> Topology:
    """Who is whose neighbour; `text` is that of `topology_text`. Raises ConfigError."""
    c = config.consensus
    try:
        return build_topology(
            c.topology,
            config.participants,
            seed=config.seed,
            degree=c.degree,
            probability=c.probability,
            text=text,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


@lru_cache(maxsize=2)
def nodes_of(config: RunConfig, text: str) -> tuple[Topology, Algorithm, Timetable]:
    """What the nodes of the consensus system share. Raises ConfigError for what cannot work."""
    c, topology = config.consensus, topology_of(config, text)
    own = {"seed": config.seed, "mail_precision": config.mail_precision}
    shared = {f.name: getattr(c, f.name) for f in fields(Settings) if f.name not in own}
    conditions = Conditions(**{f.name: getattr(c, f.name) for f in fields(Conditions)})
    alone = c.algorithm == "isolated"
    try:
        algorithm = make_algorithm(c.algorithm, Settings(**shared, **own), topology)
        timetable = Timetable(
            topology,
            conditions,
            interval=math.inf if alone else c.interval,
            window_steps=c.window,
            seed=config.seed,
            synchronous=c.synchronous and not alone,
            outages=parse_outages(c.outages, topology),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for window in range(1, config.rounds + 1):
        t = window * timetable.window_seconds
        if not any(timetable.present(i, t) for i in range(topology.size)):
            raise ConfigError(
                f"consensus.outages={c.outages!r}: nobody is on at {t:g} s, when window {window} "
                f"ends; leave one of them out"
            )
    return topology, algorithm, timetable


@lru_cache(maxsize=2)
def settling_of(config: RunConfig, text: str) -> tuple[Settling, SettlingTimetable]:
    """How the nodes settle after the last window; see `nodes_of`."""
    topology, _, timetable = nodes_of(config, text)
    rounds = config.consensus.settling_rounds
    return settling(topology, rounds), SettlingTimetable(timetable, config.rounds, rounds)


def check_rounds(config: RunConfig, num_rounds: int) -> None:
    """Raise ConfigError unless `num_rounds`, with which a strategy is started, is 0 or what is
    configured: the schedule, its steps' sizes and the end of a run all come from that."""
    if num_rounds not in (0, config.rounds):
        key = (
            f"consensus.steps={num_rounds * config.consensus.window}"
            if config.agrees
            else f"num-server-rounds={num_rounds}"
        )
        raise ConfigError(
            f"start(num_rounds={num_rounds}), but the run is configured for {config.rounds}: "
            f"configure it with {key}, or leave num_rounds out"
        )


def expected_devices(config: RunConfig) -> tuple[str, ...]:
    """`devices_of` the site of this server; () where it has none, as in a simulation."""
    site = server_site()
    return devices_of(config, site) if site else ()


def devices_of(config: RunConfig, site: Site) -> tuple[str, ...]:
    """The names of the devices that are participants 0, 1 ... on the server's `site`: those of the
    configuration, or of the topology's file, or all. Raises ConfigError naming what is wrong."""
    own = ()
    if config.agrees:
        own = topology_of(config, topology_text(config)).names
    chosen = own or config.device_list or tuple(sorted(site.devices))
    known = ", ".join(sorted(site.devices)) or "none"
    if own and config.device_list and set(own) != set(config.device_list):
        raise ConfigError(
            f"devices={config.devices!r}, but consensus.topology-file names {', '.join(own)}"
        )
    if unknown := [name for name in chosen if name not in site.devices]:
        raise ConfigError(
            f"unknown device(s): {', '.join(unknown)}; this site has: {known} (see `edge-fl deploy "
            f"add-device`)"
        )
    if len(chosen) != config.participants:
        raise ConfigError(
            f"participants={config.participants}, but there are {len(chosen)} device(s): "
            f"{', '.join(chosen) or 'none'}; use participants={len(chosen)}, or name others with "
            f"devices=NAME,NAME..."
        )
    return chosen


def _check_consensus_needs(config: RunConfig, model: FlatModel) -> None:
    """What the consensus system needs of the nodes' model."""
    for name, layer in model.module.named_modules():
        if isinstance(layer, _NormBase) and layer.running_mean is not None:
            raise ConfigError(
                f"mode='consensus': {name or 'the model'} is a {type(layer).__name__}, whose "
                f"running statistics describe a node's own data; neighbours can neither exchange "
                f"nor average them; use GroupNorm or LayerNorm"
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
        raise ConfigError("privacy.samples cannot be with dropout, which torch.func does not draw")
    if find_spec("opacus") is None:
        raise ConfigError(
            f"differential privacy needs the accountant of Opacus: {install('privacy')}"
        )


def _check_best_metric(config: RunConfig) -> None:
    names = [each.name for each in task_of(config).metrics]
    known = [*names, *([] if "loss" in names else ["loss"])]
    if config.best_metric and config.best_metric not in known:
        raise ConfigError(
            f"best-metric={config.best_metric!r} is no metric of task={config.task!r}; choose one "
            f"of: {', '.join(known)}"
        )


def preflight(config: RunConfig) -> None:
    """Try everything that can be wrong before anything starts; raises EdgeFlError."""
    check_arithmetic(config, pick_device(config.device))
    if config.agrees:
        nodes_of(config, topology_text(config))
    elif config.virtual:
        config.trace()
    small = flat_model(config, "small")
    _check_privacy_needs(config, small)
    if config.agrees:
        _check_consensus_needs(config, small)
    if config.distils:
        flat_model(config, "large")
    tests = len(test_set_of(config))
    if config.evaluate_on == "test" and config.evaluate_examples > tests:
        raise ConfigError(
            f"evaluate-examples={config.evaluate_examples}, but {config.data_source} has {tests} "
            f"test examples; use at most that, or 0 for all"
        )
    _check_best_metric(config)
    if config.attack == LABEL_FLIP and not task_of(config).classes:
        raise ConfigError(f"attack={LABEL_FLIP!r} needs classes, and task={config.task!r} has none")
    split = split_of(config)
    smallest = min(len(part) for part in split.participants)
    if smallest < 2:
        raise DataError(
            f"a participant would have {smallest} training example(s); use fewer participants or "
            f"another partition"
        )
