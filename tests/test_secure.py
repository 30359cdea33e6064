"""The masked sum is the plain one bit for bit, and whoever tampers is named."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.secure import (
    Member,
    Roster,
    Secrets,
    SecureError,
    fixed,
    joined,
    opened,
    split,
    threshold,
    unmasked,
)

LENGTH = 1000


class Sum:
    """A whole sum of `count` members, stage by stage; a test reaches in between two of them."""

    def __init__(self, count: int, about: str = "run/1", first: int = 0) -> None:
        numbers = range(first, first + count)
        self.plain = {
            n: fixed(np.random.default_rng(n).normal(size=LENGTH).astype(np.float32), 1 / count)
            for n in numbers
        }
        self.secrets = {n: Secrets(n, {}) for n in numbers}
        keys = {n: self.secrets[n].keys() for n in numbers}
        self.roster = Roster(about, tuple(Member(n, 1 / count, *keys[n]) for n in numbers))
        self.sealed: dict[int, dict[int, bytes]] = {}
        self.published: dict[int, bytes] = {}

    def share(self, members: Iterable[int]) -> None:
        for n in members:
            self.sealed[n], self.published[n] = self.secrets[n].shares(self.roster)

    def mask(self, members: Iterable[int]) -> dict[int, np.ndarray]:
        return {
            n: self.secrets[n].masked(
                self.roster,
                self.plain[n],
                {other: sealed[n] for other, sealed in self.sealed.items() if other != n},
                self.published,
            )
            for n in members
        }

    def finish(self, masked: dict[int, np.ndarray], shown: dict[int, Any] | None = None) -> Any:
        if shown is None:
            shown = {n: self.secrets[n].revealed(self.roster, list(masked)) for n in masked}
        return unmasked(self.roster, list(self.sealed), masked, shown, self.published)

    def expected(self, members: Iterable[int]) -> np.ndarray:
        return sum((self.plain[n] for n in members), np.zeros(LENGTH, np.uint32))


@given(st.integers(3, 6), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=15)
def test_the_sum_is_the_plain_one_whoever_drops_out(count: int, choices: Any) -> None:
    """Members leave before they share, and before they send; a majority stays."""
    everybody, needed = list(range(count)), threshold(count)
    sharing = sorted(choices.sample(everybody, choices.randint(needed, count)))
    sending = sorted(choices.sample(sharing, choices.randint(needed, len(sharing))))
    done = Sum(count)
    done.share(sharing)
    masked = done.mask(sending)
    total, faults = done.finish(masked)
    np.testing.assert_array_equal(total, done.expected(sending))
    assert faults == []


def test_what_is_sent_looks_like_noise() -> None:
    done = Sum(3)
    done.share(range(3))
    masked, again = done.mask(range(3)), Sum(3)
    again.share(range(3))
    for number, vector in masked.items():
        values = vector / 2.0**32
        assert abs(values.mean() - 0.5) < 0.05
        assert abs(values.std() - 12**-0.5) < 0.02
        plain = opened(done.plain[number])
        assert abs(np.corrcoef(plain, opened(vector))[0, 1]) < 0.15
        assert (again.mask([number])[number] != vector).mean() > 0.99  # never the same masks


def test_a_sum_is_exact_to_the_last_bit_of_fixed_point() -> None:
    vector = np.array([1.5, -2.25, 0.0, 2**-24], np.float32)
    np.testing.assert_array_equal(opened(fixed(vector, 1.0)), vector)


@pytest.mark.parametrize("value", [np.nan, np.inf, 101.0])
def test_what_fixed_point_does_not_hold_is_refused(value: float) -> None:
    with pytest.raises(SecureError, match="too large for a secure sum"):
        fixed(np.array([value], np.float32), 1.0)


def test_fewer_shares_than_needed_say_nothing() -> None:
    secret = bytes(range(32))
    shares = split(secret, range(5), 3)
    assert joined({n: shares[n] for n in (4, 0, 2)}) == secret
    with pytest.raises(SecureError, match="of no secret"):
        joined({n: shares[n] for n in (4, 0)})


def test_forged_and_missing_shares_are_named_and_done_without() -> None:
    done = Sum(4)
    done.share(range(4))
    masked = done.mask(range(4))
    shown = {n: done.secrets[n].revealed(done.roster, range(4)) for n in range(4)}
    shown[1][2] = bytes(66)
    total, faults = done.finish(masked, shown)
    np.testing.assert_array_equal(total, done.expected(range(4)))
    assert faults == ["participant 1 has shown a forged share of participant 2's"]
    del shown[0][2]
    with pytest.raises(SecureError, match=r"only 2 of 3 shares of participant 2's secret"):
        done.finish(masked, shown)


def test_sealed_shares_that_are_forged_or_replayed_name_their_sender() -> None:
    done, other = Sum(3), Sum(3, about="run/0")
    done.share(range(3))
    other.share(range(3))
    for text in (other.sealed[1][0], bytes(148), done.sealed[1][2]):
        done.sealed[1][0] = text
        with pytest.raises(SecureError, match="from participant 1 are forged, or of another sum"):
            done.mask([0])


def test_a_server_that_tells_two_stories_learns_nothing() -> None:
    """Other weights for one of them, from the start or later: nothing from the others can be
    opened."""
    done = Sum(3)
    done.share(range(3))
    members = tuple(Member(m.number, 0.1, m.mask_key, m.seal_key) for m in done.roster.members)
    sealed = {n: done.sealed[n][0] for n in (1, 2)}
    with pytest.raises(SecureError, match="has been told of another sum before"):
        done.secrets[0].masked(Roster("run/1", members), done.plain[0], sealed, done.published)
    done.secrets[0].shares(Roster("run/1", members))
    with pytest.raises(SecureError, match="of another sum"):
        done.secrets[0].masked(Roster("run/1", members), done.plain[0], sealed, done.published)


def test_a_vector_is_masked_once() -> None:
    """Two behind one mask would differ by what they differ by without it."""
    done = Sum(3)
    done.share(range(3))
    done.mask([0])
    done.plain[0] = done.plain[0] + np.uint32(1)
    for roster in (done.roster, Roster("run/2", done.roster.members)):
        done.roster = roster
        done.share(range(3))
        with pytest.raises(SecureError, match="has masked a vector in this sum before"):
            done.mask([0])


def test_shares_are_shown_once_and_for_a_majority() -> None:
    done = Sum(4)
    done.share(range(4))
    done.mask(range(4))
    member = done.secrets[0]
    with pytest.raises(SecureError, match="2 of 4 are no majority"):
        member.revealed(done.roster, [0, 1])
    member.revealed(done.roster, [0, 1, 2])
    with pytest.raises(SecureError, match="has shown them"):
        member.revealed(done.roster, [0, 1, 3])


def test_a_sum_that_would_tell_one_vector_is_refused() -> None:
    roster = Sum(3).roster
    roster.check([0, 1, 2])
    with pytest.raises(SecureError, match="it takes 3"):
        Roster("", roster.members[:2]).check([])
    weights = (0.95, 0.02, 0.02)
    lone = tuple(
        Member(m.number, w, m.mask_key, m.seal_key)
        for m, w in zip(roster.members, weights, strict=True)
    )
    with pytest.raises(SecureError, match="more than 90% of a secure sum"):
        Roster("", lone).check([0])
    Roster("", lone).check([1, 2])
