"""How much memory there is."""

import math
import os
from pathlib import Path


def available_memory() -> float:
    """Bytes that this process can still get without swapping, as far as the system tells:
    infinity where it does not."""
    limits = [
        _number("/sys/fs/cgroup/memory.max", 1, ""),
        _number("/proc/meminfo", 1024, "MemAvail"),
    ]
    if math.isinf(limits[1]) and hasattr(os, "sysconf"):  # not Linux: all that there is
        limits.append(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    return min(limits)


def _number(path: str, unit: int, line: str) -> float:
    """The first number in the line of `path` that begins with `line`, times `unit`."""
    try:
        for text in Path(path).read_text().splitlines():
            if text.startswith(line):
                return float(next(word for word in text.split() if word.isdecimal())) * unit
    except (OSError, StopIteration):  # no such system, or "max"
        pass
    return math.inf
