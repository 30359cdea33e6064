"""The carriers of neighbours' mail between hosts, all brokered per topology.

A broker holds the mailboxes and knows who may use them: a host may send only in the name of the
nodes it hosts, and only to their neighbours, and it is given the mail of its own nodes only. In the
real clock a mailbox keeps the newest mail of each neighbour (the receiver has no use for an older
one), in the virtual clock all of it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from strategies.consensus.algorithm import Algorithm
from strategies.consensus.participant import MODEL, Mail
from strategies.consensus.settling import SETTLING
from strategies.consensus.topology import Edge, edge_between


class Parcel(NamedTuple):
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
    _boxes: dict[int, dict[tuple[int, int, int], tuple[int, Parcel]]] = field(default_factory=dict)
    _count: int = 0

    def may_send(self, host: int, sender: int, receiver: int) -> bool:
        """Whether `host` may send in the name of `sender` to `receiver`."""
        edge = edge_between(sender, receiver)
        return edge in self.edges and self.placement.get(sender) == host

    def post(self, host: int, parcel: Parcel) -> bool:
        """Put into the receiver's mailbox; False if `host` may not."""
        if not self.may_send(host, parcel.sender, parcel.receiver):
            self._forged[host, parcel.sender, parcel.receiver] += 1
            return False
        box = self._boxes.setdefault(self.placement[parcel.receiver], {})
        number = 0 if self.newest else parcel.seq
        key = (parcel.sender, parcel.receiver, number)
        if key not in box or parcel.seq > box[key][1].seq:
            self._count += 1
            box[key] = (self._count, parcel)
        return True

    def take_forged(self) -> Counter[tuple[int, int, int]]:
        """How often a host was not allowed to send, since the last call: by (host, sender,
        receiver)."""
        forged, self._forged = self._forged, Counter()
        return forged

    def collect(self, host: int, have: int = 0) -> list[tuple[int, Parcel]]:
        """(number, parcel) of those for the nodes of `host` that came after number `have`, in the
        order of their numbers.

        All are kept until they are forgotten: a host that fails asks for them again.
        """
        box = self._boxes.get(host, {}).values()
        return sorted((entry for entry in box if entry[0] > have), key=lambda entry: entry[0])

    def forget(self, host: int, last: int) -> None:
        """The states of the host's nodes contain what came up to number `last`."""
        box = self._boxes.get(host, {})
        self._boxes[host] = {key: entry for key, entry in box.items() if entry[0] > last}


class GridExchange:
    """Mail that rides in the Flower messages of its host: what is posted waits in `outbox` for the
    host's reply, and what came with its order is all that can be collected."""

    def __init__(self, inbox: Iterable[Mail] = ()) -> None:
        self._inbox = list(inbox)
        self.outbox: list[Mail] = []

    def post(self, mail: Mail) -> None:
        self.outbox.append(mail)

    def collect(self, patience: float) -> list[Mail]:
        """What came with the order; never waits, since nothing more can come."""
        mails, self._inbox = self._inbox, []
        return mails


def to_arrays(mails: Sequence[Mail]) -> tuple[list[str], dict[str, np.ndarray]]:
    """(headers, arrays) of mails for a Flower message: header k is "sender receiver seq sent", and
    its vectors are the arrays "k/NAME"."""
    headers = [f"{m.sender} {m.receiver} {m.seq} {m.sent!r}" for m in mails]
    arrays = {
        f"{position}/{name}": vector.cpu().numpy()
        for position, mail in enumerate(mails)
        for name, vector in mail.vectors.items()
    }
    return headers, arrays


def from_arrays(headers: Sequence[str], arrays: Mapping[str, np.ndarray]) -> list[Mail]:
    """The mails of `to_arrays`. ValueError for headers, and names of arrays, that are none."""
    contents: dict[str, dict[str, torch.Tensor]] = {str(k): {} for k in range(len(headers))}
    for key, array in arrays.items():
        position, _, name = key.partition("/")
        if position not in contents:
            raise ValueError(f"array {key!r} belongs to none of {len(headers)} mails")
        contents[position][name] = torch.from_numpy(np.array(array))
    mails = []
    for header, vectors in zip(headers, contents.values(), strict=True):
        sender, receiver, seq, sent = header.split(" ")
        mails.append(Mail(int(sender), int(receiver), int(seq), vectors, float(sent)))
    return mails


def expected_vectors(
    mail: Mail, algorithm: Algorithm, parameters: int
) -> dict[str, tuple[int, torch.dtype]]:
    """The vectors that a mail must have: name -> (length, dtype). Mail with a negative number is of
    newcomers: an empty one asks for a model, and one with a model answers that, or invites. One of
    the settling has the same vector with all algorithms."""
    if mail.settles:
        return {SETTLING: (parameters, torch.float32)}
    if mail.seq < 0:
        return {MODEL: (parameters, torch.float32)} if mail.vectors else {}
    return algorithm.lengths(parameters, mail.sender, mail.receiver, mail.seq)


def mail_fault(
    mail: Mail,
    expected: Mapping[str, tuple[int, torch.dtype]],
    parameters: int,
    *,
    finite: bool = True,
) -> str | None:
    """Why `mail` is none that the receiver could use, or None if it is one.

    expected: name -> (length, dtype) of its vectors. parameters: of a model; indices are of them.
    finite: whether its values must be.
    """
    who = f"mail from node {mail.sender} to node {mail.receiver}"
    if mail.vectors.keys() != expected.keys():
        names = (", ".join(sorted(vectors)) or "nothing" for vectors in (mail.vectors, expected))
        return "{} has {}, not {}".format(who, *names)
    for name, (length, dtype) in expected.items():
        vector = mail.vectors[name]
        if vector.dtype != dtype or vector.shape != (length,):
            return (
                f"{name} of {who} is {vector.dtype} of shape {tuple(vector.shape)}, not {dtype} of "
                f"shape ({length},)"
            )
        if finite and not _is_finite(vector):
            return f"{name} of {who} has values that are NaN or infinite"
    indices = mail.vectors.get("indices", torch.empty(0))
    if len(indices) and not (int(indices.min()) >= 0 and int(indices.max()) < parameters):
        return f"indices of {who} are no coordinates of a vector of {parameters}"
    return None


def _is_finite(vector: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite. The sum is neither if no value is, unless it overflows,
    and costs a tenth of a look at every value."""
    return bool(torch.isfinite(vector.sum()) or torch.isfinite(vector).all())
