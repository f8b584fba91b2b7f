"""Where the results of the sensitivity assessment and the colour ablation lie, and the tables over generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.published import SENSITIVITY_K, SOURCE, TAG, published_colour_ap, published_sensitivity
from sensitivity_assessment.scores import GRAYSCALE, RGB
from sensitivity_assessment.summary import AVERAGED, SummaryRow
from sensitivity_assessment.variants import BASELINE, LAYER_RANDOM, LOW, RANDOM, TOP
from utils.files import safe_join, write_csv, write_text

SHOWN = (BASELINE, TOP, RANDOM, f"{RANDOM}-{AVERAGED}", LAYER_RANDOM, LOW)
_PUBLISHED_NAMES = {BASELINE: BASELINE, TOP: TOP, f"{RANDOM}-{AVERAGED}": RANDOM, LOW: LOW}
_COLUMNS = (
    "ap",
    "ap_low",
    "ap_high",
    "acc_real_calibrated",
    "acc_fake_calibrated",
    "acc_calibrated",
    "threshold",
    "acc_real",
    "acc_fake",
    "acc",
)


@dataclass(frozen=True)
class ResultFiles:
    """Files of one generator under one detector.

    Attributes:
        root: Output folder.
        experiment: `transfer` (sensitivity assessment) or `grayscale-transfer` (colour ablation).
        arch: Canonical name of the architecture.
        gan_name: Generator.
        tag: Augmentation tag of the detector.
    """

    root: Path
    experiment: str
    arch: str
    gan_name: str
    tag: str

    @property
    def folder(self) -> Path:
        """Folder of this generator."""
        return safe_join(self.root, self.experiment, self.arch, f"{self.gan_name}_{self.tag}")

    @property
    def scores(self) -> Path:
        """p(fake) of every image under every condition."""
        return self.folder / "scores.csv"

    @property
    def summary(self) -> Path:
        """Metrics of every condition."""
        return self.folder / "summary.csv"

    @property
    def maps(self) -> Path:
        """Which feature maps every variant drops."""
        return self.folder / "dropped_maps.csv"

    @property
    def calibration(self) -> Path:
        """Scores of the set that the threshold was chosen on, if that is another one."""
        return self.folder / "calibration.csv"

    def state(self, part: str = "scores") -> Path:
        """Saved state of an interrupted run."""
        return self.folder / f".{part}-state.npz"

    @property
    def table(self) -> Path:
        """Stem of the table and the figure over all generators of a run."""
        return safe_join(self.root, self.experiment, self.arch, f"{self.experiment}_{self.tag}")


@dataclass(frozen=True)
class GeneratorResult:
    """What a table shows of one generator: its summary, and how its threshold was chosen."""

    gan_name: str
    rows: Mapping[str, SummaryRow]
    note: str
    images: int
    fakes: int


def write_sensitivity_table(
    stem: Path, arch: str, tag: str, k: int, results: Sequence[GeneratorResult], *, ranking: str, published: bool
) -> list[Path]:
    """Table of all generators beside the published figures, as CSV (fractions) and Markdown (percent).

    Args:
        stem: Path without suffix.
        arch, tag: Of the detector.
        k: Number of maps dropped.
        results: One for each generator.
        ranking: Name of the ranking file, for the caption.
        published: Whether the run computed as the published code does.

    Returns:
        The files written.
    """
    comparable = tag == TAG and SENSITIVITY_K.get(arch) == k
    csv_rows: list[list[object]] = []
    lines = [
        f"# Sensitivity to dropping feature maps: {arch}, blur_jpg {tag}, k = {k}",
        "",
        f"Ranking: {ranking}. AP with its 95 % interval; accuracy on reals and on fakes at the calibrated "
        "threshold and at 0.5. All in percent.",
        "",
        "| generator | variant | AP | real / fake, calibrated | real / fake at 0.5 | published AP | published "
        "real / fake |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for variant in SHOWN:
            if variant not in result.rows:
                continue
            row = result.rows[variant]
            printed = None
            if comparable and variant in _PUBLISHED_NAMES:
                printed = published_sensitivity(arch, _PUBLISHED_NAMES[variant], result.gan_name)
            csv_rows.append(
                [
                    result.gan_name,
                    variant,
                    k,
                    row.draws,
                    *_values(row),
                    *([round(x / 100, 4) for x in printed] if printed else [""] * 3),
                ]
            )
            lines.append(
                f"| {result.gan_name} | {_label(row)} | {_ap(row)} | "
                f"{_pair(row, '_calibrated')} | {_pair(row, '')} | "
                + (f"{printed[0]:.1f} | {printed[1]:.1f} / {printed[2]:.1f} |" if printed else "- | - |")
            )
    lines += ["", *_notes(results, published)]
    lines.append(
        f"- {RANDOM}: mean over the draws and its spread (standard deviation); {RANDOM}-{AVERAGED}: scores of the "
        "draws averaged before AP, which is what the published row shows."
    )
    if not published:
        lines.append(
            f"- {LAYER_RANDOM}: as many maps of every layer as the top k has there, none of them from the top k: omega "
            "is a share of its layer, which favours narrow early layers, so this is the fair control."
        )
    lines.append(f"- Published figures, of the published checkpoints: {SOURCE}.")
    header = (
        "generator",
        "variant",
        "k",
        "draws",
        *_COLUMNS,
        "published_ap",
        "published_acc_real_calibrated",
        "published_acc_fake_calibrated",
    )
    return _write(stem, header, csv_rows, lines)


def write_colour_table(
    stem: Path, detectors: Mapping[str, tuple[str, str, Sequence[GeneratorResult]]], *, published: bool
) -> list[Path]:
    """Table of RGB against greyscale over generators, as CSV (fractions) and Markdown (percent).

    Args:
        stem: Path without suffix.
        detectors: By the name shown the architecture, the tag, and the results of each generator. Tags that begin with
            `cr` stand for colour-robust detectors, beside which their published figures are set.
        published: Whether the run computed as the published code does.

    Returns:
        The files written.
    """
    csv_rows: list[list[object]] = []
    lines = [
        "# Colour ablation: the same images as they are and in greyscale",
        "",
        "AP with its 95 % interval; accuracy on reals and on fakes at the threshold calibrated on RGB and at "
        "0.5. All in percent; the drop of AP in percentage points.",
        "",
        "| detector | generator | images | AP | real / fake, calibrated | real / fake at 0.5 | AP drop | published AP "
        "|",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (arch, tag, results) in detectors.items():
        for result in results:
            for condition in (RGB, GRAYSCALE):
                row = result.rows[condition]
                prefix = "cr-" if tag.lower().startswith("cr") else ""
                known = bool(prefix) or tag == TAG
                printed = published_colour_ap(arch, prefix + condition, result.gan_name) if known else None
                csv_rows.append(
                    [
                        name,
                        result.gan_name,
                        condition,
                        *_values(row),
                        "" if printed is None else round(printed / 100, 4),
                    ]
                )
                drop = 100 * (result.rows[RGB].values["ap"] - row.values["ap"])
                lines.append(
                    f"| {name} | {result.gan_name} | {condition} | {_ap(row)} | {_pair(row, '_calibrated')} | "
                    f"{_pair(row, '')} | {f'{drop:.1f}' if condition == GRAYSCALE else ''} | "
                    f"{'-' if printed is None else f'{printed:.1f}'} |"
                )
    lines.append("")
    for name, (_, _, results) in detectors.items():
        lines += [note.replace("- ", f"- {name}, ", 1) for note in _notes(results, published)]
    lines.append(f"- Published AP, of the published checkpoints: {SOURCE}.")
    header = ("detector", "generator", "images", *_COLUMNS, "published_ap")
    return _write(stem, header, csv_rows, lines)


def _write(stem: Path, header: Sequence[str], rows: Sequence[Sequence[object]], lines: Sequence[str]) -> list[Path]:
    paths = [stem.with_name(f"{stem.name}.csv"), stem.with_name(f"{stem.name}.md")]
    write_csv(paths[0], header, rows)
    write_text(paths[1], "\n".join(lines) + "\n")
    return paths


def _notes(results: Sequence[GeneratorResult], published: bool) -> list[str]:
    sign = "above" if published else "at or above"
    return [f"- {r.gan_name}: {r.images} images, fake {sign} the threshold; {r.note}." for r in results]


def _values(row: SummaryRow) -> list[object]:
    values: dict[str, object] = {
        **row.values,
        "ap_low": row.low["ap"],
        "ap_high": row.high["ap"],
        "threshold": row.threshold,
    }
    return [values[column] for column in _COLUMNS]


def _label(row: SummaryRow) -> str:
    return row.variant if row.draws == 1 else f"{row.variant} (mean of {row.draws})"


def _ap(row: SummaryRow) -> str:
    text = f"{100 * row.values['ap']:.1f}"
    if row.draws > 1:
        text += f" ± {100 * row.spread['ap']:.1f}"
    return text + f" [{100 * row.low['ap']:.1f}, {100 * row.high['ap']:.1f}]"


def _pair(row: SummaryRow, which: str) -> str:
    return f"{100 * row.values[f'acc_real{which}']:.1f} / {100 * row.values[f'acc_fake{which}']:.1f}"
