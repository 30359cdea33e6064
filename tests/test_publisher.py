"""The server's side of the distillation server and of the references: when they die, and later."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.config import resolve
from fl_app.record.metrics import of_kind
from fl_app.record.run_dir import RunDirectory
from fl_app.settings import distillation_run_of
from strategies.clock import Clock
from strategies.distillation.mailbox import LatestSlot, forward_file
from strategies.distillation.publisher import Publisher
from strategies.distillation.references import References
from strategies.distillation.supervisor import Process
from tests.harness import SMALL

VECTORS = {"weights": np.zeros(3, np.float32)}


@pytest.fixture(autouse=True)
def nobody_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Process, "start", lambda _: None)


def resumed_at(version: int, directory: RunDirectory, **values: Any) -> Publisher:
    config = resolve({**SMALL, "distill.references": "", **values})
    clock: Any = Clock()
    evaluator: Any = None
    return Publisher(distillation_run_of(config), directory, clock, evaluator, version, 0)


def new_run(folder: Path) -> RunDirectory:
    return RunDirectory.create(folder, resolve(SMALL).flat())


def test_on_the_real_clock_nothing_is_left_of_versions_that_are_made_anew(tmp_path: Path) -> None:
    """What forward distillation made of such a version would take the place of the new one."""
    directory = new_run(tmp_path)
    worker = directory.path / "worker"
    worker.mkdir()
    slot = LatestSlot(worker)
    for version in (3, 4):
        forward_file(worker, version).touch()
        slot.put(version, VECTORS)
    publisher = resumed_at(3, directory, clock="real", **{"distill.variant": "sync-forward"})
    assert publisher.forwarded(4) is None
    assert forward_file(worker, 3).exists()
    assert LatestSlot(worker).take() is None
    slot.put(3, VECTORS)
    resumed_at(3, directory, clock="real")
    taken = LatestSlot(worker).take()
    assert taken is not None
    assert taken[0] == 3
    (worker / "latest.safetensors").write_bytes(b"damaged")
    resumed_at(3, directory, clock="real")
    assert LatestSlot(worker).take() is None


def test_what_was_taught_before_a_run_was_resumed_is_not_skipped(tmp_path: Path) -> None:
    directory = new_run(tmp_path)
    for number, version in enumerate((1, 3)):
        directory.emit("segment", segment=number, kind="reverse", teacher_version=version)
    resumed_at(3, directory, clock="real").close(4)
    assert [e["version"] for e in of_kind(directory.events(), "skipped")] == [2, 4]


def says(monkeypatch: pytest.MonkeyPatch, *events: dict[str, Any]) -> None:
    """What a process says next."""
    left = [list(events), []]
    monkeypatch.setattr(Process, "events", lambda _: left.pop(0) if left else [])


@pytest.mark.parametrize("version", [0, 2])
def test_what_a_dead_server_has_published_and_not_said_is_shown_all_the_same(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = resumed_at(version, new_run(tmp_path))
    shown: list[int] = []
    monkeypatch.setattr(publisher, "_evaluate", lambda round_, t: shown.append(round_))

    def state(round_: int) -> dict[str, Any]:
        return {"round": round_, "step": 5 * round_, "teacher_version": round_}

    says(monkeypatch, {"event": "restarted", **state(version)})
    publisher.hear()
    assert publisher.ready  # though the first one died before it was
    assert shown == []  # it goes on from what is known
    publisher.put(version + 1, VECTORS, VECTORS, 1.0)
    for _ in range(2):
        says(monkeypatch, {"event": "restarted", **state(version + 1)})
        publisher.hear()
    assert shown == [version + 1]
    assert (publisher.published, publisher.step) == (version + 1, 5 * (version + 1))


@pytest.mark.parametrize(("clock", "round_"), [("virtual", 3), ("real", 3), ("real", 5)])
def test_a_resumed_run_waits_for_nothing_that_has_been_published(
    clock: str, round_: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the real clock the server keeps what it has learnt, and may be ahead of the run."""
    publisher = resumed_at(3, new_run(tmp_path), clock=clock)
    says(monkeypatch, {"event": "ready", "round": round_, "step": 15, "teacher_version": 2})
    publisher.hear()
    assert publisher.published == 3
    assert (publisher.step, publisher.teacher_version) == (15, 2)


def test_what_is_published_before_its_round_is_shown_in_that_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends early has no such round, however fast its server is."""
    publisher = resumed_at(3, new_run(tmp_path), **{"distill.variant": "async-continuous"})
    shown: list[int] = []
    monkeypatch.setattr(publisher, "_evaluate", lambda round_, t: shown.append(round_))
    says(monkeypatch, {"event": "published", "round": 4, "step": 15, "teacher_version": 3})
    publisher.hear()
    assert (shown, publisher.published) == ([], 0)
    publisher.put(4, VECTORS, VECTORS, 1.0)
    assert (shown, publisher.published) == ([4], 4)


def test_a_reference_that_is_shown_twice_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process died after it had shown it, and the successor, which cannot know, shows it."""
    config = resolve({**SMALL, "distill.references": "server-alone", "proxy-labelled-examples": 20})
    evaluator: Any = None
    references = References(distillation_run_of(config), new_run(tmp_path), evaluator, 0)
    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "strategies.distillation.references.load_states",
        lambda path: shown.append((1, 5)) or {},
    )
    references.show(1, 5, 2.0)
    published = {"event": "published", "round": 1, "step": 5}
    died = {"event": "died", "restarting": True, "reason": "killed"}
    says(monkeypatch, published, died, published)
    references.hear()
    assert shown == [(1, 5)]
    assert references.process.standing == []
