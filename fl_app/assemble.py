"""From a configuration to what it names: device, data, models, nodes - and whether they fit."""

import math
from dataclasses import fields
from functools import lru_cache
from importlib.util import find_spec

import torch

from fl_app.config import RunConfig
from fl_app.data import Dataset, Split, load_dataset, make_split, spec_of
from fl_app.data.proxy import ProxyData
from fl_app.data.sets import FILES
from fl_app.errors import ConfigError, DataError
from fl_app.models import FlatModel, build_model
from fl_app.paths import read_text
from fl_app.pyproject import install
from fl_app.site import Site, server_site
from strategies.consensus.algorithm import Algorithm
from strategies.consensus.algorithms import Settings, make_algorithm
from strategies.consensus.schedule import Conditions, Timetable, parse_outages
from strategies.consensus.settling import Settling, SettlingTimetable, settling
from strategies.consensus.topology import Topology, build_topology


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


def dataset_of(config: RunConfig) -> Dataset:
    """The run's data set, read once a process. Raises DataError, also for a class of somebody's own
    of which the training set or the test set has nothing, unless that is allowed."""
    dataset = load_dataset(config.dataset, config.data_root, config.data_path)
    if config.dataset == FILES and dataset.one_sided and not config.allow_missing_classes:
        raise DataError(
            f"{config.data_path}: only one of the two sets has images of class "
            f"{', '.join(dataset.one_sided[:5])}; give some to the other, or say "
            f"allow-missing-classes=true{''.join(f' ({line})' for line in dataset.unused)}"
        )
    return dataset


@lru_cache(maxsize=2)
def split_of(config: RunConfig) -> Split:
    """Who has which training images. Raises ConfigError for a split that cannot be made."""
    labels = dataset_of(config).train.labels
    # Without a server's model there is nobody to hold images out for.
    proxy = 0 if config.agrees else config.proxy_examples
    measured = not config.agrees or config.evaluate_on == "validation"
    validation = config.validation_examples if measured else 0
    if proxy + validation >= len(labels):
        held = f"proxy-examples={proxy} and " if proxy else ""
        raise ConfigError(
            f"{held}validation-examples={validation} would hold out all {len(labels)} training "
            f"images of {config.data_path or config.dataset}; use fewer"
        )
    try:
        return make_split(
            labels,
            num_partitions=config.participants,
            scheme=config.partition,
            seed=config.seed,
            proxy_size=proxy,
            validation_size=validation,
            labelled_size=config.proxy_labelled_examples if config.distils else 0,
            **config.partition_parameters(),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def module_of(config: RunConfig, role: str) -> torch.nn.Module:
    """The "small" or the "large" model with its initial weights.

    Raises ConfigError when the model does not fit the data.
    """
    spec = spec_of(config.dataset, config.data_path)
    try:
        return build_model(
            getattr(config, f"{role}_model"),
            in_channels=spec.channels,
            num_classes=spec.classes,
            image_size=(spec.height, spec.width),
            width=getattr(config, f"{role}_width") or None,
            norm=config.normalisation,
            seed=config.seed,
        )
    except ValueError as error:
        raise ConfigError(f"{role}-model: {error}") from error


def flat_model(config: RunConfig, role: str, device: str = "cpu") -> FlatModel:
    """`module_of` as flat vectors on `device`."""
    return FlatModel(module_of(config, role), device)


def proxy_data(config: RunConfig) -> ProxyData:
    """The distillation server's part of the training set, with the labels that it has."""
    dataset, split = dataset_of(config), split_of(config)
    known = config.proxy_labelled_examples

    return ProxyData(
        torch.from_numpy(dataset.train.images[split.proxy]),
        torch.from_numpy(dataset.train.labels[split.proxy[:known]]) if known else None,
        dataset.mean,
        dataset.std,
        dataset.flip,
    )


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
    shared = {f.name: getattr(c, f.name) for f in fields(Settings) if f.name != "seed"}
    conditions = Conditions(**{f.name: getattr(c, f.name) for f in fields(Conditions)})
    alone = c.algorithm == "isolated"
    try:
        algorithm = make_algorithm(c.algorithm, Settings(**shared, seed=config.seed), topology)
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


def _check_privacy_needs(config: RunConfig, model: FlatModel) -> None:
    """What differential privacy needs of the participants' model and of this machine."""
    if not config.privacy.on:
        return
    if len(model.buffers):
        raise ConfigError(
            f"differential privacy needs normalisation='group', not {config.normalisation!r}: "
            f"running statistics of the participants' images would travel without noise, and the "
            f"gradient of an image depends on the others in its batch"
        )
    if find_spec("opacus") is None:
        raise ConfigError(
            f"differential privacy needs the accountant of Opacus: {install('privacy')}"
        )


def preflight(config: RunConfig) -> None:
    """Try everything that can be wrong before anything starts; raises EdgeFlError."""
    pick_device(config.device)
    if config.agrees:
        nodes_of(config, topology_text(config))
    elif config.virtual:
        config.trace()
    _check_privacy_needs(config, flat_model(config, "small"))
    if config.distils:
        flat_model(config, "large")
    dataset = dataset_of(config)
    if config.evaluate_on == "test" and config.evaluate_examples > len(dataset.test.labels):
        raise ConfigError(
            f"evaluate-examples={config.evaluate_examples}, but {config.dataset} has "
            f"{len(dataset.test.labels)} test images; use at most that, or 0 for all"
        )
    split = split_of(config)
    smallest = min(len(part) for part in split.participants)
    if smallest < 2:
        raise DataError(
            f"a participant would have {smallest} training image(s); use fewer participants or "
            f"another partition"
        )
