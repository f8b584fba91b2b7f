"""Images without labels, from most fake to most real: a table and contact sheets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from images.decoding import decode_image
from images.sets import LABEL_NAMES, ImageItem
from utils.contact_sheets import ContactSheets
from utils.files import write_csv


def write_ranked(folder: Path, detector: str, items: Sequence[ImageItem], scores: np.ndarray, shown: int) -> list[Path]:
    """Write `<detector>.csv` and `<detector>_<page>.png` below `folder`.

    Args:
        folder: where they go.
        detector: name of the detector.
        items: the images.
        scores: probability of fake, (n,); NaN for images that were skipped.
        shown: most images on the sheets: the first half of them from the top, the rest from the bottom; 0: all.

    Returns:
        The table and the sheets.
    """
    order = [place for place in np.argsort(-scores, kind="stable").tolist() if not np.isnan(scores[place])]
    table = folder / f"{detector}.csv"
    rows = (
        (rank, items[place].name, "" if items[place].label is None else items[place].label, float(scores[place]))
        for rank, place in enumerate(order, start=1)
    )
    write_csv(table, ("rank", "path", "label", "probability_of_fake"), rows)
    ranked = list(enumerate(order, start=1))
    title = f"{detector}: p(fake) of {len(order)} images, most fake to most real"
    if 0 < shown < len(ranked):
        top = (shown + 1) // 2
        ranked = ranked[:top] + ranked[len(ranked) - (shown - top) :]
        title = f"{detector}: p(fake) of the {top} most fake and {shown - top} most real of {len(order)} images"
    sheets = ContactSheets(folder / detector, panels=1, caption_lines=2, columns=6, rows=4, title=title)
    for rank, place in ranked:
        item = items[place]
        name = item.path.name if item.label is None else f"{LABEL_NAMES[item.label]} · {item.path.name}"
        sheets.add([decode_image(item.path)], [f"{rank}.  {_shown(scores[place])}", name])
    return [table, *sheets.finish()]


def _shown(probability: float) -> str:
    """Three digits, without rounding to certainty."""
    return "> 0.999" if probability > 0.9995 else "< 0.001" if probability < 0.0005 else f"{probability:.3f}"
