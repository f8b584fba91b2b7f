"""Published results to set beside one's own; accuracy and AP in percent."""

from collections.abc import Mapping
from dataclasses import dataclass

from evaluation.published import GENERATORS, published_colour_ap

WANG_SOURCE = (
    "Wang, Wang, Zhang, Owens, Efros: CNN-generated images are surprisingly easy to spot... for now, CVPR 2020; "
    "table of its code release: ResNet-50, centre crop of 224 pixels"
)
WANG_SETS = (
    "progan",
    "stylegan",
    "biggan",
    "cyclegan",
    "stargan",
    "gaugan",
    "crn",
    "imle",
    "seeingdark",
    "san",
    "deepfake",
    "stylegan2",
    "whichfaceisreal",
)
# by probability of blur and JPEG: accuracy and AP of the sets above
_WANG: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "0.5": (
        (100.0, 73.4, 59.0, 80.8, 81.0, 79.3, 87.6, 94.1, 78.3, 50.0, 51.1, 68.4, 63.9),
        (100.0, 98.5, 88.2, 96.8, 95.4, 98.1, 98.9, 99.5, 92.7, 63.9, 66.3, 98.0, 88.8),
    ),
    "0.1": (
        (100.0, 87.1, 70.2, 85.2, 91.7, 78.9, 86.3, 86.2, 90.3, 50.5, 53.5, 84.4, 83.6),
        (100.0, 99.6, 84.5, 93.5, 98.2, 89.5, 98.2, 98.4, 97.2, 70.5, 89.0, 99.1, 93.2),
    ),
}


@dataclass(frozen=True)
class ApRow:
    """AP in percent of one detector by variant (`rgb`, `grayscale`) and test set."""

    name: str
    arch: str
    values: Mapping[str, Mapping[str, float]]


def colour_robust_rows(arch: str) -> list[ApRow]:
    """The published baseline and colour-robust detector of an architecture; none for other architectures."""
    rows = []
    for name, prefix in (("published baseline", ""), ("published colour-robust", "cr-")):
        values: dict[str, dict[str, float]] = {"rgb": {}, "grayscale": {}}
        for variant, numbers in values.items():
            for generator in GENERATORS:
                ap = published_colour_ap(arch, prefix + variant, generator)
                if ap is not None:
                    numbers[generator] = ap
        if values["rgb"]:
            rows.append(ApRow(name, arch, values))
    return rows


def wang_results() -> dict[str, dict[str, tuple[float, float]]]:
    """Accuracy and AP of Wang et al.'s ResNet-50 by probability of blur and JPEG (`0.5`, `0.1`) and test set."""
    return {
        tag: dict(zip(WANG_SETS, zip(accuracies, aps, strict=True), strict=True))
        for tag, (accuracies, aps) in _WANG.items()
    }
