"""Compare two rankings of the same feature maps: rank correlation, top-k overlap, layers of the top maps."""

import argparse
from pathlib import Path

from fmap_ranking.comparison import Comparison, compare_rankings
from fmap_ranking.figures import plot_comparison, plot_omega_distribution
from fmap_ranking.ranking import read_ranking
from utils.cli import make_parser, parse_architecture, parse_positive, run_script
from utils.files import sha256_file, write_csv, write_provenance

DEFAULT_KS = (114, 27, 10, 1000)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        __doc__ or "",
        "python src/compare_rankings.py fmap_relevances/resnet50/progan_val_0.5/progan_val-fake.csv "
        "fmap_relevances/resnet50/progan_val_0.5/progan_val-real.csv --arch resnet50 --topk 114 27",
    )
    parser.add_argument("first", type=Path, metavar="A.csv", help="ranking")
    parser.add_argument("second", type=Path, metavar="B.csv", help="ranking of the same feature maps")
    parser.add_argument(
        "--topk",
        type=parse_positive,
        nargs="+",
        metavar="K",
        help="sizes of the top sets to compare; the first is the one drawn by layer; "
        f"absent: {' '.join(map(str, DEFAULT_KS))}, as far as there are as many maps",
    )
    parser.add_argument(
        "--arch",
        type=parse_architecture,
        help="check the maps against this architecture and list layers in its order; absent: by name",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("output"), metavar="DIR", help="results")
    return parser.parse_args()


def convolution_layers(arch: str) -> dict[str, int]:
    """Number of output channels of each convolution of an architecture, in order of depth."""
    import torch

    from detectors.networks import build_model

    with torch.device("meta"):
        model = build_model(arch)
    modules = model.named_modules()
    return {name: module.out_channels for name, module in modules if isinstance(module, torch.nn.Conv2d)}


def name_files(first: Path, second: Path) -> tuple[str, str]:
    """The shortest ends of the two paths that differ, without suffix."""
    a, b = first.resolve().with_suffix("").parts, second.resolve().with_suffix("").parts
    for depth in range(1, max(len(a), len(b)) + 1):
        if a[-depth:] != b[-depth:]:
            return "/".join(a[-depth:]), "/".join(b[-depth:])
    return a[-1], b[-1]


def print_table(comparison: Comparison, names: tuple[str, str]) -> None:
    print(f"{names[0]} against {names[1]}: {len(comparison.maps)} feature maps")
    print(f"Spearman correlation {comparison.spearman:.4f}")
    print(f"{'k':>6} {'common':>7} {'overlap':>8} {'by chance':>10}")
    for row in comparison.overlaps:
        print(f"{row.k:>6} {row.common:>7} {row.share:>8.4f} {row.by_chance:>10.4f}")


def write_tables(comparison: Comparison, folder: Path) -> Path:
    table = folder / "comparison.csv"
    write_csv(
        table,
        ("maps", "spearman", "k", "common", "overlap", "overlap_by_chance"),
        [
            (len(comparison.maps), comparison.spearman, row.k, row.common, row.share, row.by_chance)
            for row in comparison.overlaps
        ],
    )
    write_csv(
        folder / "comparison_layers.csv",
        ("k", "layer", "first", "second"),
        [(k, row.layer, row.a, row.b) for k, rows in comparison.layer_shares.items() for row in rows],
    )
    return table


def main() -> None:
    arguments = parse_arguments()
    layers = convolution_layers(arguments.arch) if arguments.arch else None
    first, second = read_ranking(arguments.first, layers), read_ranking(arguments.second, layers)
    size = len(first)
    ks = arguments.topk or [k for k in DEFAULT_KS if k <= size] or [size]
    comparison = compare_rankings(first, second, ks)
    names = name_files(arguments.first, arguments.second)
    print_table(comparison, names)

    table = write_tables(comparison, arguments.output_dir)
    write_provenance(
        table,
        inputs={str(path): sha256_file(path) for path in (arguments.first, arguments.second)},
        maps=size,
        topk=ks,
    )
    figures = plot_comparison(comparison, arguments.output_dir / "comparison", ks[0], names)
    rankings = dict(zip(names, (first, second), strict=True))
    figures += plot_omega_distribution(rankings, arguments.output_dir / "omega", ks[0])
    print(f"wrote {', '.join(map(str, [table, *figures]))}")


if __name__ == "__main__":
    run_script(main)
