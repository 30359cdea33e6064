"""People's own data: archives and folders as they come, and every way to be wrong."""

import contextlib
import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fl_app.config import resolve
from fl_app.data import (
    Dataset,
    Spec,
    foreign,
    load_dataset,
    load_shard,
    own,
    sets,
    spec_of,
)
from fl_app.problem import problem_of
from fl_app.record.figures import to_png
from fl_app.record.label_figure import label_figure
from strategies.errors import ConfigError, DataError
from strategies.problem import split_of
from tests.own_files import COLOUR, GREY, both_sets, pixels, use, whole, write_folder


@pytest.fixture(autouse=True)
def _nothing_cached() -> None:
    sets._load_files.cache_clear()


# ------------------------------------------------------------------ own data: a device's shard


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("keys", [("images", "labels"), ("x_train", "y_train")])
@pytest.mark.parametrize("layout", ["first", "last"])
def test_shard_from_npz(tmp_path: Path, spec: Spec, keys: tuple[str, str], layout: str) -> None:
    images, labels = pixels(spec, 5), np.array([0, 1, 2, 2, 0], np.int32)
    stored = images if layout == "first" else images.transpose(0, 2, 3, 1)
    np.savez_compressed(
        tmp_path / "mine.npz", allow_pickle=False, **dict(zip(keys, (stored, labels), strict=True))
    )
    shard = load_shard(tmp_path / "mine.npz", spec)
    assert np.array_equal(shard.images, images)
    assert shard.images.flags.c_contiguous
    assert shard.labels.dtype == np.int64
    assert shard.labels.tolist() == labels.tolist()


def test_grey_shard_without_a_channel_axis(tmp_path: Path) -> None:
    images = pixels(GREY, 3)
    np.savez(tmp_path / "mine.npz", images=images[:, 0], labels=np.zeros(3, int))
    assert np.array_equal(load_shard(str(tmp_path / "mine.npz"), GREY).images, images)


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
def test_shard_from_folders_named_by_class_or_number(tmp_path: Path, spec: Spec) -> None:
    images = pixels(spec, 4)
    write_folder(tmp_path, images, ["cat", "2", "cat", "dog"])
    (tmp_path / "cat" / "notes.txt").touch()
    (tmp_path / ".thumbnails").mkdir()
    shard = load_shard(tmp_path, spec)
    # "2" sorts before "cat" and "dog".
    assert shard.labels.tolist() == [2, 0, 0, 1]
    assert np.array_equal(shard.images, images[[1, 0, 2, 3]])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "has no array 'x_train'; it holds: nothing"),
        ({"images": pixels(GREY, 2)}, "has no array 'labels'; it holds: images"),
        ({"images": pixels(GREY, 2) / 255.0}, "images are float64; give pixels 0 to 255 as uint8"),
        (
            {"images": pixels(COLOUR, 2)},
            r"shape \(2, 3, 4, 6\); .*needs \(n, 1, 4, 6\)",
        ),
        ({"images": np.zeros(2, np.uint8)}, r"images have shape \(2,\)"),
        ({"images": np.zeros((0, 1, 4, 6), np.uint8)}, "there is no image"),
        ({"labels": np.array([0])}, r"labels have shape \(1,\) for 2 images"),
        ({"images": np.uint8(3)}, r"images have shape \(\)"),
        (
            {"labels": np.array([0, 3])},
            "label 3 means no class; this data set has 3 classes: cat, dog, emu",
        ),
        ({"labels": np.array([-1, 0])}, "label -1 is negative"),
        ({"labels": np.array([0.0, 1.0])}, "labels are float64; give class numbers as integers"),
        ({"labels": np.array([[0], [1]])}, r"labels have shape \(2, 1\) for 2 images"),
        ({"labels": np.array([0, None])}, "array 'labels' holds Python objects"),
    ],
)
def test_bad_npz_shards(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    complete = {"images": pixels(GREY, 2), "labels": np.array([0, 1])}
    missing = not arrays or (arrays.keys() == {"images"} and "no array" in message)
    np.savez(tmp_path / "mine.npz", allow_pickle=True, **(arrays if missing else complete | arrays))
    with pytest.raises(DataError, match=message):
        load_shard(tmp_path / "mine.npz", GREY)


def test_an_empty_shard_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", images=pixels(GREY, 0), labels=np.zeros(0, int))
    with pytest.raises(DataError, match="there is no image"):
        load_shard(tmp_path / "mine.npz", GREY)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"hello"])
