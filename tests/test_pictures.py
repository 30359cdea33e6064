"""Pictures as phones, cameras and scanners make them, and as nothing should read them."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fl_app.data import ImageSet, Spec, folder, foreign, load_shard, picture
from strategies.errors import DataError
from tests.own_files import COLOUR, GREY, RNG, pixels


def shard(folder: Path, spec: Spec = COLOUR) -> ImageSet:
    return load_shard(folder, spec)


@pytest.fixture
def ant(tmp_path: Path) -> Path:
    """A class folder for one picture."""
    (tmp_path / "cat").mkdir()
    return tmp_path / "cat"


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_a_photo_is_read_as_it_is_looked_at(ant: Path, suffix: str) -> None:
    """6 x 4 pixels that a camera held upright has stored lying: their top is on the right."""
    upright = np.zeros((6, 4), np.uint8)
    upright[:3] = 255
    orientation = Image.Exif()
    orientation[0x0112] = 6
    lying = Image.fromarray(upright).rotate(90, expand=True).convert("RGB")
    lying.save(ant / f"photo.{suffix}", exif=orientation, lossless=True)
    image = shard(ant.parent, replace(COLOUR, height=6, width=4)).images[0]
    assert abs(image.astype(int) - upright).max() < 64  # a JPEG is not exact


def png(depth: int, colour_type: int, row: bytes, height: int = 4, width: int = 6) -> bytes:
    """A PNG with equal rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    content = zlib.compress((b"\0" + row) * height)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_few_grey_levels_are_spread_over_all(ant: Path) -> None:
    (ant / "a.png").write_bytes(png(2, 0, b"\x1b\x10"))  # 0 1 2 3 0 1
    (ant / "b.png").write_bytes(png(1, 0, b"\x54"))
    images = shard(ant.parent, GREY).images[:, 0, 0]
    assert images.tolist() == [[0, 85, 170, 255, 0, 85], [0, 255, 0, 255, 0, 255]]


def several(mode: str = "RGB", count: int = 2) -> dict[str, Any]:
    frames = [Image.new(mode, (6, 4), (90 * i,) * 3) for i in range(1, count)]
    return {"save_all": True, "append_images": frames}


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.png", lambda p: p.write_bytes(png(16, 0, bytes(12))), "pixels of mode I;16; give"),
        ("a.png", lambda p: p.write_bytes(png(16, 2, bytes(36))), "has 16 bits per channel"),
        ("a.tif", lambda p: Image.new("F", (6, 4)).save(p), "pixels of mode F"),
        ("a.jpg", lambda p: Image.new("CMYK", (6, 4)).save(p), "pixels of mode CMYK"),
        ("a.tif", lambda p: Image.new("LAB", (6, 4)).save(p), "pixels of mode LAB"),
        ("a.gif", lambda p: Image.new("RGB", (6, 4)).save(p, **several()), "holds 2 pictures"),
        ("a.tif", lambda p: Image.new("RGB", (6, 4)).save(p, **several()), "holds 2 pictures"),
        ("a.png", lambda p: Image.new("RGB", (6, 4)).save(p, **several()), "holds 2 pictures"),
        ("a.png", lambda p: Image.new("RGBA", (6, 4), (9,) * 4).save(p), "transparent pixels"),
        ("a.gif", lambda p: Image.new("P", (6, 4)).save(p, transparency=0), "transparent pixels"),
        ("a.png", lambda p: p.write_bytes(b"hello"), "cannot be read"),
        ("a.png", lambda p: p.write_bytes(b""), "cannot be read"),
        ("a.png", lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0"), "cannot be read"),
        ("a\nb.png", lambda p: p.write_bytes(b""), r"a\\nb.png cannot be read"),
    ],
)  # fmt: skip
def test_pictures_that_would_be_read_wrongly_are_refused(
    ant: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    make(ant / name)
    with pytest.raises(DataError, match=f"^{ant}/.*{message}") as refusal:
        shard(ant.parent)
    assert "\n" not in str(refusal.value)


def test_pictures_that_only_look_special_are_read(ant: Path) -> None:
    """Opaque alpha, a palette, and the second picture that phones hide in a JPEG."""
    colours = pixels(COLOUR, 1)[0].transpose(1, 2, 0)
    picture = Image.fromarray(colours)
    picture.convert("RGBA").save(ant / "a.png")
    picture.quantize(256).save(ant / "b.gif")
    picture.save(ant / "c.jpg", format="MPO", quality=100, subsampling=0, **several())
    opaque, palette, photo = shard(ant.parent).images.transpose(0, 2, 3, 1).astype(int)
    assert np.array_equal(opaque, colours)
    assert np.array_equal(palette, np.array(picture.quantize(256).convert("RGB")))
    assert abs(photo - colours).max() < 32


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp"])
def test_a_picture_cut_short_is_refused(ant: Path, suffix: str) -> None:
    file = ant / f"a.{suffix}"
    Image.fromarray(RNG.integers(0, 256, (32, 48, 3), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=f"a.{suffix} cannot be read"):
        shard(ant.parent, replace(COLOUR, height=32, width=48))


def test_a_flipped_bit_in_a_png_is_noticed(ant: Path) -> None:
    """Its pixels would be decoded, and be others."""
    content = png(8, 2, bytes(range(18)))
    at = content.index(b"IDAT") + 8
    for i in range(at, at + 20):
        flipped = content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :]
        (ant / "a.png").write_bytes(flipped)
        with pytest.raises(DataError, match=r"a.png cannot be read"):
            shard(ant.parent)


def test_a_devices_colours_are_not_made_grey_without_a_word(ant: Path) -> None:
    Image.new("RGB", (6, 4), (9, 9, 9)).save(ant / "a.png")
    assert (shard(ant.parent, GREY).images == 9).all()  # grey, as a scanner stores it
    Image.new("RGB", (6, 4), (9, 9, 10)).save(ant / "b.png")
    with pytest.raises(DataError, match=r"b.png is in colour, and this data set is grey"):
        shard(ant.parent, GREY)


def test_pictures_that_memory_does_not_hold_are_not_decoded(
    ant: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (6, 4)).save(ant / "a.png")
    monkeypatch.setattr(foreign, "available_memory", lambda: 71.0)
    monkeypatch.setattr(folder, "pixels", lambda *_: pytest.fail("it is decoded"))
    with pytest.raises(DataError, match=r"\(1 pictures\) would take .* GB of memory"):
        shard(ant.parent)


@pytest.mark.parametrize("method", ["iterdir", "is_dir"])
def test_a_folder_that_may_not_be_read_is_named(
    ant: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def refuse(path: Path) -> bool:
        if path == ant or (method == "is_dir" and path.parent == ant):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    Image.new("RGB", (6, 4)).save(ant / "a.png")
    real = getattr(Path, method)
    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        shard(ant.parent)


def test_pictures_are_read_with_a_pillow_that_lacks_a_format(
    ant: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (6, 4)).save(ant / "a.png")
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    picture._formats.cache_clear()
    assert len(shard(ant.parent)) == 1
    picture._formats.cache_clear()
