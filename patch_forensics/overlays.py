"""Maps of p(class 1) over images as the published code and its notebooks draw them; pictures are uint8 RGB."""

import cv2
import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter

_EPSILON = 1e-6
_RIGHT, _WRONG, _WHITE = (0, 255, 0), (255, 0, 0), (255, 255, 255)
_CONTOUR = np.array((255, 255, 0), dtype=np.uint8)
_LEAST_RANGE = 1e-3  # below, a map is not stretched
NOTEBOOK_SIDE = 128


def scaled(heat: np.ndarray, epsilon: float = _EPSILON) -> np.ndarray:
    """A map stretched to 0..1; with the published epsilon its largest value falls just short of 1."""
    low, high = heat.min(), heat.max()
    return (heat - low) / (high - low + epsilon) if high - low + epsilon else heat - low


def coloured(heat: np.ndarray, shape: tuple[int, ...], colours: int = cv2.COLORMAP_JET) -> np.ndarray:
    """A map (h, w) of 0..1 in 8 bits, scaled bilinearly to (H, W, ...) and then coloured."""
    grey = cv2.resize((heat * 255).astype(np.uint8), (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return cv2.applyColorMap(grey, colours)[:, :, ::-1]


def published_overlay(image: np.ndarray, heat: np.ndarray, p_real: float, *, right: bool) -> np.ndarray:
    """0.3 of the coloured map on half of the image, framed in green or red, with the score of the image."""
    blended = 0.3 * coloured(scaled(heat), image.shape) + 0.5 * image
    picture = np.ascontiguousarray(blended.astype(np.uint8))
    cv2.rectangle(picture, (0, 0), (image.shape[1], image.shape[0]), _RIGHT if right else _WRONG, 2)
    cv2.putText(picture, f"p(real)={p_real:.2f}", (0, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _WHITE, 1)
    return picture


def combined_picture(fakes: np.ndarray, reals: np.ndarray, sigma: float = 0.0) -> np.ndarray:
    """Where both kinds give themselves away: mean p(real) over reals and p(fake) over fakes, in bone colours."""
    both = (blurred(reals, sigma) + 1 - blurred(fakes, sigma)) / 2
    return np.ascontiguousarray(coloured(scaled(both), both.shape, cv2.COLORMAP_BONE))


def blurred(heat: np.ndarray, sigma: float) -> np.ndarray:
    """A map blurred by a Gaussian of `sigma` places."""
    return gaussian_filter(heat, sigma) if sigma else heat


def notebook_overlay(image: np.ndarray, heat: np.ndarray, *, above: bool, sigma: float = 1.0) -> np.ndarray:
    """The image, with the coloured map where it is high (or low) and a yellow line around that part.

    Args:
        image: (H, W, 3) uint8.
        heat: (h, w), p(class 1).
        above: Whether the part above one half of the blurred and stretched map is shown, or that below.
        sigma: Of the blur, places.
    """
    smooth = blurred(heat, sigma)
    smooth = scaled(smooth) if np.ptp(smooth) > _LEAST_RANGE else smooth
    high = cv2.resize(smooth, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR) >= 0.5
    mixed = (0.5 * coloured(smooth, image.shape) + 0.5 * image).astype(np.uint8)
    picture = np.where(high[..., None] == above, mixed, image)
    picture[binary_dilation(high, np.ones((3, 3))) & ~high] = _CONTOUR
    return picture
