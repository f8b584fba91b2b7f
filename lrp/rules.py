"""Propagation rules: how a step hands the relevance of its output on to its inputs.

A rule is a small object without state. `propagate` gets the step's operation, its input values and the relevance of
its output, and returns one relevance per input (None where the rule gives none). Rules never see names, hooks or
models. Notation: z_ij = x_i w_ij is the contribution of input i to output j, R_j the relevance of output j.

Sources: Bach et al. 2015 (epsilon and alpha-beta rules), Montavon et al. 2017 (z+ and z-box), Lapuschkin 2018 and the
code of Chandrasegaran et al. 2022 (adaptive beta), Arras et al. 2017 (gates). Biases take no relevance in the
alpha-beta rules and the z-box; in the epsilon rules they absorb their share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from lrp.operations import LinearOperation, Operation

# Lowest and highest value of an ImageNet-normalised image over the three channels: (0 - 0.485) / 0.229 and
# (1 - 0.406) / 0.225, the latter rounded as in the published code.
IMAGENET_LOW, IMAGENET_HIGH = -2.1179039, 2.64

Relevances = tuple[Tensor | None, ...]


def stabilize(denominator: Tensor, *, epsilon: float = 0.0, at_zero: float = torch.inf) -> Tensor:
    """b + epsilon * sign(b), zero counting as positive; with epsilon = 0, `at_zero` where b is exactly zero.

    The one place that guards a division.

    Args:
        denominator: Any shape; overwritten, because it is always a fresh tensor here.
        epsilon: Added away from zero.
        at_zero: Value that replaces an exact zero if epsilon is 0; a quotient by the default is 0.
    """
    if epsilon:
        # Without a minus zero `copysign` takes zero for positive; a sum is minus zero only if all its terms are, and
        # then they take no relevance anyway.
        return denominator.add_(torch.copysign(denominator.new_tensor(epsilon), denominator))
    return denominator.masked_fill_(denominator == 0, at_zero)


def stabilize_nonnegative(denominator: Tensor, *, at_zero: float = 1e-12) -> Tensor:
    """`stabilize` without epsilon for b >= 0, in one memory pass instead of two: infinity where b <= at_zero.

    A quotient by infinity is 0. Where the positive contributions sum to nothing there is nobody to hand relevance to,
    and a huge quotient instead would leak into neighbours wherever a convolution is computed by transforms (Winograd).
    """
    return torch.threshold_(denominator, at_zero, torch.inf)


class Rule(Protocol):
    """What the explainer asks of a rule."""

    needs_inputs: ClassVar[bool]
    """Whether `propagate` reads the input values; where not, they are not kept."""

    def propagate(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor, *, nonnegative: bool
    ) -> Relevances:
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
class PassThrough:
    """R_in = R_out: activations, flattening (reshaped), neutralised layers."""

    needs_inputs: ClassVar[bool] = False

    def propagate(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor, *, nonnegative: bool
    ) -> Relevances:
        return (relevance,)


@dataclass(frozen=True)
class Reshape:
    """R_in = R_out in the shape of the input: flattening."""

    needs_inputs: ClassVar[bool] = True

    def propagate(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor, *, nonnegative: bool
    ) -> Relevances:
        return (relevance.reshape(inputs[0].shape),)


@dataclass(frozen=True)
class SignalTakesAll:
    """A gate passes all relevance to the gated signal and none to the gate (Arras et al. 2017)."""

    needs_inputs: ClassVar[bool] = False

    def propagate(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor, *, nonnegative: bool
    ) -> Relevances:
        return (relevance, None)


@dataclass(frozen=True)
class Gradient:
    """R_in = J^T R_out: winner-take-all for max pooling, a split for concatenation."""

    needs_inputs: ClassVar[bool] = True

    def propagate(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor, *, nonnegative: bool
    ) -> Relevances:
        return operation.gradient(relevance, *inputs)


@dataclass(frozen=True)
class Epsilon:
    """R_i = sum_j z_ij R_j / (z_j + epsilon sign z_j), z_j the whole output, bias included (Bach et al. 2015, eq. 58).

    For convolution, dense, average pooling and sums alike: all are linear in their inputs.
    """

    epsilon: float = 1e-6
    needs_inputs: ClassVar[bool] = True

    def propagate(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor, *, nonnegative: bool
    ) -> Relevances:
        output = operation.forward(*inputs)
        ratio = relevance / stabilize(output, epsilon=self.epsilon)
        if isinstance(operation, LinearOperation):
            return (operation.adjoint(ratio, operation.weight, inputs[0]).mul_(inputs[0]),)
        return tuple(g * x for g, x in zip(operation.gradient(ratio, *inputs), inputs, strict=True))


@dataclass(frozen=True)
class EpsilonSum:
    """The epsilon rule for a residual sum without going through autograd: R_i = x_i R / (x_1 + x_2 + ...)."""

    epsilon: float = 1e-6
    needs_inputs: ClassVar[bool] = True

    def propagate(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor, *, nonnegative: bool
    ) -> Relevances:
        total = stabilize(operation.forward(*inputs), epsilon=self.epsilon)
        ratio = torch.div(relevance, total, out=total)
        return tuple(value * ratio for value in inputs)


@dataclass(frozen=True)
class AlphaBeta:
    """R_i = sum_j ((1 + beta) z+_ij / z+_j - beta z-_ij / z-_j) R_j (Bach et al. 2015, eq. 60; alpha = 1 + beta).

    z+_ij are the positive contributions (x+ w+ and x- w-), z-_ij the negative ones. beta = 0 is the z+ rule. Where
    one of the two sums is zero its share is absorbed.

    Raises:
        ValueError: beta is negative.
    """

    beta: float = 0.0
    needs_inputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"beta must not be negative, got {self.beta}")

    def propagate(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor, *, nonnegative: bool
    ) -> Relevances:
        contributions = _Contributions(_linear(operation), inputs[0], nonnegative=nonnegative)
        if self.beta == 0.0:
            positive = stabilize_nonnegative(contributions.total("+"))
            return (contributions.share("+", torch.div(relevance, positive, out=positive)),)
        positive = stabilize(contributions.total("+"))
        negative = stabilize(contributions.total("-"))
        up = contributions.share("+", torch.div(relevance, positive, out=positive).mul_(1.0 + self.beta))
        down = contributions.share("-", torch.div(relevance, negative, out=negative).mul_(self.beta))
        return (up.sub_(down),)


@dataclass(frozen=True)
class AdaptiveBeta:
    """Alpha-beta rule with a beta for every output unit: min(|z-_j| / y_j, limit) where y_j > 0, else 0.

    y_j is the output with its bias. The published `betaada` has limit 4.5.
    """

    limit: float = 4.5
    needs_inputs: ClassVar[bool] = True

    def propagate(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor, *, nonnegative: bool
    ) -> Relevances:
        linear = _linear(operation)
        contributions = _Contributions(linear, inputs[0], nonnegative=nonnegative)
        positive, negative = contributions.total("+"), contributions.total("-")
        output = linear.forward(inputs[0])
        beta = torch.where(output > 0, -negative / stabilize(output, at_zero=1.0), 0.0).clamp_(max=self.limit)
        up = (relevance * (1.0 + beta)) / stabilize(positive)
        down = (relevance * beta) / stabilize(negative)
        return (contributions.share("+", up).sub_(contributions.share("-", down)),)


class _Contributions:
    """Positive and negative contributions z_ij of a linear layer, summed (`total`) or spread (`share`) over i."""

    def __init__(self, operation: LinearOperation, x: Tensor, *, nonnegative: bool) -> None:
        self._operation = operation
        # (part of the input, sign of that part); an input that cannot be negative has no second part.
        self._parts = [(x, "+")] if nonnegative else [(x.clamp(min=0), "+"), (x.clamp(max=0), "-")]

    def _weight(self, input_sign: str, contribution_sign: str) -> Tensor:
        # plus times plus and minus times minus contribute positively
        return self._operation.part("+" if input_sign == contribution_sign else "-")

    def total(self, sign: str) -> Tensor:
        """sum_i z_ij over the contributions of one sign; shape of the output."""
        (first, first_sign), *others = self._parts
        total = self._operation.apply(first, self._weight(first_sign, sign))
        for part, part_sign in others:
            total.add_(self._operation.apply(part, self._weight(part_sign, sign)))
        return total

    def share(self, sign: str, ratio: Tensor) -> Tensor:
        """sum_j z_ij ratio_j over the contributions of one sign; shape of the input."""
        (first, first_sign), *others = self._parts
        share = self._operation.adjoint(ratio, self._weight(first_sign, sign), first).mul_(first)
        for part, part_sign in others:
            share.addcmul_(self._operation.adjoint(ratio, self._weight(part_sign, sign), part), part)
        return share


@dataclass(frozen=True)
class ZBox:
    """z-box rule for pixels bounded by [low, high] (Montavon et al. 2017, eq. 15; also called z-beta).

    z_ij = x_i w_ij - low w+_ij - high w-_ij. The bounds are one number for all channels, as published: the lowest and
    the highest value of any ImageNet-normalised channel.

    Raises:
        ValueError: low is not below high.
    """

    low: float = IMAGENET_LOW
    high: float = IMAGENET_HIGH
    epsilon: float = 1e-6
    needs_inputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")

    def propagate(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor, *, nonnegative: bool
    ) -> Relevances:
        linear, (x,) = _linear(operation), inputs
        # The two bounds see the same constant image; padding makes its response depend on the place, so it is
        # computed, once for the batch.
        ones = torch.ones_like(x[:1])
        bound = linear.apply(ones, linear.part("+")) * self.low + linear.apply(ones, linear.part("-")) * self.high
        total = linear.apply(x, linear.weight) - bound
        ratio = relevance / stabilize(total, epsilon=self.epsilon)
        # x w - low w+ - high w- = (x - low) w+ + (x - high) w-
        share = linear.adjoint(ratio, linear.part("+"), x).mul_(x - self.low)
        return (share.addcmul_(linear.adjoint(ratio, linear.part("-"), x), x - self.high),)
