"""How the file of a task gets to devices: inside the run's bundle."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fl_app.config import task_path
from fl_app.tasks import reference


@contextlib.contextmanager
def with_task_file(app: Path, task: str, *, remote: bool) -> Iterator[Path]:
    """The folder of which Flower is to make the bundle: `app`, or, where the task is a file and the
    SuperLink is one of others (`remote`), a copy that has the file in it, too.

    Raises ConfigError for a file that has no such task.
    """
    path = task_path(task)
    if not (remote and path):
        yield app
        return
    reference.class_of(task)
    with tempfile.TemporaryDirectory(prefix="edge-fl-") as place:
        copy = Path(place, app.name)
        shutil.copytree(app, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        inside = reference.bundled(Path(path)).relative_to(reference.APP)
        (copy / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy / inside)
        yield copy
