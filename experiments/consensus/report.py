"""results.json as a report: tables, figures, and sentences that the numbers decide."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean

from experiments.consensus import figures
from experiments.consensus.plan import (
    ADJUSTED,
    ANCHORS,
    GROUPS,
    KEEPS,
    OURS,
    PRESETS,
    ROWS,
    SIZES,
    TUNING_SEED,
)
from experiments.consensus.results import (
    AIM,
    CENTRALIZED,
    Gap,
    average,
    behind,
    centralized,
    gap,
    hosts,
    node_mean,
    node_min,
    verdict,
)
from experiments.reporting import (
    Entry,
    Results,
    code_line,
    hardware_line,
    many,
    present,
    select,
    shown_settings,
    table,
    write_report,
)
from fl_app.config import with_effect
from fl_app.record.figures import to_png

_DATA = {
    "cifar10": "CIFAR-10",
    "fashion-mnist": "Fashion-MNIST",
    "embedded": "7,000 images of Fashion-MNIST",
}
_WITHOUT = (KEEPS, ANCHORS)  # ours without a part of it
_COLUMNS: dict[str, tuple[Callable[[Entry], float], str]] = {
    "step size": (lambda e: e["settings"]["consensus.learning-rate"], "{:g}"),
    "as trained: node mean %": (lambda e: 100 * mean(e["final"]["nodes"]), "{:.2f}"),
    "as trained: node min %": (lambda e: 100 * min(e["final"]["nodes"]), "{:.2f}"),
    "node mean %": (lambda e: 100 * node_mean(e), "{:.2f}"),
    "node min %": (lambda e: 100 * node_min(e), "{:.2f}"),
    "(averaged model %)": (lambda e: 100 * average(e), "{:.2f}"),
    "consensus distance": (lambda e: e["distance"], "{:.1e}"),
    "MB sent": (lambda e: e["bytes"] / 1e6, "{:.0f}"),
}


def write(results: Results, out: Path) -> Path:
    """`write_report` with a picture of the accuracies and of the nodes' spread for each group."""
    drawings = (("accuracy", figures.accuracy), ("spread", figures.spread))
    pictures = {
        f"{name}-{group}": to_png(draw(results, group))
        for group in present(results, "group", GROUPS)
        for name, draw in drawings
    }
    return write_report(results, out, pictures, render)


