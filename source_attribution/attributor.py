"""Asking networks of this room about images: probabilities, and where the evidence lies."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cr_ud.training_data import Loaded, Loader
from detectors.attribution_networks import own_layers, shared_layers
from images.sets import ImageItem, ImageSet
from source_attribution.keras_files import read_keras
from source_attribution.options import ModelType
from source_attribution.preparation import Preparation
from source_attribution.registry import primary_path, read_primary, read_secondaries
from source_attribution.source_sets import ArrayReader
from source_attribution.spectra import Statistics
from source_attribution.stored import PRIMARY, SECONDARY, Stored, check_belongs, read_stored
from utils.cli import progress
from utils.errors import UserError

FAKE_COLUMN = "fake"


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
        self.side = parts[0].description.side
        self.columns = [name for part in parts for name in part.description.classes]
        self._transform = parts[0].transform(single_precision=single_precision)
        for part in parts:
            part.network.to(self.device)

    @property
    def sources(self) -> list[str]:
        """What is attributed."""
        return [name for part in self.parts for name in part.description.sources]

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

    def probabilities(self, images: Tensor) -> Tensor:
        """(N, columns) float64."""
        return torch.cat([answer.probabilities for answer in self.answers(self.inputs(images))], dim=1)


def answers_for(
    attributor: Attributor,
    images: ImageSet,
    *,
    bsize: int,
    num_workers: int = 0,
    skip_bad_images: bool = False,
    dct: bool = False,
) -> Iterator[tuple[Loaded, list[Answer]]]:
    """Prepared images batch by batch, and what the networks say of them.

    Args:
        attributor: The networks.
        images: With labels or without.
        bsize: Images in a batch.
        num_workers, skip_bad_images: Of reading.
        dct: Whether arrays of floats among them are spectra.

    Raises:
        UserError: An image cannot be used and bad ones are not skipped.
    """
    loader = Loader(Preparation(attributor.side), _no_target, num_workers, skip_bad_images, ArrayReader(dct))
    with progress(total=len(images), description="images") as bar:
        for loaded in loader.validation(images, bsize):
            for failure in loaded.failures:
                sys.stderr.write(f"skipped: {failure}\n")
            if loaded.positions:
                pixels = torch.from_numpy(loaded.images).permute(0, 3, 1, 2)
                yield loaded, attributor.answers(attributor.inputs(pixels))
            bar.update(len(loaded.positions) + len(loaded.failures))


def _no_target(item: ImageItem) -> np.float32:
    return np.float32(0)


def load_attributor(
    weights: Path,
    model_type: ModelType,
    sources: Sequence[str] = (),
    *,
    dct: bool = False,
    normstats: Path | None = None,
    device: torch.device | None = None,
    single_precision: bool = False,
) -> Attributor:
    """The networks in or beside a file of weights: published `.h5`, a primary of a registry, or one of its secondaries.

    Args:
        weights: The file.
        model_type: `det` for the primary alone.
        sources: Which secondaries; none: all.
        dct, normstats: What a published file does not say itself.
        device, single_precision: As of `Attributor`.

    Raises:
        UserError: Files do not fit each other, or lack something.
    """
    statistics = None if normstats is None else Statistics.read(normstats)
    if weights.suffix.lower() in (".h5", ".hdf5"):
        if dct and statistics is None:
            raise UserError(f"{weights} does not hold the statistics of its spectra: give --normstats DIR")
        if len(sources) > 1:
            raise UserError(f"{weights} knows one source: give one name to --source")
        name = sources[0] if sources else weights.stem
        parts = read_keras(weights, dct=dct, statistics=statistics, source=name)
    else:
        parts = _registered(weights, sources, alone=model_type == "det")
        if statistics is not None and dct:
            parts = [Stored(part.description, part.network, statistics) for part in parts]
        reads = parts[0].description.input
        if dct and reads != "dct":
            raise UserError(f"{weights} reads {reads} images, no spectra: leave out --dct")
    if model_type == "det":
        parts = [part for part in parts if not part.description.sources]
    elif not any(part.description.sources for part in parts):
        raise UserError(f"{weights} holds a primary module only, which attributes to no source: use det")
    if not parts:
        raise UserError(f"{weights} attributes, and does not tell generated from real: use att")
    return Attributor(parts, device, single_precision=single_precision)


def _registered(weights: Path, sources: Sequence[str], *, alone: bool) -> list[Stored]:
    first = read_stored(weights)
    if first.description.kind == PRIMARY:
        return [first, *([] if alone else read_secondaries(weights, first, sources))]
    if first.description.kind != SECONDARY:
        return [first]
    primary = read_primary(primary_path(weights))
    check_belongs(first, primary, weights)
    if alone or sources:
        return [primary, *([] if alone else read_secondaries(primary_path(weights), primary, sources))]
    return [primary, first.with_source(weights.stem)]


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
