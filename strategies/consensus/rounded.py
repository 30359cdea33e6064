"""Neighbours' mail with fewer bits, and the limit that it has without.

What is rounded is the difference between the mail and a *base*: an earlier mail, as the receiver
has read it. As the nodes come to rest the differences shrink, and with them the errors of their
rounding, to nothing. A rounded model would keep its error for ever. (Differences to what receivers
have: Mishchenko et al. 2019, arXiv 1901.09269, DIANA; Koloskova et al., ICML 2019.)

Those methods need links that lose nothing, or both ends would have different bases from then on.
Here a base is agreed on. Now and then a mail is an *offer*: its sender keeps it, as it is read at
the other end. Every mail tells which of the receiver's mails the sender has (its newest offer);
once that is the one that was offered, it is the base. A mail names its base by a checksum of the
contents: who does not have that cannot read the mail, which is then as good as lost, says that it
has nothing, and is sent differences to zero again. So lost, late and repeated mail, neighbours that
come, go or start again from an older state do no harm; until they agree mail is less precise.

An offer that is not agreed on is replaced by a newer one, after 4 further mails, then 8, 16, 32,
64, and 4 again: it may have been lost, or an answer may take long.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from strategies.consensus.algorithm import Algorithm, Around
from strategies.consensus.node import Node, Tensors
from strategies.consensus.rows import Link, Rows
from strategies.precision import BLOCK, CODES, STEPS, restored, rounded

IDS = "ids"  # of a mail: its base, itself if it is an offer, the receiver's newest that is here
_NOTHING = 0  # the base that everybody has: zeros
_PATIENCE = (4, 8, 16, 32, 64)  # mails
_TYPES = {"bfloat16": torch.int16, "int8": torch.int8}


@dataclass(frozen=True)
class Rounded(Around):
    """An algorithm whose mail, one vector of the model's length, travels in `precision` (bfloat16
    or int8). A node keeps four vectors and some numbers for each neighbour, in `Node.vectors`."""

    precision: str

    def start(self, node: Node) -> None:
        super().start(node)
        for j in node.links:
            _begin(node, j)

    def connect(self, node: Node, j: int) -> None:
        super().connect(node, j)
        _begin(node, j)

    def disconnect(self, node: Node, j: int) -> None:
        super().disconnect(node, j)
        for name in [name for name in node.vectors if name.startswith(_name(j, ""))]:
            del node.vectors[name]

    def message(self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int]) -> Tensors:
        [matrix] = super().message(rows, ends, seqs).values()
        mails = [
            self._written(rows.node(end), end.peer, vector)
            for end, vector in zip(ends, matrix, strict=True)
        ]
        return {name: torch.stack([mail[name] for mail in mails]) for name in mails[0]}

    def receive(
        self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int], mails: Sequence[Tensors]
    ) -> None:
        read = [self._read(rows.node(end), end.peer, m) for end, m in zip(ends, mails, strict=True)]
        good = [place for place, vector in enumerate(read) if vector is not None]
        if good:
            parts: Any = ([each[place] for place in good] for each in (ends, seqs, read))
            ends, seqs, vectors = parts
            [name] = super().lengths(len(vectors[0]), *ends[0], seqs[0])
            super().receive(rows, ends, seqs, [{name: vector} for vector in vectors])

    def lengths(
        self, parameters: int, sender: int, receiver: int, seq: int
    ) -> dict[str, tuple[int, torch.dtype]]:
        found = {CODES: (parameters, _TYPES[self.precision]), IDS: (3, torch.int64)}
        steps = {STEPS: (-(-parameters // BLOCK), torch.float32)}
        return found | steps if self.precision == "int8" else found

    def _written(self, node: Node, j: int, vector: torch.Tensor) -> Tensors:
        state = _State(node, j)
        difference = (vector - state.base).cpu().numpy().astype(np.float32)
        parts = rounded(difference, self.precision)
        read = state.base + self._values(parts, vector)
        offer = _NOTHING
        state.age += 1
        if not state.offer_id or state.age > _PATIENCE[state.patience]:
            state.patience = (state.patience + 1) % len(_PATIENCE) if state.offer_id else 0
            if bool(torch.isfinite(read).all()):
                state.offer, offer = read, _checksum(read)
                state.offer_id, state.age = offer, 0
        ids = [state.base_id, offer, state.their_offer_id or state.their_base_id]
        codes = torch.from_numpy(parts[CODES].view(np.int8 if STEPS in parts else np.int16))
        mail = {CODES: codes, IDS: torch.tensor(ids)}
        return mail | {STEPS: torch.from_numpy(parts[STEPS])} if STEPS in parts else mail

    def _read(self, node: Node, j: int, mail: Tensors) -> torch.Tensor | None:
        """What was sent, as its sender takes it to be read; None if that is unknown here."""
        state = _State(node, j)
        base_id, offer_id, here = mail[IDS].tolist()
        state.agree(here)
        base = state.their(base_id)
        if base is None:
            return None
        arrays = {name: vector.cpu().numpy() for name, vector in mail.items()}
        if self.precision == "bfloat16":
            arrays[CODES] = arrays[CODES].view(np.uint16)
        vector = base + self._values(arrays, base)
        if not bool(torch.isfinite(vector).all()):
            return None
        if offer_id != _NOTHING:
            state.their_offer, state.their_offer_id = vector, offer_id
        return vector

    def _values(self, parts: dict[str, np.ndarray], like: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(restored(parts, self.precision, len(like))).to(like)


def beneath(algorithm: Algorithm, around: type[Around], *options: Any) -> Algorithm:
    """`algorithm` with `around` it, but within what rounds its mail."""
    if isinstance(algorithm, Rounded):
        return replace(algorithm, inner=around(algorithm.inner, *options))
    return around(algorithm, *options)


_VECTORS = ("base", "offer", "their_base", "their_offer")


def _begin(node: Node, j: int) -> None:
    """Make what a node keeps for its mail to and from j, which is nothing yet."""
    for name in _VECTORS:
        node.vectors[_name(j, name)] = torch.zeros_like(node.weights)


def _name(j: int, name: str) -> str:
    return f"mail {j} {name}"


def _checksum(vector: torch.Tensor) -> int:
    return 1 + zlib.crc32(vector.cpu().numpy().tobytes())


class _State:
    """What a node keeps for its mail to and from neighbour j, by name: vectors, and numbers, which
    are 0 where there is nothing yet.

    base, offer: mails of its own, the one that j has, and one that it may have. their_base,
    their_offer: the same of j. *_id: checksums. age: mails since the offer. patience: which one.
    """

    def __init__(self, node: Node, j: int) -> None:
        self.__dict__.update(_node=node, _j=j)

    def __getattr__(self, name: str) -> Any:
        found = self._node.vectors.get(_name(self._j, name))
        if name in ("base", "offer", "their_base", "their_offer"):
            return torch.zeros_like(self._node.weights) if found is None else found
        return 0 if found is None else int(found)

    def __setattr__(self, name: str, value: torch.Tensor | int) -> None:
        vector = value if isinstance(value, torch.Tensor) else torch.tensor([value])
        self._node.vectors[_name(self._j, name)] = vector

    def agree(self, here: int) -> None:
        """j says which of the node's mails it has."""
        if here == _NOTHING and self.base_id != _NOTHING:
            self.base = torch.zeros_like(self._node.weights)
            self.base_id = self.offer_id = _NOTHING
        elif here == self.offer_id and here != _NOTHING:
            self.base, self.base_id = self.offer, here
            self.offer_id = self.patience = 0

    def their(self, base_id: int) -> torch.Tensor | None:
        """The base of j's mail, None if it is not here."""
        if base_id == _NOTHING:
            return torch.zeros_like(self._node.weights)
        if base_id == self.their_offer_id:
            self.their_base, self.their_base_id = self.their_offer, base_id
            self.their_offer_id = _NOTHING
        if base_id == self.their_base_id:
            return self.their_base
        self.their_base_id = self.their_offer_id = _NOTHING
        return None
