"""A computation that a GPU replays: one launch in place of some hundred."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

_WARM_UP = 3  # runs before the recording: libraries choose their kernels in the first ones


class Recording(NamedTuple):
    """replay: does the computation; on a CPU by doing it. pool: of its memory, for another one."""

    replay: Callable[[], None]
    pool: Any


def record(
    compute: Callable[[], None],
    device: torch.device,
    *,
    pool: Any = None,
    changes: Iterable[torch.Tensor] = (),
) -> Recording:
    """`compute` reads and fills tensors that stay where they are, and asks the GPU for nothing.

    changes: those of its tensors that it reads and changes, which are then as they were.
    """
    if device.type != "cuda":
        return Recording(compute, None)
    kept = [(tensor, tensor.clone()) for tensor in changes]
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UP):
            compute()
    torch.cuda.current_stream().wait_stream(aside)
    for tensor, before in kept:
        tensor.copy_(before)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        compute()
    return Recording(graph.replay, graph.pool())


def send(source: torch.Tensor, target: torch.Tensor) -> None:
    """From the CPU to where `target` is, for which nobody waits."""
    on_gpu = target.device.type == "cuda"
    target.copy_(source.pin_memory() if on_gpu else source, non_blocking=on_gpu)
