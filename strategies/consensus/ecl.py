"""Edge-consensus learning (Niwa et al., KDD 2020 and ICML 2021), sign-free.

Node i minimises p_i f_i(w_i) under w_i = w_j for every edge ij. The papers split the problem by
signed duals z_{i|j} and A_{i|j} = +1 for i < j, else -1. With anchors s_ij = A_{i|j} z_{i|j}, of
the shape and the unit of the model, all signs cancel and the trajectories are the same:

    local step   w_i  <- (w_i - eta g_i + eta sum_j alpha_ij s_ij) / (1 + eta sum_j alpha_ij)
    message      m_ij  = 2 w_i - s_ij
    on receipt   s_ij <- (1 - theta) s_ij + theta m_ji

theta = 1 is PDMM (Peaceman-Rachford splitting), theta = 1/2 ADMM (Douglas-Rachford). In the limit
w_i = w_j = w, and alpha_ij (s_ij - w) summed over j is p_i times node i's gradient: a control
variate, learnt without sending any gradient. The limit minimises sum_i p_i f_i exactly, for any
schedule, delay or loss, if and only if alpha_ij = alpha_ji.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from strategies.consensus.compression import (
    kept,
    random_coordinates,
    require_coordinates,
)
from strategies.consensus.descent import LocalSGD
from strategies.consensus.node import Node, Tensors
from strategies.consensus.rows import Chosen, Link, Rows, changing, column, together
from strategies.consensus.topology import Edge, Topology, edge_between

# Of the coordinates that top-k sends, one in so many is sent because it is its turn.
_REFRESH = 4


@dataclass(frozen=True)
class Penalty:
    """alpha_ij of every edge, the same at both ends by construction.

    A penalty per node, e.g. by its own degree, leads to the optimum of sum_i p_i f_i / alpha_i.

    strengths: by edge, eta alpha_ij if `per_rate`, so that the penalty grows as the steps shrink;
    alpha_ij itself if not.
    """

    strengths: Mapping[Edge, float]
    per_rate: bool

    def strength(self, i: int, j: int) -> float:
        return self.strengths[edge_between(i, j)]

    def pull(self, i: int, j: int, rate: float) -> float:
        """eta alpha_ij."""
        return self.strength(i, j) if self.per_rate else rate * self.strength(i, j)


def fixed_penalty(topology: Topology, alpha: float) -> Penalty:
    """alpha_ij = alpha."""
    return Penalty(dict.fromkeys(topology.edges, alpha), per_rate=False)


def isvr_penalty(topology: Topology, interval: float, mult: float = 1.0) -> Penalty:
    """alpha_ij = mult / (eta (K - 1) max(d_i, d_j)), with degrees d and K = interval local steps
    between two exchanges of the edge (Niwa et al., ICML 2021: implicit variance reduction).

    The anchors' offset is then the drift of the K - 1 local steps that they are to cancel. The
    paper has a node's own degree; on regular graphs that is the same. Below K = 2, towards the
    formula's pole, K = 2 is used. In a sequence of graphs an edge that is active in a of r rounds
    exchanges every K r / a steps.
    """
    strengths = {}
    for i, j in topology.edges:
        active = sum((i, j) in weights for weights in topology.rounds)
        steps = max(2.0, interval * len(topology.rounds) / active)
        degree = max(topology.degree(i), topology.degree(j))
        strengths[i, j] = mult / ((steps - 1) * degree)
    return Penalty(strengths, per_rate=True)


@dataclass(frozen=True)
class ECL(LocalSGD):
    """Edge-consensus learning; a node keeps degree + 2 vectors (one less without momentum).

    theta: in (0, 1], relaxation of the splitting.
    kappa: in [0, 1], not in the papers (they have 0): on receipt w_i moves at once by
        kappa alpha_ij / sum_l alpha_il of what the anchor s_ij moved, instead of only in the next
        local steps. The limit is the same, since there anchors do not move.
    rho: adds (rho / 2) |w - w_j|^2 for the model w_j last heard from each neighbour, which travels
        along; w_i <- (... + eta rho sum_j w_j) / (... + eta rho d_i). It vanishes in consensus.
        For the KDD paper's damping parameter of that name, whose formula it need not equal.
    """

    # The name of what a mail has: of which algorithm it is.
    mail: ClassVar[str] = "reflection"

    penalty: Penalty
    theta: float
    kappa: float = 0.0
    rho: float = 0.0

    def connect(self, node: Node, j: int) -> None:
        # The own model as anchor corrects nothing; the papers' zero would pull weights to zero.
        node.links[j] = {"anchor": node.weights.clone()}
        if self.rho:
            node.links[j]["heard"] = node.weights.clone()

    @property
    def row_links(self) -> tuple[str, ...]:
        return ("anchor", "heard") if self.rho else ("anchor",)

    def step(self, rows: Rows, chosen: Chosen, gradients: torch.Tensor, rate: float) -> None:
        with self.descent(rows, chosen, gradients, rate) as weights:
            # (x + sum_j a_j s_j) / (1 + sum_j a_j) is a mean that takes in one s_j after the other:
            # one pass over memory each, no temporary vector, no division at the end.
            for slot, shares in zip(chosen.slots, self._shares(chosen, weights, rate), strict=True):
                with changing(weights, slot.nodes) as some:
                    for name, share in shares.items():
                        some.lerp_(rows.links[name][slot.links], share)

    def _shares(
        self, chosen: Chosen, weights: torch.Tensor, rate: float
    ) -> list[dict[str, torch.Tensor]]:
        """How far each link of a slot takes the chosen nodes, by the name of its vectors."""
        totals: dict[int, float] = {}
        for slot in chosen.slots:
            if rate in slot.constants:
                continue
            anchors, heard = [], []
            for i, j in slot.ends:
                pull, total = self.penalty.pull(i, j, rate), totals.get(i, 1.0)
                total += pull
                anchors.append(pull / total)
                if self.rho:
                    total += rate * self.rho
                    heard.append(rate * self.rho / total)
                totals[i] = total
            slot.constants[rate] = {"anchor": column(anchors, weights)}
            if self.rho:
                slot.constants[rate]["heard"] = column(heard, weights)
        return [slot.constants[rate] for slot in chosen.slots]

    def message(self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int]) -> Tensors:
        at = rows.at(ends)
        weights = rows.weights[at.nodes]
        mail = {self.mail: _reflection(weights, rows.links["anchor"][at.links])}
        if self.rho:
            mail["weights"] = weights.clone()
        return mail

    def receive(
        self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int], mails: Sequence[Tensors]
    ) -> None:
        at = rows.at(ends)
        reflection = together([mail[self.mail] for mail in mails])
        with (
            changing(rows.weights, at.nodes) as weights,
            changing(rows.links["anchor"], at.links) as anchor,
        ):
            if self.kappa:
                jump = column([self._jump(rows.node(end), end.peer) for end in ends], weights)
                weights.addcmul_(reflection, jump).addcmul_(anchor, -jump)
            anchor.lerp_(reflection, self.theta)
        if self.rho:
            with changing(rows.links["heard"], at.links) as heard:
                heard.copy_(together([mail["weights"] for mail in mails]))

    def _jump(self, node: Node, j: int) -> float:
        """By how much of m_ji - s_ij the model moves on receipt."""
        total = sum(self.penalty.strength(node.index, k) for k in node.links)
        return self.kappa * self.theta * self.penalty.strength(node.index, j) / total

    def rescale(self, node: Node, old_rate: float, new_rate: float) -> None:
        """Keep alpha_ij (s_ij - w_i), what the anchors have learnt, as alpha_ij changes with eta:
        s_ij <- w_i + (alpha_old / alpha_new) (s_ij - w_i)."""
        if self.penalty.per_rate:
            for link in node.links.values():
                link["anchor"].lerp_(node.weights, 1 - new_rate / old_rate)

    def lengths(
        self, parameters: int, sender: int, receiver: int, seq: int
    ) -> dict[str, tuple[int, torch.dtype]]:
        names = (self.mail, "weights") if self.rho else (self.mail,)
        return dict.fromkeys(names, (parameters, torch.float32))


@dataclass(frozen=True)
class CompressedECL(ECL):
    """ECL of which only k = keep p coordinates of a message travel (Takezawa et al. 2022, C-ECL).

    A message without some coordinates is a valid update of the others, so the limit stays exact as
    long as every coordinate is sent again and again:

    compression "random-k": the coordinates follow from the seed, the two nodes and the message's
        number; only values travel.
    compression "top-k": for each neighbour the sender keeps a copy of what its messages have made
        of the neighbour's anchor (degree more vectors), and sends where that is most wrong, indices
        and values. The copy misses what gets lost; so a quarter of the coordinates are random ones.

    There is no quantisation: it is exact of differences to an earlier mail (see `rounded`), and
    here each mail has other coordinates.
    """

    keep: float = 1.0
    compression: str = "random-k"
    seed: int = 0

    def connect(self, node: Node, j: int) -> None:
        super().connect(node, j)
        if self.compression == "top-k":
            node.links[j]["sent"] = node.weights.clone()

    def message(self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int]) -> Tensors:
        mails = [
            self._message(rows.node(end), end.peer, q) for end, q in zip(ends, seqs, strict=True)
        ]
        return {name: together([mail[name] for mail in mails]) for name in mails[0]}

    def _message(self, node: Node, j: int, seq: int) -> Tensors:
        link, count = node.links[j], kept(node.weights.numel(), self.keep)
        if self.compression == "random-k":
            index = self._random(node.weights, count, node.index, j, seq)
            anchor = link["anchor"].index_select(0, index)
            return {"values": _reflection(node.weights.index_select(0, index), anchor)}
        reflection, sent = _reflection(node.weights, link["anchor"]), link["sent"]
        index = self._random(node.weights, -(-count // _REFRESH), node.index, j, seq)
        if len(index) < count:
            change = (reflection - sent).abs_().index_fill_(0, index, -1.0)  # none of those again
            most = change.topk(count - len(index), sorted=False).indices
            index = torch.cat([index, most])
        values = reflection.index_select(0, index)
        sent.index_copy_(0, index, sent.index_select(0, index).lerp_(values, self.theta))
        return {"indices": index.int(), "values": values}

    def receive(
        self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int], mails: Sequence[Tensors]
    ) -> None:
        for end, seq, mail in zip(ends, seqs, mails, strict=True):
            self._receive(rows.node(end), end.peer, seq, mail)

    def _receive(self, node: Node, j: int, seq: int, mail: Tensors) -> None:
        anchor, values = node.links[j]["anchor"], mail["values"]
        if self.compression == "random-k":
            index = self._random(anchor, len(values), j, node.index, seq)
        else:
            index = require_coordinates(mail["indices"], len(anchor))
        before = anchor.index_select(0, index)
        if self.kappa:
            node.weights.index_add_(0, index, values - before, alpha=self._jump(node, j))
        anchor.index_copy_(0, index, before.lerp_(values, self.theta))

    def _random(self, like: torch.Tensor, count: int, *message: int) -> torch.Tensor:
        return random_coordinates(self.seed, len(like), count, *message, device=like.device)

    def lengths(
        self, parameters: int, sender: int, receiver: int, seq: int
    ) -> dict[str, tuple[int, torch.dtype]]:
        count = kept(parameters, self.keep)
        values = {"values": (count, torch.float32)}
        return (
            values
            if self.compression == "random-k"
            else {"indices": (count, torch.int32), **values}
        )


def _reflection(weights: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
    """2 w - s, in one pass: s + 2 (w - s)."""
    return torch.lerp(anchor, weights, 2.0)
