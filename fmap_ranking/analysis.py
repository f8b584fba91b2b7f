"""The ranking of a detector's feature maps by FF-RS on an image set: rankings, what stands behind them, pictures."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from detectors.checkpoints import save_tensors
from fmap_ranking.collector import RelevanceCollector
from fmap_ranking.figures import plot_layer_summary, plot_omega_distribution
from fmap_ranking.options import LABELS, RankingOptions
from fmap_ranking.ranking import Ranking, default_topk, read_ranking
from images.sets import ImageItem, ImageSet
from passes.analysis import Analysis, Subject
from passes.one_pass import PassReport
from passes.shared_forward import SharedForward
from utils.errors import UserError
from utils.figures import save_picture
from utils.files import safe_join
from utils.heatmaps import overlay, render_heatmap
from utils.provenance import describes, read_record, remove_with_record
from utils.tables import write_rows


@dataclass(frozen=True)
class MapError:
    """Standard error of a map's omega over the images; NaN of one image."""

    key: str
    standard_error: float


class RankFeatureMaps(Analysis[RankingOptions]):
    """Step 1: a ranking for each label, in the published format.

    Raises:
        UserError: The detector cannot be explained, or has fewer maps than are to be marked.
    """

    name = "ranking"

    def __init__(self, subject: Subject, options: RankingOptions) -> None:
        super().__init__(subject, options)
        self._ranked: Sequence[str] = ()
        self._explainer = options.of(subject.detector, published=subject.run.published)
        maps = sum(channels for _, channels in self._explainer.layers)
        self._topk = options.topk or default_topk(subject.detector.arch, maps)
        if self._topk > maps:
            raise UserError(
                f"--topk {self._topk} is more than the {maps} feature maps of {subject.detector.arch}: "
                f"choose 1 to {maps}"
            )

    @classmethod
    def labels_for(cls, options: RankingOptions) -> Collection[int]:
        """Labels of the images that are ranked for."""
        return sorted(LABELS[label] for label in options.labels)

    def inputs(self) -> dict[str, str]:
        """The weights put into the explained network, if any."""
        return self.options.inputs()

    def facts(self) -> dict[str, object]:
        """How relevance is propagated, which images count, and what is written."""
        options = self.options
        return {
            "labels": sorted(options.labels),
            "rule": options.rule,
            "fake_confidence": options.fake_confidence,
            "real_confidence": options.real_confidence,
            "topk": self._topk,
            "save_pt_files": options.save_pt_files,
        }

    @property
    def outputs(self) -> list[Path]:
        """The images looked at; of each label that has images that count ranking, summary by layer, standard errors."""
        return [self._samples, *(path for label in self._labels_ranked() for path in self._tables(label))]

    def collector(self, forward: SharedForward, images: ImageSet) -> RelevanceCollector:
        """FF-RS of the images that count."""
        options = self.options
        keep = self._keep if options.save_pt_files else None
        return RelevanceCollector(forward, self._explainer, images, options, options.labels, keep)

    def check_overwriting(self) -> None:
        """Refuse to replace a ranking of unknown origin, such as a published one, or of other images."""
        inputs = self.origin().plain()["inputs"]
        for path in map(self._ranking, self.options.labels):
            record = read_record(path)
            if not path.is_file() or (describes(record, path) and record.get("inputs") == inputs):
                continue
            what = "was made from other images" if describes(record, path) else "is of unknown origin"
            raise UserError(f"{path} {what} and would be lost: give --overwrite to replace it, or another --output_dir")

    def write(self, collector: RelevanceCollector, report: PassReport) -> dict[str, object]:
        """Write the tables of every label that has images that count, and remove those of the others.

        Raises:
            UserError: No image counts, or no feature map has any relevance.
        """
        counts = collector.counts()
        self._ranked = [label for label in self.options.labels if counts[label].used]
        if not self._ranked:
            seen = ", ".join(f"0 of {entry.images} {label} images" for label, entry in counts.items())
            raise UserError(
                f"no image is classified correctly with enough confidence ({seen}), so there is nothing to rank: "
                "check the checkpoint, or relax --fake_confidence and --real_confidence"
            )
        rankings = {label: collector.statistics[label].result() for label in self._ranked}
        for ranking in rankings.values():
            ranking.check()
        for label in set(self.options.labels) - set(self._ranked):
            for path in self._tables(label):
                remove_with_record(path)
        write_rows(self._samples, collector.samples())
        for name, ranking in rankings.items():
            path, layers, errors = self._tables(name)
            ranking.write(path)
            write_rows(layers, ranking.per_layer_summary(self._topk))
            by_map = collector.statistics[name].standard_errors()
            write_rows(errors, [MapError(fmap.key, by_map[fmap]) for fmap in ranking.maps])
        return {
            "counts": {label: asdict(entry) for label, entry in counts.items()},
            "ranked": self._ranked,
            "zero_relevance": {label: collector.statistics[label].zero_relevance for label in self._ranked},
        }

    def draw(self) -> list[Path]:
        """The omega distribution of the labels together, and relevance by layer of each."""
        if not self.options.figures:
            return []
        rankings = self._read()
        named = {f"{self.gan_name}, {label}": ranking for label, ranking in rankings.items()}
        pictures = plot_omega_distribution(named, self._picture("omega"), self._topk)
        for label, ranking in rankings.items():
            title = f"{self.layout.arch}, {self.gan_name}, {label}"
            pictures += plot_layer_summary(ranking, self._picture(f"{label}-layers"), self._topk, title)
        return pictures

    def drawing_settings(self) -> dict[str, object]:
        """Whether there are figures at all."""
        return {"figures": self.options.figures}

    def messages(self) -> list[str]:
        """How many images counted, and the first map of each ranking."""
        options = self.options
        rules = {"fake": f"p(fake) >= {options.fake_confidence:g}", "real": f"p(fake) <= {options.real_confidence:g}"}
        lines = [
            f"{self.gan_name}: {counts['used']} of {counts['images']} {label} images used "
            f"({counts['correct']} classified correctly; used are those with {rules[label]})"
            for label, counts in self.notes()["counts"].items()
        ]
        for label, ranking in self._read().items():
            first = f"first {ranking.maps[0].key} with omega {ranking.values[0]:.4f}"
            lines.append(f"{self._ranking(label)}: {len(ranking):,} maps, {first}")
        return lines

    def numbers(self) -> dict[str, float]:
        """How many images of each label were looked at, were correct, and counted."""
        counts = self.notes()["counts"]
        return {f"{label}/{key}": counts[label][key] for label in self._labels_ranked() for key in counts[label]}

    @property
    def _samples(self) -> Path:
        return self.layout.ranking_table(self.gan_name, "samples")

    def _ranking(self, label: str) -> Path:
        return self.layout.ranking(self.gan_name, label)

    def _tables(self, label: str) -> list[Path]:
        beside = [self.layout.ranking_table(self.gan_name, f"{label}-{what}") for what in ("layers", "standard_errors")]
        return [self._ranking(label), *beside]

    def _picture(self, what: str) -> Path:
        return self.layout.rankings(self.gan_name) / f"{self.gan_name}-{what}"

    def _labels_ranked(self) -> list[str]:
        """Labels that have a ranking, as the last run found; before any run all that are wanted."""
        ranked = self._ranked or read_record(self._samples).get("ranked", self.options.labels)
        return [label for label in self.options.labels if label in ranked]

    def _read(self) -> dict[str, Ranking]:
        layers = dict(self._explainer.layers)
        return {label: read_ranking(self._ranking(label), layers) for label in self._labels_ranked()}

    def _keep(self, item: ImageItem, image: np.ndarray, relevance: np.ndarray, probability: float) -> None:
        """Write the relevance of an image (H, W) and a picture of it over the image (H, W, 3) uint8.

        The .pt file holds a dict of plain values, readable with `torch.load(..., weights_only=True)`: `relevance`
        (H, W) float32, summed over RGB and positive where it speaks for the image's label, `probability` (p(fake)) and
        `label`.
        """
        path = safe_join(self.layout.relevance_maps(self.gan_name), f"{item.name}.pt")
        content = {"relevance": torch.from_numpy(relevance.copy()), "probability": probability, "label": item.label}
        save_tensors(path, content)
        save_picture(path.with_suffix(".png"), overlay(image, render_heatmap(relevance)))
