"""What local training of a model needs of a device, in a process of its own as there.

    python -m experiments.benchmarks.device_model NAME

prints JSON: start_seconds from the process's start until it has imported what a device's working
process does (torch and Flower above all) and built the model; step_seconds, the median over passes
of training with one thread on images of 3x32x32; peak resident memory in MB then, and what of it
was there before the model was built.
"""

import json
import os
import sys
import time
from pathlib import Path
from statistics import median

from experiments.benchmarks.process_tree import process

_IMAGES = 640
_STEPS = 10  # of a pass
_PASSES = 3


def measure(name: str) -> dict[str, float]:
    """Seconds and MB of training `name` here."""
    import numpy as np
    import torch
    from torch.nn import functional

    import fl_app.client_app  # noqa: F401  what a device's working process imports
    from client_apps.training import train_locally
    from fl_app.config import resolve
    from fl_app.data import Preparation
    from fl_app.models import build_model
    from fl_app.settings import training_of
    from strategies.allocator import keep_freed_memory
    from strategies.flat import FlatModel
    from strategies.randomness import rng
    from strategies.task import Examples

    keep_freed_memory()
    torch.set_num_threads(1)
    before = _peak_megabytes()
    config = resolve({"small-model": name, "local-steps": _STEPS})
    model = FlatModel(build_model(name, in_channels=3, num_classes=10, image_size=32, seed=0))
    started = time.time() - process(os.getpid()).start
    images = torch.from_numpy(rng(0, "benchmark").integers(0, 256, (_IMAGES, 3, 32, 32), np.uint8))
    examples = Examples(images, torch.arange(_IMAGES) % 10)
    passes = []
    for number in range(1 + _PASSES):
        began = time.perf_counter()
        train_locally(
            *(model, examples, training_of(config), rng(0, "batches", number)),
            learning_rate=config.learning_rate,
            prepare=Preparation((0.5,) * 3, (0.25,) * 3, flip=True, augmented=True),
            loss=functional.cross_entropy,
        )
        passes.append(time.perf_counter() - began)
    return {
        "parameters": len(model.weights),
        "batch": config.batch_size,
        "start_seconds": started,
        "step_seconds": median(passes[1:]) / config.local_steps,
        "peak_mb": _peak_megabytes(),
        "before_model_mb": before,
    }


def _peak_megabytes() -> float:
    # Not of getrusage, which goes on from what the parent had.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
