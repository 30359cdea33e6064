"""Mail at the pace of its link: as old as the link makes it, and no older."""

import heapq
from collections.abc import Callable
from itertools import count

import pytest

from strategies.carriers.paced import LONGEST, SHORTEST, PacedMail

SIZE = 1.2  # MB


class Link:
    """Carries mails one after the other: `rate` MB a second, `latency` seconds; and their receipts
    back. A clock of its own. lost: numbers of mails that do not come."""

    def __init__(self, rate: float, latency: float, lost: tuple[int, ...] = ()) -> None:
        self.rate, self.latency, self.lost = rate, latency, lost
        self.t = self.free = 0.0
        self.ages: list[float] = []
        self.came: list[int] = []
        self.under_way = 0
        self.crowd: list[int] = []  # how many mails were under way, with each
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = count()
        self.mail = PacedMail(self.send, lambda: self.t)

    def at(self, t: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (t, next(self._count), event))

    def send(self, mail: tuple[int, float]) -> bool:
        number, written = mail
        self.under_way += 1
        self.crowd.append(self.under_way)
        self.free = max(self.free, self.t) + SIZE / self.rate

        def arrive() -> None:
            self.under_way -= 1
            if number not in self.lost:
                self.came.append(number)
                self.ages.append(self.t - written)
                self.at(self.t + self.latency, lambda: self.mail.acknowledge("b", number))

        self.at(self.free + self.latency, arrive)
        return True

    def run(self, seconds: float, every: float) -> None:
        """A mail every so many seconds."""
        numbers = count()

        def post() -> None:
            number = next(numbers)
            self.mail.post("b", number, (number, self.t))
            self.mail.tend()
            if self.t + every < seconds:
                self.at(self.t + every, post)

        self.at(0.0, post)
        while self._events:
            self.t, _, event = heapq.heappop(self._events)
            event()


@pytest.mark.parametrize("rate", [0.1, 0.25, 1.0, 100.0])
def test_mail_is_as_old_as_the_link_makes_it(rate: float) -> None:
    link, every = Link(rate, 0.1), 0.5
    link.run(300.0, every)
    least = SIZE / rate + link.latency
    begin = 8  # mails until it is known how slow the link is; and nobody overtakes the last one
    assert max(link.ages[begin:-1]) <= least + every + 1e-9
    assert link.crowd[-1] == 1
    assert link.crowd.count(1) >= len(link.crowd) - begin
    # And the link is used but for the way of the receipts, and the wait for the next mail.
    sent = len(link.ages)
    assert sent >= min(300.0 / (least + link.latency + every), 300.0 / every) - 2
    assert link.came == sorted(link.came)
    assert link.mail.lost <= 4
    assert sent + link.mail.overtaken == pytest.approx(600, abs=1)


def test_without_receipts_it_would_get_older_and_older() -> None:
    """The same link, fed as fast as mails are written: the control of the test above."""
    link = Link(0.25, 0.1)
    link.mail.post = lambda name, number, mail: link.send(mail)  # type: ignore[assignment]
    link.run(300.0, 0.5)
    assert max(link.ages) > 100 * SIZE / 0.25


def test_mail_that_is_lost_holds_up_the_next_for_as_long_as_receipts_take() -> None:
    link = Link(1.0, 0.1, lost=(40, 41, 42))
    link.run(60.0, 0.5)
    assert link.mail.lost <= 2  # one of the beginning; the two after it were never sent
    assert not {40, 41, 42} & set(link.came)
    gaps = [b - a for a, b in zip(link.came, link.came[1:], strict=False)]
    round_trip = SIZE / 1.0 + 2 * 0.1
    assert max(gaps) * 0.5 <= 5 * round_trip


def test_a_receiver_that_is_gone_costs_a_mail_now_and_then() -> None:
    link = Link(1.0, 0.1, lost=tuple(range(10_000)))
    link.run(600.0, 0.5)
    sent = 1200 - link.mail.overtaken
    assert 30 < sent < 70


def test_the_newest_waits_and_lanes_are_apart() -> None:
    sent, now = list[str](), [0.0]

    def send(mail: str) -> bool:
        sent.append(mail)
        return True

    mail = PacedMail(send, lambda: now[0])
    for number, text in ((1, "a1"), (2, "a2"), (4, "a4"), (3, "a3")):  # the last came late
        mail.post("a", number, text)
    mail.post("b", 1, "b1")
    assert sent == ["a1", "b1"]
    mail.acknowledge("a", 2)  # not what is under way
    mail.acknowledge("c", 1)  # nobody
    assert sent == ["a1", "b1"]
    mail.acknowledge("a", 1)
    mail.acknowledge("a", 1)
    assert sent == ["a1", "b1", "a4"]
    assert (mail.overtaken, mail.lost) == (2, 0)
    mail.post("b", 2, "b2")
    mail.tend()
    assert len(sent) == 3
    now[0] += SHORTEST
    mail.tend()
    assert sent[3:] == ["b2"]


def test_who_is_back_is_sent_the_newest_at_once() -> None:
    sent, now = list[int](), [0.0]

    def send(number: int) -> bool:
        sent.append(number)
        return True

    mail = PacedMail(send, lambda: now[0])
    for number in range(195):
        mail.post("a", number, number)
        now[0] += 0.1
    assert sent[-1] != number
    mail.hear("b")
    assert sent[-1] != number
    now[0] += SHORTEST  # less than it would wait for who is gone
    assert now[0] - 0.1 * sent[-1] < LONGEST
    mail.hear("a")
    assert sent[-1] == number


def test_what_the_link_does_not_take_holds_up_nothing() -> None:
    taken = iter([False, True])
    sent = []

    def send(mail: int) -> bool:
        sent.append(mail)
        return next(taken)

    mail = PacedMail(send)
    mail.post("a", 1, 1)
    mail.post("a", 2, 2)
    assert sent == [1, 2]
