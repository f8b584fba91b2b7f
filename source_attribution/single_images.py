"""Who made these images: probabilities, class activation maps, pictures, one run into one folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from detectors.devices import use_device
from images.sets import ImageSet, find_loose_images
from passes.options import RunOptions
from source_attribution.attributor import FAKE_COLUMN, Attributor, answers_for, load_attributor
from source_attribution.options import LooseAttribution
from source_attribution.spectra import log_spectrum
from source_attribution.stored import digest
from utils.cli import say
from utils.errors import UserError
from utils.figures import save_picture
from utils.files import read_npz, safe_join, safe_name, sha256_file, write_csv, write_npz
from utils.heatmaps import LOOKS
from utils.pictures import ContactSheets
from utils.provenance import Origin, is_current, write_record
from utils.settings import plain
from utils.tables import percent, read_table

_COMPUTATION = 1
_THRESHOLD = 0.5
_SHOWN = ("being generated", "the most probable source")
NOBODY = "none of these"


def attribute_images(options: LooseAttribution, run: RunOptions) -> Path:
    """Scores and pictures of all images; the table of scores.

    Raises:
        UserError: Weights or images cannot be used.
    """
    device = use_device(options.device, "fp32")
    attributor = load_attributor(
        options.weights,
        options.model_type,
        options.source,
        dct=options.dct,
        normstats=options.normstats,
        device=device,
        single_precision=run.published,
    )
    images = find_loose_images([options.images])
    table = options.output / "scores.csv"
    facts = {
        "columns": attributor.columns,
        "parts": [digest(part.network) for part in attributor.parts],
        "compat": run.compat,
        "look": options.look,
    }
    origin = Origin(_COMPUTATION, {"weights": sha256_file(options.weights), "images": images.digest()}, facts)
    if is_current([table], origin) and not run.overwrite:
        say(f"{table}: done before, nothing to compute")
        return table
    rows = _scores(attributor, images, options)
    write_csv(table, ("path", *(f"p_{name}" for name in attributor.columns)), rows)
    for line in _summary(attributor, rows):
        say(line)
    sheets = draw_sheets(table, options.look)
    # last, so that it tells that all is there
    write_record([table], origin, settings=plain(options, run), device=device, images=len(rows))
    for path in [table, *sheets]:
        say(str(path))
    return table


def _scores(attributor: Attributor, images: ImageSet, options: LooseAttribution) -> list[list[Any]]:
    """Path and probabilities of each image; its maps go into a file each on the way."""
    rows: list[list[Any]] = []
    is_spectral = np.array(attributor.parts[0].description.input == "dct")
    for loaded, answers in answers_for(
        attributor,
        images,
        bsize=options.bsize,
        num_workers=options.num_workers,
        skip_bad_images=options.skip_bad_images,
    ):
        values = torch.cat([answer.probabilities for answer in answers], dim=1).cpu().numpy()
        maps = [None if answer.evidence is None else answer.evidence.cpu().numpy() for answer in answers]
        for row, position in enumerate(loaded.positions):
            name = images.items[position].name
            rows.append([name, *values[row].tolist()])
            own = {f"map_{number}": batch[row] for number, batch in enumerate(maps) if batch is not None}
            write_npz(arrays_path(options.output, name), image=loaded.images[row], dct=is_spectral, **own)
    if not rows:
        raise UserError(f"no image below {options.images} can be used: see the lines above")
    return rows


def arrays_path(output: Path, name: str) -> Path:
    """Where image and maps of an image lie: `image`, and `map_0`, `map_1`, ... in the order of the columns."""
    return safe_join(output, "arrays", f"{safe_name(name.replace('/', '-'))}.npz")


def verdict(sources: Sequence[str], probabilities: Sequence[float]) -> str:
    """The most probable of the sources that are at least as probable as not, or nobody."""
    best = max(range(len(sources)), key=lambda place: probabilities[place])
    return sources[best] if probabilities[best] >= _THRESHOLD else NOBODY


def _summary(attributor: Attributor, rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = []
    count, columns = len(rows), attributor.columns
    fakes = [row[1] >= _THRESHOLD for row in rows] if columns[0] == FAKE_COLUMN else []
    if fakes:
        lines.append(f"called generated: {sum(fakes)} of {count} images ({percent(sum(fakes) / count)} %)")
    first = len(columns) - len(attributor.sources)
    if attributor.sources:
        made_by = [verdict(attributor.sources, row[1 + first :]) for row in rows]
        for name in [*attributor.sources, NOBODY]:
            lines.append(f"attributed to {name}: {made_by.count(name)} ({percent(made_by.count(name) / count)} %)")
        odd = sum(name != NOBODY and not fake for name, fake in zip(made_by, fakes, strict=False))
        if odd:
            lines.append(f"warning: {odd} images are attributed to a source although they are called real")
    return lines


def draw_sheets(table: Path, look: str) -> list[Path]:
    """Of each image the picture, the evidence for being generated, and that for the most probable source.

    Drawn from the table of scores and the arrays beside it; overlays go into `pictures/`, sheets beside the table.
    """
    header, lines = read_table(table, made_by="src/run_attribution.py")
    names = [name.removeprefix("p_") for name in header[1:]]
    first = int(names[0] == FAKE_COLUMN)
    panels = 1 + first + (len(names) > first)
    shown_first = _SHOWN[1 - first :]
    sheets = ContactSheets(
        table.parent / "sheet",
        panels=panels,
        caption_lines=3,
        columns=6 // panels,
        rows=5,
        title="Evidence for " + " and for ".join(shown_first[: panels - 1]),
        legend=LOOKS["signed"].legend() if look == "signed" else None,
    )
    for path, *cells in lines:
        values = list(map(float, cells))
        arrays = read_npz(arrays_path(table.parent, path))
        ground = _spectrum_picture(arrays["image"], look) if bool(arrays["dct"]) else arrays["image"]
        sources = names[first:]
        best = first + int(np.argmax(values[first:])) if sources else 0
        shown = [*([0] if first else []), *([best] if sources else [])]
        overlays = [_overlay(ground, arrays.get(f"map_{number}"), look) for number in shown]
        stem = arrays_path(table.parent, path).stem
        save_picture(safe_join(table.parent, "pictures", f"{stem}.png"), np.concatenate(overlays, axis=1))
        sheets.add([arrays["image"], *overlays], _caption(path, names, values, first))
    return sheets.finish()


def _caption(path: str, names: Sequence[str], values: Sequence[float], first: int) -> list[str]:
    fake = f"p(fake) {percent(values[0])} %" if first else ""
    sources = names[first:]
    if not sources:
        return [path, f"{'FAKE' if values[0] >= _THRESHOLD else 'REAL'}: {fake}"]
    who = verdict(sources, values[first:])
    best = max(range(len(sources)), key=lambda place: values[first + place])
    return [path, fake, f"{who}: p({sources[best]}) {percent(values[first + best])} %"]


def _overlay(image: np.ndarray, evidence: np.ndarray | None, look: str) -> np.ndarray:
    if evidence is None:
        return image
    height, width = image.shape[:2]
    wide = cv2.resize(evidence.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    if look == "signed":
        style = LOOKS["signed"]
        return style.overlay(image, style.render(wide))
    heat = cv2.applyColorMap(np.clip(wide * 255.0, 0, 255).astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    return (0.5 * heat + 0.5 * image).astype(np.uint8)


def _spectrum_picture(image: np.ndarray, look: str) -> np.ndarray:
    """The log spectrum of an image as grey levels; as published nearly all of it black or white."""
    spectrum = log_spectrum(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    if look == "signed":
        low, high = np.percentile(spectrum, (1, 99))
        spectrum = (spectrum - low) / max(high - low, 1e-6)
    return np.repeat(np.clip(spectrum * 255.0, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
