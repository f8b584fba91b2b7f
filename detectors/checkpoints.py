"""From a checkpoint file to a network, or to one line saying what is wrong with the file."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from detectors.architectures import Architecture, architectures, get_architecture
from utils.errors import UserError

State = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]

_OPTIONAL = ".num_batches_tracked"


def read_state(path: Path) -> State:
    """Tensors of a checkpoint by name, on the CPU, floating point as float32.

    Accepted: a `.pth` dictionary with the state under `model`, a bare state dictionary, and `.safetensors`;
    `module.` before every name (left by DataParallel) is dropped.

    Raises:
        UserError: if the file is missing, unreadable, no checkpoint, holds anything else than tensors, or a
            tensor is not finite.
    """
    if not path.exists():
        raise UserError(f"weights not found: {path}: see docs/data_and_weights.md for where to get them")
    if not path.is_file():
        raise UserError(f"weights {path} are not a file: give the checkpoint file itself")
    content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pth(path)
    state = {str(key): value for key, value in content.items()}
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return {key: _checked_tensor(path, key, value) for key, value in state.items()}


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        content = load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise _not_a_checkpoint(path, error) from error
    if not content:
        raise UserError(f"weights {path} hold no tensors: give the checkpoint of a detector")
    return content


def _read_pth(path: Path) -> Mapping[str, object]:
    try:
        # mapped, so that the optimiser state of a training checkpoint is not read
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    # a broken file can raise nearly anything from inside the restricted unpickler
    except Exception as error:
        raise _not_a_checkpoint(path, error) from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"weights {path} are not a checkpoint: expected a dictionary of tensors, or of one as 'model'")
    return content


def _not_a_checkpoint(path: Path, error: Exception) -> UserError:
    if isinstance(error, PermissionError):
        return UserError(f"weights {path} cannot be read: check the permissions of the file")
    if "weights_only" in str(error).lower():
        return UserError(
            f"weights {path} hold more than tensors and were not loaded, since that could run foreign code: "
            "save the state dictionary alone"
        )
    return UserError(
        f"weights {path} are not a readable checkpoint ({type(error).__name__}): the file may be incomplete, "
        "compare its size and checksum with docs/data_and_weights.md"
    )


def _checked_tensor(path: Path, key: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise UserError(
            f"weights {path} are not a checkpoint: {key!r} is a {type(value).__name__}, not a tensor; "
            "expected a dictionary of tensors, or one under the key 'model'"
        )
    if value.is_quantized or value.is_complex() or value.layout is not torch.strided:
        raise UserError(f"weights {path}: {key!r} is not a plain tensor: save the weights as float32 or float16")
    if not value.is_floating_point():
        return value.clone()
    if not bool(torch.isfinite(value).all()):
        raise UserError(f"weights {path}: {key!r} is not finite (NaN or infinite values): the file is damaged")
    # a copy, so that no tensor stays mapped to a file that may be replaced
    return value.to(torch.float32, copy=True)


def load_state(path: Path, state: State, architecture: Architecture, outputs: int) -> nn.Module:
    """A network of `architecture` with that many outputs and the weights of `state`, on the CPU.

    The batch counters of batch norms, which old checkpoints lack and inference does not read, are optional.

    Raises:
        UserError: if the checkpoint is of another architecture, has another number of outputs, or a tensor is
            missing, unexpected or of another shape.
    """
    name = architecture.name
    model = _build(architecture, outputs)
    expected = _shapes(model.state_dict())
    found = _shapes(state)
    if found == expected:
        model.load_state_dict(state, strict=False)
        return model
    lookalikes = _identify(found)
    if name in lookalikes:
        rows = found[f"{architecture.head}.weight"][0]
        raise UserError(f"weights {path} have {rows} outputs where {outputs} expected: {_outputs_hint(rows)}")
    if lookalikes or not _mostly_alike(found, expected):
        guess = f"looks like {lookalikes[0]}" if lookalikes else "is of no registered architecture"
        raise UserError(f"weights {path} are not of {name}: the checkpoint {guess}; make --arch and --weights match")
    raise UserError(f"weights {path} do not fit {name}: {_first_difference(found, expected)}")


def _build(architecture: Architecture, outputs: int) -> nn.Module:
    # the random initialisation is overwritten or dropped: the caller's random numbers must not depend on it
    with torch.random.fork_rng(devices=[]):
        return architecture.build(outputs)


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith(_OPTIONAL)}


def _identify(found: Shapes) -> list[str]:
    """Registered architectures whose tensors, the size of the head aside, have these names and shapes."""
    matches = []
    for name in architectures():
        architecture = get_architecture(name)
        head = found.get(f"{architecture.head}.weight", ())
        if head and _shapes(_build(architecture, head[0]).state_dict()) == found:
            matches.append(name)
    return matches


def _mostly_alike(found: Shapes, expected: Shapes) -> bool:
    return 2 * sum(found.get(key) == shape for key, shape in expected.items()) > len(expected)


def _outputs_hint(rows: int) -> str:
    if rows == 1:
        return "this is a detector (one logit), not an ImageNet classifier"
    if rows == 1000:
        return "this is an ImageNet classifier, give the checkpoint of a detector (one logit)"
    return "give a checkpoint with that head"


def _first_difference(found: Shapes, expected: Shapes) -> str:
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    if missing or unexpected:
        parts = [
            f"{len(keys)} tensors {kind} (first: {keys[0]})"
            for kind, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        return ", ".join(parts)
    key = next(key for key in sorted(expected) if found[key] != expected[key])
    return f"{key} has shape {found[key]} where {expected[key]} is expected"
