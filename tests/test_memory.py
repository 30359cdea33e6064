"""Memory that a training process frees stays with it."""

import subprocess
import sys

import pytest

from strategies.allocator import keep_freed_memory

# Page faults of one training step in a process of its own, after as many steps as its heap may need
# to find its size.
TRAINING = """
import resource, sys
import torch
from torch.nn import functional
from client_apps.local_model import local_model_of
from fl_app.config import resolve
from fl_app.models import build_model
from fl_app.problem import problem_of

torch.set_num_threads(1)
if sys.argv[1] == "keep":  # as every process of a participant does
    values = {"dataset": "cifar10", "small-model": "cnn6", "small-width": 32, "device": "cpu"}
    model = local_model_of(problem_of(resolve(values))).model.module
else:
    model = build_model("cnn6", in_channels=3, num_classes=10, image_size=32, seed=0, width=32)
images, labels = torch.zeros(32, 3, 32, 32), torch.zeros(32, dtype=torch.int64)
for step in range(24):
    if step == 16:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    functional.cross_entropy(model(images), labels).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 8)
"""

# Page faults of a thread that holds a hundred mails and lets them go, for the third time. It is one
# thread, for another one may get a heap of its own, which is new to it.
MAIL = """
import resource, sys, threading
from strategies.allocator import keep_freed_memory

def hold():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        len([b"x" * 2**20 for _ in range(100)])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if sys.argv[1] == "keep":
    keep_freed_memory()
threading.Thread(target=hold).start()
"""

# By how much a process has been larger at most than its nodes' vectors, as a share of these.
ROWS = """
import resource
import torch
from strategies.consensus.node import Node
from strategies.consensus.rows import Rows
from strategies.allocator import keep_freed_memory

def largest():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

keep_freed_memory()
before, count, length = largest(), 100, 2**18
nodes = []
for i in range(count):
    links = {j: {"z": torch.ones(length)} for j in ((i - 1) % count, (i + 1) % count)}
    nodes.append(Node(i, torch.ones(length), {"momentum": torch.ones(length)}, links))
Rows(nodes, [list(node.links) for node in nodes], ["momentum"], ["z"])
print((largest() - before) / (4 * count * 4 * length) - 1)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc")
def test_nodes_that_become_rows_take_no_more_memory() -> None:
    done = subprocess.run([sys.executable, "-c", ROWS], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.5  # 1.0 if the process kept what it frees


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc")
@pytest.mark.parametrize("program", [TRAINING, MAIL], ids=["training", "mail"])
def test_what_was_freed_is_not_asked_of_the_kernel_again(program: str) -> None:
    def faults(word: str) -> float:
        command = [sys.executable, "-c", program, word]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < faults("leave") / 10
