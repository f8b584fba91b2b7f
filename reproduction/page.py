"""report.html: one static page with every table and figure, drawn from the files that the steps have written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from sensitivity_assessment.outputs import SHOWN, GeneratorResult
from sensitivity_assessment.scores import GRAYSCALE, RGB

from activation_histograms.median_test import LEVEL
from evaluation.published import SOURCE
from reproduction.contents import DetectorContents
from reproduction.html import details, embedded_json, escape, figure, percent, table, url
from reproduction.map_table import map_data, map_table
from reproduction.summary import read_summary_file, summary_path
from sensitivity_assessment.variants import BASELINE, LAYER_RANDOM, LOW, RANDOM, TOP
from utils.files import write_text

_WORDS = (
    (
        "Feature map",
        "One channel of one convolution of the detector: a picture of where in the image one learnt pattern is found.",
    ),
    (
        "ω (FF-RS)",
        "Forensic feature relevance: the share of its layer's relevance that a map carries when the detector calls a "
        "fake image fake, averaged over images. The ranking sorts all maps by it.",
    ),
    (
        "Top k",
        "The k highest-ranked maps: 114 of 26,560 for ResNet-50 and 27 of 21,008 for EfficientNet-B0 in the paper.",
    ),
    (
        "Dropping maps",
        "The maps are set to zero while the detector looks at the image. If it then fails, it needed them. To be fair, "
        "the same is done with k random maps, and with k random maps of the same layers.",
    ),
    (
        "AP",
        "Average precision: 100 % when every fake scores higher than every real image; guessing gives the share of "
        "fakes. It needs no threshold. Intervals are 95 % bootstrap intervals over the images.",
    ),
    (
        "Calibrated threshold",
        "The score from which on an image is called fake, chosen where the unchanged detector is right on reals and "
        "fakes most evenly (largest G-mean).",
    ),
    (
        "Median test",
        "Each fake is shown in colour and in greyscale. If the map's largest activations have another median without "
        f"colour (Mood's test, p ≤ {LEVEL:g}), the map is called colour-conditional: it looks at colour. Shift: the "
        "median in colour less the one in greyscale.",
    ),
)


def report_path(root: Path) -> Path:
    """Where the report lies."""
    return root / "report.html"


def write_report(root: Path) -> Path:
    """Draw the report from the files below an output folder; computes nothing.

    Raises:
        UserError: A file is missing or damaged.
    """
    summary = read_summary_file(root)
    names = [str(generator["name"]) for generator in summary["generators"]]
    detectors = [DetectorContents(root, record, names) for record in summary["detectors"]]
    sections = [_detector(contents, place) for place, contents in enumerate(detectors)]
    assets = resources.files("reproduction")
    style = assets.joinpath("report.css").read_text(encoding="utf-8")
    script = assets.joinpath("report.js").read_text(encoding="utf-8")
    links = [("numbers", "The main numbers"), ("words", "In plain words")]
    links += [(f"detector-{place}", contents.arch) for place, contents in enumerate(detectors)]
    navigation = "".join(f'<li><a href="#{target}">{escape(title)}</a></li>' for target, title in links)
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(f"Forensic features of {', '.join(contents.arch for contents in detectors)}")}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header>
<h1>What the detector looks at</h1>
<p class="lead">{escape(_lead(summary))}</p>
{_warnings(summary)}
<nav aria-label="Contents"><ul>{navigation}</ul></nav>
</header>
<main>
{_numbers(detectors)}
{_words()}
{"".join(sections)}
</main>
<footer>
<p>{escape(_settings(summary))} Published figures: {escape(SOURCE)}.</p>
<p>All numbers are in <a href="{url(summary_path(root), root)}">summary.json</a> and in the tables beside it; fractions
there, percent here.</p>
</footer>
<script>
{script}</script>
</body>
</html>
"""
    write_text(report_path(root), page)
    return report_path(root)


def _lead(summary: Mapping[str, Any]) -> str:
    archs = " and ".join(str(detector["arch"]) for detector in summary["detectors"])
    images = "; ".join(f"{g['name']}: {g['real']} real, {g['fake']} fake" for g in summary["generators"])
    return (
        f"Which feature maps make {archs} call an image fake, what is left of the detector without them, and whether "
        f"they look at colour. Images: {images}."
    )


