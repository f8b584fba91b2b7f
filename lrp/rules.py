"""Propagation rules: how a step hands the relevance of its output on to its inputs.

A rule is a small object without state. `propagate` gets the step's operation, its input values and the relevance of
its output, and returns one relevance per input (None where the rule gives none). Rules never see names, hooks or
models. Notation: z_ij = x_i w_ij is the contribution of input i to output j, R_j the relevance of output j.

Sources: Bach et al. 2015 (epsilon and alpha-beta rules), Montavon et al. 2017 (z+ and z-box), Lapuschkin 2018 and the
code of Chandrasegaran et al. 2022 (adaptive beta), Arras et al. 2017 (gates). Biases take no relevance in the
alpha-beta rules and the z-box; in the epsilon rules they absorb their share.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from lrp.operations import LinearOperation, Move, Operation

GUARD = 1e-6
"""Contributions that sum to less than this share of the largest sum of a sample are taken for rounding of nothing."""

Inputs = tuple[Tensor, ...]
Relevances = tuple[Tensor | None, ...]


def stabilize(denominator: Tensor, epsilon: float) -> Tensor:
    """b + epsilon * sign(b), zero counting as positive; overwrites b, which is always a fresh tensor here."""
    # `sign` alone would leave zeros where they are. Minus zero is a sum of minus zeros, which take no relevance anyway.
    # A number that is filled in needs no upload, which a GPU would wait for.
    size = torch.full((), epsilon, dtype=denominator.dtype, device=denominator.device)
    return denominator.add_(torch.copysign(size, denominator))


def divide(relevance: Tensor, total: Tensor, guard: float) -> Tensor:
    """R / z for z >= 0, and 0 where z is not above `guard` times the largest z of the sample; overwrites z.

    Where contributions sum to nothing there is nobody to hand relevance to. A convolution computed by transforms
    (Winograd) may put about 1e-7 of its largest output there instead of 0, and the huge quotient would leak into
    neighbours.
    """
    if not guard:
        torch.threshold_(total, 0.0, torch.inf)
    elif total.device.type == "cpu":
        # There is no queue that the numbers wait for, and most samples have no such z.
        for sample, smallest, largest in zip(total, *_ranges(total), strict=True):
            if smallest <= guard * largest:
                torch.threshold_(sample, guard * largest, torch.inf)
    else:
        bounds = guard * total.amax(tuple(range(1, total.dim())), keepdim=True)
        total = torch.where(total > bounds, total, torch.inf)
    return torch.div(relevance, total, out=total)


def _ranges(total: Tensor) -> tuple[list[float], list[float]]:
    """Smallest and largest number of each sample, where none is negative: found faster in the order of their bits."""
    bits = total.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[total.element_size()])
    pixels = tuple(range(1, total.dim()))
    return bits.amin(pixels).view(total.dtype).tolist(), bits.amax(pixels).view(total.dtype).tolist()


class Rule(Protocol):
    """What the explainer asks of a rule."""

    needs_inputs: ClassVar[bool] = True
    """Whether `propagate` reads the input values; where not, they are not kept."""

    def propagate(self, operation: Operation, inputs: Inputs, relevance: Tensor, *, nonnegative: bool) -> Relevances:
        """Relevance of every input.

        Args:
            operation: The step's operation.
            inputs: Its input values; empty if `needs_inputs` is False.
            relevance: R of its output, same shape as the output.
            nonnegative: No input value is negative.
        """
        ...


def _linear(operation: Operation) -> LinearOperation:
    if not isinstance(operation, LinearOperation):
        raise TypeError(f"a rule for linear layers was given a {operation.kind}")
    return operation


@dataclass(frozen=True)
class PassThrough(Rule):
    """R_in = R_out: activations."""

    needs_inputs: ClassVar[bool] = False

    def propagate(self, operation: Operation, inputs: Inputs, relevance: Tensor, *, nonnegative: bool) -> Relevances:
        return (relevance,)


@dataclass(frozen=True)
class Restore(Rule):
    """R_in = R_out in the shape of the input: changes of shape."""

    def propagate(self, operation: Operation, inputs: Inputs, relevance: Tensor, *, nonnegative: bool) -> Relevances:
        return (relevance.reshape(inputs[0].shape),)


@dataclass(frozen=True)
class MoveBack(Rule):
    """R_in = R_out in the order of the input: changes of the order of dimensions."""

    needs_inputs: ClassVar[bool] = False

    def propagate(self, operation: Operation, inputs: Inputs, relevance: Tensor, *, nonnegative: bool) -> Relevances:
        if not isinstance(operation, Move):
            raise TypeError(f"a rule for changes of order was given a {operation.kind}")
        return (operation.back(relevance),)


@dataclass(frozen=True)
class SignalTakesAll(Rule):
    """A gate passes all relevance to the gated signal and none to the gate (Arras et al. 2017)."""

    needs_inputs: ClassVar[bool] = False

    def propagate(self, operation: Operation, inputs: Inputs, relevance: Tensor, *, nonnegative: bool) -> Relevances:
        return (relevance, None)


@dataclass(frozen=True)
class Gradient(Rule):
    """R_in = J^T R_out: winner-take-all for max pooling, a split for concatenation, averages for resampling."""

    def propagate(self, operation: Operation, inputs: Inputs, relevance: Tensor, *, nonnegative: bool) -> Relevances:
        parts = operation.gradient(relevance, *inputs)
        # more is added to each share on the way
        return tuple(part.clone() if part is relevance else part for part in parts)


@dataclass(frozen=True)
class Epsilon(Rule):
    """R_i = sum_j z_ij R_j / (z_j + epsilon sign z_j), z_j the whole output, bias included (Bach et al. 2015, eq. 58).

    For convolution, dense, average pooling and sums alike: all are linear in their inputs.
    """

    epsilon: float = 1e-6

    def propagate(self, operation: Operation, inputs: Inputs, relevance: Tensor, *, nonnegative: bool) -> Relevances:
        output = stabilize(operation.forward(*inputs), self.epsilon)
        ratio = torch.div(relevance, output, out=output)
        *first, last = zip(operation.gradient(ratio, *inputs), inputs, strict=True)
        # A sum hands the ratio itself to all of its inputs; nobody reads it after the last one.
        shares = [part * x for part, x in first]
        return (*shares, last[0].mul_(last[1]) if last[0] is ratio else last[0] * last[1])


@dataclass(frozen=True)
class AlphaBeta(Rule):
    """R_i = sum_j ((1 + beta) z+_ij / z+_j - beta z-_ij / z-_j) R_j (Bach et al. 2015, eq. 60; alpha = 1 + beta).

    z+_ij are the positive contributions (x+ w+ and x- w-), z-_ij the negative ones. beta = 0 is the z+ rule. Where
    one of the two sums is zero (see `divide` for `guard`) its share is absorbed.

    Raises:
        ValueError: beta or guard is negative.
    """

    beta: float = 0.0
    guard: float = GUARD

    def __post_init__(self) -> None:
        for name in ("beta", "guard"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def propagate(self, operation: Operation, inputs: Inputs, relevance: Tensor, *, nonnegative: bool) -> Relevances:
        contributions = Contributions(_linear(operation), inputs[0], nonnegative=nonnegative)
        up = contributions.share("+", divide(relevance, contributions.total("+"), self.guard))
        if self.beta == 0.0:
            return (up,)
        down = contributions.share("-", divide(relevance, contributions.total("-"), self.guard))
        return (up.mul_(1.0 + self.beta).sub_(down, alpha=self.beta),)


@dataclass(frozen=True)
class AdaptiveBeta(Rule):
    """Alpha-beta rule with a beta for every output unit: min(|z-_j| / y_j, limit) where y_j > 0, else 0.

    y_j is the output with its bias. The published `betaada` has limit 4.5.
    """

    limit: float = 4.5
    guard: float = GUARD

    def propagate(self, operation: Operation, inputs: Inputs, relevance: Tensor, *, nonnegative: bool) -> Relevances:
        linear = _linear(operation)
        contributions = Contributions(linear, inputs[0], nonnegative=nonnegative)
        positive, negative = contributions.total("+"), contributions.total("-")
        output = positive - negative
        if linear.bias is not None:
            output.add_(linear.bias.reshape(-1, *([1] * (output.dim() - 2))))
        # where the output is not positive the quotient is 0
        beta = torch.div(negative, torch.threshold_(output, 0.0, torch.inf), out=output).clamp_(max=self.limit)
        down = contributions.share("-", divide(relevance * beta, negative, self.guard))
        return (contributions.share("+", divide(beta.add_(1.0).mul_(relevance), positive, self.guard)).sub_(down),)


@dataclass(frozen=True)
class Gamma(Rule):
    """Contributions that go with the sign of the output count 1 + gamma times (Montavon et al. 2019, Sec. 10.2.3).

    R_i = sum_j (z_ij + gamma z^s_ij) / (y_j + gamma (z^s_j + b^s_j) + epsilon sign y_j) R_j, where z^s are the
    positive contributions if y_j >= 0 and the negative ones else, so that it also holds for inputs and outputs of both
    signs; b^s is the bias if it has that sign, and takes its share. gamma = 0 is the epsilon rule.

    Raises:
        ValueError: gamma is negative.
    """

    gamma: float
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma must not be negative, got {self.gamma}")

    def propagate(self, operation: Operation, inputs: Inputs, relevance: Tensor, *, nonnegative: bool) -> Relevances:
        linear, (x,) = _linear(operation), inputs
        contributions = Contributions(linear, x, nonnegative=nonnegative)
        output = linear.forward(x)
        positive, negative = contributions.total("+"), contributions.total("-")
        if linear.bias is not None:
            bias = linear.bias.to(output.dtype).reshape(-1, *([1] * (output.dim() - 2)))
            positive, negative = positive.add_(bias.clamp(min=0)), negative.sub_(bias.clamp(max=0))
        upper = output >= 0
        favoured = torch.where(upper, positive, -negative)
        ratio = relevance / stabilize(output.add_(favoured, alpha=self.gamma), self.epsilon)
        share = linear.adjoint(ratio, linear.weight, x).mul(x)
        share = share.add_(contributions.share("+", ratio * upper), alpha=self.gamma)
        return (share.sub_(contributions.share("-", ratio * ~upper), alpha=self.gamma),)


class Contributions:
    """Sizes |z_ij| of the contributions of one sign, summed over inputs (`total`) or spread over them (`share`)."""

    def __init__(self, operation: LinearOperation, x: Tensor, *, nonnegative: bool) -> None:
        self._operation = operation
        self._joined = not nonnegative and operation.reads_all_channels
        # Positive and negative part of the input; one that cannot be negative has no second part. Where every output
        # reads all channels the parts are the channels of one input, which takes one product instead of two.
        if nonnegative:
            self._inputs: tuple[Tensor, ...] = (x,)
        elif self._joined:
            self._inputs = (_parts_of(x),)
        else:
            self._inputs = (x.clamp(min=0), x.clamp(max=0))

    def _weights(self, sign: str) -> Iterable[Tensor]:
        return (self._operation.joined_parts(sign),) if self._joined else self._operation.parts(sign)

    def total(self, sign: str) -> Tensor:
        """sum_i |z_ij|; shape of the output."""
        first, *second = (self._operation.apply(x, w) for x, w in zip(self._inputs, self._weights(sign), strict=False))
        return first.add_(second[0]) if second else first

    def share(self, sign: str, ratio: Tensor) -> Tensor:
        """sum_j |z_ij| ratio_j; shape of the input."""
        (x, weight), *second = zip(self._inputs, self._weights(sign), strict=False)
        share = self._operation.adjoint(ratio, weight, x).mul_(x)
        for negative, weight in second:
            share.addcmul_(self._operation.adjoint(ratio, weight, negative), negative)
        return torch.add(*share.chunk(2, 1)) if self._joined else share


def _parts_of(x: Tensor) -> Tensor:
    """The positive and the negative part of x, one after the other along the channels."""
    channels = x.shape[1]
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    both = torch.empty((len(x), 2 * channels, *x.shape[2:]), dtype=x.dtype, device=x.device, memory_format=layout)
    torch.clamp(x, min=0, out=both[:, :channels])
    torch.clamp(x, max=0, out=both[:, channels:])
    return both


@dataclass(frozen=True)
class ZBox(Rule):
    """z-box rule for pixels bounded by [low, high] (Montavon et al. 2017, eq. 15; also called z-beta).

    z_ij = x_i w_ij - low w+_ij - high w-_ij. Bounds are numbers, or one number per channel.

    Raises:
        ValueError: low is not below high, or they are of different lengths.
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        low, high = (b if isinstance(b, tuple) else (b,) for b in (self.low, self.high))
        if len(low) != len(high) or not all(one < other for one, other in zip(low, high, strict=True)):
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")

    def propagate(self, operation: Operation, inputs: Inputs, relevance: Tensor, *, nonnegative: bool) -> Relevances:
        linear, (x,) = _linear(operation), inputs
        positive, negative = linear.parts("+")
        # The bounds are constant images; padding makes the response to them depend on the place, so it is computed,
        # once for the batch.
        ones = linear.ones_like(x)
        low, high = _image_of(self.low, ones), _image_of(self.high, ones)
        total = linear.apply(x, linear.weight).sub_(linear.apply(low, positive)).sub_(linear.apply(high, negative))
        ratio = torch.div(relevance, stabilize(total, self.epsilon), out=total)
        # x w - low w+ - high w- = (x - low) w+ + (x - high) w-
        share = linear.adjoint(ratio, positive, x).mul_(x - low)
        return (share.addcmul_(linear.adjoint(ratio, negative, x), x - high),)


def _image_of(bound: float | tuple[float, ...], ones: Tensor) -> Tensor:
    """The constant image of a bound, where `ones` is 1."""
    if isinstance(bound, float | int):
        return ones * bound
    # filled number by number: an upload would make a GPU wait
    return torch.cat([ones[:, c : c + 1] * value for c, value in enumerate(bound)], 1)
