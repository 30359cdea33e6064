"""From stored pixels to a model's input."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F

_SHIFT = 3  # pixels along an axis, at most
# Of random erasing (Zhong et al. 2020): how often, share of the image, height by width, and how
# many rectangles are tried until one fits.
_ERASING = 0.5
_AREA = (0.02, 0.33)
_ASPECT = (0.3, 3.3)
_ATTEMPTS = 10


def normalise(
    images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    """Return (images / 255 - mean) / std per channel.

    uint8 (b, c, h, w) -> float32 (b, c, h, w), on the same device, with channels-last strides:
    they spare the CPU a third of cnn6's training step.
    """
    b, c, h, w = images.shape
    scale, offset = _scale_and_offset(mean, std, images.device)
    # Explicit strides, because `contiguous(memory_format=...)` leaves one-channel images as they
    # are. Arithmetic first, layout last: the other way round is three times slower on 3 channels.
    output = torch.empty_strided(
        (b, c, h, w), (h * w * c, 1, w * c, c), dtype=torch.float32, device=images.device
    )
    return output.copy_(images.float().mul_(scale).sub_(offset))


@lru_cache(maxsize=16)
def _scale_and_offset(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """1 / (255 std) and mean / std, (c, 1, 1). Kept: to bring them to a GPU makes it wait."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    offset = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=device)
    return scale.view(-1, 1, 1), offset.view(-1, 1, 1)


def draw_moves(rng: np.random.Generator, count: int, shift: int = _SHIFT) -> np.ndarray:
    """Return how `count` images are moved by `move`, (3, count) int64: so many pixels less `shift`
    down and to the right, and 1 where one may be mirrored."""
    return np.stack([*rng.integers(0, 2 * shift + 1, (2, count)), rng.integers(0, 2, count)])


def move(
    images: torch.Tensor, moves: torch.Tensor, *, flip: bool, shift: int = _SHIFT
) -> torch.Tensor:
    """Return images (b, c, h, w), each shifted as `moves` (3, b) says and, if `flip`, mirrored;
    black pixels (0) come in."""
    b, c, h, w = images.shape
    top, left, mirrored = moves
    rows = top[:, None] + torch.arange(h, device=images.device)
    columns = left[:, None] + torch.arange(w, device=images.device)
    if flip:
        columns = torch.where(mirrored[:, None] == 1, columns.flip(1), columns)
    # One gather of single pixels: shift and mirror are nothing but a choice of source positions.
    source = rows[:, :, None] * (w + 2 * shift) + columns[:, None, :]
    padded = F.pad(images, (shift,) * 4).flatten(2)
    shifted = padded.gather(2, source.view(b, 1, h * w).expand(b, c, h * w))
    return shifted.view(b, c, h, w)


def draw_rectangles(
    generator: np.random.Generator, count: int, height: int, width: int
) -> np.ndarray:
    """Return what random erasing takes from `count` images, (4, count) int64: from which row to
    which, from which column to which, without the last; nothing from half of them."""
    shape = (_ATTEMPTS, count)
    area = generator.uniform(*_AREA, shape) * height * width
    least, most = (math.log(aspect) for aspect in _ASPECT)
    aspect = np.exp(generator.uniform(least, most, shape))
    place = generator.random((2, count))
    erased = generator.random(count) < _ERASING
    sides = np.round(np.sqrt([area * aspect, area / aspect])).astype(np.int64)
    fits = (sides[0] < height) & (sides[1] < width)
    erased &= fits.any(0)
    h, w = sides[:, fits.argmax(0), np.arange(count)] * erased
    top = (place[0] * (height - h + 1)).astype(np.int64)
    left = (place[1] * (width - w + 1)).astype(np.int64)
    return np.stack([top, top + h, left, left + w])


def erase(inputs: torch.Tensor, rectangles: torch.Tensor) -> torch.Tensor:
    """Set what `rectangles` (4, b) says of inputs (b, c, h, w) to 0, in place, and return them."""
    top, bottom, left, right = rectangles[:, :, None]
    rows = torch.arange(inputs.shape[2], device=inputs.device)
    columns = torch.arange(inputs.shape[3], device=inputs.device)
    inside = ((rows >= top) & (rows < bottom))[:, None, :, None]
    return inputs.masked_fill_(inside & ((columns >= left) & (columns < right))[:, None, None], 0.0)


def augment(
    images: torch.Tensor,
    rng: np.random.Generator,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    flip: bool,
    shift: int = _SHIFT,
) -> torch.Tensor:
    """Return normalised images, each shifted and, if `flip`, mirrored with probability 1/2.

    Every image moves by up to `shift` pixels along each axis, black pixels (0) coming in.
    uint8 (b, c, h, w) -> float32 (b, c, h, w), on the same device. Exactly 3 b small numbers are
    drawn from `rng`, whether or not `flip` is set.
    """
    moves = torch.from_numpy(draw_moves(rng, len(images), shift)).to(images.device)
    return normalise(move(images, moves, flip=flip, shift=shift), mean, std)


@dataclass(frozen=True)
class Preparation:
    """How a minibatch of stored pixels becomes a model's input.

    mean, std: per channel, see `normalise`. augmented: shift the images at random by up to `shift`
    pixels, and mirror them if `flip`. erasing: height and width of images from which a rectangle
    may be erased, after they have been normalised; see `draw_rectangles`. What is random is drawn
    on the CPU, by `draw`; the rest is arithmetic on the device, which can be captured and replayed.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = False
    augmented: bool = False
    shift: int = _SHIFT
    erasing: tuple[int, int] | None = None

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """What is random about `count` images: (k, count) int64, without rows if nothing is."""
        drawn = [np.empty((0, count), dtype=np.int64)]
        if self.augmented:
            drawn.append(draw_moves(generator, count, self.shift))
        if self.erasing:
            drawn.append(draw_rectangles(generator, count, *self.erasing))
        return np.concatenate(drawn)

    def __call__(self, images: torch.Tensor, moves: torch.Tensor) -> torch.Tensor:
        """uint8 (b, c, h, w) and what was drawn for them, (k, b) -> float32 (b, c, h, w)."""
        if self.augmented:
            images = move(images, moves[:3], flip=self.flip, shift=self.shift)
        inputs = normalise(images, self.mean, self.std)
        return erase(inputs, moves[-4:]) if self.erasing else inputs
