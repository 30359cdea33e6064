"""Flower's records as what the mail router carries: JSON for numbers and texts, and arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict


def parts_of(content: RecordDict) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(header, arrays) of a message's records; an array's name is "record/name"."""
    header: dict[str, Any] = {"config": {}, "metrics": {}}
    arrays: dict[str, np.ndarray] = {}
    header["arrays"] = list(content.array_records)
    for name, record in content.config_records.items():
        header["config"][name] = dict(record)
    for name, record in content.metric_records.items():
        header["metrics"][name] = dict(record)
    for name, record in content.array_records.items():
        arrays |= {f"{name}/{key}": array.numpy() for key, array in record.items()}
    return header, arrays


def content_of(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> RecordDict:
    """The records of `parts_of`. Raises ValueError for what is none."""
    try:
        content = RecordDict()
        for name, values in header["config"].items():
            content[name] = ConfigRecord(values)
        for name, values in header["metrics"].items():
            content[name] = MetricRecord(values)
        own: dict[str, dict[str, Array]] = {name: {} for name in header["arrays"]}
        for key, array in arrays.items():  # once, however many records there are
            name, _, rest = key.partition("/")
            own[name][rest] = Array(array)
        for name, found in own.items():
            content[name] = ArrayRecord(found)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no records of a message: {error!r}") from error
    return content
