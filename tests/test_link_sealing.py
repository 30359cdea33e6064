"""Mail that only its receiver can read: who is believed, and what does not open."""

import os

import pytest

from strategies.errors import EdgeFlError
from strategies.link.sealing import OVERHEAD, Sealing
from strategies.link.wire import WireError, frame, unframe
from strategies.site import Site
from tests.certificates import issue, make_ca

RUN = "0123456789abcdef"
HEADER = {"run": RUN, "sender": 0, "receiver": 1, "seq": 7, "sent": 0.1 + 0.2}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Site]:
    root, authority, foreign = tmp_path_factory.mktemp("sites"), make_ca(), make_ca("foreign")
    same_name = make_ca()  # it calls itself as ours does
    found = {n: issue(authority, n, root / n, port=1) for n in ("ann", "bob", "cyd")}
    found["foreign"] = issue(foreign, "ann", root / "foreign", port=1)
    found["same name"] = issue(same_name, "ann", root / "same", port=1)
    found["expired"] = issue(authority, "ann", root / "expired", port=1, days=-1)
    found["insecure"] = issue(authority, "ann", root / "insecure", port=1, insecure=True)
    return found


def pair(sites: dict[str, Site]) -> tuple[Sealing, Sealing]:
    """Of ann and bob, who know each other."""
    ann, bob = Sealing(sites["ann"], RUN), Sealing(sites["bob"], RUN)
    assert ann.hear("bob", bob.announcement)
    assert bob.hear("ann", ann.announcement)
    return ann, bob


def refused(
    reason: str, end: Sealing, sealed: bytes, sender: str = "ann", **changes: object
) -> bool:
    with pytest.raises(WireError) as caught:
        end.open(sealed, sender, {**HEADER, **changes})
    return caught.value.reason == reason


def test_the_receiver_reads_what_was_sealed(sites: dict[str, Site]) -> None:
    ann, bob = pair(sites)
    for plain in (b"", b"hello", os.urandom(1_000_000)):
        sealed = ann.seal(plain, "bob", HEADER)
        assert len(sealed) == len(plain) + OVERHEAD
        assert bob.open(sealed, "ann", HEADER) == plain
        assert ann.open(bob.seal(plain, "ann", HEADER), "bob", HEADER) == plain


def test_whoever_carries_it_sees_nothing_of_it(sites: dict[str, Site]) -> None:
    """No 4 bytes of the text are in it, the same text is never sealed alike, and the bits of what
    is carried for a text of zeros are as many ones as zeros (8 sigma for 10^6 bytes: 0.0015)."""
    ann, _ = pair(sites)
    plain = os.urandom(64)
    one, other = (ann.seal(plain, "bob", HEADER)[8:] for _ in range(2))
    for sealed in (one, other):
        assert not any(plain[k : k + 4] in sealed for k in range(61))
    assert not any(one[k : k + 4] in other for k in range(len(one) - 3))
    sealed = ann.seal(bytes(1_000_000), "bob", HEADER)[8:]
    ones = int.from_bytes(sealed, "big").bit_count()
    assert abs(ones / (8 * len(sealed)) - 0.5) < 0.0015


def test_a_third_party_cannot_read_or_write(sites: dict[str, Site]) -> None:
    ann, bob = pair(sites)
    cyd = Sealing(sites["cyd"], RUN)
    for one, name in ((ann, "ann"), (bob, "bob")):
        cyd.hear(name, one.announcement)
        one.hear("cyd", cyd.announcement)
    assert refused("forged", cyd, ann.seal(b"hello", "bob", HEADER))
    assert refused("forged", bob, cyd.seal(b"hello", "bob", HEADER))
    assert bob.open(cyd.seal(b"hello", "bob", HEADER), "cyd", HEADER) == b"hello"


def test_what_was_changed_does_not_open(sites: dict[str, Site]) -> None:
    ann, bob = pair(sites)
    sealed = ann.seal(b"hello", "bob", HEADER)
    for position in range(len(sealed)):
        broken = bytearray(sealed)
        broken[position] ^= 1
        assert refused("forged", bob, bytes(broken))
    for length in (0, 7, 8, 20, len(sealed) - 1):
        assert refused("forged", bob, sealed[:length])
    assert refused("forged", bob, sealed, seq=8)
    assert refused("forged", bob, sealed, sent=0.3)
    assert refused("forged", ann, sealed, "bob")  # sent back
    assert bob.open(sealed, "ann", HEADER) == b"hello"


