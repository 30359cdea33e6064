"""The views by mode: whoever adds a system adds a module with its view, and a line here."""

from collections.abc import Mapping
from typing import Any

from fl_app.record.consensus_view import CONSENSUS
from fl_app.record.distill_view import AVERAGE, DISTILL
from fl_app.record.view import View
from strategies.errors import RunDirectoryError

VIEWS: dict[str, View] = {
    "average": AVERAGE,
    "consensus": CONSENSUS,
    "distill": DISTILL,
}


def view_of(config: Mapping[str, Any]) -> View:
    """The view for a flat configuration. RunDirectoryError for one of a mode that is not ours."""
    mode = config.get("mode")
    if mode not in VIEWS:
        raise RunDirectoryError(
            f"the run's configuration says mode={mode!r}, which this edge-fl does not know; it "
            f"knows: {', '.join(VIEWS)}"
        )
    return VIEWS[mode]
