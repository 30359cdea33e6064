"""The carrier whose mail rides in the Flower messages of a host."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from strategies.carriers.exchange import Report
from strategies.consensus.participant import Mail


class GridExchange:
    """What is posted waits for the host's reply, and what came with its order (`inbox`) is all that
    can be collected."""

    def __init__(self, inbox: Iterable[Mail] = ()) -> None:
        self._inbox = list(inbox)
        self._outbox: list[Mail] = []

    def post(self, mail: Mail) -> None:
        self._outbox.append(mail)

    def collect(self, patience: float) -> list[Mail]:
        """What came with the order; never waits, since nothing more can come."""
        mails, self._inbox = self._inbox, []
        return mails

    def report(self) -> Report:
        """With all that was posted."""
        outgoing, self._outbox = self._outbox, []
        return Report(outgoing)

    def close(self) -> None:
        """Nothing is open."""


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
