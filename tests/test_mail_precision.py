"""Models and updates with fewer bits on the way, in whole runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.config import resolve
from fl_app.problem import problem_of
from fl_app.record.run_dir import RunDirectory
from strategies.errors import ConfigError
from strategies.problem import flat_model
from tests.harness import SMALL, run

FEW = {**SMALL, "mode": "average", "small-width": 4, "num-server-rounds": 3, "participants": 2}


def model_of(directory: RunDirectory) -> np.ndarray:
    return directory.load_checkpoint("small")[0]["weights"]


def trained(tmp_path: Path, precision: str, **overrides: Any) -> tuple[dict, RunDirectory]:
    return run(tmp_path / precision, {"mail-precision": precision, **overrides}, FEW)


def test_bytes_are_those_that_travel_and_the_model_is_nearly_the_same(tmp_path: Path) -> None:
    summaries, models = {}, {}
    for precision in ("float32", "bfloat16", "int8"):
        summaries[precision], directory = trained(tmp_path, precision)
        models[precision] = model_of(directory)
    parameters = len(models["float32"])
    for way in ("bytes_up", "bytes_down"):
        whole = summaries["float32"][way]
        messages = 3 * 2
        rest = whole - 4 * parameters * messages  # buffers
        assert summaries["bfloat16"][way] == 2 * parameters * messages + rest
        steps = 4 * -(-parameters // 256)
        assert summaries["int8"][way] == (parameters + steps) * messages + rest
    initial = flat_model(problem_of(resolve(FEW)), "small").state()["weights"]
    moved = np.linalg.norm(models["float32"] - initial)
    assert 0 < np.linalg.norm(models["bfloat16"] - models["float32"]) < 0.3 * moved
    assert 0 < np.linalg.norm(models["int8"] - models["float32"]) < 0.6 * moved


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_no_rounding_of_the_model_adds_up(precision: str, tmp_path: Path) -> None:
    """With steps too small to be seen, the model stays what it was, though every round sends it
    rounded: the server adds changes to its own."""
    still = {"learning-rate": 1e-9, "weight-decay": 0.0, "momentum": 0.0}
    _, directory = trained(tmp_path, precision, **still)
    initial = flat_model(problem_of(resolve(FEW)), "small").state()["weights"]
    np.testing.assert_allclose(model_of(directory), initial, atol=1e-6)


def test_the_same_bits_for_any_number_of_nodes(tmp_path: Path) -> None:
    one, two = (
        run(tmp_path / str(nodes), {"mail-precision": "int8"}, FEW, nodes=nodes)[0]
        for nodes in (1, 2)
    )
    assert one["checksum"] == two["checksum"]


def test_precisions_are_named() -> None:
    with pytest.raises(ConfigError, match=r"mail-precision='int4'.*bfloat16"):
        resolve({"mail-precision": "int4"})
