"""The sortable table of feature maps, and the data behind its details."""

from __future__ import annotations

from typing import Any

from activation_histograms.median_test import LEVEL, MedianTest
from reproduction.contents import DetectorContents, MapOnGenerator
from reproduction.html import escape, percent, url

# Column, heading, which way the first click sorts, class.
_COLUMNS = (
    ("rank", "Rank", "ascending", "number"),
    ("name", "Feature map", "ascending", ""),
    ("omega", "ω in %", "descending", "number"),
    ("p", "p", "ascending", "number"),
    ("shift", "Median shift", "descending", "number"),
    ("count", "Colour-conditional on", "descending", "number wide"),
)


def map_table(contents: DetectorContents, source: str) -> str:
    """A row for each top map, with the numbers of the first generator; the page's script does the rest.

    Args:
        contents: What there is of the detector.
        source: Identifier of the data of `map_data` in the page.
    """
    head = "".join(
        f'<th scope="col" class="{style}" data-column="{column}" data-first="{first}"'
        f'{" aria-sort=ascending" if column == "rank" else ""}><button type="button">{escape(title)}</button></th>'
        for column, title, first, style in _COLUMNS
    )
    first = {test.feature_map_name: test for test in contents.tests[contents.names[0]]}
    rows = []
    for place, entry in enumerate(contents.maps):
        test = first[entry.fmap.key]
        # A long name may break behind a dot.
        name = escape(entry.fmap.folder_name).replace(".", ".<wbr>")
        rows.append(
            f'<tr class="map" data-map="{place}"><td class="number">{place + 1}</td>'
            f'<th scope="row"><button type="button" aria-expanded="false">{name}</button></th>'
            f'<td class="number">{percent(entry.omega, 2)}</td>'
            f'<td class="number p{" conditional" if test.p_value <= LEVEL else ""}">{test.p_value:.2g}</td>'
            f'<td class="number shift">{test.median_difference:.3g}</td>'
            f'<td class="number wide">{_count(contents, entry.fmap.key)} of {len(contents.names)}</td></tr>'
        )
    options = "".join(f'<option value="{place}">{escape(name)}</option>' for place, name in enumerate(contents.names))
    explanation = (
        "Choose a map to see its patches and its histogram, a heading to sort. p and shift are those of the generator "
        f"chosen; orange: p of at most {LEVEL:g}."
    )
    return (
        f'<div class="maps" data-source="{escape(source)}"><p>{escape(explanation)}</p>'
        f'<div class="choose"><label for="{escape(source)}-generator">Generator</label>'
        f'<select id="{escape(source)}-generator" autocomplete="off">{options}</select></div>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Feature maps"><table>'
        f"<caption><span>The top {contents.k} feature maps of {escape(contents.arch)}</span></caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def map_data(contents: DetectorContents) -> dict[str, Any]:
    """Numbers, patches and figures of all top maps on all generators, with addresses relative to the page."""
    found = [contents.of_maps(name) for name in contents.names]
    maps = contents.maps
    by_depth = sorted(maps, key=lambda entry: (entry.depth, entry.fmap.index))
    order = {entry.fmap: place for place, entry in enumerate(by_depth)}
    return {
        "names": [_text(name) for name in contents.names],
        "level": LEVEL,
        "maps": [
            {
                "key": entry.fmap.key,
                "order": order[entry.fmap],
                "omega": entry.omega,
                "count": _count(contents, entry.fmap.key),
                "generators": [_on_generator(contents, of_maps[entry.fmap]) for of_maps in found],
            }
            for entry in maps
        ],
    }


def _on_generator(contents: DetectorContents, found: MapOnGenerator) -> dict[str, Any]:
    test: MedianTest = found.test
    patches = []
    for patch in found.patches.patches:
        height, width = patch.numbers.box.size
        patches.append(
            {
                "rank": patch.rank,
                "name": _text(patch.name),
                "max": patch.max_act,
                "size": f"{width}×{height}",
                "patch": url(patch.picture, contents.root),
                "image": url(patch.image, contents.root),
            }
        )
    return {
        "p": test.p_value,
        "bh": test.p_value_bh,
        "rgb": test.median_rgb,
        "grey": test.median_grayscale,
        "shift": test.median_difference,
        "histogram": None if found.histogram is None else url(found.histogram, contents.root),
        "collage": None if found.collage is None else url(found.collage, contents.root),
        "patches": patches,
    }


def _count(contents: DetectorContents, key: str) -> int:
    tests = (test for of_generator in contents.tests.values() for test in of_generator)
    return sum(test.feature_map_name == key and test.p_value <= LEVEL for test in tests)


def _text(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode("utf-8")
