"""Contact sheets: many pictures with captions on numbered pages of fixed layout."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.figures import save_picture

_TILE = 256
_GAP = 8
_MARGIN = 24
_TEXT = 26
_TITLE = 32
_LINE = 34
_TITLE_LINE = 44
_INK = (20, 20, 20)
_PAPER = (255, 255, 255)


class ContactSheets:
    """Pages of entries; an entry is a row of pictures of equal height above its caption lines.

    Only the page being filled is kept in memory.

    Args:
        stem: pages become `<stem>_001.png`, `<stem>_002.png`, ...
        panels: pictures per entry.
        caption_lines: lines reserved below each entry.
        columns, rows: entries per page.
        title: head line of every page.
        legend: words, a uint8 (h, w, 3) picture and words, a line below the title.
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
        self._waiting: list[Image.Image] = []

    def add(self, pictures: Sequence[np.ndarray], caption: Sequence[str]) -> None:
        """Add one entry: uint8 (H, W, 3) pictures and caption lines, cut in the middle where too long.

        Raises:
            ValueError: if the number of pictures or of lines is not what the sheet was made for.
        """
        if len(pictures) != self.panels or len(caption) > self.caption_lines:
            raise ValueError(
                f"expected {self.panels} pictures and at most {self.caption_lines} lines, "
                f"got {len(pictures)} and {len(caption)}"
            )
        entry = Image.new("RGB", (self._entry_width, self._entry_height), _PAPER)
        for position, picture in enumerate(pictures):
            tile = _fitted(Image.fromarray(picture))
            left = position * (_TILE + _GAP) + (_TILE - tile.width) // 2
            entry.paste(tile, (left, (_TILE - tile.height) // 2))
        draw = ImageDraw.Draw(entry)
        for line, text in enumerate(caption):
            draw.text((0, _TILE + _GAP + line * _LINE), _shortened(text, self._entry_width), _INK, _font(_TEXT))
        self._waiting.append(entry)
        if len(self._waiting) == self.columns * self.rows:
            self._write_page()

    def finish(self) -> list[Path]:
        """Write the last page and remove later pages of an earlier, longer run; returns all pages."""
        if self._waiting:
            self._write_page()
        number = len(self.pages) + 1
        while (stale := self._page_path(number)).exists():
            stale.unlink()
            number += 1
        return self.pages

    @property
    def _entry_width(self) -> int:
        return self.panels * _TILE + (self.panels - 1) * _GAP

    @property
    def _entry_height(self) -> int:
        return _TILE + _GAP + self.caption_lines * _LINE

    def _page_path(self, number: int) -> Path:
        return self.stem.with_name(f"{self.stem.name}_{number:03d}.png")

    def _draw_legend(self, page: Image.Image, top: int, before: str, picture: np.ndarray, after: str) -> None:
        draw = ImageDraw.Draw(page)
        draw.text((_MARGIN, top), before, _INK, _font(_TEXT))
        left = _MARGIN + round(_font(_TEXT).getlength(before)) + _GAP
        page.paste(Image.fromarray(picture), (left, top + (_LINE - picture.shape[0]) // 2))
        left += picture.shape[1] + _GAP
        draw.text((left, top), _shortened(after, page.width - _MARGIN - left), _INK, _font(_TEXT))

    def _write_page(self) -> None:
        columns = min(self.columns, len(self._waiting)) if not self.pages else self.columns
        rows = -(-len(self._waiting) // self.columns)
        width = 2 * _MARGIN + columns * self._entry_width + (columns - 1) * _MARGIN
        title = _wrapped(self.title, width - 2 * _MARGIN, _TITLE)
        lines = len(title) + (self.legend is not None)
        head = lines * _TITLE_LINE + _MARGIN // 2 if lines else 0
        height = 2 * _MARGIN + head + rows * self._entry_height + (rows - 1) * _MARGIN
        page = Image.new("RGB", (width, height), _PAPER)
        for number, line in enumerate(title):
            ImageDraw.Draw(page).text((_MARGIN, _MARGIN + number * _TITLE_LINE), line, _INK, _font(_TITLE))
        if self.legend is not None:
            self._draw_legend(page, _MARGIN + len(title) * _TITLE_LINE, *self.legend)
        for position, entry in enumerate(self._waiting):
            row, column = divmod(position, self.columns)
            left = _MARGIN + column * (self._entry_width + _MARGIN)
            page.paste(entry, (left, _MARGIN + head + row * (self._entry_height + _MARGIN)))
        path = self._page_path(len(self.pages) + 1)
        save_picture(path, np.asarray(page))
        self.pages.append(path)
        self._waiting.clear()


def contact_sheet(
    entries: Iterable[tuple[Sequence[np.ndarray], Sequence[str]]], stem: Path, **layout: int | str
) -> list[Path]:
    """Write contact sheets of (pictures, caption lines); `layout` as in `ContactSheets`."""
    sheets = ContactSheets(stem, **layout)  # type: ignore[arg-type]
    for pictures, caption in entries:
        sheets.add(pictures, caption)
    return sheets.finish()


def _fitted(image: Image.Image) -> Image.Image:
    scale = _TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # enlarged pixels stay visible as such: a heat map must not look finer than it is
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return image.convert("RGB").resize(size, method)


def _font(size: int) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    # the basic engine: the other one depends on a system library that may be missing
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def _wrapped(text: str, width: int, size: int) -> list[str]:
    """Lines of whole words that fit; a single word that does not is cut in the middle."""
    lines: list[str] = []
    for word in text.split():
        if lines and _font(size).getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(_shortened(word, width, size))
    return lines


def _shortened(text: str, width: int, size: int = _TEXT) -> str:
    # undecodable bytes of file names cannot be drawn
    text = " ".join(text.encode("utf-8", errors="replace").decode("utf-8").split())
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 2:
        keep -= 1
        short = f"{text[: keep // 3]}\u2026{text[-(keep - keep // 3) :]}"
        if font.getlength(short) <= width:
            return short
    return "\u2026"
