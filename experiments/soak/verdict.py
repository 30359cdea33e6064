"""From the samples of a soak to its verdict: is every process flat?"""

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A line may rise so much an hour, in its own unit. A process that gains 4 MB an hour has 0.7 GB
# more after a week; one that keeps something of every round shows far more than that. What lives
# for less than an hour may gain what an hour may: Python looks for old garbage when a quarter as
# many objects have come as there are old ones, which takes the SuperNode 20 minutes and 2 MB, and
# one connection that is open now and then looks like growth in so short a life.
BOUNDS = {"memory, MB": 4.0, "handles": 2.0, "threads": 1.0, "disk, MB": 20.0}
_LEAST_HOURS = 1.0
# What else a program may gain in its whole life, by design. The SuperLink's are connections to its
# database: of two pools of SQLAlchemy each keeps 5, as many as were ever asked for at once, of two
# handles each.
ROOM = {("SuperLink", "handles"): 20.0}
# A process fills its caches first: so much of its life is left out, and what lived for less than
# the other share of the soak has no line to speak of.
_WARM_UP_SHARE, _LEAST_SHARE = 0.25, 0.3


@dataclass(frozen=True)
class Sample:
    """A look at a process (or, with pid 0, at a folder), `t` seconds after the soak began."""

    t: float
    machine: str
    program: str
    pid: int
    memory: float  # resident and of no file, MB (a folder: what it holds on disk)
    handles: int
    threads: int
    cpu: float  # seconds since it began


@dataclass(frozen=True)
class Line:
    """How one quantity of one process has changed: median of the slopes between all pairs (Theil
    and Sen), which a few steps, say of a fork that has ended, do not move."""

    name: str
    quantity: str
    hours: float
    first: float
    last: float
    slope: float  # an hour

    @property
    def flat(self) -> bool:
        program = self.name.partition(": ")[2].rpartition(" ")[0]
        allowed = BOUNDS[self.quantity] * max(self.hours, _LEAST_HOURS)
        allowed = max(allowed, ROOM.get((program, self.quantity), 0.0))
        return self.slope * self.hours <= allowed


def read(path: Path) -> list[Sample]:
    """The samples of a CSV file; a last line that was cut off is left out."""
    found = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if None not in row.values():
                found.append(Sample(*(f.type(row[f.name]) for f in fields(Sample))))  # type: ignore[operator]
    return found


def write(path: Path, samples: Iterable[Sample]) -> None:
    """Append samples to a CSV file."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(field.name for field in fields(Sample))
        writer.writerows(astuple(sample) for sample in samples)


def lives(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """The samples of each process, or folder, by its name."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        number = f" {sample.pid}" if sample.pid else ""
        found[f"{sample.machine}: {sample.program}{number}"].append(sample)
    return dict(found)


def lines(samples: Sequence[Sample]) -> list[Line]:
    """Of every process that has lived for long enough, and of every folder."""
    whole = max(s.t for s in samples) - min(s.t for s in samples)
    found = []
    for name, life in lives(samples).items():
        span = life[-1].t - life[0].t
        if span < _LEAST_SHARE * whole:
            continue
        settled = [s for s in life if s.t >= life[0].t + _WARM_UP_SHARE * span]
        if len(settled) < 3:
            continue
        hours = np.array([s.t for s in settled]) / 3600
        if life[0].pid:
            quantities = {
                "memory, MB": [s.memory for s in settled],
                "handles": [s.handles for s in settled],
                "threads": [s.threads for s in settled],
            }
        else:
            quantities = {"disk, MB": [s.memory for s in settled]}
        for quantity, values in quantities.items():
            slope = theil_sen(hours, np.array(values, dtype=float))
            found.append(Line(name, quantity, span / 3600, values[0], values[-1], slope))
    return found


def theil_sen(x: np.ndarray, y: np.ndarray) -> float:
    """The median of the slopes between all pairs of points."""
    i, j = np.triu_indices(len(x), 1)
    return float(np.median((y[j] - y[i]) / (x[j] - x[i])))


def cores(samples: Sequence[Sample]) -> float:
    """Processor seconds a second of all processes together."""
    used = sum(life[-1].cpu - life[0].cpu for life in lives(samples).values())
    return used / (samples[-1].t - samples[0].t)


def table(samples: Sequence[Sample], events: Iterable[str]) -> str:
    """The verdict in Markdown: the line of each process and folder, and what befell them."""
    found = lines(samples)
    bad = [line for line in found if not line.flat]
    hours = (samples[-1].t - samples[0].t) / 3600
    bounds = ", ".join(f"{quantity} {bound:g}" for quantity, bound in BOUNDS.items())
    text = [
        f"Soak of {hours:.1f} hours, {len(samples)} samples, {cores(samples):.2f} of a core. "
        f"Bounds of the slopes, an hour: {bounds}. Slopes leave out the first quarter of a "
        f"process's life, and processes that lived for less than {_LEAST_SHARE:.0%} of the time. "
        f"What lived for less than an hour may gain what an hour may"
        + "".join(f"; {which}: {room:g} {what} at most" for (which, what), room in ROOM.items())
        + ".",
        "",
        f"**{len(found) - len(bad)} of {len(found)} lines are flat"
        + (f"; growing: {', '.join(f'{x.name} ({x.quantity})' for x in bad)}.**" if bad else ".**"),
        "",
        "| Process | hours | memory, MB: first, last | slope an hour | handles: last, slope "
        "| threads: last, slope |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    by_name: dict[str, dict[str, Line]] = defaultdict(dict)
    for line in found:
        by_name[line.name][line.quantity] = line
    for name, of in sorted(by_name.items()):
        memory = of.get("memory, MB") or of["disk, MB"]
        cells = [f"{memory.hours:.1f}", f"{memory.first:.0f}, {memory.last:.0f}"]
        cells.append(f"{memory.slope:+.2f}")
        for quantity in ("handles", "threads"):
            line = of.get(quantity)
            cells.append(f"{line.last:g}, {line.slope:+.1f}" if line else "")
        text.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*text, "", "What befell them:", "", *(f"- {event}" for event in events), ""])


def figure(samples: Sequence[Sample]) -> "Figure":
    """Memory, handles and threads of every process over time, one colour a program."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10, 10), layout="constrained")
    axes = drawn.subplots(4, 1, sharex=True)
    programs = sorted({s.program for s in samples})
    colours = {name: f"C{i % 10}" for i, name in enumerate(programs)}
    titles = ("resident memory, MB", "file handles", "threads", "disk, MB")
    labelled: set[str] = set()
    for life in lives(samples).values():
        minutes = [s.t / 60 for s in life]
        program = life[0].program
        style = {"color": colours[program], "linewidth": 1}
        label = None if program in labelled else program
        labelled.add(program)
        if life[0].pid == 0:
            axes[3].plot(minutes, [s.memory for s in life], label=label, **style)
            continue
        axes[0].plot(minutes, [s.memory for s in life], label=label, **style)
        axes[1].plot(minutes, [s.handles for s in life], **style)
        axes[2].plot(minutes, [s.threads for s in life], **style)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
    for axis in (axes[0], axes[3]):
        if not axis.get_legend_handles_labels()[0]:
            continue
        axis.legend(fontsize=7, ncol=2, loc="upper left", bbox_to_anchor=(1, 1))
    axes[3].set_xlabel("minutes")
    return drawn
