"""Which ranking an experiment reads if nobody says."""

from __future__ import annotations

from pathlib import Path

from fmap_ranking.ranking import default_ranking_path
from utils.files import PROJECT_ROOT

# The paper finds forensic features on the ProGAN validation set and looks for them in every other generator.
PAPER_GENERATOR = "progan_val"


def find_ranking(
    arch: str,
    gan_name: str,
    tag: str,
    *,
    relevances: Path | None = None,
    output_dir: Path | None = None,
    label: str = "fake",
) -> Path:
    """The ranking file to read: the one named, else that of `progan_val`, else that of the generator itself.

    Each is looked for below `<output_dir>/fmap_relevances` and then below the project's `fmap_relevances`. The path
    returned need not exist: reading it then says how to make it.

    Args:
        arch: canonical architecture name.
        gan_name: generator that the experiment is about.
        tag: augmentation tag of the detector.
        relevances: what the user named, if anything.
        output_dir: where this and earlier runs write.
        label: `fake` or `real`.
    """
    if relevances is not None:
        return relevances
    roots = [PROJECT_ROOT / "fmap_relevances"]
    if output_dir is not None:
        roots.insert(0, output_dir / "fmap_relevances")
    places = [
        default_ranking_path(arch, name, tag, label, root) for name in (PAPER_GENERATOR, gan_name) for root in roots
    ]
    return next((path for path in places if path.exists()), places[-1])
