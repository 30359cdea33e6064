"""Neighbours' mail in fewer bits: the limit is that of whole mail, whatever happens to the mail."""

from typing import Any

import numpy as np
import pytest
import torch

from fl_app.config import configure
from strategies.consensus import rounded
from strategies.consensus.algorithms import ALGORITHMS, Settings, make_algorithm
from strategies.consensus.byzantine import Attacker, Clipped
from strategies.consensus.node import Node, Tensors
from strategies.consensus.rounded import IDS, Rounded, beneath
from strategies.consensus.rows import Link, Rows
from strategies.consensus.topologies import build_topology
from strategies.contracts.convex import SETTINGS, bits_of, disturbed
from strategies.errors import ConfigError
from strategies.precision import CODES, STEPS
from tests.test_consensus_convex import STRESSES, best_error, error, simulation

LENGTH = 300
ROUNDABLE = sorted(name for name, entry in ALGORITHMS.items() if not entry.unrounded)


def few_bits(algorithm: str, precision: str = "int8", **options: Any) -> Any:
    return simulation(algorithm, changes={"mail_precision": precision}, **options)


# ------------------------------------------------------------------------------- the limit is exact


@pytest.mark.parametrize(
    ("algorithm", "precision", "stress"),
    [
        ("ecl", "int8", "30 % lost"),
        ("ecl", "bfloat16", "half of them twice"),
        ("pdmm-isvr", "int8", "delays up to 12 steps"),
        ("admm-isvr", "int8", "one-way pushes"),
        ("pdmm-sgd", "int8", "none"),
        ("admm-sgd", "int8", "none"),
    ],
)
def test_exact(algorithm: str, precision: str, stress: str) -> None:
    found = few_bits(algorithm, precision, size=4, conditions=STRESSES[stress])
    assert best_error(found) < 1e-9


def test_exact_after_neighbours_have_lost_what_was_agreed_on() -> None:
    """One starts again with nothing, a link is cut until both ends give each other up."""
    outages = "crash:2@100-150, cut:0-1@90-200"
    found = few_bits("ecl", size=4, outages=outages, host_options={"silence": 30.0})
    assert best_error(found) < 1e-9


