"""What waits at its sender: in which order it is sent, and what replaces what."""

from strategies.link.outbox import Outbox


def taken(outbox: Outbox) -> list[tuple[str, bytes]]:
    found = []
    while (message := outbox.take()) is not None:
        found.append(message)
    return found


def test_of_a_key_and_kind_the_newest_is_sent_and_waits_its_turn() -> None:
    outbox = Outbox()
    for key, payload in (("a", b"1"), ("b", b"2"), ("a", b"3")):
        assert outbox.put(key, payload, "mail")
    assert outbox
    assert outbox.overtaken == 1
    assert taken(outbox) == [("b", b"2"), ("a", b"3")]
    assert not outbox


def test_kinds_do_not_replace_each_other() -> None:
    """A model that a newcomer has asked for is not replaced by the mail that follows it."""
    outbox = Outbox()
    outbox.put("a", b"model", "newcomer")
    for number in range(5):
        outbox.put("a", bytes([number]), "mail")
    assert taken(outbox) == [("a", b"model"), ("a", b"\x04")]


def test_what_has_no_kind_replaces_nothing() -> None:
    outbox = Outbox()
    for payload in (b"1", b"2", b"1"):
        outbox.put("a", payload, None)
    assert taken(outbox) == [("a", b"1"), ("a", b"2"), ("a", b"1")]


def test_a_full_outbox_takes_what_replaces_something_and_nothing_more() -> None:
    """Who floods a party with mail makes it answer with receipts: these are one each at most."""
    outbox = Outbox(limit=2)
    for number in range(2000):
        assert outbox.put("receipt", bytes(number % 3), "mail")
    assert outbox.put("beat", b"", None)
    assert not outbox.put("beat", b"", None)
    assert outbox.put("receipt", b"last", "mail")
    assert taken(outbox) == [("beat", b""), ("receipt", b"last")]
