"""Tables over test sets and detectors, made for reading: percent, beside the published numbers."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from evaluation.agreement import CAPTION, Agreement, agreement_table
from evaluation.assessment import Result
from evaluation.conditions import GRAYSCALE, RGB
from evaluation.published import published_colour_ap, source, tables, wang_results
from evaluation.summary import MeanOverSets, ScoreSummary, mean_over_sets
from utils.files import write_csv, write_text
from utils.tables import ABSENT, cell, markdown, percent, percent_range, write_rows

_CONDITIONS: tuple[str, str] = (RGB, GRAYSCALE)
_PUBLISHED = (("published baseline", "0.5"), ("published colour-robust", "cr"))
_COLUMNS = [field.name for field in fields(ScoreSummary)]


def write_table(
    stem: Path,
    title: str,
    caption: str,
    results: Sequence[Result],
    shown: Collection[str],
    *,
    published: Callable[[str, str], tuple[float, ...] | None],
    notes: Sequence[str] = (),
) -> list[Path]:
    """A table over sets beside the published figures: CSV (fractions, all columns) and Markdown (percent).

    Below the sets stand the means over them, with the standard error between them.

    Args:
        stem: Path without suffix.
        title, caption: Of the page.
        results: One for each set.
        shown: Conditions, in order.
        published: From condition and set to what was published, AP first, in percent.
        notes: Sentences below the table.
    """
    rows = [(r.gan_name, r.rows[variant]) for r in results for variant in shown if variant in r.rows]
    printed = [published(row.variant, name) for name, row in rows]
    table, page = (stem.with_name(f"{stem.name}.{suffix}") for suffix in ("csv", "md"))
    write_csv(
        table,
        ("generator", *_COLUMNS, "published_ap"),
        (
            (name, *_cells(row), "" if numbers is None else round(numbers[0] / 100, 4))
            for (name, row), numbers in zip(rows, printed, strict=True)
        ),
    )
    header = ["generator", "condition", "maps dropped", "AP"]
    header += ["real / fake, calibrated", "real / fake at 0.5", "published"]
    lines = [
        [
            name,
            row.variant if row.draws == 1 else f"{row.variant} (mean of {row.draws})",
            ABSENT if row.maps_dropped is None else str(row.maps_dropped),
            _with_interval(row, "ap"),
            *(f"{percent(real)} / {percent(fake)}" for real, fake in _accuracies(row)),
            ABSENT if numbers is None else " / ".join(f"{number:.1f}" for number in numbers),
        ]
        for (name, row), numbers in zip(rows, printed, strict=True)
    ]
    if len(results) > 1:
        lines += [_mean_line(*entry) for entry in mean_over_sets(row for _, row in rows).items()]
    absent = [column for column in (2, 6) if all(line[column] in ("", ABSENT) for line in lines)]
    kept = [[text for column, text in enumerate(line) if column not in absent] for line in (header, *lines)]
    published_rule = results[0].record.get("facts", {}).get("compat") == "published"
    sign = "fake above the threshold" if published_rule else "fake at or above the threshold"
    sentences = [f"{result.gan_name}: {result.images} images, {sign}; {result.note}." for result in results]
    sentences += notes
    if any(printed):
        sentences.append(f"Published, by the published checkpoints on all images: {source()}.")
    remarks = "\n".join(f"- {sentence}" for sentence in sentences)
    write_text(page, "\n\n".join([f"# {title}", caption, markdown(kept[0], kept[1:]), remarks]) + "\n")
    return [table, page]


def _accuracies(row: ScoreSummary) -> list[tuple[float, float]]:
    """On reals and on fakes, at the calibrated threshold and at 0.5."""
    return [(row.acc_real_calibrated, row.acc_fake_calibrated), (row.acc_real, row.acc_fake)]


def _mean_line(variant: str, mean: MeanOverSets) -> list[str]:
    def shown(metric: str) -> str:
        return f"{percent(mean.mean[metric])} ± {percent(mean.error[metric])}"

    pairs = [f"{shown(f'acc_real{end}')} / {shown(f'acc_fake{end}')}" for end in ("_calibrated", "")]
    return [f"mean of {mean.sets} sets ± standard error", variant, "", shown("ap"), *pairs, ""]


def write_comparison(
    folder: Path, results: Sequence[tuple[str, Result]], agreement: Sequence[Agreement] = (), *, wang: bool = False
) -> list[Path]:
    """Write `summary.csv`, `ap_table.csv` and `tables.md`: AP in colour and greyscale beside the published table.

    With several detectors on one set also `agreement.csv`.

    Args:
        folder: Where they go.
        results: (Detector, result) of every detector on every set.
        agreement: Of the detectors with each other.
        wang: Add the results of Wang et al. at a centre crop of 224 pixels.
    """
    sets = list(dict.fromkeys(result.gan_name for _, result in results))
    summary, ap_table, page = (folder / name for name in ("summary.csv", "ap_table.csv", "tables.md"))
    write_csv(
        summary,
        ("detector", "arch", "set", *_COLUMNS),
        ((name, _arch(r), r.gan_name, *_cells(row)) for name, r in results for row in r.rows.values()),
    )
    lines = _ap_lines(results, sets)
    write_csv(
        ap_table,
        ("detector", "arch", *(f"{name} {condition}" for name in sets for condition in _CONDITIONS)),
        ((name, arch, *(values.get((s, c), "") for s in sets for c in _CONDITIONS)) for name, arch, values in lines),
    )
    parts = [
        "# Evaluation",
        "Percent; fakes are the positives of AP.",
        "## AP, RGB / greyscale",
        markdown(
            ("detector", "arch", *sets, *(["mean of sets ± standard error"] if len(sets) > 1 else [])),
            [
                (name, arch, *(_pair(values, s) for s in sets), *([_mean(values)] if len(sets) > 1 else []))
                for name, arch, values in lines
            ],
        ),
    ]
    if any(name.startswith("published") for name, _, _ in lines):
        parts.append(f"Published: {source()}.")
    if wang:
        parts += ["## Accuracy / AP of Wang et al.", _wang(results, sets), f"Published: {tables()['wang']['source']}."]
    parts += ["## All metrics", _metrics(results)]
    parts.append("Brackets: 95 % intervals; of shares Wilson's, of AP and ROC-AUC over redrawn images.")
    notes = [f"- {name}, {result.gan_name}: {result.note}." for name, result in results if _is_calibrated(result)]
    parts += ["\n".join(notes)] if notes else []
    written = [summary, ap_table, page]
    if agreement:
        parts += ["## Agreement of detectors", CAPTION, agreement_table(agreement)]
        written.append(folder / "agreement.csv")
        write_rows(written[-1], agreement)
    write_text(page, "\n\n".join(parts) + "\n")
    return written


def _arch(result: Result) -> str:
    return str(result.record.get("facts", {}).get("arch", ""))


def _is_calibrated(result: Result) -> bool:
    return result.record.get("facts", {}).get("calibrated_on") is not None


def _cells(row: ScoreSummary) -> list[object]:
    return [cell(getattr(row, column)) for column in _COLUMNS]


def _with_interval(row: ScoreSummary, metric: str) -> str:
    """A metric with the spread of its draws and its interval, in percent."""
    spread = f" ± {percent(getattr(row, f'{metric}_spread'))}" if row.draws > 1 else ""
    bounds = percent_range(getattr(row, f"{metric}_low"), getattr(row, f"{metric}_high"))
    return f"{percent(getattr(row, metric))}{spread} {bounds}".strip()


def _ap_lines(
    results: Sequence[tuple[str, Result]], sets: Sequence[str]
) -> list[tuple[str, str, dict[tuple[str, str], float]]]:
    """Name, architecture and AP in percent by set and condition: of each detector, then what is published."""
    by_detector: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for name, result in results:
        values = by_detector.setdefault((name, _arch(result)), {})
        for condition in _CONDITIONS:
            if not math.isnan(result.rows[condition].ap):
                values[result.gan_name, condition] = 100.0 * result.rows[condition].ap
    lines = [(name, arch, values) for (name, arch), values in by_detector.items()]
    for arch in dict.fromkeys(arch for _, arch in by_detector):
        for name, tag in _PUBLISHED:
            known = {(s, c): published_colour_ap(arch, tag, c, s) for s in sets for c in _CONDITIONS}
            printed = {key: value for key, value in known.items() if value is not None}
            if printed:
                lines.append((name, arch, printed))
    return lines


def _pair(values: Mapping[tuple[str, str], float], test_set: str) -> str:
    numbers = [values.get((test_set, condition)) for condition in _CONDITIONS]
    return " / ".join(ABSENT if number is None else f"{number:.1f}" for number in numbers)


def _mean(values: Mapping[tuple[str, str], float]) -> str:
    parts = []
    for wanted in _CONDITIONS:
        known = [value for (_, condition), value in values.items() if condition == wanted]
        error = f" ± {np.std(known, ddof=1) / math.sqrt(len(known)):.1f}" if len(known) > 1 else ""
        parts.append(f"{np.mean(known):.1f}{error}" if known else ABSENT)
    return " / ".join(parts)


def _wang(results: Sequence[tuple[str, Result]], sets: Sequence[str]) -> str:
    def line(name: str, pairs: Mapping[str, tuple[float, float]]) -> list[str]:
        return [name, *(" / ".join(map(percent, pairs[s])) if s in pairs else ABSENT for s in sets)]

    by_detector: dict[str, dict[str, tuple[float, float]]] = {}
    for name, result in results:
        by_detector.setdefault(name, {})[result.gan_name] = result.rows[RGB].acc, result.rows[RGB].ap
    printed = {
        f"Wang et al. {tag}": {name: (acc / 100, ap / 100) for name, (acc, ap) in known.items()}
        for tag, known in wang_results().items()
    }
    return markdown(("detector", *sets), [line(name, pairs) for name, pairs in (by_detector | printed).items()])


def _metrics(results: Sequence[tuple[str, Result]]) -> str:
    header = ["detector", "set", "condition", "real + fake images", "AP", "ROC-AUC", "acc", "real", "fake", "ECE"]
    calibrated = any(_is_calibrated(result) for _, result in results)
    if calibrated:
        header += ["threshold", "acc, calibrated", "real", "fake"]

    def line(name: str, result: Result, row: ScoreSummary) -> Iterable[str]:
        yield from (name, result.gan_name, row.variant, f"{row.images - row.fakes} + {row.fakes}")
        yield from (_with_interval(row, metric) for metric in ("ap", "roc_auc", "acc", "acc_real", "acc_fake"))
        yield percent(row.ece)
        if calibrated:
            yield f"{row.threshold:.3f}"
            yield from (_with_interval(row, f"acc{label}_calibrated") for label in ("", "_real", "_fake"))

    rows = [(name, result, result.rows[condition]) for name, result in results for condition in _CONDITIONS]
    return markdown(header, [list(line(*row)) for row in rows])
