"""What the C library does with the memory that this process frees."""

import ctypes
from contextlib import suppress

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


def give_back_freed_memory() -> None:
    """Give what this process has freed back to the system, if the C library can (glibc): for once,
    where much is freed that is needed nowhere else."""
    with suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
