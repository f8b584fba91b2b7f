"""Which images there are: folder layout, order, labels, selection."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utils.errors import UserError
from utils.files import is_plain_name, sha256_text

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
LABEL_FOLDERS = {0: "0_real", 1: "1_fake"}
REAL, FAKE = 0, 1
LABEL_NAMES: dict[int | None, str] = {0: "real", 1: "fake", None: "unknown"}
_SAME_FORMAT = {".jpeg": ".jpg", ".tiff": ".tif"}


@dataclass(frozen=True)
class ImageItem:
    """One image file; `name` is its posix path below the root, `label` 0 real, 1 fake, None unknown."""

    path: Path
    name: str
    label: int | None
    class_name: str
    generator: str
    cluster: str = ""


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order, below one root."""

    root: Path
    items: tuple[ImageItem, ...]
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def subset(self, positions: Iterable[int]) -> "ImageSet":
        """The images at `positions`, in the order given."""
        return ImageSet(self.root, tuple(self.items[position] for position in positions))

    def with_label(self, label: int | None) -> "ImageSet":
        """The images of one label, in the same order."""
        return ImageSet(self.root, tuple(item for item in self.items if item.label == label))

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of images per class (the generator where there are no classes) and label name."""
        counts: dict[str, dict[str, int]] = {}
        for item in self.items:
            per_label = counts.setdefault(item.class_name or item.generator or "images", {})
            label = LABEL_NAMES[item.label]
            per_label[label] = per_label.get(label, 0) + 1
        return counts

    def digest(self) -> str:
        """SHA-256 over order, names, labels and file sizes in bytes.

        It tells image sets apart without reading them: neither the place of the root nor file times matter;
        an image replaced by another of the same size in bytes goes unnoticed.

        Raises:
            UserError: an image has gone.
        """
        return sha256_text(f"{item.name}\0{item.label}\0{_size_in_bytes(item.path)}" for item in self.items)


def find_image_set(
    dataset_dir: str | Path,
    gan_name: str,
    *,
    have_classes: bool | Literal["auto"] = "auto",
    num_real: int | None = None,
    num_fake: int | None = None,
    num_instances: int | None = None,
    labels: Sequence[int] = (0, 1),
) -> ImageSet:
    """Find the images of `<dataset_dir>/<gan_name>/[<class>/]{0_real,1_fake}/`, sorted by class, label, name.

    Args:
        dataset_dir: folder of the generators' folders.
        gan_name: name of one of them.
        have_classes: whether the class level is there; "auto" looks.
        num_real: the first so many real images of each class; None or 0 for all.
        num_fake: the same for fake images.
        num_instances: stands for each of the two that is None.
        labels: which labels to take (0 real, 1 fake).

    Raises:
        UserError: missing folder, other layout than asked for, no images, or a negative number.
    """
    root = Path(dataset_dir)
    limits = {
        label: _limit(name, num_instances if number is None else number)
        for label, name, number in ((0, "num_real", num_real), (1, "num_fake", num_fake))
    }
    folder = _generator_folder(root, gan_name)
    items: list[ImageItem] = []
    for class_name in _class_names(folder, have_classes):
        class_folder = folder / class_name
        for label in sorted(set(labels)):
            label_folder = class_folder / LABEL_FOLDERS[label]
            if not label_folder.is_dir():
                raise UserError(f"no folder {label_folder}: add it, with images in it, or remove {class_folder}")
            names = _image_names(label_folder)
            if not names:
                raise UserError(f"no images in {label_folder}: put some there ({_extension_list()})")
            for name in names[: limits[label]]:
                path = label_folder / name
                items.append(ImageItem(path, path.relative_to(root).as_posix(), label, class_name, gan_name))
    return ImageSet(root, tuple(items))


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
    found: dict[Path, None] = {}
    for path in given:
        if path.is_dir():
            below = _images_below(path)
            if not below:
                raise UserError(f"no images below {path}: put some there ({_extension_list()})")
            found.update(dict.fromkeys(below))
        elif path.is_file():
            found[path] = None
        else:
            raise UserError(f"no such file or folder: {path}: check the path")
    root = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in given]))
    items = (ImageItem(path, path.relative_to(root).as_posix(), _label_from_parents(path), "", "") for path in found)
    return ImageSet(root, tuple(items))


def find_image_pair(
    real: str | Path, fake: str | Path, name: str, *, num_real: int | None = None, num_fake: int | None = None
) -> ImageSet:
    """The images below a folder of real and a folder of fake ones, wherever they are; the root is the folder of both.

    Args:
        real, fake: folders; hidden files and folders below are left out.
        name: stands for the generator.
        num_real, num_fake: the first so many images; None or 0 for all.

    Raises:
        UserError: a folder is missing, has no images, or lies inside the other.
    """
    folders = [Path(folder).resolve() for folder in (real, fake)]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no such folder: {folder}: give --real and --fake one folder of images each")
    if folders[0].is_relative_to(folders[1]) or folders[1].is_relative_to(folders[0]):
        raise UserError(f"{folders[0]} and {folders[1]} lie in each other: keep real and fake images apart")
    root = Path(os.path.commonpath(folders))
    limits = _limit("num_real", num_real), _limit("num_fake", num_fake)
    items: list[ImageItem] = []
    for label, (folder, limit) in enumerate(zip(folders, limits, strict=True)):
        found = _images_below(folder)
        if not found:
            raise UserError(f"no images below {folder}: put some there ({_extension_list()})")
        items += [ImageItem(path, path.relative_to(root).as_posix(), label, "", name) for path in found[:limit]]
    return ImageSet(root, tuple(items))


def composition(image_set: ImageSet) -> tuple[Counter[tuple[str, str]], str | None]:
    """Count images by (label name, file extension), with a warning if real and fake differ in file format.

    A detector can tell JPEG from PNG by its traces, whatever the pictures show.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for item in image_set.items:
        extension = item.path.suffix.lower()
        counts[LABEL_NAMES[item.label], _SAME_FORMAT.get(extension, extension)] += 1
    shares = {
        label: {kind: count / total for (owner, kind), count in sorted(counts.items()) if owner == label}
        for label in ("real", "fake")
        if (total := sum(count for (owner, _), count in counts.items() if owner == label))
    }
    if len(shares) < 2:
        return counts, None
    kinds = sorted({kind for _, kind in counts})
    if all(abs(shares["real"].get(kind, 0.0) - shares["fake"].get(kind, 0.0)) <= 0.05 for kind in kinds):
        return counts, None
    texts = {
        label: ", ".join(f"{count} {kind}" for (owner, kind), count in sorted(counts.items()) if owner == label)
        for label in shares
    }
    return counts, (
        f"real and fake images differ in file format (real: {texts['real']}; fake: {texts['fake']}): "
        "scores may follow compression traces rather than the generator"
    )


