"""Scaling before the crop."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from images.decoding import Crop
from utils.errors import UserError


@dataclass(frozen=True)
class ResizedCrop(Crop):
    """A crop after scaling the shorter side to `resize` pixels, as torchvision's Resize then CenterCrop."""

    kind: str = "center"
    resize: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        # Batches without a crop are planned by the size of the file, which scaling would change.
        if self.kind != "center":
            raise UserError(f"crop {self.kind!r} does not go with scaling: use center, or no scaling")
        if self.resize < 1:
            raise UserError(f"--resize {self.resize}: use at least 1 pixel, or 0 for no scaling")

    def __call__(self, image: np.ndarray, *, seed: int, name: str) -> np.ndarray:
        """Scale, then crop uint8 (H, W, 3)."""
        height, width = image.shape[:2]
        short = min(height, width)
        size = (self.resize * width // short, self.resize * height // short)
        if size != (width, height):
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        return super().__call__(image, seed=seed, name=name)
