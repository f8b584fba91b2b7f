"""Photographs beside the same ones up-sampled, in the ForenSynths layout: the simplest trace, no generator."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from images.bundled_photos import bundled_photos
from images.decoding import decode_image
from images.sets import LABEL_FOLDERS, ImageSet, find_image_set
from utils.figures import save_picture

_SIZE = 224


def write_pair(folder: Path, name: str, real: Image.Image) -> None:
    """Write `<folder>/{0_real,1_fake}/<name>.png`; the fake is halved and enlarged by blended pixel repetition."""
    small = real.resize((real.width // 2, real.height // 2), Image.Resampling.BILINEAR)
    repeated, smooth = (
        small.resize(real.size, method) for method in (Image.Resampling.NEAREST, Image.Resampling.BICUBIC)
    )
    for label, picture in ((0, real), (1, Image.blend(repeated, smooth, 0.5))):
        save_picture(folder / LABEL_FOLDERS[label] / f"{name}.png", np.asarray(picture))


@contextmanager
def demo_fakes() -> Iterator[ImageSet]:
    """Fakes of 224 x 224 pixels from up to five places of each bundled photograph, as long as the `with` lasts."""
    with tempfile.TemporaryDirectory() as root:
        for photo, path in bundled_photos():
            image = Image.fromarray(decode_image(path))
            if min(image.size) >= 2 * _SIZE:
                image = image.reduce(2)
            right, bottom = image.width - _SIZE, image.height - _SIZE
            corners = dict.fromkeys([(0, 0), (right, bottom), (right, 0), (0, bottom), (right // 2, bottom // 2)])
            for index, (x, y) in enumerate(corners if min(right, bottom) >= 0 else ()):
                write_pair(Path(root, "photos"), f"{photo}_{index}", image.crop((x, y, x + _SIZE, y + _SIZE)))
        yield find_image_set(root, "photos", labels=(1,))


def repeated(images: ImageSet, number: int) -> ImageSet:
    """So many images, the same ones again and again."""
    return ImageSet(images.root, tuple(images.items[i % len(images)] for i in range(number)))
