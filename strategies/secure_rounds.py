"""Secure aggregation on the server: asks for the stages of `strategies.secure`, and makes the next
model of the sum."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from flwr.app import Message

from strategies.averaging import STALENESS_WEIGHTS, Vectors
from strategies.averaging_settings import AveragingSettings
from strategies.checks import last_line
from strategies.dispatch import Dispatcher
from strategies.link.identity import Identity, check_keys_of_member
from strategies.messages.codec import message_of, records_of
from strategies.messages.sums import (
    JobWeight,
    KeysOrder,
    KeysReply,
    MaskedReply,
    MaskOrder,
    MemberTold,
    PublicKeys,
    PublishedShares,
    SealedShares,
    SharesOrder,
    SharesReply,
    UnmaskOrder,
    UnmaskReply,
)
from strategies.rules import Rule, Update
from strategies.schedule import Job
from strategies.secure import (
    WHAT,
    Member,
    Roster,
    SecureError,
    check_keys,
    opened,
    threshold,
    unmasked,
)
from strategies.site import server_site

T = TypeVar("T")


@dataclass
class Sum:
    """What came out: the weighted mean of the changes by the participants that stayed, None if
    there is none; faults: by participant, why it did not stay; notes: of shares that were no
    good."""

    mean: np.ndarray | None = None
    stayed: set[int] = field(default_factory=set)
    faults: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class SecureSums:
    """Asks devices, over the dispatcher, which sends them other messages, too; whose replies come
    meanwhile, those are in `early`. pause: waits a little."""

    def __init__(self, dispatcher: Dispatcher, timeout: float, pause: Callable[[], object]) -> None:
        self._dispatcher, self._timeout, self._pause = dispatcher, timeout, pause
        site = server_site()
        self._identity = Identity(site, WHAT) if site and site.credentials else None
        self.early: list[Message] = []
        self._held_by: dict[tuple[int, int], int] = {}  # by job

    def hold(self, job: Job, node: int) -> None:
        """What `job` has changed is held by `node`."""
        self._held_by[job.key] = node

    def next_model(
        self,
        settings: AveragingSettings,
        rule: Rule,
        version: int,
        model: Vectors,
        updates: Sequence[Update],
        names: Mapping[int, str],
        bases: Mapping[int, Vectors],
    ) -> tuple[Sum, Vectors]:
        """The sum of what the jobs of these updates have changed, which nodes hold, and the model
        that the rule makes of it: `model`, where there is no sum. names: of the devices."""
        weights = weights_of(settings, version, updates)
        jobs: dict[int, dict[int, float]] = {}
        for update, weight in zip(updates, weights, strict=True):
            job = update.job
            jobs.setdefault(job.participant, {})[job.index] = weight / sum(weights)
        nodes = {u.job.participant: self._held_by.pop(u.job.key) for u in updates}
        found = self.sum(jobs, nodes, names, sum(len(vector) for vector in model.values()))
        if found.mean is None:
            return found, model
        stayed = [update for update in updates if update.job.participant in found.stayed]
        return found, next_model(settings, rule, version, model, found.mean, stayed, bases)

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
        about, ask = secrets.token_hex(16), partial(self._ask, found, nodes)

        def signed_keys(reply: KeysReply, member: int) -> PublicKeys:
            """Or every other member would refuse the sum because of it."""
            keys, name = _keys(reply, member), names.get(member, "")
            if self._identity is not None:
                check_keys_of_member(self._identity, about, name, keys)
            return keys

        order = partial(KeysOrder, about)
        keys = ask("keys", sorted(jobs), threshold(len(jobs)), order, signed_keys)
        weights = {member: sum(jobs[member].values()) for member in keys}
        everybody = sum(weights.values())
        told = [
            MemberTold(m, weights[m] / everybody, names.get(m, ""), *own[1:])
            for m, own in keys.items()
        ]
        members = tuple(Member(m.participant, m.weight, m.mask_key, m.seal_key) for m in told)
        roster = Roster(about, members)
        roster.check([])
        needed = threshold(len(members))

        def shares_order(own: list[int]) -> SharesOrder:
            return SharesOrder(about, own, told)

        shares = ask("shares", roster.numbers, needed, shares_order, partial(_shares, roster))
        published = [PublishedShares(member, digests) for member, (_, digests) in shares.items()]

        def mask_order(own: list[int]) -> MaskOrder:
            sealed = [
                SealedShares(owner, holder, text[holder])
                for owner, (text, _) in shares.items()
                for holder in own
                if holder != owner
            ]
            weighted = [
                JobWeight(m, index, weight / everybody)
                for m in own
                for index, weight in jobs[m].items()
            ]
            return MaskOrder(about, own, told, sealed, published, weighted)

        masked = ask("masked", list(shares), needed, mask_order, partial(_vector, length))

        def unmask_order(own: list[int]) -> UnmaskOrder:
            return UnmaskOrder(about, own, told, list(masked))

        shown = ask("unmask", list(masked), needed, unmask_order, _shown)
        digests = {each.participant: each.digests for each in published}
        total, found.notes = unmasked(roster, list(shares), masked, shown, digests)
        # Who has sent a masked vector is in the sum, whether or not it has shown shares.
        found.stayed = set(masked)
        silent = sorted(masked.keys() & found.faults.keys())
        found.notes += [f"participant {m} {found.faults.pop(m)}" for m in silent]
        found.mean = opened(total) * (everybody / sum(weights[m] for m in masked))

    def _ask(
        self,
        found: Sum,
        nodes: Mapping[int, int],
        stage: str,
        members: Sequence[int],
        needed: int,
        order_of: Callable[[list[int]], Any],
        part_of: Callable[[Any, int], T],
    ) -> dict[int, T]:
        """What members answer in a stage, by their numbers; found.faults says why others do not.
        order_of: what the host of some of them is asked. part_of: what is a member's of a reply;
        raises SecureError for what is none. SecureError if fewer answer than are needed."""
        groups: dict[int, list[int]] = {}
        for member in members:
            groups.setdefault(nodes[member], []).append(member)
        orders = [
            Message(records_of(order_of(own)), node, f"query.secure_{stage}")
            for node, own in groups.items()
        ]
        answers: dict[int, T] = {}
        for node, reply in self._replies(orders).items():
            for member in groups[node]:
                try:
                    answers[member] = part_of(_read(reply, _REPLIES[stage], member), member)
                except ValueError as error:
                    reason = last_line(str(error))
                    found.faults[member] = f"left the secure sum ({stage}): {reason}"
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


_REPLIES = {
    "keys": KeysReply,
    "shares": SharesReply,
    "masked": MaskedReply,
    "unmask": UnmaskReply,
}


def _read(reply: Message, kind: Any, member: int) -> Any:
    """The reply of a member's host. ValueError with the reason why there is nothing of it."""
    if reply.has_error():
        raise SecureError(reply.error.reason)
    answer = message_of(kind, reply.content)
    for fault in answer.faults:
        if fault.participant == member:
            raise SecureError(fault.reason)
    return answer


