"""Flags of source attribution. Imports nothing slow, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utils.errors import UserError
from utils.settings import flag, plain_name, positive

ModelType = Literal["det", "att"]
ModelClass = Literal["default", "notl", "gdaconv", "postpool"]
Input = Literal["pixel", "grey", "dct"]
MODEL_CLASSES: tuple[ModelClass, ...] = ("default", "notl", "gdaconv", "postpool")
_SIDE = 128


@dataclass(frozen=True)
class LooseAttribution:
    """Attribution of loose images.

    Attributes:
        dct: Needs `normstats` with weights that do not hold the statistics themselves (.h5).
    """

    model_type: ModelType = flag("det", "det: real or generated; att: by which source, too", positional=True)
    weights: Path = flag(
        Path(),
        "published weights (.h5), a primary (.safetensors) with the secondaries in the folder of its name, or one of "
        "these secondaries",
        positional=True,
        metavar="WEIGHTS",
    )
    images: Path = flag(Path(), "image, or folder of images", positional=True, metavar="IMAGES")
    output: Path = flag(Path(), "folder of what comes out", positional=True, metavar="OUT")
    source: tuple[str, ...] = flag(
        (),
        "secondaries to ask, all that there are if absent; of an .h5 file the name of its source",
        parse=plain_name,
        metavar="NAME",
    )
    dct: bool = flag(False, "the network reads grey log spectra")
    normstats: Path | None = flag(None, "folder of mean.npy and std_dev.npy of the spectra", metavar="DIR")
    look: Literal["signed", "published"] = flag(
        "signed", "of maps: evidence for (orange) and against (purple), or as published"
    )
    bsize: int = flag(32, "images in a batch", parse=positive)
    device: str = flag("auto", "auto: a GPU if there is one", metavar="auto|cpu|cuda|cuda:N")
    num_workers: int = flag(0, "processes that decode images", parse=int, recorded=False)
    skip_bad_images: bool = flag(False, "leave out images that cannot be decoded, and report them")

    def __post_init__(self) -> None:
        if self.model_type == "det" and self.source:
            raise UserError("--source is for att: det asks whether an image is generated, not by which source")
