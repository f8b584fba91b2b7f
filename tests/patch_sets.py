"""Small images for tests of patch classifiers: the left halves of fakes are chequered."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_patch_images(root: Path, parts: tuple[str, ...] = ("train", "val"), number: int = 8, side: int = 40) -> Path:
    """`<root>/{real,fake}/<part>/<n>.png`; the same at every call."""
    for part_number, part in enumerate(parts):
        for label, kind in enumerate(("real", "fake")):
            folder = root / kind / part
            folder.mkdir(parents=True)
            for place in range(number):
                generator = np.random.default_rng([part_number, label, place])
                coarse = generator.integers(60, 180, (5, 5, 3)).astype(np.uint8)
                image = np.array(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)).astype(int)
                if kind == "fake":
                    image[:, : side // 2] += 40 * (np.indices((side, side // 2)).sum(0) % 2)[..., None]
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{place}.png")
    return root
