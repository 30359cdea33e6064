"""`edge-fl check algorithm NAME`, and of other parts: whether it keeps to its contract."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from fl_app.config import RunConfig, configure
from fl_app.launch.values import own_name, parse_assignments
from fl_app.problem import problem_of
from fl_app.settings import averaging_of
from strategies.contracts import ContractError, algorithms, rules, topologies
from strategies.errors import ConfigError, EdgeFlError
from strategies.plugins import told_as
from strategies.problem import split_of
from strategies.rules import make_rule

Trial = tuple[str, Callable[[], None]]  # what is tried, in words


def try_part(kind: str, name: str, words: Sequence[str]) -> Iterator[str]:
    """A line for each clause of the contract. words: further `key=value`. Raises ConfigError for
    what is none of its kind, and in the end if a clause did not hold."""
    key, trials = KINDS[kind]
    name = own_name(key, name)
    mode = {"mode": "consensus"} if key.startswith("consensus.") else {}
    config = configure({key: name, **mode, **parse_assignments(words)})
    broken = 0
    for what, attempt in trials(name, config):
        try:
            with told_as("it failed", ConfigError):
                attempt()
        except EdgeFlError as error:
            broken += 1
            yield f"no   {what}: {error}"
        else:
            yield f"yes  {what}"
    if broken:
        raise ConfigError(f"{name} breaks {broken} clause(s) of what a {kind} keeps to")


def _words(clause: Callable[..., None]) -> str:
    return clause.__name__.replace("_", " ")


def _algorithm(name: str, _: RunConfig) -> Iterator[Trial]:
    variants = tuple(algorithms.variants(name))
    variants[0].make(variants[0].topology)  # what cannot be made is told at once

    def attempt(clause: algorithms.Clause) -> None:
        for subject in variants if clause in algorithms.QUICK else variants[:1]:
            clause(subject)

    for clause in algorithms.CLAUSES:
        yield _words(clause), partial(attempt, clause)


def _rule(_: str, config: RunConfig) -> Iterator[Trial]:
    settings = averaging_of(config)
    make_rule(settings)
    for clause in rules.CLAUSES:
        yield _words(clause), partial(clause, lambda: make_rule(settings))


def _topology(name: str, config: RunConfig) -> Iterator[Trial]:
    subject = topologies.Subject(name, config.participants)
    subject.make()
    for clause in topologies.CLAUSES:
        yield _words(clause), partial(clause, subject)


def _partition(_: str, config: RunConfig) -> Iterator[Trial]:
    problem = problem_of(config)
    first = split_of(problem).participants

    def again() -> None:
        found = split_of.__wrapped__(problem).participants
        if not all(np.array_equal(a, b) for a, b in zip(first, found, strict=True)):
            raise ContractError("asked again with the same seed, it is another division")

    sizes = ", ".join(str(len(part)) for part in first)
    yield f"every participant has examples of its own: {sizes}", lambda: None
    yield "the seed decides and nothing else", again


KINDS: dict[str, tuple[str, Callable[[str, RunConfig], Iterator[Trial]]]] = {
    "algorithm": ("consensus.algorithm", _algorithm),
    "partition": ("partition", _partition),
    "rule": ("averaging", _rule),
    "topology": ("consensus.topology", _topology),
}
