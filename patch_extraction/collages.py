"""Collages of LRP-max patches, drawn from their files: one for each map, and pages of the top maps (Fig. 1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from images.decoding import decode_image
from patch_extraction.files import MAKE, MapPatches, Patch, PatchFiles
from utils.cli import progress
from utils.errors import UserError
from utils.figures import VERMILLION, chosen_formats, house_style, save_figure
from utils.files import atomic_path

PATCHES_IN_A_ROW = 5
_PAGE = (8.27, 11.69)  # A4, in inches
_COLLAGE_WIDTH = 6.3
_MARGIN = 0.4
_GAP = 0.08
_COARSE = 4  # from here on enlarged pixels are drawn as squares
_TITLE_ROOM = 750  # points of size times letters that fit into the width of a page
_FRAME = "#BBBBBB"
_SOFT = "#555555"
_PDF_METADATA = {"CreationDate": None, "Creator": None, "Producer": None}


class _Canvas:
    """A figure on which things are placed in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))
        FigureCanvasAgg(self.figure)

    def text(self, left: float, top: float, text: str, size: float, *, color: str = "black", **style: str) -> None:
        """Text whose upper (`va="top"`) left corner is there."""
        # a dollar sign of a file name would start a formula
        plain = text.replace("$", r"\$").encode("utf-8", errors="replace").decode("utf-8")
        place = left / self.width, 1 - top / self.height
        self.figure.text(*place, plain, size=size, color=color, **{"va": "top", **style})  # type: ignore[arg-type]

    def picture(self, left: float, top: float, side: float, picture: np.ndarray) -> Axes:
        """A picture as large as fits into a square, centred in it."""
        height, width = picture.shape[:2]
        scale = side / max(height, width)
        wide, high = width * scale, height * scale
        left, top = left + (side - wide) / 2, top + (side - high) / 2
        place = (left / self.width, 1 - (top + high) / self.height, wide / self.width, high / self.height)
        axes = self.figure.add_axes(place)
        drawn, interpolation = _sharp(picture)
        axes.imshow(drawn, interpolation=interpolation, extent=(0, width, height, 0), aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set(visible=True, color=_FRAME, linewidth=0.6)
        return axes


def draw_collages(
    files: PatchFiles, tag: str, topk: int | None = None, count: int | None = None
) -> tuple[list[Path], list[Path]]:
    """Draw the collage of each map, and the pages of all.

    Args:
        files: Patches of a generator.
        tag: Augmentation tag of the detector.
        topk: The first so many maps; all by default.
        count: Most patches of each map; all by default.

    Returns:
        The collages below `<output_dir>/collages/<arch>/<tag>/<map>/`, and the pages in the folder of the tag.

    Raises:
        UserError: No patches, of another tag, fewer maps than asked for, or damaged files.
    """
    entries = files.read(topk)
    _check_tag(files, tag)
    folder = files.output_dir / "collages" / files.arch / tag
    collages = []
    for entry in progress(entries, description=f"collages {files.gan_name}", unit="map"):
        collages += plot_map(entry, files.gan_name, folder / entry.fmap.folder_name / files.gan_name, count)
    most = max((len(entry.patches) for entry in entries), default=1)
    columns = max(1, min(count or most, most, PATCHES_IN_A_ROW))
    return collages, plot_overview(entries, files.gan_name, files.arch, folder / files.gan_name, columns)


def _check_tag(files: PatchFiles, tag: str) -> None:
    """Patches of all detectors of an architecture lie in one place; make sure that these are the right ones."""
    record = files.index.with_name(f"{files.index.name}.json")
    try:
        made_for = json.loads(record.read_text(encoding="utf-8"))["tag"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if made_for != tag:
        raise UserError(f"the patches in {files.root} are of --blur_jpg {made_for}, not {tag}: run {MAKE} again")


def plot_map(entry: MapPatches, gan_name: str, stem: Path, count: int | None = None) -> list[Path]:
    """Draw the patches of one map, each above the image it comes from.

    Args:
        entry: The map and its patches.
        gan_name: The generator.
        stem: Path without suffix.
        count: Most patches to draw; all by default.

    Returns:
        The PNG and the PDF.

    Raises:
        UserError: A picture is missing or damaged.
    """
    patches = entry.patches[:count]
    columns = PATCHES_IN_A_ROW
    side = (_COLLAGE_WIDTH - 2 * _MARGIN - (columns - 1) * _GAP) / columns
    lines = max(1, -(-len(patches) // columns))
    head, caption, between = 0.98, 0.33, 0.18
    block = 2 * side + caption + between
    with house_style():
        canvas = _Canvas(_COLLAGE_WIDTH, head + lines * block - between + _MARGIN / 2)
        canvas.text(_MARGIN, 0.2, f"{entry.fmap.layer}  #{entry.fmap.index}", 13, weight="bold")
        canvas.text(_MARGIN, 0.48, _facts(entry, gan_name), 9, color=_SOFT)
        canvas.text(
            _MARGIN, 0.68, "Above: what the map's largest activation depends on. Below: where it lies.", 9, color=_SOFT
        )
        for number, patch in enumerate(patches):
            line, column = divmod(number, columns)
            left, top = _MARGIN + column * (side + _GAP), head + line * block
            canvas.picture(left, top, side, _picture(patch.picture))
            canvas.text(left + side / 2, top + side + 0.03, _caption(patch), 7.5, ha="center")
            image = _picture(patch.image)
            _outline(canvas.picture(left, top + side + caption, side, image), patch, image)
        if not patches:
            canvas.text(_MARGIN, head, "No patch: none of its images could be read.", 9)
        return save_figure(canvas.figure, stem)


def plot_overview(
    entries: Sequence[MapPatches], gan_name: str, arch: str, stem: Path, count: int = PATCHES_IN_A_ROW
) -> list[Path]:
    """Draw a row of patches for each map, on as many pages as it takes.

    Args:
        entries: Maps in the order to show them.
        gan_name: The generator.
        arch: The detector.
        stem: Path without suffix; the PDF holds all pages, PNGs after the first are `<stem>_2.png` and so on.
        count: Patches of each map.

    Returns:
        The PDF, if figures are saved as such, and the PNGs.

    Raises:
        UserError: A picture is missing or damaged.
    """
    side, label, head = 0.97, 2.2, 0.9
    row = side + _GAP
    columns = min(count, PATCHES_IN_A_ROW)
    per_page = int((_PAGE[1] - head - _MARGIN / 2) / row)
    pages = [entries[first : first + per_page] for first in range(0, len(entries), per_page)]
    written: list[Path] = []
    with house_style(), ExitStack() as stack:
        book: PdfPages | None = None
        if "pdf" in chosen_formats():
            written.append(stem.with_name(f"{stem.name}.pdf"))
            temporary = stack.enter_context(atomic_path(written[0]))
            book = stack.enter_context(PdfPages(temporary, metadata=_PDF_METADATA))
        for number, page in enumerate(pages, start=1):
            canvas = _Canvas(_PAGE[0], _PAGE[1] if len(pages) > 1 else head + len(page) * row + _MARGIN / 2)
            of = f"  (page {number} of {len(pages)})" if len(pages) > 1 else ""
            title = f"What excites the top feature maps of {arch} on {gan_name}"
            canvas.text(_MARGIN, 0.25, title, min(14, _TITLE_ROOM / len(title)), weight="bold")
            canvas.text(
                _MARGIN,
                0.56,
                f"LRP-max patches of the {columns} fakes that excite each map most, the strongest first{of}",
                9,
                color=_SOFT,
            )
            for line, entry in enumerate(page):
                top = head + line * row
                canvas.text(_MARGIN, top + 0.12, f"{entry.position}", 15, weight="bold")
                left = _MARGIN + 0.5
                canvas.text(left, top + 0.12, _broken(entry.fmap.layer), 9.5, weight="bold")
                below = top + 0.30 + 0.16 * _broken(entry.fmap.layer).count("\n")
                canvas.text(left, below, f"map #{entry.fmap.index} of {entry.fmap.channels}", 9)
                if entry.omega is not None:
                    canvas.text(left, below + 0.17, f"ω = {_short(entry.omega)}", 9)
                canvas.text(left, below + 0.34, gan_name[:24], 9, color=_SOFT)
                for column, patch in enumerate(entry.patches[:columns]):
                    place = _MARGIN + label + column * (side + _GAP)
                    canvas.picture(place, top, side, _picture(patch.picture))
            if book is not None:
                book.savefig(canvas.figure)
            name = stem.name if number == 1 else f"{stem.name}_{number}"
            written += save_figure(canvas.figure, stem.with_name(name), formats=("png",))
    _remove_later_pages(stem, len(pages) + 1)
    return written


def _remove_later_pages(stem: Path, number: int) -> None:
    while (stale := stem.with_name(f"{stem.name}_{max(number, 2)}.png")).exists():
        stale.unlink()
        number = max(number, 2) + 1


def _facts(entry: MapPatches, gan_name: str) -> str:
    facts = [f"map #{entry.fmap.index} of {entry.fmap.channels}"]
    if entry.omega is not None:
        facts += [f"rank {entry.position}", f"ω = {_short(entry.omega)}"]
    return "  ·  ".join([*facts, f"fakes of {gan_name}"])


def _caption(patch: Patch) -> str:
    height, width = patch.numbers.box.size
    return f"max {_short(patch.max_act)}\n{width}×{height} px"


def _outline(axes: Axes, patch: Patch, image: np.ndarray) -> None:
    """Frame the box; one of a few pixels gets a frame large enough to be seen, around the same centre."""
    box, scale = patch.numbers.box, image.shape[0] / patch.numbers.height
    height, width = (max(length * scale, 0.05 * max(image.shape[:2])) for length in box.size)
    centre = (box.row_min + box.row_max + 1) / 2 * scale, (box.col_min + box.col_max + 1) / 2 * scale
    corner = centre[1] - width / 2, centre[0] - height / 2
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="white", linewidth=2.2))
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=VERMILLION, linewidth=1.2))


def _sharp(picture: np.ndarray) -> tuple[np.ndarray, str]:
    """The picture and how to draw it: if much enlarged, as squares, which no viewer of a PDF can smooth."""
    factor = 256 // max(picture.shape[:2])
    if factor < _COARSE:
        return picture, "auto"
    return picture.repeat(factor, axis=0).repeat(factor, axis=1), "nearest"


def _picture(path: Path) -> np.ndarray:
    try:
        return decode_image(path)
    except UserError as error:
        raise UserError(f"{path} is missing or damaged: make the patches anew with {MAKE}") from error


def _broken(layer: str) -> str:
    """A long layer name on two lines."""
    if len(layer) <= 20:
        return layer
    parts = layer.split(".")
    return ".".join(parts[:-1]) + ".\n" + parts[-1]


def _short(value: float) -> str:
    return f"{value:.3g}"
