"""Where the algorithms end when the optimum is known: every topology, every kind of disturbance.

    python -m experiments.consensus.convex [--out DIR]

writes convex.md and convex.json. Eight nodes whose functions differ, run by the application's own
timetable, host and algorithms, in float64 and with exact gradients: so what is left in the end is
the algorithm's error, and none of data or arithmetic.
"""

import argparse
import math
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch

from experiments.command_line import REPORTS
from experiments.consensus.problems import Problem, quadratics, softmax_regression
from experiments.flower_runs import hardware, load_json, say
from experiments.reporting import Entry, Results, as_json, code_line, machine_line, table
from fl_app.data import load_dataset
from fl_app.provenance import provenance
from fl_app.record.environment import describe
from strategies.consensus.algorithm import Algorithm
from strategies.consensus.algorithms import ALGORITHMS, Settings, make_algorithm
from strategies.consensus.host import Host
from strategies.consensus.node import Node
from strategies.consensus.participant import Participant
from strategies.consensus.schedule import Conditions, Timetable, parse_outages
from strategies.consensus.topologies import TOPOLOGIES, build_topology
from strategies.consensus.topology import Topology
from strategies.learning_rate import rate_of

NODES = 8
INTERVAL = 6.0
_DEGREES = {"watts-strogatz": 4}  # where 3, what the others have, cannot be
WINDOW = 300
EXACT = 1e-9  # an error below it is none; float64 ends near 1e-15
# Long after the last mail of somebody who is there: e^-20 for a gap of so many steps.
_SILENCE = 20 * INTERVAL

FAMILY = ("ecl", "pdmm-isvr", "admm-isvr", "pdmm-sgd", "admm-sgd")
BASELINES = ("gossip", "d-psgd", "gradient-tracking")


@dataclass(frozen=True)
class Stress:
    """What the world does to mails and nodes; times in local steps of a node of speed 1.

    outages: see `parse_outages`. staying: the nodes whose common optimum is to be found.
    """

    conditions: Conditions = field(default_factory=Conditions)
    outages: str = ""
    staying: tuple[int, ...] = tuple(range(NODES))


_WITHOUT_5 = tuple(node for node in range(NODES) if node != 5)
CALM = "nothing"
STRESSES: dict[str, Stress] = {
    CALM: Stress(),
    "one-way pushes": Stress(Conditions(one_way=True)),
    "5 % of the mails lost": Stress(Conditions(loss=0.05)),
    "30 % lost": Stress(Conditions(loss=0.3)),
    "70 % lost": Stress(Conditions(loss=0.7)),
    "delays up to 3 steps, mails overtake": Stress(Conditions(delay_seconds=3.0)),
    "delays up to 12 steps": Stress(Conditions(delay_seconds=12.0)),
    "delays up to 48 steps": Stress(Conditions(delay_seconds=48.0)),
    "delays up to 48, 30 % lost, one-way": Stress(
        Conditions(delay_seconds=48.0, loss=0.3, one_way=True)
    ),
    "speeds that differ (log-normal, sigma 1)": Stress(Conditions(speed_spread=1.0)),
    "half of the mails twice, delays up to 3": Stress(
        Conditions(duplication=0.5, delay_seconds=3.0)
    ),
    "a crash, a pause, a leave and a cut; all come back": Stress(
        outages="crash:3@600-1200, leave:5@900-1500, pause:1@1200-1800, cut:6-7@300-1500"
    ),
    "node 5 says goodbye and stays away": Stress(outages="leave:5@1800", staying=_WITHOUT_5),
    "node 5 dies without a word": Stress(outages="crash:5@1800", staying=_WITHOUT_5),
}


@dataclass(frozen=True)
class Case:
    """One simulation; forget and schedule as in the configuration."""

    problem: str
    topology: str
    stress: str
    algorithm: str
    steps: int
    forget: float = 0.0
    schedule: str = "constant"


def _fits(algorithm: str, topology: str) -> bool:
    """Sequences of graphs are walked in rounds, in which gossip is no fair baseline."""
    return algorithm != "gossip" or _topology(topology).static


def plan() -> list[Case]:
    """All topologies undisturbed, and all disturbances on a ring."""
    topologies = [name for name in TOPOLOGIES if name != "file"]
    few = ("ecl", "pdmm-isvr", "gossip", "gradient-tracking")
    return [
        *(
            Case("quadratics", topology, CALM, algorithm, 3000)
            for topology, algorithm in product(topologies, FAMILY + BASELINES)
            if _fits(algorithm, topology)
        ),
        *(
            Case("softmax", topology, CALM, algorithm, 3000)
            for topology, algorithm in product(topologies, few)
            if _fits(algorithm, topology)
        ),
        *(
            Case("quadratics", "ring", stress, algorithm, 6000)
            for stress, algorithm in product(STRESSES, (*FAMILY[:3], "gossip", "gradient-tracking"))
        ),
    ]


