"""Where the algorithms end, run by the real timetable and host on random unequal quadratics with 20
parameters and condition 20, whose optimum is known in closed form.

Edge-consensus learning reaches it to 1e-9 under every condition that a schedule knows; its limit
is a fixed point that mail can only be late for. Others are biased, or break when mail is lost.
"""

import math
from collections.abc import Mapping
from typing import Any

import pytest

from strategies.consensus.algorithms import ALGORITHMS
from strategies.consensus.schedule import Conditions, Timetable, parse_outages
from strategies.consensus.topologies import TOPOLOGIES, build_topology
from strategies.contracts.convex import Simulation, quadratics, worst_error

ECL = ("pdmm-isvr", "admm-isvr", "ecl")
INTERVAL, STEPS, WINDOWS = 4, 200, 15
STRESSES: dict[str, dict[str, Any]] = {
    "none": {},
    "one-way pushes": {"one_way": True},
    "30 % lost": {"loss": 0.3},
    "70 % lost": {"loss": 0.7},
    "delays up to 3 steps": {"delay_seconds": 3.0},
    "delays up to 12 steps": {"delay_seconds": 12.0},
    "delays up to 48 steps": {"delay_seconds": 48.0},
    "half of them twice": {"duplication": 0.5, "delay_seconds": 3.0},
    "nodes of other speeds": {"speed_spread": 0.7},
    "all at once": {
        "one_way": True,
        "loss": 0.3,
        "delay_seconds": 12.0,
        "duplication": 0.3,
        "speed_spread": 0.5,
    },
}


def simulation(
    algorithm: str,
    graph: str = "ring",
    *,
    size: int = 6,
    conditions: Mapping[str, Any] | None = None,
    rate: float = 0.5,
    interval: int = INTERVAL,
    outages: str = "",
    synchronous: bool | None = None,
    **options: Any,
) -> Simulation:
    topology = build_topology(graph, size, degree=4)
    if synchronous is None:
        synchronous = not topology.static or ALGORITHMS[algorithm].exchange == "synchronous"
    timetable = Timetable(
        topology,
        Conditions(**(conditions or {})),
        interval=interval,
        window_steps=STEPS,
        seed=1,
        synchronous=synchronous,
        outages=parse_outages(outages, topology),
    )
    changes = {"interval": float(interval), **options.pop("changes", {})}
    return Simulation(
        quadratics(topology.size), timetable, algorithm, rate, changes=changes, **options
    )


def error(found: Simulation, weights: Mapping[int, float] | None = None) -> float:
    """Of the worst node, against the optimum of sum_i p_i f_i; all p_i = 1 without weights. Only of
    the nodes that have one."""
    weights = weights or dict.fromkeys(range(found.timetable.topology.size), 1.0)
    everybody = found.models()
    return worst_error([everybody[i] for i in weights], found.problem.optimum(weights))


def best_error(
    found: Simulation, weights: Mapping[int, float] | None = None, windows: int = WINDOWS
) -> float:
    """The error after as many of `windows` as it takes to get below 1e-9."""
    result = math.inf
    while found.window < windows and result >= 1e-9:
        result = error(found.run(1), weights)
    return result


# ------------------------------------------------------------------------------ the limit is exact


@pytest.mark.parametrize("stress", STRESSES)
@pytest.mark.parametrize("algorithm", ECL)
def test_exact_under_every_condition(algorithm: str, stress: str) -> None:
    # Held corrections get there, too, but take longer when everything goes wrong.
    windows = 2 * WINDOWS if (algorithm, stress) == ("ecl", "all at once") else WINDOWS
    found = simulation(algorithm, conditions=STRESSES[stress])
    assert best_error(found, windows=windows) < 1e-9


@pytest.mark.parametrize("graph", sorted(TOPOLOGIES.keys() - {"file"}))
def test_exact_on_every_topology(graph: str) -> None:
    """Sequences of graphs in synchronous rounds, the others at random times."""
    assert best_error(simulation("pdmm-isvr", graph, size=8)) < 1e-9


@pytest.mark.parametrize("algorithm", [*ECL, "pdmm-sgd", "admm-sgd"])
def test_exact_in_lossy_rounds(algorithm: str) -> None:
    conditions = {"loss": 0.3, "duplication": 0.3, "delay_seconds": 2.0, "speed_spread": 0.3}
    assert best_error(simulation(algorithm, conditions=conditions, synchronous=True)) < 1e-9


@pytest.mark.parametrize("compression", ["random-k", "top-k"])
def test_exact_when_compressed_mail_is_lost(compression: str) -> None:
    changes = {"compression": compression, "keep": 0.5}
    found = simulation("c-ecl", conditions={"loss": 0.1}, interval=2, changes=changes)
    assert best_error(found) < 1e-9


@pytest.mark.parametrize("algorithm", ECL)
def test_weights_lead_to_the_weighted_optimum(algorithm: str) -> None:
    """p_i = N n_i / sum_j n_j with n = 1 .. 6."""
    weights = {i: 6 * (i + 1) / 21 for i in range(6)}
    found = simulation(algorithm, weights=weights, conditions=STRESSES["30 % lost"], rate=0.3)
    assert best_error(found, weights) < 1e-9
    assert error(found) > 1e-2  # which is another point


