"""Canonisation: rewrite a traced network into an equal one that the rules can walk.

Everything happens on the program and on a copy of the model: the model keeps its weights, its modules and its hooks,
so there is nothing to undo, also after an exception.

- `remove_identities`: dropout and identities vanish.
- `fold_batch_norms`: y = s * (W x + b) + t becomes y = (s W) x + (s b + t) (Guillemot et al., 2020).
- `name_gates`: signal * sigmoid(...) becomes a `Gate` (squeeze-and-excitation); any other product is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lrp.attention import Frozen
from lrp.errors import UnsupportedLayerError
from lrp.operations import Activation, BatchNorm, Gate, Identity, LinearOperation, Product
from lrp.program import Program, without_steps
from lrp.tokens import mark_hidden_units, tokens_as_maps
from lrp.tracing import Trace, refuse_unready, trace

# Sides of the square images that a program is tried with: a small one of even and odd sizes on the way down, then those
# that networks with a fixed input size demand, the cheap ones first.
PROBE_SIZES = (
    *(
        40,
        32,
        28,
        12,
        4,
        48,
        64,
        96,
        112,
        128,
        160,
        192,
        224,
        240,
        256,
        288,
        299,
        320,
        336,
        384,
        392,
        448,
        504,
        512,
        518,
    ),
)
_TOLERANCE = 1e-8
_LARGE = 100_000_000
"""Weights of a model that is compared in single precision: in double, a ViT-L takes half a minute and 6 GB."""
_ROUNDED = 1e-4
"""Where the model itself computes with less precision."""


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
    refuse_unready(model)
    trials = _trials(model)
    traced = trace(trials.model, trials.first.images)
    traced.program.dtype = trials.first.images.dtype
    ranks = _compare(traced, trials)
    program = remove_identities(tokens_as_maps(traced.program, ranks))
    if program.dtype != torch.float64 and any(isinstance(step.operation, BatchNorm) for step in program.steps):
        program.to("cpu", torch.float64)
    if fold:
        program = fold_batch_norms(program, norm_residue=norm_residue)
    program = mark_hidden_units(mark_nonnegative(name_gates(program)))
    refuse_reached_weights(program)
    device = next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))
    return program.to(device, dtype)


def _trials(model: nn.Module) -> _Trials:
    """A copy of a model on the CPU with images that it takes, in double precision unless that fails or is too dear.

    Raises:
        UnsupportedLayerError: It cannot be copied, or takes no images.
    """
    weights = list(model.parameters())
    large = sum(weight.numel() for weight in weights) > _LARGE and all(w.dtype != torch.float64 for w in weights)
    trials = _Trials(_reference(model, torch.float32 if large else torch.float64))
    try:
        trials.first  # noqa: B018 (tried here)
    except UnsupportedLayerError:
        # some, such as OpenAI's CLIP, cast to float32 on the way and go on with weights in their own type
        trials = _Trials(_reference(model, torch.float32))
        trials.first  # noqa: B018
    return trials


def _reference(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    for name, module in model.named_modules():
        if any(isinstance(hook, WeightNorm | SpectralNorm) for hook in module._forward_pre_hooks.values()):
            raise UnsupportedLayerError(
                f"layer {name!r} of type {type(module).__name__} computes its weight in a hook: take the norm off with "
                "torch.nn.utils.remove_weight_norm or remove_spectral_norm, or use torch.nn.utils.parametrizations"
            )
    try:
        return copy.deepcopy(model).cpu().to(dtype)
    except (RuntimeError, TypeError) as error:
        raise UnsupportedLayerError(
            f"{type(model).__name__} cannot be copied ({str(error).splitlines()[0]}); "
            "it must not hold tensors that belong to a computation"
        ) from error


class _Trial(NamedTuple):
    """What a model made of random images: its output and, thinned out, those of its modules that are called once."""

    images: Tensor
    logits: Tensor
    outputs: Mapping[str, tuple[torch.Size, Tensor]]


class _Trials:
    """A model with random images of each size that it takes, of `PROBE_SIZES` and in this order."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._dtype = next((weight.dtype for weight in model.parameters()), torch.float64)
        self._sizes = iter(PROBE_SIZES)
        self._outputs: dict[str, tuple[torch.Size, Tensor]] = {}
        self._failure: Exception | None = None

    @cached_property
    def first(self) -> _Trial:
        """Of the first size.

        Raises:
            UnsupportedLayerError: The model takes none of the sizes.
        """
        for name, module in self.model.named_modules():
            module.register_forward_hook(self._watch(name))
        trial = self.next()
        if trial is None:
            raise UnsupportedLayerError(
                f"{type(self.model).__name__} takes no square images of three colours with sides of "
                f"{', '.join(map(str, sorted(PROBE_SIZES)))} pixels ({self._failure})"
            )
        return trial

    @torch.no_grad()
    def next(self) -> _Trial | None:
        """Of the next size, or None."""
        for size in self._sizes:
            self._outputs = {}
            images = torch.randn(2, 3, size, size, dtype=self._dtype, generator=torch.Generator().manual_seed(size))
            try:
                return _Trial(images, self.model(images.clone()), self._outputs)
            # what a model raises for images of another size: PyTorch for weights that do not fit, models themselves
            except (RuntimeError, ValueError, AssertionError) as error:
                self._failure = error
        return None

    def _watch(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(module: nn.Module, inputs: object, output: object) -> None:
            if name not in self._outputs and isinstance(output, Tensor):
                self._outputs[name] = (output.shape, _thinned(output).clone())

        return keep


def _thinned(values: Tensor) -> Tensor:
    """At most some 16,000 of the numbers, evenly spread."""
    return values.reshape(-1)[:: values.numel() // 2**14 | 1]


def _compare(traced: Trace, trials: _Trials) -> dict[int, int]:
    """Refuse a program whose outputs are not the model's.

    Returns:
        Number of dimensions of every value.
    """
    ranks = _compare_one(traced, trials.model, trials.first)
    # what depends on the sizes of the first images has to hold for others
    other = trials.next() if traced.sized else None
    if other is not None:
        _compare_one(traced, trials.model, other)
    return ranks


@torch.no_grad()
def _compare_one(traced: Trace, model: nn.Module, trial: _Trial) -> dict[int, int]:
    """As `_compare`; the message names the first layer that differs."""
    program, modules = traced.program, dict(model.named_modules())
    if trial.images.dtype != torch.float64:
        # what was computed from weights, as batch norms are, stays in double precision for what comes
        steps = [replace(step, operation=copy.copy(step.operation)) for step in program.steps]
        program = Program(steps).to("cpu", trial.images.dtype)
    tolerance = _ROUNDED if traced.rounded or trial.images.dtype != torch.float64 else _TOLERANCE
    numbers = {step.name: number for number, step in enumerate(program.steps, start=1)}
    ranks, wrong = {0: trial.images.dim()}, []

    def look(name: str, output: Tensor) -> None:
        number = numbers[name]
        ranks[number] = output.dim()
        module, expected = modules.get(name), trial.outputs.get(name)
        if number == program.output:
            expected = (trial.logits.shape, _thinned(trial.logits))
        # a function may stand at a place of the same name
        elif module is None or type(module).__name__ != program.steps[number - 1].origin:
            return
        output = output.movedim(0, traced.batches[number])
        if expected is not None and not _same(output, *expected, tolerance):
            wrong.append(number)

    try:
        program.run(trial.images.clone(), observed=numbers, observer=look)
    except RuntimeError as error:
        raise UnsupportedLayerError(f"{type(model).__name__} runs, its program does not: {error}") from error
    if wrong:
        step = program.steps[wrong[0] - 1]
        raise UnsupportedLayerError(
            f"layer {step.name!r} of type {step.origin} computes something else in the model than its type "
            "says (a hook, a replaced method, an input overwritten before, a choice by size); register it, or "
            "the module that holds it, with lrp.register_module"
        )
    return ranks


def _same(output: Tensor, shape: torch.Size, expected: Tensor, tolerance: float) -> bool:
    """Whether a tensor has this shape and, thinned out, these numbers."""
    if output.shape != shape:
        return False
    size = float(expected.nan_to_num(posinf=0.0, neginf=0.0).abs().max())
    return torch.allclose(_thinned(output), expected, rtol=0.0, atol=tolerance * size, equal_nan=True)


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
        if not isinstance(step.operation, Product) or isinstance(step.operation, Gate):
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


def refuse_reached_weights(program: Program) -> None:
    """Refuse a network whose output depends on attention weights or norms other than as constants.

    Raises:
        UnsupportedLayerError: One of them would receive relevance.
    """
    reached = _reached(program)
    for number, step in enumerate(program.steps, start=1):
        if isinstance(step.operation, Frozen) and number in reached:
            raise UnsupportedLayerError(
                f"{step.name!r} of type {step.origin} has no rule: it is neither a weight of softmax(...) @ values "
                "nor the divisor of a normalisation"
            )


def _reached(program: Program) -> set[int]:
    """Values that relevance can reach."""
    reached = {program.output}
    for index in reversed(range(len(program.steps))):
        if index + 1 in reached:
            reached.update(program.steps[index].explained_inputs)
    return reached


def explained_layers(program: Program) -> list[tuple[str, int]]:
    """Layers with feature maps that relevance can reach (those that only feed a gate cannot), and how many they have.

    In the order of the network: the 53 of ResNet-50 and the 49 of EfficientNet-B0 that rankings are about.
    """
    reached = _reached(program)
    numbers = {step.name: number for number, step in enumerate(program.steps, start=1)}
    return [layer for layer in program.convolutions() if numbers[layer[0]] in reached]
