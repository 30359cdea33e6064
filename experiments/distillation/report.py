"""results.json as a report: tables, figures, and sentences that the numbers decide."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean

from experiments.distillation import figures
from experiments.distillation.plan import CLOCKS, PARTITIONS, TARGETS, VARIANTS
from experiments.distillation.results import (
    PAPER,
    PAPER_TARGET,
    WINDOW,
    accuracy_at,
    difference,
    duration,
    equal_time,
    speedup,
    time_of,
)
from experiments.reporting import (
    Entry,
    Results,
    code_line,
    machine_line,
    many,
    present,
    select,
    shown_settings,
    table,
    write_report,
)
from fl_app.record.figures import to_png

Columns = dict[str, Callable[[Entry], float | None]]  # a table's columns by their heads
_AIM = PAPER["sync-forward"] / PAPER["async-continuous"]


def write(results: Results, out: Path) -> Path:
    """`write_report` with a picture of the accuracies for each partition."""
    pictures = {
        f"accuracy-{partition}": to_png(figures.accuracy(results, partition))
        for partition in present(results, "partition", PARTITIONS)
    }
    return write_report(results, out, pictures, render)


def render(results: Results, notes: str = "") -> str:
    """The report as Markdown."""
    sections = [
        _introduction(results),
        _paper_table(results),
        *(_group(results, *group) for group in _groups(results)),
        _claims(results),
        notes.strip(),
        _settings(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _groups(results: Results) -> list[tuple[str, str]]:
    """The (clock, partition) pairs of which there is a run."""
    there = {(entry["clock"], entry["partition"]) for entry in results["runs"]}
    return [(c, p) for p in PARTITIONS for c in CLOCKS if (c, p) in there]


def _introduction(results: Results) -> str:
    seeds = sorted({entry["seed"] for entry in results["runs"]})
    return f"""\
# Asynchronous federated learning by distillation: the paper's experiment

Yajima, Ono, Miyoshi, Yamazaki, *Asynchronous Federated Learning Using Distillation*: how long until
the large global model reaches 60 % on CIFAR-10, with three clients.

- Made by `{results["command"]}` (size {results["size"]}, seeds {", ".join(map(str, seeds))}).
- Code: {code_line(results)}.
- Hardware: {machine_line(results["hardware"])}.
- *Raw* is the global model itself, *EMA* the running average of its weights. The paper's four
  variants publish the raw model, `async-plus` the EMA.
- A target is reached at the first evaluation at which the mean of {WINDOW} consecutive ones is at
  least the target. Every accuracy below is such a mean of {WINDOW} evaluations.
- Several seeds are given as mean [one value a seed]. `-` is a target that was not reached.
- *Virtual clock*: times follow from a cost model, in which training of a round takes 10 s, and
  blocks of reverse and forward distillation take the 0.32 and 0.10 of that which the paper's four
  times imply. These runs execute the same strategy, ClientApp and worker process as `flwr run`,
  whose result is bit-equal, without starting Flower for each of them.
