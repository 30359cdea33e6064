"""What edge-consensus learning is compared with. Biased on unequal data unless it says otherwise.

W is the symmetric mixing matrix of the topology's round. Where nothing has come from a neighbour,
its weight falls to the node's own vector, so the rows of W still sum to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from strategies.consensus.compression import kept, random_coordinates, require_coordinates
from strategies.consensus.descent import LocalSGD
from strategies.consensus.node import Node, Tensors
from strategies.consensus.rows import Chosen, Link, Rows, changing, column, together


@dataclass(frozen=True)
class Gossip(LocalSGD):
    """AD-PSGD (Lian et al. 2018): when the edge ij is active, both ends take (w_i + w_j) / 2."""

    def message(self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int]) -> Tensors:
        return {"weights": rows.weights[rows.at(ends).nodes].clone()}

    def receive(
        self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int], mails: Sequence[Tensors]
    ) -> None:
        with changing(rows.weights, rows.at(ends).nodes) as weights:
            weights.lerp_(together([mail["weights"] for mail in mails]), 0.5)

    def lengths(
        self, parameters: int, sender: int, receiver: int, seq: int
    ) -> dict[str, tuple[int, torch.dtype]]:
        return {"weights": (parameters, torch.float32)}


@dataclass(frozen=True)
class DPSGD(LocalSGD):
    """D-PSGD (Lian et al. 2017) with local steps: at a round's end w_i <- sum_j W_ij w_j."""

    def mixed(self, weights: torch.Tensor, vectors: Tensors) -> Tensors:
        """What neighbours average: the names in a mail, and the own vectors."""
        return {"weights": weights}

    def message(self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int]) -> Tensors:
        index = rows.at(ends).nodes
        mixed = self.mixed(rows.weights, rows.vectors)
        return {name: matrix[index].clone() for name, matrix in mixed.items()}

    def receive(
        self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int], mails: Sequence[Tensors]
    ) -> None:
        for end, mail in zip(ends, mails, strict=True):
            rows.node(end).links[end.peer].update(mail)

    def mix(self, rows: Rows, chosen: Chosen, round_: int) -> None:
        come = [[(j, link) for j, link in node.links.items() if link] for node in chosen.nodes]
        shares = [
            [self.topology.weight(round_, node.index, j) for j, _ in links]
            for node, links in zip(chosen.nodes, come, strict=True)
        ]
        for name, matrix in self.mixed(rows.weights, rows.vectors).items():
            with changing(matrix, chosen.index) as own:
                own.mul_(column([1 - sum(each) for each in shares], own))
                for k in range(max(map(len, come), default=0)):
                    who = [i for i, links in enumerate(come) if k < len(links)]
                    with changing(own, rows.index(who)) as some:
                        heard = together([come[i][k][1][name] for i in who])
                        some.addcmul_(heard, column([shares[i][k] for i in who], own))
        for links in come:
            for _, link in links:
                link.clear()

    def lengths(
        self, parameters: int, sender: int, receiver: int, seq: int
    ) -> dict[str, tuple[int, torch.dtype]]:
        return {"weights": (parameters, torch.float32)}


@dataclass(frozen=True)
class MomentumTracking(DPSGD):
    """Momentum tracking (Takezawa et al. 2023); without momentum, gradient tracking (Nedic et al.
    2017).

        y_i <- y_i + M_i(new) - M_i(old)    w_i <- w_i - eta y_i                   at each step
        y_i <- sum_j W_ij y_j               w_i <- sum_j W_ij w_j                  at a round's end

    From y = M = 0 on, sum_i y_i = sum_i M_i: y tracks the mean of all nodes' momentum, and the
    limit is exact. One lost or one-sided message breaks that sum for good. The momentum is the
    running mean of `LocalSGD`; the paper's heavy-ball is this one with steps of eta / (1 - beta).
    """

    def start(self, node: Node) -> None:
        super().start(node)
        # Without momentum too, M is kept: it is then the last gradient.
        node.vectors = {name: torch.zeros_like(node.weights) for name in ("momentum", "tracker")}

    @property
    def row_vectors(self) -> tuple[str, ...]:
        return ("momentum", "tracker")

    def mixed(self, weights: torch.Tensor, vectors: Tensors) -> Tensors:
        return {"weights": weights, "tracker": vectors["tracker"]}

    def direction(
        self, weights: torch.Tensor, vectors: Tensors, gradient: torch.Tensor
    ) -> torch.Tensor:
        if self.weight_decay:
            gradient.add_(weights, alpha=self.weight_decay)
        momentum, tracker = vectors["momentum"], vectors["tracker"]
        tracker.sub_(momentum)
        return tracker.add_(momentum.lerp_(gradient, 1 - self.momentum))

    def lengths(
        self, parameters: int, sender: int, receiver: int, seq: int
    ) -> dict[str, tuple[int, torch.dtype]]:
        return dict.fromkeys(("weights", "tracker"), (parameters, torch.float32))


@dataclass(frozen=True)
class CombineFirst(MomentumTracking):
    """Momentum tracking in the order of its paper ("combine then adapt"): neighbours mix the models
    x that they had when the round began, and each adds to that what the round did to its own.

        w_i <- sum_j W_ij x_j + (w_i - x_i)                                   at a round's end

    The limit is the same; but mixing does not damp the newest steps, so they must be shorter.
    """

    def start(self, node: Node) -> None:
        super().start(node)
        node.vectors["before"] = node.weights.clone()

    @property
    def row_vectors(self) -> tuple[str, ...]:
        return (*super().row_vectors, "before")

    def mixed(self, weights: torch.Tensor, vectors: Tensors) -> Tensors:
        return super().mixed(vectors["before"], vectors)

    def mix(self, rows: Rows, chosen: Chosen, round_: int) -> None:
        with changing(rows.weights, chosen.index) as weights:
            weights.sub_(rows.vectors["before"][chosen.index])
        super().mix(rows, chosen, round_)
        with (
            changing(rows.weights, chosen.index) as weights,
            changing(rows.vectors["before"], chosen.index) as before,
        ):
            before.copy_(weights.add_(before))