def test_a_change_of_the_rate_keeps_what_was_learnt() -> None:
    """At the border of a window, for all nodes at once, as the run does it."""
    found = simulation("pdmm-isvr").run(8)
    assert error(found) < 1e-13
    for participant in found.participants:
        participant.change_rate(0.1)
    assert error(found.run(1)) < 1e-13


# ------------------------------------------------------------------------------- others are biased


@pytest.mark.parametrize("graph", ["ring", "complete"])
@pytest.mark.parametrize("algorithm", ["gossip", "d-psgd", "choco-sgd"])
def test_averaging_is_biased(algorithm: str, graph: str) -> None:
    """With a constant rate they never get nearer than a tenth, and do not move on."""
    found = simulation(algorithm, graph, changes={"keep": 1.0})
    early = error(found.run(3))
    errors = [error(found.run(1)) for _ in range(3)]
    assert min(errors) > 0.1
    assert min(errors) > early / 3


def test_somebody_alone_ends_at_its_own_optimum() -> None:
    found = simulation("isolated", interval=10**9).run(5)
    for i in range(6):
        assert error(found, {i: 1.0}) < 1e-9


@pytest.mark.parametrize("algorithm", ["gradient-tracking", "momentum-tracking"])
def test_tracking_is_exact_until_mail_gets_lost(algorithm: str) -> None:
    """Late mail and slow nodes only make rounds longer; but 5 % of loss breaks the sum of the
    trackers for good, and the error does not go away."""
    options: dict[str, Any] = {"rate": 0.1, "interval": 2, "changes": {"momentum": 0.5}}
    late = {"delay_seconds": 3.0, "speed_spread": 0.5, "duplication": 0.5}
    assert best_error(simulation(algorithm, conditions=late, **options)) < 1e-9
    assert best_error(simulation(algorithm, conditions={"loss": 0.05}, **options)) > 1e-2
    assert best_error(simulation("ecl", conditions={"loss": 0.05}, synchronous=True)) < 1e-9


# --------------------------------------------------------------------------- who comes and who goes


def rest(*gone: int) -> dict[int, float]:
    return {i: 1.0 for i in range(6) if i not in gone}


@pytest.mark.parametrize("algorithm", ECL)
@pytest.mark.parametrize("graph", ["ring", "star", "complete"])
def test_survivors_agree_on_the_optimum_of_the_rest(algorithm: str, graph: str) -> None:
    """Node 5, an end of the star, says goodbye in the second window."""
    found = simulation(algorithm, graph, outages="leave:5@300")
    assert best_error(found, rest(5)) < 1e-9
    assert error(found, rest()) > 1e-2


def test_mail_that_comes_after_a_goodbye_brings_no_link_back() -> None:
    found = simulation("ecl", outages="leave:5@300", conditions={"delay_seconds": 12.0})
    assert best_error(found, rest(5)) < 1e-6
    assert all(5 not in p.node.links for p in found.participants[:5])


@pytest.mark.parametrize("algorithm", ECL)
def test_the_anchor_of_a_dead_node_is_dropped(algorithm: str) -> None:
    """One that dies without a word is noticed by its silence. If nobody noticed, it would pull the
    others to the wrong point for ever."""
    dead = "crash:5@300"
    found = simulation(algorithm, outages=dead, host_options={"silence": 60.0})
    assert best_error(found, rest(5)) < 1e-9
    assert all(5 not in p.node.links for p in found.participants[:5])
    unnoticed = simulation(algorithm, outages=dead).run(WINDOWS)
    assert error(unnoticed, rest(5)) > 1e-2


@pytest.mark.parametrize(
    "outages",
    [
        "crash:2@300-450",
        "pause:2@300-450, pause:4@500-501",
        "leave:2@300-450",
        "join:5@350",
        "join:5@350, join:4@350, crash:0@100-350",
        "cut:0-1@150-500",
        "crash:1@300-400, cut:1-2@350-450",
    ],
)
@pytest.mark.parametrize("silence", [30.0, math.inf])
def test_exact_after_everybody_is_back(outages: str, silence: float) -> None:
    conditions = {"delay_seconds": 6.0, "loss": 0.1}
    found = simulation(
        "ecl", outages=outages, conditions=conditions, host_options={"silence": silence}
    )
    assert best_error(found.run(3)) < 1e-9
    assert all(set(p.node.links) == set(p.neighbours) for p in found.participants)


def test_two_halves_agree_by_themselves_and_together_when_the_links_heal() -> None:
    """Links 0-5 and 2-3 of the ring are cut for eight windows; silence cuts the anchors, too."""
    outages = "cut:0-5@100-1800, cut:2-3@100-1800"
    found = simulation("ecl", outages=outages, host_options={"silence": 60.0}).run(8)
    assert error(found, rest(3, 4, 5)) < 1e-9
    assert error(found, rest(0, 1, 2)) < 1e-9
    assert best_error(found) < 1e-9