def _limit(name: str, number: int | None) -> int | None:
    if number is not None and number < 0:
        raise UserError(f"{name} is {number}: give a number of images, or 0 for all")
    return number or None


def _generator_folder(root: Path, gan_name: str) -> Path:
    if not root.is_dir():
        raise UserError(f"no data set folder {root}: check --dataset_dir")
    if not is_plain_name(gan_name):
        raise UserError(f"{gan_name!r} is not a folder name: give --gan_name the name of a folder in {root}")
    folder = root / gan_name
    if not folder.is_dir():
        there = ", ".join(_folder_names(root)) or "no folders"
        raise UserError(f"no folder {folder}: check --gan_name (there: {there})")
    return folder


def _class_names(folder: Path, have_classes: bool | Literal["auto"]) -> list[str]:
    """Names of the class folders, or [""] if the label folders lie directly in `folder`."""
    direct = _has_label_folders(folder)
    label_folders = set(LABEL_FOLDERS.values())
    classes = [
        name for name in _folder_names(folder) if name not in label_folders and _has_label_folders(folder / name)
    ]
    if have_classes == "auto" and direct and classes:
        raise UserError(
            f"{folder} holds 0_real or 1_fake directly and in class folders ({', '.join(classes)}): "
            "say which to use with --have_classes"
        )
    if classes and have_classes is not False:
        return classes
    if direct and have_classes is not True:
        return [""]
    if have_classes == "auto":
        raise UserError(f"no 0_real and 1_fake in {folder} or in its folders: arrange the images so")
    if have_classes:
        raise UserError(f"no class folders with 0_real and 1_fake in {folder}: try --have_classes False")
    raise UserError(f"no 0_real and 1_fake directly in {folder}: try --have_classes True")


def _has_label_folders(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in LABEL_FOLDERS.values())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read folder {folder} ({error.strerror}): check its permissions") from error
    return sorted(visible, key=lambda entry: entry.name)


def _folder_names(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122 - a Path per file is slow


def _image_names(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if _is_image_name(entry.name) and entry.is_file()]


def _images_below(folder: Path) -> list[Path]:
    found: list[Path] = []
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        for entry in _entries(current):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(current / entry.name)
            elif _is_image_name(entry.name) and entry.is_file():
                found.append(current / entry.name)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _label_from_parents(path: Path) -> int | None:
    labels = {name: label for label, name in LABEL_FOLDERS.items()}
    return next((labels[parent.name] for parent in path.parents if parent.name in labels), None)


def _size_in_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the file") from error


def _extension_list() -> str:
    return " ".join(sorted(EXTENSIONS))


def shared_images(a: ImageSet, b: ImageSet) -> int:
    """Number of images that two sets have in common."""
    return len({item.path for item in a.items} & {item.path for item in b.items})
