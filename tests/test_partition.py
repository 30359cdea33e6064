"""Partitions: what every scheme promises, what defines each, and agreement with flwr-datasets."""

import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.partition import PARTITIONS, label_histogram, make_split, partition

LABELS = np.random.default_rng(7).permutation(np.repeat(np.arange(10), 200))


def histogram(scheme: str, participants: int, seed: int = 0, **params: float) -> np.ndarray:
    return label_histogram(LABELS, partition(LABELS, scheme, participants, seed, **params), 10)


@pytest.mark.parametrize("scheme", PARTITIONS)
class TestContract:
    @pytest.mark.parametrize("participants", [5, 8, 13])
    def test_every_sample_has_exactly_one_participant(self, scheme: str, participants: int) -> None:
        parts = partition(LABELS, scheme, participants, 0)
        assert len(parts) == participants
        assert all(part.dtype == np.int64 and part.size for part in parts)
        assert all((np.diff(part) > 0).all() for part in parts)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))

    def test_depends_on_the_seed_alone(self, scheme: str) -> None:
        first, again, other = (partition(LABELS, scheme, 8, seed) for seed in (1, 1, 2))
        assert all(map(np.array_equal, first, again))
        assert not all(map(np.array_equal, first, other))

    def test_ignores_the_parameters_of_other_schemes(self, scheme: str) -> None:
        every = {"alpha": 0.5, "num_classes_per_partition": 2, "num_shards_per_partition": 2}
        assert np.array_equal(histogram(scheme, 8, **every), histogram(scheme, 8))

    def test_does_not_need_labels_from_zero(self, scheme: str) -> None:
        shifted = partition(LABELS + 5, scheme, 8, 0)
        assert all(map(np.array_equal, shifted, partition(LABELS, scheme, 8, 0)))


def test_iid_sizes_and_classes() -> None:
    counts = histogram("iid", 7)
    assert np.ptp(counts.sum(1)) <= 1
    # Expected 2000 / 7 / 10 = 28.6 per cell, standard deviation below 5: five of them.
    assert np.abs(counts - 200 / 7).max() < 25