def render(results: Results, notes: str = "") -> str:
    """The report as Markdown."""
    groups = present(results, "group", GROUPS)
    sections = [
        _introduction(results),
        _aim(results, groups),
        *(_group(results, group) for group in groups),
        _claims(results, groups),
        notes.strip(),
        _settings(results, groups),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _introduction(results: Results) -> str:
    seeds = sorted({entry["seed"] for entry in results["runs"]})
    settings = results["runs"][0]["settings"]
    data, nodes = _DATA[settings["dataset"]], settings["participants"]
    size = SIZES[results["size"]]
    interval, grid = f"{size.interval:g}", ", ".join(f"{rate:g}" for rate in size.grid)
    examples = sorted({entry["final"]["examples"] for entry in results["runs"]})
    return f"""\
# Edge-consensus learning on a ring of {nodes}: {data}

Niwa et al., *Edge-consensus Learning* (KDD 2020) and *Asynchronous Decentralized Optimization With
Implicit Stochastic Variance Reduction* (ICML 2021): nodes that see only some of the classes
exchange with their neighbours at random times, and each is to end with the model that all the data
in one place would have given.

- Made by `{results["command"]}` (size {results["size"]}, seeds {", ".join(map(str, seeds))}).
- Code: {code_line(results)}.
- Hardware: {hardware_line(results)}.
- {data}; a ring of {nodes}; who has which classes is said with each table; an
  edge exchanges at random times, on average every K = {interval} local steps (`d-psgd`,
  `momentum-tracking`, `qg-dsgdm` and `relay-sgd`, which has a chain: all edges at once, every
  {interval} steps).
- Every row of every table has its own first step size: the best of {grid} on
  validation images with seed {TUNING_SEED}, which is in no table; where that was the longest or the
  shortest, the search went on. Centralized, too (rates.json,
  `python -m experiments.consensus.tune`).
- *Centralized* is plain SGD on all data in one place with the same model,
  schedule and momentum: as many steps as a node (batch 32), or as many samples as all nodes (batch
  {32 * nodes}). Who has which data makes no difference to it: tables whose steps and momentum are
  alike share its runs.
- Accuracies are of all {", ".join(f"{n:,}" for n in examples)} test images, of the models that
  nodes have in the end (on the way, in the figures, of fewer images): where nodes settle, after
  that{_settling(results)}; *as trained* is before. The averaged model is a diagnosis: no node
  has it.
- Momentum is the running mean M <- 0.9 M + 0.1 g.
- Two seeds are given as mean [one value a seed], more as mean ± standard error; differences are
  paired by seed.
- `ecl` is ours: corrections that are held between exchanges, and forgotten while steps are long
  (theta 1/2, kappa 1, forget 1; docs/consensus.md). *Forgets nothing*: the same with forget 0.
  *Anchors not held*: the papers' form with kappa 1, what `ecl` was before. The rows named after a
  paper are as published.
  *Adjusted*: nodes allow for their own shares of the classes (`adjust-logits=0.5`).
- Every run is on the virtual clock, in one process without Flower's start-up; a `flwr run` of its
  command gives the same models, bit for bit."""


def _settling(results: Results) -> str:
    """What it takes to settle, where runs have it."""
    shares = [e["settling_bytes"] / e["bytes"] for e in results["runs"] if e.get("settling_bytes")]
    return f", which takes at most {100 * max(shares):.1f} % of the bytes" if shares else ""


def _aim(results: Results, groups: Sequence[str]) -> str:
    """Whether our nodes are as good as centralized training of as many steps, and how far they are
    from as many samples, which is harder."""
    lines = []
    for group, row in product(groups, (OURS, KEEPS, ADJUSTED)):
        if not (found := behind(results, group, row, "same-steps")):
            continue
        harder = behind(results, group, row, "same-samples")
        more = f" Of as many samples: {_both(harder)}." if harder else ""
        where = _title(group) + (f", *{figures.LABELS[row]}*" if row != OURS else "")
        lines.append(f"- {where}: {_both(found)}: {verdict(found)}.{more}")
    title = f"""\
## The aim

The nodes of `{OURS}`, in the mean and the lowest of them, are at most {100 * AIM:.1f} point below
centralized training of as many steps, with a standard error less. Differences to the mean of all of
its replicates, whose own error is counted:"""
    return "\n\n".join([title, "\n".join(lines)]) if lines else ""


def _both(found: Mapping[str, Gap]) -> str:
    return f"node mean {_gap(found['mean'])}, lowest node {_gap(found['min'])} points"


def _gap(found: Gap) -> str:
    error = f" ± {100 * found.error:.2f}" if found.error is not None else ""
    return f"{100 * found.mean:+.2f}{error}"


def _group(results: Results, group: str) -> str:
    rows = []
    for name in CENTRALIZED:
        if values := centralized(results, group, name):
            shown = many([100 * value for value in values], "{:.2f}")
            words = f"centralized, {name.replace('-', ' ')}, {len(values)} replicates"
            rate = _COLUMNS["step size"][0](hosts(results, group, name)[0])
            cells = [f"{rate:g}", "-", "-", shown, *["-"] * (len(_COLUMNS) - 4), ""]
            rows.append([words, *cells, *_reported(results, group, name)])
    for row in ROWS:
        entries = select(results, group=group, row=row)
        if entries and row != "same-samples":
            cells = [_cell([of(entry) for entry in entries], f) for of, f in _COLUMNS.values()]
            cells += [entries[0]["published"] or "", *_reported(results, group, row)]
            rows.append([figures.LABELS.get(row, row), *cells])
    pictures = [f"![{name}](figures/{name}-{group}.png)" for name in ("accuracy", "spread")]
    steps = select(results, group=group)[0]["settings"]["consensus.steps"]
    heading = f"## {_title(group)} ({steps:,} steps a node)"
    about = [GROUPS[group].about] if GROUPS[group].about else []
    others = ["others report %"] if SIZES[results["size"]].reported else []
    shown = table(["", *_COLUMNS, "as published in", *others], rows)
    return "\n\n".join([heading, *about, shown, *pictures])


def _cell(values: Sequence[float], form: str) -> str:
    return form.format(values[0]) if len(set(values)) == 1 else many(values, form)


def _reported(results: Results, group: str, row: str) -> list[str]:
    """What others report of it, in sizes that follow somebody's protocol."""
    reported = SIZES[results["size"]].reported
    return [reported.get((group, row), "")] if reported else []


# -- what the numbers say ---------------------------------------------------------------------


def _claims(results: Results, groups: Sequence[str]) -> str:
    lines = []
    for group in groups:
        of = {row: select(results, group=group, row=row) for row in ROWS}
        where, ours = _title(group), of[OURS]
        lines += _against(where, ours, "gossip", of["gossip"])
        keeps = f"*{figures.LABELS[KEEPS]}*"
        lines += _against(where, of[KEEPS], "gossip", of["gossip"], minuend=keeps)
        if best := max(PRESETS, key=lambda row: _mean(of[row])) if _any(of, PRESETS) else "":
            lines += _against(where, ours, f"the best published preset, {best}", of[best])
        for row in _WITHOUT:
            lines += _against(where, ours, f"*{figures.LABELS[row]}*", of[row])
        adjusted = of[ADJUSTED]
        for row in (OURS, "gossip-adjusted"):
            name = f"*{figures.LABELS[row]}*"
            lines += _against(where, adjusted, name, of[row], minuend=figures.LABELS[ADJUSTED])
        lines += _flattery(where, of["gossip"], centralized(results, group, "same-steps"))
    return "\n".join(["## What the numbers say", "", *lines]) if lines else ""


def _any(of: dict[str, list[Entry]], rows: Sequence[str]) -> bool:
    return any(of[row] for row in rows)


def _mean(entries: Sequence[Entry]) -> float:
    return mean(map(node_mean, entries)) if entries else 0.0


def _against(
    where: str,
    ours: Sequence[Entry],
    name: str,
    others: Sequence[Entry],
    minuend: str = f"`{OURS}`",
) -> list[str]:
    """Ours (or the row that is called `minuend`) beside another row, seed by seed."""
    by_seed = {entry["seed"]: entry for entry in others}
    pairs = [(entry, by_seed[entry["seed"]]) for entry in ours if entry["seed"] in by_seed]
    if not pairs:
        return []
    means = [node_mean(a) - node_mean(b) for a, b in pairs]
    lows = [node_min(a) - node_min(b) for a, b in pairs]
    spreads = [[100 * _spread(entry) for entry in pair] for pair in pairs]
    own, other = (mean(values) for values in zip(*spreads, strict=True))
    return [
        f"- {where}: {minuend} minus {name}: node mean {_points(means)}, lowest node "
        f"{_points(lows)} points; as trained, its nodes are {own:.2f} points apart, the other's "
        f"{other:.2f}."
    ]


def _spread(entry: Entry) -> float:
    return max(entry["final"]["nodes"]) - min(entry["final"]["nodes"])


def _flattery(where: str, gossip: Sequence[Entry], reference: Sequence[float]) -> list[str]:
    """The averaged model of gossip, beside the models that nodes have."""
    if not gossip or not reference:
        return []
    above = [average(entry) - mean(entry["final"]["nodes"]) for entry in gossip]
    ahead = gap(list(map(average, gossip)), reference)
    return [
        f"- {where}: the average of gossip's models minus the nodes' mean as trained: "
        f"{_points(above)} points; minus centralized: {_gap(ahead)}."
    ]


def _points(values: Sequence[float]) -> str:
    return many([100 * value for value in values], "{:+.2f}")


def _title(group: str) -> str:
    return GROUPS[group].title


def _settings(results: Results, groups: Sequence[str]) -> str:
    """What was run: the settings of each group, and a command for one run of it."""
    lines = ["## Settings", ""]
    common = {"seed", "consensus.algorithm", "consensus.references", "consensus.keep"}
    for group in groups:
        entries = select(results, group=group)
        wall = sum(entry["wall_seconds"] for entry in entries)
        shown = shown_settings(with_effect(entries[0]["settings"]), without=common)
        lines.append(
            f"- {_title(group)}: {len(entries)} runs, {wall / 60:.1f} core-minutes. {shown}; "
            f"everything else as in pyproject.toml."
        )
    example = results["runs"][-1]
    words = f"{example['row']}, {example['group']}, seed {example['seed']}"
    lines += ["", f"Each run has its command in results.json, for example {words}:", ""]
    return "\n".join([*lines, "```", example["command"], "```"])
