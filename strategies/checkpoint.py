"""Files that are either the old one or the new one, and arrays that come back bit-exactly."""

import json
import os
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from strategies.errors import RunDirectoryError

_METADATA = "edge_fl"
_CHECKSUM = "crc32"


def atomic_write(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put `data` at `path` so that a crash at any moment leaves the old file or the new one.

    durable=False spares the wait for the disk where only crashes of processes matter, not power
    cuts: mail between processes, which a resumed run writes anew.

    Raises RunDirectoryError when the file system refuses (full, read-only, gone); whatever was at
    `path` before is then still there, and no temporary file stays behind.
    """
    # Process and thread are part of the name: two writers of one file must not share a draft.
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        try:
            with open(draft, "wb") as file:
                file.write(data)
                file.flush()
                if durable:  # else a power cut may leave the new name pointing at an empty file
                    os.fsync(file.fileno())
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        if durable:
            _sync_directory(path.parent)
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another "
            f"place for runs (what was there before is unchanged)"
        ) from error


def _sync_directory(path: Path) -> None:
    if os.name != "posix":  # other systems cannot open a directory
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_save(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any] | None = None,
    *,
    durable: bool = True,
) -> None:
    """Write named arrays and JSON metadata as one safetensors file, atomically.

    Any shape (0-d and empty too) of bool, integer and float dtypes comes back bit-exactly from
    `load_tensors`. Raises RunDirectoryError when the file cannot be written, ValueError for an
    array or a metadata value that the format cannot hold.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise ValueError(
                f"checkpoint array {name!r} has dtype {array.dtype}; only bool, integer and "
                f"float arrays can be saved"
            )
    try:
        described = json.dumps(dict(metadata or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata of {path.name} is not JSON: {error}") from error
    header = {_METADATA: described, _CHECKSUM: _checksum(arrays, described)}
    atomic_write(path, save(arrays, header), durable=durable)


def load_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read (arrays, metadata) written by `atomic_save`.

    Raises RunDirectoryError naming the file when it is missing, truncated, altered or of another
    kind: a resumed run has to continue from exactly what was saved, or not at all.
    """
    path = Path(path)
    if not path.is_file():
        raise RunDirectoryError(f"checkpoint {path} does not exist")
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            names = file.keys()
            arrays = {name: file.get_tensor(name) for name in names}
        described = header[_METADATA]
        if header[_CHECKSUM] != _checksum(arrays, described):
            raise ValueError("its checksum does not match its content")
        return arrays, json.loads(described)
    except KeyError as error:
        raise RunDirectoryError(
            f"checkpoint {path} was not written by edge-fl (its header has no {error})"
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise RunDirectoryError(f"checkpoint {path} is damaged: {error}") from error


def _checksum(arrays: Mapping[str, np.ndarray], described: str) -> str:
    value = zlib.crc32(described.encode())
    for name in sorted(arrays):
        array = arrays[name]
        value = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), value)
        # An array with no elements has no buffer that can be cast to bytes.
        value = zlib.crc32(array.tobytes() if array.size == 0 else array.reshape(-1).data, value)
    return f"{value:08x}"
