"""Whether real and fake images of a set differ in more than their origin, and what makes them alike."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from images.decoding import Equalization, Header, read_header
from images.sets import FAKE, REAL, ImageItem, ImageSet
from utils.errors import UserError

# Headers are read of so many images of each label, evenly spread.
_SAMPLE = 500
# Differences between real and fake that need no warning: in the share of a format, and Kolmogorov-Smirnov distances
# (0: alike, 1: told apart without error).
_TOLERATED_SHARE = 0.05
_TOLERATED_DISTANCE = 0.1
# 5 % point of the Kolmogorov-Smirnov distance of two samples, times the root of (1 / n + 1 / m).
_KOLMOGOROV = 1.36
# Where no image is a JPEG.
_QUALITY = 95

T = TypeVar("T")


def composition_warning(image_set: ImageSet) -> str | None:
    """One line if real and fake images differ in file format, JPEG quality or size, judged by their content.

    A detector can tell JPEG from PNG, one quality from another, and scaled images from others by their traces, whatever
    the pictures show. Shares of formats may differ by 5 %; quality, height and width by what is usual between two
    samples of one source (Kolmogorov-Smirnov distance below its 5 % point, or 0.1). Up to 500 images of each label,
    evenly spread, are looked at; those that cannot be read are passed over.
    """
    real, fake = (_sampled_headers(image_set.with_label(label).items) for label in (REAL, FAKE))
    if not (real and fake):
        return None
    differences = []
    formats = [header.format for header in real], [header.format for header in fake]
    if _shares_differ(*formats):
        differences.append(f"file format ({_each(formats, _counted)})")
    qualities = _qualities(real), _qualities(fake)
    if _numbers_differ(*qualities):
        differences.append(f"JPEG quality ({_each(qualities, _median)})")
    heights = [header.height for header in real], [header.height for header in fake]
    widths = [header.width for header in real], [header.width for header in fake]
    if _numbers_differ(*heights) or _numbers_differ(*widths):
        differences.append(f"height ({_each(heights, _median)}) or width ({_each(widths, _median)})")
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
    side = min(min(header.height, header.width) for header in headers)
    return Equalization(side, min(_qualities(headers), default=_QUALITY))


def _sampled_headers(items: Sequence[ImageItem]) -> list[Header]:
    places = np.unique(np.linspace(0, len(items) - 1, min(len(items), _SAMPLE)).round().astype(int))
    return [header for index in places if (header := _header(items[index])) is not None]


def _header(item: ImageItem) -> Header | None:
    try:
        return read_header(item.path)
    except UserError:
        return None


def _qualities(headers: Sequence[Header]) -> list[int]:
    return [header.quality for header in headers if header.quality is not None]


def _shares_differ(real: Sequence[str], fake: Sequence[str]) -> bool:
    shares = [{kind: number / len(formats) for kind, number in Counter(formats).items()} for formats in (real, fake)]
    return any(
        abs(shares[0].get(kind, 0.0) - shares[1].get(kind, 0.0)) > _TOLERATED_SHARE for kind in {*shares[0], *shares[1]}
    )


def _numbers_differ(real: Sequence[int], fake: Sequence[int]) -> bool:
    if not (real and fake):
        return False
    values = np.concatenate([real, fake])
    below = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (real, fake)]
    distance = np.abs(below[0] - below[1]).max()
    by_chance = max(_TOLERATED_DISTANCE, _KOLMOGOROV * (1 / len(real) + 1 / len(fake)) ** 0.5)
    return bool(distance > by_chance or distance == 1.0)


def _each(values: tuple[Sequence[T], Sequence[T]], text: Callable[[Sequence[T]], str]) -> str:
    return f"real: {text(values[REAL])}; fake: {text(values[FAKE])}"


def _counted(formats: Sequence[str]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in sorted(Counter(formats).items()))


def _median(numbers: Sequence[int]) -> str:
    return f"median {np.median(numbers):g}"
