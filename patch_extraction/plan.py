"""Which images to take for which maps: from activation rankings to a set of images and a list of patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectors.detector import Detector
from fmap_ranking.names import FeatureMap
from images.sets import ImageItem, ImageSet
from patch_extraction.patches import Wanted, wanted_patches
from patch_extraction.rankings import MAKE, ActivationRankingFiles, ActivationRankings
from utils.errors import UserError
from utils.files import safe_join

_FAKE = 1


@dataclass(frozen=True)
class PatchPlan:
    """Patches to make of each map, and the images that they come from, each once."""

    wanted: list[list[Wanted]]
    image_set: ImageSet


def plan_patches(
    files: ActivationRankingFiles,
    detector: Detector,
    maps: Sequence[FeatureMap],
    count: int = 5,
    *,
    dataset_dir: Path | None = None,
    allow_missing: bool = False,
) -> PatchPlan:
    """Take the `count` most activating images of each map.

    Args:
        files: Activation rankings of a generator.
        detector: The detector that they were made with.
        maps: Feature maps.
        count: Images of each map; all there are, if there are fewer.
        dataset_dir: Where the images are; by default where they were ranked.
        allow_missing: Do not complain about images that have gone.

    Raises:
        UserError: No rankings, not of these maps, of another checkpoint or of cropped images, or images have gone.
    """
    rankings = ActivationRankings.read(files.arrays)
    rankings.require(maps, files.arrays)
    source = rankings.source
    if source.weights != detector.sha256:
        raise UserError(
            f"{files.arrays} was made with another checkpoint than {detector.weights}: "
            f"give the same --weights, or run {MAKE} again"
        )
    if source.crop != "none":
        raise UserError(
            f"{files.arrays} was made with --crop {source.crop}, but patches are cut from whole images: "
            f"run {MAKE} with --crop none"
        )
    wanted = wanted_patches(rankings, maps, count)
    root = dataset_dir or Path(source.dataset_dir)
    names = sorted({patch.name for of_map in wanted for patch in of_map})
    items = tuple(ImageItem(safe_join(root, name), name, _FAKE, "", files.gan_name) for name in names)
    missing = [item.path for item in items if not item.path.is_file()]
    if missing and not allow_missing:
        raise UserError(
            f"no such image: {missing[0]} ({len(missing)} missing): give the --dataset_dir that the images were "
            f"ranked in, run {MAKE} again, or use --skip_bad_images"
        )
    return PatchPlan(wanted, ImageSet(root, items))
