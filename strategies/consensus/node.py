"""What a node is. Pure: no schedule, no network, no files."""

from dataclasses import dataclass, field

import torch

Tensors = dict[str, torch.Tensor]

AVERAGE = "average"  # the vector of a node that keeps one, see `weight_average`


@dataclass
class Node:
    """All that a node's algorithm knows, as flat vectors of the model's p parameters.

    weights: w_i, (p,), updated in place only, since views of it may be elsewhere.
    vectors: what the algorithm keeps for itself, e.g. momentum; (p,) each.
    links: by neighbour j, what it keeps for the edge, e.g. {"anchor": s_ij}; (p,) each, or (1,)
        for a number, which is on the CPU: nobody waits for a GPU to read it.
    ages: by neighbour, how old its mail was when it was used last, in local steps of this node.
    """

    index: int
    weights: torch.Tensor
    vectors: Tensors = field(default_factory=dict)
    links: dict[int, Tensors] = field(default_factory=dict)
    ages: dict[int, float] = field(default_factory=dict)

    @property
    def published(self) -> torch.Tensor:
        """The model that it gives away, (p,): the average of its weights if it keeps one."""
        return self.vectors.get(AVERAGE, self.weights)
