"""Result tables of the paper, to set beside ours: percent, as printed, for the published checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

SOURCE = (
    "Chandrasegaran, Tran, Binder, Cheung: Discovering Transferable Forensic Features for CNN-generated Images "
    "Detection, ECCV 2022; result tables of its code release, blur_jpg 0.5"
)
TAG = "0.5"
"""Training recipe of the detectors that the figures are about."""

GENERATORS = ("progan", "stylegan2", "stylegan", "biggan", "cyclegan", "stargan", "gaugan")
SENSITIVITY_K = {"resnet50": 114, "efb0": 27}

_Row = tuple[float, float, float]
# By detector and variant: AP, accuracy on reals and on fakes at the calibrated threshold, generators as above.
_SENSITIVITY: Mapping[str, Mapping[str, tuple[_Row, ...]]] = {
    "resnet50": {
        "baseline": (
            (100.0, 100.0, 100.0),
            (99.1, 95.5, 95.0),
            (99.3, 96.0, 95.6),
            (90.4, 83.9, 85.1),
            (97.9, 93.4, 92.6),
            (97.5, 94.0, 89.3),
            (98.8, 93.9, 96.4),
        ),
        "top-k": (
            (69.8, 99.4, 3.2),
            (55.3, 89.4, 11.3),
            (56.6, 90.6, 13.7),
            (55.4, 86.4, 18.3),
            (61.2, 91.4, 17.4),
            (72.6, 89.4, 35.9),
            (71.0, 95.0, 18.8),
        ),
        "random-k": (
            (100.0, 99.9, 96.1),
            (98.6, 89.4, 96.9),
            (98.7, 91.4, 96.1),
            (88.0, 79.4, 85.1),
            (96.6, 81.0, 96.2),
            (97.0, 88.0, 91.7),
            (98.7, 91.9, 97.1),
        ),
        "low-k": (
            (100.0, 100.0, 100.0),
            (99.1, 95.6, 95.0),
            (99.3, 96.0, 95.6),
            (90.4, 83.9, 85.1),
            (97.9, 93.4, 92.6),
            (97.5, 94.0, 89.3),
            (98.8, 93.9, 96.4),
        ),
    },
    "efb0": {
        "baseline": (
            (100.0, 100.0, 100.0),
            (95.9, 95.2, 85.4),
            (99.0, 96.1, 94.3),
            (84.4, 79.7, 75.9),
            (97.3, 89.6, 93.0),
            (96.0, 92.8, 85.5),
            (98.3, 94.1, 94.4),
        ),
        "top-k": (
            (50.0, 100.0, 0.0),
            (54.5, 94.3, 7.0),
            (52.1, 97.3, 2.6),
            (53.5, 97.4, 3.8),
            (47.5, 100.0, 0.0),
            (50.0, 100.0, 0.0),
            (46.2, 100.0, 0.0),
        ),
        "random-k": (
            (100.0, 99.9, 100.0),
            (96.5, 91.9, 89.8),
            (99.2, 91.2, 97.5),
            (84.5, 59.4, 89.1),
            (96.9, 82.6, 95.8),
            (96.7, 82.5, 93.3),
            (98.1, 87.8, 96.2),
        ),
        "low-k": (
            (100.0, 100.0, 100.0),
            (95.3, 88.7, 88.3),
            (98.9, 90.8, 96.1),
            (83.5, 70.8, 80.8),
            (96.6, 85.2, 94.1),
            (95.4, 91.0, 85.4),
            (98.1, 91.2, 96.4),
        ),
    },
}

# By detector and condition: AP, generators as above. "cr" is the colour-robust detector.
_COLOUR_AP: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "resnet50": {
        "rgb": (100.0, 99.1, 99.3, 90.4, 97.9, 97.5, 98.8),
        "grayscale": (99.9, 89.1, 96.7, 75.2, 84.2, 89.2, 97.6),
        "cr-rgb": (100.0, 98.5, 99.5, 89.9, 96.6, 96.2, 99.5),
        "cr-grayscale": (100.0, 98.0, 99.6, 87.6, 91.1, 95.4, 99.4),
    },
    "efb0": {
        "rgb": (100.0, 99.0, 99.0, 84.4, 97.3, 96.0, 98.3),
        "grayscale": (99.9, 91.0, 91.0, 68.4, 86.5, 91.8, 93.7),
        "cr-rgb": (100.0, 98.1, 98.1, 82.3, 95.7, 95.9, 99.0),
        "cr-grayscale": (100.0, 98.8, 98.8, 81.0, 91.3, 94.8, 98.8),
    },
}


def published_sensitivity(arch: str, variant: str, generator: str) -> tuple[float, float, float] | None:
    """AP, accuracy on reals, accuracy on fakes in percent (Tab. 1; calibrated threshold), or None if not published.

    Args:
        arch: canonical architecture name.
        variant: `baseline`, `top-k`, `random-k` (scores of five draws averaged) or `low-k`, with the paper's k.
        generator: folder name in ForenSynths.
    """
    rows = _SENSITIVITY.get(arch, {}).get(variant)
    return rows[GENERATORS.index(generator)] if rows is not None and generator in GENERATORS else None


def published_colour_ap(arch: str, condition: str, generator: str) -> float | None:
    """AP in percent of the detector on `rgb` or `grayscale`, of the colour-robust one on `cr-rgb` or `cr-grayscale`."""
    rows = _COLOUR_AP.get(arch, {}).get(condition)
    return rows[GENERATORS.index(generator)] if rows is not None and generator in GENERATORS else None
