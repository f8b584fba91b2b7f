"""A whole run's output folder with invented numbers, as the report reads it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from PIL import Image

from activation_histograms.median_test import MedianTest
from evaluation.scores import Scores
from evaluation.summary import ScoreSummary
from fmap_ranking.names import FeatureMap
from patch_extraction.files import PatchFiles
from patch_extraction.patches import Patch
from utils.files import write_csv, write_json
from utils.layout import Layout
from utils.provenance import Origin, write_record
from utils.tables import write_rows

WEIGHTS = "a" * 64
ARCH, TAG = "resnet18", "mine"
MAPS = [FeatureMap("layer1.0.conv1", 5, 64), FeatureMap("conv1", 7, 64), FeatureMap("layer4.1.conv2", 3, 512)]
HOSTILE = "<img src=x onerror=alert(1)>&\"'$%#"


@dataclass(frozen=True)
class OnGenerator:
    """What came out on a generator.

    Attributes:
        name: The generator.
        ap: Of the unchanged detector, without the top maps, and without others of their layers.
        dropped: Maps that the control dropped.
        scores: p(fake) of fakes in colour and in greyscale.
        paired, mood: p-values of each map before adjustment.
    """

    name: str = "gan"
    ap: tuple[float, float, float] = (0.99, 0.55, 0.97)
    dropped: int = len(MAPS)
    scores: tuple[float, float] = (0.9, 0.2)
    paired: Sequence[float] = (0.001, 0.002, 0.9)
    mood: Sequence[float] = (0.5, 0.5, 0.5)


def write_run(root: Path, *generators: OnGenerator, weights: str = WEIGHTS) -> Path:
    """Everything that the report reads, with pictures of a few pixels; the checkpoint of the summary is WEIGHTS."""
    layout = Layout(root, ARCH, TAG)
    for generator in generators:
        _write_generator(layout, generator, weights)
    names = [generator.name for generator in generators]
    stems = [layout.table("transfer"), layout.whiskers(), layout.whiskers(names[0])]
    for stem in (*stems, layout.median_tests / "color_conditional"):
        _picture(stem.with_name(f"{stem.name}.png"))
    _picture(layout.table("transfer").with_suffix(".pdf"))
    write_csv(layout.table("transfer").with_name(f"transfer_{TAG}.csv"), ["generator"], [])
    top_maps = [
        {"key": fmap.key, "omega": omega, "depth": depth}
        for fmap, omega, depth in zip(MAPS, (0.1, 0.09, 0.08), (1, 0, 2), strict=True)
    ]
    detector = {
        "arch": ARCH,
        "tag": TAG,
        "weights": "mine.pth",
        "weights_sha256": WEIGHTS,
        "k": len(MAPS),
        "maps": 4800,
        "ranking": "gan-fake.csv",
        "ranking_origin": "FF-RS on the fakes of gan",
        "ranking_warning": None,
        "notes": ["the top 3 hold all maps of a layer"],
        "top_maps": top_maps,
        "results": [
            {
                "generator": g.name,
                "ap": {"baseline": g.ap[0], "top-k": g.ap[1], "grayscale": 0.5},
                "published_ap": {"baseline": 0.123},
            }
            for g in generators
        ],
    }
    described = [{"name": name, "real": 4, "fake": 4, "warning": None} for name in names]
    settings = {"seed": 0, "draws": 5, "patches": 2, "compat": "none"}
    content = {"version": 2, "generators": described, "detectors": [detector], "settings": settings}
    write_json(root / "summary.json", content)
    return root


def page_of(root: Path) -> str:
    """The text of the report in a folder."""
    return (root / "report.html").read_text(encoding="utf-8")


def _write_generator(layout: Layout, generator: OnGenerator, weights: str) -> None:
    name, k = generator.name, len(MAPS)
    origin = Origin(1, {"weights": weights}, {"tag": TAG})
    baseline, top, control = generator.ap
    rows = [
        _summary("baseline", baseline, 0),
        _summary("top-k", top, k),
        _summary("random-k", baseline, k, draws=5),
        _summary("layer-random-k", control, generator.dropped, draws=5),
        _summary("low-k", baseline, k),
    ]
    colours = [_summary("rgb", baseline, None), _summary("grayscale", 0.5, None)]
    for experiment, summaries in (("transfer", rows), ("grayscale-transfer", colours)):
        path = layout.scores(experiment, name) / "summary.csv"
        write_rows(path, summaries)
        write_record([path], origin, threshold_note=f"threshold chosen on {name}")
    labels = np.array([0] * 4 + [1] * 4)
    columns = {c: np.where(labels == 1, p, 0.1) for c, p in zip(("rgb", "grayscale"), generator.scores, strict=True)}
    paths = tuple(f"{name}/{n}.png" for n in range(8))
    Scores(paths, labels, columns).write(layout.scores("grayscale-transfer", name) / "scores.csv")
    tests = [_test(fmap.key, *p) for fmap, *p in zip(MAPS, generator.paired, generator.mood, strict=True)]
    # A map beyond the top ones, whose tiny p would lower the adjusted p of the others if it were counted.
    write_rows(layout.median_tests / f"{name}.csv", [*tests, _test("conv1.#9(T=64)", 1e-9, 1e-9)])
    write_record([layout.median_tests / f"{name}.csv"], origin)
    _picture(layout.histograms / f"{name}.png")
    _picture(layout.collages / f"{name}.png")
    _picture(layout.collages / f"{name}_2.png")
    _write_patches(layout, name, origin)


def _write_patches(layout: Layout, name: str, origin: Origin) -> None:
    files = PatchFiles.of(layout, name)
    for place, fmap in enumerate(MAPS):
        _picture(layout.histograms / fmap.key / f"{name}.png")
        _picture(layout.collages / fmap.folder_name / f"{name}.pdf")
        image = f"{name}/1_fake/{HOSTILE}.png"
        write_rows(files.table(fmap), [_patch(rank, image, place) for rank in (1, 2)], Patch)
        for rank in (1, 2):
            _picture(files.picture(fmap, rank))
        _picture(files.image(image))
    lines = [(n, fmap.key, 0.1, 2) for n, fmap in enumerate(MAPS, start=1)]
    write_csv(files.index, ("position", "key", "omega", "patches"), lines)
    write_record([files.index], origin)


def _filled(row: type, **cells: object) -> Any:
    zero = {int: 0, float: 0.5, str: ""}
    return row(**{name: cells.get(name, zero.get(kind)) for name, kind in get_type_hints(row).items()})


def _summary(variant: str, ap: float, dropped: int | None, draws: int = 1) -> ScoreSummary:
    spread = 0.0123 if draws > 1 else math.nan
    bounds = {"ap": ap, "ap_low": ap - 0.02, "ap_high": min(1.0, ap + 0.02), "ap_spread": spread}
    row: ScoreSummary = _filled(
        ScoreSummary, variant=variant, **bounds, draws=draws, images=8, fakes=4, clusters=8, maps_dropped=dropped
    )
    return row


def _test(key: str, paired: float, mood: float) -> MedianTest:
    p_values = {"p_value": mood, "p_value_bh": mood, "p_value_paired": paired, "p_value_paired_bh": paired}
    test: MedianTest = _filled(MedianTest, feature_map_name=key, **p_values, images=4)
    return test


def _patch(rank: int, image: str, place: int) -> Patch:
    patch: Patch = _filled(Patch, rank=rank, path=image, max_act=10.0 - rank - place, row_max=6, col_max=3)
    return patch


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), "orange").save(path, format="PNG")
