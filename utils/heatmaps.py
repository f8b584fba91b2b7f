"""From a relevance map to a picture: both signs over a pale image, or as published, positive relevance alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

_PUBLISHED_COLOURS = ("#000000", "#ffc300", "#ffaa00")
_MEDIAN = 5
_HEAT_SHARE = 0.55
# Few pixels hold most of the relevance; beyond this percentile of |R| all are drawn alike.
_PERCENTILE = 99.5
# Purple, white, orange: told apart by colour-blind readers, and not the colours of real and fake in figures.
_SIGNED_COLOURS = ("#542788", "#b2abd2", "#f7f7f7", "#fdb863", "#e65500")
# Grey level of the darkest parts of the image below the heat map.
_DARKEST = 105
# Of the shorter side; relevance that comes through strided convolutions lies on a grid of dots.
_SMOOTHING = 1 / 128


@dataclass(frozen=True)
class HeatMap:
    """A rendered relevance map.

    Attributes:
        strength: (H, W) float32, -1..1 (published look: 0..1): relevance over the scale, after smoothing.
        rgb: (H, W, 3) uint8, the same in colour.
    """

    strength: np.ndarray
    rgb: np.ndarray


def colour_table(colours: Sequence[str] = _PUBLISHED_COLOURS) -> np.ndarray:
    """(256, 3) uint8 colours, linear between those given, which are `#rrggbb` and evenly spaced."""
    nodes = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours], np.float64)
    positions, stops = np.linspace(0, 1, 256), np.linspace(0, 1, len(nodes))
    channels = [np.interp(positions, stops, nodes[:, channel] / 255) for channel in range(3)]
    return (np.stack(channels, axis=1) * 255).astype(np.uint8)


def render_heatmap(relevance: np.ndarray) -> HeatMap:
    """Published look: positive part over its maximum, 5x5 median filter, black to orange.

    Args:
        relevance: (H, W), any scale.

    Raises:
        ValueError: The map is not two-dimensional or not finite.
    """
    positive = np.maximum(_checked(relevance), 0)
    top = positive.max()
    strength = cv2.medianBlur(positive / top, _MEDIAN) if top > 0 else positive
    return HeatMap(strength, _black_to_orange(strength))


def overlay(image: np.ndarray, heat: HeatMap) -> np.ndarray:
    """Published look: 0.55 heat map plus 0.45 image, both (H, W, 3) uint8.

    Raises:
        ValueError: Image and heat map differ in size.
    """
    _check_size(image, heat)
    return cv2.addWeighted(heat.rgb, _HEAT_SHARE, image, 1 - _HEAT_SHARE, 0)


def render_signed(relevance: np.ndarray) -> HeatMap:
    """Both signs on one symmetric scale, orange for and purple against; smoothed a little, for the eye only.

    Args:
        relevance: (H, W), any scale.

    Raises:
        ValueError: The map is not two-dimensional or not finite.
    """
    values = _checked(relevance)
    largest = np.abs(values).max()
    if largest > 0:
        # Maps of any magnitude, also where squares would leave the range of float32.
        values = cv2.GaussianBlur(values / largest, (0, 0), max(0.5, min(values.shape) * _SMOOTHING))
        magnitude = np.abs(values)
        values = np.clip(values / (np.percentile(magnitude, _PERCENTILE) or magnitude.max()), -1, 1)
    return HeatMap(values, _purple_to_orange(values))


def probability_heatmap(probability: np.ndarray, size: tuple[int, int]) -> HeatMap:
    """Probabilities of a grid (h, w), scaled bilinearly to `size`, on the fixed scale 0 (purple) to 1 (orange).

    Unlike a stretched map it shows how sure, and one picture can be compared with another.
    """
    values = cv2.resize(probability.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    strength = np.clip(2 * values - 1, -1, 1)
    return HeatMap(strength, _purple_to_orange(strength))


def overlay_signed(image: np.ndarray, heat: HeatMap) -> np.ndarray:
    """The strongest colours of `render_signed` over the pale grey image, (H, W, 3) uint8, as opaque as they are strong.

    Raises:
        ValueError: Image and heat map differ in size.
    """
    _check_size(image, heat)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    low, high = np.percentile(grey, (1, 99))
    pale = _DARKEST + np.clip((grey - low) / max(high - low, 1), 0, 1)[..., None] * (255 - _DARKEST)
    opacity = np.abs(heat.strength)[..., None]
    return np.rint(pale * (1 - opacity) + _purple_to_orange(np.sign(heat.strength)) * opacity).astype(np.uint8)


@dataclass(frozen=True)
class Look:
    """A way of drawing relevance.

    Attributes:
        render: From (H, W) relevance to its picture.
        overlay: The picture over its image (H, W, 3) uint8.
        colours: Of `HeatMap.strength`.
        scale: The least and the greatest strength.
        meaning: What these stand for.
    """

    render: Callable[[np.ndarray], HeatMap]
    overlay: Callable[[np.ndarray, HeatMap], np.ndarray]
    colours: Callable[[np.ndarray], np.ndarray]
    scale: tuple[float, float]
    meaning: tuple[str, str]

    def legend(self, width: int = 320, height: int = 20) -> tuple[str, np.ndarray, str]:
        """A colour bar (height, width, 3) uint8 between the words for its ends."""
        bar = self.colours(np.linspace(*self.scale, width))[None].repeat(height, axis=0)
        return self.meaning[0], bar, self.meaning[1]


def _purple_to_orange(strength: np.ndarray) -> np.ndarray:
    return colour_table(_SIGNED_COLOURS)[np.rint((strength + 1) * 127.5).astype(np.uint8)]


def _black_to_orange(strength: np.ndarray) -> np.ndarray:
    return colour_table()[(strength * 255).astype(np.uint8)]


def _checked(relevance: np.ndarray) -> np.ndarray:
    if relevance.ndim != 2 or not np.isfinite(relevance).all():
        raise ValueError(f"expected a finite (H, W) map, got shape {relevance.shape}")
    return relevance.astype(np.float32)


def _check_size(image: np.ndarray, heat: HeatMap) -> None:
    if image.shape != heat.rgb.shape or image.dtype != np.uint8:
        raise ValueError(f"expected a uint8 image of shape {heat.rgb.shape}, got {image.dtype} {image.shape}")


LOOKS = {
    "signed": Look(
        render_signed,
        overlay_signed,
        _purple_to_orange,
        (-1, 1),
        ("evidence against", f"evidence for; full colour from the {_PERCENTILE:g}th percentile of each image on"),
    ),
    "published": Look(
        render_heatmap, overlay, _black_to_orange, (0, 1), ("none", "largest evidence for of each image")
    ),
}
"""By the name of `--look`."""
