"""Orders of the server as they travel: a head, and the order itself behind it or in pieces."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from strategies.link.pieces import PIECE
from strategies.link.wire import WireError, decode, encode, frame, unframe

_LIMIT = 1 << 30  # bytes of an order; who sends it is the server, or the router would refuse it


class Order(NamedTuple):
    """One message of the server: its number, its Flower message type, and its content. waited:
    seconds since it was made, where it has been sent again or was long on its way."""

    number: int
    kind: str
    waited: float
    header: dict[str, Any]
    arrays: dict[str, np.ndarray]


def encoded(kind: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """What an order says."""
    return encode("order", {**header, "kind": kind}, arrays)


def announced(number: int, waited: float, content: bytes) -> bytes:
    """What is sent to a device. Long content is not in it: the device asks for that."""
    head = {"number": number, "waited": round(waited, 3), "size": len(content)}
    body = content if len(content) <= PIECE else b""
    return frame({"kind": "order", "header": head}, body)


def name_of(number: int) -> str:
    """What a device calls the content of its order when it asks for it."""
    return f"order/{number}"


@dataclass(frozen=True)
class Announced:
    """An order of which a device has heard. content: b"" if it has to be asked for."""

    number: int
    waited: float
    size: int
    content: bytes
    came: float = field(default_factory=time.monotonic)

    @classmethod
    def read(cls, payload: bytes) -> "Announced":
        """Of what the server has `announced`. Raises WireError."""
        head, body = unframe(payload, kind="order", limit=_LIMIT)
        told = head["header"]
        return cls(int(told["number"]), float(told["waited"]), int(told["size"]), body)

    @property
    def lacking(self) -> str:
        """What has to be asked for, if there is something."""
        return name_of(self.number) if self.size > len(self.content) else ""

    def order(self, content: bytes) -> Order | None:
        """The order with that content; None for what is none, as of an order that is over."""
        try:
            header, arrays = decode(content, kind="order", limit=_LIMIT)
        except WireError:
            return None
        waited = self.waited + time.monotonic() - self.came
        return Order(self.number, str(header.pop("kind")), waited, header, arrays)
