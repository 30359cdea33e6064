"""Invitations over Flower: the messages that open devices' sessions, and how those ended."""

import time
from collections.abc import Callable, Collection, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from strategies.checks import last_line
from strategies.dispatch import online, registered_name, replies_to
from strategies.messages.codec import message_of, records_of
from strategies.messages.queries import Invitation, SessionEnd

_INVITATION_SECONDS = 30 * 24 * 3600.0  # how long a session may last
_REFUSED_SECONDS = 30.0  # until a device that could not have a session is asked again
# A device that the server has given up is cut off, perhaps, and goes on when it is back; so it
# waits longer for the server than the server waits for it.
_DEVICE_PATIENCE = 10.0
FAILED = 2  # Flower's error code of a ClientApp that raised
_CRASHED = 8  # of a ClientApp that was killed, or did not answer within 30 s of its start
_TOO_SLOW = (
    " (it was killed, or takes longer than 30 s to start: the start script that `edge-fl deploy` "
    "writes now starts it before it is asked to)"
)


class Invitations:
    """Opens a session on every node that is online, but for those of devices that take no part.

    grid: Flower's. token: of the run. names: of the devices that take part, others: of those that
    do not. patience: seconds without a sign of life after which the server gives a device up. say:
    is told what keeps devices away. unable: why devices cannot have a session, by name.
    """

    def __init__(
        self,
        grid: Grid,
        token: str,
        names: Sequence[str],
        others: Collection[str],
        *,
        patience: float,
        say: Callable[[str], None],
    ) -> None:
        self._grid, self._token, self._names, self._others = grid, token, tuple(names), others
        self._patience, self._say = patience, say
        self.unable: dict[str, str] = {}
        self._invited: dict[str, int] = {}  # Flower's message id -> node
        self._spare: set[int] = set()  # nodes that are not asked for
        self._not_before: dict[int, float] = {}  # by node, when it is worth to ask it again

    def tend(self, here: Collection[str]) -> None:
        """Open a session on every node that is online and has none. here: the devices that are
        there."""
        replies, unreadable = (
            replies_to(self._grid, list(self._invited), singly=True) if self._invited else ([], {})
        )
        for message_id, why in unreadable.items():
            node = self._invited.pop(message_id)
            self._not_before[node] = time.monotonic() + _REFUSED_SECONDS
            self._say(f"node {node} has ended its session with {why}")
        for reply in replies:
            node = self._invited.pop(reply.metadata.reply_to_message_id, None)
            self._over(node, reply, here)
        busy = set(self._invited.values()) | self._spare
        now = time.monotonic()
        for node in online(self._grid, self._others):
            if node in busy or now < self._not_before.get(node, now):
                continue
            patience = _DEVICE_PATIENCE * self._patience
            content = records_of(Invitation(self._token, patience, list(self._names)))
            message = Message(content, node, "train.session", ttl=_INVITATION_SECONDS)
            ids = list(self._grid.push_messages([message]))
            if ids and ids[0]:
                self._invited[ids[0]] = node

    def _over(self, node: int | None, reply: Message, here: Collection[str]) -> None:
        if node is None:
            return
        called = registered_name(self._grid, node)
        if reply.has_error():  # else it is invited again as soon as it is online
            # Flower's process may have died while ours serves: that is no news.
            if reply.error.code in (FAILED, _CRASHED) and called not in here:
                self._not_before[node] = time.monotonic() + _REFUSED_SECONDS
                why = last_line(reply.error.reason)
                why += _TOO_SLOW if reply.error.code == _CRASHED else ""
                self._say(f"{called or f'node {node}'} has no session: {why}")
            return
        try:
            end = message_of(SessionEnd, reply.content)
        except ValueError as error:
            self._not_before[node] = time.monotonic() + _REFUSED_SECONDS
            self._say(f"node {node} has ended its session with {last_line(str(error))}")
            return
        # As it was registered, if it was by a name of ours: it must not speak for another one.
        name = called if called in self._names else last_line(end.name)
        why = last_line(end.why, "")
        if name not in self._names:
            self._spare.add(node)
            self._say(f"{name or node} is none of this run's devices" + (f": {why}" if why else ""))
        elif why and name not in here:
            if why != self.unable.get(name):
                self._say(f"{name} cannot take part: {why}")
            self.unable[name] = why
            self._not_before[node] = time.monotonic() + _REFUSED_SECONDS