def test_a_file_that_is_no_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"neither a folder nor a readable .npz file"):
        load_shard(tmp_path / "mine.npz", GREY)


def test_a_single_array_is_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", pixels(GREY, 2))
    with pytest.raises(DataError, match=r"neither a folder nor a readable .npz file"):
        load_shard(tmp_path / "mine.npy", GREY)


def test_bad_folder_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image in any class folder .*png"):
        load_shard(tmp_path, GREY)
    write_folder(tmp_path, pixels(GREY, 2), ["fox", "fox"])
    with pytest.raises(DataError, match=r"fox is not named after a class; .*cat, dog, emu"):
        load_shard(tmp_path, GREY)
    (tmp_path / "fox").rename(tmp_path / "cat")
    Image.new("L", (4, 6)).save(tmp_path / "cat" / "tall.png")
    with pytest.raises(DataError, match=r"tall.png has 6 x 4 pixels .*2 of 3 pictures have 4 x 6"):
        load_shard(tmp_path, GREY)
    (tmp_path / "cat" / "tall.png").unlink()
    with pytest.raises(DataError, match=r"000.png has 4 x 6 .*this data set has 5 x 6"):
        load_shard(tmp_path, replace(GREY, height=5))
    (tmp_path / "0").mkdir()
    with pytest.raises(DataError, match=r"folders '0' and 'cat' both mean class 'cat'"):
        load_shard(tmp_path, GREY)


# ------------------------------------------------------------------ own data: a whole data set


def check_own(dataset: Dataset, train: np.ndarray, test: np.ndarray) -> None:
    assert np.array_equal(dataset.train.images, train)
    assert np.array_equal(dataset.test.images, test)
    assert dataset.mean == pytest.approx((train / 255).mean((0, 2, 3)))
    assert dataset.std == pytest.approx((train / 255).std((0, 2, 3)))
    assert not dataset.flip


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
def test_own_data_set_from_folders(tmp_path: Path, spec: Spec) -> None:
    train, test = pixels(spec, 3), pixels(spec, 2)
    write_folder(tmp_path / "train", train, ["a", "b", "b"])
    write_folder(tmp_path / "test", test, ["a", "b"])
    dataset = load_dataset("files", data_path=str(tmp_path))
    check_own(dataset, train, test)
    assert dataset.classes == ("a", "b")
    assert dataset.train.labels.tolist() == [0, 1, 1]
    assert spec_of("files", str(tmp_path)) == dataset.spec


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("layout", ["n1hw", "nhw", "nhwc"])
def test_own_data_set_from_npz(tmp_path: Path, named: bool, layout: str) -> None:
    spec = COLOUR if layout == "nhwc" else GREY
    train, test = pixels(spec, 4), pixels(spec, 2)
    change = {
        "n1hw": lambda x: x,
        "nhw": lambda x: x[:, 0],
        "nhwc": lambda x: x.transpose(0, 2, 3, 1),
    }[layout]
    arrays = {"x_train": change(train), "x_test": change(test)}
    arrays |= {"y_train": np.array([0, 1, 1, 0]), "y_test": np.array([1, 0])}
    if named:
        arrays["classes"] = np.array(["no", "yes", "never seen"])
    np.savez(tmp_path / "mine.npz", allow_pickle=False, **arrays)
    dataset = load_dataset("files", data_path=str(tmp_path / "mine.npz"))
    check_own(dataset, train, test)
    assert dataset.classes == (("no", "yes", "never seen") if named else ("0", "1"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": np.zeros((2, 2, 4, 6), np.uint8)}, r"x_train has shape \(2, 2, 4, 6\)"),
        ({"y_train": np.zeros(2, int), "y_test": np.zeros(2, int)}, "at least 2 classes, not 1"),
        ({"y_train": np.array(["a", "b"])}, "y_train: labels are <U1; give class numbers"),
        ({"x_train": np.zeros((2, 3, 6, 3), np.uint8)}, r"x_train has shape \(2, 3, 6, 3\)"),
        ({"x_test": pixels(COLOUR, 2)}, r"x_test: images have shape \(2, 3, 4, 6\)"),
        ({"x_train": np.zeros((2, 4, 6), np.uint8)}, "one colour"),
        ({"classes": np.array(["one"])}, "at least 2 classes, not 1"),
        ({"classes": np.array("cat,dog")}, r"classes has shape \(\) .*a list of names"),
        ({"classes": np.array([0.5, 1])}, "classes has .*float64; give a list of names"),
        ({"classes": np.array([b"caf\xe9", b"dog"])}, "classes cannot be read .*utf-8"),
        ({"classes": np.array(["cat", "cat"])}, "two classes are called 'cat'"),
        ({"classes": np.array(["cat", " "])}, "' ' is no name of a class"),
        ({"classes": np.array(["cat", "d\nog"])}, r"'d\\nog' is no name of a class"),
        ({"classes": np.array(["1", "2"])}, "label 0 means no class; this data set has 2 classes"),
    ],
)
def test_bad_own_data_sets(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "mine.npz", allow_pickle=False, **(whole() | arrays))
    with pytest.raises(DataError, match=message):
        load_dataset("files", data_path=str(tmp_path / "mine.npz"))


