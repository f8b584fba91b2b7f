"""The top k maps that an experiment is about."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fmap_ranking.locate import find_ranking
from fmap_ranking.options import RankingChoice
from fmap_ranking.ranking import Ranking, read_ranking
from fmap_ranking.topk import default_topk
from passes.analysis import Subject
from utils.files import sha256_file


@dataclass(frozen=True)
class RankedMaps:
    """A ranking that was found for a detector, and how many of its maps are the top k."""

    path: Path
    ranking: Ranking
    k: int
    warning: str = ""

    @cached_property
    def sha256(self) -> str:
        """Digest of the file."""
        return sha256_file(self.path)


def ranked_maps(subject: Subject, choice: RankingChoice) -> RankedMaps:
    """The ranking that the settings name, or that belongs to the detector, and k.

    Raises:
        UserError: There is none, it is of another network or checkpoint, or k is out of range.
    """
    detector = subject.detector
    path = find_ranking(
        detector.arch,
        subject.gan_name,
        subject.tag,
        relevances=choice.relevances,
        output_dir=subject.run.output_dir,
    )
    ranking = read_ranking(path, detector.feature_maps().layers)
    k = choice.topk or default_topk(detector.arch, len(ranking))
    ranking.top_k(k)
    return RankedMaps(path, ranking, k)
