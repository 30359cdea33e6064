"""What the signals that mean an end do to `edge-fl run`: they stop the run, or wait until they
may."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from fl_app.launch.supervise import ENDING, heed

INTERRUPTED, TERMINATED = 130, 143
_waiting: list[int] = []


class Stopped(BaseException):
    """A signal wants the run to stop."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted" if number == signal.SIGINT else "terminated")
        self.code = INTERRUPTED if number == signal.SIGINT else TERMINATED
        self.moment = time.time()


def stop(number: int, _frame: FrameType | None) -> None:
    """Raise Stopped in the main thread, once."""
    # Once is enough: clearing up takes seconds, and a second Ctrl-C must not cut it short.
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


def _wait(number: int, _frame: FrameType | None) -> None:
    _waiting.append(number)


def hold() -> None:
    """From now on such a signal waits for `go_on`, which may never come: all that is left to do
    takes seconds, and is to be done whatever happens."""
    heed(_wait)


def go_on() -> None:
    """From now on such a signal raises Stopped; one that has waited does so at once."""
    heed(stop)
    if _waiting:
        number = _waiting[0]
        _waiting.clear()
        stop(number, None)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within it such a signal waits; it does at the end what it would have done at once."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears of signals
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    hold()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        told = _waiting[:]
        _waiting.clear()
        if told:
            signal.raise_signal(told[0])
