"""Training of primaries, of secondaries on a frozen primary, and of networks that stand alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.optim import Adam

from cr_ud.checkpointing import RunFiles
from cr_ud.initialisation import make_high_pass
from cr_ud.options import Monitoring, Optimisation
from cr_ud.schedule import CosineSchedule, Decision, Schedule
from cr_ud.task import Task
from cr_ud.trainer import Training
from cr_ud.training_data import EpochOrder, Loader
from cr_ud.training_run import run_training
from detectors.attribution_networks import own_layers, shared_layers
from detectors.checkpoints import read_state
from detectors.devices import use_device
from images.decoding import decode_image
from images.distortions import grayscale
from images.sets import FAKE, REAL, ImageItem, ImageSet, shared_images
from passes.options import RunOptions
from passes.processes import process_group
from source_attribution.keras_files import read_keras
from source_attribution.options import Attributing, AttributionTraining
from source_attribution.preparation import Preparation, square
from source_attribution.registry import SUFFIX, add_secondary, read_primary, secondary_path
from source_attribution.source_sets import ARRAY, ArrayReader, find_sources, read_source_list, sources_in, told_apart
from source_attribution.spectra import Statistics, spectrum_statistics
from source_attribution.stored import PRIMARY, SECONDARY, Description, Stored, digest, read_stored, write_stored
from utils.cli import say
from utils.errors import UserError
from utils.files import safe_join
from utils.layout import Layout
from utils.provenance import Origin, write_record
from utils.settings import plain

_COMPUTATION = 1  # version of what a training computes
_EPS = 1e-7  # of Keras' Adam
# Of batch norms in short training: published is 0.01; with 0.1 they would follow single batches of photographs.
_MOMENTUM = 0.02


@dataclass
class EarlyStopping(Schedule):
    """A constant learning rate; the end after some epochs without a better score.

    Attributes:
        lr: Learning rate.
        patience: So many epochs.
        best: Highest score so far.
        waiting: Epochs since.
    """

    lr: float = 1e-3
    patience: int = 5
    best: float | None = None
    waiting: int = 0

    def update(self, score: float) -> Decision:
        """Take the score of an epoch's validation."""
        if self.best is None or score > self.best:
            self.best, self.waiting = score, 0
            return Decision(is_best=True)
        self.waiting += 1
        return Decision(stop=self.waiting >= self.patience)


class Telling(Task):
    """Which of two classes, for each of several outputs (N, K), or which of K classes.

    Attributes:
        sources: What is told; none: generated from real.
    """

    metrics: ClassVar = ("acc", "acc_balanced")
    panels: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "accuracy": {"acc_balanced": "mean of the classes", "acc": "all"}
    }

    def __init__(self, sources: Sequence[str]) -> None:
        self.sources = tuple(sources)

    def score(self, summary: Mapping[str, float]) -> float:
        return -summary["loss"]

    def evidence(self, output: Tensor) -> Tensor:
        return output


