"""A small data set in the ForenSynths layout from the bundled photographs: crops, and the same crops up-sampled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from images.bundled_photos import bundled_photos
from images.decoding import decode_image
from images.sets import LABEL_FOLDERS
from utils.figures import save_picture

_SIZE = 224


def make_demo_images(root: Path, name: str = "upsampled_photos", crops_per_photo: int = 4) -> int:
    """Write `<root>/<name>/{0_real,1_fake}/*.png`; existing files are kept.

    Real are crops of 224 x 224 from photographs halved in size. Fake are the same crops halved again and enlarged by
    pixel repetition with a light blend: the simplest up-sampling trace, no generator.

    Returns:
        Number of images of each label.
    """
    count = 0
    for photo, path in bundled_photos():
        image = Image.fromarray(decode_image(path))
        if min(image.size) >= 2 * _SIZE:
            image = image.reduce(2)
        for index, box in enumerate(_boxes(image.size, crops_per_photo)):
            real = image.crop(box)
            small = real.resize((_SIZE // 2, _SIZE // 2), Image.Resampling.BILINEAR)
            fake = Image.blend(
                small.resize((_SIZE, _SIZE), Image.Resampling.NEAREST),
                small.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC),
                0.5,
            )
            for label, picture in ((0, real), (1, fake)):
                target = root / name / LABEL_FOLDERS[label] / f"{photo}_{index}.png"
                if not target.exists():
                    save_picture(target, np.asarray(picture))
            count += 1
    return count


def _boxes(size: tuple[int, int], number: int) -> list[tuple[int, int, int, int]]:
    """Up to `number` different crop boxes, the corners first."""
    right, bottom = size[0] - _SIZE, size[1] - _SIZE
    if right < 0 or bottom < 0:
        return []
    corners = dict.fromkeys([(0, 0), (right, bottom), (right, 0), (0, bottom), (right // 2, bottom // 2)])
    return [(x, y, x + _SIZE, y + _SIZE) for x, y in list(corners)[:number]]
