"""What a patch classifier says of each patch beside what LRP and Grad-CAM say of the image, drawn from their files."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from passes.analysis import Analysis, draw_once
from utils.errors import UserError
from utils.files import read_npz, safe_join
from utils.heatmaps import LOOKS, probability_heatmap
from utils.pictures import ContactSheets


def draw_patch_maps(lrp: Analysis[Any], gradcam: Analysis[Any]) -> list[Path]:
    """Sheets of the images explained by both, unless they are there: the image, p(fake) of patches, LRP, Grad-CAM.

    Args:
        lrp, gradcam: What was run of these methods, with `arrays/` beside its table.

    Raises:
        UserError: No image was explained by both, or the network is no classifier of patches.
    """
    layout = lrp.layout
    stem = safe_join(layout.root, f"patch_maps_{layout.arch}")
    sources = [*lrp.outputs, *gradcam.outputs]

    def draw() -> list[Path]:
        return _draw(lrp.outputs[0].parent, gradcam.outputs[0].parent, stem)

    return draw_once(layout, f"patch_maps-{lrp.gan_name}", sources, {}, draw)


def _draw(lrp: Path, gradcam: Path, stem: Path) -> list[Path]:
    look = LOOKS["signed"]
    title = "The image; p(fake) of every patch; LRP of the mean p(fake); Grad-CAM of it"
    legend = ("p(fake) 0, evidence against", look.legend()[1], "1, evidence for fake")
    sheets = ContactSheets(stem, panels=4, columns=1, rows=6, title=title, legend=legend)
    names = [path.relative_to(lrp) for path in sorted((lrp / "arrays").rglob("*.npz"))]
    common = [name for name in names if (gradcam / name).is_file()]
    if not common:
        raise UserError(f"no image is explained both in {lrp} and in {gradcam}: explain some with --images")
    for name in common:
        relevance, cam = read_npz(lrp / name), read_npz(gradcam / name)
        image, logits = relevance["image"], cam["logits"]
        if logits.ndim != 3:
            raise UserError("the network has one logit for an image: take a classifier of patches, patchforensics-...")
        probability = expit(logits[0], dtype=np.float64)
        maps = (
            probability_heatmap(probability, image.shape[:2]),
            look.render(relevance["relevance"]),
            probability_heatmap((1 + cam["cam"]) / 2, image.shape[:2]),
        )
        votes = f"mean p(fake) of patches {probability.mean():.3f}, of {(probability > 0.5).mean():.0%} above 0.5"
        caption = [name.relative_to("arrays").with_suffix("").as_posix(), votes]
        sheets.add([image, *(look.overlay(image, heat) for heat in maps)], caption)
    return sheets.finish()
