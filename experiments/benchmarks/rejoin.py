"""How long a device takes to come back to work after an accident (see `deployment`)."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from experiments.benchmarks.device_runs import DEVICES, DeviceRuns, Values, events_of
from experiments.flower_runs import say
from fl_app.deploy.loopback import Loopback
from fl_app.record.metrics import Event, of_kind
from strategies.errors import EdgeFlError

VICTIM = "pi-2"
# What is killed ("" = everything, as by a power cut), and whether the work is interrupted by it.
ACCIDENTS = {
    "session_process": ("client_apps.session_worker", True),
    "clientapp_process": ("flwr-clientapp", False),
    "supernode": ("flower-supernode", False),
    "power_cut": ("", True),
}
REJOIN: Values = {
    "mode": "consensus",
    "clock": "real",
    "participants": 3,
    "link-patience": 20.0,
    "evaluate-examples": 100,
    "consensus.references": "",
    "consensus.window": 100,
    "consensus.steps": 1_000_000,  # until it is stopped
}
_POLL_SECONDS = 0.1
_LONGEST = 300.0  # that a device is waited for


def measure_rejoin(runs: DeviceRuns) -> dict[str, Any]:
    values = runs.values("rejoin", REJOIN)

    found: dict[str, dict[str, float]] = {}
    with runs.site("rejoin", DEVICES) as site:
        process, run = runs.start(site, values), runs.record(values)

        def wait(condition: Callable[[list[Event]], bool]) -> float:
            """When it holds of the run's events (time.monotonic)."""
            deadline = time.monotonic() + _LONGEST
            while not condition(events_of(run)):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise EdgeFlError(f"{VICTIM} did not come back:\n{runs.said(values)}")
                time.sleep(_POLL_SECONDS)
            return time.monotonic()

        def accident(program: str, renewed: bool) -> dict[str, float]:
            so_far = len(events_of(run))
            wait(lambda events: len(of_kind(events[so_far:], "nodes")) >= 2)
            before, began = run.events(), time.monotonic()
            _happen(site, program)
            heard = wait(lambda events: bool(returns(events, before))) if renewed else 0.0
            back = wait(lambda events: worked_again(events, before, renewed)) - began
            return {"seconds": back} | ({"heard": heard - began} if renewed else {})

        try:
            for name, (program, renewed) in ACCIDENTS.items():
                say(f"rejoin: {name}")
                found[name] = accident(program, renewed)
        finally:
            process.terminate()
            process.wait()
    return {"rejoin": found}


def _happen(site: Loopback, program: str) -> None:
    """Kill the victim's processes of a program, or, without one, all of them, and start it."""
    for pid in site.pids(VICTIM, program) if program else ():
        os.kill(pid, signal.SIGKILL)
    if not program:
        site.kill(VICTIM)
        site.start(VICTIM)


def returns(events: Sequence[Event], before: Sequence[Event]) -> list[int]:
    """Where in `events`, after those of `before`, the victim is back with a new process."""
    words = f"{VICTIM} is back with a new process"
    return [
        position
        for position, event in enumerate(events)
        if position >= len(before) and event["event"] == "warning" and event["message"] == words
    ]


def worked_again(events: Sequence[Event], before: Sequence[Event], renewed: bool) -> bool:
    """Whether the victim has done a window that began after the events `before`; renewed: with a
    new process."""
    start = len(before)
    if renewed:
        found = returns(events, before)
        if not found:
            return False
        start = found[0]
    # That after the last one may be done already but for others' work, and the next one begun.
    begun = max((event["round"] for event in of_kind(before, "nodes")), default=0) + 2
    return any(
        event["round"] > begun and event["accuracy"][DEVICES.index(VICTIM)] is not None
        for event in of_kind(events[start:], "nodes")
    )
