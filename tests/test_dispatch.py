"""Messages and replies: one under way per node, and none that anybody waits for in vain."""

import math
from collections.abc import Iterable

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from strategies.dispatch import NO_REPLY, NOT_TAKEN, Dispatcher
from strategies.roster import SuperNode, assemble_roster, prepare_hosts
from tests.fake_grid import FakeGrid


class Refusing(FakeGrid):
    """Does not take messages for `gone`, as Flower does with nodes that are not registered: the
    SuperLink of a deployment answers with an empty id, that of a simulation with none."""

    gone: int = 12
    empty = True
    asked: Iterable[str] = ()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        [message] = messages
        if message.metadata.dst_node_id == self.gone:
            return [""] if self.empty else []
        return super().push_messages([message])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.asked = list(message_ids)
        return super().pull_messages(self.asked)


def hello(node: int) -> Message:
    return Message(RecordDict({"config": ConfigRecord({})}), node, "query.hello")


def collected(dispatcher: Dispatcher) -> list[Message]:
    found: list[Message] = []
    while dispatcher.busy():
        found += dispatcher.collect()
    return found


def test_what_is_not_taken_fails_at_once() -> None:
    for empty in (True, False):
        grid = Refusing({})
        grid.empty = empty
        dispatcher = Dispatcher(grid)
        refused, taken = (dispatcher.send(hello(node), 60.0) for node in (12, 11))
        assert dispatcher.busy() == {11, 12}
        replies = {r.metadata.reply_to_message_id: r for r in collected(dispatcher)}
        assert replies[refused].error.code == NOT_TAKEN
        assert not replies[taken].has_error()
        assert dispatcher.send(hello(12), 60.0) != refused


def test_a_reply_that_is_too_late_is_fetched_and_dropped() -> None:
    """Or it would lie for ever where replies wait to be fetched."""
    grid = Refusing({})
    dispatcher = Dispatcher(grid)
    late = dispatcher.send(hello(11), -1.0)
    while not grid._futures[late].done():
        pass
    grid._futures, replies = {}, grid._futures
    [reply] = dispatcher.collect()
    assert (reply.error.code, reply.metadata.reply_to_message_id) == (NO_REPLY, late)
    grid._futures = replies
    dispatcher.send(hello(11), 60.0)
    [reply] = collected(dispatcher)
    assert not reply.has_error()
    assert replies == {}
    dispatcher.send(hello(11), 60.0)
    collected(dispatcher)
    assert late not in list(grid.asked), "it is not asked for any more"


def test_who_takes_long_is_named_once() -> None:
    grid = Refusing({})
    dispatcher = Dispatcher(grid)
    dispatcher.send(hello(11), math.inf)
    assert dispatcher.overdue(60.0) == []
    assert dispatcher.overdue(-1.0) == [11]
    assert dispatcher.overdue(-1.0) == []
    collected(dispatcher)
    dispatcher.send(hello(11), math.inf)
    assert dispatcher.overdue(-1.0) == [11]


class Unreadable(FakeGrid):
    """The reply of node 11 cannot be read: Flower raises, and what came with it is lost."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        if any(reply.metadata.src_node_id == 11 for reply in replies):
            raise AttributeError("'ConfigRecord' object has no attribute 'metadata'")
        return replies


def test_a_reply_that_cannot_be_read_is_its_senders_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.dispatch.server_site", lambda: "a deployment")
    grid = Unreadable({})
    dispatcher = Dispatcher(grid)
    ids = [dispatcher.send(hello(node), 60.0) for node in (11, 12)]
    for message_id in ids:
        while not grid._futures[message_id].done():
            pass
    bad, good = sorted(collected(dispatcher), key=lambda reply: not reply.has_error())
    assert bad.metadata.reply_to_message_id == ids[0]
    assert str(bad.error.reason).startswith("a reply that is none ('ConfigRecord' object has no")
    assert (good.metadata.reply_to_message_id, good.has_error()) == (ids[1], False)
    assert not dispatcher.busy()


def test_a_node_that_is_unregistered_while_it_is_asked_is_no_host() -> None:
    said: list[str] = []
    grid = Refusing({}, node_configs=[{"name": "ann"}, {"name": "bob"}, {"name": "cyd"}])
    hosts = assemble_roster(grid, 2, 60.0, said.append, names=("ann", "cyd"))
    assert hosts == (SuperNode(11, "ann", 0), SuperNode(13, "cyd", 1))
    three = [SuperNode(11, "ann", 0), SuperNode(12, "bob", 1), SuperNode(13, "cyd", 2)]
    grid.contexts[11].run_config.update({"participants": 3})
    grid.contexts[13].run_config.update({"participants": 3})
    examples = prepare_hosts(grid, three, 3, 60.0, said.append, 2)
    assert [count > 0 for count in examples.values()] == [True, False, True]
    assert "bob: the SuperLink does not take messages" in said[0]
