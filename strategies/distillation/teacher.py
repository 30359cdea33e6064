"""What the large model learns from: a version of the small model, or the average of all of them."""

from collections.abc import Sequence

import numpy as np

from strategies.averaging import Vectors, running_average
from strategies.distillation.calibration import Calibration
from strategies.distillation.server_state import ServerState
from strategies.distillation.settings import DistillationRun
from strategies.rules import Update


class Teacher:
    """average: of all versions, the reference `small-average`; {} before there is one."""

    def __init__(self, run: DistillationRun) -> None:
        self._calibration = Calibration(run.problem) if run.calibrates else None
        self._averages = run.teacher_average
        self._past: Vectors = {}  # the average before the newest version
        self.average: Vectors = {}

    @property
    def like(self) -> np.ndarray | None:
        """An array like those that participants tell for the calibration, if they do."""
        return None if self._calibration is None else self._calibration.like

    @property
    def calibrated(self) -> Vectors:
        """The average of the calibrated versions, if there is one: `small-calibrated`."""
        return {} if self._calibration is None else self._calibration.average

    @property
    def newest_calibrated(self) -> Vectors:
        """The last of the calibrated versions, if there is one."""
        return {} if self._calibration is None else self._calibration.newest

    def follow(self, version: int, model: Vectors) -> None:
        """Have `model`, which is that version, in the average."""
        self._past, self.average = self.average, running_average(self.average, model, version)

    def follow_instead(self, version: int, model: Vectors) -> None:
        """Have `model` in the average instead of what that version was before."""
        self.average = running_average(self._past, model, version)

    def taught(
        self, version: int, model: Vectors, base: Vectors, updates: Sequence[Update]
    ) -> Vectors:
        """The teacher, once `version` has been made of these updates of the version before it,
        `base`. Calibration takes a tenth of a second."""
        newest, average = model, self.average
        if self._calibration is not None:
            self._calibration.follow(version - 1, base, updates)
            newest = self.newest_calibrated or newest
            average = self.calibrated or average
        return average if self._averages else newest

    def load(self, state: ServerState) -> None:
        """Go on from what had been kept of all this."""
        self.average = state.average
        if self._calibration is not None:
            self._calibration.average = state.calibrated
            self._calibration.newest = state.newest_calibrated
