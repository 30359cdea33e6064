"""How files of somebody's own - a task's, a partition's - get to devices: in the run's bundle."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fl_app.config import task_path
from strategies import task_reference


@contextlib.contextmanager
def with_task_file(app: Path, task: str, partition: str = "iid", *, remote: bool) -> Iterator[Path]:
    """The folder of which Flower is to make the bundle: `app`, or, where the task or the partition
    is a file and the SuperLink is one of others (`remote`), a copy that has the files in it, too.

    Raises ConfigError for a file that has no such task, or no such function.
    """
    paths = [path for each in (task, partition) if (path := task_path(each))]
    if not (remote and paths):
        yield app
        return
    if task_path(task):
        task_reference.class_of(task)
    if task_path(partition):
        task_reference.function_of("partition", partition)
    with tempfile.TemporaryDirectory(prefix="edge-fl-") as place:
        copy = Path(place, app.name)
        shutil.copytree(app, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        for path in paths:
            inside = task_reference.bundled(Path(path)).relative_to(task_reference.APP)
            (copy / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy / inside)
        yield copy
