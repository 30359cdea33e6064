"""What an algorithm does to one node, which is then the only row."""

import torch

from strategies.consensus.algorithm import Algorithm
from strategies.consensus.node import Node, Tensors
from strategies.consensus.rows import Link, Rows


def _rows(algorithm: Algorithm, node: Node) -> Rows:
    return Rows([node], [list(node.links)], algorithm.row_vectors, algorithm.row_links)


def step(algorithm: Algorithm, node: Node, gradient: torch.Tensor, rate: float) -> None:
    rows = _rows(algorithm, node)
    algorithm.step(rows, rows.choose([node.index]), gradient[None], rate)


def message(algorithm: Algorithm, node: Node, j: int, seq: int) -> Tensors:
    found = algorithm.message(_rows(algorithm, node), [Link(node.index, j)], [seq])
    return {name: vectors[0] for name, vectors in found.items()}


def receive(algorithm: Algorithm, node: Node, j: int, seq: int, mail: Tensors) -> None:
    algorithm.receive(_rows(algorithm, node), [Link(node.index, j)], [seq], [mail])


def mix(algorithm: Algorithm, node: Node, round_: int) -> None:
    rows = _rows(algorithm, node)
    algorithm.mix(rows, rows.choose([node.index]), round_)
