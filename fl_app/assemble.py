"""From a configuration to what it names: its data set, its topology's file, its devices."""

from fl_app.config import RunConfig
from fl_app.data import Dataset
from fl_app.problem import problem_of
from fl_app.tasks.images import Images
from strategies.consensus.shared import topology_of
from strategies.distillation.settings import check_references_of_devices
from strategies.errors import ConfigError
from strategies.paths import read_text
from strategies.problem import task_of
from strategies.site import Site, server_site


def dataset_of(config: RunConfig) -> Dataset:
    """The images of a run of task=images. Raises DataError, and ConfigError for another task."""
    task = task_of(problem_of(config))
    if not isinstance(task, Images):
        raise ConfigError(f"task={config.task!r} has no data set of images")
    return task.dataset


def topology_text(config: RunConfig) -> str:
    """The content of the topology file, "" if there is none. Raises ConfigError."""
    path = config.consensus.topology_file
    try:
        return read_text(path) if path else ""
    except ConfigError as error:
        raise ConfigError(f"consensus.topology-file={path!r} cannot be read: {error}") from error


def expected_devices(config: RunConfig) -> tuple[str, ...]:
    """`devices_of` the site of this server; () where it has none, as in a simulation."""
    site = server_site()
    return devices_of(config, site) if site else ()


def check_devices(config: RunConfig, site: Site) -> tuple[str, ...]:
    """`devices_of`, if a run of this configuration can be worked by devices. Raises ConfigError."""
    if config.agrees and config.consensus.reference_list:
        raise ConfigError(
            "consensus.references need all data in one place; on devices use "
            'consensus.references=""'
        )
    check_references_of_devices(config.references)
    return devices_of(config, site)


def devices_of(config: RunConfig, site: Site) -> tuple[str, ...]:
    """The names of the devices that are participants 0, 1 ... on the server's `site`: those of the
    configuration, or of the topology's file, or all. Raises ConfigError naming what is wrong."""
    own = ()
    if config.agrees:
        own = topology_of(
            config.consensus, config.participants, config.seed, topology_text(config)
        ).names
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