def _warnings(summary: Mapping[str, Any]) -> str:
    return "".join(
        f'<p class="warning">{escape(generator["name"])}: {escape(generator["warning"])}.</p>'
        for generator in summary["generators"]
        if generator["warning"]
    )


def _settings(summary: Mapping[str, Any]) -> str:
    given = summary["settings"]
    return (
        f"Seed {given['seed']}; {given['draws']} random choices of each kind; {given['patches']} patches of each map; "
        f"compatibility with the published code: {given['compat']}."
    )


def _words() -> str:
    items = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in _WORDS)
    return f'<section id="words"><h2>In plain words</h2><dl>{items}</dl></section>'


def _numbers(detectors: Sequence[DetectorContents]) -> str:
    header = ["Detector", "k", "Generator", "AP", "without top k", "random k", "same layers", "lowest k", "greyscale"]
    rows = []
    any_published = False
    for contents in detectors:
        for result in contents.record["results"]:
            ap, published = result["ap"], result["published_ap"]
            cells = []
            for variant in (BASELINE, TOP, RANDOM, LAYER_RANDOM, LOW, GRAYSCALE):
                printed = published.get(variant)
                any_published |= printed is not None
                known = "–" if variant not in ap else percent(ap[variant])
                cells.append(known + ("" if printed is None else f" ({percent(printed)})"))
            share = percent(result["colour_conditional_share"])
            rows.append([contents.arch, contents.k, result["generator"], *cells, share])
    note = (
        "In brackets the published figures of the paper's own checkpoint on its own images: beside, not a target. "
        if any_published
        else ""
    )
    caption = "Average precision in percent, and colour-conditional share of the top k maps in percent"
    return (
        '<section id="numbers"><h2>The main numbers</h2>'
        "<p>Each row is one detector on one generator. If AP falls without the top k maps but hardly without random "
        f"ones of the same layers, the detector depends on the few maps found. {escape(note)}</p>"
        f"{table(caption, [*header, 'colour-conditional'], rows, numbers_from=3)}</section>"
    )


def _detector(contents: DetectorContents, place: int) -> str:
    root, record, k = contents.root, contents.record, contents.k
    facts = (
        f"Checkpoint {record['weights']} (SHA-256 {record['weights_sha256'][:12]}), blur_jpg {contents.tag}. "
        f"Ranking: {record['ranking_origin']}. k = {k} of {record['maps']:,} feature maps."
    )
    notes = "".join(f'<p class="soft">{escape(note)}.</p>' for note in record["notes"])
    links = ", ".join(f'<a href="{url(path, root)}">{escape(path.name)}</a>' for path in contents.tables())
    return f"""<section id="detector-{place}">
<h2>{escape(contents.arch)}</h2>
<p class="soft">{escape(facts)}</p>
<p class="soft">Tables: {links}.</p>
<h3>What is left without the top {k} maps</h3>
{_dropout(contents)}{notes}
<h3>What is left without colour</h3>
{_colour(contents)}
<h3>How many of the maps look at colour</h3>
{_shares(contents)}
<h3>What excites the maps</h3>
{_collages(contents)}
<h3>The feature maps one by one</h3>
{map_table(contents, f"maps-{place}")}
{embedded_json(f"maps-{place}", map_data(contents))}
</section>
"""


def _dropout(contents: DetectorContents) -> str:
    worst = min(contents.dropout, key=lambda result: _drop(result, TOP))
    control = f", to {_ap(worst, LAYER_RANDOM)} % without as many of the same layers" * (LAYER_RANDOM in worst.rows)
    caption = (
        f"Compare the grey bars (no map dropped) with the orange ones (top {contents.k} dropped) and the blue ones (as "
        f"many random maps): on {worst.gan_name} AP goes from {_ap(worst, BASELINE)} % to {_ap(worst, TOP)} % without "
        f"the top maps, to {_ap(worst, RANDOM)} % without random ones{control}."
    )
    shown = figure(
        contents.sensitivity_figure,
        contents.root,
        caption,
        "Bars of AP and accuracies by generator and kind of dropped maps",
    )
    header = [
        "Generator",
        "Dropped",
        "AP",
        "95 % interval",
        "real / fake right, calibrated",
        "real / fake right at 0.5",
    ]
    rows = [
        [
            result.gan_name,
            variant if row.draws == 1 else f"{variant} (mean of {row.draws})",
            percent(row.values["ap"]),
            f"{percent(row.low['ap'])} – {percent(row.high['ap'])}",
            f"{percent(row.values['acc_real_calibrated'])} / {percent(row.values['acc_fake_calibrated'])}",
            f"{percent(row.values['acc_real'])} / {percent(row.values['acc_fake'])}",
        ]
        for result in contents.dropout
        for variant, row in ((variant, result.rows[variant]) for variant in SHOWN if variant in result.rows)
    ]
    notes = "".join(f"<li>{escape(result.gan_name)}: {escape(result.note)}</li>" for result in contents.dropout)
    content = table("Sensitivity to dropping feature maps, in percent", header, rows, numbers_from=2)
    return shown + details("Table with intervals and accuracies", f"{content}<ul>{notes}</ul>")


