"""What a host needs of a carrier of mail, whichever that is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from strategies.consensus.participant import Mail


class Unsent(NamedTuple):
    """How many mails, and bytes of their vectors."""

    mails: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Report:
    """What an exchange has done since its last report.

    outgoing: mail that is to ride in the host's reply. collected: the number of the last mail of a
    broker's that has come. unsent: by node, what it has posted and the link has not taken (less
    than 0 where more was sent of what waited at the last report). refused: how many mails that came
    were none, by the reason.
    """

    outgoing: Sequence[Mail] = ()
    collected: int = 0
    unsent: Mapping[int, Unsent] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)


class Exchange(Protocol):
    """Carries mail between hosts."""

    def post(self, mail: Mail) -> None:
        """Send; returns at once."""

    def collect(self, patience: float) -> list[Mail]:
        """The mail that has come for this host's nodes since the last call. If there is none, wait
        for some, at most `patience` seconds."""
        ...

    def report(self) -> Report:
        """What has happened since the last call."""
        ...

    def close(self) -> None:
        """Hear nothing more. What was posted still arrives, if the carrier can do that."""
