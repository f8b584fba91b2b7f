"""Greyscale against Pillow and torchvision."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Grayscale

from images.distortions import grayscale, to_grayscale


def test_every_luma_is_that_of_pillow() -> None:
    """All values of red and blue against every third of green: two million colours."""
    red, green, blue = np.meshgrid(np.arange(256), np.arange(0, 256, 3), np.arange(256), indexing="ij")
    image = np.stack([red, green, blue], axis=-1).astype(np.uint8).reshape(256 * 86, 256, 3)
    expected = np.asarray(Grayscale(3)(Image.fromarray(image)))
    found = to_grayscale(torch.from_numpy(image).permute(2, 0, 1)[None])
    assert found.dtype == torch.uint8
    assert np.array_equal(found[0].permute(1, 2, 0).numpy(), expected)
    assert np.array_equal(grayscale(image), expected)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 4, 4),
        torch.zeros(3, 4, 4, dtype=torch.uint8),
        torch.zeros(1, 1, 4, 4, dtype=torch.uint8),
    ],
)
def test_other_types_and_shapes_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        to_grayscale(images)
