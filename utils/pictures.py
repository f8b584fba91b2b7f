"""Pictures in grids: one figure, or contact sheets of numbered pages."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageFont

from utils.figures import chosen_formats, house_style, save_figure, save_picture

TILE = 256
"""Side of the square that a picture is fitted into, in pixels."""
_DPI = 200
_GAP = 8
_MARGIN = 24
_TEXT, _LINE = 26, 34
_TITLE, _TITLE_LINE = 32, 44
_INK = "#141414"
_SOFT = "#555555"

Lines = Sequence[str]


def picture_grid(
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[Sequence[Lines]] = (),
    *,
    title: str = "",
    note: str = "",
    legend: tuple[str, np.ndarray, str] | None = None,
    heads: Sequence[str] = (),
    labels: Sequence[Lines] = (),
    panels: int = 1,
    columns: int | None = None,
) -> Figure:
    """A figure with pictures in rows, each fitted into a square of 256 pixels at 200 dpi.

    Enlarged pixels stay visible as such: a heat map must not look finer than it is. Text that is too long is cut in the
    middle, and a title goes on in another line.

    Args:
        rows: uint8 (H, W, 3) pictures.
        captions: Lines below the pictures, for each row those of its entries; rows may have none.
        title: Head line.
        note: Below it, smaller.
        legend: Below these: words, a small picture such as a colour bar, and words.
        heads: One line above each column.
        labels: Lines at the left of each row, the first in bold.
        panels: Pictures in an entry, which share a caption and stand close together.
        columns: Width of the grid in pictures; by default that of the longest row.
    """
    columns = columns or max(map(len, rows), default=1)
    entries = -(-columns // panels)
    entry_width = panels * TILE + (panels - 1) * _GAP
    between = _MARGIN if panels > 1 or captions else _GAP
    side = max((_width(text, _TEXT) + _MARGIN for lines in labels for text in lines), default=0)
    width = 2 * _MARGIN + side + entries * entry_width + (entries - 1) * between
    texts: list[tuple[int, int, str, int, str, str]] = []
    top = _MARGIN
    for text, size, line, colour in ((title, _TITLE, _TITLE_LINE, _INK), (note, _TEXT, _LINE, _SOFT)):
        for words in _wrapped(text, width - 2 * _MARGIN, size):
            texts.append((_MARGIN, top, words, size, colour, "normal"))
            top += line
    pictures: list[tuple[int, int, np.ndarray]] = []
    if legend is not None:
        before, bar, after = legend
        start = _MARGIN + _width(before, _TEXT) + _GAP
        end = start + bar.shape[1] + _GAP
        pictures.append((start, top + (_LINE - bar.shape[0]) // 2, bar))
        texts.append((_MARGIN, top, before, _TEXT, _INK, "normal"))
        texts.append((end, top, _shortened(after, width - _MARGIN - end), _TEXT, _INK, "normal"))
        top += _LINE
    top += _MARGIN // 2 if texts else 0
    lefts = [
        _MARGIN + side + column // panels * (entry_width + between) + column % panels * (TILE + _GAP)
        for column in range(columns)
    ]
    for left, text in zip(lefts, heads, strict=False):
        texts.append((left, top, _shortened(text, TILE), _TEXT, _INK, "normal"))
    top += _LINE if heads else 0
    for number, row in enumerate(rows):
        for left, picture in zip(lefts, row, strict=False):
            tile = fitted(picture)
            pictures.append((left + (TILE - tile.shape[1]) // 2, top + (TILE - tile.shape[0]) // 2, tile))
        for line, text in enumerate(labels[number] if labels else ()):
            texts.append((_MARGIN, top + line * _LINE, text, _TEXT, _INK, "normal" if line else "bold"))
        below = captions[number] if captions else ()
        for left, lines in zip(lefts[::panels], below, strict=False):
            for line, text in enumerate(lines):
                texts.append((left, top + TILE + _GAP + line * _LINE, _shortened(text, entry_width), _TEXT, _INK, ""))
        captioned = max(map(len, below), default=0)
        top += TILE + (_GAP + captioned * _LINE if captioned else 0) + between
    return _figure(width, top - (between if rows else 0) + _MARGIN, pictures, texts)


def _figure(
    width: int,
    height: int,
    pictures: Sequence[tuple[int, int, np.ndarray]],
    texts: Sequence[tuple[int, int, str, int, str, str]],
) -> Figure:
    with house_style():
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        FigureCanvasAgg(figure)
        for left, top, picture in pictures:
            figure.figimage(picture, left, height - top - len(picture), origin="upper")
        for left, top, text, size, colour, weight in texts:
            corner = left / width, 1 - top / height
            # a dollar sign of a file name would start a formula
            plain = _printable(text).replace("$", r"\$")
            figure.text(*corner, plain, size=size * 72 / _DPI, color=colour, weight=weight or "normal", va="top")
    return figure


def save_grid(figure: Figure, stem: Path, formats: Sequence[str] | None = None) -> list[Path]:
    """As `utils.figures.save_figure`; a PNG without transparency and little compressed, in a third of the time."""
    written = []
    for name in chosen_formats() if formats is None else formats:
        if name != "png":
            written += save_figure(figure, stem, (name,))
            continue
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        written.append(stem.with_name(f"{stem.name}.png"))
        save_picture(written[-1], np.asarray(canvas.buffer_rgba())[..., :3])
    return written


class ContactSheets:
    """Pages of entries; an entry is a row of pictures above its caption lines.

    Only the page being filled is kept in memory.

    Args:
        stem: pages become `<stem>_001.png`, `<stem>_002.png`, ...
        panels: pictures per entry.
        caption_lines: lines reserved below each entry.
        columns, rows: entries per page.
        title: head line of every page.
        legend: as in `picture_grid`.
    """

    def __init__(
        self,
        stem: Path,
        *,
        panels: int = 2,
        caption_lines: int = 2,
        columns: int = 3,
        rows: int = 4,
        title: str = "",
        legend: tuple[str, np.ndarray, str] | None = None,
    ) -> None:
        self.stem = stem
        self.panels = panels
        self.caption_lines = caption_lines
        self.columns = columns
        self.rows = rows
        self.title = title
        self.legend = legend
        self.pages: list[Path] = []
        self._waiting: list[tuple[list[np.ndarray], list[str]]] = []

    def add(self, pictures: Sequence[np.ndarray], caption: Lines) -> None:
        """Add one entry: uint8 (H, W, 3) pictures and caption lines, cut in the middle where too long.

        Raises:
            ValueError: if the number of pictures or of lines is not what the sheet was made for.
        """
        if len(pictures) != self.panels or len(caption) > self.caption_lines:
            raise ValueError(
                f"expected {self.panels} pictures and at most {self.caption_lines} lines, "
                f"got {len(pictures)} and {len(caption)}"
            )
        lines = [*caption, *[""] * (self.caption_lines - len(caption))]
        self._waiting.append(([fitted(picture) for picture in pictures], lines))
        if len(self._waiting) == self.columns * self.rows:
            self._write_page()

    def finish(self) -> list[Path]:
        """Write the last page and remove later pages of an earlier, longer run; returns all pages."""
        if self._waiting:
            self._write_page()
        remove_pages(self.stem, len(self.pages) + 1, "03d")
        return self.pages

    def _write_page(self) -> None:
        columns = min(self.columns, len(self._waiting)) if not self.pages else self.columns
        lines = [self._waiting[first : first + columns] for first in range(0, len(self._waiting), columns)]
        figure = picture_grid(
            [[picture for pictures, _ in line for picture in pictures] for line in lines],
            [[caption for _, caption in line] for line in lines],
            title=self.title,
            legend=self.legend,
            panels=self.panels,
            columns=columns * self.panels,
        )
        self.pages += save_grid(figure, self.stem.with_name(f"{self.stem.name}_{len(self.pages) + 1:03d}"), ("png",))
        self._waiting.clear()


def remove_pages(stem: Path, number: int, digits: str = "d") -> None:
    """Remove `<stem>_<number>.png` and those that follow: pages of an earlier, longer run."""
    while (stale := stem.with_name(f"{stem.name}_{number:{digits}}.png")).exists():
        stale.unlink()
        number += 1


def fitted(picture: np.ndarray) -> np.ndarray:
    """A uint8 (H, W, 3) picture as large as fits into the square of a tile."""
    image = Image.fromarray(picture).convert("RGB")
    scale = TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # the basic engine: the other one depends on a system library that may be missing
    return ImageFont.truetype(_font_file(), size, layout_engine=ImageFont.Layout.BASIC)


def _font_file() -> Path:
    return Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(FT2Font(str(_font_file())).get_charmap())


def _printable(text: str) -> str:
    """What of a text can be drawn; undecodable bytes of file names cannot, nor signs that the font lacks."""
    plain = " ".join(text.encode("utf-8", errors="replace").decode("utf-8").split())
    return "".join(sign if ord(sign) in _glyphs() else "\N{REPLACEMENT CHARACTER}" for sign in plain)


def _width(text: str, size: int) -> int:
    return int(_font(size).getlength(text)) + 1


def _wrapped(text: str, width: int, size: int) -> list[str]:
    """Lines of whole words that fit; a single word that does not is cut in the middle."""
    lines: list[str] = []
    for word in text.split():
        if lines and _width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(_shortened(word, width, size))
    return lines


def _shortened(text: str, width: int, size: int = _TEXT) -> str:
    text = _printable(text)
    if _width(text, size) <= width:
        return text
    keep = len(text)
    while keep > 2:
        keep -= 1
        short = f"{text[: keep // 3]}\N{HORIZONTAL ELLIPSIS}{text[-(keep - keep // 3) :]}"
        if _width(short, size) <= width:
            return short
    return "\N{HORIZONTAL ELLIPSIS}"
