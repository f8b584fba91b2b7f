"""Canonisation: rewrite a traced network into an equal one that the rules can walk.

Everything happens on the program and on a copy of the model: the model keeps its weights, its modules and its hooks,
so there is nothing to undo, also after an exception.

- `remove_identities`: dropout and identities vanish.
- `fold_batch_norms`: y = s * (W x + b) + t becomes y = (s W) x + (s b + t) (Guillemot et al., 2020).
- `name_gates`: signal * sigmoid(...) becomes a `Gate` (squeeze-and-excitation); any other product is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lrp.errors import UnsupportedLayerError
from lrp.operations import Activation, BatchNorm, Convolution, Gate, Identity, LinearOperation, Product
from lrp.program import Program, without_steps
from lrp.tracing import trace

# Sides of the square images that a program is tried with: small ones first, of even and odd sizes on the way down, then
# those that networks with a fixed input size demand.
PROBE_SIZES = (40, 64, 128, 224, 256, 299, 384, 512, 32, 28, 12, 4)
_TOLERANCE = 1e-8


def build_program(
    model: nn.Module, *, fold: bool = True, norm_residue: bool = False, dtype: torch.dtype = torch.float32
) -> Program:
    """Trace and canonise a model, on its device, and make sure that the program computes what the model computes.

    Model and program are compared once, layer by layer, on random images in double precision on the CPU. This takes
    about as long as reading the weights a few times: 0.3 s for a ResNet-50.

    Args:
        model: The network in evaluation mode; it is left as it was found (its hooks see the random images, once).
        fold: Fold batch norms. Without it the outputs of convolutions are the raw feature maps (before batch norm)
            that dropout and max activations work on.
        norm_residue: Keep the factor 1 / sqrt(1 + eps) of the published code's neutralised batch norms.
        dtype: Floating-point type of the convolutions.

    Raises:
        UnsupportedLayerError: A layer, addition or product has no counterpart, or computes something else than its
            counterpart; the message names it and its type.
    """
    reference = _reference(model)
    program = trace(reference)
    program.dtype = torch.float64
    _compare(program, reference)
    program = remove_identities(program)
    if fold:
        program = fold_batch_norms(program, norm_residue=norm_residue)
    program = mark_nonnegative(name_gates(program))
    device = next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))
    return program.to(device, dtype)


def _reference(model: nn.Module) -> nn.Module:
    """A copy in double precision on the CPU: batch norms are folded in it, and some devices have no float64."""
    for name, module in model.named_modules():
        if any(isinstance(hook, WeightNorm | SpectralNorm) for hook in module._forward_pre_hooks.values()):
            raise UnsupportedLayerError(
                f"layer {name!r} of type {type(module).__name__} computes its weight in a hook: take the norm off with "
                "torch.nn.utils.remove_weight_norm or remove_spectral_norm, or use torch.nn.utils.parametrizations"
            )
    try:
        return copy.deepcopy(model).cpu().double()
    except (RuntimeError, TypeError) as error:
        raise UnsupportedLayerError(
            f"{type(model).__name__} cannot be copied ({str(error).splitlines()[0]}); "
            "it must not hold tensors that belong to a computation"
        ) from error


@torch.no_grad()
def _compare(program: Program, reference: nn.Module) -> None:
    """Refuse a program whose outputs are not the model's, naming the first layer that differs."""
    outputs: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(module: nn.Module, inputs: object, output: object) -> None:
            if name not in outputs and isinstance(output, Tensor):
                outputs[name] = output.clone()

        return keep

    modules = dict(reference.named_modules())
    for step in program.steps:
        module = modules.get(step.name)
        # a function may stand at a place of the same name
        if module is not None and type(module).__name__ == step.origin:
            module.register_forward_hook(watch(step.name))
    failure: RuntimeError | ValueError | None = None
    for size in PROBE_SIZES:
        outputs.clear()
        probe = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
        try:
            logits = reference(probe.clone())
        except (RuntimeError, ValueError) as error:
            failure = error
            continue
        try:
            values = program.run(probe.clone(), keep=range(len(program.steps) + 1))
        except RuntimeError as error:
            raise UnsupportedLayerError(f"{type(reference).__name__} runs, its program does not: {error}") from error
        for number, step in enumerate(program.steps, start=1):
            expected = logits if number == program.output else outputs.get(step.name)
            if expected is not None and not _same(values[number], expected):
                raise UnsupportedLayerError(
                    f"layer {step.name!r} of type {step.origin} computes something else in the model than its type "
                    "says (a hook, a replaced method, an input overwritten before, a choice by size); register it, or "
                    "the module that holds it, with lrp.register_module"
                )
        return
    raise UnsupportedLayerError(
        f"{type(reference).__name__} takes no square images of three colours with sides of "
        f"{', '.join(map(str, sorted(PROBE_SIZES)))} pixels ({failure})"
    )