def test_without_bases_an_error_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: rounded models instead of rounded differences."""
    monkeypatch.setattr(rounded._State, "agree", lambda *_: None)
    assert error(few_bits("ecl", size=4).run(4)) > 1e-4


@pytest.mark.parametrize("algorithm", ["d-psgd", "qg-dsgdm", "decentlam", "gossip"])
def test_what_is_biased_ends_where_it_does_with_whole_mail(algorithm: str) -> None:
    whole, few = simulation(algorithm, size=4).run(2), few_bits(algorithm, size=4).run(2)
    apart = max(
        (a - b).norm() / a.norm() for a, b in zip(whole.models(), few.models(), strict=True)
    )
    assert apart < 1e-2 * error(whole)


def test_the_same_bits_for_any_number_of_hosts() -> None:
    found = [
        disturbed("ecl", hosts=hosts, stress="outages", changes={"mail_precision": "int8"}).run(3)
        for hosts in (1, 3)
    ]
    assert bits_of(found[0]) == bits_of(found[1])


# ------------------------------------------------------------------------- two ends of a link


class Pair:
    """Nodes 0 and 1 that gossip, in int8."""

    def __init__(self, precision: str = "int8") -> None:
        settings = Settings(**SETTINGS, mail_precision=precision)
        self.algorithm = make_algorithm("gossip", settings, build_topology("chain", 2))
        self.nodes = [Node(i, torch.randn(LENGTH)) for i in range(2)]
        for node in self.nodes:
            self.algorithm.start(node)
        self.rows = Rows(self.nodes, [[1], [0]])
        self.number = 0

    def write(self, node: int) -> Tensors:
        self.number += 1
        found = self.algorithm.message(self.rows, [Link(node, 1 - node)], [self.number])
        return {name: matrix[0] for name, matrix in found.items()}

    def read(self, node: int, mail: Tensors) -> None:
        self.algorithm.receive(self.rows, [Link(node, 1 - node)], [self.number], [mail])

    def error(self, mail: Tensors) -> float:
        """How far what node 1 reads of `mail` is from what node 0 is."""
        node, other = self.nodes[1].weights, self.nodes[0].weights
        node.copy_(other)
        self.read(1, mail)
        return 2 * float((node - other).abs().max())  # gossip goes half of the way

    def answer(self) -> None:
        """Node 0 hears from node 1, and keeps its model."""
        before = self.nodes[0].weights.clone()
        self.read(0, self.write(1))
        self.nodes[0].weights.copy_(before)

    def agreed(self) -> Tensors:
        """The first mail of node 0 whose base is one of its earlier mails."""
        for _ in range(3):
            self.read(1, mail := self.write(0))
            if int(mail[IDS][0]):
                return mail
            self.read(0, self.write(1))
        raise AssertionError


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_mail_gets_more_precise_with_every_base(precision: str) -> None:
    pair = Pair(precision)
    first = pair.error(pair.write(0))
    pair.answer()
    second = pair.error(pair.write(0))
    assert 0 < 100 * second < first


def test_who_has_not_the_base_uses_nothing_and_is_sent_what_needs_none() -> None:
    pair = Pair()
    pair.agreed()
    pair.algorithm.disconnect(pair.nodes[1], 0)
    assert not [name for name in pair.nodes[1].vectors if name.startswith("mail")]
    pair.algorithm.connect(pair.nodes[1], 0)
    before = pair.nodes[1].weights.clone()
    pair.read(1, mail := pair.write(0))
    assert int(mail[IDS][0]) != 0
    assert torch.equal(pair.nodes[1].weights, before)
    pair.read(0, pair.write(1))
    mail = pair.write(0)
    assert int(mail[IDS][0]) == 0
    pair.read(1, mail)
    assert not torch.equal(pair.nodes[1].weights, before)


def test_an_offer_that_nobody_takes_is_replaced() -> None:
    pair = Pair()
    offers = [number for number in range(80) if int(pair.write(0)[IDS][1])]
    assert np.diff(offers).tolist() == [5, 9, 17, 33]


@pytest.mark.parametrize(
    "changes",
    [
        {STEPS: torch.full((2,), 3e38)},  # 127 times that is infinite
        {IDS: torch.tensor([77, 0, 0])},
        {IDS: torch.tensor([-(2**63), 2**63 - 1, -1])},
    ],
)
def test_forged_mail_is_not_used(changes: Tensors) -> None:
    pair = Pair()
    pair.agreed()
    before = pair.nodes[1].weights.clone()
    mail = {**pair.write(0), **changes}
    mail[CODES] = torch.full_like(mail[CODES], 127)
    pair.read(1, mail)
    assert torch.equal(pair.nodes[1].weights, before)


def test_a_model_that_is_not_finite_is_no_base() -> None:
    pair = Pair()
    pair.nodes[0].weights[3] = torch.inf
    assert int(pair.write(0)[IDS][1]) == 0


# ---------------------------------------------------------------------------------------- who may


def test_mail_is_as_long_as_it_says() -> None:
    for precision, size in (("bfloat16", 2 * LENGTH), ("int8", LENGTH + 4 * 2)):
        pair = Pair(precision)
        mail = pair.write(0)
        found = {name: (len(vector), vector.dtype) for name, vector in mail.items()}
        assert found == pair.algorithm.lengths(LENGTH, 0, 1, 1)
        assert sum(v.numel() * v.element_size() for v in mail.values()) == size + 3 * 8


def test_others_are_refused_with_the_reason() -> None:
    assert ROUNDABLE == [
        "admm-isvr", "admm-sgd", "d-psgd", "decentlam", "ecl", "gossip", "pdmm-isvr", "pdmm-sgd",
        "qg-dsgdm",
    ]  # fmt: skip
    for name in ALGORITHMS.keys() - {*ROUNDABLE}:
        values = {"mode": "consensus", "consensus.algorithm": name, "mail-precision": "int8"}
        with pytest.raises(ConfigError, match=f"mail-precision='int8'.*for {name}: .* are: admm"):
            configure(values)
    allowed = {"mode": "consensus", "mail-precision": "int8"}
    rounds = allowed | {"consensus.exchange": "synchronous"}
    for values in (allowed, rounds, rounds | {"consensus.algorithm": "admm-sgd"}):
        configure(values)
    with pytest.raises(ConfigError, match="for pdmm-sgd with theta=1 in synchronous rounds"):
        configure(rounds | {"consensus.algorithm": "pdmm-sgd"})


def test_why_those_with_theta_1_are_refused_in_rounds() -> None:
    """Nothing that disturbs them brings their mail to rest."""
    assert error(few_bits("pdmm-isvr", size=4, synchronous=True).run(6)) > 1e-9
    assert best_error(few_bits("admm-isvr", size=4, synchronous=True)) < 1e-9


def test_liars_lie_before_their_mail_is_rounded() -> None:
    settings = Settings(**SETTINGS, mail_precision="int8", clip=2.0)
    algorithm: Any = make_algorithm("ecl", settings, build_topology("ring", 4))
    assert isinstance(algorithm, Rounded)
    assert isinstance(algorithm.inner, Clipped)
    liar: Any = beneath(algorithm, Attacker, "noise", 5.0, 0)
    assert isinstance(liar, Rounded)
    assert isinstance(liar.inner, Attacker)
