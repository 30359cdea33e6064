"""Data sets, their partition among participants, and the way from pixels to model input."""

from fl_app.data.augment import Preparation, augment, normalise
from fl_app.data.images import Dataset, ImageSet, Spec
from fl_app.data.own import is_whole, load_shard
from fl_app.data.partition import PARTITIONS, Split, label_histogram, make_split, partition
from fl_app.data.sets import DATASETS, load_dataset, spec_of

__all__ = [
    "DATASETS",
    "PARTITIONS",
    "Dataset",
    "ImageSet",
    "Preparation",
    "Spec",
    "Split",
    "augment",
    "is_whole",
    "label_histogram",
    "load_dataset",
    "load_shard",
    "make_split",
    "normalise",
    "partition",
    "spec_of",
]
