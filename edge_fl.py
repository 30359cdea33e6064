"""The program `edge-fl`."""

import os
import sys


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
