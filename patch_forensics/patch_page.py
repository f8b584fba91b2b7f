"""Pages: how good a patch classifier is beside others and where it looks; and the pictures of a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import jinja2

from utils.errors import UserError
from utils.files import write_text
from utils.tables import ABSENT, percent, percent_range, read_table

NAME = "patch_forensics.html"
_VIEWS = (
    ("fakes/easiest", "Fakes that it is surest of"),
    ("fakes/hardest", "Fakes that it is least sure of"),
    ("reals/hardest", "Reals that it is least sure of"),
)
_INTRO = (
    "A patch classifier (Chai, Bau, Lim, Isola, ECCV 2020) sees small squares of an image only, says of each how "
    "likely it is fake, and of the image their mean. So its heat maps are what it decides by, not an explanation made "
    "afterwards. The table has it beside detectors of whole images. The shipped one was trained on one simulated "
    "generator, transposed4, and has seen no other. In some sets photographs altered without any generator stand in "
    "the place of fakes (null, blur, jpeg, grey, bicubic): none is a fake, so that average precision should be near "
    "50, and what is higher says that the classifier takes this alteration for a generator's trace."
)


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
    shown = {(row["detector"], row["set"]): row for row in cells if row["variant"] == "rgb" and row["ap"]}
    detectors, sets = (list(dict.fromkeys(names)) for names in zip(*shown, strict=True))
    if not shown:
        raise UserError(f"{root / 'evaluation'} has no average precision: evaluate detectors on reals and fakes")

    def address(path: Path) -> str:
        return quote(os.fsencode(path.relative_to(root).as_posix()))

    def ap(detector: str, name: str) -> str:
        row = shown.get((detector, name))
        if row is None:
            return ABSENT
        low, high = float(row["ap_low"]), float(row["ap_high"])
        return f"{percent(float(row['ap']))} {percent_range(low, high)}"

    views = []
    for view, words in _VIEWS:
        sheet = results / "vis" / view / "sheet_001.png"
        if sheet.is_file():
            views.append((address(sheet), words))
    links = [(view.replace("/", ", "), address(results / "vis" / view / "+lightbox.html")) for view, _ in _VIEWS]
    kinds = ((name, f"{name}s_easiest_sheet_001.png") for name in ("fake", "real"))
    patches = [(address(top_patches / file), f"The strongest {kind} patch of each image") for kind, file in kinds]
    sections = [
        (
            "Where it looks",
            f"Images of {results.name}. Orange: patches called fake, purple: real, as strong as sure; then the "
            "published look and its contour around the half that counts. All of them:",
            views,
            links,
        ),
        ("The patches it is surest of", "One of each image, at most, strongest first.", patches, []),
        (
            "Beside explanations of the same decision",
            "What the classifier says of every patch needs no explanation; LRP and Grad-CAM can be held against it.",
            [(address(path), "The image; p(fake) of every patch; LRP; Grad-CAM") for path in maps],
            [],
        ),
    ]
    rows = [(name, [ap(detector, name) for detector in detectors]) for name in sets]
    page = _rendered("patches.html.j2", intro=_INTRO, detectors=detectors, rows=rows, sections=sections)
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