@lru_cache
def problem_of(name: str) -> Problem:
    if name == "quadratics":
        return quadratics(NODES)
    return softmax_regression(
        load_dataset("embedded", "", ""), NODES, classes_each=5, pooled=4, examples=100
    )


@lru_cache
def optimum_of(name: str, staying: tuple[int, ...]) -> torch.Tensor:
    return problem_of(name).optimum(staying)


def settings(algorithm: str, rate: float, topology: Topology) -> Settings:
    """Ours and the published ones; the fixed penalty is what "isvr" gives on a regular graph."""
    degree = max(map(topology.degree, range(topology.size)))
    return Settings(
        interval=INTERVAL, hold=True, forget=0.0, theta=0.5, kappa=1.0, mult=1.0, penalty="isvr",
        alpha=1 / (rate * (INTERVAL - 1) * degree), rho=0.0, momentum=0.0, weight_decay=0.0,
        keep=0.1, compression="random-k", gamma=0.3, seed=0,
    )  # fmt: skip


def _topology(name: str) -> Topology:
    return build_topology(name, NODES, degree=_DEGREES.get(name, 3))


def simulate(case: Case) -> Iterator[torch.Tensor]:
    """All nodes' models (N, p) at the end of every window."""
    problem, stress = problem_of(case.problem), STRESSES[case.stress]
    topology = _topology(case.topology)
    chosen = replace(settings(case.algorithm, problem.rate, topology), forget=case.forget)
    algorithm = make_algorithm(case.algorithm, chosen, topology)
    timetable = Timetable(
        topology,
        stress.conditions,
        interval=INTERVAL,
        window_steps=WINDOW,
        seed=0,
        synchronous=ALGORITHMS[case.algorithm].exchange == "synchronous" or not topology.static,
        outages=parse_outages(stress.outages, topology),
    )
    zero = torch.zeros(problem.parameters, dtype=torch.float64)
    participants = [_start(node, zero, algorithm, topology, problem.rate) for node in range(NODES)]
    silence = _SILENCE if stress.outages else math.inf
    host = Host(participants, problem.gradients, initial=lambda _: zero, silence=silence)
    windows = case.steps // WINDOW
    for window in range(1, windows + 1):
        rate = rate_of(case.schedule, problem.rate, window, windows)
        for participant in participants:
            participant.change_rate(rate)
        host.run(
            {node: timetable.timeline(node, window) for node in range(NODES)},
            {node: timetable.in_flight(node, window) for node in range(NODES)},
        )
        yield torch.stack([participant.node.weights for participant in participants])


def _start(
    index: int, zero: torch.Tensor, algorithm: Algorithm, topology: Topology, rate: float
) -> Participant:
    node = Node(index, zero.clone())
    algorithm.start(node)
    heard = dict.fromkeys(node.links, 0.0)
    return Participant(node, algorithm, topology.neighbours[index], rate=rate, heard=heard)


def errors(models: torch.Tensor, optimum: torch.Tensor) -> tuple[float, float]:
    """Relative error of the averaged model, and of the worst node: |w - w*| / |w*|."""
    scale = optimum.norm()
    average = (models.mean(0) - optimum).norm() / scale
    return float(average), float((models - optimum).norm(dim=1).max() / scale)