- *Real clock*: times of this machine. Every run is a `flwr run`, its distillation server a process
  on a core of its own, its clients share the other cores."""


def _paper_table(results: Results) -> str:
    """Seconds to the paper's target on IID data, beside the paper's."""
    clocks = [clock for clock, partition in _groups(results) if partition == "iid"]
    if not clocks:
        return ""
    rows = []
    for variant in VARIANTS:
        paper = PAPER.get(variant)
        row = [variant, f"{paper} s" if paper else "-"]
        row.append(f"{PAPER['sync-forward'] / paper:.2f}" if paper else "-")
        for clock in clocks:
            entries = select(results, clock=clock, partition="iid", variant=variant)
            slow = select(results, clock=clock, partition="iid", variant="sync-forward")
            times = [time_of(entry, PAPER_TARGET, "published") for entry in entries]
            row.append(many(times, "{:.0f}"))
            row.append(_ratio(slow, entries, "published"))
        rows.append(row)
    head = ["variant", "paper", "times faster than sync-forward"]
    for clock in clocks:
        head += [f"here, {clock} clock (s)", "times faster"]
    figure = "![accuracy over time](figures/accuracy-iid.png)"
    note = (
        "A ratio is the mean of each seed's. `>=`: sync-forward ended without reaching the target "
        "and counts with its duration."
    )
    title = f"## Time until the published global model reaches {100 * PAPER_TARGET:.0f} %, IID"
    return "\n\n".join([title, table(head, rows), note, figure])


def _group(results: Results, clock: str, partition: str) -> str:
    """All tables of one clock and partition."""
    entries = select(results, clock=clock, partition=partition)
    shared = {
        seed: equal_time(entry for entry in entries if entry["seed"] == seed)
        for seed in sorted({entry["seed"] for entry in entries})
    }
    moments = ", ".join(f"{t:.0f} s" for t in shared.values())
    at_equal_time = _accuracies(lambda entry: shared[entry["seed"]])
    tables = [
        ("Seconds to reach", _times(), "{:.0f}"),
        (f"Accuracy in % when the first variant ends ({moments})", at_equal_time, "{:.1f}"),
        ("Accuracy in % at the end, after equally many rounds", _accuracies(duration), "{:.1f}"),
        ("Who waited, and what the distillation server did", _efforts(), "{:.3g}"),
    ]
    parts = [f"## {clock.capitalize()} clock, {partition}"]
    if partition != "iid":
        parts.append(f"![accuracy over time](figures/accuracy-{partition}.png)")
    for title, columns, form in tables:
        parts += [f"**{title}**", _by_variant(entries, columns, form)]
    return "\n\n".join(parts)


def _by_variant(entries: Sequence[Entry], columns: Columns, form: str) -> str:
    """A row a variant, a column for each function of a run."""
    rows = []
    for variant in VARIANTS:
        own = [entry for entry in entries if entry["variant"] == variant]
        if own:
            cells = [many([column(entry) for entry in own], form) for column in columns.values()]
            rows.append([variant, *cells])
    return table(["variant", *columns], rows)


def _times() -> Columns:
    return {
        f"{100 * target:.0f} %, {model}": lambda entry, t=target, m=model: time_of(entry, t, m)
        for model in ("raw", "ema")
        for target in TARGETS
    }


def _accuracies(moment: Callable[[Entry], float]) -> Columns:
    names = {"small model": "small", "global, raw": "raw", "global, EMA": "ema"}

    def percent(entry: Entry, curve: str) -> float | None:
        accuracy = accuracy_at(entry["curves"][curve], moment(entry))
        return None if accuracy is None else 100 * accuracy

    columns = {name: lambda e, c=curve: percent(e, c) for name, curve in names.items()}
    return {**columns, "after (s)": moment}


def _efforts() -> Columns:
    def idle(entry: Entry, waiting_for: str) -> float:
        return 100 * entry["summary"]["client_idle_fraction"][waiting_for]

    return {
        "clients idle %, for clients": lambda entry: idle(entry, "clients"),
        "clients idle %, for the server": lambda entry: idle(entry, "server"),
        "distillation server busy %": lambda entry: 100 * entry["summary"]["worker_busy_fraction"],
        "distillation steps": lambda entry: entry["steps"],
        "mean staleness of the teacher (versions)": (
            lambda entry: entry["summary"]["teacher_staleness"]["mean"]
        ),
        "versions skipped": lambda entry: entry["summary"]["skipped_snapshots"],
    }


# -- what the numbers say ---------------------------------------------------------------------


def _claims(results: Results) -> str:
    """The paper's statements and our aims, each beside what was measured."""
    lines = []
    for clock, partition in _groups(results):
        of = {v: select(results, clock=clock, partition=partition, variant=v) for v in VARIANTS}
        where = f"{clock} clock, {partition}"
        for target in TARGETS:
            if partition == "iid" or target == TARGETS[0]:
                lines += _speedup_line(of, where, target)
        lines += _order_line(of, where)
        lines += _forward_lines(of, where)
        lines += _plus_lines(of, where)
    return "\n".join(["## What reproduced and what did not", "", *lines])


def _speedup_line(of: dict[str, list[Entry]], where: str, target: float) -> list[str]:
    found = speedup(of["sync-forward"], of["async-continuous"], target, "published")
    if found["mean"] is None:
        text = "async-continuous did not reach it: no ratio"
    else:
        relation = "at least " if found["at_least"] else ""
        ratios = ", ".join("-" if r is None else f"{r:.2f}" for r in found["ratios"])
        verdict = "reached" if found["mean"] >= _AIM else "**missed**"
        text = f"{relation}{found['mean']:.2f} [{ratios}]; the paper's {_AIM:.2f} is {verdict}"
    return [f"- {where}, {100 * target:.0f} %: sync-forward / async-continuous = {text}."]


