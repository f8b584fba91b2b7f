"""Files of a ranking: the CSVs, what stands behind them, and the figures drawn from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

from fmap_ranking.collector import RelevanceCollector
from fmap_ranking.figures import plot_layer_summary, plot_omega_distribution
from fmap_ranking.ranking import LayerSummary, Ranking, default_ranking_path, read_ranking
from utils.files import write_csv, write_provenance


@dataclass(frozen=True)
class RankingFiles:
    """Where the files of one generator's rankings lie.

    Attributes:
        root: Folder of all rankings, e.g. `fmap_relevances`.
        arch: Canonical name of the architecture.
        gan_name: Image set the ranking is of.
        tag: Augmentation tag of the detector.
    """

    root: Path
    arch: str
    gan_name: str
    tag: str

    def ranking(self, label: str) -> Path:
        """The ranking of a label, in the published format."""
        return default_ranking_path(self.arch, self.gan_name, self.tag, label, self.root)

    @property
    def folder(self) -> Path:
        """Folder of this generator."""
        return self.ranking("fake").parent

    @property
    def samples(self) -> Path:
        """Which images were looked at and used."""
        return self.folder / f"{self.gan_name}-samples.csv"

    @property
    def state(self) -> Path:
        """Saved state of an interrupted run."""
        return self.folder / f".{self.gan_name}-state.npz"

    def layers(self, label: str) -> Path:
        """Per-layer summary of a ranking."""
        return self.folder / f"{self.gan_name}-{label}-layers.csv"

    def errors(self, label: str) -> Path:
        """Standard error of omega, map by map in the order of the ranking."""
        return self.folder / f"{self.gan_name}-{label}-standard_errors.csv"


def write_rankings(
    files: RankingFiles,
    collector: RelevanceCollector,
    labels: Sequence[str],
    topk: int,
    *,
    seed: int,
    device: object,
    inputs: Mapping[str, str],
    **facts: object,
) -> dict[str, Ranking]:
    """Write ranking, standard errors, layer summary and provenance of each label, and the table of images.

    Returns:
        The rankings by label.
    """
    counts = collector.counts()
    rankings: dict[str, Ranking] = {}
    write_csv(files.samples, ("path", "label", "probability", "used"), collector.samples())
    for label in labels:
        statistic = collector.statistics[label]
        ranking = statistic.result()
        ranking.check()
        rankings[label] = ranking
        write_csv(
            files.layers(label),
            [entry.name for entry in fields(LayerSummary)],
            [astuple(row) for row in ranking.per_layer_summary(topk)],
        )
        error_of = dict(
            zip(
                ((name, index) for name, channels in statistic.layers for index in range(channels)),
                statistic.standard_error(),
                strict=True,
            )
        )
        write_csv(
            files.errors(label),
            ("key", "standard_error"),
            [(fmap.key, error_of[fmap.layer, fmap.index]) for fmap in ranking.maps],
        )
        ranking.write(files.ranking(label))
        write_provenance(
            files.ranking(label),
            seed=seed,
            device=device,
            inputs=inputs,
            label=label,
            counts=asdict(counts[label]),
            zero_relevance=statistic.zero_relevance,
            topk=topk,
            **facts,
        )
    return rankings


def draw_rankings(files: RankingFiles, labels: Sequence[str], topk: int, layers: Mapping[str, int]) -> list[Path]:
    """Draw the omega distribution of the labels together, and relevance by layer, from the files written."""
    rankings = {label: read_ranking(files.ranking(label), layers) for label in labels}
    named = {f"{files.gan_name}, {label}": ranking for label, ranking in rankings.items()}
    pictures = plot_omega_distribution(named, files.folder / f"{files.gan_name}-omega", topk)
    for label, ranking in rankings.items():
        title = f"{files.arch}, {files.gan_name}, {label}"
        pictures += plot_layer_summary(ranking, files.folder / f"{files.gan_name}-{label}-layers", topk, title)
    return pictures