@pytest.mark.parametrize(("participants", "k"), [(8, 5), (10, 2), (5, 2), (4, 10), (30, 1)])
def test_classes_per_participant_is_balanced(participants: int, k: int) -> None:
    """k classes each; every class has participants * k / 10 owners and they share it equally."""
    counts = histogram("classes-per-participant", participants, num_classes_per_partition=k)
    assert ((counts > 0).sum(1) == k).all()
    owners = participants * k // 10
    assert ((counts > 0).sum(0) == owners).all()
    held = counts[counts > 0]
    assert set(held.tolist()) <= {200 // owners, 200 // owners + 1}


def test_classes_per_participant_when_classes_cannot_have_equally_many_owners() -> None:
    """7 x 3 = 21 slots for 10 classes: nine classes with two owners, one with three."""
    counts = histogram("classes-per-participant", 7, num_classes_per_partition=3)
    assert ((counts > 0).sum(1) == 3).all()
    assert Counter((counts > 0).sum(0).tolist()) == {2: 9, 3: 1}


def test_classes_per_participant_mixes_ownership() -> None:
    """8 x 5 of 10 must not be two blocks of participants with the same five classes."""
    scheme, five = "classes-per-participant", {"num_classes_per_partition": 5}
    distinct = [len(np.unique(histogram(scheme, 8, seed, **five), axis=0)) for seed in range(10)]
    assert np.mean(distinct) > 6


def test_halves() -> None:
    counts = histogram("halves", 5)
    assert (counts[:2, :5] > 0).all()
    assert not counts[:2, 5:].any()
    assert (counts[2:, 5:] > 0).all()
    assert not counts[2:, :5].any()
    assert [int(n) for n in counts.sum(1)] == [500, 500, 334, 333, 333]


def test_shards() -> None:
    """20 shards of 100 samples, half a class each: a participant has one or two classes."""
    counts = histogram("shards", 10, num_shards_per_partition=2)
    assert (counts.sum(1) == 200).all()
    assert set(counts.ravel().tolist()) <= {0, 100, 200}
    assert (counts > 0).sum(1).max() == 2


def test_dirichlet_concentration() -> None:
    """Proportions ~ Dir(alpha 1_n) have variance (1/n)(1 - 1/n) / (n alpha + 1).

    n = 4, alpha = 0.5: 0.0625; alpha = 50: 0.00093. Estimated over 10 classes x 4 participants x
    30 seeds; the bounds are 25 % wide, about four standard errors.
    """
    for alpha in (0.5, 50.0):
        shares = np.concatenate(
            [
                histogram("dirichlet", 4, seed, alpha=alpha, min_partition_size=1) / 200
                for seed in range(30)
            ]
        )
        expected = 0.25 * 0.75 / (4 * alpha + 1)
        assert shares.mean() == pytest.approx(0.25)
        assert shares.var() == pytest.approx(expected, rel=0.25)


def test_dirichlet_minimum_size() -> None:
    sizes = histogram("dirichlet", 10, alpha=0.1, min_partition_size=40).sum(1)
    assert sizes.min() >= 40


@pytest.mark.parametrize(
    ("scheme", "participants", "params", "message"),
    [
        ("dirichlett", 3, {}, "choose one of: classes-per-participant, dirichlet, halves, iid"),
        ("iid", 3, {"alfa": 1}, "'alfa' is unknown; choose from: alpha, min_partition_size"),
        ("iid", 2001, {}, "2000 samples cannot be divided among 2001 participants; use 1 to 2000"),
        ("iid", 0, {}, "among 0 participants"),
        ("dirichlet", 3, {"alpha": 0.0}, "alpha=0.0 must be a positive number"),
        ("dirichlet", 3, {"alpha": float("nan")}, "alpha=nan must be a positive number"),
        ("dirichlet", 3, {"min_partition_size": 0}, "min_partition_size=0 must be at least 1"),
        ("dirichlet", 100, {"alpha": 0.01}, "use a larger alpha, fewer participants or a smaller"),
        ("classes-per-participant", 3, {"num_classes_per_partition": 11}, "from 1 to 10"),
        ("classes-per-participant", 3, {"num_classes_per_partition": 2}, ">= 4 or at least 5 part"),
        ("classes-per-participant", 900, {"num_classes_per_partition": 3}, "200 sample.s. cannot"),
        ("halves", 1, {}, "at least 2 participants and 2 classes, not 1 and 10"),
        ("shards", 1500, {"num_shards_per_partition": 2}, "from 1 to 1 .2000 samples, 1500 part"),
        ("shards", 5, {"num_shards_per_partition": 0}, "from 1 to 400"),
    ],
)
def test_what_cannot_be_made_says_what_would_work(
    scheme: str, participants: int, params: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        partition(LABELS, scheme, participants, 0, **params)


def test_an_empty_participant_is_refused() -> None:
    """Two classes of one sample: the second half of four participants would share one image."""
    with pytest.raises(ValueError, match="leaves participant 1 of 4 without samples"):
        partition(np.array([0, 1, 1, 1]), "halves", 4, 0)


@settings(deadline=None, max_examples=150)
@given(
    counts=st.lists(st.integers(15, 60), min_size=5, max_size=5),
    scheme=st.sampled_from(sorted(PARTITIONS)),
    participants=st.integers(3, 8),
    proxy_size=st.integers(0, 15),
    validation_size=st.integers(0, 15),
    labelled=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_split_is_disjoint_complete_and_stratified(
    counts: list[int],
    scheme: str,
    participants: int,
    proxy_size: int,
    validation_size: int,
    labelled: float,
    seed: int,
) -> None:
    labelled_size = round(labelled * proxy_size)
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(5), counts))
    split = make_split(
        labels,
        num_partitions=participants,
        scheme=scheme,
        seed=seed,
        proxy_size=proxy_size,
        validation_size=validation_size,
        labelled_size=labelled_size,
        alpha=5.0,
        min_partition_size=1,
    )
    held_out = [split.proxy, split.validation]
    assert [len(part) for part in held_out] == [proxy_size, validation_size]
    everything = np.concatenate([*split.participants, *held_out])
    assert np.array_equal(np.sort(everything), np.arange(len(labels)))
    everywhere = np.bincount(labels, minlength=5)
    for held in (*held_out, split.proxy[:labelled_size]):
        share = everywhere * (len(held) / len(labels))
        assert np.abs(np.bincount(labels[held], minlength=5) - share).max() < 2


def test_labelled_images_are_of_all_classes_whatever_the_order_of_the_data() -> None:
    """Folders and many archives are sorted by class: the first 20 of 100 would be of two."""
    sizes: dict[str, int] = {"proxy_size": 100, "validation_size": 0, "num_partitions": 2}
    labels = np.sort(LABELS)
    plain = make_split(labels, scheme="iid", seed=0, **sizes)
    split = make_split(labels, scheme="iid", seed=0, labelled_size=20, **sizes)
    assert np.bincount(labels[split.proxy[:20]]).tolist() == [2] * 10
    assert np.array_equal(np.sort(split.proxy), plain.proxy)
    with pytest.raises(ValueError, match="labelled_size=101 must be from 0 to 100"):
        make_split(labels, scheme="iid", seed=0, labelled_size=101, **sizes)


def test_held_out_sets_do_not_depend_on_the_participants() -> None:
    first, second = (
        make_split(
            LABELS, num_partitions=n, scheme=scheme, seed=3, proxy_size=100, validation_size=50
        )
        for n, scheme in ((3, "iid"), (8, "dirichlet"))
    )
    assert np.array_equal(first.proxy, second.proxy)
    assert np.array_equal(first.validation, second.validation)
    assert (np.bincount(LABELS[first.proxy]) == 10).all()
    assert (np.bincount(LABELS[first.validation]) == 5).all()


def test_held_out_sets_are_rounded_by_largest_remainders() -> None:
    """5 of 60 with classes of 10, 20, 30: shares 0.83, 1.67, 2.5; the first two are rounded up."""
    labels = np.repeat(np.arange(3), [10, 20, 30])
    split = make_split(
        labels, num_partitions=2, scheme="iid", seed=0, proxy_size=5, validation_size=0
    )
    assert np.bincount(labels[split.proxy]).tolist() == [1, 2, 2]


@pytest.mark.parametrize("sizes", [(1500, 500), (-1, 5), (5, -1)])
def test_impossible_held_out_sizes_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"proxy_size={sizes[0]} and validation_size={sizes[1]}"):
        make_split(
            LABELS,
            num_partitions=2,
            scheme="iid",
            seed=0,
            proxy_size=sizes[0],
            validation_size=sizes[1],
        )


