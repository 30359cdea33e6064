"""Neighbours' mail for tests of its carriers."""

import torch

from strategies.consensus.participant import Mail


def mail(sender: int, receiver: int, seq: int, value: float = 1.0) -> Mail:
    """With a vector of five and the indices of three, sent at 0.1 seq."""
    vectors = {"reflection": torch.full((5,), value), "indices": torch.arange(3, dtype=torch.int32)}
    return Mail(sender, receiver, seq, vectors, 0.1 * seq)


def same(a: Mail, b: Mail) -> bool:
    """Bit for bit."""
    return (
        (a.sender, a.receiver, a.seq, a.sent) == (b.sender, b.receiver, b.seq, b.sent)
        and a.vectors.keys() == b.vectors.keys()
        and all(torch.equal(a.vectors[k], b.vectors[k]) for k in a.vectors)
        and all(a.vectors[k].dtype == b.vectors[k].dtype for k in a.vectors)
    )
