"""Folders of images made ready as the published tools do: cut, altered, split into arrays, statistics of spectra."""

from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from images.decoding import decode_image
from images.distortions import grayscale
from images.sets import EXTENSIONS, FAKE, REAL
from passes.options import RunOptions
from source_attribution.options import Augmentation, DataPreparation
from source_attribution.preparation import augmented, celeba_face, square
from source_attribution.source_sets import LABELS, SOURCES, source_folders, source_of
from source_attribution.spectra import Statistics, log_spectrum, spectrum, spectrum_statistics
from utils.cli import progress, say_files
from utils.errors import UserError
from utils.files import atomic_path, safe_join, write_npy

Labelled = tuple[Path, int, str]
"""An image, its label, its source."""


def prepare(run: RunOptions, options: DataPreparation) -> list[Path]:
    """What the options ask for; the folders written.

    Raises:
        UserError: Images are missing, too few, or cannot be used.
    """
    steps = {"crop": _crop, "augment": _augment, "arrays": _arrays, "statistics": _statistics}
    written = steps[options.step](options, run)
    say_files(written)
    return written


def numbered(folder: Path, least: int = 1) -> list[Path]:
    """The images of a folder by their numbers: the first whole word of digits between the `_` of each name.

    Raises:
        UserError: A name has no number, or there are fewer than `least` images.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: check the path")
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in EXTENSIONS]
    numbers = {path: next((int(word) for word in path.stem.split("_") if word.isdigit()), None) for path in files}
    if unnumbered := [path for path in files if numbers[path] is None]:
        raise UserError(f"{unnumbered[0]} has no number between '_' in its name, which says its place: rename it")
    if len(files) < least:
        raise UserError(f"{folder} has {len(files)} images, {least} are needed: lower the sizes, or add images")
    return sorted(files, key=lambda path: numbers[path] or 0)


def split(fake: Path, real: Path, options: DataPreparation) -> dict[str, list[Labelled]]:
    """Training, validation and test images: of each source the first, next and next ones by number, then shuffled.

    Fakes stand before reals; the three lists are shuffled one after the other by one seeded generator of NumPy's old
    kind, as published.
    """
    sizes = {"train": options.train_size, "val": options.val_size, "test": options.test_size}
    lists: dict[str, list[Labelled]] = {part: [] for part in sizes}
    for root, label, factor in ((fake, FAKE, 1.0), (real, REAL, options.real_factor)):
        for folder in source_folders(root):
            counts = {part: int(size * factor) for part, size in sizes.items()}
            paths = numbered(folder, sum(counts.values()))
            start = 0
            for part, number in counts.items():
                lists[part] += [(path, label, source_of(folder.name)) for path in paths[start : start + number]]
                start += number
    generator = np.random.RandomState(options.seed)
    for entries in lists.values():
        generator.shuffle(entries)  # type: ignore[arg-type]
    return lists


def _crop(options: DataPreparation, run: RunOptions) -> list[Path]:
    source, output = options.paths
    for path in progress(numbered(source)[: options.amount], description="crop"):
        image, side = decode_image(path), options.resolution
        if image.shape[:2] != (side, side):
            image = celeba_face(image, str(path)) if options.celeba else square(image, side)
        _save(output, path.stem, image, jpeg=options.jpeg_output)
    return [output]


def _augment(options: DataPreparation, run: RunOptions) -> list[Path]:
    """Of `<input>/<class>/<source>/` to the same folders of the output."""
    source, output = options.paths
    generator = np.random.default_rng(options.seed)
    for folder in (folder for group in source_folders(source) for folder in source_folders(group)):
        target = safe_join(output, *folder.relative_to(source).parts)
        for path in progress(numbered(folder)[: options.size], description=folder.name):
            image = decode_image(path)
            for mode in get_args(Augmentation)[1:] if options.mode == "all" else (options.mode,):
                altered, done = augmented(image, mode, generator, published=run.published)
                _save(target, path.stem + done, altered, jpeg=options.jpeg_output)
    return [output]


def _save(folder: Path, stem: str, image: np.ndarray, *, jpeg: bool) -> None:
    with atomic_path(safe_join(folder, f"{stem}.{'jpg' if jpeg else 'png'}"), durable=False) as temporary:
        Image.fromarray(image).save(temporary)


def _statistics(options: DataPreparation, run: RunOptions) -> list[Path]:
    fake, real, output = options.paths
    sizes = ((fake, options.input_size_pos), (real, options.input_size_neg))
    paths = [path for root, size in sizes for folder in source_folders(root) for path in numbered(folder)[:size]]
    return spectrum_statistics(map(_grey, progress(paths, description="statistics"))).write(output)


def _grey(path: Path) -> np.ndarray:
    return grayscale(decode_image(path))[..., 0]


def _arrays(options: DataPreparation, run: RunOptions) -> list[Path]:
    fake, real, output = options.paths
    lists = split(fake, real, options)
    if options.test_only_directory is not None:
        size = None if options.full_test_only else options.test_size
        lists["test_only"] = [
            (path, FAKE, source_of(folder.name))
            for folder in source_folders(options.test_only_directory)
            for path in numbered(folder)[:size]
        ]
    statistics, largest = None, None
    if not options.raw and options.normalize:
        training = (_grey(path) for path, _, _ in lists["train"])
        statistics = Statistics.given(options.normstats) or spectrum_statistics(training)
    if options.abs:
        half = lists["train"][: max(1, len(lists["train"]) // 2)]
        largest = np.max([np.abs(_values(path, options)) for path, _, _ in half], 0)
    words = ["raw", *(["colour"] if options.colour else [])] if options.raw else ["dct"]
    words += ["log_scaled"] if options.log else []
    words += ["normalized"] if options.normalize else []
    written = []
    for part, entries in lists.items():
        folder = output / "_".join([output.absolute().parent.name, *words, part])
        for number, (path, _, _) in enumerate(progress(entries, description=folder.name)):
            write_npy(folder / f"{number}.npy", _values(path, options, statistics, largest), durable=False)
        # last, so that they tell that all arrays are there
        write_npy(folder / SOURCES, np.array([source for _, _, source in entries]))
        write_npy(folder / LABELS, np.array([label for _, label, _ in entries]))
        written.append(folder)
    return written


def _values(
    path: Path, options: DataPreparation, statistics: Statistics | None = None, largest: np.ndarray | None = None
) -> np.ndarray:
    if options.raw:
        pixels = decode_image(path) if options.colour else _grey(path)
        return (pixels / 127.5 - 1.0).astype(np.float32) if options.normalize else pixels
    values = log_spectrum(_grey(path)) if options.log else spectrum(_grey(path))
    values = values if largest is None else values / largest
    return values if statistics is None else statistics.normalised(values)
