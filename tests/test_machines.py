"""Devices of a simulation: their tables, when they are on, and what a run costs them."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, Message

from fl_app.config import configure, resolve
from fl_app.problem import problem_of
from fl_app.record.books import check_resumable, recorded
from fl_app.record.costs import costs, within
from fl_app.record.distill_metrics import _idle_fractions
from fl_app.record.metrics import of_kind
from strategies.distillation.calibration import Calibration
from strategies.errors import ConfigError, DataError
from strategies.machines import Machine, Machines, read_availability, read_machines
from strategies.problem import flat_model
from strategies.schedule import CostModel, buffered_rounds, synchronous_rounds
from tests.harness import SMALL, run

COST = CostModel(
    client_seconds=10.0, communication_seconds=2.0, reverse_ratio=0.3, forward_ratio=0.1,
    speed_spread=0.0, link_spread=0.0, straggler_probability=0.0, straggler_factor=1.0,
    dropout_probability=0.0, timeout_seconds=60.0,
)  # fmt: skip
PROFILES = """# measured by nobody
device, speed, link, train_watts, transfer_watts, idle_watts
0, 0.5, 2, 6, 4, 2
*, 1, 1, 5, 3, 1
"""


def test_a_slow_device_on_a_fast_link_takes_what_it_takes() -> None:
    machines = Machines(read_machines(PROFILES, 2))
    (made,) = synchronous_rounds(COST, participants=2, rounds=1, seed=0, machines=machines)
    slow, other = made.jobs
    assert (slow.t_compute, slow.t_upload, slow.t_end) == (0.5, 20.5, 21.0)
    assert (other.t_compute, other.t_upload, other.t_end) == (1.0, 11.0, 12.0)


def test_a_device_trains_when_it_is_on_and_what_it_leaves_is_lost() -> None:
    """It begins at 5 s, goes in the midst of the second round, and is never back."""
    machines = Machines(on={0: [(5.0, 20.0)]})
    made = synchronous_rounds(COST, participants=2, rounds=3, seed=0, machines=machines)
    assert [[job.participant for job in each.jobs] for each in made] == [[0, 1], [1], [1]]
    first, *_ = made[0].jobs
    assert (first.t_start, first.t_end, made[0].t) == (5.0, 17.0, 17.0)
    (left,) = made[1].lost
    assert (left.t_start, left.t_compute, left.t_upload, left.t_end) == (17.0, 18.0, 20.0, 77.0)
    (never,) = made[2].lost
    assert (never.t_start, never.t_end) == (77.0, 137.0)


def test_with_a_buffer_nobody_waits_for_who_is_off() -> None:
    machines = Machines(on={0: [(100.0, 1000.0)]})
    options: dict[str, Any] = {"participants": 2, "seed": 0, "buffer_size": 1, "rounds": 9}
    made = buffered_rounds(COST, machines=machines, **options)
    assert [job.participant for each in made for job in each.jobs][:8] == [1] * 8
    over = Machines(on={p: [] for p in range(2)})
    with pytest.raises(ValueError, match="after 0 s no device is ever on again"):
        buffered_rounds(COST, machines=over, **options)


def test_times_that_touch_are_one() -> None:
    text = "device,from,to\n1,10,20\n1,0,10\n1,30,40\n"
    assert read_availability(text, 2) == {1: [(0.0, 20.0), (30.0, 40.0)]}
    machines = Machines(on=read_availability(text, 2))
    assert machines.next_on(1, 15.0) == (15.0, 20.0)
    assert machines.next_on(1, 20.0) == (30.0, 40.0)
    assert machines.next_on(0, 99.0)[0] == 99.0
    assert machines.machine(0) == Machine()


def test_the_published_profiles_can_be_read() -> None:
    path = Path(__file__).resolve().parents[1] / "experiments" / "profiles" / "boards.csv"
    found = read_machines(path.read_text(), 2)
    assert [found[p].train_watts for p in range(2)] == [5.4, 6.4]


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("availability", "device,from,to\n7,0,1", "device '7' is none of the participants 0 to 2"),
        ("availability", "device,from,to\n1,5,5", "line 2: from 5 to 5 is no time"),
        ("availability", "device,from\n1,5", "it has the columns device, from, not device, from"),
        ("device-profiles", "", "its first line must name columns of: device, speed"),
        ("device-profiles", "device,speed\n1,0", "line 2: speed=0 is out of range"),
        ("device-profiles", "device,speed\n1,fast", "line 2: speed='fast' is no number"),
        ("device-profiles", "device,speed\n1,nan", "line 2: speed='nan' is not finite"),
        ("device-profiles", "device,speed\n\n1,1,1", "line 3 has 3 values, not 2"),
        ("device-profiles", "device,speed\n1,1\n1,2", "line 3: there is a device '1' already"),
    ],
)
def test_a_file_that_is_none_is_refused(key: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    path.write_text(text)
    config = configure({key: str(path), "mode": "average"})
    with pytest.raises(ConfigError, match=f"^{key}=.*cannot be used: {message}"):
        config.trace()


def test_a_job_that_is_cut_off_has_cost_what_its_device_did_until_then() -> None:
    """Cut off in training, in the upload, and where nobody knows: a drop-out."""
    on = [(0.0, 80.0), (100.0, 200.0), (300.0, 400.0)]
    machine = {"on": on, "train_watts": 1.0, "transfer_watts": 1.0, "idle_watts": 0.0}
    times = [(0.0, 1.0, 80.0, 80.0), (100.0, 101.0, 190.0, 260.0), (300.0, 301.0, 360.0, 360.0)]
    events: list[dict[str, Any]] = [
        {"event": "machines", "machines": [machine]},
        *(
            {"event": "job", "participant": 0, "status": "lost", "t_start": start,
             "t_compute": compute, "t_upload": upload, "t_end": end, "bytes_down": sent}
            for (start, compute, upload, end), sent in zip(times, (10, 10, 0), strict=True)
        ),
    ]  # fmt: skip
    [cost] = costs(events, 400.0) or []
    assert (cost["train_seconds"], cost["transfer_seconds"]) == (79 + 89, 1 + 1 + 10)
    assert (cost["bytes_down"], cost["bytes_up"], cost["off_seconds"]) == (20, 0, 120.0)


def spoilt(message: Message, reply: Message) -> Message:
    """The second job of participant 1 brings nothing that can be used."""
    if reply.has_content() and "weights.1.1" in reply.content.get("arrays", {}):
        arrays: Any = reply.content["arrays"]
        arrays["weights.1.1"] = Array(arrays["weights.1.1"].numpy()[:3])
    return reply


def test_bytes_are_those_of_the_jobs_wherever_they_are_told(tmp_path: Path) -> None:
    """With what calibration needs, a job that is cut off, one that drops out and an update that
    is rejected."""
    on = tmp_path / "on.csv"
    on.write_text("device,from,to\n2,0,5\n2,25,1000\n")
    keys = {"availability": str(on), "small-width": 2, "large-width": 4, "seed": 3}
    keys |= {"cost.dropout-probability": 0.15, "num-server-rounds": 4, "evaluate-examples": 50}
    summary, directory = run(tmp_path / "run", keys, SMALL, tamper=spoilt, nodes=1)
    jobs = of_kind(directory.events(), "job")
    model = flat_model(problem_of(resolve({**SMALL, **keys})), "small").state()
    down = sum(vector.nbytes for vector in model.values())
    gradient = Calibration(problem_of(resolve({**SMALL, **keys}))).like.nbytes
    expected = {"ok": (down, down + gradient), "rejected": (down, down + gradient)}
    for job in jobs:
        told = job["bytes_down"], job["bytes_up"]
        cut = job["participant"] == 2 and job["t_upload"] == 5.0
        assert told == expected.get(job["status"], (down if cut else 0, 0))
    assert {(job["status"], job["bytes_down"] > 0) for job in jobs} == {
        ("ok", True), ("rejected", True), ("lost", True), ("lost", False),
    }  # fmt: skip
    for way in ("bytes_up", "bytes_down"):
        whole = sum(job[way] for job in jobs)
        assert summary[way] == whole == sum(cost[way] for cost in summary["device_costs"])
        assert of_kind(directory.events(), "round")[-1][way] == whole


def test_a_device_that_is_off_waits_for_nobody() -> None:
    assert within(10.0, 50.0, [(0.0, 20.0), (30.0, 40.0), (60.0, 70.0)]) == [(10, 20), (30, 40)]
    assert within(10.0, 50.0, None) == [(10.0, 50.0)]
    job = {"event": "job", "participant": 0}
    events: list[dict[str, Any]] = [
        {"event": "machines", "machines": [{"on": [(0.0, 40.0)]}, {"on": None}]},
        *({**job, "job": p, "participant": p, "t_end": 100.0, "status": "ok"} for p in (0, 1)),
        {"event": "idle", "participant": 1, "t_start": 0.0, "t_end": 35.0, "waiting_for": "server"},
    ]
    assert _idle_fractions(events, 100.0)["server"] == pytest.approx(35 / 140)


def test_a_run_is_not_resumed_with_other_times(tmp_path: Path) -> None:
    on = tmp_path / "on.csv"
    on.write_text("device,from,to\n1,0,30\n")
    keys = {"mode": "average", "small-width": 2, "availability": str(on), "participants": 2}
    keys |= {**SMALL, "output": str(tmp_path / "runs")}
    with pytest.raises(KeyboardInterrupt), recorded(resolve(keys)) as directory:
        raise KeyboardInterrupt
    check_resumable(resolve({**keys, "resume": str(directory.path)}))
    on.write_text("device,from,to\n1,0,31\n")
    with pytest.raises(DataError, match="the jobs by replay, device-profiles and availability"):
        check_resumable(resolve({**keys, "resume": str(directory.path)}))


def test_a_run_says_what_it_has_cost_each_device(tmp_path: Path) -> None:
    profiles, on = tmp_path / "profiles.csv", tmp_path / "on.csv"
    profiles.write_text(PROFILES)
    on.write_text("device,from,to\n1,0,30\n")
    keys = {"mode": "average", "small-width": 2, "num-server-rounds": 3, "participants": 2}
    keys |= {"device-profiles": str(profiles), "availability": str(on), "cost.client-seconds": 10.0}
    keys |= {"cost.communication-seconds": 2.0, "evaluate-examples": 50}
    summary, directory = run(tmp_path / "run", keys, SMALL)
    slow, other = summary["device_costs"]
    end = of_kind(directory.events(), "round")[-1]["t"]
    assert (slow["train_seconds"], slow["transfer_seconds"]) == (60.0, 3.0)
    assert slow["joules"] == pytest.approx(60 * 6 + 3 * 4 + (end - 63) * 2)
    assert other["off_seconds"] == end - 30.0
    assert other["train_seconds"] + other["transfer_seconds"] + other["idle_seconds"] == 30.0
    assert (slow["bytes_up"] + other["bytes_up"], slow["bytes_down"]) == (
        summary["bytes_up"], slow["bytes_up"],
    )  # fmt: skip
    usual, _ = run(tmp_path / "usual", {**keys, "device-profiles": "", "availability": ""}, SMALL)
    assert usual["device_costs"] is None
