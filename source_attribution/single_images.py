"""Who made these images: probabilities, class activation maps, pictures, one run into one folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from cr_ud.training_data import Loaded
from images.sets import find_loose_images
from passes.options import RunOptions
from source_attribution.attributor import Answer, ask, load_attributor
from source_attribution.options import LooseAttribution
from source_attribution.source_scores import NONE, REAL, THRESHOLD, Scores
from source_attribution.spectra import log_spectrum
from utils.cli import say, say_files
from utils.figures import save_picture
from utils.files import read_npz, safe_join, safe_name, write_csv, write_npz
from utils.heatmaps import LOOKS
from utils.pictures import ContactSheets
from utils.provenance import is_current, write_record
from utils.settings import plain
from utils.tables import percent

_COMPUTATION = 2
NOBODY = "none of these"


def attribute_images(options: LooseAttribution, run: RunOptions) -> Path:
    """Scores and pictures of all images; the table of scores.

    Raises:
        UserError: Weights or images cannot be used.
    """
    attributor = load_attributor(
        options.weights, options.model_type, options.source, options, single_precision=run.published
    )
    images = find_loose_images([options.images])
    table = options.output / "scores.csv"
    origin = attributor.origin(_COMPUTATION, options.weights, images, compat=run.compat, look=options.look)
    if is_current([table], origin) and not run.overwrite:
        say(f"{table}: done before, nothing to compute")
        return table
    is_spectral = np.array(attributor.parts[0].description.input == "dct")

    def keep(loaded: Loaded, answers: list[Answer]) -> None:
        maps = [None if answer.evidence is None else answer.evidence.cpu().numpy() for answer in answers]
        for row, position in enumerate(loaded.positions):
            path = arrays_path(options.output, images.items[position].name)
            more = {f"map_{number}": batch[row] for number, batch in enumerate(maps) if batch is not None}
            write_npz(path, image=loaded.images[row], dct=is_spectral, **more)

    used, scores = ask(attributor, images, options, keep)
    rows = ([item.name, *values] for item, values in zip(used.items, scores.values.tolist(), strict=True))
    write_csv(table, ("path", *(f"p_{name}" for name in scores.columns)), rows)
    _summarise(scores)
    sheets = _draw_sheets(options, [item.name for item in used.items], scores)
    # last, so that it tells that all is there
    write_record([table], origin, settings=plain(options, run), device=attributor.device, images=len(used))
    say_files([table, *sheets])
    return table


def arrays_path(output: Path, name: str) -> Path:
    """Where image and maps of an image lie: `image`, and `map_0`, `map_1`, ... in the order of the columns."""
    return safe_join(output, "arrays", f"{safe_name(name.replace('/', '-'))}.npz")


def _summarise(scores: Scores) -> None:
    count = len(scores.values)
    if scores.fake is not None:
        images = int(scores.fake.sum())
        say(f"called generated: {images} of {count} images ({percent(images / count)} %)")
    if scores.sources:
        found_by = np.bincount(scores.said(), minlength=len(scores.answers)).tolist()
        for name, images in zip(scores.answers, found_by, strict=True):
            say(f"attributed to {NOBODY if name == NONE else name}: {images} ({percent(images / count)} %)")
    if odd := scores.contradictions():
        say(f"warning: {odd} images are attributed to a source although they are called real")


def _draw_sheets(options: LooseAttribution, names: Sequence[str], scores: Scores) -> list[Path]:
    """Of each image the picture, the evidence for being generated, and that for the likeliest source.

    Drawn from the arrays of the images; overlays go into `pictures/`, sheets beside the table.
    """
    look = options.look
    # the columns whose maps are shown, for each image
    shown = {} if scores.fake is None else {"being generated": np.zeros(len(names), int)}
    if scores.sources:
        shown["the likeliest source"] = scores.likeliest + len(scores.columns) - len(scores.sources)
    panels = 1 + len(shown)
    sheets = ContactSheets(
        options.output / "sheet",
        panels=panels,
        caption_lines=3,
        columns=6 // panels,
        rows=5,
        title=f"Evidence for {' and for '.join(shown)}",
        legend=LOOKS["signed"].legend() if look == "signed" else None,
    )
    for row, name in enumerate(names):
        path = arrays_path(options.output, name)
        arrays = read_npz(path)
        ground = _spectrum_picture(arrays["image"], look) if bool(arrays["dct"]) else arrays["image"]
        overlays = [_overlay(ground, arrays.get(f"map_{columns[row]}"), look) for columns in shown.values()]
        picture = safe_join(options.output, "pictures", path.with_suffix(".png").name)
        save_picture(picture, np.concatenate(overlays, axis=1))
        sheets.add([arrays["image"], *overlays], _caption(name, replace(scores, values=scores.values[[row]])))
    return sheets.finish()


def _caption(path: str, scores: Scores) -> list[str]:
    fake = "" if scores.fake is None else f"p(fake) {percent(scores.values[0, 0])} %"
    if not scores.sources:
        return [path, f"{'FAKE' if scores.fake else 'REAL'}: {fake}"]
    answer, best = scores.answers[scores.said()[0]], scores.likeliest[0]
    who, source = NOBODY if answer == NONE else answer, scores.sources[best]
    # of several classes the most probable one needs nothing
    needed = "" if scores.columns[0] == REAL else f", needs {percent(scores.thresholds.get(source, THRESHOLD))} %"
    return [path, fake, f"{who}: p({source}) {percent(scores.of_sources[0, best])} %{needed}"]


def _overlay(image: np.ndarray, evidence: np.ndarray | None, look: str) -> np.ndarray:
    if evidence is None:
        return image
    height, width = image.shape[:2]
    wide = cv2.resize(evidence.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    if look == "signed":
        return LOOKS[look].overlay(image, LOOKS[look].render(wide))
    heat = cv2.applyColorMap(np.clip(wide * 255.0, 0, 255).astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    return (0.5 * heat + 0.5 * image).astype(np.uint8)


def _spectrum_picture(image: np.ndarray, look: str) -> np.ndarray:
    """The log spectrum of an image as grey levels; as published nearly all of it black or white."""
    spectrum = log_spectrum(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    if look == "signed":
        low, high = np.percentile(spectrum, (1, 99))
        spectrum = (spectrum - low) / max(high - low, 1e-6)
    return np.repeat(np.clip(spectrum * 255.0, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
