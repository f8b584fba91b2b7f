"""The published experiments by their names: `--config gp1-gan-winversion`."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from utils.files import CODE_ROOT
from utils.tables import read_rows

KNOWN = CODE_ROOT / "patch_forensics" / "known"
"""Published experiments, groups of data sets, and labels of faces, a CSV each."""
_SUFFIX = "seed{seed}_{which_model_netD}_{lr_policy}_p{patience}"
# Networks with less depth were given more time.
_PATIENCE = {"xception_block1": 50, "xception_block2": 20}
_OTHER_PATIENCE = 10


@dataclass(frozen=True)
class Experiment:
    """What a published training was about: a row of `experiments.csv`.

    Attributes:
        real, fake: Folders with `train` and `val`.
        flags: Besides those of every published training.
        suffix: Added to the suffix of the name.
        size: Pixels that images are scaled to, if not those of the crop.
    """

    name: str
    real: str
    fake: str
    flags: str
    suffix: str
    size: int | None


EXPERIMENTS = {
    row.name: row for row in read_rows(KNOWN / "experiments.csv", Experiment, made_by="a new copy of the project")
}
"""By name; each was run with xception_block1 to 5, some also with the networks of `BASELINES`."""
BASELINES = {
    "resnet18": "baseline_resnet18_full",
    "xception": "baseline_xception_full",
    "resnet18_layer1": "baseline_resnet18_layer1",
}
"""Suffixes of their names."""


def with_experiment(words: Sequence[str]) -> list[str]:
    """A command line in which `--config <name of an experiment>` is replaced by its flags, before the others."""
    words = list(words)
    at = next((n for n, word in enumerate(words[:-1]) if word == "--config" and words[n + 1] in EXPERIMENTS), None)
    if at is None:
        return words
    name = words[at + 1]
    network = next((after for word, after in pairwise(words) if word == "--which_model_netD"), None)
    return [*experiment_flags(name, network or "xception_block1"), *words[:at], *words[at + 2 :]]


def experiment_flags(name: str, network: str) -> list[str]:
    """The flags of a published training with a network."""
    experiment, baseline = EXPERIMENTS[name], BASELINES.get(network)
    size = 224 if network.startswith("resnet") else 299
    given = {
        "real_im_path": experiment.real,
        "fake_im_path": experiment.fake,
        "model": "patch_discriminator" if "_" in network else "basic_discriminator",
        "which_model_netD": network,
        "name": name,
        "suffix": baseline or _SUFFIX + experiment.suffix,
        "loadSize": experiment.size or size,
        "fineSize": size,
        "patience": _OTHER_PATIENCE if baseline else _PATIENCE.get(network, _OTHER_PATIENCE),
        "max_epochs": 1000,
    }
    return [*(word for flag, value in given.items() for word in (f"--{flag}", str(value))), *experiment.flags.split()]
