"""The JSON that a benchmark prints."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fl_app.provenance import provenance
from strategies.errors import EdgeFlError


def benchmark(
    name: str,
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    words: Sequence[str] | None,
) -> int:
    """Measure what the command line says and print it; returns the exit status."""
    words = sys.argv[1:] if words is None else words
    parser.add_argument("--out", type=Path, help="write the JSON to this file too")
    arguments = parser.parse_args(words)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        result = measure(arguments)
    except EdgeFlError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    command = shlex.join(["python", "-m", f"experiments.benchmarks.{name}", *words])
    text = json.dumps(rounded({"command": command, "code": [provenance()], **result}), indent=1)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")
    return 0


def rounded(value: Any) -> Any:
    """Four significant digits: more than the measurement has."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
