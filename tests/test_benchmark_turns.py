"""What is compared has the cores in turn: while one goes on, the other stands still."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.benchmarks import turns
from experiments.benchmarks.bare_loop import Loop, Loops, timed, wall
from experiments.benchmarks.turns import Turns, overlap
from fl_app.launch.supervise import descendants

# A process whose child notes every few milliseconds that it is there.
RUN = """
import subprocess, sys
child = '''
import sys, time
with open(sys.argv[1], "a") as file:
    while True:
        print(time.time(), file=file, flush=True)
        time.sleep(0.005)
'''
subprocess.run([sys.executable, "-c", child, sys.argv[1]])
"""


def looped(steps: int) -> Loop:
    return timed(lambda _: time.sleep(0.01), steps)


def failing() -> Loop:
    raise ValueError("there are no images")


def test_the_clocks_of_loops_stand_still_while_they_are_held() -> None:
    with Loops([(looped, (300,)), (looped, (300,))]) as loops:
        loops.wait_until_ready()
        loops.go()
        time.sleep(1.0)
        loops.hold()
        time.sleep(1.0)
        assert not loops.over
        loops.go()
        found = loops.results()
        assert loops.over
    assert all(0 < loop["held"] < loop["end"] - loop["start"] for loop in found)
    assert wall(found) < max(loop["end"] for loop in found) - min(loop["start"] for loop in found)


def test_who_waits_for_loops_hears_why_one_cannot_start() -> None:
    with (
        Loops([(looped, (1,)), (failing, ())]) as loops,
        pytest.raises(ValueError, match="there are no images"),
    ):
        loops.wait_until_ready()


# A benchmark that holds its loops. They have its standard output, too.
HOLDS = """
import time
from experiments.benchmarks.bare_loop import Loops
from tests.test_benchmark_turns import looped

if __name__ == "__main__":
    loops = Loops([(looped, (300,)), (looped, (300,))])
    loops.wait_until_ready()
    print("held", flush=True)
    time.sleep(60)
"""


def test_held_loops_end_when_their_benchmark_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "holds.py"
    script.write_text(HOLDS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    benchmark = subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert benchmark.stdout is not None
    assert benchmark.stdout.readline() == "held\n"
    benchmark.kill()
    benchmark.communicate(timeout=30)  # until nobody has it any more


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_a_run_stands_still_while_the_loop_has_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_TURN_SECONDS", 0.3)
    notes, events = tmp_path / "notes", []
    run: Any = SimpleNamespace(events=lambda: events)
    looks: list[float] = []
    root = subprocess.Popen([sys.executable, "-c", RUN, str(notes)])
    try:
        await_more(notes)
        work, look = [(looped, (1,))], lambda _: looks.append(time.time())
        with Turns(root.pid, work, look) as watch:
            watch(None)
            watch(run)
            assert watch.frozen == []  # its first window is not over
            events.append({"event": "round", "round": 1})
            watch(run)
            await_more(notes)
            watch(run)  # the loop has ended, and needs no turn
            [(start, end)] = watch.frozen
            [loop] = watch.results()
        moments = [float(line) for line in notes.read_text().split()]
        # A signal takes effect a moment after it was sent.
        assert not [moment for moment in moments if start + 0.1 < moment < end]
        assert moments[0] < start
        assert moments[-1] > end
        assert end - start > 0.3
        assert len(looks) == 4  # each time; of them one while the run stood still
        assert start < looks[2] < end
        assert loop["end"] > loop["start"]
    finally:
        for pid in [*descendants(root.pid), root.pid]:
            os.kill(pid, signal.SIGKILL)
        root.wait()


def await_more(notes: Path) -> None:
    """Until there are some more of them."""
    before = lines(notes)
    while lines(notes) < before + 5:
        time.sleep(0.01)


def lines(notes: Path) -> int:
    return notes.read_text().count("\n") if notes.exists() else 0


def test_of_intervals_counts_what_lies_between() -> None:
    frozen = [(0.0, 2.0), (3.0, 4.0), (9.0, 12.0)]
    assert overlap(frozen, 1.0, 10.0) == pytest.approx(1.0 + 1.0 + 1.0)
    assert overlap(frozen, 5.0, 8.0) == 0.0
