"""edge-fl as its wheel installs it, and its command run from there."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_COMMAND = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import edge_fl, fl_app;"
    "assert fl_app.__path__ == [f'{sys.path[0]}/fl_app'], fl_app.__path__;"
    "sys.exit(edge_fl.main())"
)


def build(kind: str, source: Path, place: Path) -> Path:
    """The "wheel" or the "sdist" of the project in `source`, made in `place`: its path."""
    builder = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(place)]
    subprocess.run(builder, cwd=source, check=True, capture_output=True)
    [made] = place.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


def install(wheel: Path, place: Path) -> Path:
    """The folder with what an installer puts into site-packages; nothing is asked of a registry."""
    zipfile.ZipFile(wheel).extractall(place)
    return place


def edge_fl(packages: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`edge-fl ARGUMENTS` of the installation in `packages`, in the folder `home`."""
    return subprocess.run(
        [sys.executable, "-P", "-c", _COMMAND, str(packages), *arguments],
        env={**os.environ, "EDGE_FL_HOME": str(home), "HOME": str(home)},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
