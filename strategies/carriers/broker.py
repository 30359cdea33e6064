"""The broker of a topology: it holds the mailboxes of all hosts and knows who may use them.

A host may send only in the name of the nodes it hosts, and only to their neighbours, and it is
given the mail of its own nodes only. In the real clock a mailbox keeps the newest mail of each
neighbour (the receiver has no use for an older one), in the virtual clock all of it.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from strategies.consensus.topology import Edge, edge_between


class Packet(NamedTuple):
    """A mail on its way: `content` is whatever the carrier moves, and a broker never looks at."""

    sender: int
    receiver: int
    seq: int
    sent: float
    content: Any


@dataclass
class Broker:
    """The mailboxes of all hosts.

    placement: the host of each node. newest: keep only the newest mail of each directed edge.
    """

    edges: frozenset[Edge]
    placement: Mapping[int, int]
    newest: bool
    _forged: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    _boxes: dict[int, dict[tuple[int, int, int], tuple[int, Packet]]] = field(default_factory=dict)
    _count: int = 0

    def may_send(self, host: int, sender: int, receiver: int) -> bool:
        """Whether `host` may send in the name of `sender` to `receiver`."""
        edge = edge_between(sender, receiver)
        return edge in self.edges and self.placement.get(sender) == host

    def post(self, host: int, packet: Packet) -> bool:
        """Put into the receiver's mailbox; False if `host` may not."""
        if not self.may_send(host, packet.sender, packet.receiver):
            self._forged[host, packet.sender, packet.receiver] += 1
            return False
        box = self._boxes.setdefault(self.placement[packet.receiver], {})
        number = 0 if self.newest else packet.seq
        key = (packet.sender, packet.receiver, number)
        if key not in box or packet.seq > box[key][1].seq:
            self._count += 1
            box[key] = (self._count, packet)
        return True

    def take_forged(self) -> Counter[tuple[int, int, int]]:
        """How often a host was not allowed to send, since the last call: by (host, sender,
        receiver)."""
        forged, self._forged = self._forged, Counter()
        return forged

    def collect(self, host: int, have: int = 0) -> list[tuple[int, Packet]]:
        """(number, packet) of those for the nodes of `host` that came after number `have`, in the
        order of their numbers.

        All are kept until they are forgotten: a host that fails asks for them again.
        """
        box = self._boxes.get(host, {}).values()
        return sorted((entry for entry in box if entry[0] > have), key=lambda entry: entry[0])

    def forget(self, host: int, last: int) -> None:
        """The states of the host's nodes contain what came up to number `last`."""
        box = self._boxes.get(host, {})
        self._boxes[host] = {key: entry for key, entry in box.items() if entry[0] > last}
