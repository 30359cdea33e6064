"""From settings to what the nodes of the consensus system share, and whether it can work."""

import math
from dataclasses import fields
from functools import lru_cache

from strategies.consensus.algorithm import Algorithm
from strategies.consensus.algorithms import Settings
from strategies.consensus.own import algorithm_named, topology_named
from strategies.consensus.rounded import beneath
from strategies.consensus.schedule import Conditions, Timetable, parse_outages
from strategies.consensus.settings import ConsensusSettings, NodesRun
from strategies.consensus.settling import Settling, SettlingTimetable, settling
from strategies.consensus.topology import Topology
from strategies.consensus.weight_average import Averaged
from strategies.errors import ConfigError


def topology_of(settings: ConsensusSettings, participants: int, seed: int, text: str) -> Topology:
    """Who is whose neighbour; text: of the topology file, "" if there is none. ConfigError."""
    try:
        return topology_named(
            settings.topology,
            participants,
            seed=seed,
            degree=settings.degree,
            probability=settings.probability,
            text=text,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


@lru_cache(maxsize=2)
def nodes_of(run: NodesRun, text: str) -> tuple[Topology, Algorithm, Timetable]:
    """What the nodes of the consensus system share. Raises ConfigError for what cannot work."""
    c = run.consensus
    topology = topology_of(c, run.participants, run.seed, text)
    own = {"seed": run.seed, "mail_precision": run.mail_precision}
    shared = {f.name: getattr(c, f.name) for f in fields(Settings) if f.name not in own}
    conditions = Conditions(**{f.name: getattr(c, f.name) for f in fields(Conditions)})
    alone = c.algorithm == "isolated"
    try:
        algorithm = algorithm_named(c.algorithm, Settings(**shared, **own), topology)
        algorithm = beneath(algorithm, Averaged) if c.publish_average else algorithm
        timetable = Timetable(
            topology,
            conditions,
            interval=math.inf if alone else c.interval,
            window_steps=c.window,
            seed=run.seed,
            synchronous=c.synchronous and not alone,
            outages=parse_outages(c.outages, topology),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for window in range(1, run.rounds + 1):
        t = window * timetable.window_seconds
        if not any(timetable.present(i, t) for i in range(topology.size)):
            raise ConfigError(
                f"consensus.outages={c.outages!r}: nobody is on at {t:g} s, when window {window} "
                f"ends; leave one of them out"
            )
    return topology, algorithm, timetable


@lru_cache(maxsize=2)
def settling_of(run: NodesRun, text: str) -> tuple[Settling, SettlingTimetable]:
    """How the nodes settle after the last window; see `nodes_of`."""
    topology, _, timetable = nodes_of(run, text)
    rounds = run.consensus.settling_rounds
    return settling(topology, rounds), SettlingTimetable(timetable, run.rounds, rounds)
