"""The runs of a sweep, side by side as the machine allows, each an `edge-fl run` of its own."""

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import IO, Any

from fl_app.launch.supervise import ENDING, heed
from fl_app.manage.plan import Planned
from fl_app.record.formatting import duration
from fl_app.record.metrics import metric_of
from fl_app.record.modes import view_of
from fl_app.record.run_dir import RunDirectory, list_runs
from strategies.errors import RunDirectoryError
from strategies.paths import runs_root

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class _Working:
    """A run that is under way. output: all that it says; began: on the monotonic clock."""

    planned: Planned
    process: subprocess.Popen[bytes]
    output: IO[str]
    began: float


def side_by_side(plan: Sequence[Planned], cores: int) -> int:
    """How many runs the machine carries at once: each has a process for every participant, up to
    one a core, and in mode=distill one for the distillation server."""
    needs = [_processes(each.config, cores) for each in plan]
    return max(1, cores // max(needs, default=1))


def _processes(config: Mapping[str, Any], cores: int) -> int:
    hosts = min(int(config["participants"]), cores)
    return hosts + (config["mode"] == "distill")


def execute(
    plan: Sequence[Planned], parallel: int, say: Callable[[str], object], command: Sequence[str]
) -> int:
    """Run what is missing of the plan; returns how many of those did not complete.

    `command` is what starts edge-fl. An interruption (SIGINT, SIGTERM, SIGHUP) ends the runs that
    are under way and raises KeyboardInterrupt: they can be resumed, and the same sweep does so.
    """
    waiting = [each for each in plan if each.state in ("missing", "resumable")]
    total, done, failed = len(waiting), 0, 0
    working: list[_Working] = []
    before = {number: signal.getsignal(number) for number in ENDING}
    heed(_interrupt)
    try:
        while waiting or working:
            while waiting and len(working) < parallel:
                working.append(_start(waiting.pop(0), command))
            for run in list(working):
                code = run.process.poll()
                if code is None:
                    continue
                working.remove(run)
                done += 1
                failed += code != 0
                took = duration(time.monotonic() - run.began)
                with run.output:
                    run.output.seek(0)
                    told = _told(run.planned, code, run.output.read())
                say(f"{done}/{total}  {' '.join(run.planned.words)}: {told} ({took})")
            time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        left = len(working) + len(waiting)
        say(f"stopping; {left} of {total} are not done: the same command goes on with them")
        raise
    finally:
        for run in working:
            run.process.terminate()
        for run in working:
            with contextlib.suppress(subprocess.TimeoutExpired), run.output:
                run.process.wait(60)
        for number, handler in before.items():
            signal.signal(number, handler)
    return failed


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _start(each: Planned, command: Sequence[str]) -> _Working:
    if each.state == "resumable" and each.existing:
        words = ["resume", str(each.existing.path)]
    else:
        taken = {run.name for run in list_runs(runs_root(each.config["output"]))}
        name, number = each.name, 2
        while name in taken:  # by a run that failed, of which nothing can be used
            name, number = f"{each.name}-{number}", number + 1
        words = ["run", *each.words, f"name={name}"]
    # A file, for a pipe that nobody reads holds up who has much to say.
    output = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
    process = subprocess.Popen(
        [*command, *words, "--quiet"],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    return _Working(each, process, output, time.monotonic())


def _told(each: Planned, code: int, output: str) -> str:
    """What came out of a run with this exit code and output, or its last words."""
    lines = [line for line in output.splitlines() if line.strip()]
    places = [line.split(": ", 1)[1] for line in lines if line.startswith("run directory: ")]
    with contextlib.suppress(RunDirectoryError):
        if code == 0 and places:
            run = RunDirectory.open(places[-1])
            final, metric = run.summary()["final"], metric_of(run.events())
            value = final[view_of(each.config).headline]
            return "completed" if value is None else f"{metric.name} {metric.shown(value)}"
    words = [line for line in lines if not line.startswith("run directory: ")]
    return f"failed: {words[-1] if words else f'exit code {code}'}"


def own_command() -> list[str]:
    """What starts this edge-fl."""
    return [sys.executable, "-P", "-m", "fl_app.cli"]
