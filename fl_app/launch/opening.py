"""How a run reaches its devices: by sessions over the mail router, or by Flower's own messages."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from flwr.serverapp import Grid

from fl_app.assemble import check_devices, topology_text
from fl_app.config import RunConfig
from fl_app.data import embedded
from fl_app.problem import problem_of
from fl_app.record.run_dir import RunDirectory
from strategies.consensus.shared import topology_of
from strategies.errors import ConfigError, EdgeFlError
from strategies.link.sessions import SessionGrid
from strategies.link.transport import MESSAGE_LIMIT
from strategies.problem import flat_model
from strategies.pyproject import install
from strategies.site import Site, server_site

_POLL_SECONDS = 0.1
_SMALL = 1 << 22  # bytes of a reply besides its vectors: numbers, a slice of the trace


@contextmanager
def linked(grid: Grid, config: RunConfig, run: RunDirectory) -> Iterator[Grid]:
    """The grid that a strategy is to work with: `grid` in a simulation and where devices can have
    no sessions, and else one of sessions, which end with the context.

    Raises ConfigError for devices that do not fit the configuration, and where sessions are
    demanded and cannot be had.
    """
    site = server_site()
    demanded = config.sessions == "on" or config.consensus.carrier == "zenoh"
    if site is None:
        if demanded:
            raise ConfigError(
                "sessions are for devices: the SuperLink must be started with EDGE_FL_SITE set, as "
                "the script of `edge-fl deploy` does"
            )
        yield grid
        return
    names = check_devices(config, site)
    why = _obstacle(config, site)
    sessions = None
    if not why:
        try:
            sessions = _open(grid, config, site, names, run)
            least = config.min_participants or len(names)
            why = _first_answer(sessions, least, config.round_timeout)
        except EdgeFlError as error:
            why = str(error)
    if sessions is not None and why:
        sessions.close()
        sessions = None
    if sessions is None:
        if demanded:
            raise ConfigError(f"devices cannot have sessions: {why}")
        run.emit("warning", message=f"every message to a device starts a process there: {why}")
        yield grid
        return
    try:
        yield sessions
    finally:
        here = sessions.here()
        sessions.close()
        run.emit(
            "sessions",
            router_restarts=sessions.restarts,
            started=sessions.started,
            away=[name for name in names if name not in here],
            refused=sessions.refused,
        )


def _obstacle(config: RunConfig, site: Site) -> str:
    """Why there can be no sessions; "" if they can be tried."""
    if config.sessions == "off":
        return "sessions=off"
    if not site.mail_port:
        return "the site has no port for mail"
    if find_spec("zenoh") is None:
        return f"eclipse-zenoh is not installed: {install('deploy')}"
    return ""


def _first_answer(sessions: SessionGrid, least: int, timeout: float) -> str:
    """Wait for the first device with a session: "" when there is one or nobody comes, and else why
    so many have none that `least` cannot come together."""
    deadline = time.monotonic() + timeout
    while not sessions.here() and time.monotonic() < deadline:
        reasons = sessions.unreachable()
        if len(sessions.names) - len(reasons) < least:
            return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        time.sleep(_POLL_SECONDS)
    return ""


def _open(
    grid: Grid, config: RunConfig, site: Site, names: tuple[str, ...], run: RunDirectory
) -> SessionGrid:
    neighbours: dict[str, list[str]] = {}
    if config.agrees:
        topology = topology_of(
            config.consensus, config.participants, config.seed, topology_text(config)
        )
        for node, others in enumerate(topology.neighbours):
            neighbours[names[node]] = [names[other] for other in others]
    model = flat_model(problem_of(config), "small")
    state = model.state()
    vectors = 4 * sum(vector.nbytes for vector in state.values())
    return SessionGrid(
        grid,
        site,
        names,
        neighbours,
        patience=config.link_patience,
        # With the grid carrier a reply has all the mail of a window, however much that is.
        limit=MESSAGE_LIMIT if config.agrees and config.virtual else _SMALL + vectors,
        log=run.path / "mail-router.log",
        say=lambda message: run.emit("warning", message=message),
        served=lambda name: embedded.find(name) if name in embedded.FILES else None,
    )
