"""Which participant holds which samples: pure functions of (labels, parameters, seed).

Names of schemes' parameters are those of flwr-datasets.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from strategies.randomness import rng

Parts = list[np.ndarray]


def iid(labels: np.ndarray, num_partitions: int, generator: np.random.Generator) -> Parts:
    """Shuffle the samples and deal them out; sizes differ by at most one."""
    return np.array_split(generator.permutation(len(labels)), num_partitions)


def dirichlet(
    labels: np.ndarray,
    num_partitions: int,
    generator: np.random.Generator,
    *,
    alpha: float = 0.5,
    min_partition_size: int = 10,
) -> Parts:
    """Divide every class among the participants in proportions ~ Dir(alpha, ..., alpha).

    Small alpha: few classes each; large alpha: IID (Hsu et al. 2019). Redrawn until everybody has
    `min_partition_size` samples.

    Raises:
        ValueError: `alpha` is not positive, or 100 draws did not give that many samples.
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha={alpha} must be a positive number")
    if min_partition_size < 1:
        raise ValueError(f"min_partition_size={min_partition_size} must be at least 1")
    smallest = 0
    for _ in range(100):
        pieces: list[Parts] = []
        for members in _members(labels, generator):
            proportions = generator.dirichlet(np.full(num_partitions, alpha))
            cuts = np.rint(np.cumsum(proportions)[:-1] * len(members)).astype(np.int64)
            pieces.append(np.split(members, cuts))
        parts = [np.concatenate(own) for own in zip(*pieces, strict=True)]
        smallest = max(smallest, min(map(len, parts)))
        if smallest >= min_partition_size:
            return parts
    raise ValueError(
        f"partition='dirichlet' with alpha={alpha} left a participant with at most {smallest} of "
        f"min_partition_size={min_partition_size} samples in each of 100 draws; "
        f"use a larger alpha, fewer participants or a smaller min_partition_size"
    )


def classes_per_participant(
    labels: np.ndarray,
    num_partitions: int,
    generator: np.random.Generator,
    *,
    num_classes_per_partition: int = 2,
) -> Parts:
    """Give every participant samples of exactly `num_classes_per_partition` classes.

    Every class has the same number of owners, num_partitions * num_classes_per_partition /
    classes; where that is no whole number, the two neighbouring whole numbers occur. Who owns what
    is random. A class's samples are divided equally among its owners (to within one).

    Raises:
        ValueError: more classes asked for than there are, too few participants to own all classes,
            or a class with fewer samples than owners.
    """
    members = _members(labels, generator)
    classes, k = len(members), num_classes_per_partition
    if not 1 <= k <= classes:
        raise ValueError(
            f"num_classes_per_partition={k} must be from 1 to {classes}, the number of classes"
        )
    if num_partitions * k < classes:
        raise ValueError(
            f"{num_partitions} participants with {k} classes each cannot hold all {classes} "
            f"classes; use num_classes_per_partition >= {math.ceil(classes / num_partitions)} "
            f"or at least {math.ceil(classes / k)} participants"
        )
    owns = _balanced_ownership(num_partitions, classes, k, generator)
    pieces: list[Parts] = [[] for _ in range(num_partitions)]
    for c, samples in enumerate(members):
        owners = generator.permutation(np.flatnonzero(owns[:, c]))
        if len(samples) < len(owners):
            raise ValueError(
                f"a class with {len(samples)} sample(s) cannot be divided among {len(owners)} "
                f"participants; use fewer participants or a smaller num_classes_per_partition"
            )
        for owner, piece in zip(owners, np.array_split(samples, len(owners)), strict=True):
            pieces[owner].append(piece)
    return [np.concatenate(own) for own in pieces]


def _balanced_ownership(
    participants: int, classes: int, k: int, generator: np.random.Generator
) -> np.ndarray:
    """Return a random bool matrix (participants, classes) with k per row and balanced columns."""
    slots = np.arange(participants * k).reshape(participants, k) % classes
    owns = np.zeros((participants, classes), bool)
    np.put_along_axis(owns, generator.permutation(classes)[slots], True, axis=1)
    # The rows so far come in blocks (8 x 5 of 10 would be two halves). Exchanges of one class
    # between two participants mix them and change neither row nor column sums.
    for _ in range(4 * participants * k):
        a, b = generator.integers(0, participants, 2)
        only_a = np.flatnonzero(owns[a] & ~owns[b])
        only_b = np.flatnonzero(owns[b] & ~owns[a])
        if len(only_a):  # equal row sums: then only_b is not empty either
            swap = [generator.choice(only_a), generator.choice(only_b)]
            owns[np.ix_([a, b], swap)] ^= True
    return owns


