"""summary.json: what a run was about and what came out, in numbers; the report starts from it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from activation_histograms.analysis import MedianTests
from activation_histograms.median_test import colour_share
from attribution.lrp_heatmaps import LrpHeatMaps
from detectors.detector import Detector
from evaluation.agreement import Agreement, agreements, draw_agreement
from evaluation.conditions import GRAYSCALE, RGB
from evaluation.published import published_colour_ap, published_sensitivity, source
from fmap_ranking.options import RankingChoice
from images.sets import FAKE, REAL, ImageSet
from passes.running import AnyAnalysis
from sensitivity_assessment.colour import Colour
from sensitivity_assessment.sensitivity import Sensitivity
from sensitivity_assessment.variants import BASELINE, LAYER_RANDOM, LOW, RANDOM, TOP
from utils.errors import UserError
from utils.files import write_csv, write_json, write_text
from utils.tables import markdown, percent, write_rows

SCRIPT = "src/reproduce.py"
VERSION = 2
# In the order of the table, with their headings.
_VARIANTS = (
    (BASELINE, "AP"),
    (TOP, "AP without top k"),
    (RANDOM, "AP without random k"),
    (LAYER_RANDOM, "AP without k of the same layers"),
    (LOW, "AP without lowest k"),
    (GRAYSCALE, "AP in greyscale"),
)


@dataclass(frozen=True)
class Study:
    """One detector in the plan: the network, its ranking, and the analyses of each generator.

    Attributes:
        detector: The network with its weights.
        choice: Its ranking and k.
        origin: Where the ranking comes from, in a few words.
        analyses: By generator.
        examples: Relevance of a few images; None if it was not wanted.
    """

    detector: Detector
    choice: RankingChoice
    origin: str
    analyses: Mapping[str, Sequence[AnyAnalysis]]
    examples: LrpHeatMaps | None = None


def read_summary(root: Path) -> dict[str, Any]:
    """The summary of a run.

    Raises:
        UserError: There is none, or it is damaged; names the script that makes it.
    """
    path = root / "summary.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION or not content["detectors"] or not content["generators"]:
            raise ValueError("another format")
    except FileNotFoundError:
        raise UserError(f"no {path}: make it with {SCRIPT} (without --report_only), or check --output_dir") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged or of another version: make it anew with {SCRIPT}") from error
    assert isinstance(content, dict)
    return content


def write_summary(
    root: Path, studies: Sequence[Study], sets: Mapping[str, ImageSet], settings: Mapping[str, object]
) -> list[Path]:
    """Write summary.json, and the table of the main numbers as CSV (fractions) and Markdown (percent).

    With several detectors also how far they agree, as a table and a figure.
    """
    described = [
        {
            "name": name,
            "real": len(image_set.with_label(REAL)),
            "fake": len(image_set.with_label(FAKE)),
            "warning": " ".join(image_set.warnings) or None,
        }
        for name, image_set in sets.items()
    ]
    detectors = [_detector(study) for study in studies]
    content = {"version": VERSION, "generators": described, "detectors": detectors, "settings": dict(settings)}
    path = root / "summary.json"
    write_json(path, content)
    return [path, *_write_table(root, detectors), *_write_agreement(root, studies)]


def _write_agreement(root: Path, studies: Sequence[Study]) -> list[Path]:
    table = root / "agreement.csv"
    if len(studies) < 2:
        table.unlink(missing_ok=True)
        return []
    rows = []
    for name in studies[0].analyses:
        colours = {study.detector.arch: _by_type(study.analyses[name])[1] for study in studies}
        first = next(iter(colours.values()))
        rows += agreements(
            name,
            {arch: colour.scores for arch, colour in colours.items()},
            clusters={item.name: item.cluster for item in first.images.items},
            draws=first.options.bootstrap,
            seed=first.subject.run.seed,
            strict=first.subject.run.published,
        )
    write_rows(table, rows, Agreement)
    return [table, *draw_agreement(rows, root / "agreement")]


def _detector(study: Study) -> dict[str, Any]:
    grouped = [_by_type(analyses) for analyses in study.analyses.values()]
    sensitivity = grouped[0][0]
    ranked, weights = sensitivity.ranked, study.detector.weights
    depth = {layer: index for index, layer in enumerate(ranked.ranking.layers)}
    top = zip(ranked.ranking.top_k(ranked.k), ranked.ranking.values.tolist(), strict=False)
    return {
        "arch": study.detector.arch,
        "tag": sensitivity.subject.tag,
        "weights": "" if weights is None else weights.name,
        "weights_sha256": study.detector.sha256,
        "k": ranked.k,
        "maps": len(ranked.ranking),
        "ranking": ranked.path.name,
        "ranking_origin": study.origin,
        "ranking_warning": ranked.warning,
        "notes": sensitivity.remarks(),
        "top_maps": [{"key": fmap.key, "omega": omega, "depth": depth[fmap.layer]} for fmap, omega in top],
        "examples": study.examples and study.examples.folder.relative_to(sensitivity.layout.root).as_posix(),
        "results": [_result(*analyses) for analyses in grouped],
    }


def _by_type(analyses: Sequence[Any]) -> tuple[Sensitivity, Colour, MedianTests]:
    by_type = {type(analysis): analysis for analysis in analyses}
    return by_type[Sensitivity], by_type[Colour], by_type[MedianTests]


def _result(sensitivity: Sensitivity, colour: Colour, tests: MedianTests) -> dict[str, Any]:
    dropped, in_colour = sensitivity.result, colour.result
    name, arch, tag, k = sensitivity.gan_name, sensitivity.layout.arch, sensitivity.layout.tag, sensitivity.ranked.k
    share = colour_share(name, tests.tests)
    published: dict[str, float | None] = {}
    for variant in (BASELINE, TOP, RANDOM, LAYER_RANDOM, LOW):
        # The published random-k is of scores averaged over the draws.
        row = published_sensitivity(arch, tag, k, "random-k-averaged" if variant == RANDOM else variant, name)
        published[variant] = None if row is None else round(row.ap / 100, 4)
    for condition in (RGB, GRAYSCALE):
        ap = published_colour_ap(arch, tag, condition, name)
        published[condition] = None if ap is None else round(ap / 100, 4)
    return {
        "generator": name,
        "images": dropped.images,
        "fakes": dropped.fakes,
        "ap": {variant: row.ap for variant, row in {**dropped.rows, **in_colour.rows}.items()},
        "maps_dropped": {variant: row.maps_dropped for variant, row in dropped.rows.items()},
        "colour_conditional": share.conditional,
        "colour_conditional_bh": share.conditional_bh,
        "colour_conditional_share": share.share,
        "colour_conditional_paired_bh": share.paired_bh,
        "colour_conditional_share_paired_bh": share.share_paired_bh,
        "threshold_note": dropped.note,
        "published_ap": published,
    }


def _write_table(root: Path, detectors: Sequence[Mapping[str, Any]]) -> list[Path]:
    names = [name for name, _ in _VARIANTS]
    shares = ("colour_conditional_share", "colour_conditional_share_paired_bh")
    rows: list[list[object]] = []
    lines: list[list[object]] = []
    for detector in detectors:
        for result in detector["results"]:
            ap, published = result["ap"], result["published_ap"]
            cells = [detector["arch"], detector["k"], result["generator"], result["images"]]
            printed = ["" if published.get(name) is None else published[name] for name in names]
            rows.append([*cells, *(ap.get(name, "") for name in names), *(result[share] for share in shares), *printed])
            shown = [_shown(ap.get(name), published.get(name)) for name in names]
            lines.append([*cells, *shown, *(percent(result[share]) for share in shares)])
    header = ["detector", "k", "generator", "images"]
    csv_header = [*header, *(f"ap_{name}" for name in names), *shares, *(f"published_ap_{name}" for name in names)]
    write_csv(root / "summary.csv", csv_header, rows)
    titles = [*header, *(title for _, title in _VARIANTS), "colour-conditional (published)", "paired test, adjusted"]
    text = [
        "# The main numbers",
        "In percent; the published figure of the same detector and k in brackets, where there is one. k of the same "
        "layers: as many maps of each layer as the top k has there, as far as there are any. Colour-conditional: share "
        "of the top k maps with p <= 0.05 in Mood's median test, as published, and in the paired test, adjusted.",
        markdown(titles, lines),
        f"- Published figures: {source()}. They are of scores averaged over the draws for random k.",
    ]
    write_text(root / "summary.md", "\n\n".join(text) + "\n")
    return [root / "summary.csv", root / "summary.md"]


def _shown(value: float | None, published: float | None) -> str:
    return percent(value) + ("" if published is None else f" ({percent(published)})")