def _same(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    size = float(expected.nan_to_num(posinf=0.0, neginf=0.0).abs().max())
    return torch.allclose(found, expected, rtol=0.0, atol=_TOLERANCE * size, equal_nan=True)


def remove_identities(program: Program) -> Program:
    """Drop steps that do nothing in evaluation mode."""
    replaced = {
        index + 1: step.inputs[0] for index, step in enumerate(program.steps) if isinstance(step.operation, Identity)
    }
    return without_steps(program, replaced)


def fold_batch_norms(program: Program, *, norm_residue: bool = False) -> Program:
    """Fold every batch norm that follows a convolution or dense layer of its own into it; the others stay."""
    readers = program.consumers()
    replaced: dict[int, int] = {}
    for index, step in enumerate(program.steps):
        norm = step.operation
        if not isinstance(norm, BatchNorm):
            continue
        residue = norm.residue if norm_residue else 1.0
        # of a norm that was folded itself, what that went into
        value = replaced.get(step.inputs[0], step.inputs[0])
        before = program.steps[value - 1].operation if value else None
        if isinstance(before, LinearOperation) and len(readers[step.inputs[0]]) == 1:
            before.scale_output(norm.weight * residue, norm.bias * residue)
            replaced[index + 1] = value
        else:
            norm.weight, norm.bias = norm.weight * residue, norm.bias * residue
    return without_steps(program, replaced)


def name_gates(program: Program) -> Program:
    """Turn signal * sigmoid(...) into gates, signal first.

    Raises:
        UnsupportedLayerError: A product of which no factor, or each, is a sigmoid.
    """
    for step in program.steps:
        if not isinstance(step.operation, Product):
            continue
        sigmoids = [value for value in step.inputs if _is_sigmoid(program, value)]
        if len(sigmoids) != 1:
            raise UnsupportedLayerError(
                f"product {step.name!r} of type {step.origin} is not signal * sigmoid(...): cannot be canonised"
            )
        signal = next(value for value in step.inputs if value != sigmoids[0])
        step.operation, step.inputs = Gate(), (signal, sigmoids[0])
    return program


def _is_sigmoid(program: Program, value: int) -> bool:
    operation = program.steps[value - 1].operation if value else None
    return isinstance(operation, Activation) and operation.name in ("sigmoid", "hardsigmoid")


def mark_nonnegative(program: Program) -> Program:
    """Find the steps whose inputs can never be negative: there the z+ rule needs half the convolutions."""
    nonnegative = [False] * (len(program.steps) + 1)
    for index, step in enumerate(program.steps):
        operation = step.operation
        step.nonnegative_inputs = all(nonnegative[value] for value in step.inputs)
        nonnegative[index + 1] = operation.nonnegative or (step.nonnegative_inputs and operation.keeps_sign)
    return program


def explained_layers(program: Program) -> list[tuple[str, int]]:
    """Convolutions that relevance can reach (those that only feed a gate cannot), with their number of maps.

    In the order of the network: the 53 of ResNet-50 and the 49 of EfficientNet-B0 that rankings are about.
    """
    reached = {program.output}
    for index in reversed(range(len(program.steps))):
        step = program.steps[index]
        if index + 1 in reached:
            reached.update(step.explained_inputs)
    return [
        (step.name, step.operation.channels)
        for index, step in enumerate(program.steps)
        if isinstance(step.operation, Convolution) and index + 1 in reached
    ]
