"""A run that has really happened can be simulated: the same rounds, and of the same data the same
bits."""

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, Message

from fl_app.cli import main
from fl_app.config import configure, resolve
from fl_app.launch.replay import replayed
from fl_app.preflight import preflight
from fl_app.record.metrics import of_kind
from fl_app.record.run_dir import RunDirectory
from fl_app.settings import averaging_of
from strategies.errors import ConfigError
from tests.harness import SMALL, run

DEPLOYMENT = Path(__file__).with_name("deployment.jsonl")
REAL = {
    **SMALL,
    "mode": "average",
    "clock": "real",
    "round-seconds": 0.05,
    "small-width": 4,
    "participants": 3,
    "averaging": "buffered",
    "buffer-size": 2,
    "evaluate-examples": 50,
    # What only devices have.
    "link-patience": 20.0,
    "min-participants": 2,
    "sessions": "off",
}


def once_wrong(message: Message, reply: Message) -> Message:
    """The second job of participant 1 brings nothing that can be used."""
    if reply.has_content() and "weights.1.1" in reply.content.get("arrays", {}):
        arrays: Any = reply.content["arrays"]
        arrays["weights.1.1"] = Array(arrays["weights.1.1"].numpy()[:3])
    return reply


def rounds_of(directory: RunDirectory) -> list[tuple[Any, ...]]:
    names = ("round", "participant", "index", "base_version")
    jobs = of_kind(directory.events(), "job")
    return sorted((*(job[name] for name in names), job["status"] == "ok") for job in jobs)


def test_a_recorded_run_has_the_same_rounds_and_bits_in_a_simulation(tmp_path: Path) -> None:
    first, real = run(tmp_path / "real", {}, REAL, nodes=3, tamper=once_wrong)
    assert first["rejected"] == 1
    values = replayed(real, {"output": str(tmp_path / "simulated")})
    assert "round-seconds" not in values
    configure(values, place="simulation")  # refuses what has no effect there
    second, simulated = run(tmp_path / "simulated", values, {})
    used = [row for row in rounds_of(real) if row[-1]]
    assert [row for row in rounds_of(simulated) if row[-1]] == used
    assert second["checksum"] == first["checksum"]
    times = [[e["t"] for e in of_kind(d.events(), "round")] for d in (real, simulated)]
    assert times[0] == times[1]
    # What there is of it decides: more rounds than it had cannot be replayed.
    with pytest.raises(ConfigError, match=r"replay=.*: it has recorded 4 rounds, not 5"):
        resolve({**values, "num-server-rounds": 5}).trace()
    with pytest.raises(ConfigError, match="it has a participant 2"):
        resolve({**values, "participants": 2}).trace()
    assert len(resolve({**values, "num-server-rounds": 2}).trace().aggregations) == 2


def test_the_record_of_a_deployment_whose_device_lost_its_power_is_the_schedule(
    tmp_path: Path,
) -> None:
    """tests/deployment.jsonl is of three devices under `make soak`: participant 0 was away."""
    events = [json.loads(line) for line in DEPLOYMENT.read_text().splitlines()]
    config = resolve({"mode": "average", "clock": "real", "participants": 3}).flat()
    directory = RunDirectory.create(tmp_path, config, name="deployment")
    with directory.held():
        for event in events:
            directory.emit(event.pop("event"), **event)
    trace = resolve(replayed(directory, {})).trace()
    used = [(e["round"], e["participant"], e["index"]) for e in events if e.get("status") == "ok"]
    assert used == [
        (each.version, job.participant, job.index)
        for each in trace.aggregations
        for job in each.jobs
    ]
    assert [each.t for each in trace.aggregations] == [e["t"] for e in events if "t" in e]
    assert [[job.participant for job in each.lost] for each in trace.aggregations] == [[0]] * 5


def test_a_record_of_another_version_lacks_what_is_unknown_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = RunDirectory.create(tmp_path, {**resolve({}).flat(), "distill.old": 3}, name="old")
    with directory.held():
        directory.emit("round", round=1, t=1.0)
    values = replayed(directory, {})
    assert "distill.old" not in values
    assert values["num-server-rounds"] == 1
    assert "--trace old: no keys of this version: distill.old=3" in capsys.readouterr().err


def test_a_replay_has_the_learning_rates_of_the_run_or_is_refused(tmp_path: Path) -> None:
    """They are those of all rounds that the run was to have."""
    config = {"mode": "average", "num-server-rounds": 3, "learning-rate-schedule": "cosine"}
    directory = RunDirectory.create(tmp_path, resolve(config).flat(), name="real")
    with directory.held():
        for round_ in (1, 2):
            directory.emit("round", round=round_, t=1.0)
        with pytest.raises(ConfigError, match=r"cosine.*, 3 in that one; in a replay of 2 "):
            replayed(directory, {})
        constant = replayed(directory, {"learning-rate-schedule": "constant"})
        assert constant["num-server-rounds"] == 2
        directory.emit("round", round=3, t=1.0)
    assert replayed(directory, {})["num-server-rounds"] == 3
    with pytest.raises(ConfigError, match="in a replay of 2 "):
        replayed(directory, {"num-server-rounds": 2})


