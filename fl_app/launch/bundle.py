"""What `edge-fl run` submits: the app, without data that devices get in another way."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fl_app.config import RunConfig
from fl_app.data import embedded

_PACKAGES = ("fl_app", "strategies", "client_apps")
_FILES = ("pyproject.toml", "LICENSE")


@contextlib.contextmanager
def submitted(app: Path, config: RunConfig, *, remote: bool) -> Iterator[Path]:
    """The folder of which Flower is to make the bundle: `app`, or, for a SuperLink of others
    (`remote`), a copy without the embedded images, which are three quarters of it.

    There the bundle goes to every device of the run. A device that reads these images and has none
    asks for them over the mail router, once (`strategies.link.files`); there is none for a run
    without sessions.
    """
    if not remote or config.sessions == "off":
        yield app
        return
    with tempfile.TemporaryDirectory(prefix="edge-fl-") as place:
        copy = Path(place, app.name)
        copy.mkdir()
        for name in _PACKAGES:
            shutil.copytree(
                app / name,
                copy / name,
                ignore=shutil.ignore_patterns("__pycache__", *embedded.FILES),
            )
        for name in _FILES:
            shutil.copyfile(app / name, copy / name)
        yield copy
