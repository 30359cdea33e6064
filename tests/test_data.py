"""Data sets by name, and the way from pixels to model input."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_app.data import (
    DATASETS,
    Preparation,
    Spec,
    augment,
    embedded,
    load_dataset,
    normalise,
    sets,
    spec_of,
)
from fl_app.data.augment import draw_rectangles
from strategies.errors import DataError

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


@pytest.mark.parametrize(
    "failure", [OSError("no route to host"), RuntimeError("bad md5"), EOFError("file ended")]
)
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
    assert sum(file.stat().st_size for file in files) < 4_500_000
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


@pytest.mark.parametrize("damage", ["missing", "truncated", "hello", "[1]", '{"png": 5}'])
def test_damaged_embedded_data(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (embedded.DIRECTORY / "fashion-mnist-train.jsonl").read_text()
    if damage != "missing":
        text = text[:5000] if damage == "truncated" else damage
        (tmp_path / "fashion-mnist-train.jsonl").write_text(text)
    monkeypatch.setattr(embedded, "DIRECTORY", tmp_path)
    with pytest.raises(DataError, match=r"embedded data set is (damaged .*|not on this)"):
        load_dataset("embedded")


# ------------------------------------------------------------------ pixels to model input


def pixels(spec: Spec, n: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, spec.channels, spec.height, spec.width), np.uint8)


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


def test_what_is_erased_is_what_random_erasing_erases() -> None:
    """One image after the other: with probability 1/2 the first of ten rectangles that fits, of 2
    to 33 % of the area and an aspect of 0.3 to 3.3 (up to the rounding to pixels), anywhere."""
    generator, n = np.random.default_rng(4), 4000
    top, bottom, left, right = draw_rectangles(generator, n, 32, 32)
    h, w = bottom - top, right - left
    erased = h * w > 0
    assert 0.47 < erased.mean() < 0.53
    assert ((h == 0) == (w == 0)).all()
    assert top.min() == left.min() == 0
    assert bottom.max() == right.max() == 32
    areas, aspects = (h * w)[erased] / 1024, (h[erased] / w[erased])
    assert 0.01 < areas.min() < 0.03
    assert 0.30 < areas.max() < 0.36
    assert 0.165 < areas.mean() < 0.18  # 0.175, less what does not fit
    assert aspects.max() > 2.5
    assert aspects.min() < 0.4
    assert np.abs(np.median(aspects) - 1) < 0.1

    reference = np.random.default_rng(4)
    area, aspect = (
        reference.uniform(0.02, 0.33, (10, n)),
        reference.uniform(np.log(0.3), np.log(3.3), (10, n)),
    )
    place, chance = reference.random((2, n)), reference.random(n)
    for i in range(200):
        expected = (0, 0, 0, 0)
        for attempt in range(10):
            size, ratio = area[attempt, i] * 1024, np.exp(aspect[attempt, i])
            tall, broad = round(float((size * ratio) ** 0.5)), round(float((size / ratio) ** 0.5))
            if tall < 32 and broad < 32 and chance[i] < 0.5:
                y, x = int(place[0, i] * (33 - tall)), int(place[1, i] * (33 - broad))
                expected = (y, y + tall, x, x + broad)
                break
        if chance[i] < 0.5:
            assert (top[i], bottom[i], left[i], right[i]) == expected
        else:
            assert h[i] == w[i] == 0


def test_a_preparation_crops_mirrors_scales_and_erases() -> None:
    """In this order: what is erased is 0 after scaling, what comes in at the border is black."""
    prepare = Preparation((0.5,) * 3, (0.5,) * 3, True, True, shift=4, erasing=(32, 32))
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (20, 3, 32, 32), np.uint8))
    drawn = prepare.draw(np.random.default_rng(2), 20)
    assert drawn.shape == (7, 20)
    result = prepare(images, torch.from_numpy(drawn))
    assert channels_last(result)
    for i in range(20):
        down, right, mirrored, y, y_end, x, x_end = drawn[:, i]
        padded = np.pad(images[i].numpy(), ((0, 0), (4, 4), (4, 4)))
        expected = padded[:, down : down + 32, right : right + 32].astype(np.float64) / 127.5 - 1
        expected = expected[:, :, ::-1].copy() if mirrored else expected
        expected[:, y:y_end, x:x_end] = 0
        np.testing.assert_allclose(result[i].numpy(), expected, atol=1e-6)
