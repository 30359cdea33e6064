"""The distillation server's process, talked to as the strategy does."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.config import RunConfig, resolve
from fl_app.problem import problem_of
from fl_app.settings import distillation_run_of
from strategies.checkpoint import load_tensors
from strategies.distillation.mailbox import LatestSlot, VersionStore, published_file
from strategies.distillation.supervisor import DistillationServer
from strategies.problem import flat_model
from tests.harness import SMALL

WAIT = 60.0


class Listener:
    """Collects a server's events and waits for some of them."""

    def __init__(self, server: DistillationServer) -> None:
        self.server, self.heard = server, []

    def until(self, event: str, **fields: Any) -> dict[str, Any]:
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            self.heard += self.server.events()
            for heard in self.heard:
                if heard["event"] == event and fields.items() <= heard.items():
                    return heard
            time.sleep(0.01)
        raise AssertionError(f"no {event} {fields} in {self.heard}")


def make(directory: Path, **overrides: Any) -> tuple[RunConfig, DistillationServer]:
    values = {**SMALL, "clock": "real", "distill.lift": "off", "distill.restarts": 0}
    config = resolve({**values, **{k.replace("_", "-"): v for k, v in overrides.items()}})
    return config, DistillationServer(distillation_run_of(config), directory)


def mail(config: RunConfig) -> dict[str, np.ndarray]:
    vectors = flat_model(problem_of(config), "small").state()
    return {**vectors, **{f"teacher_{name}": value for name, value in vectors.items()}}


@pytest.fixture
def continuous(tmp_path: Path) -> Iterator[tuple[RunConfig, DistillationServer, Listener]]:
    config, server = make(tmp_path / "worker")
    server.start()
    yield config, server, Listener(server)
    server.stop()


def test_it_publishes_on_request_without_stopping_and_ends_when_told(continuous, tmp_path) -> None:
    config, server, listener = continuous
    listener.until("ready")
    server.put(1, mail(config))
    server.request(1)
    first = listener.until("published", round=1)
    while first["step"] == 0:  # asked before it had looked into its mailbox
        listener.heard.clear()
        server.request(1)
        first = listener.until("published", round=1)
    server.request(2)
    second = listener.until("published", round=2)
    assert second["step"] > first["step"]
    _, metadata = load_tensors(published_file(tmp_path / "worker", 2))
    assert metadata["step"] == second["step"]
    server.finish(3)
    listener.until("finished")
    assert listener.until("published", round=3)["step"] >= second["step"]
    server.stop()
    assert not server.alive


def test_a_broken_teacher_is_reported_and_the_old_one_stays(continuous, tmp_path) -> None:
    config, server, listener = continuous
    server.put(1, mail(config))
    while listener.until("published", round=server_round(server, 1))["teacher_version"] != 1:
        listener.heard.clear()
    (tmp_path / "worker" / "latest.safetensors").write_bytes(b"garbage")
    assert "damaged" in listener.until("rejected")["reason"]
    listener.heard.clear()
    poisoned = mail(config)
    poisoned["teacher_weights"][3] = np.nan
    server.put(2, poisoned)
    assert "not finite" in listener.until("rejected")["reason"]
    listener.heard.clear()
    server.put(3, {**mail(config), "teacher_weights": np.ones(5, np.float32)})
    assert "shape" in listener.until("rejected")["reason"]
    server.request(8)
    assert listener.until("published", round=8)["teacher_version"] == 1
    server.put(4, mail(config))
    listener.until("segment", teacher_version=1)  # closed: the new teacher has been taken


def server_round(server: DistillationServer, round_: int) -> int:
    server.request(round_)
    return round_


def test_a_process_that_does_not_read_holds_nobody_up(continuous) -> None:
    config, server, listener = continuous
    listener.until("ready")
    os.kill(server.pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        for version in range(1, 3000):
            server.request(version)
        server.put(1, mail(config))
        # Far more orders than a pipe holds. If writing them blocked, this would never end.
        assert time.monotonic() - start < WAIT
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_death_without_restarts_is_final_and_says_why(tmp_path: Path) -> None:
    _, server = make(tmp_path / "worker")
    server.start()
    listener = Listener(server)
    listener.until("ready")
    os.kill(server.pid, signal.SIGKILL)
    died = listener.until("died")
    assert died["restarting"] is False
    assert "exit code -9" in died["reason"]
    server.stop()


def test_a_process_that_cannot_start_gives_its_last_words(tmp_path: Path) -> None:
    _, server = make(tmp_path / "worker")
    (tmp_path / "worker" / "run.json").write_text('{"mode": "nonsense"}')
    server.start()
    assert (
        "run.json cannot be read: problem: Field required"
        in Listener(server).until("died")["reason"]
    )
    server.stop()


def test_latest_slot_overwrites_and_gives_each_version_once(tmp_path: Path) -> None:
    slot = LatestSlot(tmp_path)
    assert slot.take() is None
    for version in (1, 2, 3):
        slot.put(version, {"weights": np.full(2, version, np.float32)})
    taken = slot.take()
    assert taken is not None
    assert (taken[0], taken[1]["weights"].tolist()) == (3, [3.0, 3.0])
    assert slot.take() is None
    assert len(list(tmp_path.iterdir())) == 1  # capacity one, however many were put


def test_version_store_keeps_all_until_they_are_forgotten(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    for version in (1, 2, 10):
        store.put(version, {"weights": np.full(2, version, np.float32)})
    assert store.take(3) is None
    store.forget(before=10)
    assert store.take(2) is None
    kept = store.take(10)
    assert kept is not None
    assert kept["weights"].tolist() == [10.0, 10.0]
