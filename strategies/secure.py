"""Secure aggregation: the sum of vectors of which nobody is shown a single one.

The protocol of Bonawitz et al. (CCS 2017), in four stages between the members of one sum and a
server through which all of it goes:

    keys    every member makes two X25519 key pairs, for masks and for sealing, and a secret seed
    shares  it splits seed and mask key among all members (Shamir), sealed for each of them
    masked  it sends x_i + G(seed_i) + sum_{j > i} G(key_ij) - sum_{j < i} G(key_ij)   mod 2^32
    unmask  of whom a masked vector has come the members show their shares of the seed; of whom none
            has come, those of the mask key; never both

where G is ChaCha20's key stream and key_ij what i and j share by Diffie and Hellman. The masks of
pairs cancel in the sum; those of seeds, and of pairs of which one is gone, the server takes away.
More than a half of the members must show a share, so no server can have both of a member's secrets
by telling one half this and the other that: each answers once.

All keys are derived from a digest of what the server has told (members, keys, weights, threshold,
which sum): where it has told two members different things, nothing can be opened and no mask
cancels. Vectors are fixed-point integers, so sums are exact, whoever takes part in which order.
"""

import hashlib
import json
import secrets
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LEAST_MEMBERS = 3  # of two each would know the other's
LARGEST_SHARE = 0.9  # of a member in a sum: above it the sum is as good as its vector
FRACTION_BITS = 24
LARGEST = 100.0  # of a value; the weights of a sum are at most 1 together
WHAT = "secure aggregation"  # what members sign their keys for
_PRIME = 2**521 - 1  # of the field in which secrets are split
_SECRET = 32  # bytes of a key or a seed
_SHARE = 66  # bytes of a share of one
_HASH = 32
_MASK, _SEAL = "mask", "seal"


class SecureError(ValueError):
    """What a member or the server has sent cannot be used; the message says whose and why."""


# -- numbers ---------------------------------------------------------------------------------------


def fixed(vector: np.ndarray, weight: float) -> np.ndarray:
    """weight * vector as two's complement fixed point, uint32 (p,). SecureError for values that are
    not finite, or above `LARGEST`."""
    vector = np.asarray(vector, np.float64)
    largest = float(np.abs(vector).max(initial=0.0))
    if not largest <= LARGEST:
        raise SecureError(
            f"a change of {largest:g} in the model is too large for a secure sum, which takes up "
            f"to {LARGEST:g}: has the training diverged?"
        )
    return np.rint(vector * (weight * 2.0**FRACTION_BITS)).astype(np.int64).astype(np.uint32)


def opened(total: np.ndarray) -> np.ndarray:
    """The float64 values of a sum in fixed point."""
    return total.view(np.int32) / 2.0**FRACTION_BITS


def threshold(members: int) -> int:
    """How many must stay to the end: more than a half, and enough for a sum."""
    return max(LEAST_MEMBERS, members // 2 + 1)


# -- Shamir's secret sharing -----------------------------------------------------------------------


def split(secret: bytes, members: Collection[int], needed: int) -> dict[int, bytes]:
    """A share of 32 bytes for each member, of which `needed` give it back and fewer say nothing."""
    coefficients = [int.from_bytes(secret), *(secrets.randbelow(_PRIME) for _ in range(needed - 1))]
    shares = {}
    for member in members:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * (member + 1) + coefficient) % _PRIME
        shares[member] = value.to_bytes(_SHARE)
    return shares


def joined(shares: Mapping[int, bytes]) -> bytes:
    """The secret of enough shares, by Lagrange's interpolation at 0. SecureError for others."""
    total = 0
    for member, share in shares.items():
        over = under = 1
        for other in shares:
            if other != member:
                over = over * (other + 1) % _PRIME
                under = under * (other - member) % _PRIME
        total += int.from_bytes(share) * over * pow(under, -1, _PRIME)
    try:
        return (total % _PRIME).to_bytes(_SECRET)
    except OverflowError:
        raise SecureError("these shares are of no secret") from None


# -- what everybody knows --------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """What the server tells all of one member: its number, what its vector counts, public keys."""

    number: int
    weight: float
    mask_key: bytes
    seal_key: bytes


