"""What a GPU makes of many small models: a ring of nodes, participants of an average.

    python -m experiments.benchmarks.gpu [--only rings,average] [--limit SECONDS] [--out FILE]

prints JSON, and writes it to --out after every measurement. It needs PyTorch and NumPy, and neither
Flower nor Ray: the nodes of a run on one host, in one process. Everything is measured in one
invocation on one card; images are noise except where accuracy is measured. On a CPU it runs to its
end as well, at sizes at which that is bearable.

card: what the card does with a large matrix product in bfloat16, and with a copy.
agree: engines against the sequential one on equal nodes: the largest difference of a gradient, by
    its length; whether two calls give equal bits; whether a node has the bits of one after the
    other; and whether a whole window (steps, exchanges) of nodes as rows has the bits of nodes one
    by one when the gradients are equal.
rings: node-steps a second of a ring with the default algorithm, K = 6, batch 32, by model, nodes,
    engine and precision: timetable, host, gradients, algorithm, mail; no evaluation, no files.
    sequential is one node after the other. bare: minibatches of one plain model with
    torch.optim.SGD, no nodes. share_of_peak: floating-point operations of forward and backward by
    those of the card's matrix product.
arithmetic: a step of all nodes without gradients, by one with them.
evaluate: milliseconds in which a node is evaluated on a thousand images, one after the other and
    side by side.
average: one round of federated averaging, participants side by side and one after the other; with
    100 participants, 5 epochs of 10 minibatches of 50 images and a LeNet of 0.25 MB it is a round
    of BlazeFL's benchmark (documentation of 1.1: 1.4 to 3.7 rounds a minute on an A100).
distill: the distillation server's steps a second, default models and embedded images: one by one,
    and as a recorded program; by how much of what they have changed the models differ then, and
    whether the program repeats bit by bit.
full: the time that a long run of `ecl` takes: ResNet-20, ring of 8, 20,400 steps of each node, on
    noise; as many of them as there is time for, and so all.
accuracy: the application's default consensus run, by engine and precision: test accuracy of its
    nodes and the consensus distance in the end.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.gpu_bench import Bench, card
from experiments.benchmarks.gpu_rings import agree, arithmetic, evaluate, full, rings
from experiments.benchmarks.gpu_runs import accuracy, average, distill
from experiments.benchmarks.output import rounded
from fl_app.provenance import provenance

# What takes longest last, should the time be up before it is over.
PARTS: Mapping[str, Callable[[Bench], None]] = {
    "card": card,
    "agree": agree,
    "distill": distill,
    "full": full,
    "average": average,
    "accuracy": accuracy,
    "arithmetic": arithmetic,
    "evaluate": evaluate,
    "rings": rings,
}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.gpu")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--limit", type=float, default=360.0, metavar="SECONDS")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(words)
    chosen = arguments.only.split(",")
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(PARTS)}")
    began, found = time.monotonic(), {"command": _command(words), "code": [provenance()]}
    for name in PARTS:
        left = arguments.limit - (time.monotonic() - began)
        if name in chosen and left > 0:
            # Each in a process of its own: after some errors a GPU does nothing more for a process.
            found |= _alone(name, left, arguments) if chosen[1:] else _part(name, left, arguments)
            if arguments.out:
                arguments.out.write_text(json.dumps(rounded(found), indent=1) + "\n")
    print(json.dumps(rounded(found), indent=1))
    return 0


def _part(name: str, seconds: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one part in this process."""
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    bench = Bench(arguments.device, time.monotonic() + seconds, arguments.out, {})
    try:
        PARTS[name](bench)
    except RuntimeError as error:  # what has been measured is kept, whatever came then
        traceback.print_exc()
        bench.say(f"{name}_error", {"error": str(error).splitlines()[0]})
    return bench.found


def _alone(name: str, seconds: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one part in a process of its own, and read what it has found from its file."""
    with tempfile.TemporaryDirectory() as folder:
        # Beside --out, where it stays if somebody ends this process meanwhile.
        aside = arguments.out or Path(folder) / "found.json"
        out = aside.with_suffix(f".{name}.json")
        command = [
            sys.executable, "-m", "experiments.benchmarks.gpu", "--only", name, "--out", str(out),
            "--limit", str(seconds), "--device", arguments.device,
        ]  # fmt: skip
        began = time.monotonic()
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        found = json.loads(out.read_text()) if out.exists() else {}
        out.unlink(missing_ok=True)
    found = {key: value for key, value in found.items() if key not in ("command", "code")}
    spent = {f"{name}_seconds": time.monotonic() - began}
    return found | spent | ({f"{name}_exit": ended.returncode} if ended.returncode else {})


def _command(words: Sequence[str] | None) -> str:
    shown = sys.argv[1:] if words is None else words
    return shlex.join(["python", "-m", "experiments.benchmarks.gpu", *shown])


if __name__ == "__main__":
    sys.exit(main())
