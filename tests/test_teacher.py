"""The average of the versions, which the large model may learn from."""

import numpy as np
import pytest

from fl_app.config import resolve
from fl_app.settings import distillation_run_of
from strategies.averaging import Vectors
from strategies.distillation.teacher import Teacher


def version(value: float) -> Vectors:
    return {"weights": np.full(2, value, np.float32), "buffers": np.full(1, -value, np.float32)}


@pytest.mark.parametrize("forward", [True, False])
def test_the_running_average_by_hand(forward: bool) -> None:
    """The first version is its own average; then the past counts 2/11 and 3/12. Where forward
    distillation has changed a version, what it was before counts for nothing."""
    run = distillation_run_of(resolve({"distill.variant": "sync-forward", "small-width": 2}))
    teacher, expected = Teacher(run), 0.0
    for number, decay, value in ((1, 0.0, 4.0), (2, 2 / 11, 7.0), (3, 3 / 12, 1.0)):
        teacher.follow(number, version(100.0 * number if forward else value))
        if forward:
            teacher.follow_instead(number, version(value))
        expected = decay * expected + (1 - decay) * value
        np.testing.assert_allclose(teacher.average["weights"], [expected] * 2, rtol=1e-6)
        np.testing.assert_allclose(teacher.average["buffers"], [-expected], rtol=1e-6)
