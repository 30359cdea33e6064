"""Data sets from every source, a device's own data, and the way from pixels to model input."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fl_app.data import (
    DATASETS,
    Dataset,
    Spec,
    augment,
    embedded,
    load_dataset,
    load_shard,
    normalise,
    sets,
    spec_of,
)
from fl_app.errors import DataError

RNG = np.random.default_rng(5)
GREY = Spec(1, 4, 6, ("cat", "dog", "emu"), (0.5,), (0.25,), flip=False)
COLOUR = Spec(3, 4, 6, ("cat", "dog", "emu"), (0.5,) * 3, (0.25,) * 3, flip=False)

# ------------------------------------------------------------------ data sets by name


class _Native:
    """What torchvision gives for each data set: 20 training and 10 test images in its layout."""

    def __init__(self, root: str, download: bool = False, **part: object) -> None:
        if download:
            self.download(Path(root))
        elif not (Path(root) / "present").exists():
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        assert part in ({"train": True}, {"train": False}, {"split": "train"}, {"split": "test"})
        self.n = 20 if part in ({"train": True}, {"split": "train"}) else 10
        self.targets: object = self.label_list()

    def label_list(self) -> list[int]:
        return [i % 10 for i in range(self.n)]

    def download(self, root: Path) -> None:
        (root / "present").touch()
        (root / "archive.tar.gz").touch()


class _Cifar(_Native):
    @property
    def data(self) -> np.ndarray:
        return np.broadcast_to(np.arange(3, dtype=np.uint8), (self.n, 32, 32, 3))


class _Mnist(_Native):
    def __init__(self, root: str, **options: bool) -> None:
        super().__init__(root, **options)
        self.targets = torch.tensor(self.label_list())

    @property
    def data(self) -> torch.Tensor:
        return torch.zeros(self.n, 28, 28, dtype=torch.uint8)


class _Svhn(_Native):
    def __init__(self, root: str, split: str, **options: bool) -> None:
        super().__init__(root, split=split, **options)
        del self.targets
        self.labels = np.array(self.label_list())

    @property
    def data(self) -> np.ndarray:
        channels = np.arange(3, dtype=np.uint8)[:, None, None]
        return np.broadcast_to(channels, (self.n, 3, 32, 32))


NATIVE = {
    "fashion-mnist": ("FashionMNIST", _Mnist),
    "mnist": ("MNIST", _Mnist),
    "cifar10": ("CIFAR10", _Cifar),
    "cifar100": ("CIFAR100", _Cifar),
    "svhn": ("SVHN", _Svhn),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, on disk and in memory."""
    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path / "home"))
    sets._load_named.cache_clear()
    sets._load_files.cache_clear()
    return tmp_path / "home"


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    """Replace torchvision's readers, which would want hundreds of megabytes, by `_Native`."""
    module = importlib.import_module("torchvision.datasets")
    for class_name, reader in NATIVE.values():
        monkeypatch.setattr(module, class_name, reader)
    return lambda reader: monkeypatch.setattr(module, "CIFAR10", reader)


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("name", DATASETS)
def test_every_named_set_is_what_its_spec_says(name: str, home: Path) -> None:
    spec = DATASETS[name]
    assert spec_of(name) is spec
    assert len(spec.mean) == len(spec.std) == spec.channels
    assert len(set(spec.class_names)) == spec.classes
    assert not home.exists()  # so far nothing was loaded

    dataset = load_dataset(name)
    assert dataset.spec == Spec(*(getattr(spec, field) for field in Spec.__dataclass_fields__))
    for part in (dataset.train, dataset.test):
        assert part.images.shape == (len(part), spec.channels, spec.height, spec.width)
        assert part.images.dtype == np.uint8
        assert part.images.flags.c_contiguous
        assert part.labels.dtype == np.int64
        assert part.labels.shape == (len(part),)
        assert set(part.labels.tolist()) <= set(range(spec.classes))
    assert len(dataset.train) > len(dataset.test)
    assert load_dataset(name) is dataset


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_channels_come_first(name: str) -> None:
    images = load_dataset(name).train.images
    assert [np.unique(images[:, c]).tolist() for c in range(3)] == [[0], [1], [2]]


