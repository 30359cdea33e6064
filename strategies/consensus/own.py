"""Algorithms and topologies by name, those of somebody's own among them (see `plugin_name`).

An algorithm of one's own is a class with the methods of `Algorithm`, such as one that derives from
`LocalSGD`. It is made of the topology, of what `SHARED` names of its parameters, and of settings of
its own. What it has of the attributes of `Entry` (`exchange`, `exact`, `trees_only` ...) says what
it is made for. A topology of one's own is a function of the number of nodes, a NumPy generator and
settings of its own, that returns pairs of neighbours, or a `Topology`.
"""

import inspect
import math
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from typing import Any

from strategies import plugins
from strategies.consensus.algorithm import Algorithm
from strategies.consensus.algorithms import ALGORITHMS, Entry, Settings, build
from strategies.consensus.topologies import MANY_EDGES, TOPOLOGIES, build_topology
from strategies.consensus.topology import Topology, of_edges
from strategies.errors import ConfigError
from strategies.plugin_name import parse
from strategies.plugins import told_as
from strategies.randomness import rng

ALGORITHM, TOPOLOGY = "consensus.algorithm", "consensus.topology"
SHARED = ("interval", "momentum", "seed", "weight_decay")  # of `Settings`
_METHODS = [name for name in vars(Algorithm) if not name.startswith("_")]
_SAYS = [f.name for f in fields(Entry) if f.name not in ("build", "overrides")]
_SILENT = 'its class does not say that it may be (`{} = ""`)'


def is_own(name: str) -> bool:
    """Whether an algorithm is somebody's own."""
    return name not in ALGORITHMS


@cache
def entry_of(name: str) -> Entry:
    """What is known of the algorithm `name`. ConfigError for what is no such class."""
    if not is_own(name):
        return ALGORITHMS[name]
    cls: Any = plugins.class_of(ALGORITHM, name, _METHODS)
    own = plugins.arguments(ALGORITHM, name, cls, (_first(cls), *SHARED))
    shared = [each for each in SHARED if each in inspect.signature(cls).parameters]

    def made(settings: Settings, topology: Topology) -> Algorithm:
        with told_as(f"{ALGORITHM}={name!r} cannot be made", ConfigError):
            return cls(topology, **{each: getattr(settings, each) for each in shared}, **own)

    told = {each: getattr(cls, each) for each in _SAYS if hasattr(cls, each)}
    silent = {each: _SILENT.format(each) for each in ("unclipped", "unrounded")}
    entry = Entry(made, **{"exchange": "random", **silent, **told})
    if entry.exchange not in ("random", "synchronous"):
        raise ConfigError(
            f"{ALGORITHM}={name!r}: exchange={entry.exchange!r} must be 'random' or 'synchronous'"
        )
    return entry


def has_momentum(name: str) -> bool:
    """Whether `consensus.momentum` means anything to the algorithm `name`."""
    if is_own(name):
        return "momentum" in inspect.signature(plugins.load(ALGORITHM, name)).parameters
    return name != "gradient-tracking"


def algorithm_named(name: str, settings: Settings, topology: Topology) -> Algorithm:
    """The algorithm `name` for `topology`. ConfigError for a class that is none, and ValueError
    for settings or a topology that it cannot work with."""
    return build(name, entry_of(name), settings, topology)


def topology_named(name: str, size: int, *, seed: int = 0, **options: Any) -> Topology:
    """`build_topology`, or one of somebody's own. ValueError for what cannot be built, ConfigError
    for a function that is none or returns no topology."""
    if name in TOPOLOGIES or parse(name) is None:
        return build_topology(name, size, seed=seed, **options)
    function = plugins.function_of(TOPOLOGY, name, 2)
    with told_as(f"{TOPOLOGY}={name!r} failed", ConfigError):
        found = function(size, rng(seed, "topology", "own"))
    called = getattr(function, "__name__", "own")
    try:
        return _checked(found, called, size)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{TOPOLOGY}={name!r}: {error}") from error


def _first(cls: type) -> str:
    """The parameter of `cls` that gets the topology."""
    return next(iter(inspect.signature(cls).parameters), "")


def _checked(found: Any, name: str, size: int) -> Topology:
    """What somebody's function has returned, as a topology. ValueError says what it lacks."""
    if not isinstance(found, Topology):
        if not isinstance(found, Iterable):
            raise ValueError(
                f"{name} returned {type(found).__name__}; return pairs of neighbours, such as "
                f"[(0, 1), (1, 2)], or a Topology"
            )
        found = of_edges(name, size, [_pair(each, name, size) for each in found])
    if found.size != size or not found.rounds:
        raise ValueError(f"{name} returned a topology of {found.size} nodes, not of {size}")
    edges = {edge for round_ in found.rounds for edge in round_}
    if len(edges) > MANY_EDGES:
        raise ValueError(f"{name} returned {len(edges):,} edges, more than {MANY_EDGES:,}")
    if wrong := [(i, j) for i, j in edges if not 0 <= i < j < size]:
        raise ValueError(f"{name} returned the edge {wrong[0]}; edges are (i, j) with i < j < N")
    for round_ in found.rounds:
        _check_weights(round_.items(), name, size)
    if not _connected(found):
        raise ValueError(f"{name} returned a graph that is not connected")
    return found


def _pair(pair: Any, name: str, size: int) -> tuple[int, int]:
    i, j = (int(end) for end in pair)
    if not (0 <= i < size and 0 <= j < size and i != j):
        raise ValueError(
            f"{name} returned the pair {(i, j)}; nodes are 0 to {size - 1}, and no node is its own "
            f"neighbour"
        )
    return i, j


def _check_weights(weights: Iterable[tuple[tuple[int, int], float]], name: str, size: int) -> None:
    """W must have no negative entry, on its diagonal neither."""
    sums = [0.0] * size
    for (i, j), weight in weights:
        if not (0 < weight <= 1 and math.isfinite(weight)):
            raise ValueError(f"{name}: the weight {weight} of {(i, j)} must be in (0, 1]")
        sums[i] += weight
        sums[j] += weight
    if (most := max(sums)) > 1 + 1e-9:
        raise ValueError(f"{name}: the weights of a node add up to {most:g}, more than 1")


def _connected(topology: Topology) -> bool:
    reached, border = {0}, [0]
    while border:
        border = [j for i in border for j in topology.neighbours[i] if j not in reached]
        reached.update(border)
    return len(reached) == topology.size
