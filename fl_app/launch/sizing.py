"""How large a simulation this machine carries."""

import contextlib
import logging
import math
import os
from pathlib import Path

import torch

from fl_app.assemble import pick_device
from fl_app.config import Value
from fl_app.errors import ConfigError


def simulation_size(
    participants: int, cores: int, gpus: int = 0, reserved: float = 0.0
) -> dict[str, Value]:
    """Flower's simulation settings for a machine: SuperNodes host the participants between them.

    More SuperNodes than cores would only wait for one another. `reserved` is the share of each GPU
    that no client gets (the distillation server's, which is not one of Ray's processes).
    """
    hosts = max(1, min(participants, cores))
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


def cluster_size(participants: int, cores: int) -> dict[str, Value]:
    """The same for a Ray cluster that runs already, with `cores` in all: Flower joins it if it is
    given no settings for a Ray of its own."""
    return {"num-supernodes": max(1, min(participants, cores)), "client-resources-num-cpus": 1}


def count_cluster_cores(address: str) -> int:
    """The CPUs of the Ray cluster at `address`. ConfigError if there is none."""
    import ray

    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        return int(ray.cluster_resources().get("CPU", 1))
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"there is no Ray cluster at {address}: {error}") from error
    finally:
        ray.shutdown()


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
