"""How files of somebody's own - a task, a partition, an algorithm - get to devices: in the run's
bundle."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from fl_app.config import OWN_KEYS
from strategies import plugins
from strategies.plugin_name import path_of


@contextlib.contextmanager
def with_own_files(app: Path, values: Mapping[str, object], *, remote: bool) -> Iterator[Path]:
    """The folder of which Flower is to make the bundle: `app`, or, where `values` (by key) name
    files and the SuperLink is one of others (`remote`), a copy that has these files in it, too.

    Raises ConfigError for a file that has not what is named.
    """
    named = {key: str(values[key]) for key in OWN_KEYS if path_of(str(values.get(key, "")))}
    if not (remote and named):
        yield app
        return
    for key, text in named.items():
        plugins.load(key, text)
    with tempfile.TemporaryDirectory(prefix="edge-fl-") as place:
        copy = Path(place, app.name)
        shutil.copytree(app, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        for path in {path_of(text) for text in named.values()}:
            inside = plugins.bundled(Path(path)).relative_to(plugins.APP)
            (copy / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy / inside)
        yield copy
