"""The ranking that a run is about: the one named, one that is there, or a new one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fmap_ranking.outputs import RankingFiles
from fmap_ranking.run import rank_images, ranking_origin
from fmap_ranking.topk import default_topk

from detectors.explaining import make_explainer
from fmap_ranking.collector import Confidence
from fmap_ranking.ranking import default_ranking_path
from images.sets import ImageSet
from passes.processes import Ranks
from reproduction.settings import Subject, images_to_rank_on
from utils.errors import UserError
from utils.files import PROJECT_ROOT, is_made_from, read_provenance

_LABEL = "fake"


@dataclass(frozen=True)
class RankingUsed:
    """A ranking, and where it comes from in a few words."""

    path: Path
    origin: str


def find_or_rank(subject: Subject, image_sets: Mapping[str, ImageSet], announce: Callable[[str], None]) -> RankingUsed:
    """The ranking named with --relevances, else one of the same detector that is there, else a new one by FF-RS.

    Args:
        subject: The detector.
        image_sets: Images of the run by generator.
        announce: Called with what is going to be computed.

    Raises:
        UserError: There is nothing to rank.
    """
    args, detector = subject.args, subject.detector
    if args.relevances is not None:
        return RankingUsed(args.relevances, "named with --relevances")
    name, image_set = images_to_rank_on(args, image_sets)
    ours = RankingFiles(args.output_dir / "fmap_relevances", subject.arch, name, subject.tag)
    # Rankings are computed on crops, as published; all else is about whole images.
    ranking_args = argparse.Namespace(**{**vars(args), "crop": args.rank_crop})
    inputs, facts = ranking_origin(ranking_args, name, image_set, detector, Confidence())
    found = RankingUsed(ours.ranking(_LABEL), f"FF-RS on the fakes of {name}")
    if is_made_from(found.path, inputs, {**facts, "seed": args.seed}):
        return found
    shipped = default_ranking_path(subject.arch, name, subject.tag, _LABEL, PROJECT_ROOT / "fmap_relevances")
    record = read_provenance(shipped)
    if shipped.is_file() and (not record or record.get("inputs", {}).get("weights") == detector.sha256):
        doubt = "" if record else "; the file does not say which checkpoint it was made with"
        return RankingUsed(shipped, f"FF-RS on the fakes of {name}, read from fmap_relevances/{doubt}")
    announce(f"ranking all feature maps by FF-RS on {len(image_set)} images of {name}")
    explainer = make_explainer(ranking_args, detector)
    maps = sum(channels for _, channels in explainer.layers)
    topk = min(args.topk or default_topk(subject.arch, maps), maps)
    made = rank_images(ranking_args, ours, image_set, detector, explainer, Confidence(), topk, Ranks())
    if made is None or _LABEL not in made.labels:
        raise UserError(
            f"{name}: no fake is recognised with p(fake) of at least {Confidence().fake:g}, so there is no ranking "
            "for fakes: check the checkpoint, give other images with --rank_on, or a ranking with --relevances"
        )
    return found
