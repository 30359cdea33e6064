"""A host without timelines, for the real clock: every node steps as fast as it can.

The newest mail of a neighbour replaces an older one, and nobody waits - but when nodes settle, who
have nothing else to do.
"""

import heapq
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from strategies.consensus.batches import Due
from strategies.consensus.host import Host
from strategies.consensus.participant import MODEL, NEWCOMER, Mail, Participant
from strategies.consensus.schedule import Conditions, Event, Kind
from strategies.consensus.settling import is_empty
from strategies.randomness import rng

PERFECT = Conditions()
# Mails have the microsecond at which they were written as their number: so those of a window that
# is done again, by a process that has been killed, say, are newer than what it sent before. Those
# of the settling have the number of their round, above all others.
_NUMBERS_A_SECOND = 1e6
_SETTLING = 1 << 60
_ASK_AGAIN_SECONDS = 1.0
_LOOK_AGAIN_SECONDS = 0.01


class FreeHost(Host):
    """Runs participants as fast as they go."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._late: list[tuple[float, int, int, int, Mail]] = []  # heap

    def run_freely(
        self,
        steps: Mapping[int, range],
        interval: float,
        now: Callable[[], float],
        seed: int,
        *,
        link: Conditions = PERFECT,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        """Let every participant do its steps, one after the other in turn, and push to each
        neighbour with probability 1 / interval after each step. Mail is used when it is there.

        steps: by node, the numbers of the steps to do. now: seconds on the run's clock. link: its
        loss, duplication and delay are done to mail on purpose. over: whether to stop before all
        steps are done, asked after each turn. Mail that is on its way at the end goes on in the
        next call.
        """
        self._take_up_late()
        for turn in _turns(steps):
            self._collect(0.0)
            self._post_late(now())
            for index, number in turn:
                participant, t = self._participants[index], now()
                self._use_newest(participant, t)
                self._drop_silent(participant, t)
                step = Due(participant, Event(t, Kind.STEP, seq=number))
                self._batches.step([step], self._gradients)
                t = now()
                self._tell(t, "step", index, None, None)
                draws, neighbours = rng(seed, "push", index, number), participant.neighbours
                for j, draw in zip(neighbours, draws.random(len(neighbours)), strict=True):
                    if draw < 1 / interval:
                        fate = draws.random(4).tolist()
                        event = Event(t, Kind.SEND, j, int(max(0.0, t) * _NUMBERS_A_SECOND))
                        self._push(participant, event, link, fate)
            if over():
                break
        self._put_late_down(now())

    def settle_freely(
        self,
        rounds: range,
        now: Callable[[], float],
        seed: int,
        *,
        link: Conditions = PERFECT,
        patience: tuple[float, float],
    ) -> None:
        """Let every participant do these rounds of its settling: push to all neighbours, wait for
        what they push, use it. A guest has nothing to push before it has heard somebody.

        now, link: as in `run_freely`. patience: seconds for which a round's mail is waited for, in
        the first round of these, to which neighbours may come late, and in the others; 0 where it
        comes between two calls. Those who were silent in the end are not waited for, and nobody
        again whose mail has not come, before there is some.
        """
        self._take_up_late()
        awaited = {(j, p.node.index) for p in self._participants.values() for j in self._there(p)}
        numbers = range(_SETTLING + rounds.start, _SETTLING + rounds.stop)
        for number in numbers:
            if not any(patience):
                self._collect(0.0)
                self._use_all(now())
            for index, participant in self._participants.items():
                if is_empty(participant.node):
                    continue
                draws = rng(seed, "settle", index, number)
                for j in participant.neighbours:
                    event = Event(now(), Kind.SEND, j, number)
                    self._push(participant, event, link, draws.random(4).tolist())
            deadline = now() + patience[number > numbers[0]]
            self._collect(0.0)
            while (missing := awaited - self._come(number)) and now() < deadline:
                if self._exchange is not None:
                    self._collect(_LOOK_AGAIN_SECONDS)
                elif self._late:
                    time.sleep(_LOOK_AGAIN_SECONDS)
                else:
                    break
                self._post_late(now())
            awaited = (awaited - missing) | self._come(number)
            self._use_all(now())
        self._put_late_down(now())

    def _use_all(self, t: float) -> None:
        for participant in self._participants.values():
            self._use_newest(participant, t)

    def _there(self, participant: Participant) -> list[int]:
        """The neighbours that were there when it last heard any, however long that is ago; all, if
        it has heard none."""
        heard = participant.heard
        if not heard:
            return list(participant.neighbours)
        return [j for j, t in heard.items() if max(heard.values()) - t <= self._silence]

    def _come(self, number: int) -> set[tuple[int, int]]:
        """(sender, receiver) of the mails of this round, or of a later one, that have come."""
        return {
            (sender, participant.node.index)
            for participant in self._participants.values()
            for sender, seq in (*participant.mail, *participant.received.items())
            if seq >= number
        }

    def adopt(self, newcomers: Iterable[int], now: Callable[[], float], patience: float) -> None:
        """Let nodes that start where others are far already take a neighbour's model: ask all
        neighbours, and wait for the first answer, at most `patience` seconds."""
        waiting, began, asked = set(newcomers if self._adopts else ()), now(), -math.inf
        while waiting and self._exchange is not None and now() < began + patience:
            if now() > asked + _ASK_AGAIN_SECONDS:
                asked = now()
                for index in waiting:
                    for j in self._participants[index].neighbours:
                        self._post(Mail(index, j, NEWCOMER, {}, asked))
            self._collect(_ASK_AGAIN_SECONDS)
            for index in list(waiting):
                participant = self._participants[index]
                models = [m for m in participant.mail.values() if MODEL in m.vectors]
                if models:
                    participant.node.weights.copy_(models[0].vectors[MODEL])
                    self._begin(participant, now())
                    participant.part()
                    self._batches.refresh(participant)
                    self._tell(now(), "up", index, models[0].sender, None)
                    waiting.discard(index)

    def _push(
        self, participant: Participant, event: Event, link: Conditions, fate: Sequence[float]
    ) -> None:
        """Send as over a bad link: lost, late, twice."""
        lost, late, twice, later = fate
        if lost < link.loss:
            event = event._replace(kind=Kind.LOST)
        [(_, mail)] = self._written([Due(participant, event)])
        if event.kind is Kind.LOST:
            return
        delays = [late] if twice >= link.duplication else [late, later]
        for delay in delays:
            due = event.t + delay * link.delay_seconds
            heapq.heappush(self._late, (due, participant.node.index, event.peer, event.seq, mail))
        self._post_late(event.t)

    def _take_up_late(self) -> None:
        self._late = [(t, *m[:3], m) for p in self._participants.values() for t, m in p.late]
        heapq.heapify(self._late)

    def _put_late_down(self, t: float) -> None:
        self._collect(0.0)
        self._post_late(t)
        for participant in self._participants.values():
            own = participant.node.index
            participant.late = [(t, mail) for t, sender, *_, mail in self._late if sender == own]

    def _post_late(self, t: float) -> None:
        while self._late and self._late[0][0] <= t:
            self._post(heapq.heappop(self._late)[-1])

    def _use_newest(self, participant: Participant, t: float) -> None:
        """Use the newest mail of every neighbour, and drop what it has overtaken. That of those who
        settle already is kept, until the participant does so, too."""
        newest: dict[tuple[int, bool], Mail] = {}
        for mail in participant.mail.values():
            if mail.seq == NEWCOMER:
                if not mail.vectors:
                    model = {MODEL: participant.node.weights.clone()}
                    self._post(Mail(participant.node.index, mail.sender, NEWCOMER, model, t))
                continue
            found = newest.setdefault((mail.sender, mail.settles), mail)
            if mail.seq > found.seq:
                newest[mail.sender, mail.settles] = mail
        participant.mail.clear()
        for (sender, settles), mail in newest.items():
            if settles == participant.settles:
                self._use([(participant, mail, t)])
            elif settles:
                participant.mail[sender, mail.seq] = mail


def _turns(steps: Mapping[int, range]) -> Iterator[list[tuple[int, int]]]:
    """[(node, number of its step) ...] of the first step of everybody, then of the second ..."""
    for position in range(max((len(each) for each in steps.values()), default=0)):
        yield [(i, each[position]) for i, each in steps.items() if position < len(each)]