def test_torchvision_reads_real_files_under_data_root(tmp_path: Path) -> None:
    """The real reader on the published file format: magic number, sizes, bytes."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = {n: RNG.integers(0, 256, (n, 28, 28), np.uint8) for n in (4, 2)}
    for prefix, n in (("train", 4), ("t10k", 2)):
        sizes = np.array([0x803, n, 28, 28], ">i4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(sizes + pixels[n].tobytes())
        labels = np.array([0x801, n], ">i4").tobytes() + bytes(range(n))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    dataset = load_dataset("mnist", str(tmp_path))
    assert np.array_equal(dataset.train.images[:, 0], pixels[4])
    assert np.array_equal(dataset.test.images[:, 0], pixels[2])
    assert dataset.train.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.usefixtures("torchvision")
def test_a_download_keeps_the_data_and_not_the_archive(home: Path) -> None:
    load_dataset("cifar10")
    assert [p.name for p in (home / "data").rglob("*")] == ["CIFAR10", "present"]


def test_what_is_cached_is_not_downloaded_again(torchvision: Callable[[type], None]) -> None:
    class Offline(_Cifar):
        def download(self, root: Path) -> None:
            raise AssertionError(f"downloaded again into {root}")

    load_dataset("cifar10")
    sets._load_named.cache_clear()
    torchvision(Offline)
    assert len(load_dataset("cifar10").train) == 20


def test_a_simultaneous_download_of_another_process_wins(
    torchvision: Callable[[type], None], home: Path
) -> None:
    class Late(_Cifar):
        def download(self, root: Path) -> None:
            super().download(root)
            other = home / "data" / "CIFAR10"
            other.mkdir(exist_ok=True)
            (other / "present").touch()

    torchvision(Late)
    assert len(load_dataset("cifar10").train) == 20
    assert [p.name for p in (home / "data").iterdir()] == ["CIFAR10"]


@pytest.mark.parametrize("failure", [OSError("no route to host"), RuntimeError("bad md5")])
def test_without_a_network_the_ways_out_are_named_and_nothing_is_left(
    torchvision: Callable[[type], None], home: Path, failure: Exception
) -> None:
    class Offline(_Cifar):
        def download(self, root: Path) -> None:
            (root / "half.tar.gz").touch()
            raise failure

    torchvision(Offline)
    with pytest.raises(DataError, match=f"{failure}.*network.*data-root=.*dataset=embedded"):
        load_dataset("cifar10")
    assert list((home / "data").iterdir()) == []


@pytest.mark.usefixtures("torchvision")
def test_a_data_root_without_the_data_is_never_written_to(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"empty' does not hold torchvision's CIFAR10 .*embedded"):
        load_dataset("cifar10", str(empty))
    assert list(empty.iterdir()) == []


def test_a_missing_package_is_named(torchvision: Callable[[type], None]) -> None:
    class NeedsScipy(_Cifar):
        def label_list(self) -> list[int]:
            raise ImportError("No module named 'scipy'")

    torchvision(NeedsScipy)
    with pytest.raises(DataError, match=r"CIFAR10 needs a package that is missing.*scipy"):
        load_dataset("cifar10")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cifar",), "dataset='cifar' is unknown; choose one of: cifar10, .*embedded.*files"),
        (("cifar10", "data"), "data-root='data' is relative.*give an absolute path"),
        (("files",), "dataset='files' needs data-path=PATH"),
        (("files", "", "mine.npz"), "data-path='mine.npz' is relative.*absolute"),
        (("files", "", "/no/such.npz"), "data-path='/no/such.npz' does not exist"),
    ],
)
def test_bad_names_and_paths(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(*arguments)


def test_spec_of_an_unknown_name() -> None:
    with pytest.raises(DataError, match="dataset='cifar' is unknown"):
        spec_of("cifar")


def test_importing_the_data_package_is_cheap() -> None:
    heavy = "{'PIL', 'torchvision', 'datasets', 'matplotlib', 'flwr'}"
    code = f"import sys, fl_app.data; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------ the embedded data set


def test_embedded_set_is_balanced_and_test_images_are_no_training_images() -> None:
    dataset = load_dataset("embedded")
    assert np.bincount(dataset.train.labels).tolist() == [600] * 10
    assert np.bincount(dataset.test.labels).tolist() == [100] * 10
    train, test = (
        {image.tobytes() for image in part.images} for part in (dataset.train, dataset.test)
    )
    assert (len(train), len(test)) == (6000, 1000)
    assert not train & test


def test_embedded_statistics_are_those_of_the_original() -> None:
    """The subset's mean and std differ from the 60,000 images' by less than half a percent."""
    spec, pixels = DATASETS["embedded"], load_dataset("embedded").train.images / 255
    assert pixels.mean() == pytest.approx(spec.mean[0], rel=5e-3)
    assert pixels.std() == pytest.approx(spec.std[0], rel=5e-3)


def test_embedded_files_are_small_text_with_their_licence() -> None:
    files = sorted(embedded.DIRECTORY.iterdir())
    # Flower takes along only these formats, and 10 MB of them in all.
    assert {file.suffix for file in files} == {".jsonl", ".md"}
    assert sum(file.stat().st_size for file in files) < 4_000_000
    assert "Zalando SE" in (embedded.DIRECTORY / "README.md").read_text(encoding="utf-8")


def test_sheets_are_lossless() -> None:
    images = RNG.integers(0, 256, (3 * embedded.COLUMNS, 4, 6), np.uint8)
    sheet = embedded.to_sheet(images)
    assert sheet.shape == (3 * 4, embedded.COLUMNS * 6)
    assert np.array_equal(sheet[4:8, 6:12], images[embedded.COLUMNS + 1])
    assert np.array_equal(embedded.from_sheet(sheet, len(images)), images)


ORIGINALS = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="package dataset-fashion-mnist not installed")
def test_embedded_images_are_the_first_of_each_class() -> None:
    script = importlib.import_module("experiments.embed_fashion_mnist")
    dataset = load_dataset("embedded")
    seen: set[bytes] = set()
    for name, part in (("train", dataset.train), ("test", dataset.test)):
        chosen = script.select(
            *script.read_originals(ORIGINALS, name), script.PER_CLASS[name], seen
        )
        for label, images in chosen.items():
            assert np.array_equal(part.images[part.labels == label, 0], images)


@pytest.mark.parametrize("damage", ["missing", "truncated", "not json"])
def test_damaged_embedded_data(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (embedded.DIRECTORY / "fashion-mnist-train.jsonl").read_text()
    if damage != "missing":
        text = text[:5000] if damage == "truncated" else "hello"
        (tmp_path / "fashion-mnist-train.jsonl").write_text(text)
    monkeypatch.setattr(embedded, "DIRECTORY", tmp_path)
    with pytest.raises(DataError, match=r"embedded data set is damaged .*install the app again"):
        load_dataset("embedded")


# ------------------------------------------------------------------ own data: a device's shard


def pixels(spec: Spec, n: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, spec.channels, spec.height, spec.width), np.uint8)


def write_folder(folder: Path, images: np.ndarray, names: list[str]) -> None:
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        array = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(array).save(folder / name / f"{i:03}.png")


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
        ({"images": np.zeros((0, 1, 4, 6), np.uint8)}, r"labels have shape \(2,\) for 0 images"),
        ({"labels": np.array([0, 3])}, "labels run from 0 to 3; this data set has 3 classes"),
        ({"labels": np.array([-1, 0])}, "labels run from -1 to 0"),
        ({"labels": np.array([0.0, 1.0])}, "labels are float64; give class numbers as integers"),
        ({"labels": np.array([[0], [1]])}, r"labels have shape \(2, 1\) for 2 images"),
        ({"labels": np.array([0, None])}, "array 'labels' cannot be read .*allow_pickle"),
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
    write_folder(tmp_path, pixels(GREY, 1), ["fox"])
    with pytest.raises(DataError, match=r"fox is not named after a class; .*cat, dog, emu"):
        load_shard(tmp_path, GREY)
    (tmp_path / "fox").rename(tmp_path / "cat")
    Image.new("L", (4, 6)).save(tmp_path / "cat" / "tall.png")
    with pytest.raises(DataError, match=r"tall.png has 6 x 4 pixels .*has 4 x 6"):
        load_shard(tmp_path, GREY)
    Image.new("I;16", (6, 4)).save(tmp_path / "cat" / "tall.png")
    with pytest.raises(DataError, match=r"tall.png has pixels of mode I;16; give 8 bits"):
        load_shard(tmp_path, GREY)
    (tmp_path / "cat" / "tall.png").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"tall.png is not a readable image"):
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
        ({"y_train": np.array([0, 0])}, "at least 2 classes, not 1"),
        ({"y_train": np.array(["a", "b"])}, "y_train must hold class numbers"),
        ({"y_test": np.array([0, 2])}, "x_test: labels run from 0 to 2"),
        ({"x_test": pixels(COLOUR, 2)}, r"x_test: images have shape \(2, 3, 4, 6\)"),
        ({"x_train": np.zeros((2, 4, 6), np.uint8)}, "one colour"),
        ({"classes": np.array(["one"])}, "at least 2 classes, not 1"),
    ],
)
def test_bad_own_data_sets(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    two = np.array([0, 1])
    good = {"x_train": pixels(GREY, 2), "y_train": two, "x_test": pixels(GREY, 2), "y_test": two}
    np.savez(tmp_path / "mine.npz", allow_pickle=False, **(good | arrays))
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


# ------------------------------------------------------------------ pixels to model input


def channels_last(tensor: torch.Tensor) -> bool:
    _, c, h, w = tensor.shape
    return tensor.stride() == (h * w * c, 1, w * c, c)


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
def test_normalise(spec: Spec) -> None:
    images = torch.from_numpy(pixels(spec, 3))
    mean, std = spec.mean, tuple(0.2 + 0.1 * c for c in range(spec.channels))
    result = normalise(images, mean, std)
    shape = (1, spec.channels, 1, 1)
    expected = (images.double() / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(
        shape
    )
    assert result.dtype == torch.float32
    assert channels_last(result)
    torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
def test_augment_equals_an_image_by_image_reference(spec: Spec, flip: bool) -> None:
    """Draws: all vertical offsets, all horizontal offsets, all mirrors; then crop and mirror."""
    n, shift = 40, 2
    images = pixels(spec, n)
    generator = np.random.default_rng(1)
    result = augment(
        torch.from_numpy(images), generator, mean=spec.mean, std=spec.std, flip=flip, shift=shift
    )

    reference = np.random.default_rng(1)
    top, left = reference.integers(0, 2 * shift + 1, (2, n))
    mirrored = reference.integers(0, 2, n)
    expected = np.empty_like(images)
    for i, image in enumerate(images):
        padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift)))
        crop = padded[:, top[i] : top[i] + spec.height, left[i] : left[i] + spec.width]
        expected[i] = crop[:, :, ::-1] if flip and mirrored[i] else crop
    assert torch.equal(result, normalise(torch.from_numpy(expected), spec.mean, spec.std))
    assert channels_last(result)
    assert generator.bit_generator.state == reference.bit_generator.state


def test_augment_without_shift_or_flip_only_normalises() -> None:
    images = torch.from_numpy(pixels(COLOUR, 4))
    result = augment(images, RNG, mean=COLOUR.mean, std=COLOUR.std, flip=False, shift=0)
    assert torch.equal(result, normalise(images, COLOUR.mean, COLOUR.std))


def test_augment_leaves_the_stored_images_alone() -> None:
    images = torch.from_numpy(pixels(GREY, 4))
    before = images.clone()
    augment(images, RNG, mean=GREY.mean, std=GREY.std, flip=True)
    assert torch.equal(images, before)
