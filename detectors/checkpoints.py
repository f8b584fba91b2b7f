"""From a checkpoint file to a network, or to one line saying what is wrong with it and how to mend it; and back."""

import argparse
import copy
import io
import re
import sys
import zipfile
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from detectors.networks import Architecture, architectures, get_architecture
from utils.errors import UserError
from utils.files import atomic_path
from utils.provenance import read_record

State = dict[str, Tensor]
T = TypeVar("T")
Shapes = Mapping[str, tuple[int, ...]]

_WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "netC")
_EXPECTED = f"expected a dictionary of tensors, bare or under one of the keys {', '.join(_WRAPPERS)}"
# left by DataParallel, by torch.compile and by modules that only hold the network
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
# Old checkpoints lack the batch counters of batch norms, which inference does not read.
_OPTIONAL = ".num_batches_tracked"
# what PyTorch and timm fill parameters with; the last four make a truncated normal of what was drawn
_FILLING = {"uniform_", "normal_", "kaiming_uniform_", "kaiming_normal_", "erfinv_", "mul_", "add_", "clamp_"}
_SQUEEZE_EXCITE = re.compile(r"\._se_(reduce|expand)\.(weight|bias)$")
_LONGEST_HEADER = 100_000_000
_SCALAR = np.float64(0).__reduce__()[0]
_ALLOWED: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float32", "float64", "str")),
    # as it was called before NumPy 2, and since
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]
_DETECTOR = "this is a detector, not an ImageNet classifier"
_OTHER_OUTPUTS = {
    1: _DETECTOR,
    2: _DETECTOR,
    1000: "this is an ImageNet classifier, give the checkpoint of a detector",
}
_AGAIN = "download it again, and compare its size and checksum with docs/data_and_weights.md"
_NOT_WEIGHTS = {
    b"": f"empty: {_AGAIN}",
    b"<": "a web page: its link leads to a page about the file, so download the file itself, perhaps in a browser",
    b"version https://git-lfs": "a pointer to a file in git LFS: fetch the file itself with git lfs pull",
    b"\x1f\x8b": "a compressed archive: unpack it, and give the file inside",
    b"Rar!": "a compressed archive: unpack it, and give the file inside",
    b"7z\xbc\xaf": "a compressed archive: unpack it, and give the file inside",
}


def read_state(path: Path) -> State:
    """Tensors of a checkpoint by name, on the CPU, as they are in the file (perhaps mapped to it).

    Accepted: a PyTorch file with a state dictionary, bare or under `model`, `state_dict`, `model_state_dict`, `net`
    or `netC`, and safetensors; the content decides, not the suffix. `module.`, `_orig_mod.`, `model.`, `net.` and
    `backbone.` are dropped where all names begin so.

    Raises:
        UserError: if the file is missing, unreadable, no checkpoint, or holds anything else than plain tensors.
    """
    if not path.exists():
        raise UserError(f"weights not found: {path}: see docs/data_and_weights.md for where to get them")
    if not path.is_file():
        raise UserError(f"weights {path} are not a file: give the checkpoint file itself")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except PermissionError as error:
        raise UserError(f"weights {path} cannot be read: check the permissions of the file") from error
    # safetensors begin with the length of their JSON header, whose bytes may look like anything
    is_safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, what in () if is_safetensors else _NOT_WEIGHTS.items():
        if text.startswith(magic) if magic else not start:
            raise UserError(f"weights {path} are not a readable checkpoint but {what}")
    content = _read_content(path, is_safetensors)
    if isinstance(content, Mapping):
        inside = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        # one of them may hold settings of the network
        tensors = [part for part in inside if any(isinstance(value, Tensor) for value in part.values())]
        content = next(iter([*tensors, *inside]), content)
    if not isinstance(content, Mapping):
        raise UserError(f"weights {path} are not a checkpoint: {_EXPECTED}")
    if not content:
        raise UserError(f"weights {path} hold no tensors, so are not a checkpoint: give the weights of a detector")
    state = {str(key): _plain_tensor(path, str(key), value) for key, value in content.items()}
    prefix = _prefix(state)
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _read_content(path: Path, is_safetensors: bool) -> object:
    try:
        if is_safetensors:
            return load_file(path, device="cpu")
        # mapped, so that the optimiser state of a training checkpoint is not read; many training scripts save their
        # arguments and NumPy's numbers beside the weights, and these can hold no more than what is allowed anyway
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    # a broken file can raise nearly anything from inside the restricted unpickler
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    # torch's own words; every error of its restricted unpickler speaks of foreign code, also that of a broken file
    if re.search("unsupported global|TorchScript", str(error), re.IGNORECASE):
        return UserError(
            f"weights {path} hold more than tensors and were not loaded, since that could run foreign code: "
            "save the state dictionary alone"
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("data.pkl") for name in archive.namelist()):
                return UserError(f"weights {path} are not a readable checkpoint but a zip archive: unpack it first")
    return UserError(
        f"weights {path} are not a readable checkpoint ({type(error).__name__}, {path.stat().st_size} bytes): "
        f"the file may be incomplete; {_AGAIN}"
    )


