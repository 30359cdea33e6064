"""One picture of somebody's, as a phone, a camera or a scanner has made it."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from fl_app.data.foreign import printable, reading
from strategies.errors import DataError

SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm",
    ".tif", ".tiff", ".webp",
}  # fmt: skip
# However a file is called, it is read as one of these: others run programs, or are no pictures.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_GREY, _COLOUR, _PALETTE = {"1", "L", "LA", "La"}, {"RGB", "RGBA", "RGBX", "RGBa"}, {"P", "PA"}
_ORIENTATION, _SIDEWAYS = 0x0112, {5, 6, 7, 8}


@dataclass(frozen=True)
class Header:
    """What is known of a picture before its pixels are read: its size as it is looked at."""

    height: int
    width: int
    colour: bool


def inspect(file: Path) -> Header:
    """Read a picture's header, and check it; no memory is taken for pixels.

    Raises:
        DataError: it is no picture, is damaged as far as that shows, or has pixels of a kind that
            cannot be told in 8 bits of grey or of red, green and blue each.
    """
    from PIL import Image

    with reading(printable(file)), Image.open(file, formats=_formats()) as image:
        if image.mode not in _GREY | _COLOUR | _PALETTE:
            raise DataError(
                f"{printable(file)} has pixels of mode {image.mode}; give grey or RGB pictures "
                f"with 8 bits per channel"
            )
        # Pillow cuts colours of 16 bits to 8 without a word, but not grey.
        if any(";16" in str(tile) for tile in image.tile):
            raise DataError(f"{printable(file)} has 16 bits per channel; give 8")
        if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
            raise DataError(f"{printable(file)} holds {frames} pictures; give one per file")
        width, height = image.size
        if _turned(image):
            width, height = height, width
        header = Header(height, width, _in_colour(image))
        if image.format == "PNG":
            image.verify()  # its checksums, which decoding does not look at
    return header


def pixels(file: Path, channels: int) -> np.ndarray:
    """Decode a picture that `inspect` has seen to uint8 (h, w, channels), as it is looked at.

    Raises:
        DataError: it is damaged, has transparent pixels, or has colours and `channels` is 1.
    """
    from PIL import Image, ImageOps

    with reading(printable(file)), Image.open(file, formats=_formats()) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            lowest: tuple[int, int] = image.getchannel("A").getextrema()  # type: ignore[assignment]
            if lowest[0] < 255:
                raise DataError(
                    f"{printable(file)} has transparent pixels; give pictures on a background"
                )
        if channels == 1 and image.mode not in _GREY:
            colours = np.array(image.convert("RGB"))
            if (colours != colours[..., :1]).any():
                raise DataError(f"{printable(file)} is in colour, and this data set is grey")
            return colours[..., :1]
        decoded = np.array(image.convert("L" if channels == 1 else "RGB"))
    return decoded.reshape(*decoded.shape[:2], channels)


@cache
def _formats() -> list[str]:
    """Those of the formats that this build of Pillow has."""
    from PIL import Image

    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _turned(image) -> bool:
    """Whether the picture is stored lying on its side; Pillow tells a TIFF's size as it stands."""
    # Of a PNG whose header does not have it, asking would decode all.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return False
    return image.getexif().get(_ORIENTATION) in _SIDEWAYS


def _in_colour(image) -> bool:
    if image.mode not in _PALETTE:
        return image.mode in _COLOUR
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    return bool((palette != palette[:, :1]).any())
