"""Pieces of a static page; all text is escaped here and nowhere else."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from utils.errors import UserError


def escape(text: object) -> str:
    """Text for HTML, also inside quotes; undecodable bytes of file names become replacement characters."""
    return html.escape(str(text).encode("utf-8", errors="replace").decode("utf-8"), quote=True)


def url(path: Path, root: Path) -> str:
    """Address of a file relative to the page in `root`; works for any file name."""
    return quote(os.fsencode(path.relative_to(root).as_posix()))


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as a number of percent, without the sign."""
    return f"{100 * fraction:.{digits}f}"


def figure(picture: Path, root: Path, caption: str, description: str) -> str:
    """A picture with its caption, linked to its PDF if there is one.

    Args:
        picture: PNG file.
        root: Folder of the page.
        caption: One sentence that says what to see.
        description: What it shows, for those who cannot see it.

    Raises:
        UserError: The picture is missing or damaged.
    """
    try:
        with Image.open(picture, formats=["PNG"]) as opened:
            # Figures have two pixels for each of the page's.
            width, height = (length // 2 for length in opened.size)
    except (OSError, ValueError) as error:
        raise UserError(f"{picture} is missing or damaged: run reproduce.py without --report_only") from error
    pdf = picture.with_suffix(".pdf")
    target = pdf if pdf.is_file() else picture
    return (
        f'<figure><a href="{url(target, root)}"><img src="{url(picture, root)}" alt="{escape(description)}" '
        f'width="{width}" height="{height}" loading="lazy"></a><figcaption>{escape(caption)}</figcaption></figure>'
    )


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[object]], numbers_from: int = 1) -> str:
    """A table; columns from `numbers_from` on are numbers."""
    head = "".join(
        f'<th scope="col"{" class=number" if place >= numbers_from else ""}>{escape(title)}</th>'
        for place, title in enumerate(header)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{escape(cell)}</th>'
            if place == 0
            else f"<td{' class=number' if place >= numbers_from else ''}>{escape(cell)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(title: str, content: str) -> str:
    """Content that opens on request."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def embedded_json(identifier: str, content: object) -> str:
    """Data for the page's script; no text in it can end the element."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{escape(identifier)}">{text}</script>'
