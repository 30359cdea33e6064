"""The carrier whose mail rides in the Flower messages of a host."""

from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
import torch

from strategies.carriers.exchange import Report, Unsent
from strategies.consensus.participant import Mail
from strategies.messages.windows import MailHead


class GridExchange:
    """What is posted waits for the host's reply, and what came with its order (`inbox`) is all that
    can be collected. newest: of an edge's mail the newest is enough, as on the real clock."""

    def __init__(self, inbox: Iterable[Mail] = (), *, newest: bool = False) -> None:
        self._inbox = list(inbox)
        self._outbox: dict[Hashable, Mail] = {}
        self._newest, self._posted = newest, 0
        self._unsent: dict[int, Unsent] = {}

    def post(self, mail: Mail) -> None:
        self._posted += 1
        edge = mail.sender, mail.receiver, mail.settles, mail.seq < 0
        old = self._outbox.pop(edge, None)
        if old is not None:
            counted = self._unsent.get(old.sender, Unsent())
            self._unsent[old.sender] = Unsent(counted.mails + 1, counted.bytes + old.size)
        self._outbox[edge if self._newest else self._posted] = mail

    def collect(self, patience: float) -> list[Mail]:
        """What came with the order; never waits, since nothing more can come."""
        mails, self._inbox = self._inbox, []
        return mails

    def report(self) -> Report:
        """With what was posted; unsent is what a newer mail has replaced."""
        outgoing, self._outbox = list(self._outbox.values()), {}
        unsent, self._unsent = self._unsent, {}
        return Report(outgoing, unsent=unsent)

    def close(self) -> None:
        """Nothing is open."""


def to_arrays(mails: Sequence[Mail]) -> tuple[list[MailHead], dict[str, np.ndarray]]:
    """Mails as what a message has of them: their heads, and their vectors as arrays "K/NAME"."""
    heads = [MailHead(m.sender, m.receiver, m.seq, m.sent) for m in mails]
    arrays = {
        f"{position}/{name}": vector.cpu().numpy()
        for position, mail in enumerate(mails)
        for name, vector in mail.vectors.items()
    }
    return heads, arrays


def from_arrays(heads: Sequence[MailHead], arrays: Mapping[str, np.ndarray]) -> list[Mail]:
    """The mails of `to_arrays`. ValueError for arrays that belong to none."""
    contents: dict[str, dict[str, torch.Tensor]] = {str(k): {} for k in range(len(heads))}
    for key, array in arrays.items():
        position, _, name = key.partition("/")
        if position not in contents:
            raise ValueError(f"array {key!r:.40} belongs to none of {len(heads)} mails")
        contents[position][name] = torch.from_numpy(np.array(array))
    return [
        Mail(head.sender, head.receiver, head.seq, vectors, head.sent)
        for head, vectors in zip(heads, contents.values(), strict=True)
    ]
