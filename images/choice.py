"""Which images a run is about and how they are read, as settings; without PyTorch, for quick `--help`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from utils.errors import UserError
from utils.settings import boolean, count, flag, plain_name, positive

if TYPE_CHECKING:
    from images.decoding import Crop

LIST_FORMAT = "the columns path and label, and if you like class, generator and cluster"
# More decoding processes than that do not help one GPU.
_MOST_WORKERS = 8


def _have_classes(text: str) -> bool | str:
    return "auto" if text.strip().lower() == "auto" else boolean(text)


@dataclass(frozen=True)
class ImageChoice:
    """Images.

    Attributes:
        images_from: CSV with a line for each image: `path` (absolute, or relative to the CSV) and `label` (0 or real, 1
            or fake), and if there are such columns `class`, `generator` (each a set; without it there is one, named
            after the file) and `cluster`.
        cluster: which images are not independent: "folder" for those in one folder, label folders left out, or a
            regular expression, whose first group (or all that matches) in the file's name is the cluster within its
            class; it goes before the column of `images_from`.
        equalize: real and fake images are given one size and one compression on the way in: all are cut to the central
            square of the smallest shorter side in the set, and compressed as JPEG at the lowest quality there (95
            where none is a JPEG); `images.decoding.Equalization`.
    """

    dataset_dir: Path | None = flag(None, "folder of the generators' folders", metavar="DIR")
    gan_name: tuple[str, ...] = flag(
        (),
        "one or more folders there, each with [<class>/]0_real and [<class>/]1_fake",
        parse=plain_name,
        metavar="NAME",
    )
    have_classes: bool | Literal["auto"] = flag(
        "auto", "whether there are class folders; auto looks", parse=_have_classes, metavar="True|False|auto"
    )
    num_real: int | None = flag(None, "first N real images of each class; 0 or absent: all", parse=count)
    num_fake: int | None = flag(None, "first N fake images of each class; 0 or absent: all", parse=count)
    num_instances: int | None = flag(
        None, "first N images of each class and label, where the two above are absent; 0 or absent: all", parse=count
    )
    images_from: Path | None = flag(
        None, f"list of images instead of --dataset_dir, with {LIST_FORMAT}", metavar="FILE.csv"
    )
    cluster: str | None = flag(
        None,
        "which images belong together in intervals: folder, or a regular expression whose group in the file's name "
        "says it, as in '(.*)_[0-9]+'",
        metavar="folder|PATTERN",
    )
    equalize: bool = flag(False, "give real and fake images one size (central part) and one JPEG quality")

    def __post_init__(self) -> None:
        if self.images_from is not None and self.dataset_dir is not None:
            raise UserError("--images_from stands for --dataset_dir: leave out one of them")
        try:
            re.compile(self.cluster or "")
        except re.error as error:
            raise UserError(f"--cluster {self.cluster}: not a regular expression ({error}): mend it") from error


@dataclass(frozen=True)
class Reading:
    """Reading of images."""

    bsize: int = flag(16, "images in a batch", parse=positive)
    crop: Literal["none", "center", "random"] = flag(
        "none", "random: 99 to 100 %% of the area resized to 224x224; center: the central 224x224; none: all"
    )
    resize: int = flag(0, "pixels of the shorter side, to which images are scaled before the crop; 0: not", parse=count)
    preprocessing: Literal["authors", "as_is"] = flag(
        "authors",
        "authors: scale and crop images as the authors of a detector do, where they do, whatever --crop and --resize "
        "say (src/check_setup.py --detectors shows it); as_is: do not",
    )
    num_workers: int | None = flag(
        None,
        "processes that decode images, 0 for none; absent: as many as are useful on the device",
        parse=count,
        recorded=False,
    )
    skip_bad_images: bool = flag(False, "leave out images that cannot be decoded, and report them, instead of stopping")

    def cropping(self, authors: Crop | None = None) -> Crop:
        """What is done to each image, where the authors of the detector do `authors`."""
        from images.decoding import Crop

        if self.preprocessing == "authors" and authors not in (None, Crop()):
            return authors
        return Crop(self.crop, resize=self.resize)

    def workers_for(self, device_type: str) -> int:
        """Number of decoding processes: as asked for, else none on a CPU (it is busy), and for a GPU up to 8.

        The processes that `torchrun` started on this machine share its cores.
        """
        if self.num_workers is not None:
            return self.num_workers
        if device_type == "cpu":
            return 0
        # not all systems can tell how many cores a process may use
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, min(_MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
