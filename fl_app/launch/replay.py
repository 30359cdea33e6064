"""A run that has really happened, on the virtual clock."""

import sys
from collections.abc import Mapping

from fl_app.config import Value, defaults, with_effect
from fl_app.record.run_dir import RunDirectory, flatten
from strategies.errors import ConfigError

# Of the run that happened, and none of the one that repeats it, in which everybody takes part.
_ITS_OWN = ("clock", "min-participants", "name", "output", "replay", "resume")


def replayed(run: RunDirectory, given: Mapping[str, Value]) -> dict[str, Value]:
    """What a simulation with the configuration of `run`, and its rounds, is started with; `given`
    wins. Says which keys of another version are left out. Raises ConfigError for a run of nodes
    without rounds, and for one whose learning rates would be others; RunDirectoryError."""
    with run.reading():
        found = {k: v for k, v in flatten(run.config()).items() if k not in _ITS_OWN}
        rounds = run.summary().get("rounds") or len(
            {event["round"] for event in run.events() if event["event"] == "round"}
        )
    if found.get("mode") not in ("average", "distill"):
        raise ConfigError(
            f"--trace {run.name}: only runs of mode='distill' and 'average' have rounds that can "
            f"be replayed, not mode={found.get('mode')!r}"
        )
    if not rounds:
        raise ConfigError(f"--trace {run.name}: it has recorded no round")
    if unknown := sorted(found.keys() - defaults().keys()):
        told = ", ".join(f"{key}={found.pop(key)!r}" for key in unknown)
        print(f"edge-fl: --trace {run.name}: no keys of this version: {told}", file=sys.stderr)
    planned, found["num-server-rounds"] = found.get("num-server-rounds"), rounds
    found |= {"clock": "virtual", "replay": str(run.path.absolute())}
    wanted = {**found, **given}
    schedule, some = wanted.get("learning-rate-schedule", "constant"), wanted["num-server-rounds"]
    if schedule != "constant" and some != planned:
        raise ConfigError(
            f"--trace {run.name}: learning-rate-schedule={schedule!r} spreads over the rounds of a "
            f"run, {planned} in that one; in a replay of {some} participants would learn at other "
            f"rates: use learning-rate-schedule='constant', or replay a run that has all its rounds"
        )
    return with_effect(wanted, place="simulation") | dict(given)
