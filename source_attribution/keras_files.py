"""Weights as Keras keeps them (HDF5), read and written: names of layers are the same, axes and names of tensors differ.

A published attribution file holds a primary of its own beside the secondary module, which is read with it.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from detectors.attribution_networks import STRIDE
from source_attribution.options import Input, Spectra
from source_attribution.spectra import Statistics
from source_attribution.stored import PRIMARY, SECONDARY, Description, Stored, digest, from_state
from utils.errors import UserError
from utils.files import atomic_path

_GROUP = "model_weights"
_TENSORS = {
    "Conv": {"kernel": "weight", "bias": "bias"},
    "Decision": {"kernel": "weight", "bias": "bias"},
    "BNorm": {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"},
}
_LEAST_CELLS = 64  # inputs of a dense layer from which on they are places, not averages over them


def is_keras(path: Path) -> bool:
    """Whether a file is called as those of Keras are."""
    return path.suffix.lower() in (".h5", ".hdf5")


def read_keras(path: Path, spectra: Spectra | None = None, source: str = "source") -> list[Stored]:
    """The primary of a file, and the secondary module or the network without transfer if there is one.

    Args:
        path: An HDF5 file of `model.save` or `model.save_weights`.
        spectra: Whether a network of one channel reads spectra, not grey pixels, and their statistics.
        source: What the attribution is called.

    Raises:
        UserError: Missing, damaged, or weights of something else.
    """
    if not path.is_file():
        raise UserError(f"no weights {path}: check the path")
    try:
        with h5py.File(path, "r") as file:
            weights = _arrays(file.get(_GROUP, file))
            side = _side(file.attrs.get("model_config"))
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged or no HDF5 file of Keras weights: download it again") from error
    if "dConv_01" not in weights:
        raise UserError(f"{path} holds no primary module (no layer dConv_01): give published weights")
    try:
        channels = weights["dConv_01"]["kernel"].shape[2]
        state = {
            f"{layer}.{_kind(layer)[name]}": torch.from_numpy(_permuted(array))
            for layer, arrays in weights.items()
            for name, array in arrays.items()
        }
        decision = next(state[name] for name in ("dDecision.weight", "aDecision.weight") if name in state)
    except (KeyError, IndexError, StopIteration, ValueError) as error:
        raise UserError(f"{path}: layers are not those of source attribution: give published weights") from error
    flat = decision.shape[1] > _LEAST_CELLS
    if flat:
        side = round((decision.shape[1] // 32) ** 0.5) * STRIDE
    spectra = spectra or Spectra()
    if spectra.dct != (flat and channels == 1):
        raise UserError(f"{path} reads {'spectra: give' if flat else 'pixels: leave out'} --dct")
    statistics = Statistics.given(spectra.normstats)
    reads: Input = "dct" if spectra.dct else "grey" if channels == 1 else "pixel"
    side = side or 128
    if "aConv_01" not in weights and "aDecision" in weights:
        return [from_state(Description("notl", side, reads, (source,)), state, path, statistics)]
    first_weights = {name: value for name, value in state.items() if name.startswith("d")}
    primary = from_state(Description(PRIMARY, side, reads), first_weights, path, statistics)
    if "aConv_01" not in weights:
        return [primary]
    kept = {name: value for name, value in state.items() if name.startswith("a") or _is_shared(name)}
    description = Description(SECONDARY, side, reads, (source,), digest(primary.network))
    return [primary, from_state(description, kept, path, statistics)]


def write_keras(path: Path, *networks: Stored) -> None:
    """Write the weights of a primary, or of it and one secondary, for `model.load_weights(path, by_name=True)`.

    Args:
        path: HDF5 file.
        networks: Layers that both have are written once.
    """
    layers: dict[str, dict[str, np.ndarray]] = {}
    for stored in networks:
        state = stored.network.state_dict()
        for layer, module in stored.network.named_children():
            names = _kind(layer) if any(True for _ in module.parameters()) else {}
            layers[layer] = {keras: _as_keras(state[f"{layer}.{ours}"]) for keras, ours in names.items()}
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        group = file.create_group(_GROUP)
        for node in (file, group):
            node.attrs["backend"], node.attrs["keras_version"] = "tensorflow", "2.4.0"
        group.attrs["layer_names"] = np.array(list(layers), "S")
        for layer, arrays in layers.items():
            of_layer = group.create_group(layer)
            of_layer.attrs["weight_names"] = np.array([f"{layer}/{name}:0" for name in arrays], "S" if arrays else None)
            for name, array in arrays.items():
                of_layer.create_dataset(f"{layer}/{name}:0", data=array)


def _arrays(group: h5py.Group) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by layer and by the name of the parameter; layers without any are left out."""
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for layer in group:
        inner = group[layer].get(layer) if isinstance(group[layer], h5py.Group) else None
        if isinstance(inner, h5py.Group) and len(inner):
            arrays[layer] = {name.removesuffix(":0"): np.asarray(inner[name], np.float32) for name in inner}
    return arrays


def _side(config: str | bytes | None) -> int | None:
    """Side of the input of a saved model."""
    layers = json.loads(config)["config"]["layers"] if config else []
    shapes = [layer["config"]["batch_input_shape"] for layer in layers if "batch_input_shape" in layer["config"]]
    return int(shapes[0][1]) if shapes else None


def _kind(layer: str) -> Mapping[str, str]:
    return _TENSORS[layer[1:].partition("_")[0]]


def _is_shared(name: str) -> bool:
    return name[0] == "d" and name.partition(".")[0].endswith(("_01", "_02", "_03", "_04"))


def _permuted(array: np.ndarray) -> np.ndarray:
    """(height, width, in, out) to (out, in, height, width); a dense kernel over H, W, C to one over C, H, W."""
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif array.ndim == 2:
        array = array[_places(len(array))].T
    return np.ascontiguousarray(array)


def _as_keras(tensor: Tensor) -> np.ndarray:
    """The reverse of `_permuted`."""
    array = tensor.cpu().numpy()
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 2:
        array = array.T[np.argsort(_places(array.shape[1]))]
    return np.ascontiguousarray(array)


def _places(inputs: int) -> np.ndarray:
    """Where each input of a dense layer over C, H, W is in one over H, W, C; without places where it is."""
    side = round((inputs // 32) ** 0.5) if inputs > _LEAST_CELLS else 1
    return np.arange(inputs).reshape(side, side, -1).transpose(2, 0, 1).ravel()