def test_bad_own_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folder 'train'; give train/<class>/ and test/"):
        load_dataset("files", data_path=str(tmp_path))
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="train: no image in any class folder"):
        load_dataset("files", data_path=str(tmp_path))
    write_folder(tmp_path / "train", pixels(GREY, 1), ["a"])
    with pytest.raises(DataError, match="at least 2 classes, not 1"):
        load_dataset("files", data_path=str(tmp_path))


# ------------------------------------------------------------------ what is decided for all


def test_a_set_with_one_picture_in_colour_is_in_colour(tmp_path: Path) -> None:
    images = both_sets(tmp_path, ["ant", "bee"], COLOUR)
    Image.new("L", (6, 4), 77).save(tmp_path / "train" / "ant" / "000.png")
    dataset = use(tmp_path)
    assert dataset.spec.channels == 3
    assert (dataset.train.images[0] == 77).all()
    assert np.array_equal(dataset.train.images[1], images[1])


@pytest.mark.parametrize("how", ["deeper", "tif", "gif", "JPE"])
def test_pictures_count_wherever_in_their_class_they_are(tmp_path: Path, how: str) -> None:
    both_sets(tmp_path, ["ant", "bee"])
    file = tmp_path / "train" / "ant" / "000.png"
    if how == "deeper":
        (file.parent / "2024" / "may").mkdir(parents=True)
        file.rename(file.parent / "2024" / "may" / file.name)
    else:
        Image.open(file).save(file.with_suffix(f".{how}"))
        file.unlink()
    assert use(tmp_path).train.labels.tolist() == [0, 1]
    assert use(tmp_path).spec.channels == 1  # a grey GIF has a palette


def test_what_is_not_used_is_named_with_its_number(tmp_path: Path) -> None:
    both_sets(tmp_path, ["ant", "bee"])
    for name in (
        "train/ant/a.heic",
        "train/bee/b.HEIC",
        "train/loose.png",
        "test/ant/notes",
        "test/bee/Thumbs.db",
        "test/bee/._000.png",
        "test/.DS_Store",
        "labels.csv",
    ):
        (tmp_path / name).touch()
    (tmp_path / "test" / "__MACOSX").mkdir()
    (tmp_path / "train" / "ant" / "again").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "ant" / "gone.png").symlink_to(tmp_path / "nowhere")
    root = str(tmp_path)
    assert use(tmp_path).unused == (
        f"{root}: not used: 1 beside them: labels.csv",
        f"{root}/train: not used: 2 .heic (e.g. ant/a.heic), 1 in no class folder (e.g. "
        f"loose.png), 1 link(s) to folders (e.g. ant/again), 1 no file(s) (e.g. ant/gone.png)",
        f"{root}/test: not used: 4 hidden or of a system (e.g. .DS_Store), 1 without a suffix "
        f"(e.g. ant/notes)",
    )


