"""A device's part in a secure sum (see `strategies.secure`): it keeps the change that training has
made to the model, and sends it masked."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client_apps.device import Device
from strategies.errors import EdgeFlError
from strategies.link.identity import Identity, key_statement
from strategies.link.wire import WireError
from strategies.secure import Member, Roster, Secrets, SecureError, fixed
from strategies.site import device_site

_WHAT = "secure aggregation"


def hold(context: Context, participant: int, index: int, change: Mapping[str, np.ndarray]) -> None:
    """Keep what the index-th job of a participant has changed, until it is asked for."""
    arrays = {name: Array(vector) for name, vector in change.items()}
    context.state[_held(participant, index)] = ArrayRecord(arrays)


def take_part(message: Message, device: Device) -> Message:
    """Do a stage of a sum for participants that have trained here.

    In: config stage, about (which sum it is), own (the participants), and of the stages but the
    first one the roster: members, weights, names, and for each member J keys.J (mask key, seal key,
    certificate, signature; hexadecimal but for the certificate). masked: also alive, sealed.I.J and
    published.I of every I that is alive and not J, and indices.J and weights.J of the jobs. unmask:
    also survivors. Out, for every participant J, config error.J, or what `_STAGES` has.
    """
    order: Any = message.content["config"]
    answer: dict[str, Any] = {}
    arrays: dict[str, Array] = {}
    for participant in order["own"]:
        try:
            stage = _STAGES[order["stage"]]
            found, vectors = stage(participant, order, device.context)
        except (EdgeFlError, SecureError, WireError, KeyError, ValueError) as error:
            answer[f"error.{participant}"] = f"{error}"
            continue
        answer |= found
        arrays |= {name: Array(vector) for name, vector in vectors.items()}
    content = RecordDict({"config": ConfigRecord(answer), "arrays": ArrayRecord(arrays)})
    return Message(content, reply_to=message)


_Found = tuple[dict[str, Any], dict[str, np.ndarray]]


def _keys(participant: int, order: Any, context: Context) -> _Found:
    """keys.J; signed by the device's certificate, if it has one."""
    context.state[_secrets(participant)] = ConfigRecord()
    public = _own(participant, context).keys()
    told = [key.hex() for key in public]
    site = device_site(context.node_config)
    if site is not None and site.credentials is not None:
        statement = key_statement(_WHAT, order["about"], site.name, *public)
        signed = Identity(site, _WHAT).sign(statement)
        told += [signed["certificate"], signed["signature"]]
    return {f"keys.{participant}": told}, {}


def _shares(participant: int, order: Any, context: Context) -> _Found:
    """sealed.J.I for every other member I, and published.J."""
    roster = _roster(order)
    roster.check([participant])
    _check_signatures(order, context)
    sealed, published = _own(participant, context).shares(roster)
    found = {f"sealed.{participant}.{other}": text.hex() for other, text in sealed.items()}
    return {**found, f"published.{participant}": published.hex()}, {}


def _masked(participant: int, order: Any, context: Context) -> _Found:
    """The array masked.J, uint32, of weights and buffers."""
    roster = _roster(order)
    indices, weights = order[f"indices.{participant}"], order[f"weights.{participant}"]
    if not np.isclose(sum(weights), roster[participant].weight):
        raise SecureError("the jobs of a secure sum do not count what all have been told")
    vectors = [
        fixed(_taken(context, participant, index), weight)
        for index, weight in zip(indices, weights, strict=True)
    ]
    others = [n for n in order["alive"] if n != participant]
    sealed = {n: bytes.fromhex(order[f"sealed.{n}.{participant}"]) for n in others}
    published = {n: bytes.fromhex(order[f"published.{n}"]) for n in others}
    total = np.add.reduce(vectors, dtype=np.uint32)
    result = _own(participant, context).masked(roster, total, sealed, published)
    return {}, {f"masked.{participant}": result}


def _unmask(participant: int, order: Any, context: Context) -> _Found:
    """share.J.I: of member I's seed if it is a survivor, else of its mask key."""
    shown = _own(participant, context).revealed(_roster(order), list(order["survivors"]))
    del context.state[_secrets(participant)]
    return {f"share.{participant}.{owner}": share.hex() for owner, share in shown.items()}, {}


_STAGES: dict[str, Callable[[int, Any, Context], _Found]] = {
    "keys": _keys,
    "shares": _shares,
    "masked": _masked,
    "unmask": _unmask,
}


def _roster(order: Any) -> Roster:
    members = []
    for number, weight in zip(order["members"], order["weights"], strict=True):
        mask, seal = (bytes.fromhex(key) for key in order[f"keys.{number}"][:2])
        members.append(Member(number, weight, mask, seal))
    return Roster(order["about"], tuple(members))


def _check_signatures(order: Any, context: Context) -> None:
    """That other devices have made the others' keys, each its own: else the server could be all of
    them. WireError."""
    site = device_site(context.node_config)
    if site is None or site.credentials is None:
        return
    identity = Identity(site, _WHAT)
    if len(set(order["names"])) != len(order["members"]):
        raise SecureError("two members of a secure sum are one device")
    for number, name in zip(order["members"], order["names"], strict=True):
        mask, seal, *signed = order[f"keys.{number}"]
        named: dict[str, Any] = dict(zip(("certificate", "signature"), signed, strict=False))
        keys = (bytes.fromhex(key) for key in (mask, seal))
        identity.check(name, named, key_statement(_WHAT, order["about"], name, *keys))


def _own(participant: int, context: Context) -> Secrets:
    state = context.state.get(_secrets(participant))
    if state is None:
        raise SecureError("it takes part in no secure sum (has its process been started again?)")
    return Secrets(participant, state)  # type: ignore[arg-type]


def _taken(context: Context, participant: int, index: int) -> np.ndarray:
    """The change of a job; it, and what is older, is kept no longer."""
    record = context.state.get(_held(participant, index))
    if record is None:
        raise SecureError(f"it has not kept its job {index} (has its process been started again?)")
    start = f"held.{participant}."
    older = [k for k in context.state if k.startswith(start) and int(k[len(start) :]) <= index]
    for key in older:
        del context.state[key]
    arrays: Any = record
    return np.concatenate([arrays[name].numpy() for name in ("weights", "buffers")])


def _held(participant: int, index: int) -> str:
    return f"held.{participant}.{index}"


def _secrets(participant: int) -> str:
    return f"secrets.{participant}"
