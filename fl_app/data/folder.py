"""Folders of pictures, a folder a class. What holds for all is decided by looking at all."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fl_app.data.foreign import check_room, is_litter, plain_name, printable, reading
from fl_app.data.images import ImageSet, Spec
from fl_app.data.labels import check_names, class_list, in_order, numbers_of
from fl_app.data.picture import SUFFIXES, Header, inspect, pixels
from strategies.errors import DataError

_HIDDEN = "hidden or of a system"


@dataclass
class Listing:
    """A folder of class folders: the pictures in each, its subfolders among them, in order.

    unused: how many files there are of each kind that is not read, and the first of them.
    """

    path: Path
    pictures: dict[str, list[Path]] = field(default_factory=dict)
    unused: dict[str, tuple[int, Path]] = field(default_factory=dict)

    def pass_over(self, kind: str, path: Path) -> None:
        """Count what is not read."""
        count, first = self.unused.get(kind, (0, path))
        self.unused[kind] = (count + 1, min(first, path))

    def told(self) -> tuple[str, ...]:
        """What is not read, in words; () if nothing is."""
        kinds = [
            f"{count} {kind} (e.g. {printable(first.relative_to(self.path))})"
            for kind, (count, first) in sorted(self.unused.items())
        ]
        return (f"{printable(self.path)}: not used: {', '.join(kinds)}",) if kinds else ()

    def all(self) -> Iterator[Path]:
        """Every picture, class by class."""
        for files in self.pictures.values():
            yield from files


def list_classes(path: Path) -> Listing:
    """List ``<class>/**``. Raises DataError for a folder that cannot be listed, or if two have the
    same name but for how letters are composed, or spaces around it."""
    listing, folders = Listing(path), {}
    for entry, is_folder in _entries(path):
        name = plain_name(entry.name)
        if is_litter(entry.name):
            listing.pass_over(_HIDDEN, entry)
        elif not is_folder:
            listing.pass_over("in no class folder", entry)
        elif name in folders:
            raise DataError(
                f"{printable(path)} has two folders {name!r}, which differ only in how letters are "
                f"composed or in spaces; make them one"
            )
        else:
            folders[name] = entry
            listing.pictures[name] = sorted(_pictures(entry, listing))
    return listing


def _pictures(folder: Path, listing: Listing) -> Iterator[Path]:
    """The pictures in a class folder and below it, in no order; the rest is counted."""
    waiting = [folder]
    while waiting:
        for entry, is_folder in _entries(waiting.pop()):
            if is_litter(entry.name):
                listing.pass_over(_HIDDEN, entry)
            elif is_folder and entry.is_symlink():  # it may lead round in circles
                listing.pass_over("link(s) to folders", entry)
            elif is_folder:
                waiting.append(entry)
            elif entry.suffix.lower() not in SUFFIXES:
                listing.pass_over(printable(entry.suffix.lower()) or "without a suffix", entry)
            elif not entry.is_file():
                listing.pass_over("no file(s)", entry)
            else:
                yield entry


def _entries(folder: Path) -> list[tuple[Path, bool]]:
    """What is in a folder, in order, and whether it is a folder itself."""
    with reading(printable(folder)):
        return [(entry, entry.is_dir()) for entry in sorted(folder.iterdir())]


def common_header(listings: Sequence[Listing]) -> Header:
    """What all pictures have in common: their size, and whether some are in colour.

    Raises:
        DataError: there is none, one is none or damaged, or they differ in size; it names one that
            differs from most.
    """
    headers = {file: inspect(file) for listing in listings for file in listing.all()}
    if not headers:
        where = printable(listings[0].path)
        raise DataError(f"{where}: no image in any class folder ({_instead(listings)})")
    sizes = Counter((header.height, header.width) for header in headers.values())
    (height, width), most = sizes.most_common(1)[0]
    for file, header in headers.items():
        if (header.height, header.width) != (height, width):
            raise DataError(
                f"{printable(file)} has {header.height} x {header.width} pixels (height x width); "
                f"{most} of {len(headers)} pictures have {height} x {width}; give all the same size"
            )
    return Header(height, width, any(header.colour for header in headers.values()))


def read_whole(train: Path, test: Path) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Read both sets of a folder, and the names of their classes.

    Raises:
        DataError: what `common_header`, `check_names` and `read_pictures` raise, or a class has no
            picture in either set.
    """
    listings = list_classes(train), list_classes(test)
    names = in_order([name for listing in listings for name in listing.pictures])
    for name in names:
        if not any(listing.pictures.get(name) for listing in listings):
            raise DataError(
                f"{printable(train.parent)}: no image of class {printable(name)!r} in train or "
                f"test ({_instead(listings)})"
            )
    common = common_header(listings)
    names = check_names(names, printable(train.parent))
    channels = 3 if common.colour else 1
    scale = (0.0,) * channels, (1.0,) * channels
    spec = Spec(channels, common.height, common.width, names, *scale, flip=False)
    train_set, test_set = (read_pictures(listing, spec) for listing in listings)
    return train_set, test_set, names


def read_shard(path: Path, spec: Spec) -> ImageSet:
    """Read a device's class folders.

    Raises:
        DataError: a folder that is not named after a class, two for one class, a picture that is
            none, is damaged or does not fit `spec`.
    """
    listing, meant = list_classes(path), numbers_of(spec.class_names)
    if {"train", "test"} <= listing.pictures.keys() - meant.keys():
        raise DataError(
            f"{printable(path)} holds a training and a test set; that is a data set of its own "
            f"(dataset=files), and a device has class folders alone"
        )
    folders: dict[int, str] = {}
    for name in listing.pictures:
        if name not in meant:
            raise DataError(
                f"{printable(path / name)} is not named after a class; this data set has "
                f"{class_list(spec.class_names)}"
            )
        if (other := folders.setdefault(meant[name], name)) != name:
            raise DataError(
                f"{printable(path)}: the folders {other!r} and {name!r} both mean class "
                f"{spec.class_names[meant[name]]!r}; make them one"
            )
    common = common_header([listing])
    if (common.height, common.width) != (spec.height, spec.width):
        raise DataError(
            f"{printable(next(listing.all()))} has {common.height} x {common.width} pixels (height "
            f"x width); this data set has {spec.height} x {spec.width}"
        )
    return read_pictures(listing, spec)


def read_pictures(listing: Listing, spec: Spec) -> ImageSet:
    """Decode the pictures of a listing, whose folders mean classes of `spec`.

    Raises:
        DataError: one cannot be decoded or does not fit, or memory is too small for all.
    """
    files, meant = list(listing.all()), numbers_of(spec.class_names)
    shape = (len(files), spec.channels, spec.height, spec.width)
    check_room(int(np.prod(shape)), f"{printable(listing.path)} ({len(files)} pictures)")
    images = np.empty(shape, np.uint8)
    for i, file in enumerate(files):
        decoded = pixels(file, spec.channels)
        if decoded.shape[:2] != (spec.height, spec.width):
            raise DataError(
                f"{printable(file)} has {decoded.shape[0]} x {decoded.shape[1]} pixels (height x "
                f"width); this data set has {spec.height} x {spec.width}"
            )
        images[i] = decoded.transpose(2, 0, 1)
    labels = [meant[name] for name, own in listing.pictures.items() for _ in own]
    return ImageSet(images, np.array(labels, np.int64), listing.told())


def _instead(listings: Sequence[Listing]) -> str:
    """What there is where pictures should be."""
    told = "; ".join(line for listing in listings for line in listing.told())
    return told or f"files that end in {', '.join(sorted(SUFFIXES))}"
