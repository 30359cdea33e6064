"""The carrier of neighbours' mail between real devices, through the run's mail router.

Mail of the real clock: of each neighbour the newest is kept, and nothing that comes is believed.
Whatever is sent to a node, it costs the memory of one mail per neighbour. To each neighbour one
mail is under way, and the newest waits (see `paced`).
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch

from strategies.carriers.checks import MOST, mail_fault
from strategies.carriers.exchange import Report, Unsent
from strategies.carriers.paced import PacedMail
from strategies.consensus.participant import MODEL, Mail
from strategies.consensus.settling import SETTLING
from strategies.errors import EdgeFlError
from strategies.link import keys
from strategies.link.carrier import Carrier
from strategies.link.sealing import Sealing
from strategies.link.transport import MESSAGE_LIMIT
from strategies.link.wire import WireError, decode, encode, frame, unframe

_MAIL, _SEALED, _RECEIPT = "mail", "sealed", "receipt"
_RECEIPT_LIMIT = 1 << 12
_ANNOUNCE_SECONDS = 3.0  # latecomers miss what was published before they came
_OVERHEAD = 1 << 16  # bytes of a mail that are no numbers
_MOST = 1 << 62  # of a sequence number


class ZenohExchange:
    """An `Exchange` of the nodes `own` with their neighbours on other devices.

    names: of the devices, by node; own: of those, the nodes here. neighbours: of the nodes here;
    everybody, if there is none (a router with rules lets nobody else through).
    expected: the vectors of a valid mail with this sender, receiver and number (see `mail_fault`).
    sealing: of the device, if its mail is to be read by the receiver alone; then the neighbours
    must seal theirs, too, and mail can go to those only whose keys have come.
    parameters: of a model.

    sent, unsent: mails that were given to the link, and that it could not take. received: mails
    that came; overwritten: those of them that a newer one replaced before they were collected;
    refused: those that were none, by a few fixed reasons.
    """

    def __init__(
        self,
        connection: Carrier,
        run: str,
        own: Mapping[int, str],
        names: Mapping[int, str],
        expected: Callable[[Mail], Mapping[str, tuple[int, torch.dtype]]],
        neighbours: Mapping[int, Collection[int]] | None = None,
        sealing: Sealing | None = None,
        *,
        parameters: int,
    ) -> None:
        self._connection, self._run, self._names = connection, run, names
        self._nodes = {name: node for node, name in names.items()}
        self._parameters = parameters
        self._own, self._expected, self._sealing = own, expected, sealing
        self._kind = _SEALED if sealing else _MAIL
        # By key: whose mail comes under it, and how long it may be.
        self._edges: dict[str, tuple[int, int, int]] = {}
        for receiver in own:
            for sender in names if neighbours is None else neighbours[receiver]:
                if sender != receiver:
                    limit = self._limit(sender, receiver)
                    self._edges[self._key(sender, receiver)] = (sender, receiver, limit)
        # By key and lane; not decoded before they are wanted.
        self._boxes: dict[tuple[str, str], tuple[int, bytes]] = {}
        self._arrived = threading.Condition()  # of everything here that two threads use
        self.sent = self.unsent = self.received = self.overwritten = 0
        # By sender, mails and bytes of vectors that were posted, and have not been sent (yet).
        self._unsent: dict[int, Counter[str]] = {}
        self._mail = PacedMail(self._send)
        self.refused: Counter[str] = Counter()
        self._ends = [
            connection.subscribe(keys.mail(run, name, "*"), self._take) for name in own.values()
        ]
        self._ends += [
            connection.subscribe(keys.receipt(run, name, "*"), self._acknowledged)
            for name in own.values()
        ]
        self._announced = -math.inf
        if sealing is not None:
            senders = {names[sender] for sender, _, _ in self._edges.values()}
            self._ends += [
                connection.subscribe(keys.announcement(run, name), self._hear) for name in senders
            ]

    def post(self, mail: Mail) -> None:
        self._announce(_ANNOUNCE_SECONDS)
        self._count(mail, 1)
        self._mail.post((mail.sender, mail.receiver, _lane(mail.seq)), mail.seq, mail)

    def report(self) -> Report:
        """Unsent: a newer mail took its place, or it waits."""
        with self._arrived:
            unsent, self._unsent = self._unsent, {}
            refused, self.refused = self.refused, Counter()
        counted = {node: Unsent(n["mails"], n["bytes"]) for node, n in unsent.items()}
        return Report(unsent=counted, refused=refused)

    def _count(self, mail: Mail, sign: int) -> None:
        if mail.seq >= 0:  # newcomers' are in no tally
            with self._arrived:
                counts = self._unsent.setdefault(mail.sender, Counter())
                counts["mails"] += sign
                counts["bytes"] += sign * mail.size

    def _send(self, mail: Mail) -> bool:
        payload = self._write(mail)
        key = self._key(mail.sender, mail.receiver)
        if payload is None or not self._connection.publish(key, payload, kind=_lane(mail.seq)):
            self.unsent += 1
            return False
        self.sent += 1
        self._count(mail, -1)
        return True

    def collect(self, patience: float) -> list[Mail]:
        self._announce(_ANNOUNCE_SECONDS)
        self._mail.tend()
        deadline = time.monotonic() + patience
        while True:
            with self._arrived:
                left = max(0.0, deadline - time.monotonic())
                self._arrived.wait_for(lambda: self._boxes, left)
                boxes, self._boxes = self._boxes, {}
            mails = [
                mail
                for (key, _), (_, payload) in boxes.items()
                if (mail := self._open(key, payload))
            ]
            if mails or not boxes:
                return mails

    def close(self) -> None:
        """Hear nothing more."""
        for end in self._ends:
            end()

    def _key(self, sender: int, receiver: int) -> str:
        return keys.mail(self._run, self._names[receiver], self._names[sender])

    def _limit(self, sender: int, receiver: int) -> int:
        """Bytes of the longest mail of an edge: an ordinary one, or one with a whole model, as
        those of newcomers and of the settling have."""
        ordinary = Mail(sender, receiver, 0, {})
        greeting = Mail(sender, receiver, -1, {MODEL: torch.empty(0)})
        return max(_longest(self._expected(mail)) for mail in (ordinary, greeting))

    def _write(self, mail: Mail) -> bytes | None:
        """`mail` as bytes; None if its receiver's key has not come yet."""
        header = {"run": self._run, **mail._asdict()}
        del header["vectors"]
        arrays = {name: vector.cpu().numpy() for name, vector in mail.vectors.items()}
        if self._sealing is None:
            return encode(_MAIL, header, arrays)
        receiver = self._names[mail.receiver]
        if not self._sealing.knows(receiver):
            return None
        body = self._sealing.seal(encode(_MAIL, {}, arrays), receiver, header)
        return frame({"kind": _SEALED, "header": header}, body)

    def _read(self, key: str, payload: bytes) -> tuple[dict[str, Any], Mapping[str, Any]]:
        """(header, arrays) of what came. Raises WireError."""
        sender, _, limit = self._edges[key]
        if self._sealing is None:
            return decode(payload, kind=_MAIL, limit=limit)
        head, body = unframe(payload, kind=_SEALED, limit=limit)
        plain = self._sealing.open(body, self._names[sender], head["header"])
        return head["header"], decode(plain, kind=_MAIL, limit=limit)[1]

    def _announce(self, pause: float) -> None:
        """Tell the neighbours the device's public key, unless that was `pause` seconds ago."""
        now = time.monotonic()
        if self._sealing is not None and now - self._announced >= pause:
            for name in self._own.values():
                key = keys.announcement(self._run, name)
                if self._connection.publish(key, self._sealing.announcement):
                    self._announced = now

    def _hear(self, key: str, payload: bytes) -> None:
        """Take a neighbour's announcement, and answer one that is new; in Zenoh's thread."""
        assert self._sealing is not None
        try:
            if self._sealing.hear(key.rsplit("/", 1)[1], payload):
                self._announce(0.0)
        except WireError as error:
            self._refuse(error.reason)

    def _take(self, key: str, payload: bytes) -> None:
        """Keep what came, if its header is good and nothing newer is there; in Zenoh's thread."""
        try:
            if key not in self._edges:
                raise WireError("wrong sender", f"{key} is no neighbour's")
            seq = self._check(key, payload)["seq"]
        except WireError as error:
            self._refuse(error.reason)
            return
        sender, receiver, _ = self._edges[key]
        names = (self._run, self._names[sender], self._names[receiver])
        receipt = encode(_RECEIPT, {"seq": seq}, {})
        # The newest tells all that the older ones do.
        self._connection.publish(keys.receipt(*names), receipt, urgent=True, kind=_lane(seq))
        self._mail.hear((receiver, sender, _lane(seq)))
        slot = key, _lane(seq)
        with self._arrived:
            self.received += 1
            self.overwritten += slot in self._boxes
            if slot not in self._boxes or seq > self._boxes[slot][0] or seq < 0:
                self._boxes.pop(slot, None)  # in the order in which they came: seals have numbers
                self._boxes[slot] = seq, payload
                self._arrived.notify()

    def _acknowledged(self, key: str, payload: bytes) -> None:
        """A mail has come; in Zenoh's thread."""
        sender, receiver = (self._nodes.get(name) for name in key.split("/")[-2:])
        try:
            header, _ = decode(payload, kind=_RECEIPT, limit=_RECEIPT_LIMIT)
            if type(seq := header.get("seq")) is not int:
                raise WireError("bad header", "seq is no number")
        except WireError as error:
            self._refuse(error.reason)
            return
        self._mail.acknowledge((sender, receiver, _lane(seq)), seq)

    def _check(self, key: str, payload: bytes) -> dict[str, Any]:
        """The header of a mail. Raises WireError unless it fits the key that the router let it
        through with."""
        sender, receiver, limit = self._edges[key]
        header = unframe(payload, kind=self._kind, limit=limit)[0]["header"]
        if header.get("run") != self._run:
            raise WireError("wrong run", f"{header.get('run')!r:.40}, not {self._run}")
        if (header.get("sender"), header.get("receiver")) != (sender, receiver):
            raise WireError("wrong sender", f"the header does not tell what {key} tells")
        seq, sent = header.get("seq"), header.get("sent")
        if type(seq) is not int or abs(seq) >= _MOST or type(sent) not in (int, float):
            raise WireError("bad header", "seq or sent are no numbers")
        if not abs(sent) < MOST:
            raise WireError("no time", "sent")
        return header

    def _open(self, key: str, payload: bytes) -> Mail | None:
        """The mail, if its vectors are what they should be."""
        sender, receiver, _ = self._edges[key]
        try:
            header, arrays = self._read(key, payload)
        except WireError as error:
            self._refuse(error.reason)
            return None
        try:
            vectors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        except TypeError:  # one that torch does not know
            self._refuse("wrong shape")
            return None
        mail = Mail(sender, receiver, header["seq"], vectors, float(header["sent"]))
        fault = mail_fault(mail, self._expected(mail), self._parameters)
        if fault is not None:
            self._refuse("not finite" if fault.endswith("infinite") else "wrong shape")
            return None
        return mail

    def _refuse(self, reason: str) -> None:
        with self._arrived:
            self.refused[reason] += 1


