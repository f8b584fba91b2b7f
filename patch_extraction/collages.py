"""Collages of LRP-max patches, drawn from their files: one for each map, and pages of the top maps (Fig. 1)."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from PIL import Image, ImageDraw

from images.decoding import decode_image
from passes.analysis import draw_once
from patch_extraction.files import MAKE, MapPatches, Patch, PatchFiles
from utils.cli import progress
from utils.errors import UserError
from utils.figures import PDF_METADATA, VERMILLION, chosen_formats, house_style
from utils.files import atomic_path
from utils.layout import Layout
from utils.pictures import fitted, picture_grid, remove_pages, save_grid
from utils.provenance import read_record

PATCHES_IN_A_ROW = 5
_MAPS_ON_A_PAGE = 8  # of A4


def draw_collages(
    layout: Layout, gan_name: str, topk: int | None = None, num_instances: int | None = None
) -> list[Path]:
    """Draw the pages over all maps and the collage of each.

    Args:
        layout: Where patches are and collages go.
        gan_name: The generator.
        topk: The first so many maps; all by default.
        num_instances: Most patches of each map; all by default.

    Returns:
        The pages in the folder of the tag, and the collages in folders of the maps below it.

    Raises:
        UserError: No patches, of another tag, fewer maps than asked for, or damaged files.
    """
    entries = PatchFiles.of(layout, gan_name).read(topk)
    drawn = draw_pages(entries, gan_name, layout.arch, layout.collages / gan_name, num_instances)
    for entry in progress(entries, description=f"collages {gan_name}", unit="map"):
        drawn += draw_map(entry, gan_name, layout.collages / entry.fmap.folder_name / gan_name, num_instances)
    return drawn


def update_collages(
    layout: Layout, gan_name: str, topk: int | None = None, num_instances: int | None = None
) -> list[Path]:
    """As `draw_collages`, if there is anything new to draw; collages of other maps are removed."""

    def drawing() -> list[Path]:
        return draw_collages(layout, gan_name, topk, num_instances)

    files = PatchFiles.of(layout, gan_name)
    files.read(topk)
    settings = collage_settings(files, topk, num_instances)
    return draw_once(layout, f"patches-{gan_name}", [files.index], settings, drawing)


def collage_settings(files: PatchFiles, topk: int | None = None, num_instances: int | None = None) -> dict[str, Any]:
    """What collages depend on besides the list of maps and the code that draws: the pictures, and what is shown."""
    contents = read_record(files.index).get("contents")
    return {"contents": contents, "topk": topk, "num_instances": num_instances}


def draw_map(entry: MapPatches, gan_name: str, stem: Path, num_instances: int | None = None) -> list[Path]:
    """Draw the patches of one map, each above the image it comes from; returns the files `<stem>.<format>`.

    Raises:
        UserError: A picture is missing or damaged.
    """
    patches = entry.patches[:num_instances]
    rows: list[list[np.ndarray]] = []
    captions: list[list[list[str]]] = []
    for first in range(0, len(patches), PATCHES_IN_A_ROW):
        some = patches[first : first + PATCHES_IN_A_ROW]
        rows += [
            [_picture(entry.picture(patch)) for patch in some],
            [_framed(_picture(entry.image(patch)), patch) for patch in some],
        ]
        captions += [[_caption(patch) for patch in some], []]
    facts = [f"map #{entry.fmap.index} of {entry.fmap.channels}"]
    if entry.omega is not None:
        facts += [f"rank {entry.position}", f"ω = {entry.omega:.3g}"]
    below = "Above: what the map's largest activation depends on. Below: where it lies."
    figure = picture_grid(
        rows,
        captions,
        title=f"{entry.fmap.layer}  #{entry.fmap.index}",
        note=f"{'  ·  '.join([*facts, f'fakes of {gan_name}'])}.  "
        + (below if patches else "No patch: none of its images could be read."),
        columns=PATCHES_IN_A_ROW,
    )
    return save_grid(figure, stem)


def draw_pages(
    entries: Sequence[MapPatches], gan_name: str, arch: str, stem: Path, num_instances: int | None = None
) -> list[Path]:
    """Draw a row of patches for each map, on as many pages as it takes.

    Returns:
        The PDF with all pages, if figures are saved as such, and the PNGs: `<stem>.png`, `<stem>_2.png` and so on.

    Raises:
        UserError: A picture is missing or damaged.
    """
    most = max((len(entry.patches) for entry in entries), default=1)
    columns = max(1, min(num_instances or most, most, PATCHES_IN_A_ROW))
    pages = [entries[first : first + _MAPS_ON_A_PAGE] for first in range(0, len(entries), _MAPS_ON_A_PAGE)]
    written: list[Path] = []
    with ExitStack() as stack:
        book: PdfPages | None = None
        if "pdf" in chosen_formats():
            written.append(stem.with_name(f"{stem.name}.pdf"))
            stack.enter_context(house_style())
            book = stack.enter_context(PdfPages(stack.enter_context(atomic_path(written[0])), metadata=PDF_METADATA))
        for number, page in enumerate(pages, start=1):
            of = f" (page {number} of {len(pages)})" if len(pages) > 1 else ""
            figure = picture_grid(
                [[_picture(entry.picture(patch)) for patch in entry.patches[:columns]] for entry in page],
                title=f"What excites the top feature maps of {arch} on {gan_name}",
                note=f"LRP-max patches of the {columns} fakes that excite each map most, the strongest first{of}",
                labels=[_label(entry) for entry in page],
                columns=columns,
            )
            if book is not None:
                book.savefig(figure)
            name = stem.name if number == 1 else f"{stem.name}_{number}"
            written += save_grid(figure, stem.with_name(name), formats=("png",))
    remove_pages(stem, max(2, len(pages) + 1))
    return written


def _label(entry: MapPatches) -> list[str]:
    layer = entry.fmap.layer
    parts = [layer] if len(layer) <= 20 else [f"{layer.rpartition('.')[0]}.", layer.rpartition(".")[2]]
    parts[0] = f"{entry.position}  {parts[0]}"
    omega = [] if entry.omega is None else [f"ω = {entry.omega:.3g}"]
    return [*parts, f"map #{entry.fmap.index} of {entry.fmap.channels}", *omega]


def _caption(patch: Patch) -> list[str]:
    height, width = patch.box.size
    return [f"max {patch.max_act:.3g}", f"{width}×{height} px"]


def _framed(image: np.ndarray, patch: Patch) -> np.ndarray:
    """The image as a tile with the box framed; one of a few pixels gets a larger frame around the same centre."""
    tile = Image.fromarray(fitted(image))
    box, scale = patch.box, tile.height / patch.height
    height, width = (max(length * scale, 0.05 * max(tile.size)) for length in box.size)
    row, column = (box.row_min + box.row_max + 1) / 2 * scale, (box.col_min + box.col_max + 1) / 2 * scale
    left, top = max(0.0, column - width / 2), max(0.0, row - height / 2)
    right, bottom = min(tile.width - 1.0, column + width / 2), min(tile.height - 1.0, row + height / 2)
    draw = ImageDraw.Draw(tile)
    draw.rectangle((left, top, right, bottom), outline="white", width=5)
    draw.rectangle((left + 1, top + 1, max(left + 1, right - 1), max(top + 1, bottom - 1)), outline=VERMILLION, width=3)
    return np.asarray(tile)


def _picture(path: Path) -> np.ndarray:
    try:
        return decode_image(path)
    except UserError as error:
        raise UserError(f"{path} is missing or damaged: make the patches anew with {MAKE}") from error
