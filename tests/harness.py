"""Small complete runs: the real strategy, worker process, ClientApp and run directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fl_app.config import resolve
from fl_app.record.books import recorded
from fl_app.record.run_dir import RunDirectory
from fl_app.settings import distillation_run_of
from strategies.distillation.strategy import Distillation
from tests.fake_grid import FakeGrid
from tests.forked import forked

SMALL = {
    "num-server-rounds": 4,
    "local-steps": 2,
    "batch-size": 16,
    "proxy-examples": 300,
    "validation-examples": 100,
    "evaluate-examples": 200,
    "distill.reverse-steps": 3,
    "distill.forward-steps": 2,
    "distill.batch-size": 16,
    "distill.references": "",  # another process: in test_references
}


def run(
    output: Path, overrides: dict[str, Any], settings: Mapping[str, Any] = SMALL, **grid: Any
) -> tuple[dict, RunDirectory]:
    """Run to the end with `settings` and `overrides`; returns the summary and the run directory."""
    with forked():
        return run_with_its_own(output, overrides, settings, **grid)


def run_with_its_own(
    output: Path, overrides: dict[str, Any], settings: Mapping[str, Any] = SMALL, **grid: Any
) -> tuple[dict, RunDirectory]:
    """`run` with processes as the app starts them, which can be found and killed."""
    torch.set_num_threads(1)
    config = resolve({**settings, "output": str(output), **overrides})
    with recorded(config) as directory:
        Distillation(distillation_run_of(config), directory).start(FakeGrid(config.flat(), **grid))
    return directory.summary(), directory
