"""Weights of generators: float16 safetensors with the generator's name."""

from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from utils.errors import UserError
from utils.files import atomic_path

_NAME = "generator"  # key of the metadata
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def save_weights(module: nn.Module, name: str, path: Path) -> None:
    """Write the weights in float16 as safetensors with the generator's name, atomically.

    Args:
        module: The generator.
        name: Its name. Some generators differ in layers without weights only, so that shapes do not tell them apart.
        path: To write.
    """
    state = {key: value.half().contiguous() for key, value in module.state_dict().items()}
    with atomic_path(path) as temporary:
        # one entry only: safetensors writes several in an order that changes from run to run
        save_file(state, temporary, metadata={_NAME: name})


def load_weights(module: AnyModule, name: str, path: Path) -> AnyModule:
    """The generator in evaluation mode with the weights of a file, which needs no gradient.

    Raises:
        UserError: The file is missing, damaged, or of another generator.
    """
    if not path.is_file():
        raise UserError(f"no weights of the generator {name}: {path}: check --generators")
    try:
        with safe_open(path, framework="pt") as file:
            recorded = (file.metadata() or {}).get(_NAME)
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file: fetch or make it again") from error
    wanted = {key: value.shape for key, value in module.state_dict().items()}
    if recorded != name or wanted != {key: value.shape for key, value in state.items()}:
        raise UserError(f"{path} holds weights of another generator than {name}: fetch or make it again")
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)
