"""Which images there are: labels, folder layouts, order, selection, and digests of their content."""

import functools
import hashlib
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from images.decoding import Equalization
from utils.errors import UserError
from utils.files import is_plain_name, sha256_text

REAL = 0
FAKE = 1
LABEL_NAMES: dict[int | None, str] = {REAL: "real", FAKE: "fake", None: "unknown"}
LABEL_FOLDERS = {REAL: "0_real", FAKE: "1_fake"}
EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"})
# Lower-case names of label folders: those of CNNDetection, of GenImage, and plain ones.
LABELS_OF_FOLDERS = {"0_real": REAL, "1_fake": FAKE, "nature": REAL, "ai": FAKE, "real": REAL, "fake": FAKE}
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
# So much of either end of a file goes into its digest.
_END = 1 << 16


@dataclass(frozen=True)
class ImageItem:
    """One image file.

    Attributes:
        name: posix path below the root of the set.
        label: REAL, FAKE, or None where it is unknown.
        class_name: folder of the class, or "".
        generator: name of the set that it belongs to.
        cluster: images of one cluster (photograph, video, class) are not independent; "": of no other.
    """

    path: Path
    name: str
    label: int | None
    class_name: str
    generator: str
    cluster: str = ""


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order, below one root.

    Attributes:
        warnings: what a user should know of the set, a line each.
        equalization: done to each image before anything else.
    """

    root: Path
    items: tuple[ImageItem, ...]
    warnings: tuple[str, ...] = field(default=(), compare=False)
    equalization: Equalization | None = None

    def __len__(self) -> int:
        return len(self.items)

    def subset(self, positions: Iterable[int]) -> "ImageSet":
        """The images at `positions`, in the order given."""
        return replace(self, items=tuple(self.items[position] for position in positions))

    def with_label(self, label: int | None) -> "ImageSet":
        """The images of one label, in the same order."""
        return replace(self, items=tuple(item for item in self.items if item.label == label))

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of images per class (the generator where there are no classes) and label name."""
        counts: dict[str, dict[str, int]] = {}
        for item in self.items:
            per_label = counts.setdefault(item.class_name or item.generator or "images", {})
            label = LABEL_NAMES[item.label]
            per_label[label] = per_label.get(label, 0) + 1
        return counts

    def clusters_of(self, names: Iterable[str]) -> np.ndarray | None:
        """Which of the images of these names belong together, (n,); None where all stand alone."""
        by_name = {item.name: item.cluster for item in self.items}
        clusters = np.array([by_name[name] for name in names])
        return clusters if any(clusters) else None

    def contents(self) -> Iterator[bytes]:
        """A digest of each file: SHA-256 of its size and its first and last 64 KiB, whatever its name.

        That takes about 0.1 ms a file where it is in the file cache. Files larger than 128 KiB that differ in the
        middle alone have the same digest.

        Raises:
            UserError: an image has gone.
        """
        return (_content(item.path) for item in self.items)

    def digest(self) -> str:
        """SHA-256 over order, names, labels, clusters and `contents`, not over the place of the root or file times.

        Raises:
            UserError: an image has gone.
        """
        lines = [
            f"{item.name}\0{item.label}\0{item.cluster}\0{content.hex()}"
            for item, content in zip(self.items, self.contents(), strict=True)
        ]
        return sha256_text(lines if self.equalization is None else [*lines, repr(self.equalization)])


