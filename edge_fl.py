"""The program `edge-fl`, and what other programs import: `from edge_fl import Distillation`."""

import os
import sys
from importlib import import_module
from typing import Any

# By name, because these modules import torch and Flower.
_LIBRARY = {
    "Consensus": "fl_app.library",
    "Distillation": "fl_app.library",
    "load": "fl_app.record.export",
    "mount": "fl_app.client_app",
}


def __getattr__(name: str) -> Any:
    if name not in _LIBRARY:
        raise AttributeError(f"edge_fl has no {name}; it has {', '.join(_LIBRARY)}")
    return getattr(import_module(_LIBRARY[name]), name)


def main() -> int:
    """Run it with this environment's packages, whatever PYTHONPATH has of the same names, and with
    UTF-8 whatever the locale: paths go through Flower's messages, which know nothing else."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.ignore_environment:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    others = [os.path.abspath(path) for path in given if path]
    sys.path.sort(key=lambda path: path in others)  # stable: those go behind

    from fl_app.cli import main

    return main()