def _colour(contents: DetectorContents) -> str:
    worst = min(contents.colour, key=lambda result: _drop(result, GRAYSCALE, RGB))
    caption = (
        "The lower the grey box lies below the blue one beside it, the more the detector needs colour to call a fake "
        f"fake: on {worst.gan_name} AP goes from {_ap(worst, RGB)} % in colour to {_ap(worst, GRAYSCALE)} % in "
        "greyscale."
    )
    shown = figure(
        contents.whiskers_figure, contents.root, caption, "Box-whisker plots of p(fake) in colour and greyscale"
    )
    header = ["Generator", "Images", "AP", "95 % interval", "real / fake right, calibrated"]
    rows = [
        [
            result.gan_name,
            {RGB: "colour", GRAYSCALE: "greyscale"}[condition],
            percent(row.values["ap"]),
            f"{percent(row.low['ap'])} – {percent(row.high['ap'])}",
            f"{percent(row.values['acc_real_calibrated'])} / {percent(row.values['acc_fake_calibrated'])}",
        ]
        for result in contents.colour
        for condition, row in ((condition, result.rows[condition]) for condition in (RGB, GRAYSCALE))
    ]
    content = table("Colour ablation, in percent", header, rows, numbers_from=2)
    return shown + details("Table with intervals and accuracies", content)


def _shares(contents: DetectorContents) -> str:
    shares = contents.shares
    most = max(shares, key=lambda share: share.share)
    caption = (
        f"The orange bars are the share of the top maps that respond otherwise without colour, at most "
        f"{percent(most.share)} % ({most.conditional} of {most.maps}, on {most.generator}); the grey bars count only "
        "those that also survive the correction for testing many maps."
    )
    shown = figure(contents.shares_figure, contents.root, caption, "Bars of the colour-conditional share by generator")
    header = ["Generator", "Fakes", "Maps", "Colour-conditional", "95 % interval", "after correction", "untestable"]
    rows = [
        [
            share.generator,
            share.images,
            share.maps,
            f"{percent(share.share)} ({share.conditional})",
            f"{percent(share.share_low)} – {percent(share.share_high)}",
            f"{percent(share.share_bh)} ({share.conditional_bh})",
            share.degenerate,
        ]
        for share in shares
    ]
    content = table("Colour-conditional maps, in percent (number)", header, rows)
    overviews = "".join(
        details(
            f"Histograms of the first maps on {name}",
            figure(
                contents.histograms_figure(name),
                contents.root,
                "Where the orange (colour) and the dark (greyscale) histogram of a map lie apart, the map responds to "
                "colour; orange frames mark the colour-conditional ones.",
                f"Histograms of largest activations of the first maps on {name}",
            ),
        )
        for name in contents.names
    )
    return shown + content + overviews


def _collages(contents: DetectorContents) -> str:
    parts = []
    for number, name in enumerate(contents.names):
        pages = contents.collage_pages(name)
        pictures = "".join(
            figure(
                page,
                contents.root,
                f"Each row shows the parts of the fakes of {name} that excite one map most: look for what the patches "
                "of a row have in common.",
                f"Patches of the top maps on {name}, page {count} of {len(pages)}",
            )
            for count, page in enumerate(pages, start=1)
        )
        opened = "" if number else " open"
        parts.append(f"<details{opened}><summary>{escape(f'Patches on {name}')}</summary>{pictures}</details>")
    return "".join(parts)


def _drop(result: GeneratorResult, variant: str, base: str = BASELINE) -> float:
    return result.rows[variant].values["ap"] - result.rows[base].values["ap"]


def _ap(result: GeneratorResult, variant: str) -> str:
    return percent(result.rows[variant].values["ap"])