def _keys(reply: KeysReply, member: int) -> PublicKeys:
    keys = _only([keys for keys in reply.keys if keys.participant == member], "keys")
    check_keys(keys.mask_key, keys.seal_key)
    return keys


def _shares(roster: Roster, reply: SharesReply, member: int) -> tuple[dict[int, bytes], bytes]:
    """What a member has sealed for each other one, and what it has published of it."""
    sealed = {each.holder: each.text for each in reply.sealed if each.owner == member}
    if lacking := set(roster.numbers) - {member} - sealed.keys():
        raise SecureError(f"it has sealed no share for participant {min(lacking)}")
    own = [each.digests for each in reply.published if each.participant == member]
    return sealed, _only(own, "published shares")


def _vector(length: int, reply: MaskedReply, member: int) -> np.ndarray:
    vector = reply.vectors.get(str(member))
    expected = f"uint32 ({length},)"
    if vector is None or (described := f"{vector.dtype} {vector.shape}") != expected:
        sent = "nothing" if vector is None else described
        raise SecureError(f"sent {sent} to the secure sum, not {expected}")
    return vector


def _shown(reply: UnmaskReply, member: int) -> dict[int, bytes]:
    return {each.owner: each.share for each in reply.shares if each.holder == member}


def _only(found: Sequence[T], what: str) -> T:
    if len(found) != 1:
        raise SecureError(f"it has sent {len(found)} times {what}, not once")
    return found[0]


def _check_left(left: Mapping[int, Any], needed: int) -> None:
    if len(left) < needed:
        raise SecureError(f"only {len(left)} members are left, and it takes {needed}")


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
