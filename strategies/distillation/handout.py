"""Which host does which job, and which message has which jobs."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from strategies.roster import SuperNode
from strategies.schedule import Job


class Handout:
    """The jobs that are due and not over: those for which no host was free yet, those in messages
    that are about to be sent, and the others, by message. hosts: of the run."""

    def __init__(self) -> None:
        self.hosts: tuple[SuperNode, ...] = ()
        self._waiting: list[Job] = []
        self._leaving: dict[tuple[int, int], Job] = {}
        self._sent: dict[str, list[Job]] = {}

    def share(
        self, due: Sequence[Job], expects: Callable[[Job], bool], busy: Collection[int]
    ) -> Iterator[tuple[SuperNode, list[Job]]]:
        """The hosts that are free, and what each gets of the jobs that wait and are `due`: jobs
        from one version, which travels once. busy: nodes that have a message. expects: whether a
        job is still waited for; what was given up meanwhile may start from a version that is not
        there any more."""
        self._waiting = [job for job in self._waiting if expects(job)] + list(due)
        free = [host for host in self.hosts if host.node_id not in busy] if self._waiting else []
        for position, host in enumerate(free):
            if jobs := self._of_host(host, len(free) - position):
                self._leaving |= {job.key: job for job in jobs}
                yield host, jobs

    def take(self, keys: Iterable[tuple[int, int]]) -> list[Job]:
        """The jobs of a message that is about to be sent; to be asked for once."""
        return [self._leaving.pop(key) for key in keys]

    def sent(self, message_id: str, jobs: list[Job]) -> None:
        """The message with that id has these jobs."""
        self._sent[message_id] = jobs

    def answered(self, message_id: str) -> list[Job]:
        """The jobs of the message that is answered; to be asked for once."""
        return self._sent.pop(message_id)

    def name_of(self, participant: int) -> str:
        """Of the device that is bound to a participant, "" if there is none."""
        return next((host.name for host in self.hosts if host.participant == participant), "")

    def _of_host(self, host: SuperNode, hosts_left: int) -> list[Job]:
        mine = [job for job in self._waiting if host.hosts(job.participant)]
        mine = [job for job in mine if job.base_version == mine[0].base_version]
        mine = mine[: math.ceil(len(mine) / hosts_left)] if host.participant is None else mine
        self._waiting = [job for job in self._waiting if job not in mine]
        return mine