@dataclass(frozen=True)
class ChocoSGD(LocalSGD):
    """CHOCO-SGD (Koloskova et al. 2019): everybody keeps public copies h, from 0 on, of itself and
    its neighbours, and sends them compressed corrections.

        q_i = comp(w_i - h_i)    h_j <- h_j + q_j    w_i <- w_i + gamma sum_j W_ij (h_j - h_i)

    Copies of h_j are equal at all nodes only if no message is ever lost. q_i goes to all neighbours
    alike and the messages' numbers may differ by link, so random-k sends its indices, too.

    keep: share of the coordinates that travel. gamma: size of the consensus step, in (0, 1].
    """

    keep: float
    compression: str
    gamma: float
    seed: int

    def start(self, node: Node) -> None:
        super().start(node)
        node.vectors["public"] = torch.zeros_like(node.weights)

    def connect(self, node: Node, j: int) -> None:
        own = node.vectors.get("public")
        copy = torch.zeros_like(node.weights) if own is None else own.clone()
        node.links[j] = {"public": copy}

    def message(self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int]) -> Tensors:
        mails = [self._message(rows.node(end), seq) for end, seq in zip(ends, seqs, strict=True)]
        return {name: torch.stack([mail[name] for mail in mails]) for name in mails[0]}

    def _message(self, node: Node, seq: int) -> Tensors:
        vectors = node.vectors
        if "values" not in vectors:  # the first message of the round settles it for all
            difference = node.weights - vectors["public"]
            count = kept(len(difference), self.keep)
            if self.compression == "random-k":
                index = random_coordinates(
                    self.seed, len(difference), count, node.index, seq, device=difference.device
                )
            else:
                index = difference.abs().topk(count, sorted=False).indices
            vectors["indices"], vectors["values"] = index.int(), difference.index_select(0, index)
        return {name: vectors[name] for name in ("indices", "values")}

    def receive(
        self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int], mails: Sequence[Tensors]
    ) -> None:
        for end, mail in zip(ends, mails, strict=True):
            _correct(rows.node(end).links[end.peer]["public"], mail)

    def mix(self, rows: Rows, chosen: Chosen, round_: int) -> None:
        for node in chosen.nodes:
            self._mix(node, round_)

    def _mix(self, node: Node, round_: int) -> None:
        own = node.vectors["public"]
        if "values" in node.vectors:
            _correct(own, {name: node.vectors.pop(name) for name in ("indices", "values")})
        for j, link in node.links.items():
            share = self.gamma * self.topology.weight(round_, node.index, j)
            node.weights.add_(link["public"], alpha=share).sub_(own, alpha=share)

    def lengths(
        self, parameters: int, sender: int, receiver: int, seq: int
    ) -> dict[str, tuple[int, torch.dtype]]:
        count = kept(parameters, self.keep)
        return {"indices": (count, torch.int32), "values": (count, torch.float32)}


def _correct(public: torch.Tensor, correction: Tensors) -> None:
    index = require_coordinates(correction["indices"], len(public))
    public.index_add_(0, index, correction["values"])


@dataclass(frozen=True)
class RelaySGD(LocalSGD):
    """RelaySGD (Vogels et al. 2021), on trees: models are summed up along the branches, so each
    node has the mean of all models, those of far nodes as old as they are far.

        m_ij = w_i + sum_{k != j} m_ki    n_ij = 1 + sum_{k != j} n_ki     of the round before
        w_i <- (sum_j m_ji + (N - sum_j n_ji) w_i) / N

    The own model stands in for nodes from which nothing has come yet. Exact on unequal data for
    one step between rounds, otherwise biased like federated averaging.
    """

    def message(self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int]) -> Tensors:
        mails = [_sum_of(rows.node(end), end.peer) for end in ends]
        return {name: together([mail[name] for mail in mails]) for name in mails[0]}

    def receive(
        self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int], mails: Sequence[Tensors]
    ) -> None:
        # In a synchronous round everybody has sent by now, so this is for the next one.
        for end, mail in zip(ends, mails, strict=True):
            rows.node(end).links[end.peer].update(mail, count=mail["count"].cpu())

    def mix(self, rows: Rows, chosen: Chosen, round_: int) -> None:
        for node in chosen.nodes:
            self._mix(node)

    def _mix(self, node: Node) -> None:
        come = [link for link in node.links.values() if link]
        missing = self.topology.size - sum(int(link["count"]) for link in come)
        node.weights.mul_(missing / self.topology.size)
        for link in come:
            node.weights.add_(link["sum"], alpha=1 / self.topology.size)

    def lengths(
        self, parameters: int, sender: int, receiver: int, seq: int
    ) -> dict[str, tuple[int, torch.dtype]]:
        return {"sum": (parameters, torch.float32), "count": (1, torch.int32)}


def _sum_of(node: Node, j: int) -> Tensors:
    """Of the own model and those that have come from others than j."""
    total = node.weights.clone()
    count = torch.ones(1, dtype=torch.int32)
    for k, link in node.links.items():
        if k != j and link:
            total.add_(link["sum"])
            count.add_(link["count"])
    return {"sum": total, "count": count}
