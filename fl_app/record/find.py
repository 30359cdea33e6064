"""Runs by what people call them."""

from pathlib import Path

from fl_app.record.run_dir import RunDirectory, list_runs
from strategies.errors import RunDirectoryError
from strategies.paths import runs_root


def find_run(name: str) -> RunDirectory:
    """The run at the path `name`, or the only one whose name begins with it. RunDirectoryError."""
    found = [run for run in list_runs(runs_root()) if run.name.startswith(name)]
    if run := _meant_as_path(name, bool(found)):
        return run
    exact = [run for run in found if run.name == name]
    if len(exact or found) != 1:
        what = f"{len(found)} runs begin with" if found else "there is no run"
        raise RunDirectoryError(f"{what} {name!r} in {runs_root()}; see `edge-fl runs`")
    return RunDirectory.open((exact or found)[0].path)


def at_path(name: str) -> RunDirectory | None:
    """The run at the path `name`; None where there is no directory. RunDirectoryError for one that
    is no run."""
    try:
        return RunDirectory.open(Path(name)) if Path(name).is_dir() else None
    except OSError as error:
        raise RunDirectoryError(f"cannot read {name!r}: {error.strerror or error}") from error


def _meant_as_path(name: str, begins: bool) -> RunDirectory | None:
    """`at_path`; but a folder that is no run, and is called as runs `begins`, is not meant."""
    try:
        return at_path(name)
    except RunDirectoryError:
        if begins and "/" not in name:
            return None
        raise


def find_runs(name: str) -> list[RunDirectory]:
    """All runs whose names begin with `name`, or the one at that path or of exactly that name."""
    found = [run for run in list_runs(runs_root()) if run.name.startswith(name)]
    if len(found) < 2 or name in [run.name for run in found] or _meant_as_path(name, True):
        return [find_run(name)]
    return [RunDirectory.open(run.path) for run in found]