def find_image_set(
    dataset_dir: str | Path,
    gan_name: str,
    *,
    have_classes: bool | Literal["auto"] = "auto",
    num_real: int | None = None,
    num_fake: int | None = None,
    num_instances: int | None = None,
    labels: Collection[int] = (REAL, FAKE),
    alone: bool = False,
) -> ImageSet:
    """Find the images of `<dataset_dir>/<gan_name>/[<class>/]{0_real,1_fake}/`, sorted by class, label, name.

    The label folders may also be called `nature` and `ai`, or `real` and `fake`, in any case.

    Args:
        dataset_dir: folder of the generators' folders.
        gan_name: name of one of them.
        have_classes: whether the class level is there; "auto" looks.
        num_real: the first so many real images of each class; None or 0 for all.
        num_fake: the same for fake images.
        num_instances: stands for each of the two that is None.
        labels: which labels to take.
        alone: whether images of one of these labels are enough.

    Raises:
        UserError: missing folder, other layout than asked for, or no images.
    """
    root = Path(dataset_dir)
    limits = label_limits(num_real, num_fake, num_instances)
    folder = _generator_folder(root, gan_name)
    notes = _Notes()
    items: list[ImageItem] = []
    for class_name in _class_names(folder, have_classes, notes):
        class_folder = folder / class_name
        label_folders = _label_folders(class_folder)
        if not alone:
            _check_labels(class_folder, label_folders, labels)
        for label in sorted(set(labels) & label_folders.keys()):
            label_folder = class_folder / label_folders[label]
            if label_folders[label] != LABEL_FOLDERS[label]:
                notes.renamed[label_folders[label]] = LABEL_NAMES[label]
            names = _image_names(label_folder, notes)
            if not names:
                raise UserError(f"no images in {label_folder}: put some there ({_extension_list()})")
            for name in names[: limits[label]]:
                path = label_folder / name
                items.append(ImageItem(path, path.relative_to(root).as_posix(), label, class_name, gan_name))
    if not items:
        wanted = " and ".join(LABEL_NAMES[label] for label in labels)
        raise UserError(f"no {wanted} images in {folder}: add some, or leave out this set")
    return ImageSet(root, tuple(items), notes.lines())


def label_limits(num_real: int | None, num_fake: int | None, num_instances: int | None) -> dict[int | None, int | None]:
    """Most images of each label, None for all: a number of 0 is all, and `num_instances` stands for what is None."""
    return {
        label: (num_instances if number is None else number) or None
        for label, number in ((REAL, num_real), (FAKE, num_fake))
    }


def find_loose_images(paths: Sequence[str | Path]) -> ImageSet:
    """Collect image files and, sorted, all images below folders; hidden ones below folders are left out.

    The label comes from the nearest parent folder named 0_real or 1_fake, else it is None. The root is
    the deepest folder that holds all the given paths. A file named twice is taken once.

    Raises:
        UserError: a path does not exist, or there is no image at all.
    """
    given = [Path(os.path.normpath(Path(path).absolute())) for path in paths]
    if not given:
        raise UserError("no images given: name image files or folders")
    notes = _Notes()
    files: dict[Path, None] = {}
    for path in given:
        if path.is_dir():
            files.update(dict.fromkeys(_some_below(path, notes)))
        elif path.is_file():
            files[path] = None
        else:
            raise UserError(f"no such file or folder: {path}: check the path")
    root = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in given]))
    items = (ImageItem(path, path.relative_to(root).as_posix(), _label_from_parents(path), "", "") for path in files)
    return ImageSet(root, tuple(items), notes.lines())


def find_image_pair(
    real: str | Path,
    fake: str | Path,
    name: str,
    *,
    num_real: int | None = None,
    num_fake: int | None = None,
    flags: str = "--real and --fake",
) -> ImageSet:
    """The images below a folder of real and a folder of fake ones, wherever they are; the root is the folder of both.

    Args:
        real, fake: folders; hidden files and folders below are left out.
        name: stands for the generator.
        num_real, num_fake: the first so many images; None or 0 for all.
        flags: that name the folders, for messages.

    Raises:
        UserError: a folder is missing, has no images, or lies inside the other.
    """
    folders = [Path(folder).resolve() for folder in (real, fake)]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no such folder: {folder}: give {flags} one folder of images each")
    if folders[0].is_relative_to(folders[1]) or folders[1].is_relative_to(folders[0]):
        raise UserError(f"{folders[0]} and {folders[1]} lie in each other: keep real and fake images apart")
    root = Path(os.path.commonpath(folders))
    limits = label_limits(num_real, num_fake, None)
    notes = _Notes()
    items = tuple(
        ImageItem(path, path.relative_to(root).as_posix(), label, "", name)
        for label, folder in zip((REAL, FAKE), folders, strict=True)
        for path in _some_below(folder, notes)[: limits[label]]
    )
    return ImageSet(root, items, notes.lines())


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
    pairs = []
    for position, content in enumerate(image_set.contents()):
        earlier, item = image_set.items[first.setdefault(content, position)], image_set.items[position]
        if earlier.label != item.label:
            pairs.append((earlier, item))
    return pairs


