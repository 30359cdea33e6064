"""What a run directory has as JSON: whole files, and the events of metrics.jsonl, a line each."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fl_app.record.metrics import Event
from strategies.checkpoint import atomic_write
from strategies.errors import RunDirectoryError


def plain(value: Any) -> Any:
    """Return `value` as strict JSON data: numpy to Python, tuples to lists, NaN and inf to None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, atomically."""
    atomic_write(path, json.dumps(plain(value), indent=2, allow_nan=False).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no file. RunDirectoryError if it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirectoryError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise RunDirectoryError(f"{path} is damaged: not a JSON object")
    return value


def event_of(line: bytes) -> Event | None:
    """The event in a line of metrics.jsonl; None if there is none."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    return event if isinstance(event.get("t_wall"), int | float) else None
