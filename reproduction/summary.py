"""summary.json: what a run was about and what came out, in numbers; the report starts from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sensitivity_assessment.dropout import MADE_BY as DROPOUT_SCRIPT
from sensitivity_assessment.results import read_result
from sensitivity_assessment.scores import GRAYSCALE, RGB

from activation_histograms.median_test import MedianTest, colour_share
from evaluation.published import SENSITIVITY_K, SOURCE, TAG, published_colour_ap, published_sensitivity
from images.composition import composition_warning
from images.sets import ImageSet
from reproduction.one_pass import GeneratorFiles
from reproduction.run import SubjectRun
from sensitivity_assessment.colour import MADE_BY as COLOUR_SCRIPT
from sensitivity_assessment.variants import BASELINE, LAYER_RANDOM, LOW, RANDOM, TOP
from utils.errors import UserError
from utils.files import write_csv, write_json, write_text
from utils.tables import read_rows

MADE_BY = "src/reproduce.py"
VERSION = 1
# In the order of the table: our name, the published tables' name, and the heading.
_VARIANTS = (
    (BASELINE, BASELINE, "AP"),
    (TOP, TOP, "AP without top k"),
    (RANDOM, RANDOM, "AP without random k"),
    (LAYER_RANDOM, None, "AP without k of the same layers"),
    (LOW, LOW, "AP without lowest k"),
)


def summary_path(root: Path) -> Path:
    """Where the summary lies."""
    return root / "summary.json"


def read_summary_file(root: Path) -> dict[str, Any]:
    """The summary of a run.

    Raises:
        UserError: There is none, or it is damaged; names the script that makes it.
    """
    path = summary_path(root)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION or not content["detectors"] or not content["generators"]:
            raise ValueError("another format")
    except FileNotFoundError:
        raise UserError(f"no {path}: make it with {MADE_BY} (without --report_only), or check --output_dir") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged or of another version: make it anew with {MADE_BY}") from error
    assert isinstance(content, dict)
    return content


def write_summary_files(
    root: Path, runs: Sequence[SubjectRun], image_sets: Mapping[str, ImageSet], settings: Mapping[str, object]
) -> list[Path]:
    """Write summary.json, and the table of the main numbers as CSV (fractions) and Markdown (percent).

    Returns:
        The files written.
    """
    generators = []
    for name, image_set in image_sets.items():
        warning = composition_warning(image_set)
        counts = {label: len(image_set.with_label(number)) for number, label in ((0, "real"), (1, "fake"))}
        generators.append({"name": name, **counts, "warning": warning})
    detectors = [_detector(run, list(image_sets)) for run in runs]
    content = {"version": VERSION, "generators": generators, "detectors": detectors, "settings": dict(settings)}
    write_json(summary_path(root), content)
    return [summary_path(root), *_write_table(root, detectors)]


def _detector(run: SubjectRun, names: Sequence[str]) -> dict[str, Any]:
    subject, choice = run.subject, run.choice
    weights = subject.detector.weights
    depth = {layer: place for place, layer in enumerate(choice.ranking.layers)}
    return {
        "arch": subject.arch,
        "tag": subject.tag,
        "weights": "" if weights is None else weights.name,
        "weights_sha256": subject.detector.sha256,
        "k": choice.k,
        "maps": len(choice.ranking),
        "ranking": choice.path.name,
        "ranking_origin": run.ranking.origin if run.ranking is not None else "",
        "notes": choice.notes(),
        "top_maps": [
            {"key": fmap.key, "omega": omega, "depth": depth[fmap.layer]}
            for fmap, omega in zip(choice.ranking.top_k(choice.k), choice.ranking.values.tolist(), strict=False)
        ],
        "results": [_result(run, name) for name in names],
    }


def _result(run: SubjectRun, name: str) -> dict[str, Any]:
    files = GeneratorFiles.of(run.subject, name)
    dropout = read_result(files.dropout, made_by=DROPOUT_SCRIPT)
    colour = read_result(files.colour, made_by=COLOUR_SCRIPT)
    share = colour_share(name, read_rows(files.tests.tests, MedianTest, made_by=MADE_BY))
    arch, tag, k = run.subject.arch, run.subject.tag, run.choice.k
    comparable = tag == TAG and SENSITIVITY_K.get(arch) == k
    published: dict[str, float | None] = {}
    for variant, printed_as, _ in _VARIANTS:
        row = published_sensitivity(arch, printed_as, name) if comparable and printed_as else None
        published[variant] = None if row is None else round(row[0] / 100, 4)
    for condition in (RGB, GRAYSCALE):
        ap = published_colour_ap(arch, condition, name) if tag == TAG else None
        published[condition] = None if ap is None else round(ap / 100, 4)
    return {
        "generator": name,
        "images": dropout.images,
        "fakes": dropout.fakes,
        "ap": {variant: row.values["ap"] for variant, row in {**dropout.rows, **colour.rows}.items()},
        "colour_conditional": share.conditional,
        "colour_conditional_bh": share.conditional_bh,
        "colour_conditional_share": share.share,
        "threshold_note": dropout.note,
        "published_ap": published,
    }


def _write_table(root: Path, detectors: Sequence[Mapping[str, Any]]) -> list[Path]:
    columns = [*((variant, title) for variant, _, title in _VARIANTS), (GRAYSCALE, "AP in greyscale")]
    rows: list[list[object]] = []
    lines = [
        "# The main numbers",
        "",
        "In percent; the published figure of the same detector and k in brackets, where there is one. k of the same "
        "layers: as many maps of each layer as the top k has there. Colour-conditional: share of the top k maps with "
        "p <= 0.05 in the median test.",
        "",
        f"| detector | k | generator | images | {' | '.join(title for _, title in columns)} | colour-conditional |",
        "|" + "---|" * (len(columns) + 5),
    ]
    for detector in detectors:
        for result in detector["results"]:
            ap, published = result["ap"], result["published_ap"]
            cells = [detector["arch"], detector["k"], result["generator"], result["images"]]
            share = result["colour_conditional_share"]
            rows.append(
                [
                    *cells,
                    *(ap.get(name, "") for name, _ in columns),
                    share,
                    *("" if published.get(name) is None else published[name] for name, _ in columns),
                ]
            )
            shown = [_percent(ap.get(name), published.get(name)) for name, _ in columns]
            lines.append(f"| {' | '.join(map(str, cells))} | {' | '.join(shown)} | {100 * share:.1f} |")
    lines += ["", f"- Published figures: {SOURCE}. They are of scores averaged over the draws for random k."]
    header = [
        "detector",
        "k",
        "generator",
        "images",
        *(f"ap_{name}" for name, _ in columns),
        "colour_conditional_share",
    ]
    header += [f"published_ap_{name}" for name, _ in columns]
    paths = [root / "summary.csv", root / "summary.md"]
    write_csv(paths[0], header, rows)
    write_text(paths[1], "\n".join(lines) + "\n")
    return paths


def _percent(value: float | None, published: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + ("" if published is None else f" ({100 * published:.1f})")
