"""Data sets, and the way from pixels to model input."""

from fl_app.data.augment import Preparation, augment, normalise
from fl_app.data.images import Dataset, ImageSet, Spec
from fl_app.data.own import is_whole, load_shard
from fl_app.data.sets import DATASETS, load_dataset, spec_of

__all__ = [
    "DATASETS",
    "Dataset",
    "ImageSet",
    "Preparation",
    "Spec",
    "augment",
    "is_whole",
    "load_dataset",
    "load_shard",
    "normalise",
    "spec_of",
]
