"""What all parts of the benchmark on a GPU have in common: where and how they measure."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from client_apps.gradients import dtype_of
from client_apps.row_gradients import PASSES
from experiments.benchmarks.output import rounded
from fl_app.data import Preparation
from strategies.consensus.algorithms import Settings

SEQUENTIAL = "sequential"
ENGINES = (SEQUENTIAL, *PASSES)
PRECISIONS = ("float32", "tf32", "bf16")
BATCH, IMAGES, CLASSES, SIDE, RATE = 32, 128, 10, 32, 0.05
PREPARE = Preparation((0.5,) * 3, (0.25,) * 3)
LOSS = functional.cross_entropy
SETTINGS = Settings(
    interval=6.0, hold=True, forget=1.0, theta=0.5, kappa=1.0, mult=1.0, penalty="isvr", alpha=1.0,
    rho=0.0, momentum=0.9, weight_decay=0.0, keep=0.1, compression="random-k", gamma=0.3, seed=0,
)  # fmt: skip
# (model, nodes) of rings on a GPU, and on a CPU.
RINGS = {
    "cuda": [("lenet", 64), ("resnet20", 8), ("lenet", 8), ("lenet", 256), ("lenet", 1024),
             ("resnet20", 32), ("resnet20", 128)],
    "cpu": [("lenet", 8)],
}  # fmt: skip
SEQUENTIAL_NODES = 64  # more take as long each
SECONDS = {"cuda": 0.8, "cpu": 1.0}  # that something is measured for, at least


@dataclass
class Bench:
    """Where to measure, until when, and where to write what was found."""

    device: str
    until: float
    out: Path | None
    found: dict[str, Any]

    def say(self, part: str, value: Any) -> None:
        """Keep a finding of a part: append it to a list, or take in a dictionary."""
        if isinstance(value, list):
            self.found.setdefault(part, []).extend(value)
        else:
            self.found.setdefault(part, {}).update(value)
        print(f"{part}: {json.dumps(rounded(value))}", file=sys.stderr, flush=True)
        if self.out:
            self.out.write_text(json.dumps(rounded(self.found), indent=1) + "\n")

    @property
    def over(self) -> bool:
        return time.monotonic() > self.until


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], device: str, least: float = 0.3) -> float:
    """Of one call, after two that do not count."""
    for _ in range(2):
        work()
    wait(device)
    count, began = 0, time.perf_counter()
    while True:
        work()
        count += 1
        if count % 8 == 0 or device != "cuda":
            wait(device)
        if time.perf_counter() - began > least:
            wait(device)
            return (time.perf_counter() - began) / count


def precise(precision: str) -> torch.dtype:
    """Have PyTorch compute in this precision as a run does; returns the type of the arithmetic."""
    torch.backends.cudnn.deterministic = True
    return dtype_of(precision)


def peak_tflops(device: str) -> float:
    """What a large matrix product in bfloat16 gets out of the device."""
    side = 8192 if device == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return 2 * side**3 / seconds_of(lambda: a @ a, device) / 1e12


def card(bench: Bench) -> None:
    device = bench.device
    b = torch.randn(2**27 if device == "cuda" else 2**22, device=device)
    c = torch.empty_like(b)
    bench.say("card", {
        "name": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "torch": torch.__version__,
        "bf16_tflops": peak_tflops(device),
        "copy_tb_a_second": 2 * b.nbytes / seconds_of(lambda: c.copy_(b), device) / 1e12,
    })  # fmt: skip
