"""The published experiments by their names: `--config gp1-gan-winversion`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_CELEBAHQ = "dataset/faces/celebahq"
_FACEFORENSICS = "dataset/faces/faceforensics_aligned"
_METHODS = {"df": "Deepfakes", "nt": "NeuralTextures", "fs": "FaceSwap", "f2f": "Face2Face"}
_INVERTED = (f"{_CELEBAHQ}/inverted_and_unpaired_real", f"{_CELEBAHQ}/inverted_and_unpaired_fake")
_SUFFIX = "seed{seed}_{which_model_netD}_{lr_policy}_p{patience}"
# Networks with less depth were given more time.
_PATIENCE = {"xception_block1": 50, "xception_block2": 20}
_OTHER_PATIENCE = 10


@dataclass(frozen=True)
class Experiment:
    """What a published training was about.

    Attributes:
        real, fake: Folders with `train` and `val`.
        flags: Besides those of every published training.
        suffix: Added to the suffix of the name.
        size: Pixels that images are scaled to, if not those of the crop.
    """

    real: str
    fake: str
    flags: tuple[str, ...] = ()
    suffix: str = ""
    size: int | None = None


EXPERIMENTS = {
    "gp1-gan-winversion": Experiment(*_INVERTED),
    "gp1a-gan-winversion": Experiment(*_INVERTED, ("--random_resized_crop",), "_randresizecrop", 333),
    "gp1b-gan-winversion": Experiment(*_INVERTED, ("--random_crop",), "_randcrop", 333),
    "gp1c-gan-invonly": Experiment(f"{_CELEBAHQ}/inverted_real", f"{_CELEBAHQ}/inverted_fake"),
    "gp1d-gan-samplesonly": Experiment(
        f"{_CELEBAHQ}/real-tfr-1024-resized128", f"{_CELEBAHQ}/pgan-pretrained-128-png", ("--no_serial_batches",)
    ),
    **{
        f"gp{number}-faceforensics-{short}": Experiment(
            f"{_FACEFORENSICS}/{method}/original", f"{_FACEFORENSICS}/{method}/manipulated"
        )
        for number, (short, method) in enumerate(_METHODS.items(), start=2)
    },
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
    place = next((n for n, word in enumerate(words[:-1]) if word == "--config" and words[n + 1] in EXPERIMENTS), None)
    if place is None:
        return words
    name = words[place + 1]
    network = next((after for word, after in pairwise(words) if word == "--which_model_netD"), None)
    return [*experiment_flags(name, network or "xception_block1"), *words[:place], *words[place + 2 :]]


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
    return [*(word for flag, value in given.items() for word in (f"--{flag}", str(value))), *experiment.flags]
