"""Atomic files and bit-exact arrays."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from strategies import checkpoint
from strategies.checkpoint import atomic_save, load_tensors
from strategies.errors import RunDirectoryError

GENERATOR = np.random.default_rng(0)
ARRAYS = {
    "float32": GENERATOR.normal(size=(3, 4)).astype(np.float32),
    "float64": GENERATOR.normal(size=7),
    "special": np.array([np.nan, -np.nan, np.inf, -0.0, 5e-324]),
    "float16": GENERATOR.normal(size=2).astype(np.float16),
    "int64": np.array([-(2**63), 2**63 - 1]),
    "uint64": np.array([2**64 - 1], dtype=np.uint64),
    "uint8": np.arange(256, dtype=np.uint8).reshape(2, 4, 32),
    "bool": np.array([True, False]),
    "scalar": np.array(np.float32(0.1)),
    "scalar int": np.array(-3, dtype=np.int64),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "strided": np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::-1],
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_comes_back_bit_exactly(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    atomic_save(path, {name: ARRAYS[name]}, {})
    loaded = load_tensors(path)[0][name]
    assert (loaded.dtype, loaded.shape) == (ARRAYS[name].dtype, ARRAYS[name].shape)
    assert loaded.tobytes() == ARRAYS[name].tobytes()


def test_all_arrays_and_metadata_come_back_together(tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    metadata = {"round": 3, "t": 0.1, "note": 'été "quoted"', "nested": {"list": [1, None, True]}}
    atomic_save(path, ARRAYS, metadata)
    loaded, described = load_tensors(path)
    assert described == metadata
    assert set(loaded) == set(ARRAYS)
    assert all(loaded[name].tobytes() == ARRAYS[name].tobytes() for name in ARRAYS)


def test_a_loaded_array_may_be_changed(tmp_path: Path) -> None:
    atomic_save(tmp_path / "a", {"w": np.zeros(3, dtype=np.float32)}, {})
    loaded = load_tensors(tmp_path / "a")[0]["w"]
    loaded += 1
    assert loaded.tolist() == [1, 1, 1]


def test_nothing_at_all_can_be_saved(tmp_path: Path) -> None:
    atomic_save(tmp_path / "none", {}, {})
    assert load_tensors(tmp_path / "none") == ({}, {})


def test_what_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'words' has dtype"):
        atomic_save(tmp_path / "a", {"words": np.array(["x"])}, {})
    with pytest.raises(ValueError, match=r"'thing' has dtype object"):
        atomic_save(tmp_path / "a", {"thing": np.array([None])}, {})
    with pytest.raises(ValueError, match=r"metadata of a is not JSON"):
        atomic_save(tmp_path / "a", {}, {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"absent.safetensors does not exist"):
        load_tensors(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 7, 8, 30, -1])
def test_a_truncated_file_is_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "round-3.safetensors"
    atomic_save(path, ARRAYS, {"round": 3})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RunDirectoryError, match=r"round-3.safetensors is damaged"):
        load_tensors(path)


def test_garbage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    path.write_bytes(np.random.default_rng(1).bytes(5000))
    with pytest.raises(RunDirectoryError, match=r"g.safetensors is damaged"):
        load_tensors(path)


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    atomic_save(path, {"w": np.zeros(100, dtype=np.float32)}, {})
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunDirectoryError, match=r"f.safetensors is damaged.*checksum"):
        load_tensors(path)


def test_another_programs_file_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(3, dtype=np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(RunDirectoryError, match=r"other.safetensors was not written by edge-fl"):
        load_tensors(tmp_path / "other.safetensors")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "last.safetensors"
    atomic_save(path, {"w": np.ones(3)}, {"round": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, failing, full)
        with pytest.raises(RunDirectoryError, match=r"last.safetensors: No space left on device"):
            atomic_save(path, {"w": np.zeros(3)}, {"round": 2})
    arrays, metadata = load_tensors(path)
    assert (arrays["w"].tolist(), metadata) == ([1, 1, 1], {"round": 1})
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_write_that_fails_half_way_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.safetensors"
    atomic_save(path, {"w": np.ones(3)}, {})
    before = path.read_bytes()
    real = open

    def open_full(file: Path, mode: str = "r", **_: object) -> object:
        real(file, mode).close()  # the draft exists, as it would when the disk fills up
        return real("/dev/full", mode)

    monkeypatch.setattr("builtins.open", open_full)
    with pytest.raises(RunDirectoryError, match=r"No space left on device"):
        atomic_save(path, {"w": np.zeros(3)}, {})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_directory_to_write_into_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"cannot write .*gone/a"):
        atomic_save(tmp_path / "gone" / "a", {}, {})