class _Notes:
    """What is left out or taken for something on the way through the folders, told in one line each."""

    def __init__(self) -> None:
        self.renamed: dict[str, str] = {}
        self.suffixes: Counter[str] = Counter()
        self.deeper: Counter[Path] = Counter()
        self.others: list[str] = []

    def lines(self) -> tuple[str, ...]:
        lines = list(self.others)
        if self.renamed:
            lines.append("; ".join(f"{folder} is read as {label} images" for folder, label in self.renamed.items()))
        if self.suffixes:
            parts = ", ".join(f"{count} {suffix or 'without'}" for suffix, count in sorted(self.suffixes.items()))
            total = sum(self.suffixes.values())
            lines.append(f"{_number(total, 'file')} left out by suffix ({parts}): images are {_extension_list()}")
        if self.deeper:
            total = sum(self.deeper.values())
            first = min(self.deeper)
            lines.append(f"{_number(total, 'image')} left out in folders inside label folders (first {first})")
        return tuple(lines)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _generator_folder(root: Path, gan_name: str) -> Path:
    if not root.is_dir():
        raise UserError(f"no data set folder {root}: check --dataset_dir")
    if not is_plain_name(gan_name):
        raise UserError(f"{gan_name!r} is not a folder name: give --gan_name the name of a folder in {root}")
    folder = root / gan_name
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: check --gan_name (there: {_listing(root)})")
    return folder


def _class_names(folder: Path, have_classes: bool | Literal["auto"], notes: _Notes) -> list[str]:
    """Names of the class folders, or [""] if the label folders lie directly in `folder`."""
    direct = bool(_label_folders(folder))
    others = [name for name in _folder_names(folder) if name.lower() not in LABELS_OF_FOLDERS]
    classes = [name for name in others if _label_folders(folder / name)]
    if have_classes == "auto" and direct and classes:
        raise UserError(
            f"{folder} holds label folders directly and in class folders ({', '.join(classes)}): "
            "say which to use with --have_classes"
        )
    if classes and have_classes is not False:
        if have_classes == "auto" and all(name.lower() in _SPLITS for name in classes):
            _check_splits(folder, classes, notes)
        if len(classes) < len(others):
            missing = ", ".join(name for name in others if name not in classes)
            notes.others.append(f"left out, for want of {LABEL_FOLDERS[REAL]} and {LABEL_FOLDERS[FAKE]}: {missing}")
        return classes
    if direct and have_classes is not True:
        return [""]
    if have_classes == "auto":
        raise UserError(
            f"no label folders (0_real and 1_fake, nature and ai, or real and fake) in {folder} or in its folders "
            f"(there: {_listing(folder)}): rename or link them so, list the images with --images_from, or give the two "
            "folders to src/reproduce.py as --real and --fake"
        )
    if have_classes:
        raise UserError(f"no class folders with 0_real and 1_fake in {folder}: try --have_classes False")
    raise UserError(f"no 0_real and 1_fake directly in {folder}: try --have_classes True")


