"""What happened to nodes and links in a window, as it is recorded."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from strategies.consensus.host import INCIDENTS
from strategies.consensus.schedule import Outage
from strategies.messages.windows import NOBODY, Moment


def trace(moments: Iterable[Moment]) -> list[tuple[float, str, int, int | None, float | None]]:
    """All of it, as (t, what, node, peer, when its mail was sent), in the order of time."""
    told = (
        (m.t, m.what, m.node, _peer(m), None if math.isnan(m.sent) else m.sent) for m in moments
    )
    return sorted(told, key=lambda event: (event[0], event[2]))


def incidents(
    moments: Iterable[Moment], outages: Sequence[Outage], window: tuple[float, float]
) -> list[dict[str, Any]]:
    """Nodes that went or came back, and links that were cut or healed, in the order of time.
    outages: of the schedule, for nothing tells a host of a cut link; window: when it began and
    ended."""
    found = [(m.t, m.node, m.what, _peer(m)) for m in moments if m.what in INCIDENTS]
    begin, end = window
    for outage in outages:
        for what, t in (("cut", outage.start), ("healed", outage.end)):
            if outage.kind == "cut" and (begin < t <= end or t == begin == 0):
                found.append((t, outage.node, what, outage.peer))
    return [
        {"t": t, "node": node, "kind": what, "peer": peer}
        for t, node, what, peer in sorted(found, key=lambda incident: incident[:3])
    ]


def _peer(moment: Moment) -> int | None:
    return None if moment.peer == NOBODY else moment.peer
