"""From a relevance map to a picture in the published look: black to orange, positive relevance only."""

from dataclasses import dataclass

import cv2
import numpy as np

_COLOURS = ("#000000", "#ffc300", "#ffaa00")
_MEDIAN = 5
_HEAT_SHARE = 0.55


@dataclass(frozen=True)
class HeatMap:
    """A rendered relevance map.

    Attributes:
        strength: (H, W) float32, 0..1: positive relevance over its maximum, after the median filter.
        rgb: (H, W, 3) uint8, the same in colour.
        empty: there was no positive relevance at all, and the map is black.
    """

    strength: np.ndarray
    rgb: np.ndarray
    empty: bool


def colour_table() -> np.ndarray:
    """(256, 3) uint8 colours, linear between black, #ffc300 and #ffaa00."""
    nodes = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in _COLOURS], np.float64)
    positions = np.linspace(0, 1, 256)
    stops = np.linspace(0, 1, len(nodes))
    channels = [np.interp(positions, stops, nodes[:, channel] / 255) for channel in range(3)]
    return (np.stack(channels, axis=1) * 255).astype(np.uint8)


def render_heatmap(relevance: np.ndarray, *, percentile: float = 100.0) -> HeatMap:
    """Positive part over its percentile (100: the maximum), 5x5 median filter, colours.

    Args:
        relevance: (H, W), any scale.
        percentile: 0..100; relevance above it is shown as strongest.

    Raises:
        ValueError: if the map is not two-dimensional or not finite.
    """
    if relevance.ndim != 2 or not np.isfinite(relevance).all():
        raise ValueError(f"expected a finite (H, W) map, got shape {relevance.shape}")
    positive = np.maximum(relevance.astype(np.float32), 0)
    top = positive.max()
    if top == 0:
        strength = positive
    else:
        # a map that is zero nearly everywhere has a percentile of zero
        scale = np.float32(np.percentile(positive, percentile)) or top
        strength = cv2.medianBlur(np.minimum(positive / scale, 1), _MEDIAN)
    return HeatMap(strength, colour_table()[(strength * 255).astype(np.uint8)], bool(top == 0))


def overlay(image: np.ndarray, heat: HeatMap) -> np.ndarray:
    """0.55 heat map plus 0.45 image, both (H, W, 3) uint8.

    Raises:
        ValueError: if image and heat map differ in size.
    """
    if image.shape != heat.rgb.shape or image.dtype != np.uint8:
        raise ValueError(f"expected a uint8 image of shape {heat.rgb.shape}, got {image.dtype} {image.shape}")
    return cv2.addWeighted(heat.rgb, _HEAT_SHARE, image, 1 - _HEAT_SHARE, 0)
