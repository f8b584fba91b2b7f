"""Scores of several detectors on an image set, under several distortions, from one decoding of each image."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detectors.detector import Detector
from images.decoding import Crop
from images.distortions import blur, grayscale, jpeg, rescale
from passes.one_pass import PassBatch
from utils.errors import UserError

RGB, GRAYSCALE = "rgb", "grayscale"
SWEEPS = ("jpeg", "blur", "resize")


@dataclass(frozen=True)
class Variant:
    """An image as it is (`rgb`), without colour (`grayscale`), or distorted (`jpeg`, `blur`, `resize` with a value).

    The value is the JPEG quality, the sigma of the blur in pixels, or the factor of scaling.
    """

    kind: str
    value: float = 0.0
    encoder: str = "pil"

    def __post_init__(self) -> None:
        if self.kind == "jpeg" and not (1 <= self.value <= 100 and self.value == int(self.value)):
            raise UserError(f"JPEG quality {self.value:g}: use an integer from 1 to 100")
        if self.kind == "blur" and not 0 <= self.value <= 100:
            raise UserError(f"blur sigma {self.value:g}: use a number of pixels from 0 to 100")
        if self.kind == "resize" and not 0 < self.value <= 10:
            raise UserError(f"resize factor {self.value:g}: use a number above 0, up to 10")

    @property
    def name(self) -> str:
        """Column of the variant in tables: `rgb`, `grayscale`, `jpeg-75`, `blur-1.5`, `resize-0.5`."""
        return f"{self.kind}-{self.value:g}" if self.kind in SWEEPS else self.kind

    @property
    def changes_neighbourhood(self) -> bool:
        """Whether a pixel's new value depends on others, so that the place of a crop matters."""
        return self.kind in SWEEPS

    def apply(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) to uint8 (H', W', 3)."""
        if self.kind == GRAYSCALE:
            return grayscale(image)
        if self.kind == "jpeg":
            return jpeg(image, int(self.value), self.encoder)
        if self.kind == "blur":
            return blur(image, self.value)
        return rescale(image, self.value) if self.kind == "resize" else image


def variants(
    jpeg_qualities: Iterable[float] = (),
    blur_sigmas: Iterable[float] = (),
    factors: Iterable[float] = (),
    encoder: str = "pil",
) -> list[Variant]:
    """RGB, greyscale, and one variant for each value of each sweep.

    Raises:
        UserError: a value is out of its range.
    """
    sweeps = zip(SWEEPS, (jpeg_qualities, blur_sigmas, factors), strict=True)
    return [Variant(RGB), Variant(GRAYSCALE)] + [
        Variant(kind, value, encoder) for kind, values in sweeps for value in sorted(set(values))
    ]


class ScoreCollector:
    """Probability of fake of every image, for every detector and variant.

    Args:
        detectors: networks with one logit.
        variants: what is done to each image before it is scored.
        images: number of images of the set.
        crop: applied after the distortion, since blur and JPEG act on whole images.
        seed: of random crops.
        precision: `fp32` or `bf16`.
    """

    name = "scores"

    def __init__(
        self,
        detectors: Sequence[Detector],
        variants: Sequence[Variant],
        images: int,
        *,
        crop: Crop | None = None,
        seed: int = 0,
        precision: str = "fp32",
    ) -> None:
        self.detectors = detectors
        self.variants = variants
        self.crop = crop or Crop("none")
        self.seed = seed
        self.precision = precision
        # NaN: not seen, or skipped
        self.scores = np.full((images, len(detectors), len(variants)), np.nan)

    def update(self, batch: PassBatch) -> None:
        """Score a batch."""
        whole = batch.images.permute(0, 2, 3, 1).cpu().numpy()
        places = list(batch.batch.positions)
        for column, variant in enumerate(self.variants):
            changed = [
                self.crop(variant.apply(image), seed=self.seed, name=item.name)
                for image, item in zip(whole, batch.items, strict=True)
            ]
            images = torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2)
            for row, detector in enumerate(self.detectors):
                self.scores[places, row, column] = self._probabilities(detector, images)

    def state(self) -> dict[str, np.ndarray]:
        """The scores so far."""
        return {"scores": self.scores}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replace the scores by saved ones."""
        self.scores = np.array(state["scores"])

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add the scores of other images."""
        other = state["scores"]
        self.scores = np.where(np.isnan(self.scores), other, self.scores)

    def _probabilities(self, detector: Detector, images: Tensor) -> np.ndarray:
        return detector.probability(images).cpu().numpy()
