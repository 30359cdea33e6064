"""The state of many nodes as matrices: a row a node, a row a link.

What an algorithm does to all rows at once it starts once, whether they are eight or a thousand: on
a GPU that is a launch instead of one for each node, on a CPU a call of Python's. All arithmetic is
elementwise, so a row has the same bits alone and among others.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch

from strategies.allocator import give_back_freed_memory
from strategies.consensus.node import Node, Tensors

Index = slice | torch.Tensor
_MOVED = 2**26  # bytes of nodes that become rows, after which their old places are given back
_KEPT = 4096  # of what has been worked out: random exchanges come in ever new combinations


class Link(NamedTuple):
    """The end at `node` of its link to `peer`."""

    node: int
    peer: int


@dataclass
class Chosen:
    """Some nodes: their places in `Rows.nodes`, and the same as an index of rows."""

    places: tuple[int, ...]
    index: Index
    nodes: list[Node]
    find: "Callable[[Chosen], list[Slot]]"

    @cached_property
    def slots(self) -> "list[Slot]":
        """Their links."""
        return self.find(self)


@dataclass
class Slot:
    """At most one link of each chosen node: the first of everybody, the second of everybody, ...

    nodes: rows among those that were chosen. links: rows of the matrices of links, and host_links
    of those that are on the CPU. constants: what an algorithm has worked out for them and wants to
    keep.
    """

    nodes: Index
    links: Index
    host_links: Index
    ends: list[Link]
    constants: dict[Any, Any] = field(default_factory=dict)


class Ends(NamedTuple):
    """Where some ends of links are: rows of the nodes, and of the links as in `Slot`."""

    nodes: Index
    links: Index
    host_links: Index


class Rows:
    """Nodes whose vectors are rows of matrices from now on; the nodes themselves see views.

    nodes: in the order of the rows. weights (n, p); vectors and links by name, (n, length) and
    (m, length), for those names that were asked for. A link has its row whether or not it is there;
    which ones are says `Node.links`, whose order is that in which a node sums over its links.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        neighbours: Sequence[Sequence[int]],
        vectors: Sequence[str] = (),
        links: Sequence[str] = (),
    ) -> None:
        self.nodes = list(nodes)
        self.weights = nodes[0].weights[None]
        if len(nodes) > 1:
            self.weights = self.weights.new_empty(len(nodes), self.weights.shape[1])
        self.vectors: Tensors = {}
        self.links: Tensors = {}
        self._names = (tuple(vectors), tuple(links))
        self._place = {node.index: place for place, node in enumerate(nodes)}
        most = max((len(each) for each in neighbours), default=0)
        # The first link of everybody, then the second: where all nodes have as many links, those of
        # a slot lie in a row, and nothing has to be gathered.
        ends = [
            Link(node.index, peers[k])
            for k in range(most)
            for node, peers in zip(nodes, neighbours, strict=True)
            if k < len(peers)
        ]
        self._row = {end: row for row, end in enumerate(ends)}
        self._chosen: dict[tuple[int, ...], Chosen] = {}
        self._indices: dict[tuple[int, ...], Index] = {}
        self._move_in()

    def _move_in(self) -> None:
        """Node by node, so that there is no second copy of all."""
        moved = 0
        for node, row in zip(self.nodes, self.weights, strict=True):
            moved += _bytes(node)
            if len(self.nodes) > 1:
                row.copy_(node.weights)
                node.weights = row
            self.refresh(node)
            if moved > _MOVED:  # a process that trains keeps what it frees
                give_back_freed_memory()
                moved = 0

    def refresh(self, node: Node) -> None:
        """Take in what has become of a node that has been given other vectors or links."""
        vectors, links = self._names
        place = self._place[node.index]
        for name in vectors:
            if name in node.vectors:
                _settle(self.vectors, name, place, node.vectors, len(self.nodes))
        for peer, link in node.links.items():
            for name in links:
                if name in link:
                    row = self._row[Link(node.index, peer)]
                    _settle(self.links, name, row, link, len(self._row))
        self._chosen.clear()

    def node(self, end: Link) -> Node:
        """The node at this end."""
        return self.nodes[self._place[end.node]]

    def choose(self, indices: Sequence[int]) -> Chosen:
        """The nodes with these numbers, in this order."""
        key = tuple(indices)
        found = self._chosen.get(key)
        if found is None:
            if len(self._chosen) > _KEPT:
                self._chosen.clear()
            places = tuple(self._place[i] for i in key)
            nodes = [self.nodes[place] for place in places]
            self._chosen[key] = found = Chosen(places, self.index(places), nodes, self._slots)
        return found

    def at(self, ends: Sequence[Link]) -> Ends:
        """Where these ends are."""
        nodes = tuple(self._place[end.node] for end in ends)
        return Ends(self.index(nodes), *self._links_at(ends))

    def _links_at(self, ends: Sequence[Link]) -> tuple[Index, Index]:
        rows = tuple([self._row[end] for end in ends])
        index = self.index(rows)
        here = isinstance(index, slice) or index.device.type == "cpu"
        return index, index if here else torch.tensor(rows)

    def _slots(self, chosen: Chosen) -> list[Slot]:
        nodes = chosen.nodes
        peers = [list(node.links) for node in nodes]
        slots = []
        for k in range(max((len(each) for each in peers), default=0)):
            who = tuple(i for i, each in enumerate(peers) if k < len(each))
            ends = [Link(nodes[i].index, peers[i][k]) for i in who]
            slots.append(Slot(self.index(who), *self._links_at(ends), ends))
        return slots

    def index(self, numbers: Sequence[int]) -> Index:
        """Numbers of rows as a slice if they follow each other, which takes a view and no copy."""
        rows = tuple(numbers)
        if rows and _follow_each_other(rows):
            return slice(rows[0], rows[0] + len(rows))
        if rows not in self._indices:
            if len(self._indices) > _KEPT:
                self._indices.clear()
            self._indices[rows] = on_device(torch.tensor(rows), self.weights.device)
        return self._indices[rows]