def _plain_tensor(path: Path, key: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        is_what = f"{key!r} is a {type(value).__name__}, not a tensor"
        raise UserError(f"weights {path} are not a checkpoint: {is_what}; {_EXPECTED}")
    if value.is_quantized or value.is_complex() or value.layout is not torch.strided:
        raise UserError(f"weights {path}: {key!r} is not a plain tensor: save the weights as float32 or float16")
    return value


def _prefix(names: Collection[str]) -> str:
    """What wrappers have put before all of the names."""
    prefix = ""
    while more := next((p for p in _PREFIXES if all(name.startswith(p, len(prefix)) for name in names)), None):
        prefix += more
    return prefix


def load_state(
    path: Path, state: State, architecture: Architecture, *, outputs: int | None = None, fake_class: int | None = None
) -> nn.Module:
    """A network with the weights of `state` in float32, on the CPU, with the outputs of the architecture's head.

    Names and shapes are compared before any tensor is copied. Two outputs of a detector are folded into one, the
    difference of fake and real: its sigmoid is the softmax of fake.

    Args:
        path: of the checkpoint, for messages.
        state: from `read_state`.
        architecture: of the network.
        outputs: of the network, if not those of the head.
        fake_class: which of two outputs is fake; else the architecture says.

    Raises:
        UserError: if the checkpoint is of another architecture, has another number of outputs, or a tensor is
            missing, unexpected, of another shape or type, or holds values that no network has.
    """
    outputs = architecture.head.outputs if outputs is None else outputs
    given = _shapes(state)
    state = _named_as_in(architecture, state)
    shapes, layer = _shapes(state), architecture.last_layer
    fold = outputs == 1 and _rows(shapes, architecture) == 2
    if shapes != _expected(architecture.build, 2 if fold else outputs):
        raise _misfit(path, shapes, architecture, outputs, _fitting(given))
    # comparing with all registered networks takes longer than reading the file
    settled = _is_settled(path, architecture.name)
    others = [] if settled else [name for name in _fitting(given) if name != architecture.name]
    if others:
        sys.stderr.write(
            f"warning: weights {path} fit {architecture.name} and {', '.join(others)} alike (a file tells neither "
            f"strides nor preprocessing): taken as {architecture.name}; --arch chooses another\n"
        )
    # the caller's random numbers must not depend on what a network draws beside its weights
    with torch.random.fork_rng(devices=[]), _Unfilled():
        model = architecture.build(outputs)
    for name, target in model.state_dict().items():
        if name.endswith(_OPTIONAL):
            if name in state and state[name].shape == target.shape:
                target.copy_(state[name])
            continue
        value = _checked(path, name, state[name], target)
        if fold and name.startswith(f"{layer}."):
            fake = _fake_class(path, architecture, fake_class)
            value = (value[fake].double() - value[1 - fake].double()).float()[None]
        target.copy_(value)
    return model


class _Unfilled(TorchFunctionMode):
    """Leaves out the random initialisation of parameters, which takes longer than reading a file that replaces it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        target = args[0] if args else given.get("tensor")
        if func.__name__ in _FILLING and isinstance(target, nn.Parameter):
            return target
        return func(*args, **given)


def _is_settled(path: Path, arch: str) -> bool:
    """Whether the place of a checkpoint, or the record beside it, says of which network it is."""
    record = read_record(path)
    for part in (record, record.get("facts")):
        arguments = part.get("arguments") if isinstance(part, Mapping) else None
        if isinstance(arguments, Mapping) and arguments.get("arch") == arch:
            return True
    return path.match(f"weights/{arch}/blur_jpg_prob*")


def _checked(path: Path, name: str, value: Tensor, target: Tensor) -> Tensor:
    """The tensor in the type of the target, unless its values cannot be right."""
    if value.is_floating_point() != target.is_floating_point():
        raise UserError(
            f"weights {path}: {name} is of type {str(value.dtype).removeprefix('torch.')}, perhaps quantised: "
            "save the weights as float32 or float16"
        )
    try:
        value = value.to(target.dtype)
    except RuntimeError as error:
        raise UserError(f"weights {path}: {name} cannot be read as float32: save the weights as float32") from error
    if not bool(torch.isfinite(value).all()):
        raise UserError(f"weights {path}: {name!r} is not finite (NaN or infinite values): the file is damaged")
    if name.endswith("running_var") and bool((value < 0).any()):
        raise UserError(f"weights {path}: {name!r} is a variance but has negative values: the file is damaged")
    return value


def _fake_class(path: Path, architecture: Architecture, chosen: int | None) -> int:
    fake = architecture.fake_class if chosen is None else chosen
    if fake is None:
        raise UserError(
            f"weights {path} have two outputs, and nothing says which is fake: give --fake_class 0 or 1 "
            "(training scripts number classes by the alphabet: of ai and nature, fake is 0)"
        )
    return fake


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith(_OPTIONAL)}


def _rows(shapes: Shapes, architecture: Architecture) -> int:
    """Number of outputs, 0 without the last layer."""
    return (*shapes.get(f"{architecture.last_layer}.weight", ()), 0)[0]


def _named_as_in(architecture: Architecture, state: Mapping[str, T]) -> dict[str, T]:
    """With the prefix that the network's own names have, too."""
    prefix = _prefix(_expected(architecture.build, 1))
    return {prefix + key: value for key, value in state.items()}


@cache
def _expected(build: Callable[[int], nn.Module], outputs: int) -> Shapes:
    """Names and shapes of a network, found without computing its weights where the network allows it."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                state = build(outputs).state_dict()
        except (RuntimeError, NotImplementedError):
            state = build(outputs).state_dict()
    return _shapes(state)


def _fitting(shapes: Shapes) -> list[str]:
    """Registered networks whose tensors, the number of outputs aside, have these names (without prefix) and shapes."""
    fitting = []
    for architecture in map(get_architecture, architectures()):
        # what is cheap to see goes before building the network; its own prefix is not known yet
        last = f".{architecture.last_layer}.weight"
        likely = any(last.endswith(f".{name}") for name in shapes) and architecture.telltale in {"", *shapes}
        if not likely:
            continue
        named = _named_as_in(architecture, shapes)
        rows = _rows(named, architecture)
        if rows and _expected(architecture.build, rows) == named:
            fitting.append(architecture.name)
    return fitting


def _misfit(path: Path, shapes: Shapes, architecture: Architecture, outputs: int, fitting: list[str]) -> UserError:
    name = architecture.name
    if name in fitting:
        rows = _rows(shapes, architecture)
        hint = _OTHER_OUTPUTS.get(rows, "give a checkpoint with that head")
        return UserError(f"weights {path} have {rows} outputs where {outputs} expected: {hint}")
    if fitting:
        return UserError(
            f"weights {path} are not of {name}: the checkpoint looks like {' or '.join(fitting)}; "
            "make --arch and --weights match"
        )
    expected = _expected(architecture.build, outputs)
    if 2 * sum(shapes.get(key) == shape for key, shape in expected.items()) <= len(expected):
        return UserError(
            f"weights {path} are not of {name}: the checkpoint is of no registered architecture; "
            "make --arch and --weights match, or register it (docs/adding_a_detector.md)"
        )
    different = {"missing": expected.keys() - shapes.keys(), "unexpected": shapes.keys() - expected.keys()}
    parts = [f"{len(keys)} tensors {how} (first: {min(keys)})" for how, keys in different.items() if keys]
    if not parts:
        key = min(key for key in expected if shapes[key] != expected[key])
        parts = [f"{key} has shape {shapes[key]} where {expected[key]} is expected"]
    return UserError(f"weights {path} do not fit {name}: {', '.join(parts)}")


def save_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values, atomically.

    Raises:
        UserError: The disk is full or the place cannot be written to; an earlier file is left as it was.
    """
    # torch's own writer puts the name of a file into it, and turns a full disk into a RuntimeError without a cause
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def save_half(path: Path, state: State, metadata: dict[str, str] | None = None) -> None:
    """Write weights as float16 .safetensors, atomically.

    Raises:
        UserError: As `save_tensors`.
    """
    half = {name: v.half() if v.is_floating_point() else v for name, v in state.items()}
    with atomic_path(path) as temporary:
        save_file({name: v.contiguous() for name, v in half.items()}, temporary, metadata)


def with_squeeze_excite_of(model: nn.Module, imagenet_checkpoint: Path) -> nn.Module:
    """A copy of an EfficientNet with the squeeze-and-excitation convolutions of an ImageNet checkpoint.

    The published rankings of EfficientNet were most likely computed with such a hybrid, because the explained
    copy of the detector kept the squeeze-and-excitation weights it was created with.

    Raises:
        UserError: if the model has no squeeze-and-excitation convolutions, or the checkpoint lacks one or its shape.
    """
    hybrid = copy.deepcopy(model)
    targets = {key: tensor for key, tensor in hybrid.state_dict().items() if _SQUEEZE_EXCITE.search(key)}
    if not targets:
        raise UserError("--compat_se is for EfficientNet only: this network has no squeeze-excite convolutions")
    state = read_state(imagenet_checkpoint)
    for key, tensor in targets.items():
        if key not in state or state[key].shape != tensor.shape or not bool(torch.isfinite(state[key]).all()):
            raise UserError(
                f"--compat_se {imagenet_checkpoint}: {key} is missing, of another shape or not finite: "
                "give the ImageNet checkpoint of the same EfficientNet"
            )
        tensor.copy_(state[key])
    return hybrid
