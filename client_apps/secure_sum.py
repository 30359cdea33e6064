"""A device's part in a secure sum (see `strategies.secure`): it keeps the change that training has
made to the model, and sends it masked. A function for each stage, by its order."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message

from client_apps.device import Device
from strategies.errors import EdgeFlError
from strategies.link.identity import Identity, check_keys_of_member, key_statement
from strategies.link.wire import WireError
from strategies.messages.codec import message_of, records_of
from strategies.messages.sums import (
    Fault,
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
    ShownShare,
    UnmaskOrder,
    UnmaskReply,
)
from strategies.secure import WHAT, Member, Roster, Secrets, SecureError, fixed
from strategies.site import device_site

T = TypeVar("T")


def hold(context: Context, participant: int, index: int, change: Mapping[str, np.ndarray]) -> None:
    """Keep what the index-th job of a participant has changed, until it is asked for."""
    arrays = {name: Array(vector) for name, vector in change.items()}
    context.state[_held(participant, index)] = ArrayRecord(arrays)


# -- the stages ------------------------------------------------------------------------------------


def keys(message: Message, device: Device) -> Message:
    """Do a `KeysOrder`; the keys are signed by the device's certificate, if it has one."""
    order, context = message_of(KeysOrder, message.content), device.context

    def of(participant: int) -> PublicKeys:
        context.state[_secrets(participant)] = ConfigRecord()
        public = _own(participant, context).keys()
        site, signed = device_site(context.node_config), {"certificate": "", "signature": ""}
        if site is not None and site.credentials is not None:
            statement = key_statement(WHAT, order.about, site.name, *public)
            signed = Identity(site, WHAT).sign(statement)
        return PublicKeys(participant, *public, **signed)

    made, faults = _each(order.own, of)
    return Message(records_of(KeysReply(list(made.values()), faults)), reply_to=message)


def shares(message: Message, device: Device) -> Message:
    """Do a `SharesOrder`."""
    order, context = message_of(SharesOrder, message.content), device.context
    roster = _roster(order.about, order.members)

    def of(participant: int) -> tuple[dict[int, bytes], bytes]:
        roster.check([participant])
        _check_signatures(order.about, order.members, context)
        return _own(participant, context).shares(roster)

    made, faults = _each(order.own, of)
    reply = SharesReply(
        [
            SealedShares(p, holder, text)
            for p, (own, _) in made.items()
            for holder, text in own.items()
        ],
        [PublishedShares(p, digests) for p, (_, digests) in made.items()],
        faults,
    )
    return Message(records_of(reply), reply_to=message)


def masked(message: Message, device: Device) -> Message:
    """Do a `MaskOrder`."""
    order, context = message_of(MaskOrder, message.content), device.context
    roster = _roster(order.about, order.members)
    digests = {each.participant: each.digests for each in order.published}

    def of(participant: int) -> np.ndarray:
        jobs = [job for job in order.jobs if job.participant == participant]
        if not np.isclose(sum(job.weight for job in jobs), roster[participant].weight):
            raise SecureError("the jobs of a secure sum do not count what all have been told")
        return _own(participant, context).masked(
            roster,
            _total(context, jobs),
            {each.owner: each.text for each in order.sealed if each.holder == participant},
            {member: own for member, own in digests.items() if member != participant},
        )

    made, faults = _each(order.own, of)
    reply = MaskedReply({str(p): vector for p, vector in made.items()}, faults)
    return Message(records_of(reply), reply_to=message)


def unmask(message: Message, device: Device) -> Message:
    """Do an `UnmaskOrder`; the participants' part is over then."""
    order, context = message_of(UnmaskOrder, message.content), device.context
    roster = _roster(order.about, order.members)

    def of(participant: int) -> dict[int, bytes]:
        shown = _own(participant, context).revealed(roster, order.survivors)
        del context.state[_secrets(participant)]
        return shown

    made, faults = _each(order.own, of)
    rows = [ShownShare(p, owner, share) for p, own in made.items() for owner, share in own.items()]
    return Message(records_of(UnmaskReply(rows, faults)), reply_to=message)


def _each(participants: Iterable[int], do: Callable[[int], T]) -> tuple[dict[int, T], list[Fault]]:
    """What is done for each of them, by its number; and why others' has failed."""
    done: dict[int, T] = {}
    faults: list[Fault] = []
    for participant in participants:
        try:
            done[participant] = do(participant)
        except (EdgeFlError, WireError, ValueError) as error:
            faults.append(Fault(participant, str(error)))
    return done, faults


# -- the members -----------------------------------------------------------------------------------


def _roster(about: str, members: Sequence[MemberTold]) -> Roster:
    own = (Member(m.participant, m.weight, m.mask_key, m.seal_key) for m in members)
    return Roster(about, tuple(own))


def _check_signatures(about: str, members: Sequence[MemberTold], context: Context) -> None:
    """That other devices have made the others' keys, each its own: else the server could be all of
    them. WireError."""
    site = device_site(context.node_config)
    if site is None or site.credentials is None:
        return
    identity = Identity(site, WHAT)
    if len({member.name for member in members}) != len(members):
        raise SecureError("two members of a secure sum are one device")
    for member in members:
        check_keys_of_member(identity, about, member.name, member)


# -- what is kept in between -----------------------------------------------------------------------


def _own(participant: int, context: Context) -> Secrets:
    state: Any = context.state.get(_secrets(participant))
    if state is None:
        raise SecureError("it takes part in no secure sum (has its process been started again?)")
    return Secrets(participant, state)


def _total(context: Context, jobs: Sequence[JobWeight]) -> np.ndarray:
    """The sum of what the jobs have changed, uint32 (p + q,)."""
    vectors = [fixed(_taken(context, job.participant, job.index), job.weight) for job in jobs]
    return np.add.reduce(vectors, dtype=np.uint32)


def _taken(context: Context, participant: int, index: int) -> np.ndarray:
    """The change of a job; it, and what is older, is kept no longer."""
    record: Any = context.state.get(_held(participant, index))
    if record is None:
        raise SecureError(f"it has not kept its job {index} (has its process been started again?)")
    start = f"held.{participant}."
    older = [k for k in context.state if k.startswith(start) and int(k[len(start) :]) <= index]
    for key in older:
        del context.state[key]
    return np.concatenate([record[name].numpy() for name in ("weights", "buffers")])


def _held(participant: int, index: int) -> str:
    return f"held.{participant}.{index}"


def _secrets(participant: int) -> str:
    return f"secrets.{participant}"
