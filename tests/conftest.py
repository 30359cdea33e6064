"""How tests run."""

import gc
import signal

import pytest
from hypothesis import settings

from tests.wheel import installed

__all__ = ["installed"]  # a fixture

# A busy machine takes its time.
settings.register_profile("any speed", deadline=None)
settings.load_profile("any speed")

# Modules whose tests take longest, longest first: begun last, they would keep one of two processes
# busy for minutes after the other has nothing left to do.
_LONGEST = (
    "test_deployment",
    "test_faults_short",
    "test_distill",
    "test_flwr_run",
    "test_consensus_flwr_run",
    "test_rules",
)

# Who starts the tests in the background of a shell script starts them with SIGINT ignored, and what
# is ignored stays ignored in all that they start: a test of Ctrl-C would wait for ever.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_collection_finish() -> None:
    """What was imported and collected is looked at by no garbage collection any more: these are a
    million objects, and Flower collects after every message that it unpacks."""
    gc.collect()
    gc.freeze()
