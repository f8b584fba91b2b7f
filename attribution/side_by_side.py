"""Heat maps of several detectors on the same images, side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attribution.attribution import Attribution
from passes.analysis import draw_once
from utils.files import read_npz, safe_join
from utils.heatmaps import LOOKS
from utils.layout import Layout
from utils.pictures import ContactSheets

_COLUMNS = 2
_ROWS = 5


def draw_side_by_side(analyses: Sequence[Attribution[Any]]) -> list[Path]:
    """Contact sheets: of every image that all explained the image itself and the overlay of each detector."""
    names = [analysis.layout.tag for analysis in analyses]
    first = analyses[0]
    layout = Layout(first.layout.root, "all", "detectors")
    stem = safe_join(layout.root, first.name, "side_by_side", "-".join([*names, *first.details]), "contact_sheet")
    rows = [{row.path: row for row in analysis.rows()} for analysis in analyses]
    images = [path for path in rows[0] if all(path in entries for entries in rows)]

    def draw() -> list[Path]:
        look = LOOKS[first.options.look]
        sheets = ContactSheets(
            stem,
            panels=1 + len(analyses),
            caption_lines=1 + len(analyses),
            columns=_COLUMNS,
            rows=_ROWS,
            title=f"{', '.join(names)}, from left to right: evidence for {first.target.description()}",
            legend=look.legend(),
        )
        for path in images:
            pictures: list[np.ndarray] = []
            captions = [path]
            for analysis, entries, name in zip(analyses, rows, names, strict=True):
                arrays = read_npz(safe_join(analysis.folder, entries[path].arrays))
                if not pictures:
                    pictures.append(arrays["image"])
                pictures.append(look.overlay(arrays["image"], look.render(arrays["relevance"])))
                captions.append(f"{name}: {entries[path].said}, {entries[path].evidence.partition(', against')[0]}")
            sheets.add(pictures, captions)
        return sheets.finish()

    settings = {"names": names, "settings": [analysis.drawing_settings() for analysis in analyses]}
    sources = [analysis.outputs[0] for analysis in analyses]
    return draw_once(layout, f"{first.name}-{'-'.join(names)}", sources, settings, draw)
