"""What is claimed about the distill system: each claim with its control, its number and its aim."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from experiments.distillation.plan import OURS, SYNCHRONOUS, Setting
from experiments.distillation.results import (
    Estimate,
    Line,
    difference,
    estimate,
    speedups,
    target_of,
)

# By the partition, how many points we aim to be above the small model's average without labels.
AIM_SMALL = {"iid": 1.0, "dirichlet-0.1": 5.0}
AIM_ALONE = 1.0  # points above the server alone
AIM_SPEEDUP = 1.79  # sync-forward over ours: what the paper has for its own best variant
_SEEDS = 3  # fewer decide nothing


@dataclass(frozen=True)
class Claim:
    """setting: its title. control: what it is held against. unit: "points" or "times". lacking:
    seeds with which ours does not reach what is claimed, so that they have no number."""

    setting: str
    says: str
    control: str
    aim: float
    unit: str
    found: Estimate | None
    at_least: bool = False
    lacking: int = 0

    @property
    def verdict(self) -> str:
        """Met only if the mean minus one standard error meets the aim."""
        seeds = (self.found.n if self.found else 0) + self.lacking
        if seeds < _SEEDS:
            return f"open: {seeds} of {_SEEDS} seeds"
        if self.found is None or self.found.error is None or self.lacking:
            return f"**missed**: {self.lacking} of {seeds} seeds do not reach it"
        # The tolerance forgives the last bit of a difference of accuracies.
        met = self.found.mean - self.found.error >= self.aim - 1e-9
        return "met" if met else "**missed**"


def claims_of(setting: Setting, lines: Mapping[str, Line]) -> list[Claim]:
    """The claims that a setting's lines decide; none without runs of ours."""
    if OURS not in lines:
        return []
    ours = lines[OURS]
    found = []
    if "small-average" in lines:
        aim = 0.0 if setting.labels else AIM_SMALL.get(setting.partition, 0.0)
        found.append(_above(setting, ours, lines["small-average"], "small-average", aim))
    if "server-alone" in lines:
        found.append(_above(setting, ours, lines["server-alone"], "server-alone", AIM_ALONE))
    leads = {
        name: difference(ours.final(), lines[name].final()) for name in SYNCHRONOUS if name in lines
    }
    if known := {name: mean(values) for name, values in leads.items() if values}:
        best = lines[min(known, key=lambda name: known[name])]
        control = f"the best synchronous variant, {best.name}"
        found.append(_above(setting, ours, best, control, 0.0))
    if "sync-forward" in lines:
        found.append(_sooner(setting, lines, "sync-forward"))
    if soonest := _soonest(lines):
        found.append(_sooner(setting, lines, soonest, "the soonest synchronous variant, "))
    return found


def _above(setting: Setting, ours: Line, other: Line, control: str, aim: float) -> Claim:
    points = [100 * value for value in difference(ours.final(), other.final())]
    unit = "point" if aim == 1 else "points"
    says = f"ends at least {aim:g} {unit} above" if aim else "ends no lower than"
    return Claim(setting.title, says, control, aim, "points", estimate(points))


def _soonest(lines: Mapping[str, Line]) -> str:
    """The synchronous variant that reaches the target soonest, compared with ours; "" for none."""
    target = target_of(lines)
    ratios = {
        name: speedups(lines[name], lines[OURS], target)[0] for name in SYNCHRONOUS if name in lines
    }
    known = {name: mean(values) for name, values in ratios.items() if values}
    return min(known, key=lambda name: known[name], default="")


def _sooner(setting: Setting, lines: Mapping[str, Line], row: str, which: str = "") -> Claim:
    target = target_of(lines)
    ratios, at_least = speedups(lines[row], lines[OURS], target)
    says = f"reaches {100 * target:.0f} % {AIM_SPEEDUP} times as soon as"
    common = lines[OURS].entries.keys() & lines[row].entries.keys()
    lacking = len(common) - len(ratios)
    found = estimate(ratios)
    return Claim(setting.title, says, which + row, AIM_SPEEDUP, "times", found, at_least, lacking)


def counts(claims: Sequence[Claim]) -> str:
    """How many claims are met, missed and still open, in words."""
    verdicts = [claim.verdict.strip("*") for claim in claims]
    kinds = ("met", "missed", "open")
    return ", ".join(f"{sum(v.startswith(kind) for v in verdicts)} {kind}" for kind in kinds)
