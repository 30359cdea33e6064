"""Processes beside this one: where their code comes from, how they end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from strategies import child

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules this process can import."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_a_process_runs_the_code_that_runs_here(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a module of somebody else's, and nothing of where it happens to be."""
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    (place / "beside.py").write_text(
        "import os, sys, strategies\n"
        "print(strategies.__file__, sys.argv[1], os.environ['X'], sys.stdin.read())\n"
        "sys.exit('that was all')\n"
    )
    log = tmp_path / "log"
    log.write_text("before\n")
    process = child.start("beside", "one", log=log, environment={"X": "two"}, text=True)
    said, _ = process.communicate("three")
    assert said.split() == [str(ROOT / "strategies" / "__init__.py"), "one", "two", "three"]
    assert child.last_words(log) == "that was all"
    assert child.last_words(log, 2) == "before | that was all"
    assert child.last_words(tmp_path / "none") == ""


def test_what_does_not_end_by_itself_is_killed(place: Path) -> None:
    (place / "obedient.py").write_text("import sys\nsys.stdin.read()\nsys.exit(3)\n")
    (place / "stubborn.py").write_text("import time\nprint(1, flush=True)\ntime.sleep(60)\n")
    obedient, stubborn = child.start("obedient"), child.start("stubborn")
    assert obedient.stdin is not None
    assert stubborn.stdout is not None
    obedient.stdin.close()
    child.stop(obedient, 30.0)
    stubborn.stdout.readline()
    child.stop(stubborn)
    assert (obedient.returncode, stubborn.returncode) == (3, -signal.SIGKILL)


@pytest.mark.parametrize("unless", [False, True])
def test_a_process_notices_that_its_parent_is_gone(place: Path, unless: bool) -> None:
    """Whatever becomes of its stdin; unless it has a reason to stay."""
    (place / "orphan.py").write_text(
        "import os, time\n"
        "from strategies.child import watch_parent\n"
        f"watch_parent(lambda: os._exit(0), lambda: {unless})\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(60)\n"
    )
    starts = (
        "from strategies import child\n"
        "process = child.start('orphan')\n"
        "print(process.stdout.readline().decode(), end='', flush=True)\n"
        "process.wait()\n"
    )
    paths = os.pathsep.join([str(ROOT), str(place)])
    parent = subprocess.Popen(
        [sys.executable, "-P", "-c", starts],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + (1.5 if unless else 30.0)
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert Path(f"/proc/{pid}").exists() == unless
    if unless:
        os.kill(pid, signal.SIGKILL)
