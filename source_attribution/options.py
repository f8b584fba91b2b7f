"""Flags of source attribution. Imports nothing slow, so that `--help` is quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utils.errors import UserError
from utils.settings import count, flag, plain_name, positive, positive_number, rate

ModelType = Literal["det", "att"]
ModelClass = Literal["default", "notl", "gdaconv", "postpool"]
Input = Literal["pixel", "grey", "dct"]
Augmentation = Literal["none", "blur", "crop", "jpeg", "noise", "multi"]
_SIDE = 128


@dataclass(frozen=True)
class Spectra:
    """Spectra as input.

    Attributes:
        dct: Needs `normstats` with weights that do not hold the statistics themselves (.h5).
    """

    dct: bool = flag(False, "the network reads grey log spectra", short="f")
    normstats: Path | None = flag(
        None, "folder of mean.npy and std_dev.npy of spectra; absent: of the network, or the images", metavar="DIR"
    )


@dataclass(frozen=True)
class Asking(Spectra):
    """Reading of images."""

    batch_size: int = flag(256, "images of a step, or in a batch", parse=positive, short="b")
    device: str = flag("auto", "auto: a GPU if there is one", metavar="auto|cpu|cuda|cuda:N")
    num_workers: int = flag(0, "processes that decode images", parse=count, recorded=False)
    skip_bad_images: bool = flag(False, "leave out images that cannot be used, and report them")
    threshold: float | None = flag(
        None, "att: attribute from this probability on; absent: as calibrated in training, else 0.5", parse=rate
    )


@dataclass(frozen=True)
class LooseAttribution(Asking):
    """Attribution of loose images."""

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
    look: Literal["signed", "published"] = flag(
        "signed", "of maps: evidence for (orange) and against (purple), or as published"
    )

    def __post_init__(self) -> None:
        if self.model_type == "det" and self.source:
            raise UserError("--source is for att: det asks whether an image is generated, not by which source")
        if self.model_type == "det" and self.threshold is not None:
            raise UserError("--threshold is for att: det calls an image generated from 0.5 on")


@dataclass(frozen=True)
class Attributing(Asking):
    """Source attribution.

    Names, letters and meanings of the flags are those of the published `classifier.py`, as far as it has them. What
    it needs to be told of a data set and is found out here (`num_sources`, `num_real_sources`) is checked if given.

    Attributes:
        first: Training images, or the network to test.
        second: Validation images, or test images.
    """

    model_type: ModelType = flag("det", "det: real or generated; att: by which source", positional=True)
    action: Literal["train", "test"] = flag("train", "train a network, or test it", positional=True)
    first: Path = flag(Path(), "training images, or the network to test", positional=True, metavar="TRAIN_OR_MODEL")
    second: Path = flag(Path(), "validation images, or test images", positional=True, metavar="VAL_OR_TEST")
    model_class: ModelClass = flag(
        "default", "default: primary and secondaries; notl: no transfer; two baselines", short="c"
    )
    greyscale: bool = flag(False, "the network reads grey pixels", short="g")
    seed: int = flag(2021, "of weights, order and augmentation", parse=count, short="s", metavar="N")
    source: str | None = flag(None, "att: the source of interest", short="l", metavar="NAME")
    multiclass: bool = flag(False, "att: all sources; default: a secondary each, trained together")
    source_list: Path | None = flag(None, "CSV of source,number from 1 on: which, in what order", short="u")
    arch_level: bool = flag(False, "sources are the same if their names are up to the first _")
    folders: tuple[str, ...] = flag((), "source folders of the data to use; absent: all", metavar="NAME")
    num_sources: int | None = flag(None, "how many sources the data must have", parse=positive, short="n")
    num_real_sources: int | None = flag(None, "how many of real images", parse=positive, short="o")
    train_size: int | None = flag(
        None, "first N training (or test) images of each source; absent: all", parse=positive, short="t"
    )
    val_size: int | None = flag(None, "first N validation images of each; absent: all", parse=positive, short="v")
    test_size: int | None = flag(None, "first N test images of each; absent: all", parse=positive)
    real_size_factor: float = flag(1.0, "times as many real images", parse=positive_number, short="r")
    image_size: int = flag(_SIDE, "side of the squares that a new network reads, pixels", parse=positive, short="i")
    allow_growth: bool = flag(False, "accepted, and means nothing here", short="a", recorded=False)

    def __post_init__(self) -> None:
        if self.dct and self.greyscale:
            raise UserError("--dct and --greyscale exclude each other: spectra are grey anyway")
        if self.model_type == "det" and (self.source or self.multiclass):
            raise UserError("--source and --multiclass are for att: det tells real from generated")
        if self.threshold is not None and (self.model_type == "det" or self.action == "train"):
            raise UserError("--threshold is for att test: training calibrates one with --most_false")
        if self.multiclass and (self.source or self.arch_level):
            raise UserError("--multiclass excludes --source and --arch_level: it is about all sources as they are")
        if self.model_type == "att" and self.action == "train" and not (self.source or self.multiclass):
            raise UserError("att train needs to know the source: give --source NAME, or --multiclass")
        if self.image_size % 8 or self.image_size < 16:
            raise UserError(f"--image_size {self.image_size}: use a multiple of 8 from 16 on")

    @property
    def input(self) -> Input:
        """What a new network reads."""
        return "dct" if self.dct else "grey" if self.greyscale else "pixel"


@dataclass(frozen=True)
class AttributionTraining:
    """Training.

    Attributes:
        learning_rate: By default as documented, 1e-3 for detection and baselines, 1e-4 for secondaries.
    """

    det_model: Path | None = flag(None, "primary whose first layers secondaries share", metavar="FILE")
    registry: Path | None = flag(
        None, "folder of networks; absent: where --det_model is, else <output_dir>/attribution", metavar="DIR"
    )
    init: Literal["scratch", "high_pass"] = flag(
        "scratch", "scratch: as published, N(0, 0.02); high_pass: for short training on images in colour"
    )
    fixed_norms: bool = flag(
        False, "batch norms use their running statistics in training, too: for a last epoch after small batches"
    )
    zero_bias: bool = flag(False, "no bias in the last layer, so that a yes needs evidence, which can be ranked")
    model: Path | None = flag(
        None, "start from this network, or those of the sources in a folder, not from random weights", short="m"
    )
    model_id: str | None = flag(None, "name of the network; absent: class and type", parse=plain_name, short="j")
    instance_id: str | None = flag(None, "name of the run; absent: that of the network", parse=plain_name, short="k")
    epochs: int = flag(100, "at most", parse=positive, short="e")
    early_stopping: int = flag(5, "epochs without a lower validation loss until training ends", parse=positive)
    learning_rate: float | None = flag(
        None, "of Adam; absent: 1e-3, for secondaries 1e-4", parse=positive_number, metavar="LR"
    )
    schedule: Literal["constant", "cosine"] = flag(
        "constant", "of the learning rate; cosine: rising, then falling to 0 within --epochs, no early stopping"
    )
    class_bal: bool = flag(False, "draw both classes equally often, with replacement (det, and att of one source)")
    pairs: bool = flag(False, "det: a real image and the fake of the same name in one step, where there are such")
    augment: Augmentation = flag(
        "none", "augmentation of training images; multi: each of the four with probability 0.5"
    )
    class_weights: bool = flag(
        False, "att: in the loss a source counts as much as all else, and real images as much as the other sources"
    )
    most_false: float | None = flag(
        None, "att: calibrate, so that at most this share of real images and of others is attributed to it", parse=rate
    )
    debug: bool = flag(False, "accepted, and means nothing here", short="d", recorded=False)

    def __post_init__(self) -> None:
        if self.class_bal and self.class_weights:
            raise UserError("--class_bal and --class_weights exclude each other: both balance the classes")


@dataclass(frozen=True)
class Conversion(Spectra):
    """Conversion of weights."""

    weights: Path = flag(Path(), "Keras weights (.h5), or a network of a registry", positional=True, metavar="FILE")
    output: Path = flag(Path(), "registry folder, or .h5 file", positional=True, metavar="OUT")
    source: str = flag("source", "what the secondary module of an .h5 file attributes to", parse=plain_name)
    name: str | None = flag(None, "of the primary in the registry; absent: that of the file", parse=plain_name)


@dataclass(frozen=True)
class DataPreparation:
    """Data preparation.

    Attributes:
        paths: crop SOURCE OUTPUT; augment INPUT OUTPUT; arrays and statistics FAKE REAL OUTPUT.
    """

    step: Literal["crop", "augment", "arrays", "statistics"] = flag(
        "crop",
        "crop: square images; augment: altered ones; arrays: .npy files; statistics: of spectra",
        positional=True,
    )
    paths: tuple[Path, ...] = flag(
        (), "crop, augment: SOURCE OUTPUT; arrays, statistics: FAKE REAL OUTPUT", positional=True, metavar="DIR"
    )
    resolution: int = flag(_SIDE, "crop: side, pixels", parse=positive)
    amount: int = flag(10000, "crop: first N images by their numbers", parse=positive, short="a")
    celeba: bool = flag(False, "crop: the face of aligned CelebA images, 178x218")
    jpeg_output: bool = flag(False, "crop, augment: JPEG files instead of PNG", short="j")
    mode: Literal["blur", "crop", "jpeg", "noise", "multi", "all"] = flag(
        "multi", "augment: which operations; all: every mode, into one folder"
    )
    size: int | None = flag(None, "augment: first N images of each source; absent: all", parse=positive)
    raw: bool = flag(False, "arrays: pixels instead of spectra", short="r")
    colour: bool = flag(False, "arrays: pixels in colour", short="c")
    log: bool = flag(False, "arrays: logarithm of spectra", short="l")
    abs: bool = flag(False, "arrays: divide by the largest coefficients of half of the training images")
    normalize: bool = flag(False, "arrays: pixels to -1..1; spectra by their statistics", short="n")
    normstats: Path | None = flag(None, "statistics; absent: of the training images", short="p", metavar="DIR")
    seed: int = flag(0, "of all random choices", parse=count, short="s", metavar="N")
    test_only_directory: Path | None = flag(None, "arrays: further fakes for testing", short="t", metavar="DIR")
    full_test_only: bool = flag(False, "arrays: all of these, not the first --test_size of each source")
    train_size: int = flag(20000, "arrays: training images of each source", parse=positive)
    val_size: int = flag(4000, "arrays: validation images of each source", parse=positive)
    test_size: int = flag(6000, "arrays: test images of each source", parse=positive)
    real_factor: float = flag(1.0, "arrays: times as many real images", parse=positive_number)
    input_size_pos: int = flag(7000, "statistics: first N images of each fake source", parse=positive)
    input_size_neg: int = flag(7000, "statistics: first N of each real source", parse=positive)

    def __post_init__(self) -> None:
        wanted = 2 if self.step in ("crop", "augment") else 3
        if len(self.paths) != wanted:
            names = "SOURCE OUTPUT" if wanted == 2 else "FAKE REAL OUTPUT"
            raise UserError(f"{self.step} needs {wanted} folders, {names}: {len(self.paths)} are given")
        if self.celeba and self.resolution != _SIDE:
            raise UserError("--celeba cuts 128x128 pixels: leave out --resolution")
        if self.step == "arrays" and self.raw and (self.log or self.abs):
            raise UserError("--raw excludes --log and --abs, which are for spectra")
        if self.step == "arrays" and self.normalize and not (self.raw or self.log):
            raise UserError("--normalize of spectra is of their logarithms: give --log, too")


@dataclass(frozen=True)
class Overlap:
    """Overlap of sources."""

    rankings: tuple[str, ...] = flag(
        (), "rankings of attribution networks, each NAME=FILE.csv", positional=True, metavar="NAME=FILE"
    )
    topk: int = flag(10, "size of the sets of maps compared", parse=positive)

    def named(self) -> list[tuple[str, Path]]:
        """Names and files.

        Raises:
            UserError: One has no name, two have the same, or there are fewer than two.
        """
        pairs = [text.partition("=") for text in self.rankings]
        if len(pairs) < 2 or not all(name and file for name, _, file in pairs):
            raise UserError("give at least two rankings, each as NAME=FILE.csv")
        if len({name for name, _, _ in pairs}) < len(pairs):
            raise UserError("two rankings have the same name: give each a name of its own")
        return [(name, Path(file)) for name, _, file in pairs]
