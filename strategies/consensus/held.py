"""Edge-consensus learning whose corrections are held between two exchanges.

In `ECL` an anchor s_ij stands still while the model moves, so that each local step pulls the model
back to where its neighbours were, and what the anchor says of their gradients changes with it. Here
the *offset* a_ij = s_ij - w_i stands still, and models are averaged at once when mail comes:

    local step   w_i  <- w_i - eta M_i + sum_j eta alpha_ij a_ij      a_ij <- (1 - phi eta) a_ij
    message      m_ij  = w_i - a_ij                                   (= 2 w_i - s_ij)
    on receipt   e     = m_ji - w_i - a_ij                            (= m_ji - s_ij)
                 a_ij <- a_ij + theta e / c                   w_i <- w_i + kappa e / 2
                 c     = max(1, min(1, K eta alpha_ij) (1 + age / K))

In a swap between i and j that nothing disturbs the offsets are opposite, a_ij = -a_ji, so that
e = w_j - w_i: kappa = 1 takes both to the mean of their models, as gossip does, and what is left is
an integral controller, whose corrections grow until models no longer drift apart between swaps.
What mail that is lost or late makes of a_ij + a_ji shrinks by 1 - 2 theta with every swap, and
nothing has to add up. The fixed point is that of `ECL`: w_i = w_j, and sum_j alpha_ij a_ij is p_i
times node i's gradient.

age is how many local steps i has done since the mail was written: nothing on prompt links. e
compares where j was then with where i is now, so it holds what both have moved since, too. An
integral controller that is fed with such differences runs away when its gain times their age is too
large; so an old mail changes a correction less, where c > 1. From one exchange to the next a
correction moves the model by K eta alpha_ij times itself: that is the gain. Where it is small no
care is needed, and it would cost: with less than theta = 1/2 what a lost mail has left in a_ij +
a_ji stays longer. Averaging needs none: w_i goes to a point between its own and one where j has
been.

With theta = 1/2, kappa = 1, phi = 0, no momentum and one pair of nodes it is ProxSkip on the
constraint w_i = w_j, which is Scaffnew (Mishchenko, Malinovsky, Stich and Richtarik, ICML 2022,
arXiv 2202.09357): with h_i = alpha a_ij a step is x - eta (g - h), and a swap makes both models
their mean and adds (p / eta) (x' - x) to h, where alpha = p / eta and p = 1 / K, the chance of an
exchange in a step (`mult` = (K - 1) / K). Known of it, with steps eta <= 1 / L of exact gradients:
|x - x*|^2 + |h - h*|^2 / alpha^2 shrinks by 1 - min(eta mu, 1 / K^2) a step in the mean, so that up
to K = sqrt(L / mu) fewer exchanges cost no more steps. On a graph every edge is such a constraint
with a correction of its own and a chance of its own, a sum of terms with randomised proximal steps
(Condat and Richtarik, arXiv 2207.12891, treat such sums); no rate is proven here for it. Lost and
late mail, which leave the two ends of an edge different, are not in those papers. While gradients
are there to damp the offsets that is mended; as steps shrink it is not, and under heavy loss they
run away, unless theta or the penalty is smaller (docs/consensus.md).
(Takezawa et al. 2022, arXiv 2205.11979, read ECL as gossip with corrected gradients.)

A correction is a difference of gradients at the place where it was learnt. phi says how fast it is
forgotten as the model goes elsewhere, which takes long steps. phi = 0 is exact with any step. With
phi > 0 the limit is exact only as steps shrink to nothing (`cosine`, ever longer runs); at a finite
length an error is left, and with a constant step one that stays. phi is per unit of step size:
between two exchanges (1 - phi eta)^K is kept, with eta = 0.2 and K = 6 a quarter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from strategies.consensus.descent import LocalSGD
from strategies.consensus.ecl import Penalty
from strategies.consensus.node import Node, Tensors
from strategies.consensus.rows import Chosen, Link, Rows, changing, column, together


@dataclass(frozen=True)
class HeldECL(LocalSGD):
    """Edge-consensus learning with held corrections; a node keeps degree + 2 vectors, and
    a number for each neighbour.

    penalty, theta: as in `ECL`. kappa: in [0, 1], how far mail takes the model to the mean of the
    two ends. forget: phi >= 0, per unit of step size; phi eta of an offset is forgotten in a step.
    """

    penalty: Penalty
    theta: float
    kappa: float
    forget: float
    interval: float

    @property
    def row_links(self) -> tuple[str, ...]:
        return ("offset", "kept")

    def connect(self, node: Node, j: int) -> None:
        # a_ij is kept * offset: forgetting takes one number instead of a vector in every step.
        kept = torch.ones(1, dtype=node.weights.dtype)
        node.links[j] = {"offset": torch.zeros_like(node.weights), "kept": kept}

    def step(self, rows: Rows, chosen: Chosen, gradients: torch.Tensor, rate: float) -> None:
        forgetting = max(0.0, 1 - self.forget * rate)
        with self.descent(rows, chosen, gradients, rate) as weights:
            for slot in chosen.slots:
                if rate not in slot.constants:
                    pulls = [[self.penalty.pull(i, j, rate)] for i, j in slot.ends]
                    slot.constants[rate] = torch.tensor(pulls, dtype=torch.float64)
                with changing(rows.links["kept"], slot.host_links) as kept:
                    factors = column(slot.constants[rate] * kept, weights)
                    kept.mul_(forgetting)
                with changing(weights, slot.nodes) as some:
                    some.addcmul_(rows.links["offset"][slot.links], factors)

    def message(self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int]) -> Tensors:
        at = rows.at(ends)
        weights = rows.weights[at.nodes]
        kept = column(rows.links["kept"][at.host_links], weights)
        return {"reflection": torch.addcmul(weights, rows.links["offset"][at.links], -kept)}

    def receive(
        self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int], mails: Sequence[Tensors]
    ) -> None:
        at = rows.at(ends)
        reflection = together([mail["reflection"] for mail in mails])
        with (
            changing(rows.weights, at.nodes) as weights,
            changing(rows.links["offset"], at.links) as offset,
            changing(rows.links["kept"], at.host_links) as numbers,
        ):
            kept = column(numbers, weights)
            thetas = column([self._theta(rows.node(end), end.peer) for end in ends], weights)
            change = (reflection - weights).addcmul_(offset, -kept)
            offset.mul_(kept).addcmul_(change, thetas)
            numbers.fill_(1.0)
            weights.add_(change, alpha=self.kappa / 2)

    def _theta(self, node: Node, j: int) -> float:
        """theta / c, for a mail of this age. A fixed penalty's gain depends on the step size, which
        is not known here; it is taken for 1."""
        per_rate = self.penalty.per_rate
        gain = self.interval * self.penalty.strength(node.index, j) if per_rate else 1.0
        age = node.ages.get(j, 0.0)
        return self.theta / max(1.0, min(1.0, gain) * (1 + age / self.interval))

    def rescale(self, node: Node, old_rate: float, new_rate: float) -> None:
        """Keep alpha_ij a_ij, what has been learnt, as alpha_ij changes with eta."""
        if self.penalty.per_rate:
            for link in node.links.values():
                link["kept"].mul_(new_rate / old_rate)

    def lengths(
        self, parameters: int, sender: int, receiver: int, seq: int
    ) -> dict[str, tuple[int, torch.dtype]]:
        return {"reflection": (parameters, torch.float32)}
