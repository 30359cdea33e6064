"""What participants' devices are like on the virtual clock: how fast, when on, how much power."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

_COLUMNS = ("device", "speed", "link", "train_watts", "transfer_watts", "idle_watts")
_ON_COLUMNS = ("device", "from", "to")
_ALL = "*"


@dataclass(frozen=True)
class Machine:
    """speed and link: how many times as fast as the cost model's device and link; watts while it
    trains, sends or receives, and waits."""

    speed: float = 1.0
    link: float = 1.0
    train_watts: float = 0.0
    transfer_watts: float = 0.0
    idle_watts: float = 0.0


@dataclass(frozen=True)
class Machines:
    """The devices of a run. of: by participant; on: by participant, when it is on, as intervals of
    seconds that do not touch; who is not there is an ordinary device, and always on."""

    of: Mapping[int, Machine] = field(default_factory=dict)
    on: Mapping[int, Sequence[tuple[float, float]]] = field(default_factory=dict)

    def machine(self, participant: int) -> Machine:
        return self.of.get(participant, Machine())

    def next_on(self, participant: int, t: float) -> tuple[float, float]:
        """(from when, until when) it is on, at t or as soon as it will be; infinite: never more."""
        if participant not in self.on:
            return t, math.inf
        for begin, end in self.on[participant]:
            if t < end:
                return max(t, begin), end
        return math.inf, math.inf

    def told(self, participants: int) -> list[dict[str, Any]]:
        """What the record says of every device; [] where all are ordinary, and always on."""
        if not (self.of or self.on):
            return []
        return [{**asdict(self.machine(p)), "on": self.on.get(p)} for p in range(participants)]

    def some_on(self, participants: int, t: float) -> bool:
        """Whether anybody is on at t or later."""
        return any(self.next_on(p, t)[0] < math.inf for p in range(participants))


def read_machines(text: str, participants: int) -> dict[int, Machine]:
    """A table of devices: CSV with a header of `device` (a participant's number, or * for all that
    have no row) and any of speed, link, train_watts, transfer_watts, idle_watts; lines that begin
    with # are comments. Raises ValueError with the line."""
    rows: dict[str, Machine] = {}
    for number, row in _rows(text, _COLUMNS):
        values = {name: _number(number, name, row[name]) for name in row if name != "device"}
        for name, value in values.items():
            least = math.ulp(0.0) if name in ("speed", "link") else 0.0
            if not least <= value <= 1e6:
                raise ValueError(f"line {number}: {name}={value:g} is out of range")
        if row["device"] in rows:
            raise ValueError(f"line {number}: there is a device {row['device']!r} already")
        rows[row["device"]] = Machine(**values)
    everybody = rows.pop(_ALL, None)
    found = {_participant(name, participants): machine for name, machine in rows.items()}
    if everybody is not None:
        found = {p: found.get(p, everybody) for p in range(participants)}
    return found


def read_availability(text: str, participants: int) -> dict[int, list[tuple[float, float]]]:
    """When devices are on: CSV with the header device,from,to, in seconds of the virtual clock.
    Raises ValueError with the line."""
    found: dict[int, list[tuple[float, float]]] = {}
    for number, row in _rows(text, _ON_COLUMNS):
        if set(row) != set(_ON_COLUMNS):
            raise ValueError(f"it has the columns {', '.join(row)}, not {', '.join(_ON_COLUMNS)}")
        begin, end = (_number(number, name, row[name]) for name in ("from", "to"))
        if not 0 <= begin < end:
            raise ValueError(f"line {number}: from {begin:g} to {end:g} is no time")
        found.setdefault(_participant(row["device"], participants), []).append((begin, end))
    return {participant: _joined(times) for participant, times in found.items()}


def _joined(times: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """In order, with those that touch in one."""
    result: list[tuple[float, float]] = []
    for begin, end in sorted(times):
        if result and begin <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((begin, end))
    return result


def _rows(text: str, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line, values) of each row."""
    lines = [
        (number, line)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    rows = list(csv.reader([line for _, line in lines], skipinitialspace=True))
    header = [name.strip() for name in rows[0]] if rows else []
    if "device" not in header or not set(header) <= set(columns):
        raise ValueError(f"its first line must name columns of: {', '.join(columns)}")
    found = []
    for (number, _), row in zip(lines[1:], rows[1:], strict=True):
        if len(row) != len(header):
            raise ValueError(f"line {number} has {len(row)} values, not {len(header)}")
        found.append((number, dict(zip(header, map(str.strip, row), strict=True))))
    return found


def _number(line: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"line {line}: {name}={text!r} is no number") from None
    if not math.isfinite(value):
        raise ValueError(f"line {line}: {name}={text!r} is not finite")
    return value


def _participant(name: str, participants: int) -> int:
    if not name.isdecimal() or int(name) >= participants:
        raise ValueError(f"device {name!r} is none of the participants 0 to {participants - 1}")
    return int(name)