def _bytes(node: Node) -> int:
    owned = [node.weights, *node.vectors.values()]
    owned += [vector for link in node.links.values() for vector in link.values()]
    return sum(vector.nbytes for vector in owned)


def _follow_each_other(rows: tuple[int, ...]) -> bool:
    if rows[-1] - rows[0] != len(rows) - 1:  # almost always, and known at once
        return False
    return rows == tuple(range(rows[0], rows[0] + len(rows)))


def _settle(matrices: Tensors, name: str, row: int, owner: Tensors, rows: int) -> None:
    """Move owner[name] into its row of the matrix of that name."""
    vector = owner[name]
    if name not in matrices:
        matrices[name] = vector.new_empty(rows, len(vector))
    place = matrices[name][row]
    if vector.data_ptr() != place.data_ptr() or vector.device.type == "meta":
        place.copy_(vector)
        owner[name] = place


class changing:  # noqa: N801
    """The rows at `index`, to be changed in place; each of them may be there once.

    A class, since a generator as a context takes longer than a row of a small model does.
    """

    __slots__ = ("_index", "_matrix", "_rows")

    def __init__(self, matrix: torch.Tensor, index: Index) -> None:
        self._matrix, self._index = matrix, index

    def __enter__(self) -> torch.Tensor:
        index = self._index
        if isinstance(index, slice):
            return self._matrix[index]
        self._rows = self._matrix.index_select(0, index)
        return self._rows

    def __exit__(self, *_: object) -> None:
        if not isinstance(self._index, slice):
            self._matrix.index_copy_(0, self._index, self._rows)


def together(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors (p,) as a matrix (k, p), which is not to be changed: of one it is a view."""
    return vectors[0][None] if len(vectors) == 1 else torch.stack(list(vectors))


def as_matrix(found: Iterable[torch.Tensor], count: int) -> torch.Tensor:
    """`count` vectors as a matrix: `found` if it is one, or its vectors, each of which is good
    until the next one is asked for."""
    if isinstance(found, torch.Tensor):
        return found
    vectors = iter(found)
    first = next(vectors)
    if count == 1:
        return first[None]
    matrix = first.new_empty(count, len(first))
    matrix[0] = first
    for row, vector in enumerate(vectors, start=1):
        matrix[row] = vector
    return matrix


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a small tensor of the CPU, for which nobody waits."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def column(numbers: Sequence[float] | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A factor for each row, (k, 1), of the type and on the device of `like`."""
    if not isinstance(numbers, torch.Tensor):
        numbers = torch.tensor(numbers, dtype=torch.float64)
    values = numbers.to(like.dtype).view(-1, 1)
    return values if like.device.type == "cpu" else on_device(values, like.device)