def test_a_class_folder_may_be_a_link(tmp_path: Path) -> None:
    both_sets(tmp_path / "set", ["ant", "bee"])
    (tmp_path / "set" / "train" / "bee").rename(tmp_path / "elsewhere")
    (tmp_path / "set" / "train" / "bee").symlink_to(tmp_path / "elsewhere")
    assert use(tmp_path / "set").train.labels.tolist() == [0, 1]
    assert use(tmp_path / "set").unused == ()


def test_a_class_in_one_set_only_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    both_sets(tmp_path, ["1", "2", "3"])
    (tmp_path / "test" / "0").mkdir()
    (tmp_path / "test" / "2" / "001.png").rename(tmp_path / "test" / "0" / "001.png")
    with pytest.raises(
        DataError, match=r"class '0' \(0 in train, 1 in test\), '2' \(1 in train, 0"
    ):
        use(tmp_path)
    dataset = use(tmp_path, allow_missing_classes=True)
    assert dataset.classes == ("0", "1", "2", "3")
    assert dataset.train.labels.tolist() == [1, 2, 3]
    assert dataset.test.labels.tolist() == [0, 1, 3]


def test_a_class_without_any_picture_is_refused_with_what_is_there_instead(tmp_path: Path) -> None:
    both_sets(tmp_path, ["ant", "bee"])
    (tmp_path / "train" / "cow").mkdir()
    (tmp_path / "train" / "cow" / "a.heic").touch()
    with pytest.raises(DataError, match=r"no image of class 'cow' .*1 .heic \(e.g. cow/a.heic\)"):
        use(tmp_path)


# ------------------------------------------------------------------ which class is meant


def test_labels_that_are_identifiers_are_as_many_classes_as_occur(tmp_path: Path) -> None:
    names = np.array([7, 3_000_000_000, 31])
    arrays = {"x_train": pixels(GREY, 3), "x_test": pixels(GREY, 3)}
    np.savez(tmp_path / "a.npz", allow_pickle=False, y_train=names, y_test=names[::-1], **arrays)
    dataset = use(tmp_path / "a.npz")
    assert dataset.classes == ("7", "31", "3000000000")
    assert dataset.train.labels.tolist() == [0, 2, 1]
    # A device's labels mean the same, and none of them a class by its position.
    np.savez(tmp_path / "b.npz", images=pixels(GREY, 2), labels=np.array([31, 7], np.uint8))
    assert load_shard(tmp_path / "b.npz", dataset.spec).labels.tolist() == [1, 0]
    np.savez(tmp_path / "c.npz", images=pixels(GREY, 2), labels=np.array([31, 0]))
    with pytest.raises(DataError, match=r"label 0 means no class; .*3 classes: 7, 31, 3000000000"):
        load_shard(tmp_path / "c.npz", dataset.spec)


def test_a_devices_folder_called_by_a_number_is_that_class_or_none(tmp_path: Path) -> None:
    spec = replace(GREY, class_names=("1", "2", "3"))
    write_folder(tmp_path, pixels(GREY, 2), ["1", "3"])
    assert load_shard(tmp_path, spec).labels.tolist() == [0, 2]
    (tmp_path / "3").rename(tmp_path / "0")
    with pytest.raises(DataError, match=r"0 is not named after a class; .*3 classes: 1, 2, 3"):
        load_shard(tmp_path, spec)


def test_classes_that_are_called_numbers_are_in_their_order(tmp_path: Path) -> None:
    both_sets(tmp_path, [str(i) for i in range(11)])
    dataset = use(tmp_path)
    assert dataset.classes == tuple(str(i) for i in range(11))


def test_names_are_the_same_however_their_letters_are_composed(tmp_path: Path) -> None:
    composed, taken_apart = "k\u00e4fer", "ka\u0308fer"
    both_sets(tmp_path, ["ant", taken_apart])
    (tmp_path / "train" / taken_apart).rename(tmp_path / "train" / composed)
    assert use(tmp_path).classes == ("ant", composed)
    write_folder(tmp_path / "train", pixels(GREY, 1), [taken_apart])
    with pytest.raises(DataError, match="two folders 'k\u00e4fer', which differ only in how"):
        load_shard(tmp_path / "train", replace(GREY, class_names=("ant", composed)))


