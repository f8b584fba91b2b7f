"""Flags of the scripts, spelt as in the published commands. Imports nothing slow, so that `--help` is quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from passes.options import RunOptions
from utils.errors import UserError
from utils.settings import count, flag, plain_name, positive, positive_number, share

Model = Literal["patch_discriminator", "basic_discriminator"]
AverageMode = Literal["vote", "before_softmax", "after_softmax"]

PATCHES, WHOLE = "patch_discriminator", "basic_discriminator"
RESULTS, CHECKPOINTS = RunOptions(output_dir=Path("results")), RunOptions(output_dir=Path("checkpoints"))
"""Where the published scripts write, too."""
_SIZES = {"xception": (333, 299), "resnet": (256, 224)}
_OTHER_SIZES = (256, 256)


@dataclass(frozen=True)
class _Where:
    max_dataset_size: int | None = flag(None, "first N images of each folder; 0 or absent: all", parse=count)
    gpu_ids: str | None = flag(None, "-1: CPU; else the number of a GPU; absent: --device", metavar="N", recorded=False)
    device: str = flag("auto", "auto: a GPU if there is one", metavar="auto|cpu|cuda|cuda:N")

    @property
    def chosen_device(self) -> str:
        """The device, by its published number if that is given."""
        if self.gpu_ids is None:
            return self.device
        first = self.gpu_ids.split(",")[0].strip()
        return "cpu" if first == "-1" else f"cuda:{first}"


@dataclass(frozen=True)
class _Images(_Where):
    real_im_path: Path = flag(None, "folder of real images; in training with train/ and val/ in it", metavar="DIR")
    fake_im_path: Path = flag(None, "the same of fake images", metavar="DIR")
    fake_class_id: int | None = flag(None, "which class is fake; absent: as trained", metavar="0|1")
    loadSize: int | None = flag(
        None,
        "pixels that the shorter side is scaled to; patch classifiers are tested on the central square of this side; "
        "0: images of any size as they are; absent: as trained, in training 333 of an Xception, else 256",
        parse=count,
    )
    fineSize: int | None = flag(
        None,
        "side of the crop in training, and of whole-image classifiers; absent: as trained, in training 299 of an "
        "Xception, 224 of a ResNet, else 256",
        parse=positive,
    )
    nThreads: int | None = flag(
        None, "decoding processes; absent: as many as are useful", parse=count, recorded=False, metavar="N"
    )
    skip_bad_images: bool = flag(False, "leave out images that cannot be used, and report them")
    required: ClassVar[tuple[str, ...]] = ("real_im_path", "fake_im_path")

    def __post_init__(self) -> None:
        for name in self.required:
            if getattr(self, name) is None:
                raise UserError(f"--{name} is missing: give it")
        if self.fake_class_id not in (None, 0, 1):
            raise UserError(f"--fake_class_id {self.fake_class_id}: use 0 or 1")


@dataclass(frozen=True)
class TestedRun(_Images):
    """Classifier and images.

    What is absent here is taken from the `opt.yml` of the training, as the published scripts do it.
    """

    __test__ = False  # for pytest

    train_config: Path = flag(None, "opt.yml of a training, published or ours; the weights lie beside it")
    which_epoch: str = flag(
        "latest", "weights <which_epoch>_net_D.pth: bestval, latest or a number", parse=plain_name, metavar="TAG"
    )
    partition: str = flag("val", "part of the data: a name of an output folder", parse=plain_name, metavar="NAME")
    dataset_name: str = flag(None, "of the images, in output folders", parse=plain_name, metavar="NAME")
    results_dir: Path | None = flag(None, "published name of --output_dir", metavar="DIR")
    model: Model | None = flag(None, "whether patches or whole images are classified; absent: as trained")
    which_model_netD: str | None = flag(None, "network; absent: as trained", metavar="NAME")
    batch_size: int | None = flag(None, "images in a batch; absent: as trained", parse=positive)
    name: str | None = flag(None, "of the run, in output folders; absent: as trained", parse=plain_name)
    force_redo: bool = flag(False, "published name of --overwrite", recorded=False)
    test_flip: bool = flag(False, "mirror all images")
    test_compression: int = flag(0, "JPEG quality that all images are compressed at; 0: none", parse=count)
    test_blur: int = flag(0, "side of the box that all images are blurred by, pixels; 0: none", parse=count)
    test_gamma: int = flag(0, "exponent of all images' brightness, percent; 0: none", parse=count)
    required: ClassVar[tuple[str, ...]] = ("train_config", "dataset_name", *_Images.required)

    def __post_init__(self) -> None:
        super().__post_init__()
        # the published README has it so, too
        object.__setattr__(self, "which_epoch", self.which_epoch.replace("best_val", "bestval"))
        if self.test_compression > 100:
            raise UserError(f"--test_compression {self.test_compression}: use a JPEG quality from 1 to 100")


@dataclass(frozen=True)
class PatchTest(TestedRun):
    """Classifier and images."""

    average_mode: AverageMode | None = flag(None, "which average over the patches orders the heat maps")
    visualize: bool = flag(False, "heat maps of the hardest and easiest images of both kinds")
    topn: int = flag(100, "so many of each", parse=positive)
    bootstrap: int = flag(1000, "redraws of images for intervals", parse=positive)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.visualize and self.average_mode is None:
            raise UserError("--visualize needs --average_mode vote, before_softmax or after_softmax: give one")


@dataclass(frozen=True)
class TopPatchOptions(TestedRun):
    """Classifier and images."""

    topn: int = flag(100, "so many patches of each class", parse=positive)
    unique: bool = flag(False, "at most one patch of each image")


@dataclass(frozen=True)
class PatchTraining(_Images):
    """Training of a classifier."""

    model: Model = flag("patch_discriminator", "whether patches or whole images are classified")
    which_model_netD: str = flag(
        "xception_block2",
        "network: xception_block1 to 12, resnet18_layer1, longxception, ...; of whole images xception, resnet18, ...",
        metavar="NAME",
    )
    fake_class_id: int = flag(0, "which class is fake", metavar="0|1")
    init_type: Literal["xavier", "normal", "kaiming", "orthogonal", "high_pass"] = flag(
        "xavier", "distribution of random weights; high_pass, not published, is for short training (docs/training.md)"
    )
    random_crop: bool = flag(False, "crop at random; else at the centre")
    random_resized_crop: bool = flag(False, "crop 8 to 100 %% of the area at random, and scale it")
    no_flip: bool = flag(False, "mirror no images; else half of them")
    cnn_detection_augment: float | None = flag(
        None, "probability of a 3x3 box blur and of JPEG, each on its own", parse=share, metavar="P"
    )
    color_augment: bool = flag(False, "change brightness, contrast, gamma and local contrast, each of half the images")
    all_augment: bool = flag(False, "all of these alterations, each of half the images")
    no_serial_batches: bool = flag(False, "pair each real image with a random fake; else in the order of names")
    pairs: bool = flag(False, "alter a real image and the fake beside it alike, if they are equally large")
    batch_size: int = flag(32, "images of a step, half of them real", parse=positive)
    lr: float = flag(1e-3, "learning rate of Adam", parse=positive_number)
    beta1: float = flag(0.9, "of Adam", parse=share)
    lr_policy: Literal["constant", "plateau", "cosine"] = flag(
        "constant",
        "plateau: a tenth after more than --patience epochs without progress; cosine, not published: rising, then "
        "falling to 0 within --epochs",
    )
    patience: int = flag(10, "training ends after 5 N epochs without a better validation", parse=positive)
    max_epochs: int | None = flag(None, "end at the first epoch beyond N that is no better", parse=count)
    epochs: int | None = flag(None, "end after N epochs in any case", parse=positive)
    name: str = flag("{model}_{which_model_netD}_size{fineSize}", "of the run; may name other flags in braces")
    prefix: str = flag("", "before the name; the same")
    suffix: str = flag("", "behind the name; the same", metavar="TEXT")
    checkpoints_dir: Path | None = flag(None, "published name of --output_dir", metavar="DIR")
    print_freq: int = flag(100, "steps between rows of the log", parse=positive)
    save_latest_freq: int = flag(1000, "steps between checkpoints", parse=positive)
    save_epoch_freq: int = flag(100, "accepted; the last and the best epoch are kept", parse=positive)
    display_freq: int = flag(1000, "accepted; curves are drawn at the end", parse=positive)
    export_fp16: bool = flag(False, "write final.safetensors in float16, too")
    load_model: bool = flag(False, "published name of --resume", recorded=False)
    which_epoch: Literal["latest"] = flag("latest", "of --load_model", recorded=False)
    overwrite_config: bool = flag(False, "accepted with --load_model; --overwrite starts anew", recorded=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random_crop and self.random_resized_crop:
            raise UserError("--random_crop and --random_resized_crop exclude each other: give one of them")
        if self.batch_size % 2:
            raise UserError(f"--batch_size {self.batch_size}: use an even number, half of a step is real")
        if self.lr_policy == "cosine" and self.epochs is None:
            raise UserError("--lr_policy cosine needs to know how long: give --epochs")
        if self.lr_policy == "cosine" and self.max_epochs is not None:
            raise UserError("--max_epochs ends other trainings than --lr_policy cosine: give --epochs alone")
        if 0 < self.sizes[0] < self.sizes[1] and not self.random_resized_crop:
            raise UserError(f"--loadSize {self.sizes[0]} is less than --fineSize {self.sizes[1]}: raise or lower one")

    @property
    def sizes(self) -> tuple[int, int]:
        """Pixels of the shorter side, and side of the crop in training."""
        known = default_sizes(self.which_model_netD)
        return known[0] if self.loadSize is None else self.loadSize, self.fineSize or known[1]

    @property
    def test_size(self) -> int:
        """Side of the central square that is validated on, and tested on if images are scaled."""
        return self.sizes[0] if self.model == PATCHES and self.sizes[0] else self.sizes[1]


def default_sizes(network: str) -> tuple[int, int]:
    """Pixels of the shorter side and side of the crop that the published parser takes for a network."""
    return next((sizes for part, sizes in _SIZES.items() if part in network), _OTHER_SIZES)


@dataclass(frozen=True)
class ClusterOptions:
    """Groups of patches."""

    path: Path = flag(None, "folder patches_top<n> of extract_top_patches.py", metavar="PATH", positional=True)
    real_labels: Path | None = flag(
        None, "folder of label maps (PNG, a whole number for each pixel) named as the real images", metavar="DIR"
    )
    fake_labels: Path | None = flag(
        None, "the same of the fakes; without label maps: groups by position", metavar="DIR"
    )
    groups: Path | None = flag(
        None, "CSV with the columns label and group; absent: the 19 labels of a common face parser", metavar="FILE.csv"
    )

    def __post_init__(self) -> None:
        if (self.real_labels is None) != (self.fake_labels is None):
            raise UserError("--real_labels and --fake_labels go together: give both, or none for groups by position")
        if self.groups is not None and self.real_labels is None:
            raise UserError("--groups names groups of labels: give --real_labels and --fake_labels, too")


@dataclass(frozen=True)
class GroupTest(_Where):
    """Classifier and groups of data sets."""

    checkpoint: Path = flag(None, "folder of a training, with opt.yml", metavar="CHECKPOINT", positional=True)
    group: str = flag(
        None,
        "gen_models or faceforensics, or a CSV with the columns name, real and fake",
        metavar="GROUP",
        positional=True,
    )
    partition: str = flag(
        None, "part of the data, a folder of each: val or test", metavar="PARTITION", parse=plain_name, positional=True
    )
    data_root: Path = flag(Path("dataset/faces"), "where the folders of the groups lie", metavar="DIR")
    which_epoch: str = flag("bestval", "weights <which_epoch>_net_D.pth", parse=plain_name, metavar="TAG")
    results_dir: Path | None = flag(None, "published name of --output_dir", metavar="DIR")
    bootstrap: int = flag(1000, "redraws of images for intervals", parse=positive)
