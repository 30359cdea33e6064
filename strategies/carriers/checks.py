"""Which vectors a mail must have, and why one cannot be used."""

from collections.abc import Mapping

import torch

from strategies.consensus.algorithm import Algorithm
from strategies.consensus.participant import MODEL, Mail
from strategies.consensus.settling import SETTLING

MOST = 2**53  # of a number in a mail's head: more is no time and no count


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
    if not abs(mail.sent) < MOST:
        return f"{who} was sent at {mail.sent:g} s"
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
