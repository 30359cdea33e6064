"""The verdict of a soak: what grows is found, and nothing else."""

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.soak.__main__ import _samples, judge, write
from experiments.soak.verdict import Sample, lines, read, theil_sen


def life(
    name: str, pid: int, *, grows: float = 0.0, handles: float = 0.0, minutes: int = 60
) -> list[Sample]:
    """A process that takes 100 MB at once, 200 after 5 minutes, and `grows` MB an hour; a fork of
    it ends after half of the time, and what they shared is its own from then on."""
    return [
        Sample(
            60.0 * m, "pi-1", name, pid, 100 + 100 * (m > 5) + grows * m / 60 + (m > minutes / 2),
            10 + round(handles * m / 60), 3, 0.1 * m,
        )
        for m in range(minutes)
    ]  # fmt: skip


def test_what_grows_is_found() -> None:
    samples = life("flat", 1) + life("leaks", 2, grows=20.0) + life("opens", 3, handles=30.0)
    samples += life("short", 4, grows=500.0, minutes=10)
    grown = {(line.name, line.quantity) for line in lines(samples) if not line.flat}
    assert grown == {("pi-1: leaks 2", "memory, MB"), ("pi-1: opens 3", "handles")}
    assert not any("short" in line.name for line in lines(samples))


def test_a_short_life_may_gain_what_an_hour_may_and_a_pool_its_connections() -> None:
    def grown(samples: list[Sample]) -> set[tuple[str, str]]:
        return {(x.name, x.quantity) for x in lines(samples) if not x.flat}

    half = life("waits for its collector", 1, grows=7.0, minutes=30)
    assert grown(half) == set()
    assert grown(life("keeps all", 1, grows=7.0, minutes=90)) == {
        ("pi-1: keeps all 1", "memory, MB")
    }
    assert grown(life("SuperLink", 1, handles=7.0, minutes=120)) == set()
    assert grown(life("SuperLink", 1, handles=15.0, minutes=120)) == {
        ("pi-1: SuperLink 1", "handles")
    }
    assert grown(life("SuperNode", 1, handles=7.0, minutes=120)) == {
        ("pi-1: SuperNode 1", "handles")
    }


def test_one_step_is_no_slope() -> None:
    assert theil_sen(np.arange(20.0), np.r_[np.zeros(5), np.full(15, 50.0)]) == 0.0


def test_the_table_of_a_soak_that_was_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "samples.csv", life("flat", 1))
    disk = [Sample(60.0 * m, "disk", "home", 0, 5.0, 0, 0, 0.0) for m in range(60)]
    write(tmp_path / "samples.csv", disk)
    (tmp_path / "events.txt").write_text("9.4 min: pi-1 lost its power\n")
    with (tmp_path / "samples.csv").open("a") as file:
        file.write("3600.0,pi-1,fl")
    assert read(tmp_path / "samples.csv")[-1].program == "home"
    assert judge(tmp_path) == 0
    assert "**4 of 4 lines are flat.**" in capsys.readouterr().out
    assert (tmp_path / "soak.png").stat().st_size > 10_000
    assert "- 9.4 min: pi-1 lost its power" in (tmp_path / "soak.md").read_text()
    (tmp_path / "samples.csv").unlink()
    write(tmp_path / "samples.csv", life("leaks", 2, grows=20.0))
    assert judge(tmp_path) == 1
    assert "growing: pi-1: leaks 2 (memory, MB)" in capsys.readouterr().out


def test_a_process_that_nobody_has_waited_for_is_no_sample() -> None:
    """It is in /proc still, without memory."""
    ended = subprocess.Popen(["true"])
    stat = Path(f"/proc/{ended.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    found = list(_samples(1.0, "user", [ended.pid, 2**30, os.getpid()]))
    ended.wait()
    assert [sample.pid for sample in found] == [os.getpid()]
