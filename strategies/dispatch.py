"""Messages out and replies in, without Flower's polls of whole seconds."""

import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from itertools import count

from flwr.app import Error, Message
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from strategies.checks import last_line
from strategies.errors import EdgeFlError
from strategies.site import server_site

# Error codes of replies that are made here; Flower's own are below.
NO_REPLY = 100  # nothing came in time
NOT_TAKEN = 101  # the SuperLink did not take the message


def online(grid: Grid, others: Collection[str] = ()) -> list[int]:
    """The nodes that are on line, but for those that were registered by one of the names `others`:
    the first message of a run costs a device the transfer of the whole app."""
    if not others:
        return list(grid.get_node_ids())
    return [node.node_id for node in grid.get_nodes() if node.name not in others]


def registered_name(grid: Grid, node: int) -> str:
    """The name by which a node was registered, "" for none: its own words may be another's."""
    return next((n.name for n in grid.get_nodes() if n.node_id == node), "")


def replies_to(
    grid: Grid, ids: Collection[str], *, singly: bool
) -> tuple[list[Message], dict[str, str]]:
    """The replies that have come to messages with these ids, and by id, why Flower could not read a
    reply. singly: each is asked for by itself, as one that cannot be read takes all those with it
    that come at the same time."""
    if not singly:
        return list(grid.pull_messages(list(ids))), {}
    found: list[Message] = []
    unreadable: dict[str, str] = {}
    for message_id in ids:
        try:
            found += grid.pull_messages([message_id])
        except (ArithmeticError, AssertionError, AttributeError, DecodeError, LookupError,
                RecursionError, TypeError, ValueError) as error:  # fmt: skip
            unreadable[message_id] = f"a reply that is none ({last_line(str(error))})"
    return found, unreadable


@dataclass
class _Sent:
    """A message under way: when it was sent, and when it counts as failed."""

    message: Message
    since: float
    deadline: float
    told: bool = False  # that it is overdue


class Dispatcher:
    """Sends to nodes that are free - one message under way per node - and collects what is there.

    In Flower's simulation two messages to one node run at the same time with stale state, and on a
    device they queue; one at a time is right for both.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._singly = server_site() is not None  # replies are of devices, which may send anything
        self._under_way: dict[str, _Sent] = {}
        self._abandoned: set[str] = set()  # out of time; their replies would wait for ever
        self._refused: list[Message] = []
        self._refusals = count(1)

    def busy(self) -> set[int]:
        """The nodes that have a message."""
        messages = [sent.message for sent in self._under_way.values()] + self._refused
        return {message.metadata.dst_node_id for message in messages}

    def send(self, message: Message, timeout: float) -> str:
        """Send; returns the message's id, which its reply names.

        `timeout` seconds later the message counts as failed, whatever becomes of it: a node that
        vanished and came back is never given its old messages again. One that the SuperLink does
        not take, which is how Flower treats nodes that it does not know any more, fails at once.
        """
        ids = list(self._grid.push_messages([message]))
        if not ids or not ids[0]:
            message_id = f"refused-{next(self._refusals)}"
            message.metadata.__dict__["_message_id"] = message_id
            self._refused.append(message)
            return message_id
        now = time.monotonic()
        self._under_way[ids[0]] = _Sent(message, now, now + timeout)
        return ids[0]

    def overdue(self, seconds: float) -> list[int]:
        """The nodes that have had a message for so long and may keep it; of each message once."""
        before = time.monotonic() - seconds
        kept = [s for s in self._under_way.values() if math.isinf(s.deadline)]
        late = [s for s in kept if s.since < before and not s.told]
        for sent in late:
            sent.told = True
        return [sent.message.metadata.dst_node_id for sent in late]

    def collect(self) -> list[Message]:
        """The replies since the last call, and errors for messages that are out of time or were not
        taken.

        What they answer is in metadata.reply_to_message_id; an error made by the SuperLink itself
        names another sender than the node.

        Raises EdgeFlError when a process of the simulation has died: Flower would go on giving
        messages to it, and they would vanish.
        """
        reason = "the SuperLink does not take messages for its node (is that still registered?)"
        replies = [Message(Error(NOT_TAKEN, reason), reply_to=message) for message in self._refused]
        self._refused = []
        if not self._under_way:
            return replies
        ids = [*self._under_way, *self._abandoned]
        found, unreadable = replies_to(self._grid, ids, singly=self._singly)
        for message_id, why in unreadable.items():
            self._abandoned.discard(message_id)
            if message_id in self._under_way:
                message = self._under_way.pop(message_id).message
                replies.append(Message(Error(NO_REPLY, why), reply_to=message))
        for reply in found:
            answered = reply.metadata.reply_to_message_id
            self._abandoned.discard(answered)
            if self._under_way.pop(answered, None) is None:
                continue
            if reply.has_error() and "ActorDiedError" in (reply.error.reason or ""):
                raise EdgeFlError(
                    "a process of the simulation died (out of memory?), and Flower would go on "
                    "giving work to it; continue the run with: edge-fl resume RUN"
                )
            replies.append(reply)
        now = time.monotonic()
        for message_id, sent in list(self._under_way.items()):
            if now > sent.deadline:
                del self._under_way[message_id]
                self._abandoned.add(message_id)
                error = Error(NO_REPLY, "no reply in time")
                replies.append(Message(error, reply_to=sent.message))
        return replies
