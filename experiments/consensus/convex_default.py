"""What is left of an error by the default, which forgets, at finite lengths; see `convex`.

    python -m experiments.consensus.convex_default [--out DIR]

writes convex-default.md and convex-default.json.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments.command_line import REPORTS
from experiments.consensus.convex import CALM, Case, errors, optimum_of, problem_of, simulate
from experiments.flower_runs import hardware
from experiments.reporting import Results, as_json, code_line, machine_line, table
from fl_app.provenance import provenance
from fl_app.record.environment import describe

# By name: algorithm, how much it forgets, and what becomes of its steps.
ROWS: dict[str, tuple[str, float, str]] = {
    "ecl, forget 1, cosine (the default)": ("ecl", 1.0, "cosine"),
    "ecl, forget 0, cosine": ("ecl", 0.0, "cosine"),
    "pdmm-isvr, cosine": ("pdmm-isvr", 0.0, "cosine"),
    "gossip, cosine": ("gossip", 0.0, "cosine"),
    "ecl, forget 1, constant": ("ecl", 1.0, "constant"),
    "ecl, forget 0, constant": ("ecl", 0.0, "constant"),
    "gossip, constant": ("gossip", 0.0, "constant"),
}
_BAD = "delays up to 48, 30 % lost, one-way"
# (disturbance, steps): the long one of the default alone.
COLUMNS = ((CALM, 3000), ("30 % lost", 3000), ("70 % lost", 3000), (_BAD, 3000), (CALM, 21_600))
LONG = 10_000


def plan() -> dict[tuple[str, str, int], Case]:
    cases = {}
    for name, (algorithm, forget, schedule) in ROWS.items():
        for stress, steps in COLUMNS:
            case = Case("quadratics", "ring", stress, algorithm, steps)
            if steps < LONG or name == next(iter(ROWS)):
                cases[name, stress, steps] = replace(case, forget=forget, schedule=schedule)
    return cases


def measure(case: Case) -> float:
    """The relative error of the worst node in the end."""
    *_, models = simulate(case)
    return errors(models, optimum_of(case.problem, tuple(range(len(models)))))[1]


def render(results: Results) -> str:
    found = {(r["row"], r["stress"], r["steps"]): r["worst"] for r in results["runs"]}

    def cell(row: str, column: tuple[str, int]) -> str:
        worst = found.get((row, *column))
        return "-" if worst is None else f"{worst:.1e}"

    rows = [[name, *(cell(name, column) for column in COLUMNS)] for name in ROWS]
    heads = ["", *(f"{steps:,} steps, {stress}" for stress, steps in COLUMNS)]
    return f"""\
# What is left by the default, which forgets

Relative error |w - w*| / |w*| of the worst node on the quadratics of [convex.md](convex.md), on a
ring of eight; first step size {problem_of("quadratics").rate:g}, and it changes every 300 steps.

{table(heads, rows)}

- What forgets is exact only as the steps shrink to nothing, with ever longer runs; with a constant
  step it is not.
- Above 1 with a cosine: it has run away. As steps shrink, the gradients that damp the corrections
  fade, and what lost and late mail does to them is no longer damped; the published form, whose
  anchors pull the model back with every step, bears it.
- How much is forgotten between two exchanges depends on the step size: at 0.17, the application's
  default, nearly twice as much as here.
- Made by `{results["command"]}` on {machine_line(results["hardware"])}, in
  {results["seconds"] / 60:.1f} minutes.
- Code: {code_line(results)}.
"""


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.consensus.convex_default")
    parser.add_argument("--out", type=Path, default=REPORTS / "consensus", help="of the report")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    began = time.monotonic()
    runs = [
        {"row": row, "stress": stress, "steps": steps, "worst": measure(case)}
        for (row, stress, steps), case in plan().items()
    ]
    results: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "experiments.consensus.convex_default"]),
        "code": [provenance()],
        "hardware": hardware(describe()),
        "seconds": time.monotonic() - began,
        "runs": runs,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "convex-default.json").write_text(as_json(results))
    (arguments.out / "convex-default.md").write_text(render(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
