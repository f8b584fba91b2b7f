"""Tables made for reading: percent, beside the published numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cr_ud.evaluation import Summary
from cr_ud.published import WANG_SOURCE, ApRow, colour_robust_rows, wang_results
from cr_ud.scoring import GRAYSCALE, RGB
from evaluation.published import SOURCE
from utils.files import write_csv, write_text

_ABSENT = "–"


def write_tables(folder: Path, summaries: Sequence[Summary], *, wang: bool = False) -> list[Path]:
    """Write `ap_table.csv` and `tables.md`: AP of RGB and greyscale beside the published table, and all metrics.

    Args:
        folder: where they go.
        summaries: metrics of RGB and greyscale images (other variants are left out).
        wang: add the results of Wang et al. at a centre crop of 224 pixels.
    """
    sets = list(dict.fromkeys(entry.test_set for entry in summaries))
    rows = _ap_rows(summaries)
    header = ("detector", "arch", *(f"{name} {variant}" for name in sets for variant in (RGB, GRAYSCALE)))
    table = folder / "ap_table.csv"
    write_csv(table, header, (_csv_row(row, sets) for row in rows))
    parts = [
        "# Evaluation",
        "Percent; fakes are the positives of AP.",
        "## AP, RGB / greyscale",
        _markdown(("detector", *sets), [[row.name, *(_pair(row.values, name) for name in sets)] for row in rows]),
    ]
    if any(row.name.startswith("published") for row in rows):
        parts.append(f"Published: {SOURCE}.")
    if wang:
        parts += ["## Accuracy / AP of Wang et al.", _wang_table(summaries, sets), f"Published: {WANG_SOURCE}."]
    parts += ["## All metrics", _metrics_table(summaries), _notes(summaries)]
    text = folder / "tables.md"
    write_text(text, "\n\n".join(parts) + "\n")
    return [table, text]


def _ap_rows(summaries: Sequence[Summary]) -> list[ApRow]:
    """AP in percent of each detector, and after the last one of an architecture the published rows of it."""
    own: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for entry in summaries:
        if entry.variant in (RGB, GRAYSCALE):
            values = own.setdefault((entry.arch, entry.detector), {RGB: {}, GRAYSCALE: {}})
            values[entry.variant][entry.test_set] = 100.0 * entry.ap
    rows: list[ApRow] = []
    for arch in dict.fromkeys(arch for arch, _ in own):
        rows += [ApRow(name, arch, values) for (owner, name), values in own.items() if owner == arch]
        rows += colour_robust_rows(arch)
    return rows


def _csv_row(row: ApRow, sets: Sequence[str]) -> list[object]:
    values = (row.values[variant].get(name, "") for name in sets for variant in (RGB, GRAYSCALE))
    return [row.name, row.arch, *values]


def _pair(values: Mapping[str, Mapping[str, float]], test_set: str) -> str:
    numbers = [values[variant].get(test_set) for variant in (RGB, GRAYSCALE)]
    return " / ".join(_ABSENT if number is None else f"{number:.1f}" for number in numbers)


def _wang_table(summaries: Sequence[Summary], sets: Sequence[str]) -> str:
    rows = []
    for detector in dict.fromkeys(entry.detector for entry in summaries):
        own = {entry.test_set: entry for entry in summaries if entry.detector == detector and entry.variant == RGB}
        rows.append([detector, *(f"{100 * own[name].acc:.1f} / {100 * own[name].ap:.1f}" for name in sets)])
    for tag, known in wang_results().items():
        cells = (f"{known[name][0]:.1f} / {known[name][1]:.1f}" if name in known else _ABSENT for name in sets)
        rows.append([f"Wang et al. {tag}", *cells])
    return _markdown(("detector", *sets), rows)


def _metrics_table(summaries: Sequence[Summary]) -> str:
    header = ["detector", "set", "images", "n real + fake", "AP [95 %]", "ROC-AUC", "acc [95 %]", "real", "fake", "ECE"]
    calibrated = any(entry.threshold is not None for entry in summaries)
    if calibrated:
        header += ["threshold", "acc, calibrated", "real", "fake"]
    rows = []
    for entry in summaries:
        if entry.variant not in (RGB, GRAYSCALE):
            continue
        row = [
            entry.detector,
            entry.test_set,
            entry.variant,
            f"{entry.real} + {entry.fake}",
            f"{100 * entry.ap:.1f} [{100 * entry.ap_low:.1f}, {100 * entry.ap_high:.1f}]",
            f"{100 * entry.roc_auc:.1f}",
            f"{100 * entry.acc:.1f} [{100 * entry.acc_low:.1f}, {100 * entry.acc_high:.1f}]",
            f"{100 * entry.acc_real:.1f} ± {100 * entry.acc_real_se:.1f}",
            f"{100 * entry.acc_fake:.1f} ± {100 * entry.acc_fake_se:.1f}",
            f"{100 * entry.ece:.1f}",
        ]
        if calibrated:
            row += [
                _ABSENT if entry.threshold is None else f"{entry.threshold:.3f}",
                *(_percent(value) for value in (entry.acc_calibrated, entry.acc_real_calibrated)),
                _percent(entry.acc_fake_calibrated),
            ]
        rows.append(row)
    return _markdown(header, rows)


def _notes(summaries: Sequence[Summary]) -> str:
    notes = ["Brackets: 95 % intervals. ±: standard error of a share."]
    calibrated_on = next((entry.calibrated_on for entry in summaries if entry.calibrated_on), None)
    if calibrated_on is not None:
        notes.append(
            f"The threshold is the G-mean optimum on the RGB images of {calibrated_on}; the accuracies of that set at "
            "it are on the images it was chosen on."
        )
    return " ".join(notes)


def _percent(value: float | None) -> str:
    return _ABSENT if value is None else f"{100 * value:.1f}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
