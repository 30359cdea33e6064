"""How much memory there is, and how the C library keeps it for processes that train."""

import ctypes
import math
import os
from pathlib import Path

# Of glibc's malloc.h: parameters of mallopt, the largest threshold that it takes, and how large the
# heaps are of which it makes the memory of a thread.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20
_HEAP_OF_THREAD = 64 << 20
_KEPT = 1 << 30  # bytes


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, up to 1 GiB, for what it needs next; whether
    that can be had (glibc alone).

    Every minibatch allocates the same activations and gradients anew. glibc gives blocks of that
    size back to the kernel, which hands them out again page by page, each of them zeroed: a quarter
    of a small network's step. So it does with the mail of the threads that carry it. The process
    gets no larger than it has once been.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # another C library
        return False
    known = mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    # A thread's heap that holds nothing is given back unless that much is to stay free.
    return bool(known and mallopt(_TRIM_THRESHOLD, _KEPT) and mallopt(_TOP_PAD, _HEAP_OF_THREAD))


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
