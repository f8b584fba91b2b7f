"""Relevance of single images as files: the map as a tensor, and the picture of it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from images.sets import ImageItem
from utils.figures import save_picture
from utils.files import atomic_path, safe_join
from utils.heatmaps import overlay, render_heatmap


class RelevanceFiles:
    """Writes `<folder>/<image name>.pt` and `.png` for every image added; keeps nothing in memory.

    The .pt file holds a dict of plain values, readable with `torch.load(..., weights_only=True)`: `relevance`
    (H, W) float32, summed over RGB and positive where it speaks for the image's label, `probability` (p(fake)) and
    `label`.

    Args:
        folder: Where everything goes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, item: ImageItem, image: np.ndarray, relevance: np.ndarray, probability: float) -> None:
        """Write one image (H, W, 3) uint8 and its relevance (H, W)."""
        path = safe_join(self.folder, f"{item.name}.pt")
        content = {"relevance": torch.from_numpy(relevance.copy()), "probability": probability, "label": item.label}
        # By way of memory: torch writes the name of a file into it, and hides a full disk in an error of its own.
        buffer = io.BytesIO()
        torch.save(content, buffer)
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
        save_picture(path.with_suffix(".png"), overlay(image, render_heatmap(relevance)))