@dataclass(frozen=True)
class Roster:
    """The members of the sum called `about`, in the order of their numbers."""

    about: str
    members: tuple[Member, ...]
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        told = [[m.number, m.weight, m.mask_key.hex(), m.seal_key.hex()] for m in self.members]
        text = json.dumps(["edge-fl secure", self.about, told])
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest())

    @property
    def numbers(self) -> list[int]:
        return [member.number for member in self.members]

    def __getitem__(self, number: int) -> Member:
        for member in self.members:
            if member.number == number:
                return member
        raise SecureError(f"participant {number} is no member of this secure sum")

    def check(self, own: Collection[int]) -> None:
        """SecureError for a sum that would tell too much of a member's vector."""
        numbers, weights = self.numbers, [member.weight for member in self.members]
        if len(set(numbers)) != len(numbers) or len(numbers) < LEAST_MEMBERS:
            raise SecureError(
                f"a secure sum of {len(set(numbers))} is none: it takes {LEAST_MEMBERS}"
            )
        if not all(0.0 < weight < 1.0 for weight in weights) or sum(weights) > 1.001:
            raise SecureError("the weights of a secure sum are not between 0 and 1, and 1 together")
        for number in own:
            if self[number].weight > LARGEST_SHARE * sum(weights):
                raise SecureError(
                    f"participant {number} would be more than {LARGEST_SHARE:.0%} of a secure sum"
                )


def shares_digest(roster: Roster, owner: int, holder: int, kind: str, share: bytes) -> bytes:
    """What the owner of a secret publishes of a share, so that nobody can show another one."""
    text = json.dumps([roster.digest, owner, holder, kind, share.hex()])
    return hashlib.sha256(text.encode()).digest()


# -- a member --------------------------------------------------------------------------------------


class Secrets:
    """A member's part. What it remembers from stage to stage is in `state`, a mapping of values
    that a record of Flower's can have."""

    def __init__(self, number: int, state: MutableMapping[str, Any]) -> None:
        self._number, self._state = number, state

    def keys(self) -> tuple[bytes, bytes]:
        """New public keys: for masks, and for sealing."""
        for kind in (_MASK, _SEAL):
            self._state[kind] = _private_key().private_bytes_raw()
        self._state["seed"] = secrets.token_bytes(_SECRET)
        return _public(self._state[_MASK]), _public(self._state[_SEAL])

    def shares(self, roster: Roster) -> tuple[dict[int, bytes], bytes]:
        """Sealed shares for every other member, and what is published of all shares."""
        mine = roster[self._number]
        if (mine.mask_key, mine.seal_key) != (
            _public(self._state[_MASK]),
            _public(self._state[_SEAL]),
        ):
            raise SecureError(f"the keys of participant {self._number} in this sum are not its own")
        self._state["digest"] = roster.digest
        numbers, needed = roster.numbers, threshold(len(roster.members))
        of_seed = split(self._state["seed"], numbers, needed)
        of_key = split(self._state[_MASK], numbers, needed)
        sealed, published = {}, []
        for number in numbers:
            pair = of_seed[number] + of_key[number]
            published += [
                shares_digest(roster, self._number, number, kind, share)
                for kind, share in (("seed", of_seed[number]), (_MASK, of_key[number]))
            ]
            if number == self._number:
                self._state[f"held.{number}"] = pair
                continue
            cipher = _cipher(roster, self._state[_SEAL], roster[number], self._number, number)
            sealed[number] = cipher.encrypt(bytes(12), pair, None)
        self._state["published"] = b"".join(published)
        return sealed, self._state["published"]

    def masked(
        self,
        roster: Roster,
        vector: np.ndarray,
        sealed: Mapping[int, bytes],
        published: Mapping[int, bytes],
    ) -> np.ndarray:
        """The fixed-point vector, masked with all that have sent sealed shares, by their numbers;
        once. SecureError for a second vector, and for shares that are forged or of another sum,
        which names the member."""
        from cryptography.exceptions import InvalidTag

        self._check_same(roster)
        if self._state.get("alive"):  # two vectors behind one mask would show their difference
            raise SecureError(f"participant {self._number} has masked a vector in this sum before")
        if len(sealed) + 1 < threshold(len(roster.members)):
            raise SecureError(f"{len(sealed) + 1} members of {len(roster.members)} are too few")
        for number, text in sealed.items():
            cipher = _cipher(roster, self._state[_SEAL], roster[number], number, self._number)
            try:
                pair = cipher.decrypt(bytes(12), text, None)
            except InvalidTag:
                raise SecureError(
                    f"the shares from participant {number} are forged, or of another sum"
                ) from None
            for kind, share in zip(("seed", _MASK), _halves(pair), strict=True):
                if not is_published(
                    roster, published.get(number, b""), number, self._number, kind, share
                ):
                    raise SecureError(
                        f"the shares from participant {number} are not those that it has published"
                    )
            self._state[f"held.{number}"] = pair
        self._state["alive"] = sorted([*sealed, self._number])
        result = vector + key_stream(self._state["seed"], len(vector))
        for number in sealed:
            key = _agreed(roster, _MASK, self._state[_MASK], roster[number].mask_key)
            stream = key_stream(key, len(vector))
            result = result + stream if self._number < number else result - stream
        return result

    def revealed(self, roster: Roster, survivors: Collection[int]) -> dict[int, bytes]:
        """By member, the share of its seed if it is a survivor, and else of its mask key. Once, and
        for a majority alone: SecureError otherwise."""
        self._check_same(roster)
        alive = list(self._state.get("alive", ()))
        if not alive or self._state.get("told"):
            raise SecureError(
                f"participant {self._number} has no shares to show, or has shown them"
            )
        if not set(survivors) <= set(alive) or len(set(survivors)) < threshold(len(roster.members)):
            raise SecureError(f"{len(set(survivors))} of {len(roster.members)} are no majority")
        self._state["told"] = [1]
        return {n: _halves(self._state[f"held.{n}"])[n not in survivors] for n in alive}

    def _check_same(self, roster: Roster) -> None:
        if self._state.get("digest") != roster.digest:
            raise SecureError(f"participant {self._number} has been told of another sum before")