def measure(case: Case) -> Entry:
    """The case with its errors in the end, and the worst node's after a third of the steps, which
    tells what is still falling."""
    staying = STRESSES[case.stress].staying
    optimum = optimum_of(case.problem, staying)
    found = [errors(models[list(staying)], optimum) for models in simulate(case)]
    early = found[len(found) // 3 - 1]
    average, worst = found[-1]
    return {**asdict(case), "average": average, "worst": worst, "early": early[1]}


# -- the report -------------------------------------------------------------------------------


def render(results: Results) -> str:
    """The report as Markdown."""
    of = {name: [r for r in results["runs"] if r["problem"] == name] for name in _TITLES}
    calm = {name: [r for r in runs if r["stress"] == CALM] for name, runs in of.items()}
    longest = max(r["steps"] for r in results["runs"])
    stressed = [r for r in of["quadratics"] if r["steps"] == longest]
    topologies = [r for r in calm["quadratics"] if r["steps"] != longest]
    sections = [
        _introduction(results),
        _claims(results["runs"]),
        _section("quadratics", "every topology", topologies, "topology"),
        _section("softmax", "every topology", calm["softmax"], "topology"),
        _section("quadratics", "a ring, disturbed", stressed, "stress"),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


_TITLES = {"quadratics": "Quadratics", "softmax": "Softmax regression"}


def _introduction(results: Results) -> str:
    return f"""\
# Where the algorithms end: problems with a known optimum

Each cell: relative error |w - w*| / |w*| of the averaged model / of the worst node, in float64 with
exact gradients, from w = 0. {NODES} nodes; a local step for everybody per unit of time; random
exchanges of single edges every K = {INTERVAL:g} steps in the mean (`d-psgd`, `gradient-tracking`
and the time-varying topologies: all edges of a round at once, every {INTERVAL:g} steps). Run by the
application's own timetable, host and algorithms. An error below {EXACT:.0e} is bold.

- *Quadratics*: 20 parameters, random axes, curvatures from 1/20 to 1, step 0.1.
- *Softmax regression*: 7x7 pixels and a constant, 10 classes, 100 images of 5 classes at each node
  (of the embedded Fashion-MNIST), weight decay 0.05, step 0.3.
- `ecl`: with held corrections, theta 1/2, kappa 1, forget 0 (with steps of one size nothing may be
  forgotten where the limit is to be exact). The others are as published; `pdmm-sgd` and `admm-sgd`
  have the fixed penalty that `isvr` gives at the node of the highest degree.
- Made by `{results["command"]}` on {machine_line(results["hardware"])}, in
  {results["seconds"] / 60:.1f} minutes.
- Code: {code_line(results)}."""


def _section(problem: str, what: str, runs: Sequence[Entry], row: str) -> str:
    if not runs:
        return ""
    cells = {
        (r[row], r["algorithm"]): f"{_number(r['average'])} / {_number(r['worst'])}" for r in runs
    }
    algorithms = list(dict.fromkeys(r["algorithm"] for r in runs))
    rows = [
        [name, *(cells.get((name, algorithm), "-") for algorithm in algorithms)]
        for name in dict.fromkeys(r[row] for r in runs)
    ]
    steps = runs[0]["steps"]
    title = f"## {_TITLES[problem]}, {what}: after {steps:,} steps"
    return "\n\n".join(
        [title, table([row if row == "topology" else "disturbance", *algorithms], rows)]
    )


def _number(error: float) -> str:
    return f"**{error:.0e}**" if error < EXACT else f"{error:.1e}"


def _claims(runs: Sequence[Entry]) -> str:
    """What holds, and the cases in which it does not."""
    family = [r for r in runs if r["algorithm"] in FAMILY]
    inexact = [r for r in family if r["worst"] >= EXACT]
    lines = [
        f"- Edge-consensus learning ends below {EXACT:.0e} at every node in "
        f"{len(family) - len(inexact)} of {len(family)} cases{'.' if not inexact else ', not in:'}"
    ]
    for r in inexact:
        falling = r["worst"] < r["early"] / 10
        trend = f"; after a third of the steps it was {r['early']:.1e}" if falling else ""
        lines.append(f"  - {_words(r)}: {r['worst']:.1e}{trend}.")
    for name in ("gossip", "d-psgd"):
        if worst := [r["worst"] for r in runs if r["algorithm"] == name]:
            lines.append(
                f"- {name}: the worst node ends between {_between(worst)} from the optimum."
            )
    tracking = [r for r in runs if r["algorithm"] == "gradient-tracking"]
    for problem in _TITLES:
        calm = [r for r in tracking if r["stress"] == CALM and r["problem"] == problem]
        if calm:
            exact = sum(r["worst"] < EXACT for r in calm)
            lines.append(
                f"- gradient-tracking, undisturbed, {problem}: below {EXACT:.0e} in {exact} of "
                f"{len(calm)} cases, the worst node between {_between([r['worst'] for r in calm])}."
            )
    if broken := [r["worst"] for r in tracking if _breaks(r)]:
        lines.append(
            f"- gradient-tracking with mails lost or pushed one way: the worst node between "
            f"{_between(broken)}."
        )
    return "\n".join(["## What the numbers say", "", *lines])


def _breaks(run: Entry) -> bool:
    """Whether mails are missing, which gradient tracking cannot bear."""
    conditions = STRESSES[run["stress"]].conditions
    return bool(conditions.loss) or conditions.one_way


def _between(values: Sequence[float]) -> str:
    return f"{min(values):.1e} and {max(values):.1e}"


def _words(run: Entry) -> str:
    where = run["topology"] if run["stress"] == CALM else run["stress"]
    return f"{run['algorithm']}, {run['problem']}, {where}"


def write(results: Results, out: Path) -> Path:
    """Write convex.json and convex.md into `out`; returns the latter's path."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "convex.json").write_text(as_json(results))
    path = out / "convex.md"
    path.write_text(render(results))
    return path


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.consensus.convex")
    add = parser.add_argument
    add("--out", type=Path, default=REPORTS / "consensus", help="directory of the report")
    add("--report-only", action="store_true", help="write convex.md again from convex.json")
    arguments = parser.parse_args(words)
    if arguments.report_only:
        print(write(load_json(arguments.out / "convex.json"), arguments.out))
        return 0
    torch.set_num_threads(1)
    began, cases, runs = time.monotonic(), plan(), []
    for number, case in enumerate(cases, 1):
        runs.append(measure(case))
        if number % 20 == 0:
            say(f"{number} of {len(cases)} simulations")
    results: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "experiments.consensus.convex"]),
        "code": [provenance()],
        "hardware": hardware(describe()),
        "seconds": time.monotonic() - began,
        "runs": runs,
    }
    print(write(results, arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