class OneVersusRest(Telling):
    """Binary cross-entropy of each output, added up; accuracies at 0.5, their means over outputs."""

    loss: ClassVar = "binary cross-entropy"

    def target(self, item: ImageItem) -> np.ndarray:
        told = [item.generator == source for source in self.sources] or [item.label == FAKE]
        return np.array(told, np.float32)

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(output.float(), targets, reduction="none").sum(1)

    def summary(self, evidence: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        loss = self.losses(torch.from_numpy(evidence), torch.from_numpy(targets)).double().mean()
        right = (evidence >= 0) == (targets > 0.5)
        classes = [right[column] for column in (targets > 0.5, targets <= 0.5) if column.any()]
        balanced = float(np.mean([part.mean() for part in classes]))
        return {"loss": float(loss), "acc": float(right.mean()), "acc_balanced": balanced}


class OneOfAll(Telling):
    """Cross-entropy of real and the sources; the most probable one counts."""

    loss: ClassVar = "cross-entropy"

    def target(self, item: ImageItem) -> np.int64:
        return np.int64(0 if item.label == REAL else 1 + self.sources.index(item.generator))

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(output.float(), targets, reduction="none")

    def summary(self, evidence: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        loss = self.losses(torch.from_numpy(evidence), torch.from_numpy(targets)).double().mean()
        right = evidence.argmax(1) == targets
        balanced = float(np.mean([right[targets == number].mean() for number in np.unique(targets)]))
        return {"loss": float(loss), "acc": float(right.mean()), "acc_balanced": balanced}


class Branches(nn.Module):
    """Networks that are trained, side by side on the same layers before them: (N, outputs of all).

    Args:
        shared: Of a primary, whose secondaries are trained: they stay in evaluation mode and get no gradient, since
            their running statistics, too, belong to all secondaries. None for a network that is trained whole.
        branches: What is trained.
        fixed_norms: Batch norms use their running statistics in training, too. Photographs differ in contrast, so that
            a small batch is seldom normalised as all images together are; an epoch so at the end mends the difference.
        zero_bias: The biases of the last layers are 0 and stay so. With a bias above 0 a network can say yes wherever
            nothing speaks against it, and no feature map then has relevance for the yes.
    """

    def __init__(
        self,
        shared: nn.Sequential | None,
        branches: Sequence[nn.Sequential],
        *,
        fixed_norms: bool = False,
        zero_bias: bool = False,
    ) -> None:
        super().__init__()
        self.shared = nn.Identity() if shared is None else shared.requires_grad_(False)
        self.branches = nn.ModuleList(branch.requires_grad_(True) for branch in branches)
        self.fixed_norms = fixed_norms
        for branch in branches if zero_bias else ():
            nn.init.zeros_(branch[-1].get_parameter("bias").requires_grad_(False))

    def train(self, mode: bool = True) -> Branches:
        """The mode of all that is not to stay as it is."""
        super().train(mode)
        self.shared.eval()
        for module in self.branches.modules() if self.fixed_norms else ():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        shared = self.shared(x)
        return torch.cat([branch(shared) for branch in self.branches], dim=1)


@dataclass(frozen=True)
class _Trained:
    """What of a detector is needed to train it, and the networks that come out."""

    model: nn.Module
    device: torch.device
    stored: tuple[Stored, ...]

    def inputs(self, images: Tensor) -> Tensor:
        images = images.to(self.device)
        return images if images.is_floating_point() else self.stored[0].transform()(images)


def train_attribution(options: Attributing, training: AttributionTraining, run: RunOptions) -> list[Path]:
    """Train what the options ask for; the files of networks written.

    Raises:
        UserError: Anything a user can mend.
        Interrupted: After Ctrl-C or SIGTERM, with a checkpoint saved.
    """
    device = use_device(options.device, "fp32")
    train, validation = (
        find_sources(
            folder,
            options.folders,
            size=size,
            real_factor=options.real_size_factor,
            arch_level=options.arch_level,
            twins=training.pairs and folder == options.first,
        )
        for folder, size in ((options.first, options.train_size), (options.second, options.val_size))
    )
    _check(options, train)
    sources = _sources(options, train)
    if shared := shared_images(train, validation):
        sys.stderr.write(f"warning: {shared} validation images are among the training images, by content\n")
    network, primary_file = _network(options, training, train, sources, run, device)
    description = network.stored[0].description
    kind: type[Telling] = OneOfAll if len(description.sources) > 1 else OneVersusRest
    task = kind(sources)
    words = ["multiclass"] if options.multiclass else sources
    name = training.model_id or "_".join(
        (options.model_class, options.model_type, *(["dct"] if options.dct else []), *words)
    )
    written = _own_path(training, run, name)
    if primary_file is None and written.exists() and not (run.overwrite or run.resume):
        raise UserError(f"{written} is there already: give --resume to go on, --overwrite, or another --model_id")
    if len(sources) == 1:
        train, validation = told_apart(train, sources[0]), told_apart(validation, sources[0])
    rate = training.learning_rate or (1e-4 if description.kind == SECONDARY else 1e-3)
    optimisation = Optimisation(
        bsize=min(options.batch_size, len(train)), lr=rate, epochs=training.epochs, class_bal=training.class_bal
    )
    order = EpochOrder(train, optimisation.bsize, seed=options.seed, balance=training.class_bal, pairs=training.pairs)
    schedule: Schedule = EarlyStopping(rate, training.early_stopping)
    if training.schedule == "cosine":
        schedule = CosineSchedule(highest_lr=rate, steps=training.epochs * order.steps)
    layout = Layout(run.output_dir, "attribution", name)
    inputs = {"training images": train.digest(), "validation images": validation.digest()}
    if primary_file is not None:
        inputs["primary"] = description.primary
    # how long a constant rate goes on decides nothing before that
    idle = "epochs" if training.schedule == "constant" else "early_stopping"
    determining = {key: value for key, value in (plain(options, training) | inputs).items() if key != idle}
    with process_group(device.type) as ranks:
        files = run_training(
            Training(
                network,
                task,
                replace(order, ranks=ranks),
                validation,
                Loader(
                    Preparation(description.side, training.augment, run.published),
                    task.target,
                    options.num_workers,
                    options.skip_bad_images,
                    ArrayReader(options.dct),
                ),
                schedule,
                partial(Adam, lr=rate, eps=_EPS),
                optimisation,
                Monitoring(),
                {key: str(value) for key, value in determining.items()},
            ),
            layout.training(training.instance_id),
            run,
            ranks,
            title=f"{name}: {', '.join(sources) or 'generated or real'}",
            settings=plain(options, training, run),
            inputs=inputs,
            images=train.counts(),
        )
    paths = _write(files, network, primary_file, training, run, name)
    origin = Origin(_COMPUTATION, inputs, {"arguments": determining})
    settings = plain(options, training, run)
    write_record(paths, origin, settings=settings, seed=options.seed, device=device, images=train.counts())
    for path in paths:
        say(str(path))
    return paths


def _check(options: Attributing, images: ImageSet) -> None:
    """Numbers of sources that the user expects.

    Raises:
        UserError: The data have others.
    """
    found = len(sources_in(images))
    if options.num_sources is not None and found != options.num_sources:
        raise UserError(f"--num_sources {options.num_sources}: {options.first} has {found} sources: check --folders")
    folders = {item.name.split("/")[0] for item in images.items if item.label == REAL}
    if options.num_real_sources is not None and len(folders) < options.num_real_sources:
        raise UserError(
            f"--num_real_sources {options.num_real_sources}: {options.first} has real images in {len(folders)} folders"
        )


def _sources(options: Attributing, images: ImageSet) -> list[str]:
    """What is attributed: nothing, one source, or all."""
    if options.model_type == "det":
        return []
    there = sources_in(images)
    if options.source is not None:
        wanted = [options.source.partition("_")[0] if options.arch_level else options.source]
    else:
        wanted = there if options.source_list is None else read_source_list(options.source_list)
    if odd := {"real", "fake", "none", "unknown"} & set(wanted):
        raise UserError(f"a source cannot be called {odd.pop()}, which stands for something else: rename its folder")
    if missing := [name for name in wanted if name not in there]:
        raise UserError(f"no images of {missing[0]} in {options.first} (there: {', '.join(there)}): check --source")
    return wanted


def _network(
    options: Attributing,
    training: AttributionTraining,
    images: ImageSet,
    sources: Sequence[str],
    run: RunOptions,
    device: torch.device,
) -> tuple[_Trained, Path | None]:
    """What is trained; and the file of its primary, if it is of secondaries."""
    if options.model_type == "att" and options.model_class == "default":
        if training.det_model is None:
            raise UserError("a secondary module needs a primary: give --det_model FILE")
        primary, path = _primary(options, training, run)
        for file in (secondary_path(path, source) for source in sources):
            if file.exists() and not (run.overwrite or run.resume):
                raise UserError(f"{file} is there already: give --overwrite, or another --registry")
        description = replace(primary.description, kind=SECONDARY, primary=digest(primary.network))
        described = [replace(description, sources=(source,)) for source in sources]
        stored = [
            Stored(part, _new(part, options, training), primary.statistics if options.dct else None)
            for part in described
        ]
        shared = shared_layers(primary.network)
        for part in stored:
            shared_layers(part.network).load_state_dict(shared.state_dict())
        branches = [own_layers(part.network) for part in stored]
        model = Branches(shared, branches, fixed_norms=training.fixed_norms, zero_bias=training.zero_bias)
        return _Trained(model.to(device), device, tuple(stored)), path
    kind = PRIMARY if options.model_class == "default" else options.model_class
    description = Description(kind, options.image_size, options.input, tuple(sources))
    statistics = _statistics(options, images) if options.dct else None
    network = _new(description, options, training)
    model = Branches(None, [network], fixed_norms=training.fixed_norms, zero_bias=training.zero_bias)
    return _Trained(model.to(device), device, (Stored(description, network, statistics),)), None


def _new(description: Description, options: Attributing, training: AttributionTraining) -> nn.Sequential:
    """A network with weights from the seed, or those of a network of the same kind."""
    if training.model is not None:
        given = read_stored(training.model)
        if replace(given.description, sources=description.sources) != description:
            raise UserError(f"--model is a {given.description.kind} network of another kind: give one like the new one")
        return given.network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = description.build()
        if training.init == "high_pass":
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
            make_high_pass(network)
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = _MOMENTUM
        return network


def _primary(options: Attributing, training: AttributionTraining, run: RunOptions) -> tuple[Stored, Path]:
    """The primary of a training, and where it lies in the registry that the secondaries go to."""
    given = training.det_model
    assert given is not None
    if given.suffix.lower() in (".h5", ".hdf5"):
        statistics = None if options.normstats is None else Statistics.read(options.normstats)
        primary = read_keras(given, dct=options.dct, statistics=statistics)[0]
        folder = training.registry or run.output_dir / "attribution"
    else:
        primary = read_primary(given)
        folder = training.registry or given.parent
    if primary.description.input != options.input:
        raise UserError(f"--det_model {given} reads {primary.description.input} images: match --dct and --greyscale")
    path = safe_join(folder, given.stem + SUFFIX)
    if not path.exists():
        write_stored(path, primary)
    elif digest(read_primary(path).network) != digest(primary.network):
        raise UserError(f"{path} is another primary than {given}: give another --registry")
    return primary, path


def _own_path(training: AttributionTraining, run: RunOptions, name: str) -> Path:
    return safe_join(training.registry or run.output_dir / "attribution", name + SUFFIX)


def _statistics(options: Attributing, images: ImageSet) -> Statistics | None:
    """Of the spectra of the training images; arrays are normalised already, and do not tell by what."""
    if options.normstats is not None:
        return Statistics.read(options.normstats)
    if images.items[0].path.suffix == ARRAY:
        return None
    pixels = (decode_image(item.path) for item in images.items)
    return spectrum_statistics(grayscale(square(image, options.image_size))[..., 0] for image in pixels)


def _write(
    files: RunFiles,
    network: _Trained,
    primary_file: Path | None,
    training: AttributionTraining,
    run: RunOptions,
    name: str,
) -> list[Path]:
    """The best weights as networks; `published`: the last ones if no early stopping ended the training."""
    ended_early = torch.load(files.checkpoint, map_location="cpu", weights_only=True)["progress"]["finished"]
    network.model.load_state_dict(read_state(files.final if run.published and not ended_early else files.best))
    network.model.eval()
    if primary_file is None:
        path = _own_path(training, run, name)
        write_stored(path, network.stored[0])
        return [path]
    # the networks share their layers with the model that was trained
    primary = read_primary(primary_file)
    overwrite = run.overwrite or run.resume
    return [add_secondary(primary_file, primary, stored, overwrite=overwrite) for stored in network.stored]
