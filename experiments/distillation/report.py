"""results.json as a report: the claims, then a figure and two tables for each setting."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from experiments.distillation import figures
from experiments.distillation.claims import Claim, claims_of, counts
from experiments.distillation.plan import MORE, OURS, ROWS, SIZES, WAITING, Setting
from experiments.distillation.results import (
    CONTROLS,
    PLATEAU,
    WINDOW,
    Estimate,
    Line,
    barrier,
    difference,
    equal_steps,
    equal_time,
    estimate,
    lines_of,
)
from experiments.reporting import (
    Entry,
    Results,
    code_line,
    hardware_line,
    present,
    select,
    shown_settings,
    table,
    write_report,
)
from fl_app.record.figures import to_png

Lines = Mapping[str, Line]
_NONE = "-"


def write(results: Results, out: Path) -> Path:
    """`write_report` with a picture of the accuracies for each setting."""
    pictures = {}
    for setting, lines in _settings(results):
        clock = _entries(lines)[0]["clock"]
        pictures[setting.name] = to_png(figures.accuracy(lines, setting.title, clock))
    return write_report(results, out, pictures, render)


def render(results: Results, notes: str = "") -> str:
    """The report as Markdown."""
    settings = _settings(results)
    sections = [
        _introduction(results),
        _claims([claim for setting, lines in settings for claim in claims_of(setting, lines)]),
        _adjusted(settings),
        notes.strip(),
        *(_setting(setting, lines) for setting, lines in settings),
        _commands(results, settings),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _settings(results: Results) -> list[tuple[Setting, Lines]]:
    """The settings of which there is a run, with their lines, in the order of the plan."""
    by_name = {setting.name: setting for setting in SIZES[results["size"]].settings}
    there = present(results, "setting", by_name)
    return [(by_name[name], lines_of(results, name)) for name in there]


def _entries(lines: Lines) -> list[Entry]:
    return [e for line in lines.values() if line.runs for e in line.entries.values()]


def _introduction(results: Results) -> str:
    seeds = sorted({entry["seed"] for entry in results["runs"]})
    clock = SIZES[results["size"]].clock
    times = (
        "of a cost model, in which a participant's job takes 10 s, and blocks of reverse and "
        "forward distillation take the 0.32 and 0.10 of that which the paper's four times imply. "
        "The runs execute the strategy, ClientApp and worker process of a `flwr run`, whose result "
        "is bit-equal, without starting Flower for each of them"
        if clock == "virtual"
        else "those of the machine. Every run is a `flwr run` that has the machine for itself"
    )
    return f"""\
# The distill system against its controls

Variants of Yajima, Ono, Miyoshi, Yamazaki, *Asynchronous Federated Learning Using Distillation*,
and `{OURS}`, which is `async-plus` as it is by default.

