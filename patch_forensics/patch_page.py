"""Pages: how good a patch classifier is beside others and where it looks; and the pictures of a folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import jinja2

from utils.errors import UserError
from utils.files import write_text
from utils.tables import ABSENT, percent, percent_range, read_table

NAME = "patch_forensics.html"


def write_page(root: Path, results: Path, top_patches: Path, maps: Sequence[Path]) -> Path:
    """Write the page from the files below an output folder.

    Args:
        root: Of the output, with the tables of an evaluation.
        results: Folder of a data set that was tested with heat maps.
        top_patches: Folder of its most predictive patches.
        maps: Sheets of p(fake) beside LRP and Grad-CAM.

    Raises:
        UserError: A table is missing.
    """
    header, lines = read_table(root / "evaluation" / "summary.csv", made_by="evaluate_detector.py")
    cells = [dict(zip(header, line, strict=True)) for line in lines]
    aps: dict[tuple[str, str], str] = {}
    for row in cells:
        if row["variant"] == "rgb" and row["ap"]:
            ap, low, high = (float(row[name]) for name in ("ap", "ap_low", "ap_high"))
            aps[row["detector"], row["set"]] = f"{percent(ap)} {percent_range(low, high)}"
    if not aps:
        raise UserError(f"{root / 'evaluation'} has no average precision: evaluate detectors on reals and fakes")
    detectors, sets = (list(dict.fromkeys(names)) for names in zip(*aps, strict=True))

    def address(path: Path) -> str:
        return quote(os.fsencode(path.relative_to(root).as_posix()))

    page = _rendered(
        "patches.html.j2",
        detectors=detectors,
        rows=[(name, [aps.get((detector, name), ABSENT) for detector in detectors]) for name in sets],
        address=address,
        results=results,
        top_patches=top_patches,
        maps=maps,
    )
    write_text(root / NAME, page)
    return root / NAME


def write_lightbox(path: Path, names: Sequence[str], title: str) -> Path:
    """Write a page for pictures beside it, with a filter by name and a large view; it asks no network."""
    write_text(path, _rendered("lightbox.html.j2", title=title, names=list(names)))
    return path


def _rendered(template: str, **values: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("patch_forensics"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(**values)
