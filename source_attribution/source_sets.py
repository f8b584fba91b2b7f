"""Images with the name of their source: from folders of sources, or from the array folders of the published tools."""

import csv
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from images.decoding import decode_image
from images.sets import FAKE, REAL, ImageItem, ImageSet, find_image_set
from source_attribution.options import Attributing
from utils.errors import UserError
from utils.files import read_npy

LABELS, SOURCES = "labels.npy", "source_labels.npy"
ARRAY = ".npy"


def source_of(folder: str, *, arch_level: bool = False) -> str:
    """The source that a folder's name stands for: its first two words between `_`, or the first one alone.

    >>> source_of("stylegan_100k_cats"), source_of("stylegan_100k", arch_level=True)
    ('stylegan_100k', 'stylegan')
    """
    return "_".join(folder.split("_")[: 1 if arch_level else 2])


def find_sources(
    root: Path, options: Attributing | None = None, size: int | None = None, *, twins: bool = False
) -> ImageSet:
    """Images below `<root>/<source>/[<class>/]{0_real,1_fake}`, or of an array folder, with `generator` for the source.

    The source of real images is "". A real image that lies in several folders, to the byte, counts once.

    Args:
        root: The folder.
        options: Which of its folders, how many real images for each fake, and what a source is.
        size: First so many fakes of each source.
        twins: Keep real images in every folder they lie in, for pairs with the fakes there, and call folders classes.

    Raises:
        UserError: There are no such images.
    """
    options = options or Attributing()
    reals = None if size is None else max(1, round(size * options.real_size_factor))
    if (root / LABELS).is_file():
        return _arrays(root, size, reals, arch_level=options.arch_level)
    names = list(options.folders) or [path.name for path in source_folders(root)]
    sets = [find_image_set(root, name, num_real=reals, num_fake=size) for name in names]
    seen: set[bytes] = set()
    items = []
    for image_set in sets:
        for item, content in zip(image_set.items, image_set.contents(), strict=True):
            if item.label == REAL and content in seen and not twins:
                continue
            seen.add(content)
            source = source_of(item.generator, arch_level=options.arch_level) if item.label == FAKE else ""
            items.append(replace(item, generator=source, class_name=item.generator if twins else item.class_name))
    return ImageSet(root, tuple(items), tuple(line for image_set in sets for line in image_set.warnings))


def source_folders(root: Path) -> list[Path]:
    """The folders in a folder, sorted.

    Raises:
        UserError: There are none.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}: give a folder with a folder for each source")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise UserError(f"no source folders in {root}: give a folder with a folder for each source")
    return folders


def sources_in(images: ImageSet) -> list[str]:
    """The sources of the fakes, sorted."""
    return sorted({item.generator for item in images.items if item.label == FAKE})


def told_apart(images: ImageSet, source: str) -> ImageSet:
    """The same images, labelled by whether they are of the source."""
    items = (replace(item, label=int(item.generator == source)) for item in images.items)
    return replace(images, items=tuple(items))


def named_sources(options: Attributing) -> list[str]:
    """The sources that the options name, as secondaries are called; none: all."""
    if options.source is not None:
        return [source_of(options.source, arch_level=True) if options.arch_level else options.source]
    return [] if options.source_list is None else read_source_list(options.source_list)


def read_source_list(path: Path) -> list[str]:
    """The sources of a `source_ids.csv`, in the order of their numbers: `name,number` on each line, from 1 on.

    Raises:
        UserError: Missing, or numbered otherwise.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            numbers = {int(number): name.strip() for name, number in csv.reader(file)}
    except OSError as error:
        raise UserError(f"cannot read --source_list {path} ({error.strerror}): check the path") from error
    except ValueError as error:
        raise UserError(f"--source_list {path}: write a line name,number for each source") from error
    if sorted(numbers) != list(range(1, len(numbers) + 1)) or not numbers:
        raise UserError(f"--source_list {path}: number the sources 1, 2, 3, ...")
    return [numbers[number] for number in sorted(numbers)]


@dataclass(frozen=True)
class ArrayReader:
    """Decodes images, and `.npy` files of the published tools: pixels come out as uint8 (H, W, 3).

    Attributes:
        dct: Arrays of floats are spectra, and come out as float32 (H, W, 1); otherwise they are pixels of -1..1.
    """

    dct: bool = False

    def __call__(self, path: Path) -> np.ndarray:
        """What a file holds.

        Raises:
            UserError: It is damaged, or of another shape.
        """
        if path.suffix != ARRAY:
            return decode_image(path)
        values = read_npy(path)
        planes = values[..., None] if values.ndim == 2 else values
        if planes.ndim != 3 or planes.shape[2] not in (1, 3):
            raise UserError(f"{path} has shape {values.shape}, not (H, W) or (H, W, 3): make it anew")
        if planes.dtype == np.uint8:
            return np.repeat(planes, 3 // planes.shape[2], axis=2)
        if self.dct:
            return planes.astype(np.float32)
        if not np.abs(planes).max() <= 1.0:
            raise UserError(f"{path} holds no pixels of -1..1: spectra need --dct")
        return np.repeat(np.rint((planes + 1.0) * 127.5).astype(np.uint8), 3 // planes.shape[2], axis=2)


def _arrays(root: Path, size: int | None, reals: int | None, *, arch_level: bool) -> ImageSet:
    labels, names = (read_npy(root / name).ravel() for name in (LABELS, SOURCES))
    if len(labels) != len(names) or not set(labels.tolist()) <= {REAL, FAKE}:
        raise UserError(f"{root}: {LABELS} and {SOURCES} do not belong together: make the folder anew")
    taken: Counter[str] = Counter()
    items = []
    for number, (label, name) in enumerate(zip(labels.tolist(), names.tolist(), strict=True)):
        taken[str(name)] += 1
        if taken[str(name)] <= ((reals if label == REAL else size) or len(labels)):
            source = source_of(str(name), arch_level=arch_level) if label == FAKE else ""
            items.append(ImageItem(root / f"{number}.npy", f"{number}.npy", label, "", source))
    return ImageSet(root, tuple(items))
