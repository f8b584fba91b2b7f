"""Asking networks of this room about images: probabilities, and where the evidence lies."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cr_ud.training_data import Loaded, Loader
from detectors.attribution_networks import own_layers, shared_layers
from detectors.devices import use_device
from images.sets import ImageItem, ImageSet
from source_attribution.keras_files import is_keras, read_keras
from source_attribution.options import Asking, ModelType
from source_attribution.preparation import Preparation
from source_attribution.registry import primary_path, read_primary, read_secondaries
from source_attribution.source_scores import Scores
from source_attribution.source_sets import ArrayReader
from source_attribution.spectra import Statistics
from source_attribution.stored import PRIMARY, SECONDARY, Stored, digest, read_stored
from utils.cli import progress
from utils.errors import UserError
from utils.files import sha256_file
from utils.provenance import Origin


@dataclass(frozen=True)
class Answer:
    """What one network says of a batch.

    Attributes:
        probabilities: (N, K) float64.
        maps: The last feature maps (N, C, h, w).
        evidence: (N, h, w), maps weighted by the decision: of an averaging head the class activation map, whose mean
            plus the bias is the logit; of a dense head the gradient map, ReLU of the sum of dP/dF * F. None of several
            classes, and of networks with more dense layers than one.
    """

    probabilities: Tensor
    maps: Tensor
    evidence: Tensor | None


class Attributor:
    """Networks that read the same images, with their columns of probabilities; `fake` and the names of sources.

    Args:
        parts: A primary, or a primary and its secondaries, or one network that stands alone.
        device: Where they run.
        single_precision: Of spectra, as `log_spectrum`.
    """

    def __init__(
        self, parts: Sequence[Stored], device: torch.device | None = None, *, single_precision: bool = False
    ) -> None:
        self.parts, self.device = list(parts), device or torch.device("cpu")
        self.columns = [name for part in parts for name in part.description.classes]
        self.side = parts[0].description.side
        self._transform = parts[0].transform(single_precision=single_precision)
        self.thresholds = {name: part.description.threshold for part in parts for name in part.description.sources}
        for part in parts:
            part.network.to(self.device)

    def inputs(self, images: Tensor) -> Tensor:
        """Images (N, 3, side, side) uint8 to what the networks read; what is that already as it is.

        Raises:
            UserError: They read spectra, and it is not known how these are normalised.
        """
        images = images.to(self.device)
        if images.is_floating_point():
            return images
        if self.parts[0].description.input == "dct" and self.parts[0].statistics is None:
            raise UserError("the network does not hold the statistics of its spectra: give --normstats DIR")
        return self._transform(images)

    @torch.no_grad()
    def answers(self, inputs: Tensor) -> list[Answer]:
        """What each network says; shared layers run once."""
        shares = self.parts[0].description.kind in (PRIMARY, SECONDARY)
        start = shared_layers(self.parts[0].network)(inputs) if shares else inputs
        return [_answer(own_layers(part.network) if shares else part.network, start) for part in self.parts]

    def origin(self, computation: int, weights: Path, images: ImageSet, **facts: object) -> Origin:
        """Of what is computed from these networks, as they are in a file, and images."""
        parts = [digest(part.network) for part in self.parts]
        facts |= {"columns": self.columns, "parts": parts, "thresholds": self.thresholds}
        return Origin(computation, {"weights": sha256_file(weights), "images": images.digest()}, facts)


def ask(
    attributor: Attributor, images: ImageSet, asking: Asking, keep: Callable[[Loaded, list[Answer]], None] | None = None
) -> tuple[ImageSet, Scores]:
    """The images that can be used, and their probabilities.

    Args:
        attributor: The networks.
        images: With labels or without.
        asking: How images are read; with `dct` arrays of floats among them are spectra.
        keep: Takes each batch, prepared, with all that the networks say of it.

    Raises:
        UserError: An image cannot be used and bad ones are not skipped, or none can.
    """
    reader, workers = ArrayReader(asking.dct), asking.num_workers
    loader = Loader(Preparation(attributor.side), _no_target, workers, asking.skip_bad_images, reader)
    positions: list[int] = []
    values = []
    with progress(total=len(images), description="images") as bar:
        for loaded in loader.validation(images, asking.batch_size):
            for failure in loaded.failures:
                sys.stderr.write(f"skipped: {failure}\n")
            if loaded.positions:
                answers = attributor.answers(attributor.inputs(torch.from_numpy(loaded.images).permute(0, 3, 1, 2)))
                positions += loaded.positions
                values.append(torch.cat([answer.probabilities for answer in answers], dim=1).cpu().numpy())
                if keep is not None:
                    keep(loaded, answers)
            bar.update(len(loaded.positions) + len(loaded.failures))
    if not positions:
        raise UserError(f"no image of {images.root} can be used: see the lines above")
    return images.subset(positions), Scores(attributor.columns, np.concatenate(values), attributor.thresholds)


def _no_target(item: ImageItem) -> np.float32:
    return np.float32(0)


def load_attributor(
    weights: Path,
    model_type: ModelType,
    sources: Sequence[str] = (),
    asking: Asking | None = None,
    *,
    single_precision: bool = False,
) -> Attributor:
    """The networks in or beside a file of weights: published `.h5`, a primary of a registry, or one of its secondaries.

    Args:
        weights: The file.
        model_type: `det` for the primary alone.
        sources: Which secondaries; none: all.
        asking: Device, and what a published file does not say itself.
        single_precision: As of `Attributor`.

    Raises:
        UserError: Files do not fit each other, or lack something.
    """
    asking = asking or Asking()
    if is_keras(weights):
        if len(sources) > 1:
            raise UserError(f"{weights} knows one source: give one name to --source")
        parts = read_keras(weights, asking, sources[0] if sources else weights.stem)
    else:
        parts = _registered(weights, sources, alone=model_type == "det")
        reads = parts[0].description.input
        if asking.dct and reads != "dct":
            raise UserError(f"{weights} reads {reads} images, no spectra: leave out --dct")
        if asking.dct and asking.normstats is not None:
            parts = [replace(part, statistics=Statistics.read(asking.normstats)) for part in parts]
    if model_type == "det":
        parts = [part for part in parts if not part.description.sources]
    elif not any(part.description.sources for part in parts):
        raise UserError(f"{weights} holds a primary module only, which attributes to no source: use det")
    if asking.threshold is not None:
        if any(len(part.description.sources) > 1 for part in parts):
            raise UserError(f"{weights} answers with the most probable of its classes: leave out --threshold")
        parts = [part.with_description(threshold=asking.threshold) for part in parts]
    if not parts:
        raise UserError(f"{weights} attributes, and does not tell generated from real: use att")
    return Attributor(parts, use_device(asking.device, "fp32"), single_precision=single_precision)


def _registered(weights: Path, sources: Sequence[str], *, alone: bool) -> list[Stored]:
    first = read_stored(weights)
    if first.description.kind not in (PRIMARY, SECONDARY):
        return [first]
    path = weights if first.description.kind == PRIMARY else primary_path(weights)
    primary = read_primary(path)
    if first.description.kind == SECONDARY:
        sources = sources or [weights.stem]
    return [primary] if alone else [primary, *read_secondaries(path, primary, sources)]


def _answer(layers: nn.Sequential, x: Tensor) -> Answer:
    maps = x
    *before, decision = layers
    for layer in before:
        x = layer(x)
        maps = x if x.ndim == 4 and isinstance(layer, nn.ReLU | nn.LeakyReLU) else maps
    logits: Any = decision(x)
    probabilities = torch.sigmoid(logits.double()) if logits.shape[1] == 1 else logits.double().softmax(1)
    return Answer(probabilities, maps, _evidence(decision.get_parameter("weight"), maps, logits))


def _evidence(weight: Tensor, maps: Tensor, logits: Tensor) -> Tensor | None:
    if len(weight) > 1:
        return None
    if weight.shape[1] == maps.shape[1]:
        return torch.einsum("k,nkhw->nhw", weight[0], maps)
    if weight.shape[1] != maps[0].numel():
        return None
    slope = torch.sigmoid(logits) * torch.sigmoid(-logits)
    return (slope[:, :, None] * (maps * weight.view_as(maps[0])).sum(1)).relu()
