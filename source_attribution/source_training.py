"""Training of primaries, of secondaries on a frozen primary, and of networks that stand alone."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim import Adam

from cr_ud.checkpointing import RunFiles
from cr_ud.initialisation import make_high_pass
from cr_ud.options import Monitoring, Optimisation
from cr_ud.schedule import CosineSchedule, Schedule
from cr_ud.trainer import Training
from cr_ud.training_data import EpochOrder, Loader
from cr_ud.training_run import run_training
from detectors.attribution_networks import own_layers, shared_layers
from detectors.checkpoints import read_state
from detectors.devices import use_device
from images.decoding import decode_image
from images.distortions import grayscale
from images.sets import REAL, ImageSet, shared_images
from passes.options import RunOptions
from passes.processes import process_group
from source_attribution.attributor import Attributor, ask
from source_attribution.conversion import is_keras, read_keras
from source_attribution.options import Asking, Attributing, AttributionTraining
from source_attribution.preparation import Preparation, square
from source_attribution.registry import SUFFIX, add, read_primary, secondary_path
from source_attribution.source_evaluation import evaluate_attribution
from source_attribution.source_scores import calibrated_threshold
from source_attribution.source_sets import ARRAY, ArrayReader, find_sources, named_sources, sources_in, told_apart
from source_attribution.source_tasks import Branches, EarlyStopping, OneOfAll, OneVersusRest, Telling, class_weights
from source_attribution.spectra import Statistics, spectrum_statistics
from source_attribution.stored import PRIMARY, SECONDARY, Description, Stored, digest, read_stored
from utils.cli import say_files
from utils.errors import UserError
from utils.files import safe_join
from utils.layout import Layout
from utils.provenance import Origin, write_record
from utils.settings import plain

_COMPUTATION = 1  # version of what a training computes
_EPS = 1e-7  # of Keras' Adam
# Of batch norms in short training: published is 0.01; with 0.1 they would follow single batches of photographs.
_MOMENTUM = 0.02
_NO_SOURCES = frozenset({"real", "fake", "none", "unknown"})


class _Trainee(Attributor):
    """Networks of a registry that are trained: one, or secondaries beside each other.

    Attributes:
        model: They as a module of one output for each class.
        files: Where each of them goes.
        primary: Digest of the primary of secondaries, else "".
    """

    def __init__(
        self, parts: Sequence[Stored], files: list[Path], training: AttributionTraining, device: torch.device
    ) -> None:
        super().__init__(parts, device)
        self.files, self.primary = files, parts[0].description.primary
        networks = [part.network for part in parts]
        shared = shared_layers(networks[0]) if self.primary else None
        branches = list(map(own_layers, networks)) if self.primary else networks
        model = Branches(shared, branches, fixed_norms=training.fixed_norms, zero_bias=training.zero_bias)
        self.model: nn.Module = model.to(device)

    def load(self, trained: RunFiles, run: RunOptions) -> None:
        """The best weights; `published`: the last ones if no early stopping ended the training."""
        ended = torch.load(trained.checkpoint, map_location="cpu", weights_only=True)["progress"]["finished"]
        self.model.load_state_dict(read_state(trained.final if run.published and not ended else trained.best))
        # the shared layers that the parts have of their own, too
        for part in self.parts:
            part.network.eval()

    def calibrate(self, images: ImageSet, asking: Asking, most_false: float) -> None:
        """Attribute at most this share of the real images to a source, and of those of other sources."""
        used, scores = ask(self, images, asking)
        made_by = np.array([item.generator for item in used.items])
        for index, (source, values) in enumerate(zip(self.columns, scores.values.T, strict=True)):
            others = [values[made_by == ""], values[(made_by != "") & (made_by != source)]]
            threshold = calibrated_threshold(others, most_false)
            self.parts[index] = self.parts[index].with_description(threshold=threshold)


def attribute(run: RunOptions, options: Attributing, training: AttributionTraining) -> list[Path]:
    """Train what the options ask for, or test it; the files of networks, or the tables written.

    Raises:
        UserError: Anything a user can mend.
        Interrupted: After Ctrl-C or SIGTERM, with a checkpoint saved.
    """
    if options.action == "test":
        return evaluate_attribution(options, run)
    return _Job(options, training, run).done()


@dataclass(frozen=True)
class _Job:
    """What the options ask for."""

    options: Attributing
    training: AttributionTraining
    run: RunOptions

    def done(self) -> list[Path]:
        """Train; the files written."""
        options, training, run, trainee = self.options, self.training, self.run, self.trainee
        if (training.class_weights or training.most_false) and not (self.sources and self.is_binary):
            raise UserError("--class_weights and --most_false are for secondaries, and networks of one source")
        for path in trainee.files:
            if path.exists() and not (run.overwrite or run.resume):
                raise UserError(
                    f"{path} is there already: give --resume to go on, --overwrite, another --model_id or --registry"
                )
        train, validation = self.train, find_sources(options.second, options, options.val_size)
        for folder, images in ((options.first, train), (options.second, validation)):
            odd = [name for name in sources_in(images) if name not in self.sources]
            if odd and not self.is_binary:
                raise UserError(f"{folder} has images of {odd[0]}, which is not listed: list it, or choose --folders")
        shared = shared_images(train, validation)
        if len(self.sources) == 1:
            train, validation = (told_apart(images, self.sources[0]) for images in (train, validation))
        inputs = {"training images": train.digest(), "validation images": validation.digest()}
        if trainee.primary:
            inputs["primary"] = trainee.primary
        # how long a constant rate goes on decides nothing before that
        idle = "epochs" if training.schedule == "constant" else "early_stopping"
        determining = {key: value for key, value in (plain(options, training) | inputs).items() if key != idle}
        settings, counts = plain(options, training, run), train.counts()
        batch = min(options.batch_size, len(train))
        with process_group(trainee.device.type) as ranks:
            if shared and ranks.is_first:
                sys.stderr.write(f"warning: {shared} validation images are among the training images, by content\n")
            order = EpochOrder(train, batch, 1, options.seed, training.class_bal, ranks, training.pairs)
            files = run_training(
                self._training(order, validation, {key: str(value) for key, value in determining.items()}),
                Layout(run.output_dir, "attribution", self.name).training(training.instance_id),
                run,
                ranks,
                title=f"{self.name}: {', '.join(self.sources) or 'generated or real'}",
                settings=settings,
                inputs=inputs,
                images=counts,
            )
        if ranks.is_first:
            trainee.load(files, run)
            if training.most_false is not None:
                trainee.calibrate(validation, options, training.most_false)
            for path, part in zip(trainee.files, trainee.parts, strict=True):
                add(path, part, overwrite=run.overwrite or run.resume)
            origin, device = Origin(_COMPUTATION, inputs, {"arguments": determining}), trainee.device
            write_record(trainee.files, origin, settings=settings, seed=options.seed, device=device, images=counts)
            say_files(trainee.files)
        return trainee.files

    def _training(self, order: EpochOrder, validation: ImageSet, arguments: Mapping[str, str]) -> Training:
        options, training, trainee = self.options, self.training, self.trainee
        task: Telling = OneOfAll(self.sources)
        if self.is_binary:
            weights = class_weights(self.sources, order.image_set) if training.class_weights else {}
            task = OneVersusRest(self.sources, weights)
        rate = training.learning_rate or (1e-4 if trainee.primary else 1e-3)
        schedule: Schedule = EarlyStopping(rate, training.early_stopping)
        if training.schedule == "cosine":
            schedule = CosineSchedule(highest_lr=rate, steps=training.epochs * order.steps)
        preparation = Preparation(trainee.side, training.augment, self.run.published)
        reader = ArrayReader(options.dct)
        return Training(
            trainee,
            task,
            order,
            validation,
            Loader(preparation, task.target, options.num_workers, options.skip_bad_images, reader),
            schedule,
            partial(Adam, lr=rate, eps=_EPS),
            Optimisation(order.batch_size, lr=rate, epochs=training.epochs, class_bal=training.class_bal),
            Monitoring(),
            arguments,
        )

    @cached_property
    def train(self) -> ImageSet:
        """The training images; their sources are as many as the user expects."""
        options = self.options
        images = find_sources(options.first, options, options.train_size, twins=self.training.pairs)
        sources = len(sources_in(images))
        if options.num_sources not in (None, sources):
            raise UserError(
                f"--num_sources {options.num_sources}: {options.first} has {sources} sources: check --folders"
            )
        sources = len({item.name.split("/")[0] for item in images.items if item.label == REAL})
        if sources < (options.num_real_sources or 0):
            raise UserError(f"--num_real_sources {options.num_real_sources}: {options.first} has {sources}")
        return images

    @cached_property
    def sources(self) -> list[str]:
        """What is attributed: nothing, one source, or all."""
        options = self.options
        if options.model_type == "det":
            return []
        there = sources_in(self.train)
        wanted = named_sources(options) or there
        if odd := sorted(_NO_SOURCES.intersection(wanted)):
            raise UserError(f"a source cannot be called {odd[0]}, which stands for something else: rename its folder")
        if missing := [name for name in wanted if name not in there]:
            raise UserError(f"no images of {missing[0]} in {options.first} (there: {', '.join(there)}): check --source")
        return wanted

    @property
    def name(self) -> str:
        """Of the network, or of the run of secondaries."""
        options = self.options
        words = [*(["dct"] if options.dct else []), *(["multiclass"] if options.multiclass else self.sources)]
        return self.training.model_id or "_".join((options.model_class, options.model_type, *words))

    @property
    def is_binary(self) -> bool:
        """Whether each output is an answer of its own."""
        return len(self.trainee.parts) >= len(self.sources)

    @cached_property
    def trainee(self) -> _Trainee:
        """What is trained: secondaries of a primary, or a network of its own."""
        options, training = self.options, self.training
        device = use_device(options.device, "fp32")
        registry = training.registry or self.run.output_dir / "attribution"
        if options.model_type == "att" and options.model_class == "default":
            path, primary = self._primary(registry)
            description = replace(primary.description, kind=SECONDARY, primary=digest(primary.network))
            described = [replace(description, sources=(source,)) for source in self.sources]
            parts = [Stored(part, self._new(part), primary.statistics) for part in described]
            for part in parts:
                shared_layers(part.network).load_state_dict(shared_layers(primary.network).state_dict())
            return _Trainee(parts, [secondary_path(path, source) for source in self.sources], training, device)
        kind = PRIMARY if options.model_class == "default" else options.model_class
        description = Description(kind, options.image_size, options.input, tuple(self.sources))
        part = Stored(description, self._new(description), self._statistics() if options.dct else None)
        return _Trainee([part], [safe_join(registry, self.name + SUFFIX)], training, device)

    def _new(self, description: Description) -> nn.Sequential:
        """A network with weights from the seed, or those of a network of the same kind."""
        training = self.training
        if training.model is not None:
            # of secondaries a folder holds one for each source
            in_folder = description.kind == SECONDARY and training.model.is_dir()
            start = safe_join(training.model, description.sources[0] + SUFFIX) if in_folder else training.model
            given = read_stored(start)
            if given.with_description(sources=description.sources, threshold=0.5).description != description:
                raise UserError(f"--model is another kind of {given.description.kind}: give one like the new network")
            return given.network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            network = description.build()
            if training.init == "high_pass":
                for module in network.modules():
                    if isinstance(module, nn.Conv2d):
                        nn.init.kaiming_normal_(module.weight)
                make_high_pass(network, _MOMENTUM)
            return network

    def _primary(self, registry: Path) -> tuple[Path, Stored]:
        """The primary of secondaries, in the registry that they go to."""
        options, given = self.options, self.training.det_model
        if given is None:
            raise UserError("a secondary module needs a primary: give --det_model FILE")
        primary = read_keras(given, options)[0] if is_keras(given) else read_primary(given)
        reads = primary.description.input
        if reads != options.input:
            raise UserError(f"--det_model {given} reads {reads} images: match --dct and --greyscale")
        folder = registry if is_keras(given) or self.training.registry else given.parent
        return add(safe_join(folder, given.stem + SUFFIX), primary), primary

    def _statistics(self) -> Statistics | None:
        """Of the spectra of the training images; arrays are normalised already, and do not tell by what."""
        given, items = Statistics.given(self.options.normstats), self.train.items
        if given or items[0].path.suffix == ARRAY:
            return given
        squares = (square(decode_image(item.path), self.options.image_size) for item in items)
        return spectrum_statistics(grayscale(image)[..., 0] for image in squares)
