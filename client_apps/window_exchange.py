"""What carries a window's mail between this host and the others."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from client_apps.local_model import local_model_of
from strategies.carriers.checks import expected_vectors
from strategies.carriers.exchange import Exchange
from strategies.carriers.grid import GridExchange, from_arrays
from strategies.carriers.sockets import SocketExchange
from strategies.carriers.zenoh import ZenohExchange
from strategies.consensus.settings import NodesRun
from strategies.consensus.shared import nodes_of
from strategies.link.device_session import DeviceSession
from strategies.link.sealing import Sealing
from strategies.messages.windows import WindowOrder


@contextmanager
def exchange_of(
    settings: NodesRun, order: WindowOrder, session: DeviceSession | None
) -> Iterator[Exchange | None]:
    """The exchange of a window, None where there are no others. That of a session goes on between
    windows, so that mail can come there."""
    if order.carrier == "zenoh" and session is not None:
        key = settings, order.topology, tuple(order.names)
        yield session.kept(key, lambda: _zenoh_exchange(settings, order, session))
    elif order.carrier == "sockets":
        made = SocketExchange(order.broker, order.host, order.collected)
        with contextlib.closing(made) as exchange:
            yield exchange
    elif order.carrier == "grid":
        inbox = from_arrays(order.mail, order.vectors)
        yield GridExchange(inbox, newest=not settings.virtual)
    else:
        yield None


def _zenoh_exchange(
    settings: NodesRun, order: WindowOrder, session: DeviceSession
) -> ZenohExchange:
    graph, algorithm, _ = nodes_of(settings, order.topology)
    node = order.names.index(session.site.name)
    parameters = len(local_model_of(settings.problem).model.weights)
    return ZenohExchange(
        session.connection,
        session.run,
        own={node: session.site.name},
        names=dict(enumerate(order.names)),
        expected=lambda mail: expected_vectors(mail, algorithm, parameters),
        neighbours={node: graph.neighbours[node]},
        sealing=Sealing(session.site, session.run) if settings.consensus.encrypt else None,
        parameters=parameters,
    )
