"""Secure aggregation on the server: asks for the stages of `strategies.secure`, and makes the next
model of the sum."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from strategies.averaging import STALENESS_WEIGHTS, Vectors
from strategies.averaging_settings import AveragingSettings
from strategies.checks import last_line
from strategies.dispatch import Dispatcher
from strategies.rules import Rule, Update
from strategies.schedule import Job
from strategies.secure import (
    Member,
    Roster,
    SecureError,
    opened,
    threshold,
    unmasked,
)

MESSAGE = "query.secure"


@dataclass
class Sum:
    """What came out: the weighted mean of the changes by the participants that stayed, None if
    there is none; faults: by participant, why it did not stay; notes: of shares that were no good;
    size: bytes of masked vectors."""

    mean: np.ndarray | None = None
    stayed: set[int] = field(default_factory=set)
    faults: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    size: int = 0


class SecureSums:
    """Asks devices, over the dispatcher, which sends them other messages, too; whose replies come
    meanwhile, those are in `early`. pause: waits a little."""

    def __init__(self, dispatcher: Dispatcher, timeout: float, pause: Callable[[], object]) -> None:
        self._dispatcher, self._timeout, self._pause = dispatcher, timeout, pause
        self.early: list[Message] = []
        self._held_by: dict[tuple[int, int], int] = {}  # by job

    def hold(self, job: Job, node: int) -> None:
        """What `job` has changed is held by `node`."""
        self._held_by[job.key] = node

    def of_updates(
        self,
        updates: Sequence[Update],
        weights: Sequence[float],
        names: Mapping[int, str],
        length: int,
    ) -> Sum:
        """Of what the jobs of these updates have changed, which nodes hold; see `sum`."""
        jobs: dict[int, dict[int, float]] = {}
        for update, weight in zip(updates, weights, strict=True):
            job = update.job
            jobs.setdefault(job.participant, {})[job.index] = weight / sum(weights)
        nodes = {u.job.participant: self._held_by.pop(u.job.key) for u in updates}
        return self.sum(jobs, nodes, names, length)

    def sum(
        self,
        jobs: Mapping[int, Mapping[int, float]],
        nodes: Mapping[int, int],
        names: Mapping[int, str],
        length: int,
    ) -> Sum:
        """Of the changes that jobs have made: {participant: {index: weight}}, where all weights are
        1 together. nodes: where a participant has trained; names: of the devices; length: of a
        change."""
        found = Sum()
        try:
            self._sum(found, jobs, nodes, names, length)
        except SecureError as error:
            reason = f"there was no secure sum: {error}"
            found.stayed = set()
            found.faults = {member: found.faults.get(member, reason) for member in jobs}
        return found

    def _sum(
        self,
        found: Sum,
        jobs: Mapping[int, Mapping[int, float]],
        nodes: Mapping[int, int],
        names: Mapping[int, str],
        length: int,
    ) -> None:
        about = secrets.token_hex(16)
        ask = partial(self._ask, found, nodes, about)
        keys = ask("keys", sorted(jobs), {}, threshold(len(jobs)))
        members = list(keys)
        weights = {member: sum(jobs[member].values()) for member in members}
        everybody = sum(weights.values())
        roster = _roster(about, keys, {m: weights[m] / everybody for m in members})
        roster.check([])
        needed = threshold(len(members))
        public = {
            "members": members,
            "weights": [member.weight for member in roster.members],
            "names": [names.get(member, "") for member in members],
            **{name: value for answer in keys.values() for name, value in answer.items()},
        }
        shares = ask("shares", members, public, needed)
        alive = list(shares)
        told = {name: value for answer in shares.values() for name, value in answer.items()}
        for member in alive:
            told[f"indices.{member}"] = list(jobs[member])
            told[f"weights.{member}"] = [weight / everybody for weight in jobs[member].values()]
        sent = ask("masked", alive, public | told | {"alive": alive}, needed)
        masked: dict[int, np.ndarray] = {}
        expected = f"uint32 ({length},)"
        for member, answer in sent.items():
            vector: Any = answer.get(f"masked.{member}")
            if _described(vector) == expected:
                masked[member] = vector
            else:
                told = f"sent {_described(vector)} to the secure sum, not {expected}"
                found.faults[member] = told
        _check_left(masked, needed)
        survivors = list(masked)
        shown = ask("unmask", survivors, public | {"survivors": survivors}, needed)
        total, found.notes = unmasked(
            roster,
            alive,
            masked,
            {m: {o: _hex(a.get(f"share.{m}.{o}")) for o in alive} for m, a in shown.items()},
            {m: _hex(shares[m].get(f"published.{m}")) for m in alive},
        )
        # Who has sent a masked vector is in the sum, whether or not it has shown shares.
        found.stayed = set(masked)
        found.faults = {m: why for m, why in found.faults.items() if m not in masked}
        found.size = sum(vector.nbytes for vector in masked.values())
        found.mean = opened(total) * (everybody / sum(weights[m] for m in masked))

    def _ask(
        self,
        found: Sum,
        nodes: Mapping[int, int],
        about: str,
        stage: str,
        members: Sequence[int],
        told: Mapping[str, Any],
        needed: int,
    ) -> dict[int, dict[str, Any]]:
        """What members answer in a stage, by their numbers; found.faults says why others do not.
        SecureError if fewer do than are needed."""
        groups: dict[int, list[int]] = {}
        for member in members:
            groups.setdefault(nodes[member], []).append(member)
        common = {"stage": stage, "about": about, **told}
        orders = [
            Message(RecordDict({"config": ConfigRecord({**common, "own": own})}), node, MESSAGE)
            for node, own in groups.items()
        ]
        answers: dict[int, dict[str, Any]] = {}
        for node, reply in self._replies(orders).items():
            for member in groups[node]:
                try:
                    answers[member] = _answer(reply, member)
                except SecureError as error:
                    found.faults[member] = f"left the secure sum ({stage}): {error}"
        _check_left(answers, needed)
        return dict(sorted(answers.items()))

    def _replies(self, orders: Sequence[Message]) -> dict[int, Message]:
        """By node; each is asked when it has nothing else to do."""
        waiting, sent = list(orders), dict[str, int]()
        replies: dict[int, Message] = {}
        while waiting or sent:
            for order in list(waiting):
                node = order.metadata.dst_node_id
                if node not in self._dispatcher.busy():
                    sent[self._dispatcher.send(order, self._timeout)] = node
                    waiting.remove(order)
            for reply in self._dispatcher.collect():
                node = sent.pop(reply.metadata.reply_to_message_id, None)
                if node is None:
                    self.early.append(reply)
                else:
                    replies[node] = reply
            if waiting or sent:
                self._pause()
        return replies


def _answer(reply: Message, member: int) -> dict[str, Any]:
    """What a member has answered, arrays and all. SecureError with the reason why not."""
    if reply.has_error():
        raise SecureError(last_line(reply.error.reason))
    try:
        config: Any = reply.content["config"]
        if f"error.{member}" in config:
            raise SecureError(last_line(str(config[f"error.{member}"])))
        arrays: Any = reply.content["arrays"]
        own = {k: v for k, v in config.items() if k.split(".")[1:2] == [str(member)]}
        return own | {k: v.numpy() for k, v in arrays.items() if k == f"masked.{member}"}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SecureError(f"an answer that is none: {last_line(str(error))}") from error


def _roster(
    about: str, keys: Mapping[int, Mapping[str, Any]], weights: Mapping[int, float]
) -> Roster:
    members = []
    for member, answer in keys.items():
        told = answer.get(f"keys.{member}")
        parts = told[:2] if isinstance(told, list) else []
        mask, seal = ([_hex(part) for part in parts] + [b"", b""])[:2]
        members.append(Member(member, weights[member], mask, seal))
    return Roster(about, tuple(members))


def _check_left(left: Mapping[int, Any], needed: int) -> None:
    if len(left) < needed:
        raise SecureError(f"only {len(left)} members are left, and it takes {needed}")


def _described(vector: Any) -> str:
    return f"{getattr(vector, 'dtype', 'nothing')} {getattr(vector, 'shape', '')}"


def _hex(text: Any) -> bytes:
    try:
        return bytes.fromhex(text)
    except (TypeError, ValueError):
        return b""


# -- the next model --------------------------------------------------------------------------------


def weights_of(settings: AveragingSettings, version: int, updates: Sequence[Update]) -> list[float]:
    """What each update counts, before all are 1 together: its images, or by its staleness."""
    if not settings.buffered:
        return [float(update.examples) for update in updates]
    weigh = STALENESS_WEIGHTS[settings.staleness_weight]
    exponent, bound = settings.staleness_exponent, settings.staleness_bound
    return [weigh(version - 1 - u.job.base_version, exponent, bound) for u in updates]


def next_model(
    settings: AveragingSettings,
    rule: Rule,
    version: int,
    model: Vectors,
    mean: np.ndarray,
    updates: Sequence[Update],
    bases: Mapping[int, Vectors],
) -> Vectors:
    """Version `version` of the weighted mean of the changes of these updates. The rule gets it as
    the only update; with a buffer it is FedBuff's step (see `BufferedRule`)."""
    size = len(model["weights"])
    change = {"weights": mean[:size], "buffers": mean[size:]}
    if not settings.buffered:
        base = bases[updates[0].job.base_version]
        vectors = {key: (base[key] + change[key]).astype(np.float32) for key in model}
        one = replace(updates[0], examples=1, vectors=vectors)
        return rule.combine(version, model, [one], bases)
    weights = weights_of(settings, version, updates)
    rate = settings.server_learning_rate
    counts = sum(weights) / len(updates)
    step = rate * counts * change["weights"]
    # Buffers move towards the updates' own: see `BufferedRule`.
    own = [bases[update.job.base_version]["buffers"] for update in updates]
    apart = sum(w * (b - model["buffers"]) for w, b in zip(weights, own, strict=True))
    pull = min(1.0, rate) * (counts * change["buffers"] + apart / len(updates))
    return {
        "weights": (model["weights"] + step).astype(np.float32),
        "buffers": (model["buffers"] + pull).astype(np.float32),
    }