def recorded_with(tmp_path: Path, *jobs: tuple[int, int, int]) -> RunDirectory:
    """A run with jobs (round, participant, index), two seconds each, and two rounds of 10 s."""
    directory = RunDirectory.create(tmp_path, resolve({"mode": "average"}).flat(), name="real")
    with directory.held():
        for number, (round_, participant, index) in enumerate(jobs):
            t = 10.0 * (round_ - 1)
            times = {"t_start": t, "t_compute": t + 0.5, "t_upload": t + 1.5, "t_end": t + 2.0}
            directory.emit(
                "job", job=number, round=round_, participant=participant, index=index,
                base_version=round_ - 1, status="ok", **times,
            )  # fmt: skip
        for round_ in (1, 2):
            directory.emit("round", round=round_, t=10.0 * round_)
    return directory


def test_noise_for_one_update_of_each_is_refused_where_a_version_has_two_of_one(
    tmp_path: Path,
) -> None:
    """As the record of a run with averaging=buffered may have."""
    private = {"mode": "average", "num-server-rounds": 2, "privacy.clients": "fixed"}
    jobs = ((1, 0, 0), (1, 1, 0), (2, 1, 1), (2, 1, 2))
    twice = {**private, "replay": str(recorded_with(tmp_path / "twice", *jobs).path)}
    message = r"replay=.*: participant 1 has 2 updates in version 2, and the noise of privacy.clie"
    with pytest.raises(ConfigError, match=message):
        resolve(twice).trace()
    with pytest.raises(ConfigError, match=message):
        preflight(resolve({**twice, "normalisation": "group"}))
    resolve({**twice, "privacy.clients": "off"}).trace()
    once = recorded_with(tmp_path / "once", *jobs[:3], (2, 0, 1))
    resolve({**private, "replay": str(once.path)}).trace()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cost.client-seconds", 99.0),
        ("cost.communication-seconds", 5.0),
        ("cost.speed-spread", 1.0),
        ("cost.link-spread", 1.0),
        ("cost.straggler-probability", 0.5),
        ("cost.dropout-probability", 0.5),
        ("fraction-train", 0.5),
    ],
)
def test_what_the_record_says_instead_is_refused(key: str, value: float, tmp_path: Path) -> None:
    jobs = [(round_, participant, round_ - 1) for round_ in (1, 2) for participant in (0, 1, 2)]
    directory = recorded_with(tmp_path, *jobs)
    keys = {"mode": "average", "num-server-rounds": 2, "replay": str(directory.path)}
    assert resolve({**keys, key: value}).trace() == configure(keys).trace()
    with pytest.raises(ConfigError, match=f"{key}={value:g} has no effect with .*replay="):
        configure({**keys, key: value})


def test_who_replays_a_run_that_had_such_costs_does_without(tmp_path: Path) -> None:
    costs = {"cost.dropout-probability": 0.5, "cost.timeout-seconds": 9.0, "cost.speed-spread": 1.0}
    config = resolve({"mode": "average", **costs}).flat()
    directory = RunDirectory.create(tmp_path, config, name="real")
    with directory.held():
        directory.emit("round", round=1, t=1.0)
    values = replayed(directory, {})
    assert not costs.keys() & values.keys()
    assert configure(values, place="simulation").replay == str(directory.path)


def test_of_a_replay_these_say_something() -> None:
    """How long a step of the distillation server takes, and by how many the noise is divided."""
    configure({"replay": "/run", "cost.client-seconds": 3.0, "cost.reverse-ratio": 0.1})
    private = {"mode": "average", "replay": "/run", "privacy.clients": "fixed"}
    config = configure({**private, "fraction-train": 0.5, "participants": 4})
    assert averaging_of(config).cohort == 2


@pytest.mark.parametrize("key", ["cost.straggler-factor", "cost.timeout-seconds"])
def test_what_no_job_of_a_replay_needs_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}=.* has no effect with replay="):
        configure({"mode": "average", "replay": "/run", key: 3.0})


def test_what_has_no_rounds_cannot_be_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = resolve({"mode": "consensus"}).flat()
    directory = RunDirectory.create(tmp_path, config, name="nodes")
    assert main(["run", "--trace", str(directory.path)]) == 2
    assert "not mode='consensus'" in capsys.readouterr().err
    directory = RunDirectory.create(tmp_path, resolve({}).flat(), name="empty")
    assert main(["run", "--trace", str(directory.path)]) == 2
    assert "it has recorded no round" in capsys.readouterr().err