def _check_splits(folder: Path, splits: Sequence[str], notes: _Notes) -> None:
    if len(splits) > 1:
        raise UserError(
            f"{folder} holds {' and '.join(splits)}, which look like splits, not classes: choose one, as in "
            f"--dataset_dir {folder} --gan_name {splits[-1]} (in training --train_dir {folder}/{splits[0]}), or take "
            f"them for classes with --have_classes True (in training --classes {','.join(splits)})"
        )
    notes.others.append(f"all images are of the split {splits[0]}")


def _check_labels(folder: Path, label_folders: dict[int, str], labels: Collection[int]) -> None:
    missing = [label for label in sorted(set(labels)) if label not in label_folders]
    if missing:
        there = " and ".join(label_folders.values())
        raise UserError(
            f"no folder {folder / LABEL_FOLDERS[missing[0]]} beside {there}: add it, with images in it, or remove "
            f"{folder}; images of one kind alone go with --images"
        )


def _label_folders(folder: Path) -> dict[int, str]:
    """Names of the label folders in `folder`, whatever their spelling."""
    known: dict[int, str] = {}
    for name in _folder_names(folder):
        label = LABELS_OF_FOLDERS.get(name.lower())
        if label is None:
            continue
        if label in known:
            raise UserError(f"{folder} holds {known[label]} and {name}, both for {LABEL_NAMES[label]} images: keep one")
        known[label] = name
    return known


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read folder {folder} ({error.strerror}): check its permissions") from error
    return sorted(visible, key=lambda entry: entry.name)


def _folder_names(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _listing(folder: Path) -> str:
    return ", ".join(_folder_names(folder)) or "no folders"


def _is_image(entry: os.DirEntry[str], notes: _Notes) -> bool:
    """Whether to take an entry that is no folder; a file left out is counted."""
    if not entry.is_file():
        return False
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a Path per file is slow
    if suffix not in EXTENSIONS:
        notes.suffixes[suffix] += 1
    return suffix in EXTENSIONS


def _image_names(folder: Path, notes: _Notes) -> list[str]:
    names = []
    for entry in _entries(folder):
        if not entry.is_dir():
            names += [entry.name] * _is_image(entry, notes)
        elif deeper := len(_images_below(folder / entry.name, _Notes())):
            notes.deeper[folder / entry.name] = deeper
    return names


def _some_below(folder: Path, notes: _Notes) -> list[Path]:
    files = _images_below(folder, notes)
    if not files:
        raise UserError(f"no images below {folder}: put some there ({_extension_list()})")
    return files


def _images_below(folder: Path, notes: _Notes) -> list[Path]:
    """All images below a folder, sorted; links to folders are followed, and each folder is visited once."""
    files: list[Path] = []
    visited: set[Path] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        if current.resolve() in visited:
            continue
        visited.add(current.resolve())
        entries = _entries(current)
        waiting += [current / entry.name for entry in reversed(entries) if entry.is_dir()]
        files += [current / entry.name for entry in entries if not entry.is_dir() and _is_image(entry, notes)]
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def _label_from_parents(path: Path) -> int | None:
    labels = {name: label for label, name in LABEL_FOLDERS.items()}
    return next((labels[parent.name] for parent in path.parents if parent.name in labels), None)


def _content(path: Path) -> bytes:
    try:
        status = path.stat()
        # A file just written may be written again within one tick of the file system's clock.
        settled = time.time_ns() - status.st_mtime_ns > 2_000_000_000
        read = _content_of if settled else _content_of.__wrapped__
        return read(os.fspath(path), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the file") from error


@functools.lru_cache(maxsize=1 << 16)
def _content_of(path: str, size: int, modified: int) -> bytes:
    digest = hashlib.sha256(size.to_bytes(8))
    with Path(path).open("rb") as file:
        digest.update(file.read(_END))
        # what lies between is not read
        file.seek(max(_END, size - _END))
        digest.update(file.read(_END))
    return digest.digest()


def _extension_list() -> str:
    return " ".join(sorted(EXTENSIONS))
