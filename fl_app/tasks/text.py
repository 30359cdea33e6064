"""Texts: a language model of bytes. Its perplexity is that of a byte: 256 for who knows nothing."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fl_app.data.embedded import TEXT, found
from strategies.errors import ConfigError, DataError
from strategies.paths import read_bytes
from strategies.task import ACCURACY, PERPLEXITY, Classification, Examples

BYTES = 256
LENGTH = 64  # bytes of an example
_MOST_BYTES = 1 << 28  # of a file: its examples take nine times as much in memory
_TEST = 10  # of so many examples, one is for the test


class ByteModel(nn.Module):
    """Predicts each byte from those before it: an embedding, causal convolutions, a linear layer.

    widths: channels of the convolutions. The k-th has four taps 4^(k-1) bytes apart, so two of them
    see 16 bytes and three see 64. uint8 (b, t) -> logits (b, 256, t).
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, widths[0])
        channels = zip((widths[0], *widths), widths, strict=False)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, 4, dilation=4**k) for k, (before, after) in enumerate(channels)
        )
        self.head = nn.Conv1d(widths[-1], BYTES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x.int()).transpose(1, 2)
        for k, convolution in enumerate(self.convolutions):
            x = functional.relu(convolution(functional.pad(x, (3 * 4**k, 0))))
        return self.head(x)


_WIDTHS = {"small": (32, 64), "large": (64, 128, 128)}


class Text(Classification):
    """The task `text`: what Python's documentation says of the language, in 78 texts, or the user's
    own texts: a file, or a folder of files (*.txt)."""

    metrics = (PERPLEXITY, replace(ACCURACY, name="byte_accuracy"))

    def model(self, role: str) -> nn.Module:
        return ByteModel(*_WIDTHS[role])

    def training(self) -> Examples:
        return _examples(self._documents, test=False)

    def test(self) -> Examples:
        return _examples(self._documents, test=True)

    def own(self, path: str) -> Examples:
        return _examples(read_documents(path), test=None)

    def groups(self, examples: Examples) -> np.ndarray:
        """The documents."""
        counts = [len(_chosen(text, test=False)) for text in self._documents.values()]
        return np.repeat(np.arange(len(counts)), counts)

    @property
    def _documents(self) -> Mapping[str, bytes]:
        return read_documents(self.data_path) if self.data_path else _embedded()


def read_documents(path: str) -> dict[str, bytes]:
    """The texts at `path`, a file or a folder of *.txt, by their names. Raises DataError."""
    place = Path(path)
    try:
        files = sorted(place.glob("*.txt")) if place.is_dir() else [place]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    documents = {}
    for file in files:
        try:
            documents[file.name] = read_bytes(file, _MOST_BYTES)
        except ConfigError as error:
            raise DataError(f"{file} cannot be read: {error}") from error
    if not any(len(text) > LENGTH for text in documents.values()):
        raise DataError(f"{path} has no text of more than {LENGTH} bytes; give a .txt, or several")
    return documents


def _embedded() -> dict[str, bytes]:
    lines = found(TEXT).read_text(encoding="ascii").splitlines()
    return {name: text.encode() for name, text in map(json.loads, lines)}


def _windows(text: bytes) -> np.ndarray:
    """The text in parts of LENGTH bytes, each with the bytes that come next, (n, 2, LENGTH); what
    is left over is left out."""
    count = (len(text) - 1) // LENGTH
    array = np.frombuffer(text, np.uint8)[: count * LENGTH + 1]
    return np.stack([array[:-1].reshape(count, LENGTH), array[1:].reshape(count, LENGTH)], 1)


def _chosen(text: bytes, test: bool | None) -> np.ndarray:
    windows = _windows(text) if len(text) > LENGTH else np.empty((0, 2, LENGTH), np.uint8)
    held = np.arange(len(windows)) % _TEST == _TEST - 1
    return windows if test is None else windows[held == test]


def _examples(documents: Mapping[str, bytes], test: bool | None) -> Examples:
    pairs = np.concatenate([_chosen(text, test) for text in documents.values()])
    if not len(pairs):
        raise DataError(f"the texts are too short: {_TEST * LENGTH} bytes of one are the least")
    inputs, targets = (np.ascontiguousarray(pairs[:, i]) for i in (0, 1))
    return Examples(torch.from_numpy(inputs), torch.from_numpy(targets).long())
