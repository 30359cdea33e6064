"""Messages out and replies in, without Flower's polls of whole seconds."""

import time

from flwr.app import Error, Message
from flwr.serverapp import Grid

from fl_app.errors import EdgeFlError

NO_REPLY = 100  # error code of a reply that did not come in time; Flower's own are below


class Dispatcher:
    """Sends to nodes that are free - one message under way per node - and collects what is there.

    In Flower's simulation two messages to one node run at the same time with stale state, and on a
    device they queue; one at a time is right for both.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._under_way: dict[str, tuple[Message, float]] = {}

    def busy(self) -> set[int]:
        """The nodes that have a message."""
        return {message.metadata.dst_node_id for message, _ in self._under_way.values()}

    def send(self, message: Message, timeout: float) -> str | None:
        """Send; returns the message's id, or None when the SuperLink did not take it.

        `timeout` seconds later the message counts as failed, whatever becomes of it: a node that
        vanished and came back is never given its old messages again.
        """
        ids = list(self._grid.push_messages([message]))
        if not ids or not ids[0]:
            return None
        self._under_way[ids[0]] = (message, time.monotonic() + timeout)
        return ids[0]

    def collect(self) -> list[Message]:
        """The replies since the last call, and errors for messages that are out of time.

        What they answer is in metadata.reply_to_message_id; an error made by the SuperLink itself
        names another sender than the node.

        Raises EdgeFlError when a process of the simulation has died: Flower would go on giving
        messages to it, and they would vanish.
        """
        if not self._under_way:
            return []
        replies = []
        for reply in self._grid.pull_messages(list(self._under_way)):
            del self._under_way[reply.metadata.reply_to_message_id]
            if reply.has_error() and "ActorDiedError" in (reply.error.reason or ""):
                raise EdgeFlError(
                    "a process of the simulation died (out of memory?), and Flower would go on "
                    "giving work to it; continue the run with: edge-fl resume RUN"
                )
            replies.append(reply)
        now = time.monotonic()
        for message_id, (message, deadline) in list(self._under_way.items()):
            if now > deadline:
                del self._under_way[message_id]
                error = Error(NO_REPLY, "no reply in time")
                replies.append(Message(error, reply_to=message))
        return replies
