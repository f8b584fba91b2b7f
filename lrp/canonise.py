"""Canonisation: rewrite a traced network into an equal one that the rules can walk.

Everything happens on the program, a copy: the model keeps its weights, its modules and its hooks, so there is
nothing to undo, also after an exception.

- `remove_identities`: dropout and identities vanish.
- `fold_batch_norms`: y = s * (W x + b) + t becomes y = (s W) x + (s b + t) (Guillemot et al., 2020).
- `name_residual_sums`: an addition of two tensors becomes a `Sum`, which has a rule; any other addition is refused.
- `name_gates`: signal * sigmoid(...) becomes a `Gate` (squeeze-and-excitation); any other product is refused.
"""

from __future__ import annotations

import torch
from torch import nn

from lrp.errors import UnsupportedLayerError
from lrp.operations import Activation, BatchNorm, Convolution, Gate, Identity, LinearOperation, Sum
from lrp.program import Program, module_device, without_steps
from lrp.tracing import Addition, Product, trace


def build_program(
    model: nn.Module,
    *,
    fold: bool = True,
    published: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Program:
    """Trace and canonise a model.

    Args:
        model: The network in evaluation mode; it is left as it was found.
        fold: Fold batch norms. Without it the outputs of convolutions are the raw feature maps (before batch norm)
            that dropout and max activations work on.
        published: Keep the factor 1 / sqrt(1 + eps) of the published code's neutralised batch norms.
        dtype: Floating-point type of the convolutions.
        device: Where to put the parameters; the model's device by default.

    Raises:
        UnsupportedLayerError: A layer, addition or product has no counterpart; the message names it and its type.
    """
    program = remove_identities(trace(model))
    if fold:
        program = fold_batch_norms(program, published=published)
    program = name_gates(name_residual_sums(program))
    program = mark_nonnegative(program)
    program.to(module_device(model) if device is None else device, dtype)
    return program


def remove_identities(program: Program) -> Program:
    """Drop steps that do nothing in evaluation mode."""
    replaced = {
        index + 1: step.inputs[0] for index, step in enumerate(program.steps) if isinstance(step.operation, Identity)
    }
    return without_steps(program, replaced)


def fold_batch_norms(program: Program, *, published: bool = False) -> Program:
    """Fold every batch norm into the convolution or dense layer before it, in double precision.

    Raises:
        UnsupportedLayerError: A batch norm does not follow a linear layer of its own.
    """
    readers = program.consumers()
    replaced: dict[int, int] = {}
    for index, step in enumerate(program.steps):
        norm = step.operation
        if not isinstance(norm, BatchNorm):
            continue
        (value,) = step.inputs
        before = program.steps[value - 1].operation if value else None
        if not isinstance(before, LinearOperation) or len(readers[value]) != 1:
            raise UnsupportedLayerError(
                f"batch norm {step.name!r} ({step.origin}) does not follow a convolution of its own: cannot be folded"
            )
        residue = norm.residue if published else 1.0
        before.weight = before.weight.double()
        before.bias = None if before.bias is None else before.bias.double()
        before.scale_output(norm.scale * residue, norm.shift * residue)
        replaced[index + 1] = value
    return without_steps(program, replaced)


def name_residual_sums(program: Program) -> Program:
    """Turn additions of two tensors into sums, which the rules know.

    Raises:
        UnsupportedLayerError: An addition takes the same tensor twice: not a residual.
    """
    for step in program.steps:
        if isinstance(step.operation, Addition):
            if step.inputs[0] == step.inputs[1]:
                raise UnsupportedLayerError(
                    f"addition {step.name!r} of type {step.origin} adds a tensor to itself: not a residual sum"
                )
            step.operation = Sum(step.name)
    return program


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
        made_so = isinstance(operation, Activation) and operation.nonnegative
        nonnegative[index + 1] = made_so or (step.nonnegative_inputs and operation.preserves_sign())
    return program


def explained_layers(program: Program) -> list[tuple[str, int]]:
    """Convolutions that relevance can reach (those that only feed a gate cannot), with their number of maps.

    In the order of the network: the 53 of ResNet-50 and the 49 of EfficientNet-B0 that rankings are about.
    """
    reached = {program.output}
    for index in reversed(range(len(program.steps))):
        step = program.steps[index]
        if index + 1 in reached:
            reached.update(step.inputs[:1] if isinstance(step.operation, Gate) else step.inputs)
    return [
        (step.name, step.operation.channels)
        for index, step in enumerate(program.steps)
        if isinstance(step.operation, Convolution) and index + 1 in reached
    ]
