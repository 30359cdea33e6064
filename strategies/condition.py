"""How a device is: programs, processor, load, what is free; and whether a run can do with it."""

import math
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from strategies.memory import available_memory
from strategies.paths import runs_root

MEGABYTE = 10**6
# Beside what a run holds: modules that it imports, connections; the app, logs, embedded images.
LEAST_MEMORY = 64 * MEGABYTE
LEAST_DISK = 32 * MEGABYTE
TEXTS = ("python", "flwr", "torch", "machine", "data")
NUMBERS = ("cores", "load", "memory", "disk")


@dataclass(frozen=True)
class Holdings:
    """What a run holds on a device, in bytes."""

    memory: int
    disk: int


def condition() -> dict[str, str | float]:
    """Of TEXTS the versions and the kind of processor; NUMBERS: cores, load (processes that want to
    run, mean of a minute), memory and disk (bytes free; of the disk with $EDGE_FL_HOME). -1: not
    known.
    """
    try:
        load = os.getloadavg()[0]
    except (OSError, AttributeError):
        load = -1.0
    memory = available_memory()
    return {
        "python": platform.python_version(),
        "flwr": _version("flwr"),
        "torch": _version("torch"),
        "machine": platform.machine(),
        "cores": float(os.cpu_count() or -1),
        "load": load,
        "memory": memory if memory < float("inf") else -1.0,
        "disk": float(_free(runs_root())),
    }


def shortage(found: Mapping[str, Any], held: Holdings) -> str:
    """What a device in this condition has too little of for what a run holds; "" if nothing."""
    needs = {"memory": LEAST_MEMORY + held.memory, "disk": LEAST_DISK + held.disk}
    for name, needed in needs.items():
        if 0 <= found[name] < needed:
            where = f" where {runs_root().parent} is" if name == "disk" else ""
            return (
                f"it has {found[name] / MEGABYTE:.0f} MB of {name} free{where}, and this run needs "
                f"{needed / MEGABYTE:.0f}; free some, or use a smaller model"
            )
    return ""


def told(answer: Mapping[str, Any]) -> dict[str, str | float]:
    """The condition in an answer of a device, who may tell anything. Raises KeyError, TypeError or
    ValueError for what is none."""
    texts = {name: "".join(c for c in answer[name][:40] if c.isprintable()) for name in TEXTS}
    numbers = {name: float(answer[name]) for name in NUMBERS}
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError(f"what it tells of itself are no numbers: {numbers}")
    return {**texts, **numbers}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _free(place: Path) -> int:
    """Bytes, of the disk on which `place` is or would be made; -1 where that cannot be told."""
    for folder in (place, *place.parents):
        try:
            return shutil.disk_usage(folder).free
        except FileNotFoundError:
            continue
        except OSError:
            break
    return -1