def test_names_of_an_archive_are_as_people_write_them(tmp_path: Path) -> None:
    names = np.array(["\ufeffant".encode(), "ka\u0308fer".encode()])
    np.savez(tmp_path / "a.npz", allow_pickle=False, **whole(classes=names))
    assert use(tmp_path / "a.npz").classes == ("ant", "k\u00e4fer")


@pytest.mark.parametrize("types", [("u8", "i8"), ("i1", "u8"), (">i4", "<u2")])
def test_labels_may_be_integers_of_any_type(tmp_path: Path, types: tuple[str, str]) -> None:
    labels = {
        f"y_{part}": np.array([7, 31], t) for part, t in zip(("train", "test"), types, strict=True)
    }
    np.savez(tmp_path / "a.npz", allow_pickle=False, **whole(**labels))
    dataset = use(tmp_path / "a.npz")
    assert dataset.classes == ("7", "31")
    assert dataset.test.labels.tolist() == [0, 1]


# ------------------------------------------------------------------ archives that are wrong


def edited(content: bytes, magic: bytes, offset: int, change: int) -> bytes:
    """The archive with a byte of each of its headers of one kind changed."""
    data, at = bytearray(content), -1
    while (at := data.find(magic, at + 1)) >= 0:
        data[at + offset] ^= change
    return bytes(data)


def archive(member: bytes, name: str = "x_train.npy") -> bytes:
    """A good archive but for one member."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for key, array in whole().items():
            own = io.BytesIO()
            np.save(own, array)
            file.writestr(f"{key}.npy", member if f"{key}.npy" == name else own.getvalue())
    return stream.getvalue()


def claim(shape: tuple[int, ...], rest: int = 64, **fields: Any) -> bytes:
    """An array's header, and so many bytes after it."""
    header = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": shape} | fields
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue() + bytes(rest)


GOOD = archive(b"", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (edited(edited(GOOD, b"PK\3\4", 8, 9), b"PK\1\2", 10, 9), "'x_train' cannot be read .*com"),
        (edited(edited(GOOD, b"PK\3\4", 6, 1), b"PK\1\2", 8, 1), "'x_train' cannot be read .*encr"),
        (edited(GOOD, b"PK\1\2", 16, 1), "'x_train' cannot be read .*CRC"),
        (GOOD[: len(GOOD) // 2], "neither a folder nor a readable .npz file"),
        (archive(b"abc"), "array 'x_train' is no NumPy array"),
        (archive(b""), "array 'x_train' is no NumPy array"),
        (archive(b"\x93NUMPY\3\0"), r"'x_train' has version \(3, 0\)"),
        (archive(b"\x93NUMPY\1\0\xff\xff{'descr"), "'x_train' cannot be read"),
        (archive(b"\x93NUMPY\1\0\5\0{'a'("), "'x_train' cannot be read"),
        (archive(claim((10**7, 1000, 1000))), "header says 10,000,000,000,000 bytes, .* are 64"),
        (archive(claim((-8, -8))), "damaged"),
        (archive(claim((2, 4, 6), descr="|O")), "'x_train' holds Python objects"),
        (archive(claim((2, 4, 6), rest=49)), "header says 48 bytes, and there are 49"),
    ],
)  # fmt: skip
def test_damaged_archives_end_in_a_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=f"^{tmp_path}/a.npz.*{message}") as refusal:
        load_dataset("files", data_path=str(tmp_path / "a.npz"))
    assert "\n" not in str(refusal.value)


def test_any_byte_may_be_wrong(tmp_path: Path) -> None:
    """The same images, or a DataError: of a stored archive and of a compressed one."""
    arrays = whole()
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, allow_pickle=False, **arrays)
        for at in range(0, len(stream.getvalue()), 3):
            content = bytearray(stream.getvalue())
            content[at] ^= 0xFF
            (tmp_path / "a.npz").write_bytes(content)
            with contextlib.suppress(DataError):
                assert np.array_equal(
                    own.load_files(tmp_path / "a.npz").train.images[:, 0], arrays["x_train"][:, 0]
                )


