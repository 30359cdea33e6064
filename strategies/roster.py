"""Who takes part: nodes are asked who they are, and participants are given hosts."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from strategies.checks import last_line
from strategies.condition import told
from strategies.dispatch import NOT_TAKEN, Dispatcher, online, registered_name
from strategies.errors import ConfigError, DataError, EdgeFlError
from strategies.fingerprint import fingerprint
from strategies.link.sessions import SessionGrid
from strategies.messages.codec import message_of, records_of
from strategies.messages.queries import Hello, Prepared, PrepareOrder
from strategies.problem import Problem, task_of
from strategies.site import Site, server_site

_POLL_SECONDS = 0.05
_REMIND_SECONDS = 30.0


class _Wait:
    """For nodes to come: no longer than `timeout` seconds, with a word now and then."""

    def __init__(self, timeout: float, say: Callable[[str], None]) -> None:
        self._say, now = say, time.monotonic()
        self._deadline, self._reminder = now + timeout, now + _REMIND_SECONDS

    def pause(self, news: str, failure: str) -> None:
        """Wait a little longer. Raises ConfigError with `failure` when the time is over."""
        now = time.monotonic()
        if now > self._deadline:
            raise ConfigError(failure)
        if now > self._reminder:
            self._say(f"waiting for {news}")
            self._reminder = now + _REMIND_SECONDS
        time.sleep(_POLL_SECONDS)


@dataclass(frozen=True)
class SuperNode:
    """A SuperNode. `participant` is the one it is bound to, or None if it can host any of them."""

    node_id: int
    name: str
    participant: int | None = None

    def hosts(self, participant: int) -> bool:
        return self.participant is None or self.participant == participant


def gather(
    grid: Grid,
    problem: Problem,
    timeout: float,
    emit: Callable[..., object],
    *,
    names: Sequence[str] = (),
    others: Collection[str] = (),
    least: int = 0,
    besides: Mapping[str, Any] | None = None,
) -> tuple[tuple[SuperNode, ...], dict[int, int]]:
    """The hosts that a run's participants have, each prepared, and how many training images every
    participant has. What is to be said is emitted as warnings, and how the devices are as an event
    "devices". names, others, least: see `assemble_roster`, which raises, as `prepare_hosts` does,
    what this raises. besides: of the `PrepareOrder`."""

    def say(message: str) -> None:
        emit("warning", message=message)

    found: dict[str, Mapping[str, Any]] = {}
    participants = problem.participants
    hosts = assemble_roster(grid, participants, timeout, say, least, names, others)
    data = task_of(problem).digest
    examples = prepare_hosts(
        grid, hosts, participants, timeout, say, least, data, found, besides or {}
    )
    if found:
        emit("devices", devices=found)
    return hosts, examples


def assemble_roster(
    grid: Grid,
    participants: int,
    timeout: float,
    say: Callable[[str], None],
    least: int = 0,
    names: Sequence[str] = (),
    others: Collection[str] = (),
) -> tuple[SuperNode, ...]:
    """Wait for enough nodes and return them.

    In a simulation a node can host any participant, so one is enough. Devices host one participant
    each, in the order of `names`, or of their own names where it is not known who they should be;
    there must be as many as participants. Of devices that have sessions `least` are enough, if it
    is not 0: the others are hosts that may come later. Devices called one of `others` take no part,
    and are not asked. In a deployment a node is who it was registered as, whatever it says, and
    what others than the `names` answer ends no run.

    Raises EdgeFlError when too few come within `timeout` seconds, two have one name, or a node runs
    other code.
    """
    if isinstance(grid, SessionGrid):
        _await_devices(grid, least or participants, timeout, say)
        return tuple(SuperNode(i + 1, name, i) for i, name in enumerate(grid.names))
    known: dict[int, Hello] = {}
    asked: dict[str, int] = {}
    dispatcher, wait, site = Dispatcher(grid), _Wait(timeout, say), server_site()
    left_out: set[int] = set()
    while True:
        there = set(online(grid, others)) - left_out
        for node in there - known.keys() - dispatcher.busy():
            asked[dispatcher.send(Message(RecordDict(), node, "query.hello"), timeout)] = node
        for reply in dispatcher.collect():
            node = asked.pop(reply.metadata.reply_to_message_id)
            if reply.has_error() and reply.error.code == NOT_TAKEN:
                continue  # it has gone meanwhile
            registered = _registered(grid, site, node)
            try:
                answer = _hello(reply, node)
                known[node] = _identified(answer, registered, site) if site else answer
            except EdgeFlError as error:
                if not (site and names) or registered in names:
                    raise
                say(f"{registered or f'node {node}'} takes no part: {error}")
                left_out.add(node)
        there -= left_out
        answers = {node: known[node] for node in there & known.keys()}
        simulated = [node for node, answer in answers.items() if answer.partition_id >= 0]
        if simulated and len(answers) == len(there):
            ordered = sorted(simulated, key=lambda node: answers[node].partition_id)
            return tuple(SuperNode(node, f"host-{answers[node].partition_id}") for node in ordered)
        called = _called(answers, names)
        # Without names it must not depend on who answers first.
        settled = bool(names) or len(answers) == len(there)
        if not simulated and settled and len(called) >= participants:
            ordered = names or sorted(called)
            return tuple(
                SuperNode(called[name], name, participant)
                for participant, name in enumerate(ordered[:participants])
            )
        here = ", ".join(sorted(called)) or "none"
        lacking = ", ".join(name for name in names if name not in called)
        here += f"; lacking: {lacking}" if lacking else ""
        wait.pause(
            f"nodes; here: {here}",
            f"participants={participants}, but only {len(called)} node(s) came within "
            f"{timeout:g} s: {here}; start the others, or use fewer participants",
        )


def _registered(grid: Grid, site: Site | None, node: int) -> str:
    """The name of a device of the site, as the SuperLink knows its key; "" of others."""
    if site is None:
        return ""
    called = registered_name(grid, node)
    return called if called in site.devices else ""


def _identified(answer: Hello, registered: str, site: Site) -> Hello:
    """What a node of a deployment answers, as the device that it is. EdgeFlError for one that says
    that it is another."""
    if site.credentials and not registered and answer.name in site.devices:
        raise EdgeFlError(f"it calls itself {answer.name}, and is not registered so")
    return replace(answer, partition_id=-1, name=registered or answer.name)


def _called(answers: Mapping[int, Hello], names: Sequence[str]) -> dict[str, int]:
    """{name: node} of those that are asked for. ConfigError for two of one name."""
    called: dict[str, int] = {}
    for node, answer in sorted(answers.items()):
        name = answer.name or str(node)
        if name in called:
            raise ConfigError(
                f"two devices are called {name!r}; `name` in a node-config is one's own"
            )
        if not names or name in names:
            called[name] = node
    return called


def _await_devices(
    grid: SessionGrid, least: int, timeout: float, say: Callable[[str], None]
) -> None:
    wait = _Wait(timeout, say)
    while len(here := grid.here()) < least:
        lacking = [name for name in grid.names if name not in here]
        reasons = grid.unreachable()
        told = ", ".join(f"{n} ({reasons[n]})" if n in reasons else n for n in lacking)
        wait.pause(
            f"devices; lacking: {told}",
            f"only {len(here)} of {least} devices came within {timeout:g} s; lacking: {told}; "
            f"start them, or use min-participants",
        )
    if lacking := [name for name in grid.names if name not in here]:
        say(f"starting without {', '.join(lacking)}, who may come later")


def prepare_hosts(
    grid: Grid,
    hosts: Sequence[SuperNode],
    participants: int,
    timeout: float,
    say: Callable[[str], None],
    least: int = 0,
    data: str = "",
    found: dict[str, Mapping[str, Any]] | None = None,
    besides: Mapping[str, Any] = MappingProxyType({}),
) -> dict[int, int]:
    """Let every host that is there load its model and data, so that what is wrong with them shows
    before the first round, and the first round takes no longer than the others. `data` is the
    digest of the run's data set: who reads another one cannot take part. `found` gets how the
    devices are, by name. besides: what else is in the `PrepareOrder`.

    Returns how many training images each participant has (0: not known yet). Raises DataError that
    names the hosts that cannot take part, with their reasons - unless `least` is not 0, and so many
    others can.
    """
    dispatcher, faults, asked = Dispatcher(grid), [], {}
    faulty: set[str] = set()
    examples = dict.fromkeys(range(participants), 0)
    here = set(grid.get_node_ids())
    for position, host in enumerate(hosts):
        if host.node_id not in here and isinstance(grid, SessionGrid):
            continue
        own = [p for p in range(participants) if host.participant == p]
        some = own or list(range(position, participants, len(hosts)))
        order = PrepareOrder(some, data, **besides)
        message = Message(records_of(order), host.node_id, "query.prepare")
        asked[dispatcher.send(message, timeout)] = (host, some)
    while dispatcher.busy():
        time.sleep(_POLL_SECONDS)
        for reply in dispatcher.collect():
            host, some = asked[reply.metadata.reply_to_message_id]
            try:
                answer = _prepared(reply)
                examples |= dict(zip(some, answer.examples, strict=True))
                for line in answer.unused[:3]:
                    say(f"{host.name}: {last_line(line)}")
                if found is not None and answer.condition and own:
                    count = sum(examples[p] for p in some)
                    place = {"participant": host.participant, "examples": count}
                    found[host.name] = {**told(answer.condition), **place}
            except (KeyError, TypeError, ValueError) as error:
                faulty.add(host.name)
                faults.append(f"{host.name}: {last_line(str(error))}")
    all_faults = "; ".join(sorted(faults))
    if faults and (not least or len(asked) - len(faulty) < least):
        raise DataError(f"not every host can take part: {all_faults}")
    if faults:
        say(f"starting without some devices: {all_faults}")
    return examples


def _prepared(reply: Message) -> Prepared:
    """What a host answers. Raises ValueError with its reason if it cannot take part."""
    if reply.has_error():
        raise ValueError(reply.error.reason)
    answer = message_of(Prepared, reply.content)
    if answer.fault:
        raise ValueError(answer.fault)
    if any(count < 0 for count in answer.examples):
        raise ValueError("it does not tell how many images it has")
    return answer


def _hello(reply: Message, node: int) -> Hello:
    """What a node answers. EdgeFlError if it runs other code, which may say other things."""
    if reply.has_error():
        raise EdgeFlError(f"node {node} could not answer: {last_line(reply.error.reason)}")
    told: Any = reply.content.get("config", {})
    if told.get("fingerprint") != fingerprint():
        raise EdgeFlError(
            f"a node runs other code than the server, from {told.get('code')}: in a simulation, "
            f"stop the SuperLink (it keeps the directory and environment it was started in) and "
            f"run again; `edge-fl run` starts a fresh one each time"
        )
    try:
        return message_of(Hello, reply.content)
    except ValueError as error:
        raise EdgeFlError(f"node {node} has answered {last_line(str(error))}") from error
