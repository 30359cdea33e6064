"""The Base-(k+1) graph: exact averaging in finitely many rounds, for any number of nodes.

Takezawa, Sato, Bao, Niwa, Yamada: "Beyond Exponential Graph: Communication-Efficient Topologies for
Decentralized Learning via Finite-time Convergence", NeurIPS 2023. In every round a node has at most
k neighbours, W is symmetric and doubly stochastic, and the product of all rounds' W is J/N (J: all
ones). There are at most 2 log_{k+1}(N) + 2 rounds, and log_{k+1}(N) where N is a power of k + 1.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import combinations

Round = dict[tuple[int, int], float]  # {(i, j): W_ij} of the edges i < j that are active
Nodes = Sequence[int]  # in ascending order


def base_k_rounds(size: int, k: int) -> tuple[Round, ...]:
    """The rounds of the Base-(k+1) graph of `size` >= 2 nodes with at most `k` >= 1 neighbours."""
    nodes = range(size)
    return tuple(min(_base(nodes, k), _simple_base(nodes, k), key=len))


def _base(nodes: Nodes, k: int) -> list[Round]:
    """With N = p q, where no prime factor of q is as small as k + 1: average each of p groups of q
    nodes by `_simple_base`, all at once; then, over and over, one node of each group."""
    q = len(nodes)
    for prime in range(2, k + 2):  # a composite number finds its factors gone
        while q % prime == 0:
            q //= prime
    groups = [nodes[start : start + q] for start in range(0, len(nodes), q)]
    rounds: dict[int, Round] = defaultdict(dict)
    for group in groups:
        _add(rounds, 0, _simple_base(group, k))
    first = len(rounds)
    for across in zip(*groups, strict=True):
        _add(rounds, first, _hyper_hypercube(across, k))
    return _in_order(rounds)


def _simple_base(nodes: Nodes, k: int) -> list[Round]:
    """Split N = sum_l a_l (k+1)^{p_l}, its number in base k + 1, into parts V_l of a_l blocks.

    1. Every part averages within itself.
    2. One after the other, each part but the last meets all that come after it. Node m of those
       has one partner in each of the a_l blocks, with a weight that moves the mean of the nodes
       after V_l to the mean of V_l and them: |V_l| / (|V_l| + |V_{>l}|) in sum. The mean of all
       nodes is then that of V_{>l}, so that of V_l too, and by symmetry that of each block of V_l.
    3. Every block averages within itself, as soon as its part has met those after it.
    """
    digits = _digits(len(nodes), k + 1)
    rounds: dict[int, Round] = defaultdict(dict)
    end, parts = 0, []
    for digit, power in digits:
        parts.append(nodes[end : end + digit * power])
        end += digit * power
        _add(rounds, 0, _hyper_hypercube(parts[-1], k))
    meeting, end = len(rounds), 0
    for part, (digit, power) in zip(parts[:-1], digits[:-1], strict=True):
        end += len(part)
        later = nodes[end:]
        blocks = [part[start : start + power] for start in range(0, len(part), power)]
        weight = len(part) / (len(part) + len(later)) / digit
        for m, node in enumerate(later):
            rounds[meeting].update({(block[m], node): weight for block in blocks})
        meeting += 1
        for block in blocks:
            _add(rounds, meeting, _hyper_hypercube(block, k))
    return _in_order(rounds)


def _hyper_hypercube(nodes: Nodes, k: int) -> list[Round]:
    """With N = n_1 ... n_L, each at most k + 1, nodes are points of an n_1 x ... x n_L box: in
    round l all nodes of a line in direction l are joined and take their mean, W_ij = 1 / n_l."""
    rounds, stride = [], 1
    for factor in _factors(len(nodes), k + 1):
        lines = (
            nodes[start : start + stride * factor : stride]
            for start in range(len(nodes))
            if start // stride % factor == 0
        )
        rounds.append({edge: 1 / factor for line in lines for edge in combinations(line, 2)})
        stride *= factor
    return rounds


@cache
def _factors(number: int, largest: int) -> tuple[int, ...]:
    """The fewest factors in [2, largest] whose product is `number`, which has no larger prime."""
    if number == 1:
        return ()
    lists = (
        (factor, *_factors(number // factor, largest))
        for factor in range(2, largest + 1)
        if number % factor == 0
    )
    return min(lists, key=len)


def _digits(number: int, base: int) -> list[tuple[int, int]]:
    """Write `number` in `base`: [(digit, base ** position)], the largest first, without zeros."""
    digits, power = [], 1
    while number:
        number, digit = divmod(number, base)
        if digit:
            digits.append((digit, power))
        power *= base
    return digits[::-1]


def _add(rounds: dict[int, Round], start: int, more: Sequence[Round]) -> None:
    for number, edges in enumerate(more, start):
        rounds[number].update(edges)


def _in_order(rounds: dict[int, Round]) -> list[Round]:
    return [rounds[number] for number in sorted(rounds)]