def _lane(seq: int) -> str:
    """Where a mail of this number waits and is replaced by newer ones. That of newcomers has a lane
    of its own: a model that was asked for must not be replaced by what came after it."""
    return "newcomer" if seq < 0 else "mail"


def _longest(expected: Mapping[str, tuple[int, torch.dtype]]) -> int:
    """Bytes that a mail with these vectors has at most."""
    return _OVERHEAD + sum(length * dtype.itemsize for length, dtype in expected.values())


def check_router_takes(
    edges: Iterable[tuple[int, int]],
    expected: Callable[[Mail], Mapping[str, tuple[int, torch.dtype]]],
    settling: bool,
) -> None:
    """EdgeFlError if the nodes' mail is longer than the mail router takes. It would be dropped, all
    of it, and every node would train alone. settling: whether there is some.

    Newcomers' models are left out: a run can do without them.
    """
    kinds = [{}, {SETTLING: torch.empty(0)}] if settling else [{}]
    ends = [pair for i, j in edges for pair in ((i, j), (j, i))]
    mails = (Mail(*pair, 0, vectors) for pair in ends for vectors in kinds)
    most = max((_longest(expected(mail)) for mail in mails), default=0)
    if most > MESSAGE_LIMIT:
        raise EdgeFlError(
            f"the longest mail between nodes has {most / 2**20:.0f} MiB, and the mail router takes "
            f"{MESSAGE_LIMIT >> 20}: make mail shorter by mail-precision=int8, or "
            f"consensus.algorithm=c-ecl with a small consensus.keep, either with "
            f"consensus.settle=0, for settling sends whole models; or take consensus.carrier=grid "
            f"with sessions=off, which is slower"
        )
