"""The whole data set: photographs, parts, measures and a picture of it, made once."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mini_forensynths.generators import SPECS, load_generator
from mini_forensynths.measures import MEASURES, measure_set
from mini_forensynths.montage import draw_montage
from mini_forensynths.photos import PARTS, find_photos, split_photos
from mini_forensynths.sets import Layout, make_part, set_names
from utils.errors import UserError
from utils.files import is_made_from, read_provenance, sha256_file, sha256_text, write_csv, write_provenance, write_text

_PLAN = "plan.txt"


@dataclass(frozen=True)
class Recipe:
    """All that a data set depends on.

    Attributes:
        photos: Folder of photographs; None: those that come with installed packages.
        shares: Of the photographs for each of `PARTS`.
        layout: Sizes of the images.
        split_seed: Of the split.
        generators: Folder of `<generator>.safetensors`.
        skip_bad_images: Leave out photographs that cannot be used.
    """

    photos: Path | None
    shares: tuple[float, ...]
    generators: Path
    layout: Layout = field(default_factory=Layout)
    split_seed: int = 0
    skip_bad_images: bool = False


def build(recipe: Recipe, root: Path, *, overwrite: bool = False) -> list[Path]:
    """Make the data set below `root`, or what an interrupted run has left to do.

    Returns:
        The table of measures and the montage.

    Raises:
        UserError: A photograph or the weights of a generator cannot be used, or `root` holds another data set.
    """
    photos = split_photos(find_photos(recipe.photos), recipe.shares, recipe.split_seed)
    weights = {spec.name: recipe.generators / f"{spec.name}.safetensors" for spec in SPECS}
    generators = {spec.name: load_generator(spec, weights[spec.name]) for spec in SPECS}
    inputs = {f"{name} generator": sha256_file(path) for name, path in weights.items()}
    for part in PARTS:
        inputs[f"{part} photographs"] = sha256_text(f"{p.name} {sha256_file(p.path)}" for p in photos[part])
    facts: dict[str, Any] = {
        "layout": asdict(recipe.layout),
        "split_seed": recipe.split_seed,
        "shares": list(recipe.shares),
    }
    table, montage = root / "measures.csv", root / "montage.png"
    if is_made_from(table, inputs, facts) and montage.is_file():
        return [table, montage]
    _claim(root, inputs, facts, overwrite)
    skipped: list[str] = []
    for part in PARTS:
        skipped += make_part(
            root, part, photos[part], generators, recipe.layout, skip_bad_images=recipe.skip_bad_images
        )
    if skipped:
        write_text(root / "skipped.txt", "".join(f"{line}\n" for line in skipped))
    rows = []
    for part in PARTS:
        for name in set_names(part) if photos[part] else []:
            measures = measure_set(root / name)
            rows.append([part, name, *(getattr(measures, column) for column in MEASURES)])
    draw_montage(root, montage, next(part for part in reversed(PARTS) if photos[part]))
    write_csv(table, ("part", "set", *MEASURES), rows)
    counts = {part: [photo.name for photo in photos[part]] for part in PARTS}
    write_provenance(
        table, seed=recipe.split_seed, device="cpu", inputs=inputs, **facts, photos=counts, skipped=skipped
    )
    return [table, montage]


def _claim(root: Path, inputs: dict[str, str], facts: dict[str, Any], overwrite: bool) -> None:
    """Note what is going to be made in `root`, so that files of another data set are never taken for this one's.

    Raises:
        UserError: There is another data set.
    """
    plan = root / _PLAN
    if is_made_from(plan, inputs, facts):
        return
    # plan.txt alone: interrupted before its provenance was there
    if root.exists() and any(path.name != _PLAN for path in root.iterdir()):
        if not read_provenance(plan):
            raise UserError(f"{root} holds other files: choose another --output_dir")
        if not overwrite:
            raise UserError(
                f"{root} holds a data set of other photographs or settings: give --overwrite, or another --output_dir"
            )
        # the table first: while it is there, the old data set counts as complete
        for name in ("measures.csv", "measures.csv.json", "montage.png", "skipped.txt"):
            (root / name).unlink(missing_ok=True)
        for folder in (root / name for part in PARTS for name in set_names(part)):
            if folder.exists():
                shutil.rmtree(folder)
    write_text(plan, "The images below are mini-ForenSynths; plan.txt.json says from what they are made.\n")
    write_provenance(plan, inputs=inputs, **facts)