# -- the server ------------------------------------------------------------------------------------


def unmasked(
    roster: Roster,
    alive: Collection[int],
    masked: Mapping[int, np.ndarray],
    shown: Mapping[int, Mapping[int, bytes]],
    published: Mapping[int, bytes],
) -> tuple[np.ndarray, list[str]]:
    """The sum of the survivors' vectors, and which shares were forged, in words.

    alive: who has sent shares; masked: the vectors that have come, by member; shown: the shares, by
    who shows them and whose they are; published: what each member has published of its shares.
    SecureError if too few right shares of a secret are there.
    """
    needed, faults = threshold(len(roster.members)), []
    total = np.zeros_like(next(iter(masked.values())))
    for vector in masked.values():
        total = total + vector
    for owner in alive:
        kind = "seed" if owner in masked else _MASK
        right = {}
        for holder, shares in shown.items():
            share = shares.get(owner, b"")
            if is_published(roster, published[owner], owner, holder, kind, share):
                right[holder] = share
            else:
                what = "a forged share" if share else "no share"
                faults.append(f"participant {holder} has shown {what} of participant {owner}'s")
        if len(right) < needed:
            raise SecureError(
                f"only {len(right)} of {needed} shares of participant {owner}'s secret are there"
            )
        secret = joined(dict(list(right.items())[:needed]))
        if owner in masked:
            total = total - key_stream(secret, len(total))
            continue
        if _public(secret) != roster[owner].mask_key:
            raise SecureError(f"participant {owner} has split another key than its own")
        for number in masked:  # what each has added for the one that is gone
            key = _agreed(roster, _MASK, secret, roster[number].mask_key)
            stream = key_stream(key, len(total))
            total = total - stream if number < owner else total + stream
    return total, faults


def is_published(
    roster: Roster, published: bytes, owner: int, holder: int, kind: str, share: bytes
) -> bool:
    """Whether this is the share of the owner's that it has published for that holder."""
    place = 2 * roster.numbers.index(holder) + (kind == _MASK)
    found = published[place * _HASH : (place + 1) * _HASH]
    return found == shares_digest(roster, owner, holder, kind, share)


# -- ciphers ---------------------------------------------------------------------------------------


def check_keys(*public: bytes) -> None:
    """SecureError for a member's key that is none, with which every other member would fail."""
    for key in public:
        _exchanged(_private_key().private_bytes_raw(), key)


def key_stream(key: bytes, length: int) -> np.ndarray:
    """uint32 (length,) from a key of 32 bytes, by ChaCha20."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()
    return np.frombuffer(encryptor.update(bytes(4 * length)), "<u4").astype(np.uint32)


def _private_key(raw: bytes = b"") -> Any:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(raw) if raw else X25519PrivateKey.generate()


def _public(private: bytes) -> bytes:
    return _private_key(private).public_key().public_bytes_raw()


def _agreed(roster: Roster, purpose: str, private: bytes, public: bytes) -> bytes:
    """The key that two members share for a purpose in this sum."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = json.dumps([purpose, roster.digest]).encode()
    return HKDF(hashes.SHA256(), _SECRET, None, info).derive(_exchanged(private, public))


def _exchanged(private: bytes, public: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    try:
        return _private_key(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # not 32 bytes, or a point that shares nothing
        raise SecureError(f"a member's key is none: {error}") from error


def _cipher(roster: Roster, private: bytes, other: Member, sender: int, receiver: int) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    # A key for one text: so its nonce may be 0.
    purpose = f"{_SEAL} {sender} {receiver}"
    return ChaCha20Poly1305(_agreed(roster, purpose, private, other.seal_key))


def _halves(pair: bytes) -> tuple[bytes, bytes]:
    return pair[:_SHARE], pair[_SHARE:]
