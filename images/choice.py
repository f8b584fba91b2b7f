"""Which images are looked at, and how they are read: settings, and the sets that they name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.settings import boolean, count, flag, plain_name, positive


def _have_classes(text: str) -> bool | str:
    return "auto" if text.strip().lower() == "auto" else boolean(text)


@dataclass(frozen=True)
class ImageChoice:
    """Images."""

    dataset_dir: Path | None = flag(None, "folder of the generators' folders", metavar="DIR")
    gan_name: tuple[str, ...] = flag((), "one or more folders there", parse=plain_name, metavar="NAME")
    have_classes: Any = flag("auto", "whether there are class folders; auto looks", parse=_have_classes)
    num_real: int | None = flag(None, "first N real images of each class; 0 or absent: all", parse=count)
    num_fake: int | None = flag(None, "first N fake images of each class; 0 or absent: all", parse=count)
    num_instances: int | None = flag(None, "both, where the two above are not given", parse=count)


@dataclass(frozen=True)
class Reading:
    """Reading."""

    bsize: int = flag(16, "images in a batch", parse=positive, metavar="N")
    crop: str = flag("none", "of images", choices=("random", "center", "none"))
    num_workers: int | None = flag(None, "processes that decode images", parse=count, recorded=False)
    skip_bad_images: bool = flag(False, "leave out images that cannot be decoded")

    def cropping(self) -> Any:
        from images.decoding import Crop

        return Crop(self.crop)

    def workers_for(self, device_type: str) -> int:
        return self.num_workers if self.num_workers is not None else 0 if device_type == "cpu" else 8


def find_images(choice: ImageChoice, labels: Collection[int] = (0, 1), *, alone: bool = False) -> dict[str, Any]:
    """Image sets by name, and what there is to say of them."""
    from images.sets import find_image_set

    if choice.dataset_dir is None or not choice.gan_name:
        raise UserError("no images: give --dataset_dir DIR and --gan_name NAME")
    sets = {}
    for name in choice.gan_name:
        sets[name] = find_image_set(
            choice.dataset_dir,
            name,
            have_classes=choice.have_classes,
            num_real=choice.num_real,
            num_fake=choice.num_fake,
            num_instances=choice.num_instances,
            labels=tuple(labels),
        )
    return sets
