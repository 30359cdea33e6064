"""From stored pixels to a model's input."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F

_SHIFT = 3  # pixels along an axis, at most


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
    pixels, and mirror them if `flip`. What is random is drawn on the CPU, by `draw`; the rest is
    arithmetic on the device, which can be captured and replayed.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = False
    augmented: bool = False
    shift: int = _SHIFT

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """What is random about `count` images: (k, count) int64, without rows if nothing is."""
        if not self.augmented:
            return np.empty((0, count), dtype=np.int64)
        return draw_moves(generator, count, self.shift)

    def __call__(self, images: torch.Tensor, moves: torch.Tensor) -> torch.Tensor:
        """uint8 (b, c, h, w) and what was drawn for them, (k, b) -> float32 (b, c, h, w)."""
        if self.augmented:
            images = move(images, moves, flip=self.flip, shift=self.shift)
        return normalise(images, self.mean, self.std)
