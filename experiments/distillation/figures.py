"""The figure of the paper: accuracy of the global model over time, a line for each variant."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.distillation.plan import CLOCKS, TARGETS, VARIANTS
from experiments.distillation.results import published_curve
from experiments.reporting import Entry, Results, band, present, select
from fl_app.record import figures

_HUES = (figures.VERMILION, figures.ORANGE, figures.SKY, figures.BLUE, figures.GREEN)
COLORS: dict[str, str] = dict(zip(VARIANTS, _HUES, strict=True))


def accuracy(results: Results, partition: str) -> Any:
    """One panel per clock: mean over the seeds as a line, their spread as a band."""
    clocks = [
        c
        for c in present(results, "clock", CLOCKS)
        if select(results, clock=c, partition=partition)
    ]
    figure, axes = figures.new_figure(6.6 * len(clocks), 4.8, columns=len(clocks))
    panels = np.atleast_1d(axes)
    for panel, clock in zip(panels, clocks, strict=True):
        for variant in present(results, "variant", VARIANTS):
            entries = select(results, clock=clock, partition=partition, variant=variant)
            if entries:
                _draw(panel, variant, entries)
        for target in TARGETS:
            panel.axhline(100 * target, color=figures.GREY, lw=0.8, ls=":", zorder=1)
        figures.finish_accuracy_axes(panel, figures.CLOCK_AXIS[clock])
        panel.set_title(f"{clock} clock, {partition}", loc="left")
    figures.legend_below(figure, panels[0], len(VARIANTS) if len(panels) > 1 else 3)
    return figure


def _draw(axes: Any, variant: str, entries: Sequence[Entry]) -> None:
    times, values = band([published_curve(entry) for entry in entries])
    color = COLORS[variant]
    label = f"{variant} (EMA)" if entries[0]["published"] == "ema" else variant
    axes.plot(times, 100 * values.mean(0), color=color, lw=2, label=label, zorder=3)
    if len(entries) > 1:
        axes.fill_between(
            times, 100 * values.min(0), 100 * values.max(0), color=color, alpha=0.2, lw=0
        )