- Made by `{results["command"]}` (seeds {", ".join(map(str, seeds))}).
- Code: {code_line(results)}.
- Hardware: {hardware_line(results)}.
- Times are {times}.
- Every row publishes its weight average, and all have the labels or none has. `-x{MORE}` takes
  {MORE} times the distillation steps a round, at {MORE} times the cost; `-calibrated` has the
  newest version, calibrated, as its teacher. `{WAITING}` has all that `{OURS}` has (calibration,
  the teacher's average, the lift), but participants and server wait for each other.
  `plus-no-...` lacks an ingredient; `plus-raw` is what `{OURS}` would have published without the
  weight average.
- The controls are computed beside `{OURS}`: `small-average` is the weight average of the small
  model's versions, `small-calibrated` that with calibrated versions, which is what teaches,
  `server-alone` the large model, trained with as many steps on the server's
  labelled images alone, `centralized-large` the same on all data in one place.
- Accuracies are of test images, in %, at the last evaluation of a run: mean over the seeds ±
  standard error. Differences are paired by seed. Step sizes and the like were chosen on validation
  images and with other seeds.
- `after ... s` and `after ... steps` are the last evaluations up to the end of the run that is the
  shortest.
- A target is reached at the first evaluation at which the mean of {WINDOW} consecutive ones is at
  least the target. `{OURS}` and a row are compared at the highest whole percent that both reach
  with every seed, or, if that is higher, at the first that the server alone reaches with no seed.
- A row or control has reached its plateau if the mean of its last fifth of evaluations is at most
  {100 * PLATEAU:g} points above that of the fifth before, in the mean over the seeds."""


def _claims(claims: Sequence[Claim]) -> str:
    rows = []
    for claim in claims:
        sign, form = (">= " if claim.at_least else ""), "{:+.1f}"
        if claim.unit == "times":
            form = "{:.2f}"
        known = replace(claim.found, error=None) if claim.found and claim.at_least else claim.found
        number = f"{sign}{_shown(known, form)}"
        rows.append(
            [claim.setting, f"`{OURS}` {claim.says} {claim.control}", number, claim.verdict]
        )
    if not rows:
        return ""
    about = (
        "Met: the mean minus one standard error meets it, with at least three seeds: "
        f"{counts(claims)}. "
        "The best synchronous variant, and the soonest, over which it gains least time, are chosen "
        "by the result, which favours them."
    )
    head = ["setting", "claim", "measured (points, or times)", "verdict"]
    return "\n\n".join(["## What is claimed", about, table(head, rows)])


def _adjusted(settings: Sequence[tuple[Setting, Lines]]) -> str:
    """What it is worth that participants allow for their own shares of the classes."""
    by_name, rows = {setting.name: lines for setting, lines in settings}, []
    for setting, lines in settings:
        plain = replace(setting, adjusted=False)
        without = by_name.get(plain.name, {})
        for name in (*ROWS, *CONTROLS) if setting.adjusted else ():
            if name in lines and name in without:
                ends = [side[name].final() for side in (without, lines)]
                gaps = [100 * gap for gap in difference(*reversed(ends))]
                gain = _shown(estimate(gaps), "{:+.1f}")
                rows.append([plain.title, name, *map(_percent, ends), gain])
    if not rows:
        return ""
    about = (
        "With `adjust-logits` a participant's loss allows for its own shares of the classes. "
        "Differences are paired by seed."
    )
    head = ["setting", "row", "without", "with it", "difference"]
    return "\n\n".join(["## Adjusted logits", about, table(head, rows)])


def _setting(setting: Setting, lines: Lines) -> str:
    parts = [f"## {setting.title}", f"![accuracy over time](figures/{setting.name}.png)"]
    claims = claims_of(setting, lines)
    targets = sorted({barrier(lines), *(claim.target for claim in claims)} - {0.0})
    parts += ["**Accuracy**", _accuracies(lines)]
    parts += ["**Time and effort**", _efforts(lines, targets)]
    unfinished = [
        f"{name} (+{100 * line.last_gain():.1f})"
        for name, line in lines.items()
        if line.entries and line.last_gain() > PLATEAU
    ]
    said = f"Not at their plateau: {', '.join(unfinished)}." if unfinished else ""
    parts.append(said or "All rows and controls are at their plateau.")
    return "\n\n".join(parts)


def _ordered(lines: Lines) -> list[Line]:
    return [lines[name] for name in (*ROWS, *CONTROLS) if name in lines]


def _accuracies(lines: Lines) -> str:
    """A row a line: where it ends, how far from the controls and from ours, at equal time and
    steps."""
    moments, steps = equal_time(lines), equal_steps(lines)
    controls = ("small-average", "small-calibrated", "server-alone", OURS)
    compared = [name for name in controls if name in lines]
    head = ["row", "at the end", *(f"above {name}" for name in compared)]
    head += [f"after {_moment(moments)} s", f"after {steps} steps", "seeds"]
    rows = []
    for line in _ordered(lines):
        cells = [line.name, _percent(line.final())]
        for name in compared:
            gaps = [100 * gap for gap in difference(line.final(), lines[name].final())]
            cells.append(_NONE if name == line.name else _shown(estimate(gaps), "{:+.1f}"))
        stepped = line.name not in ("small model", "small-average", "small-calibrated")
        cells += [_percent(line.at(moments)), _percent(line.after(steps)) if stepped else _NONE]
        rows.append([*cells, str(len(line.entries))])
    return table(head, rows)


def _moment(moments: Mapping[int, float]) -> str:
    shown = sorted({f"{moment:.0f}" for moment in moments.values()}, key=float)
    return shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"


def _efforts(lines: Lines, targets: Sequence[float]) -> str:
    columns: dict[str, tuple[Callable[[Entry], float | None], str]] = {
        "steps": (lambda e: e["steps"][-1][1], "{:.0f}"),
        "MB": (lambda e: e["bytes"] / 1e6, "{:.1f}"),
        "participants waited for each other %": (lambda e: _idle(e, "clients"), "{:.0f}"),
        "... for the server %": (lambda e: _idle(e, "server"), "{:.0f}"),
        "server busy %": (lambda e: _times(100, e["worker_busy_fraction"]), "{:.0f}"),
        "teacher behind (versions)": (lambda e: e["teacher_staleness"]["mean"], "{:.1f}"),
        "whole run (s)": (lambda e: e["curves"]["published"][-1][0], "{:.0f}"),
    }
    rows = []
    for line in _ordered(lines):
        entries = list(line.entries.values()) if line.runs else []
        cells = [_time_cell(line.time_to(each)) for each in targets]
        for value, form in columns.values():
            known = [v for entry in entries if (v := value(entry)) is not None]
            found = estimate(known)
            cells.append(form.format(found.mean) if found else _NONE)
        rows.append([line.name, *cells])
    return table(["row", *(f"s to {100 * each:.0f} %" for each in targets), *columns], rows)


def _idle(entry: Entry, waiting_for: str) -> float | None:
    return _times(100, entry["client_idle_fraction"][waiting_for])


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _time_cell(times: Mapping[int, float | None]) -> str:
    """The mean if every seed reached it; otherwise how many did."""
    known = [t for t in times.values() if t is not None]
    if len(known) == len(times):
        return _shown(estimate(known), "{:.0f}")
    return f"{len(known)} of {len(times)} seeds" if known else "never"


def _percent(values: Mapping[int, float]) -> str:
    return _shown(estimate([100 * value for value in values.values()]), "{:.1f}")


def _shown(found: Estimate | None, form: str) -> str:
    """A mean ± its standard error."""
    if found is None:
        return _NONE
    value = form.format(found.mean)
    return value if found.error is None else f"{value} ± {form.format(found.error).lstrip('+')}"


def _commands(results: Results, settings: Sequence[tuple[Setting, Lines]]) -> str:
    """What was run: the settings of each table, and a command for one run of it."""
    lines = ["## Settings", ""]
    for setting, found in settings:
        entries = _entries(found)
        wall = sum(entry["wall_seconds"] for entry in entries)
        ours = select(results, setting=setting.name, row=OURS)
        given = (ours or entries)[0]["settings"]
        places = ("data-root", "seed", "mode", "distill.variant", "distill.references")
        lines.append(
            f"- {setting.title}: {len(entries)} runs, {wall / 60:.0f} minutes of runs. "
            f"{shown_settings(given, without=places)}; everything else as in pyproject.toml."
        )
    example = results["runs"][0]
    which = f"{example['row']}, {example['setting']}, seed {example['seed']}"
    lines += ["", f"Each run has its command in results.json, for example {which}:", ""]
    return "\n".join([*lines, "```", example["command"], "```"])
