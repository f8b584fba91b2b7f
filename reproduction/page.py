"""report.html: one static page with every table and figure, filled in from `templates/`; computes nothing."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from PIL import Image

from activation_histograms.median_test import LEVEL
from evaluation.agreement import CAPTION, Agreement
from evaluation.conditions import GRAYSCALE, RGB
from evaluation.published import source
from patch_forensics.patch_page import NAME as PATCH_PAGE
from reproduction.contents import Contents, MapOnGenerator, read_contents
from reproduction.source_contents import read_sources
from reproduction.summary import SCRIPT, read_summary
from sensitivity_assessment.variants import BASELINE, LAYER_RANDOM, LOW, RANDOM, TOP
from utils.errors import UserError
from utils.files import write_text
from utils.tables import percent, read_rows


def write_report(root: Path, single_file: bool = False) -> Path:
    """Write report.html from the files below an output folder.

    Args:
        root: Output folder.
        single_file: Put the pictures into the page, so that it can be sent alone; links to other files are left out.

    Raises:
        UserError: A file is missing or damaged; names the script that makes it.
    """
    summary = read_summary(root)
    names = [str(generator["name"]) for generator in summary["generators"]]
    files = Files(root, single_file)
    templates, agreement = _templates(files), root / "agreement.csv"
    style, script = (_text(templates, f"report.{language}") for language in ("css", "js"))
    page = templates.get_template("report.html.j2").render(
        summary=summary,
        detectors=[read_contents(root, record, names) for record in summary["detectors"]],
        agreement=read_rows(agreement, Agreement, made_by=SCRIPT) if agreement.is_file() else [],
        agreement_figure=root / "agreement.png",
        agreement_caption=CAPTION,
        sources=read_sources(root),
        style=Markup(style),
        script=Markup(script),
        digests={"style": _digest(style), "script": _digest(script)},
        published_source=source(),
        single_file=single_file,
        patch_page=PATCH_PAGE if (root / PATCH_PAGE).is_file() and not single_file else "",
    )
    path = root / "report.html"
    # Names of files may hold bytes that are no text.
    write_text(path, page.lstrip().encode("utf-8", errors="replace").decode("utf-8"))
    return path


def _templates(files: Files) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reproduction"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    conditions = {"BASELINE": BASELINE, "TOP": TOP, "RANDOM": RANDOM, "LAYER_RANDOM": LAYER_RANDOM, "LOW": LOW}
    environment.globals |= {**conditions, "RGB": RGB, "GRAYSCALE": GRAYSCALE, "LEVEL": LEVEL}
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": True, "separators": (",", ":"), "allow_nan": False}
    environment.filters |= {
        "percent": percent,
        "listed": listed,
        "number": number,
        "link": files.link,
        "figure": files.figure,
        "map_data": lambda contents: map_data(contents, files.single_file),
    }
    return environment


def _text(templates: jinja2.Environment, name: str) -> str:
    assert templates.loader is not None
    return templates.loader.get_source(templates, name)[0]


def _digest(text: str) -> str:
    """As a Content-Security-Policy names an inline style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"


def listed(words: Iterable[object]) -> str:
    """Words as a sentence lists them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits.

    >>> number(0.04321, 2)
    '0.043'
    """
    return f"{value:.{digits}g}"


@dataclass(frozen=True)
class Figure:
    """A picture as the page shows it: address, size in the page's pixels, and what it leads to."""

    address: str
    width: int
    height: int
    link: str | None


@dataclass(frozen=True)
class Files:
    """Addresses of files as the page in `root` has them: relative, or the whole content where it stands alone."""

    root: Path
    single_file: bool = False

    def address(self, picture: Path) -> str:
        """Address of a PNG.

        Raises:
            UserError: It is to be embedded and cannot be read.
        """
        if not self.single_file:
            return quote(os.fsencode(picture.relative_to(self.root).as_posix()))
        try:
            content = picture.read_bytes()
        except OSError as error:
            raise _no_picture(picture) from error
        return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"

    def link(self, path: Path | None) -> str | None:
        """Address to lead to; None where the page stands alone, or there is nothing."""
        return None if path is None or self.single_file else quote(os.fsencode(path.relative_to(self.root).as_posix()))

    def figure(self, picture: Path) -> Figure:
        """A picture that leads to its PDF if there is one.

        Raises:
            UserError: It is missing or damaged.
        """
        try:
            with Image.open(picture, formats=["PNG"]) as opened:
                # Figures have two pixels for each of the page's.
                width, height = (length // 2 for length in opened.size)
        except (OSError, ValueError) as error:
            raise _no_picture(picture) from error
        pdf = picture.with_suffix(".pdf")
        return Figure(self.address(picture), width, height, self.link(pdf if pdf.is_file() else picture))


def _no_picture(path: Path) -> UserError:
    return UserError(f"{path} is missing or damaged: run {SCRIPT} without --report_only")


def map_data(contents: Contents, single_file: bool = False) -> dict[str, Any]:
    """What the page's script shows of the top maps; pictures are numbers of addresses in `files`."""
    files = Files(contents.layout.root, single_file)
    numbers: dict[Path, int] = {}

    def number_of(picture: Path | None) -> int | None:
        return None if picture is None else numbers.setdefault(picture, len(numbers))

    maps = [
        {
            "key": entry.fmap.key,
            "order": entry.order,
            "omega": entry.omega,
            "count": entry.count,
            "generators": [_on_generator(one, files, number_of) for one in entry.generators],
        }
        for entry in contents.maps
    ]
    return {
        "names": list(contents.names),
        "level": LEVEL,
        "single_file": single_file,
        "maps": maps,
        "files": [files.address(picture) for picture in numbers],
    }


def _on_generator(
    entry: MapOnGenerator, files: Files, number_of: Callable[[Path | None], int | None]
) -> dict[str, Any]:
    test = entry.test
    return {
        "paired": test.p_value_paired_bh,
        "effect": test.rank_biserial,
        "shift": test.paired_median,
        "mood": test.p_value,
        "rgb": test.median_rgb,
        "grey": test.median_grayscale,
        "histogram": number_of(entry.histogram),
        "collage": files.link(entry.collage),
        "patches": [
            {
                "name": patch.path,
                "max": patch.max_act,
                "size": "×".join(map(str, reversed(patch.box.size))),
                "patch": number_of(entry.patches.picture(patch)),
                "image": number_of(entry.patches.image(patch)),
            }
            for patch in entry.patches.patches
        ],
    }