def _order_line(of: dict[str, list[Entry]], where: str) -> list[str]:
    """Whether each of the paper's four variants was faster than the one before, seed by seed."""
    lines = []
    for slow, fast in zip(list(PAPER), list(PAPER)[1:], strict=False):
        found = speedup(of[slow], of[fast], PAPER_TARGET, "published")
        target = PAPER_TARGET
        if found["mean"] is None:
            target = TARGETS[0]
            found = speedup(of[slow], of[fast], target, "published")
        if found["mean"] is None:
            continue
        ratios = [ratio for ratio in found["ratios"] if ratio is not None]
        wins = sum(ratio > 1 for ratio in ratios)
        relation = ">= " if found["at_least"] else ""
        lines.append(
            f"- {where}, {100 * target:.0f} %: {fast} was faster than {slow} with {wins} of "
            f"{len(ratios)} seeds, {relation}{found['mean']:.2f} times in the mean "
            f"(paper {PAPER[slow] / PAPER[fast]:.2f})."
        )
    return lines


def _forward_lines(of: dict[str, list[Entry]], where: str) -> list[str]:
    """The paper's open problem: without forward distillation S, and in the end G, are worse."""
    lines = []
    for name, curve in (("small model", "small"), ("raw global model", "raw"), ("EMA", "ema")):
        found = difference(of["sync-forward"], of["sync"], lambda e, c=curve: _final(e, c))
        if found:
            lines.append(
                f"- {where}: forward distillation changed the final {name} by "
                f"{many([100 * d for d in found], '{:+.1f}')} points (sync-forward minus sync)."
            )
    return lines


def _plus_lines(of: dict[str, list[Entry]], where: str) -> list[str]:
    """async-plus against the better of the synchronous variants, like with like: as published, a
    weight average would stand beside raw weights."""

    def best(entries: Iterable[Entry], curve: str) -> dict[int, float]:
        finals: dict[int, float] = {}
        for entry in entries:
            value = _final(entry, curve)
            if value is not None:
                finals[entry["seed"]] = max(value, finals.get(entry["seed"], 0.0))
        return finals

    lines = []
    for name, curve in (("averaged weights", "ema"), ("raw weights", "raw")):
        plus = best(of["async-plus"], curve)
        sync = best([*of["sync-forward"], *of["sync"]], curve)
        seeds = sorted(plus.keys() & sync.keys())
        if gains := [100 * (plus[seed] - sync[seed]) for seed in seeds]:
            verdict = "at least as accurate as" if mean(gains) >= 0 else "**less accurate** than"
            lines.append(
                f"- {where}, {name}: at the end async-plus was {verdict} the better synchronous "
                f"variant: {many(gains, '{:+.1f}')} points."
            )
    return lines


def _final(entry: Entry, curve: str) -> float | None:
    return accuracy_at(entry["curves"][curve], duration(entry))


def _settings(results: Results) -> str:
    """What was run: the settings of each group, and a command for one run of it."""
    lines = ["## Settings", ""]
    for clock, partition in _groups(results):
        entries = select(results, clock=clock, partition=partition)
        wall = sum(entry["summary"]["wall_seconds"] for entry in entries)
        places = ("data-root", "seed", "distill.variant", "clock", "partition")
        shown = shown_settings(entries[0]["settings"], without=places)
        lines += [
            f"- {clock} clock, {partition}: {len(entries)} runs, {wall / 60:.1f} minutes of runs. "
            f"{shown}; everything else as in pyproject.toml.",
        ]
    example = results["runs"][-1]
    lines += ["", f"Each run has its command in results.json, for example {_name(example)}:", ""]
    return "\n".join([*lines, "```", example["command"], "```"])


def _name(entry: Entry) -> str:
    return f"{entry['variant']} on the {entry['clock']} clock"


def _ratio(slow: Sequence[Entry], fast: Sequence[Entry], model: str) -> str:
    found = speedup(slow, fast, PAPER_TARGET, model)
    if found["mean"] is None:
        return "-"
    return f"{'>= ' if found['at_least'] else ''}{found['mean']:.2f}"
