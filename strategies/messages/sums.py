"""A secure sum (see `strategies.secure`), stage by stage: what hosts of its members are asked, and
what they answer.

about: which sum it is. own: the participants that the order is for. A reply has for each of them
what is asked, or a fault.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Fault(NamedTuple):
    """Why a participant has not done what it was asked."""

    participant: int
    reason: str


class PublicKeys(NamedTuple):
    """certificate, signature: of the device, which has made the keys; "" where it has none."""

    participant: int
    mask_key: bytes
    seal_key: bytes
    certificate: str
    signature: str


class MemberTold(NamedTuple):
    """What all members are told of one. weight: what its vector counts, of 1. name: of its device,
    or ""."""

    participant: int
    weight: float
    name: str
    mask_key: bytes
    seal_key: bytes
    certificate: str
    signature: str


class SealedShares(NamedTuple):
    """Shares of the owner's secrets, which the holder alone can read."""

    owner: int
    holder: int
    text: bytes


class PublishedShares(NamedTuple):
    """The digests of all shares of a participant's secrets."""

    participant: int
    digests: bytes


class JobWeight(NamedTuple):
    """What the change that a participant's index-th job has made counts, of 1."""

    participant: int
    index: int
    weight: float


class ShownShare(NamedTuple):
    """What `holder` shows of the owner's: its share of the seed, or of the key to masks."""

    holder: int
    owner: int
    share: bytes


@dataclass(frozen=True)
class KeysOrder:
    """Make keys for a new sum."""

    about: str
    own: list[int]


@dataclass(frozen=True)
class KeysReply:
    keys: list[PublicKeys]
    faults: list[Fault]


@dataclass(frozen=True)
class SharesOrder:
    """Split the secrets among the members."""

    about: str
    own: list[int]
    members: list[MemberTold]


@dataclass(frozen=True)
class SharesReply:
    sealed: list[SealedShares]
    published: list[PublishedShares]
    faults: list[Fault]


@dataclass(frozen=True)
class MaskOrder:
    """Send what these jobs have changed, masked. sealed: for `own`; published: of all who have
    split their secrets, which are those that the masks are shared with."""

    about: str
    own: list[int]
    members: list[MemberTold]
    sealed: list[SealedShares]
    published: list[PublishedShares]
    jobs: list[JobWeight]


@dataclass(frozen=True)
class MaskedReply:
    """vectors: uint32 (p + q,), by the number of the participant."""

    vectors: dict[str, np.ndarray]
    faults: list[Fault]


@dataclass(frozen=True)
class UnmaskOrder:
    """Show the shares that it takes to open the sum of the survivors' vectors."""

    about: str
    own: list[int]
    members: list[MemberTold]
    survivors: list[int]


@dataclass(frozen=True)
class UnmaskReply:
    shares: list[ShownShare]
    faults: list[Fault]
