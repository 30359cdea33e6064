"""The ServerApp: checks the configuration, opens the run directory, runs the strategy."""

import logging
import threading
from collections.abc import Callable

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fl_app import flower
from fl_app.config import configure
from fl_app.launch.opening import linked
from fl_app.launch.surroundings import check_simulation
from fl_app.preflight import preflight
from fl_app.record.books import recorded
from fl_app.strategy import strategy_of
from strategies.allocator import keep_freed_memory
from strategies.errors import EdgeFlError

CLOSING_SECONDS = 4.0  # of the 5 s that a service or `edge-fl run` waits before it kills


def _without_traceback(record: logging.LogRecord) -> bool:
    """Have Flower log an error that is raised on purpose by its message, which says it all."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (EdgeFlError, flower.FlowerError)):
        record.msg, record.args = f"{record.getMessage()}: {error}", ()
        record.exc_info = record.exc_text = None
    return True


keep_freed_memory()
logging.getLogger("flwr").addFilter(_without_traceback)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    flower.check(flower.SERVERAPP)
    check_simulation()
    config = configure(dict(context.run_config), fused=True)
    preflight(config)
    # One thread: the server's own work is small, and the cores belong to those who train.
    torch.set_num_threads(1)
    with recorded(config, _when_told) as run, linked(grid, config, run) as devices:
        strategy_of(config, run).start(devices)


def _when_told(close: Callable[[], None]) -> None:
    """Flower ends a ServerApp by a signal without a last word, 5 s later by force; but it calls
    such handlers first. In a thread of its own: what the signal has interrupted may hold a lock."""

    def close_in_time() -> None:
        closing = threading.Thread(target=close, daemon=True)
        closing.start()
        closing.join(CLOSING_SECONDS)

    flower.part("add_exit_handler")(close_in_time, run_before_force_exit=True)
