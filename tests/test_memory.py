"""Memory that a training process frees stays with it."""

import subprocess
import sys

import pytest

from fl_app.memory import keep_freed_memory

# Page faults of one training step in a process of its own, after as many steps as its heap may need
# to find its size.
PROGRAM = """
import resource, sys
import torch
from torch.nn import functional
from fl_app.memory import keep_freed_memory
from fl_app.models import build_model

if sys.argv[1] == "keep":
    keep_freed_memory()
torch.set_num_threads(1)
model = build_model("cnn6", in_channels=3, num_classes=10, image_size=32, seed=0, width=32)
images, labels = torch.zeros(32, 3, 32, 32), torch.zeros(32, dtype=torch.int64)
for step in range(24):
    if step == 16:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    functional.cross_entropy(model(images), labels).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 8)
"""


def faults(word: str) -> float:
    command = [sys.executable, "-c", PROGRAM, word]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc")
def test_a_training_step_gets_hardly_any_new_memory_from_the_kernel() -> None:
    assert faults("keep") < faults("leave") / 10
