"""Any partitioner of flwr-datasets as a partition scheme (needs the extra `hf`)."""

import inspect
from typing import Any

import numpy as np

from strategies.pyproject import install
from strategies.randomness import rng


def flwr_datasets_partition(
    labels: np.ndarray, name: str, num_partitions: int, seed: int, **params: Any
) -> list[np.ndarray]:
    """Return the index lists that ``flwr_datasets.partitioner.<name>`` makes of `labels`.

    The partitioner sees a data set of labels only, in memory and in an order by `seed`: some, such
    as IidPartitioner, cut it as it comes, and labels often come class by class. It gets those of
    `num_partitions`, `seed`, ``partition_by="label"`` and `params` that its constructor knows.

    Raises:
        ValueError: flwr-datasets is not installed or has no such partitioner, or the partitioner
            refuses the parameters or makes another number of partitions.
    """
    try:
        from datasets import Dataset
        from flwr_datasets import partitioner as partitioners
    except ImportError as error:
        raise ValueError(f"partition='hf:{name}' needs flwr-datasets: {install('hf')}") from error
    names = sorted(set(partitioners.__all__) - {"Partitioner"})
    if name not in names:
        raise ValueError(f"partition='hf:{name}' is unknown; choose one of: {', '.join(names)}")
    maker = getattr(partitioners, name)
    offered = {"num_partitions": num_partitions, "partition_by": "label", "seed": seed} | params
    known = inspect.signature(maker).parameters
    try:
        partitioner = maker(**{key: value for key, value in offered.items() if key in known})
        order = rng(seed, "partition", name).permutation(len(labels))
        partitioner.dataset = Dataset.from_dict({"label": labels[order], "index": order})
        parts = [
            np.asarray(partitioner.load_partition(i)["index"], np.int64)
            for i in range(partitioner.num_partitions)
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(f"partition='hf:{name}': {error}") from error
    if len(parts) != num_partitions:
        raise ValueError(
            f"partition='hf:{name}' makes {len(parts)} partitions, not {num_partitions}"
        )
    return parts