def test_an_array_larger_than_the_memory_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", allow_pickle=False, **whole())
    monkeypatch.setattr(foreign, "available_memory", lambda: 47.0)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("it is read"))
    with pytest.raises(DataError, match=r"'x_train' would take .* GB of memory"):
        load_dataset("files", data_path=str(tmp_path / "a.npz"))


@pytest.mark.parametrize("name", ["y_train", "x_test", "y_test", "classes"])
def test_no_image_is_read_before_all_headers_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    np.savez(tmp_path / "a.npz", allow_pickle=False, **whole(**{name: np.zeros((), "f8")}))
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("it is read"))
    with pytest.raises(DataError, match=name):
        load_dataset("files", data_path=str(tmp_path / "a.npz"))


def test_images_of_another_type_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", allow_pickle=False, **whole(x_train=np.zeros((2, 4, 6))))
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("it is read"))
    with pytest.raises(DataError, match="x_train: images are float64"):
        load_dataset("files", data_path=str(tmp_path / "a.npz"))


def test_an_array_of_that_name_twice(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", allow_pickle=False, **whole())
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as file:
        file.writestr("x_train", b"another one")
    with pytest.raises(DataError, match=r"a.npz holds 'x_train' twice"):
        use(tmp_path / "a.npz")


def test_arrays_that_are_not_used_are_named(tmp_path: Path) -> None:
    more = {"x_val": pixels(GREY, 1), "__MACOSX/._x_val": np.zeros(3)}
    np.savez(tmp_path / "a.npz", allow_pickle=False, **whole(**more))
    assert use(tmp_path / "a.npz").unused == (f"{tmp_path}/a.npz: 1 array(s) not used: x_val",)


def test_paths_that_are_no_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    for path, message in (
        (tmp_path / "pipe", "neither a folder nor a file"),
        (tmp_path / "round", "cannot be found: .*[Ss]ymbolic"),
        (tmp_path / ("a" * 300), "cannot be found: .*too long"),
        ("~nobody-of-that-name/x", "cannot be found: "),
        ("/a\0b", r"'/a\\x00b' cannot be found"),
    ):
        with pytest.raises(DataError, match=f"data-path=.*{message}") as refusal:
            load_dataset("files", data_path=str(path))
        assert "\n" not in str(refusal.value)


# ------------------------------------------------------------------ machines that are otherwise


def test_a_name_that_is_no_text_is_told_in_one_that_is(tmp_path: Path) -> None:
    """As a file system has it that was written with another encoding."""
    both_sets(tmp_path, ["ant", "bee"])
    odd = os.fsdecode(b"caf\xe9")
    for part in ("train", "test"):
        (tmp_path / part / "bee").rename(tmp_path / part / odd)
    with pytest.raises(DataError, match=r"'caf\\+udce9' is no name of a class") as refusal:
        use(tmp_path)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("name", ["$\\frac$", "$x^$", "k\u00e4fer", "<b>", "_ant"])
def test_a_class_of_any_name_is_drawn(name: str) -> None:
    """And a data set or a metric of any: in titles and beside axes, too."""
    figure = label_figure(np.ones((2, 2), np.int64), (name, "dog"), name, who=name)
    [axes] = figure.axes
    axes.annotate(name, (1, 1))
    assert to_png(figure).startswith(b"\x89PNG")
    [drawn, _] = figure.legends[0].get_texts()
    assert drawn.get_text().endswith(name)


def test_powers_of_ten_stay_formulas() -> None:
    figure = label_figure(np.array([[5, 900]]), ("ant", "bee"), "title")
    [axes] = figure.axes
    axes.set_xscale("log")
    assert to_png(figure).startswith(b"\x89PNG")
    assert all(text.get_parse_math() for text in axes.get_xticklabels())


def test_a_whole_set_is_no_devices_part(tmp_path: Path) -> None:
    both_sets(tmp_path, ["cat", "dog"])
    with pytest.raises(DataError, match=r"training and a test set; .*dataset=files"):
        load_shard(tmp_path, GREY)


def test_a_set_too_small_for_what_the_server_holds_out_names_the_keys(tmp_path: Path) -> None:
    both_sets(tmp_path, ["cat", "dog"])
    config = resolve({"dataset": "files", "data-path": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"proxy-examples=1 and validation-examples=1 .* 2 "):
        split_of(problem_of(config))
