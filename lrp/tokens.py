"""Networks of tokens: how their tensors are laid out, and where their feature maps are.

A tensor of tokens is (N, T, C), images first and channels last. A dense layer there is a convolution of 1x1 pixels over
an image of one row, a pixel for each token: so its rules, its feature maps and all that is done with them are those of
convolutions. In channels-last memory both are the same numbers in the same order, and nothing is copied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lrp.errors import UnsupportedLayerError
from lrp.operations import Activation, Concatenation, Convolution, Dense, Gate, Move, Operation
from lrp.program import Program, Step

MAPS, TOKENS = "@maps", "@tokens"
"""What is added to the name of a dense layer for the steps before and after it."""


def permutation(order: Sequence[int]) -> Move:
    """Dimensions in another order."""
    there = tuple(order)
    back = tuple(there.index(dim) for dim in range(len(there)))
    return Move(lambda x: x.permute(there), lambda upstream: upstream.permute(back))


class Scaling(Operation):
    """x times a constant that broadcasts to it: each output has one contribution."""

    kind = "scale"

    def __init__(self, scale: Tensor) -> None:
        self.scale = scale

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        self.scale = self.scale.to(device, dtype)

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] * self.scale


class Shift(Operation):
    """x, or with `sign` -1 its negative, plus a constant that broadcasts to it: the position embedding."""

    kind = "shift"

    def __init__(self, constant: Tensor, sign: int = 1) -> None:
        self.constant, self.sign = constant, sign

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        self.constant = self.constant.to(device, dtype)

    def forward(self, *inputs: Tensor) -> Tensor:
        (x,), shape = inputs, self.constant.shape
        if len(shape) == x.dim() and any(
            1 not in pair and len({*pair}) > 1 for pair in zip(shape, x.shape, strict=True)
        ):
            raise UnsupportedLayerError(
                f"an embedding of shape {tuple(shape[1:])} does not fit {tuple(x.shape[1:])}: "
                "the network takes images of another size"
            )
        return torch.add(self.constant, x, alpha=self.sign)

    def gradient(self, upstream: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (upstream * self.sign,)


class Joined(Concatenation):
    """Concatenation with constants that are the same for every image, as class and register tokens are.

    Args:
        dim: Dimension.
        constants: By place among the parts, (1, ...).
        parts: How many there are.
    """

    def __init__(self, dim: int, constants: Mapping[int, Tensor], parts: int) -> None:
        super().__init__(dim)
        self.constants, self.parts = dict(constants), parts
        self.pixelwise = self.keeps_sign = False

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        self.constants = {index: part.to(device, dtype) for index, part in self.constants.items()}

    def _all(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        given = iter(inputs)
        parts = [self.constants.get(index) for index in range(self.parts)]
        return [next(given) if part is None else part.expand(len(inputs[0]), *part.shape[1:]) for part in parts]

    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(*self._all(inputs))

    def gradient(self, upstream: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        parts = super().gradient(upstream, *self._all(inputs))
        return tuple(part for index, part in enumerate(parts) if index not in self.constants)


class TokenDense(Convolution):
    """A dense layer of every token, as a convolution of 1x1 pixels; its rule is that of dense layers.

    `has_feature_maps` is set where the outputs are the hidden units of an MLP.
    """

    kind = "dense"
    has_feature_maps = False

    def __init__(self, layer: Dense) -> None:
        super().__init__(layer.weight[..., None, None], layer.bias)


def tokens_as_maps(program: Program, ranks: Mapping[int, int]) -> Program:
    """The program with dense layers of (N, T, C) or (N, H, W, C) as convolutions of (N, C, 1, T) or (N, C, H, W).

    Args:
        program: As traced.
        ranks: Number of dimensions of every value.
    """
    numbers = {0: 0}
    steps: list[Step] = []
    for number, step in enumerate(program.steps, start=1):
        inputs, operation = tuple(numbers[value] for value in step.inputs), step.operation
        rank = ranks[step.inputs[0]]
        if isinstance(operation, Dense) and rank in (3, 4):
            to_maps, to_tokens = _views(rank)
            steps.append(Step(step.name + MAPS, to_maps, inputs, step.origin))
            steps.append(replace(step, operation=TokenDense(operation), inputs=(len(steps),)))
            steps.append(Step(step.name + TOKENS, to_tokens, (len(steps),), step.origin))
        else:
            steps.append(replace(step, inputs=inputs))
        numbers[number] = len(steps)
    return replace(program, steps=steps)


def _views(rank: int) -> tuple[Move, Move]:
    def to_maps(x: Tensor) -> Tensor:
        return (x[:, None] if rank == 3 else x).permute(0, 3, 1, 2)

    def to_tokens(x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return x[:, 0] if rank == 3 else x

    return Move(to_maps, to_tokens), Move(to_tokens, to_maps)


def mark_hidden_units(program: Program) -> Program:
    """Find the dense layers whose outputs are the hidden units of an MLP: what an activation reads."""
    readers = program.consumers()
    for index, step in enumerate(program.steps):
        if isinstance(step.operation, TokenDense):
            (tokens,) = readers[index + 1]
            following = [program.steps[reader] for reader in readers[tokens + 1]]
            # x sigmoid(a x) is an activation, too
            step.operation.has_feature_maps = any(
                isinstance(reader.operation, Activation)
                or (isinstance(reader.operation, Gate) and reader.inputs[0] == tokens + 1)
                for reader in following
            )
    return program


def patch_of(
    steps: Sequence[Step], shapes: Mapping[int, Sequence[int]], row: Tensor, column: Tensor
) -> tuple[Tensor, Tensor]:
    """Row and column of the patch that a pixel of the last step's maps stands for.

    Tokens that are no patches (class, registers) come first; their row is -1 and their column their number.

    Args:
        steps: Up to the layer.
        shapes: Of the values, by number.
        row, column: Of the pixel, (M,).
    """
    if not isinstance(steps[-1].operation, TokenDense) or shapes[len(steps)][2] != 1:
        return row, column
    grids = (
        shapes[number][2:]
        for number in range(len(steps) - 1, 0, -1)
        if isinstance(steps[number - 1].operation, Convolution)
        and not isinstance(steps[number - 1].operation, TokenDense)
    )
    height, width = next(grids, (1, shapes[len(steps)][3]))
    patch = column - (shapes[len(steps)][3] - height * width)
    # arithmetic, because a GPU would wait for the constants of `where`
    inside = (patch >= 0).to(patch.dtype)
    return inside * (patch // width + 1) - 1, inside * (patch % width) + (1 - inside) * column
