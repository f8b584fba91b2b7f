"""Networks of this room in files: what each of them is, as safetensors, and whether it belongs to a primary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from detectors.attribution_networks import BASELINES, SYMMETRIC, primary_network, secondary_network, shared_layers
from images.distortions import to_grayscale
from source_attribution.options import Input, ModelClass
from source_attribution.spectra import LogSpectrum, Statistics
from utils.errors import UserError
from utils.files import atomic_path

PRIMARY, SECONDARY = "primary", "secondary"
_KEY = "source_attribution"
_STATISTICS = "spectrum."
_UNUSED = ".num_batches_tracked"


@dataclass(frozen=True)
class Description:
    """What a network is, its weights aside.

    Attributes:
        kind: `primary`, `secondary`, or a class of networks that stand alone: `notl`, `gdaconv`, `postpool`.
        side: Of the square images that it reads, pixels.
        input: `pixel`, `grey`, or `dct`: grey log spectra, whose head is a dense layer on all places.
        sources: What is attributed: none (real or fake), one (made by it, or not), or several (real or one of them).
        primary: Digest of the primary that a secondary belongs to.
        threshold: From which probability on an image is attributed to the source, if there is one.
    """

    kind: str
    side: int = 128
    input: Input = "pixel"
    sources: tuple[str, ...] = ()
    primary: str = ""
    threshold: float = 0.5

    @property
    def classes(self) -> tuple[str, ...]:
        """What each output is the probability of."""
        return ("real", *self.sources) if len(self.sources) > 1 else self.sources or ("fake",)

    def build(self) -> nn.Sequential:
        """The network, with random weights."""
        outputs, channels = len(self.classes), 3 if self.input == "pixel" else 1
        side = self.side if self.input == "dct" else None
        if self.kind == SECONDARY:
            return secondary_network(outputs, channels=channels, side=side)
        if self.kind in (PRIMARY, "notl"):
            letter = "a" if self.sources else "d"
            return primary_network(outputs, channels=channels, side=side, decision=letter)
        return BASELINES[self.kind](outputs, channels=channels, side=self.side)

    @classmethod
    def read(cls, text: str, path: Path) -> Description:
        """From the head of a file.

        Raises:
            UserError: It says something else.
        """
        try:
            values = json.loads(text)
            description = cls(**{**values, "sources": tuple(values["sources"])})
            known_kinds = (PRIMARY, SECONDARY, *get_args(ModelClass)[1:])
            known = description.kind in known_kinds and description.input in get_args(Input)
            if not known or not 8 <= description.side <= 4096 or not 0.0 < description.threshold < 1.0:
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{path}: what the file says of its network cannot be read: make it anew") from error
        return description


@dataclass(frozen=True)
class Stored:
    """A network with its weights, in evaluation mode, and what it needs besides.

    Attributes:
        description: What it is.
        network: Layers with published names.
        statistics: Of spectra, where these are its input.
    """

    description: Description
    network: nn.Sequential
    statistics: Statistics | None = None

    def with_description(self, **changed: Any) -> Stored:
        """The same, described otherwise."""
        return replace(self, description=replace(self.description, **changed))

    def transform(self, *, single_precision: bool = False) -> Callable[[Tensor], Tensor]:
        """From uint8 images (N, 3, side, side) to the input of the network."""
        if self.description.input == "dct":
            return LogSpectrum(self.statistics, single_precision)
        return SYMMETRIC if self.description.input == "pixel" else _grey


def from_state(
    description: Description, state: Mapping[str, Tensor], path: Path, statistics: Statistics | None = None
) -> Stored:
    """The network of a description with the weights of `state`.

    Raises:
        UserError: A tensor of `path` is missing, one too many, of another shape, or not finite.
    """
    with torch.random.fork_rng(devices=[]):
        network = description.build()
    wanted = _weights(network)
    if different := sorted(wanted.keys() ^ state.keys()):
        raise UserError(f"{path} does not hold a {description.kind} network: see {different[0]}")
    for name, target in wanted.items():
        value = state[name]
        if value.shape != target.shape:
            raise UserError(f"{path}: {name} is {tuple(value.shape)}, but {tuple(target.shape)} is expected")
        if not bool(torch.isfinite(value).all()) or (name.endswith("running_var") and bool((value < 0).any())):
            raise UserError(f"{path}: {name} has values that no network has: the file is damaged")
        target.copy_(value)
    if statistics is not None and statistics.mean.shape != (description.side, description.side):
        raise UserError(f"{path} reads {description.side} pixels, the statistics are {statistics.mean.shape}")
    return Stored(description, network.eval().requires_grad_(False), statistics)


def read_stored(path: Path) -> Stored:
    """A network of a safetensors file.

    Raises:
        UserError: The file is missing, damaged, or no network of this room.
    """
    if not path.is_file():
        raise UserError(f"no network {path}: check the path, or train it with src/attribute_source.py")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: give one that this room has written") from error
    if text is None:
        raise UserError(f"{path} holds no network of source attribution: give one of src/attribute_source.py")
    description = Description.read(text, path)
    maps = [tensors.pop(f"{_STATISTICS}{name}", None) for name in ("mean", "std")]
    mean, std = (None if value is None else value.double().numpy() for value in maps)
    statistics = None if mean is None or std is None else Statistics(mean, std)
    return from_state(description, {name: value.float() for name, value in tensors.items()}, path, statistics)


def write_stored(path: Path, stored: Stored) -> None:
    """Write a safetensors file, atomically."""
    tensors = {name: value.cpu().contiguous() for name, value in _weights(stored.network).items()}
    if stored.statistics is not None:
        maps = asdict(stored.statistics).items()
        tensors |= {f"{_STATISTICS}{name}": torch.from_numpy(np.ascontiguousarray(value)) for name, value in maps}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {_KEY: json.dumps(asdict(stored.description), sort_keys=True)})


def digest(network: nn.Module) -> str:
    """SHA-256 of names and values of the weights, whatever file they are in."""
    sha256 = hashlib.sha256()
    for name, value in sorted(_weights(network).items()):
        sha256.update(f"{name} {tuple(value.shape)}\n".encode())
        sha256.update(value.cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()


def check_belongs(secondary: Stored, primary: Stored, path: Path) -> None:
    """Refuse a secondary module of another primary.

    Raises:
        UserError: It was trained on other shared layers, or reads something else.
    """
    ours, theirs = (_weights(shared_layers(stored.network)) for stored in (primary, secondary))
    same = ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    if not same or secondary.description.primary != digest(primary.network):
        raise UserError(
            f"{path} belongs to another primary (SHA-256 of its weights {secondary.description.primary[:12]}, here "
            f"{digest(primary.network)[:12]}): train it on this one, or name its own"
        )


def _weights(network: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in network.state_dict().items() if not name.endswith(_UNUSED)}


def _grey(images: Tensor) -> Tensor:
    return SYMMETRIC(to_grayscale(images))[:, :1]
