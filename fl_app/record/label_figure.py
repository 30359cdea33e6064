"""The picture of a split: how many examples of each class every participant holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fl_app.record.figures import COLUMN, in_legend, legend_below, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROWS = 25  # more participants share the height of so many
_LEGEND = 20  # more classes than this have no readable legend


def label_figure(
    histogram: np.ndarray, classes: Sequence[str], title: str, who: str = "participant"
) -> Figure:
    """Draw `histogram`, counts (participants, classes), as one stacked bar per participant."""
    import matplotlib

    participants = len(histogram)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 1, len(classes)))
    figure, axes = new_figure(COLUMN, 1.5 + 0.12 * min(participants, _ROWS))
    left, height = np.zeros(participants), 0.8 if participants <= 2 * _ROWS else 1.0
    for name, counts, colour in zip(classes, histogram.T, colours, strict=True):
        axes.barh(
            range(participants),
            counts,
            left=left,
            color=colour,
            label=in_legend(name),
            height=height,
        )
        left += counts
    axes.set_ylim(participants - 0.4, -0.6)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("training examples")
    axes.set_ylabel(who)
    axes.set_title(title, loc="left")
    if len(classes) <= _LEGEND:
        legend_below(figure, axes, 3)
    return figure
