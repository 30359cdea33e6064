"""edge-fl as its wheel installs it, in an environment that has nothing else."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

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


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the wheel that is made from the sdist is installed, with all that it asks
    for and nothing else. Made once, whichever process of pytest asks first."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "wheel"
    with FileLock(f"{place}.lock"):
        if not (place / "ready").exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            _install(_wheel(place), place)
            (place / "ready").touch()
    [found] = (place / "environment").glob("**/site-packages")
    return found


def _wheel(place: Path) -> Path:
    with tarfile.open(build("sdist", ROOT, place)) as sdist:
        sdist.extractall(place / "sdist", filter="data")
    [source] = (place / "sdist").iterdir()
    return build("wheel", source, place)


def _install(wheel: Path, place: Path) -> None:
    """From the cache of `make setup`, at the locked versions. Where there is none, nothing is asked
    of a registry: the wheel is unpacked, and finds what it asks for in what is installed here."""
    environment, uv = place / "environment", Path(sys.executable).with_name("uv")
    options = {"UV_OFFLINE": "1", "UV_PROJECT_ENVIRONMENT": str(environment)}
    here = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"} | options

    def call(*words: str) -> bool:
        done = subprocess.run([uv, *words], cwd=ROOT, env=here, capture_output=True, text=True)
        print(done.stderr)
        return done.returncode == 0

    if uv.exists() and call(
        "sync", "--frozen", "--no-dev", "--no-install-project", "--python", sys.executable
    ):
        python = str(environment / "bin" / "python")
        assert call(
            "pip", "install", "--no-deps", "--compile-bytecode", "--python", python, str(wheel)
        )
        assert call("pip", "check", "--python", python)  # the lock has all that the wheel asks for
        _lend_bytecode(environment)
        return
    shutil.rmtree(environment, ignore_errors=True)
    zipfile.ZipFile(wheel).extractall(environment / "site-packages")


def _lend_bytecode(environment: Path) -> None:
    """Links to what `make setup` has compiled, which is of the same files: else each of a run's ten
    processes would begin by compiling PyTorch."""
    here = Path(sysconfig.get_path("purelib"))
    [there] = environment.glob("lib/python*/site-packages")
    for package in here.iterdir():
        for cache in package.rglob("__pycache__") if (there / package.name).is_dir() else ():
            copy = there / cache.relative_to(here)
            if copy.parent.is_dir() and not copy.exists():
                shutil.copytree(cache, copy, copy_function=os.link)


def edge_fl(
    packages: Path, home: Path, *arguments: str, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`edge-fl ARGUMENTS` of the installation in `packages`, in `folder`, or in its `home`."""
    command = [sys.executable, "-P", "-c", _COMMAND, str(packages)]
    environment = {**os.environ, "EDGE_FL_HOME": str(home), "HOME": str(home)}
    program = packages.parents[2] / "bin" / "edge-fl"
    if program.exists():
        command = [str(program)]
        path = f"{program.parent}:/usr/bin:/bin"
        environment = {
            "EDGE_FL_HOME": str(home),
            "HOME": str(home),
            "PATH": path,
            "LANG": "C.UTF-8",
        }
    return subprocess.run(
        [*command, *arguments],
        env=environment,
        cwd=folder or home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
