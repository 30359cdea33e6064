"""How large a simulation this machine carries."""

import contextlib
import math
import os
from pathlib import Path

import torch

from fl_app.config import RunConfig, Value
from fl_app.launch.cluster import resources_of
from strategies.problem import pick_device


def simulation_size(
    participants: int, most: int, gpus: int = 0, reserved: float = 0.0
) -> dict[str, Value]:
    """Flower's simulation settings: SuperNodes host the participants between them.

    `most` is how many can work at once: more would only wait for one another. `reserved` is the
    share of each GPU that no client gets (the distillation server's, which is not one of Ray's
    processes).
    """
    hosts = max(1, min(participants, most))
    size: dict[str, Value] = {
        "num-supernodes": hosts,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": hosts,
        "init-args-logging-level": "ERROR",
        "init-args-log-to-driver": True,
    }
    if gpus:
        share = (1 - reserved) / math.ceil(hosts / gpus)
        size["client-resources-num-gpus"] = math.floor(share * 1000) / 1000
        size["init-args-num-gpus"] = gpus
    return size


def size_for(config: RunConfig, ray: str = "") -> dict[str, Value]:
    """The simulation that carries a run on this machine, or on the Ray cluster at the address
    `ray`, which Flower joins if it is given no settings for a Ray of its own.

    Raises ConfigError for a cluster or a GPU that is not there.
    """
    cores, gpus = count_cluster(ray) if ray else (count_cores(), count_gpus(config.device))
    gpus = 0 if config.device == "cpu" else gpus
    # Processes have a GPU in turns; the nodes of one process can have it together.
    hosts = gpus if gpus and config.agrees and config.virtual else cores
    reserved = config.distill.gpu_fraction if config.distils else 0.0
    size = simulation_size(config.participants, hosts, gpus, reserved)
    return {key: value for key, value in size.items() if not (ray and key.startswith("init-args"))}


def count_cluster(address: str) -> tuple[int, int]:
    """The CPUs and GPUs of the Ray cluster at `address`. ConfigError if there is none."""
    resources = resources_of(address)
    return int(resources.get("CPU", 1)), int(resources.get("GPU", 0))


def count_cores() -> int:
    """CPU cores this process may use: its affinity and its control group's quota are limits."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no control groups, or "max"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def count_gpus(device: str) -> int:
    """GPUs for the configured device; ConfigError if one is asked for and absent."""
    return torch.cuda.device_count() if pick_device(device) == "cuda" else 0
