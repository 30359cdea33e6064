"""Secure aggregation in whole runs: the same sums, and a server that has seen none of the parts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Error, Message

from client_apps import secure_sum
from fl_app.config import resolve
from fl_app.record.metrics import of_kind
from fl_app.record.run_dir import RunDirectory
from strategies import secure
from strategies.errors import ConfigError
from tests.certificates import issue, make_ca
from tests.harness import SMALL, run

SUMS = {
    **SMALL,
    "mode": "average",
    "small-width": 4,
    "num-server-rounds": 1,
    "participants": 4,
    "local-steps": 1,
    "evaluate-examples": 50,
    "secure-aggregation": True,
}
BUFFERED = {
    "averaging": "buffered", "buffer-size": 3, "cost.speed-spread": 0.5, "num-server-rounds": 2,
}  # fmt: skip


def model_of(directory: RunDirectory) -> dict[str, np.ndarray]:
    return directory.load_checkpoint("small")[0]


def without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain fixed-point run: everything is the same, but for what is added to hide it."""
    monkeypatch.setattr(secure, "key_stream", lambda key, length: np.zeros(length, np.uint32))


@pytest.mark.parametrize("averaging", [{"averaging": "fedadam"}, BUFFERED])
def test_the_model_is_that_of_the_plain_fixed_point_run_to_the_bit(
    averaging: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nearly that of a run without secure aggregation, with the same updates in each version;
    hosts make no difference."""
    summary, masked = run(tmp_path / "masked", averaging, SUMS, nodes=3)
    assert summary["status"] == "completed"
    assert summary["rejected"] == 0
    alike = {**averaging, "secure-aggregation": False, "replay": str(masked.path)}
    _, usual = run(tmp_path / "usual", alike, SUMS)
    without_masks(monkeypatch)
    _, plain = run(tmp_path / "plain", averaging, SUMS)
    for name, vector in model_of(masked).items():
        np.testing.assert_array_equal(vector, model_of(plain)[name])
        np.testing.assert_allclose(vector, model_of(usual)[name], atol=2e-4)


def test_a_buffer_has_one_update_of_each() -> None:
    """Of two of one participant and one of another there is no sum."""
    keys = {"participants": 3, "buffer-size": 3, "cost.speed-spread": 0.8, "num-server-rounds": 8}
    for made in resolve({**SUMS, **BUFFERED, **keys, "seed": 1}).trace().aggregations:
        assert {job.participant for job in made.jobs} == {0, 1, 2}


class Server:
    """All that the server is told, and what it is told in place of that."""

    def __init__(self, stage: str = "", node: int = 0, change: Any = None) -> None:
        self.stage, self.node, self.change = stage, node, change
        self.seen: list[Message] = []

    def __call__(self, message: Message, reply: Message) -> Message:
        if reply.has_content():
            self.seen.append(reply)
        kind = message.metadata.message_type
        if kind == f"query.secure_{self.stage}" and message.metadata.dst_node_id == self.node:
            return self.change(message, reply)
        return reply

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            name: array.numpy()
            for reply in self.seen
            for record in reply.content.array_records.values()
            for name, array in record.items()
        }


def dead(message: Message, _: Message) -> Message:
    return Message(Error(5, "node 12 has been silent for 20 s"), reply_to=message)


def test_the_server_sees_masked_vectors_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[np.ndarray] = []
    taken = secure_sum._taken
    monkeypatch.setattr(
        secure_sum, "_taken", lambda *of: held.append(vector := taken(*of)) or vector
    )
    server = Server()
    run(tmp_path, {}, SUMS, tamper=server)
    arrays = server.arrays()
    assert sorted(arrays) == [str(n) for n in range(4)]
    assert len(held) == 4
    for vector in arrays.values():
        assert abs(np.mean(vector / 2.0**32) - 0.5) < 0.05
        for own in held:
            correlation = np.corrcoef(secure.opened(vector), own)[0, 1]
            assert abs(correlation) < 10 / np.sqrt(len(own))


@pytest.mark.parametrize("stage", ["keys", "masked", "unmask"])
def test_who_dies_in_mid_round_is_left_out_and_named(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever stage; the sum is that of the others - and of its own, once that has come."""
    server = Server(stage, 12, dead)
    summary, directory = run(tmp_path / "dies", {}, SUMS, nodes=4, tamper=server)
    events = of_kind(directory.events(), "rejected")
    assert summary["rejected"] == (0 if stage == "unmask" else 1)
    for event in events:
        assert event["participant"] == 1
        assert event["reason"].startswith(f"left the secure sum ({stage}): node 12 has been silent")
    without_masks(monkeypatch)
    _, plain = run(tmp_path / "plain", {}, SUMS, nodes=4, tamper=Server(stage, 12, dead))
    for name, vector in model_of(directory).items():
        np.testing.assert_array_equal(vector, model_of(plain)[name])


def test_when_too_few_are_left_the_model_stays(tmp_path: Path) -> None:
    overrides = {"participants": 3}
    summary, directory = run(tmp_path, overrides, SUMS, nodes=3, tamper=Server("masked", 12, dead))
    assert summary["rejected"] == 3
    reasons = sorted(event["reason"] for event in of_kind(directory.events(), "rejected"))
    assert reasons[0].startswith("left the secure sum (masked): node 12")
    assert reasons[1] == "there was no secure sum: only 2 members are left, and it takes 3"
    warnings = [event["message"] for event in of_kind(directory.events(), "warning")]
    assert "round 1 had no usable update: the model stays as it was" in warnings


def _forge(_: Message, reply: Message) -> Message:
    """A share, of another secret."""
    shares: Any = reply.content["shares"]
    texts = list(shares["share"])
    texts[list(shares["owner"]).index(2)] = "00" * 66
    shares["share"] = texts
    return reply


def _garbage(_: Message, reply: Message) -> Message:
    vectors: Any = reply.content["vectors"]
    vectors["1"] = Array(np.zeros(3, np.float32))
    return reply


def _nothing(_: Message, reply: Message) -> Message:
    """A reply that is none."""
    del reply.content["faults"]
    return reply


def _less(record: str) -> Any:
    """The first row of a record is not there."""

    def change(_: Message, reply: Message) -> Message:
        rows: Any = reply.content[record]
        for column in list(rows):
            rows[column] = list(rows[column])[1:]
        return reply

    return change


def _no_key(_: Message, reply: Message) -> Message:
    """A point of small order: with it every other member's exchange would fail."""
    keys: Any = reply.content["keys"]
    keys["mask_key"] = ["00" * 32]
    return reply


@pytest.mark.parametrize(
    ("stage", "change", "told"),
    [
        ("unmask", _forge, "participant 1 has shown a forged share of participant 2's"),
        ("unmask", _less("shares"), "participant 1 has shown no share of participant 0's"),
        ("unmask", _nothing, "participant 1 left the secure sum (unmask): no UnmaskReply: faults"),
        ("keys", _nothing, "left the secure sum (keys): no KeysReply: faults: it is not there"),
        ("keys", _less("keys"), "left the secure sum (keys): it has sent 0 times keys, not once"),
        ("keys", _no_key, "left the secure sum (keys): a member's key is none"),
        ("shares", _less("sealed"), "(shares): it has sealed no share for participant 0"),
        ("shares", _less("published"), "(shares): it has sent 0 times published shares, not once"),
        ("masked", _garbage, "sent float32 (3,) to the secure sum, not uint32"),
    ],
)
def test_what_is_forged_or_missing_is_refused_and_named(
    stage: str, change: Any, told: str, tmp_path: Path
) -> None:
    server = Server(stage, 12, change)
    summary, directory = run(tmp_path, {}, SUMS, nodes=4, tamper=server)
    assert summary["status"] == "completed"
    assert summary["rejected"] == (stage != "unmask")  # it alone, and the sum is the others'
    said = [event.get("message", "") + event.get("reason", "") for event in directory.events()]
    assert any(told in text for text in said)


def test_devices_sign_their_keys_and_refuse_who_has_not(tmp_path: Path) -> None:
    """A server that makes up members would learn the only real one's vector."""
    authority, stranger = make_ca(), make_ca()
    sites = [issue(authority, f"pi-{n}", tmp_path / f"pi-{n}", port=1) for n in range(4)]
    sites[3] = issue(stranger, "pi-3", tmp_path / "stranger", port=1)
    configs = [{"name": f"pi-{n}", "site": str(site.directory)} for n, site in enumerate(sites)]
    overrides = {"clock": "real"}
    summary, directory = run(tmp_path / "run", overrides, SUMS, node_configs=configs)
    reasons = [event["reason"] for event in of_kind(directory.events(), "rejected")]
    assert summary["rejected"] == 4
    assert any("that of pi-3 is not of our authority" in reason for reason in reasons)


def test_whose_keys_are_not_signed_is_left_out_by_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the others are told of it: each of them would refuse the whole sum."""
    authority, stranger = make_ca(), make_ca()
    sites = [issue(authority, f"pi-{n}", tmp_path / f"pi-{n}", port=1) for n in range(4)]
    sites[3] = issue(stranger, "pi-3", tmp_path / "stranger", port=1)
    server = issue(authority, "server", tmp_path / "server", port=1)
    monkeypatch.setattr("strategies.secure_rounds.server_site", lambda: server)
    configs = [{"name": f"pi-{n}", "site": str(site.directory)} for n, site in enumerate(sites)]
    summary, directory = run(tmp_path / "run", {"clock": "real"}, SUMS, node_configs=configs)
    [event] = of_kind(directory.events(), "rejected")
    assert summary["status"] == "completed"
    assert "(keys): unknown certificate: that of pi-3 is not of our authority" in event["reason"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"averaging": "krum"}, "averaging='krum', which compares single updates"),
        ({"privacy.clients": "fixed"}, "for which the server clips each participant's update"),
        ({"mail-precision": "int8"}, "fixed-point numbers of 32 bits"),
        ({"participants": 2}, "sums 2 updates with participants=2"),
        ({"averaging": "buffered", "buffer-size": 1}, "sums 1 updates with buffer-size=1"),
        ({"averaging": "buffered", "buffer-size": 5}, "buffer-size=5 is never full"),
    ],
)
def test_what_needs_single_updates_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve({"mode": "average", "participants": 4, "secure-aggregation": True, **keys})