def test_what_was_read_or_overtaken_does_not_open_again(sites: dict[str, Site]) -> None:
    ann, bob = pair(sites)
    first, second, third = (ann.seal(bytes([k]), "bob", HEADER) for k in range(3))
    assert bob.open(second, "ann", HEADER) == b"\x01"
    assert refused("replayed", bob, second)
    assert refused("replayed", bob, first)
    assert bob.open(third, "ann", HEADER) == b"\x02"


def test_an_old_announcement_does_not_bring_old_mail_back(sites: dict[str, Site]) -> None:
    ann, bob = pair(sites)
    recorded = ann.seal(b"old", "bob", HEADER)
    assert bob.open(recorded, "ann", HEADER) == b"old"
    again = Sealing(sites["ann"], RUN)  # ann's device was restarted
    again.hear("bob", bob.announcement)
    assert bob.hear("ann", again.announcement)
    assert refused("forged", bob, recorded)
    assert bob.open(again.seal(b"new", "bob", HEADER), "ann", HEADER) == b"new"
    assert not bob.hear("ann", ann.announcement)
    assert refused("replayed", bob, recorded)
    # And bob's next mail under the old keys does not use an old nonce.
    assert bob.seal(b"", "ann", HEADER)[:8] == (1).to_bytes(8, "big")
    bob.hear("ann", again.announcement)
    bob.hear("ann", ann.announcement)
    assert bob.seal(b"", "ann", HEADER)[:8] == (2).to_bytes(8, "big")


def test_nothing_opens_before_the_sender_is_known(sites: dict[str, Site]) -> None:
    ann, bob = Sealing(sites["ann"], RUN), Sealing(sites["bob"], RUN)
    ann.hear("bob", bob.announcement)
    assert ann.knows("bob")
    assert not bob.knows("ann")
    assert refused("no key", bob, ann.seal(b"hello", "bob", HEADER))
    assert not ann.hear("bob", bob.announcement)  # nothing new


def changed(announcement: bytes, **fields: object) -> bytes:
    header = unframe(announcement, kind="key", limit=1 << 20)[0]["header"]
    return frame({"kind": "key", "header": {**header, **fields}}, b"")


LIES = {
    "foreign": "unknown certificate",
    "same name": "unknown certificate",
    "expired": "unknown certificate",
    "bob": "unknown certificate",  # true, but not for ann
}


@pytest.mark.parametrize("whose", LIES)
def test_a_certificate_that_proves_nothing(sites: dict[str, Site], whose: str) -> None:
    bob = Sealing(sites["bob"], RUN)
    with pytest.raises(WireError) as caught:
        bob.hear("ann", Sealing(sites[whose], RUN).announcement)
    assert caught.value.reason == LIES[whose]
    assert not bob.knows("ann")


def test_an_announcement_that_ann_has_not_made(sites: dict[str, Site]) -> None:
    """Certificates are public: what counts is the signature, over run, name and key."""
    bob, cyd = Sealing(sites["bob"], RUN), Sealing(sites["cyd"], RUN)
    true = Sealing(sites["ann"], RUN).announcement
    theirs = unframe(cyd.announcement, kind="key", limit=1 << 20)[0]["header"]
    lies = {
        "another key": (changed(true, public=theirs["public"]), "forged"),
        "another's signature": (changed(true, signature=theirs["signature"]), "forged"),
        "no signature": (changed(true, signature=""), "forged"),
        "another run": (Sealing(sites["ann"], "f" * 16).announcement, "forged"),
        "no hexadecimal": (changed(true, public="xyz"), "bad announcement"),
        "no text": (changed(true, public=5), "bad announcement"),
        "no certificate": (changed(true, certificate="PEM"), "bad announcement"),
        "nothing": (frame({"kind": "key", "header": {}}, b""), "bad announcement"),
        "mail": (frame({"kind": "mail", "header": {}}, b""), "wrong kind"),
        "a flood": (true + bytes(1 << 15), "too long"),
    }
    for what, (lie, reason) in lies.items():
        with pytest.raises(WireError) as caught:
            bob.hear("ann", lie)
        assert caught.value.reason == reason, what
    assert bob.hear("ann", true)


def test_an_insecure_site_cannot_seal(sites: dict[str, Site]) -> None:
    with pytest.raises(EdgeFlError, match="is insecure"):
        Sealing(sites["insecure"], RUN)
