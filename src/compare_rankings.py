"""Compare two rankings of the same feature maps: rank correlation, top-k overlap, layers of the top maps."""

from dataclasses import dataclass
from pathlib import Path

from passes.options import RunOptions
from utils.cli import run_script, say
from utils.settings import flag, plain, positive, read_settings

DEFAULT_KS = (114, 27, 10, 1000)
EXAMPLE = (
    "python src/compare_rankings.py fmap_relevances/resnet50/progan_val_0.5/progan_val-fake.csv "
    "fmap_relevances/resnet50/progan_val_0.5/progan_val-real.csv --arch resnet50 --topk 114 27"
)


@dataclass(frozen=True)
class ComparisonOptions:
    """Rankings."""

    first: Path = flag(Path(), "ranking", metavar="A.csv", positional=True, recorded=False)
    second: Path = flag(Path(), "ranking of the same feature maps", metavar="B.csv", positional=True, recorded=False)
    topk: tuple[int, ...] = flag(
        (),
        "sizes of the top sets to compare; the first is the one drawn by layer; "
        f"absent: {' '.join(map(str, DEFAULT_KS))}, as far as there are as many maps",
        parse=positive,
        metavar="K",
    )
    arch: str | None = flag(
        None, "check the maps against this architecture and list layers in its order; absent: by name", metavar="ARCH"
    )


def feature_map_layers(arch: str) -> dict[str, int]:
    """Number of feature maps of each layer of an architecture that has some, in order of depth."""
    from detectors.feature_maps import FeatureMapNetwork
    from detectors.networks import build_model

    return FeatureMapNetwork(build_model(arch).eval(), arch).layers


def name_files(first: Path, second: Path) -> tuple[str, str]:
    """The shortest ends of the two paths that differ, without suffix."""
    a, b = first.resolve().with_suffix("").parts, second.resolve().with_suffix("").parts
    for depth in range(1, max(len(a), len(b)) + 1):
        if a[-depth:] != b[-depth:]:
            return "/".join(a[-depth:]), "/".join(b[-depth:])
    return a[-1], b[-1]


def main() -> None:
    options, run = read_settings(__doc__ or "", EXAMPLE, ComparisonOptions, RunOptions)

    from fmap_ranking.comparison import LayerShare, compare_rankings
    from fmap_ranking.figures import plot_comparison, plot_omega_distribution
    from fmap_ranking.ranking import read_ranking
    from utils.files import sha256_file
    from utils.provenance import Origin, write_record
    from utils.tables import write_rows

    layers = feature_map_layers(options.arch) if options.arch else None
    first, second = read_ranking(options.first, layers), read_ranking(options.second, layers)
    ks = options.topk or [k for k in DEFAULT_KS if k <= len(first)] or [len(first)]
    comparison = compare_rankings(first, second, ks)
    names = name_files(options.first, options.second)
    say(f"{names[0]} against {names[1]}: {len(first)} feature maps")
    say(f"Spearman correlation {comparison.spearman:.4f}")
    say(f"{'k':>6} {'common':>7} {'overlap':>8} {'by chance':>10}")
    for row in comparison.overlaps:
        say(f"{row.k:>6} {row.common:>7} {row.overlap:>8.4f} {row.overlap_by_chance:>10.4f}")

    folder = run.output_dir
    tables = [folder / "comparison.csv", folder / "comparison_layers.csv"]
    write_rows(tables[0], comparison.overlaps)
    write_rows(tables[1], comparison.layer_shares, LayerShare)
    inputs = {str(path): sha256_file(path) for path in (options.first, options.second)}
    write_record(tables, Origin(1, inputs, {"topk": ks}), settings=plain(options, run), maps=len(first))
    figures = plot_comparison(comparison, folder / "comparison", ks[0], names)
    figures += plot_omega_distribution(dict(zip(names, (first, second), strict=True)), folder / "omega", ks[0])
    say(f"wrote {', '.join(map(str, [*tables, *figures]))}")


if __name__ == "__main__":
    run_script(main)