def halves(labels: np.ndarray, num_partitions: int, generator: np.random.Generator) -> Parts:
    """Give the first half of the participants the first half of the classes, the others the rest.

    Within each half IID. With an odd number, the second half is the larger one.

    Raises:
        ValueError: fewer than 2 participants or classes.
    """
    classes = np.unique(labels)
    if num_partitions < 2 or len(classes) < 2:
        raise ValueError(
            f"partition='halves' needs at least 2 participants and 2 classes, "
            f"not {num_partitions} and {len(classes)}"
        )
    in_first = np.isin(labels, classes[: len(classes) // 2])
    first = num_partitions // 2
    parts: Parts = []
    for member, count in ((in_first, first), (~in_first, num_partitions - first)):
        parts += np.array_split(generator.permutation(np.flatnonzero(member)), count)
    return parts


def shards(
    labels: np.ndarray,
    num_partitions: int,
    generator: np.random.Generator,
    *,
    num_shards_per_partition: int = 2,
) -> Parts:
    """Sort by label, cut into equal shards, deal `num_shards_per_partition` to each participant.

    The non-IID partition of McMahan et al. 2017.

    Raises:
        ValueError: fewer than one shard each, or fewer samples than shards.
    """
    total = num_partitions * num_shards_per_partition
    if not num_shards_per_partition >= 1 or total > len(labels):
        raise ValueError(
            f"num_shards_per_partition={num_shards_per_partition} must be from 1 to "
            f"{len(labels) // num_partitions} ({len(labels)} samples, "
            f"{num_partitions} participants)"
        )
    pieces = np.array_split(np.concatenate(_members(labels, generator)), total)
    deal = generator.permutation(total).reshape(num_partitions, num_shards_per_partition)
    return [np.concatenate([pieces[shard] for shard in own]) for own in deal]


def _members(labels: np.ndarray, generator: np.random.Generator) -> Parts:
    """Return the shuffled indices of each class that occurs, in the order of the labels."""
    return [generator.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]


PARTITIONS: dict[str, Callable[..., Parts]] = {
    "classes-per-participant": classes_per_participant,
    "dirichlet": dirichlet,
    "halves": halves,
    "iid": iid,
    "shards": shards,
}
ADAPTER = "hf:"  # prefix of flwr-datasets' partitioners, see strategies/hf_partition.py


def partition(
    labels: np.ndarray,
    scheme: str | Callable[..., Parts],
    num_partitions: int,
    seed: int,
    **params: Any,
) -> Parts:
    """Return each participant's sample indices: int64, sorted, disjoint, none empty.

    Args:
        labels: (n,) class numbers.
        scheme: a key of `PARTITIONS`, or "hf:" and the name of a flwr-datasets partitioner, e.g.
            "hf:DirichletPartitioner"; or a function of somebody's own, called with labels,
            num_partitions and a generator.
        params: the scheme's parameters. Those of other schemes are ignored, since one flat
            configuration holds them all.

    Raises:
        ValueError: unknown scheme or parameter, or a partition that cannot be made, with what
            would work.
    """
    if callable(scheme):
        return _checked(
            scheme(labels, num_partitions, rng(seed, "partition", "own")),
            getattr(scheme, "__name__", "the partition"),  # an object to be called has no name
            len(labels),
            num_partitions,
        )
    if scheme not in PARTITIONS and not scheme.startswith(ADAPTER):
        choices = ", ".join(sorted(PARTITIONS))
        raise ValueError(f"partition={scheme!r} is unknown; choose one of: {choices}")
    if not 1 <= num_partitions <= len(labels):
        raise ValueError(
            f"{len(labels)} samples cannot be divided among {num_partitions} participants; "
            f"use 1 to {len(labels)}"
        )
    if scheme.startswith(ADAPTER):
        from strategies.hf_partition import flwr_datasets_partition

        name = scheme.removeprefix(ADAPTER)
        parts = flwr_datasets_partition(labels, name, num_partitions, seed, **params)
    else:
        known = {name for function in PARTITIONS.values() for name in _parameters(function)}
        if unknown := sorted(params.keys() - known):
            raise ValueError(
                f"partition parameter {unknown[0]!r} is unknown; "
                f"choose from: {', '.join(sorted(known))}"
            )
        function = PARTITIONS[scheme]
        own = {name: value for name, value in params.items() if name in _parameters(function)}
        parts = function(labels, num_partitions, rng(seed, "partition", scheme), **own)
    if empty := [i for i, part in enumerate(parts) if not len(part)]:
        raise ValueError(
            f"partition={scheme!r} leaves participant {empty[0]} of {num_partitions} without "
            f"samples; use fewer participants or another partition"
        )
    return [np.sort(part).astype(np.int64) for part in parts]


def _checked(found: Any, name: str, samples: int, num_partitions: int) -> Parts:
    """What somebody's function has returned, sorted. ValueError says what it lacks."""
    parts = [np.asarray(part) for part in found]
    if len(parts) != num_partitions:
        raise ValueError(f"{name} returned {len(parts)} parts for {num_partitions} participants")
    for participant, part in enumerate(parts):
        if part.ndim != 1 or not len(part) or part.dtype.kind not in "iu":
            raise ValueError(
                f"{name} gave participant {participant} {part.dtype} {part.shape}; return the "
                f"numbers of its samples, (n,), at least one"
            )
    taken = np.concatenate(parts)
    if not 0 <= taken.min() <= taken.max() < samples or len(np.unique(taken)) < len(taken):
        raise ValueError(
            f"{name} returned a sample twice, or one that is not among the {samples} that it got"
        )
    return [np.sort(part).astype(np.int64) for part in parts]


def _parameters(function: Callable[..., Parts]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


@dataclass(frozen=True)
class Split:
    """Indices into the training set; all disjoint.

    Attributes:
        participants: one array per participant.
        proxy: the server's own images for distillation, (proxy_size,); of the first labelled_size
            of them the server has the labels.
        validation: seen by nobody; choices are made on them, not on test images,
            (validation_size,).
    """

    participants: Parts
    proxy: np.ndarray
    validation: np.ndarray


def make_split(
    labels: np.ndarray,
    *,
    num_partitions: int,
    scheme: str | Callable[..., Parts],
    seed: int,
    proxy_size: int,
    validation_size: int,
    labelled_size: int = 0,
    **params: Any,
) -> Split:
    """Hold out the server's proxy set and the validation set, then partition what remains.

    All are stratified: each class has its share of the training set, to within one sample; and so
    are the labelled ones among the proxy set. They depend on the seed and their sizes alone, not on
    the number of participants or the scheme.

    Raises:
        ValueError: nothing remains for the participants, more labelled samples than the proxy set
            has, or as `partition` does.
    """
    sizes = {
        "proxy_size": proxy_size,
        "validation_size": validation_size,
    }
    if min(sizes.values()) < 0 or sum(sizes.values()) >= len(labels):
        raise ValueError(
            f"{' and '.join(f'{name}={size}' for name, size in sizes.items() if size)} must not be "
            f"negative and together less than the {len(labels)} training samples"
        )
    if not 0 <= labelled_size <= proxy_size:
        raise ValueError(f"labelled_size={labelled_size} must be from 0 to {proxy_size}")
    generator = rng(seed, "held-out")
    rest = np.arange(len(labels))
    proxy, rest = _stratified(labels, rest, proxy_size, generator)
    validation, rest = _stratified(labels, rest, validation_size, generator)
    parts = partition(labels[rest], scheme, num_partitions, seed, **params)
    if labelled_size:
        proxy = np.concatenate(_stratified(labels, proxy, labelled_size, rng(seed, "labelled")))
    return Split([rest[part] for part in parts], proxy, validation)


def _stratified(
    labels: np.ndarray, candidates: np.ndarray, size: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `size` of the candidates, classes in proportion; return (drawn, others), both sorted."""
    members = [candidates[part] for part in _members(labels[candidates], generator)]
    share = np.array([len(part) for part in members]) * (size / len(candidates))
    quota = np.floor(share).astype(np.int64)
    # Largest remainders get the samples that rounding down left over.
    leftover = size - quota.sum()
    quota[np.argsort(quota - share, kind="stable")[:leftover]] += 1
    drawn = np.sort(np.concatenate([part[:q] for part, q in zip(members, quota, strict=True)]))
    return drawn, np.setdiff1d(candidates, drawn, assume_unique=True)


def label_histogram(labels: np.ndarray, parts: Parts, num_classes: int) -> np.ndarray:
    """Count samples per participant and class: int64 (participants, num_classes). A negative number
    is no class."""
    of_each = [labels[part] for part in parts]
    return np.stack([np.bincount(own[own >= 0], minlength=num_classes) for own in of_each])
