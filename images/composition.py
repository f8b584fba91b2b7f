"""Whether real and fake images of a set differ in more than their origin, and which images occur twice."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from images.decoding import Equalization, Header, read_header
from images.sets import FAKE, LABEL_NAMES, REAL, ImageItem, ImageSet
from utils.errors import UserError

# Headers are read of so many images of each label, evenly spread.
_SAMPLE = 500
# Distances between real and fake (0: alike, 1: told apart without error) that need no warning.
_TOLERATED_FORMATS = 0.05
_TOLERATED_NUMBERS = 0.1
# 5 % point of the Kolmogorov-Smirnov distance of two samples, times the root of (1 / n + 1 / m).
_KOLMOGOROV = 1.36
# Where no image is a JPEG.
_QUALITY = 95


def composition_warning(image_set: ImageSet) -> str | None:
    """One line if real and fake images differ in file format, JPEG quality or size, judged by their content.

    A detector can tell JPEG from PNG, one quality from another, and scaled images from others by their traces, whatever
    the pictures show. Shares of formats may differ by 5 %; quality, height and width by what is usual between two
    samples of one source (Kolmogorov-Smirnov distance below its 5 % point, or 0.1). Up to 500 images of each label,
    evenly spread, are looked at; those that cannot be read are passed over.
    """
    headers = {label: _sampled_headers(image_set.with_label(label).items) for label in (REAL, FAKE)}
    if not all(headers.values()):
        return None
    formats, sizes, qualities = (
        {label: [value for header in of_label if (value := get(header))] for label, of_label in headers.items()}
        for get in (lambda header: header.format, _size, lambda header: header.quality)
    )
    differences = []
    if _formats_differ(formats):
        differences.append(f"file format ({_each(formats, _counted)})")
    if _numbers_differ(qualities):
        differences.append(f"JPEG quality ({_each(qualities, lambda values: f'median {np.median(values):g}')})")
    if any(_numbers_differ({label: [size[side] for size in sizes[label]] for label in sizes}) for side in (0, 1)):
        differences.append(f"size ({_each(sizes, _median_size)})")
    if not differences:
        return None
    return (
        f"real and fake images differ in {' and '.join(differences)}: scores may follow this rather than the "
        "generator (--equalize makes them alike)"
    )


def equalization_of(image_set: ImageSet) -> Equalization:
    """What makes all images of a set alike: the smallest of their shorter sides, the lowest of their JPEG qualities.

    Raises:
        UserError: no image can be read.
    """
    headers = [header for item in image_set.items if (header := _header(item)) is not None]
    if not headers:
        raise UserError(f"no image of {image_set.root} can be read: check the files")
    qualities = [header.quality for header in headers if header.quality is not None]
    return Equalization(min(min(_size(header)) for header in headers), min(qualities, default=_QUALITY))


def shared_images(first: ImageSet, second: ImageSet) -> int:
    """How many images of `second` are in `first`, too: files of the same content, wherever they lie.

    Raises:
        UserError: an image has gone.
    """
    there = set(first.contents())
    return sum(content in there for content in second.contents())


def duplicates(image_set: ImageSet) -> list[tuple[ImageItem, ImageItem]]:
    """Images of which a file of the same content stands earlier in the set under another label, after that one.

    Raises:
        UserError: an image has gone.
    """
    first: dict[bytes, int] = {}
    found = []
    for position, content in enumerate(image_set.contents()):
        earlier, item = image_set.items[first.setdefault(content, position)], image_set.items[position]
        if earlier.label != item.label:
            found.append((earlier, item))
    return found


def duplicates_warning(image_set: ImageSet) -> str | None:
    """One line if files of the same content are both real and fake."""
    found = duplicates(image_set)
    if not found:
        return None
    earlier, item = found[0]
    labels = f"{LABEL_NAMES[earlier.label]} and {LABEL_NAMES[item.label]}"
    return f"{len(found)} of the images are both {labels}, by content (first {earlier.name} and {item.name})"


def _sampled_headers(items: Sequence[ImageItem]) -> list[Header]:
    places = np.unique(np.linspace(0, len(items) - 1, min(len(items), _SAMPLE)).round().astype(int))
    return [header for place in places if (header := _header(items[place])) is not None]


def _header(item: ImageItem) -> Header | None:
    try:
        return read_header(item.path)
    except UserError:
        return None


def _size(header: Header) -> tuple[int, int]:
    return header.height, header.width


def _formats_differ(formats: dict[int, list[str]]) -> bool:
    shares = [{kind: count / len(of) for kind, count in Counter(of).items()} for of in formats.values()]
    kinds = {kind for share in shares for kind in share}
    return any(abs(shares[0].get(kind, 0.0) - shares[1].get(kind, 0.0)) > _TOLERATED_FORMATS for kind in kinds)


def _numbers_differ(numbers: dict[int, list[int]]) -> bool:
    real, fake = (np.sort(values) for values in numbers.values())
    if not (len(real) and len(fake)):
        return False
    values = np.concatenate([real, fake])
    below = [np.searchsorted(sample, values, side="right") / len(sample) for sample in (real, fake)]
    distance = np.abs(below[0] - below[1]).max()
    by_chance = max(_TOLERATED_NUMBERS, _KOLMOGOROV * (1 / len(real) + 1 / len(fake)) ** 0.5)
    return bool(distance > by_chance or distance == 1.0)


def _each(values, text) -> str:
    return "; ".join(f"{LABEL_NAMES[label]}: {text(values[label])}" for label in values)


def _counted(kinds: Sequence[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(kinds).items()))


def _median_size(sizes: Sequence[tuple[int, int]]) -> str:
    height, width = np.median(sizes, axis=0)
    return f"median {height:g}x{width:g}"
