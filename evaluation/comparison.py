"""Tables over detectors and test sets, made for reading: percent, beside the published numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from evaluation.assessment import Result
from evaluation.conditions import GRAYSCALE, RGB
from evaluation.published import published_colour_ap, source, tables, wang_results
from evaluation.summary import ScoreSummary
from utils.files import write_csv, write_text
from utils.tables import ABSENT, markdown, percent, percent_range

_CONDITIONS: tuple[str, str] = (RGB, GRAYSCALE)
_PUBLISHED = (("published baseline", "0.5"), ("published colour-robust", "cr"))


def write_comparison(folder: Path, results: Sequence[tuple[str, Result]], *, wang: bool = False) -> list[Path]:
    """Write `summary.csv`, `ap_table.csv` and `tables.md`: AP in colour and greyscale beside the published table.

    Args:
        folder: Where they go.
        results: (Detector, result) of every detector on every set.
        wang: Add the results of Wang et al. at a centre crop of 224 pixels.
    """
    sets = list(dict.fromkeys(result.gan_name for _, result in results))
    columns = [field.name for field in fields(ScoreSummary)]
    write_csv(
        folder / "summary.csv",
        ("detector", "arch", "set", *columns),
        (
            (name, _arch(result), result.gan_name, *(_cell(getattr(row, column)) for column in columns))
            for name, result in results
            for row in result.rows.values()
        ),
    )
    lines = _ap_lines(results, sets)
    header = ("detector", "arch", *(f"{name} {condition}" for name in sets for condition in _CONDITIONS))
    write_csv(
        folder / "ap_table.csv",
        header,
        ((name, arch, *(values.get((s, c), "") for s in sets for c in _CONDITIONS)) for name, arch, values in lines),
    )
    parts = [
        "# Evaluation",
        "Percent; fakes are the positives of AP.",
        "## AP, RGB / greyscale",
        markdown(
            ("detector", "arch", *sets, "mean of sets ± standard error between them"),
            [(name, arch, *(_pair(values, s) for s in sets), _mean(values, sets)) for name, arch, values in lines],
        ),
    ]
    if any(name.startswith("published") for name, _, _ in lines):
        parts.append(f"Published: {source()}.")
    if wang:
        parts += ["## Accuracy / AP of Wang et al.", _wang(results, sets), f"Published: {tables()['wang']['source']}."]
    parts += ["## All metrics", _metrics(results), *_notes(results)]
    write_text(folder / "tables.md", "\n\n".join(parts) + "\n")
    return [folder / name for name in ("summary.csv", "ap_table.csv", "tables.md")]


def _arch(result: Result) -> str:
    return str(result.record.get("facts", {}).get("arch", ""))


def _cell(value: object) -> object:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _ap_lines(
    results: Sequence[tuple[str, Result]], sets: Sequence[str]
) -> list[tuple[str, str, dict[tuple[str, str], float]]]:
    """Name, architecture and AP in percent by set and condition: of each detector, then what is published."""
    own: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for name, result in results:
        values = own.setdefault((name, _arch(result)), {})
        for condition in _CONDITIONS:
            if not math.isnan(result.rows[condition].ap):
                values[result.gan_name, condition] = 100.0 * result.rows[condition].ap
    lines = [(name, arch, values) for (name, arch), values in own.items()]
    for arch in dict.fromkeys(arch for _, arch in own):
        for name, tag in _PUBLISHED:
            known = {(s, c): published_colour_ap(arch, tag, c, s) for s in sets for c in _CONDITIONS}
            printed = {key: value for key, value in known.items() if value is not None}
            if printed:
                lines.append((name, arch, printed))
    return lines


def _pair(values: Mapping[tuple[str, str], float], test_set: str) -> str:
    numbers = [values.get((test_set, condition)) for condition in _CONDITIONS]
    return " / ".join(ABSENT if number is None else f"{number:.1f}" for number in numbers)


def _mean(values: Mapping[tuple[str, str], float], sets: Sequence[str]) -> str:
    parts = []
    for condition in _CONDITIONS:
        found = [values[s, condition] for s in sets if (s, condition) in values]
        error = f" ± {np.std(found, ddof=1) / math.sqrt(len(found)):.1f}" if len(found) > 1 else ""
        parts.append(f"{np.mean(found):.1f}{error}" if found else ABSENT)
    return " / ".join(parts)


def _wang(results: Sequence[tuple[str, Result]], sets: Sequence[str]) -> str:
    rows = []
    for name in dict.fromkeys(name for name, _ in results):
        own = {result.gan_name: result.rows[RGB] for owner, result in results if owner == name}
        cells = (f"{percent(own[s].acc)} / {percent(own[s].ap)}" if s in own else ABSENT for s in sets)
        rows.append([name, *cells])
    for tag, known in wang_results().items():
        cells = (f"{known[s][0]:.1f} / {known[s][1]:.1f}" if s in known else ABSENT for s in sets)
        rows.append([f"Wang et al. {tag}", *cells])
    return markdown(("detector", *sets), rows)


def _metrics(results: Sequence[tuple[str, Result]]) -> str:
    header = ["detector", "set", "images", "n real + fake", "AP", "ROC-AUC", "acc", "real", "fake", "ECE"]
    calibrated = any(_calibrated_on(result) for _, result in results)
    if calibrated:
        header += ["threshold", "acc, calibrated", "real", "fake"]
    rows = []
    for name, result in results:
        for row in (result.rows[condition] for condition in _CONDITIONS):
            cells = [name, result.gan_name, row.variant, f"{row.images - row.fakes} + {row.fakes}"]
            cells += [_with_interval(row, metric) for metric in ("ap", "roc_auc", "acc", "acc_real", "acc_fake")]
            cells.append(percent(row.ece))
            if calibrated:
                cells.append(f"{row.threshold:.3f}")
                cells += [_with_interval(row, f"acc{label}_calibrated") for label in ("", "_real", "_fake")]
            rows.append(cells)
    return markdown(header, rows)


def _with_interval(row: ScoreSummary, metric: str) -> str:
    bounds = percent_range(getattr(row, f"{metric}_low"), getattr(row, f"{metric}_high"))
    return f"{percent(getattr(row, metric))} {bounds}".strip()


def _calibrated_on(result: Result) -> str | None:
    value = result.record.get("facts", {}).get("calibrated_on")
    return None if value is None else str(value)


def _notes(results: Sequence[tuple[str, Result]]) -> list[str]:
    notes = ["Brackets: 95 % intervals; of shares Wilson's, of AP and ROC-AUC over redrawn images."]
    chosen = [f"- {name}, {result.gan_name}: {result.note}." for name, result in results if _calibrated_on(result)]
    return [*notes, "\n".join(chosen)] if chosen else notes