def test_label_histogram() -> None:
    parts = [np.array([0, 2]), np.array([1])]
    expected = [[1, 1, 0], [1, 0, 0]]
    assert label_histogram(np.array([0, 0, 1]), parts, 3).tolist() == expected


class TestAgainstFlwrDatasets:
    """Ours and theirs on the same labels; theirs by way of the adapter."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("flwr_datasets", reason="the extra `hf` is not installed")

    @pytest.mark.parametrize(
        ("name", "params"),
        [
            ("IidPartitioner", {}),
            ("DirichletPartitioner", {"alpha": 0.5}),
            ("PathologicalPartitioner", {"num_classes_per_partition": 5}),
            ("ShardPartitioner", {"num_shards_per_partition": 2}),
            ("LinearPartitioner", {}),
        ],
    )
    def test_adapter_gives_disjoint_parts_by_seed(self, name: str, params: dict) -> None:
        first, again = (partition(LABELS, f"hf:{name}", 8, 3, **params) for _ in range(2))
        assert all(map(np.array_equal, first, again))
        everything = np.concatenate(first)
        assert len(np.unique(everything)) == len(everything)

    @pytest.mark.parametrize(
        "name",
        ["IidPartitioner", "LinearPartitioner", "SquarePartitioner", "ExponentialPartitioner"],
    )
    def test_who_cuts_what_is_sorted_by_class_gives_everybody_each(self, name: str) -> None:
        labels = np.repeat(np.arange(4), 500)
        parts, others = (partition(labels, f"hf:{name}", 4, seed) for seed in (0, 1))
        assert (label_histogram(labels, parts, 4) > 0).all()
        assert not np.array_equal(parts[0], others[0])

    def test_iid_sizes_agree(self) -> None:
        ours, theirs = (
            sorted(map(len, partition(LABELS, scheme, 7, 0)))
            for scheme in ("iid", "hf:IidPartitioner")
        )
        assert ours == theirs

    def test_classes_per_participant_agree(self) -> None:
        """Both give exactly 5 of 10 classes to each of 8; only ours balances the owners."""
        ours, theirs = (
            histogram(scheme, 8, num_classes_per_partition=5) > 0
            for scheme in ("classes-per-participant", "hf:PathologicalPartitioner")
        )
        assert (ours.sum(1) == 5).all()
        assert (theirs.sum(1) == 5).all()

    def test_shards_agree(self) -> None:
        ours, theirs = (
            histogram(scheme, 10, num_shards_per_partition=2)
            for scheme in ("shards", "hf:ShardPartitioner")
        )
        assert sorted(ours.sum(1).tolist()) == sorted(theirs.sum(1).tolist())
        assert (ours > 0).sum(1).max() == (theirs > 0).sum(1).max() == 2

    def test_dirichlet_label_proportions_agree(self) -> None:
        """The share of a class at a participant has the same mean and spread, over 20 seeds."""
        ours, theirs = (
            np.concatenate(
                [
                    histogram(scheme, 4, seed, alpha=0.5, min_partition_size=1) / 200
                    for seed in range(20)
                ]
            )
            for scheme in ("dirichlet", "hf:DirichletPartitioner")
        )
        assert ours.mean() == pytest.approx(theirs.mean())
        assert ours.std() == pytest.approx(theirs.std(), rel=0.15)
        assert np.quantile(ours, [0.25, 0.5, 0.75]) == pytest.approx(
            np.quantile(theirs, [0.25, 0.5, 0.75]), abs=0.06
        )

    @pytest.mark.parametrize(
        ("name", "params", "message"),
        [
            ("Dirichlet", {}, "partition='hf:Dirichlet' is unknown; choose one of: .*Dirichlet"),
            ("DirichletPartitioner", {}, "hf:DirichletPartitioner.*alpha"),
        ],
    )
    def test_adapter_names_what_is_wrong(self, name: str, params: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            partition(LABELS, f"hf:{name}", 8, 0, **params)


def test_adapter_without_flwr_datasets_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install 'flwr-datasets>="):
        partition(LABELS, "hf:IidPartitioner", 8, 0)
