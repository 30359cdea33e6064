"""The states of a host's nodes from window to window: as they were left, or as they start."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client_apps.device import Device
from client_apps.local_model import check_own_data, local_model_of, own_digest, shard_of
from client_apps.node_store import NODES, PARKED, NodeStore
from strategies.attacks import FORGERIES
from strategies.consensus.byzantine import Attacker
from strategies.consensus.descent import LocalSGD
from strategies.consensus.node import Node
from strategies.consensus.participant import Participant
from strategies.consensus.rounded import beneath
from strategies.consensus.settings import NodesRun
from strategies.consensus.shared import nodes_of, settling_of
from strategies.consensus.state import pack, unpack
from strategies.consensus.topology import Topology
from strategies.consensus.weight_average import Averaged
from strategies.messages.windows import WindowOrder
from strategies.paths import runs_root
from strategies.problem import Problem, flat_model

# How long a device keeps what its node was in a run that may be resumed. A node that comes back
# later begins anew, with the model of its neighbours.
_KEPT_SECONDS = 7 * 24 * 3600.0


@lru_cache(maxsize=1)
def initial_weights(problem: Problem, device: str) -> torch.Tensor:
    """With which every node begins: not those of the local model, which is trained."""
    return flat_model(problem, "small", device).weights


class NodeStates:
    """Loads the nodes of a window's order, and saves them.

    newcomers: nodes that started where others are far already.
    """

    def __init__(self, settings: NodesRun, order: WindowOrder, device: Device) -> None:
        self._settings, self._order = settings, order
        self._own_data, simulated = device.own_data, device.simulated
        self._live = not simulated and not settings.virtual
        self._device = local_model_of(settings.problem).device
        self._topology, self._algorithm, _ = nodes_of(settings, order.topology)
        if order.settling:
            self._algorithm, _ = settling_of(settings, order.topology)
        c = settings.consensus
        alone = Topology("alone", settings.participants + len(c.reference_list), ({},))
        reference = LocalSGD(alone, c.momentum, c.weight_decay)
        self._reference = Averaged(reference) if c.publish_average else reference
        own = runs_root().parent / NODES / order.states
        self._store = NodeStore(Path(order.directory) / NODES if simulated else own)
        self.newcomers: list[int] = []

    def load(self, node: int) -> Participant:
        """The node as it was left, or as it starts."""
        n = self._settings.participants
        algorithm = self._algorithm if node < n else self._reference
        if (attack := self._settings.attack_of(node)) in FORGERIES:
            options = attack, self._settings.attack_scale, self._settings.seed
            algorithm = beneath(algorithm, Attacker, *options)
        neighbours = self._topology.neighbours[node] if node < n else ()
        weight = self._weight(node) if node < n else 1.0
        found = self._saved(node)
        settles = bool(self._order.settling) and node < n
        if found is None:
            if self._live:
                self._store.forget_other_runs(_KEPT_SECONDS)
            initial = initial_weights(self._settings.problem, self._device)
            fresh = Node(node, initial.clone())
            algorithm.start(fresh)
            if self._order.window > 1:
                self.newcomers.append(node)
            heard = dict.fromkeys(fresh.links, 0.0)
            participant = Participant(fresh, algorithm, neighbours, weight, heard=heard)
            if settles:
                participant.settle(guest=True)
            elif self._live:
                participant.part()
            return participant
        check_own_data(self._settings.problem, node, self._own_data, found[1].get("data"))
        participant = unpack(
            *found,
            algorithm,
            neighbours=neighbours,
            weight=weight,
            device=self._device,
        )
        if settles and not participant.settles:
            # A device that was away in the end of the training has an old model.
            trained = found[1].get("window", self._order.window - 1)
            participant.settle(guest=trained < self._settings.rounds)
        return participant

    def save(self, participants: list[Participant], *, done: bool) -> None:
        """Keep the nodes as they are at the end of the window, or as they are parked: never over
        what they went on from, for should the answer get lost, the host does this once more."""
        order = self._order
        place = order.window if done else _parked(order.stops + 1)
        for participant in participants:
            node = participant.node.index
            state, metadata = pack(participant)
            metadata["data"] = own_digest(self._settings.problem, node, self._own_data)
            metadata["window"] = order.window
            self._store.save(place, node, state, metadata, durable=done and order.durable)
        self._store.prune(order.kept)

    def examples(self, node: int) -> int:
        """How many examples a node has."""
        return len(shard_of(self._settings.problem, node, self._own_data))

    def _saved(self, node: int) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The node's state, with which it goes on; None if it starts. RunDirectoryError where
        there must be one and is none."""
        window, stops = self._order.window, self._order.stops
        if stops:
            return self._store.load(_parked(stops), node)
        if self._live:
            # A device goes on with what it has: it may have been away while others did windows.
            return self._store.newest(window - 1, node)
        return self._store.load(window - 1, node) if window > 1 else None

    def _weight(self, node: int) -> float:
        """p_i = N n_i / sum_j n_j, so that sum_i p_i f_i is the loss on all data in one place."""
        if self._settings.consensus.weights == "equal":
            return 1.0
        examples = list(self._order.examples)
        examples[node] = self.examples(node)  # of a device, the server may not know it yet
        known = [count for count in examples if count]
        return len(known) * examples[node] / sum(known)


def _parked(stops: int) -> str:
    return f"{PARKED}-{stops % 2}"
