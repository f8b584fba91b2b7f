"""The operations a traced network is made of, each with the little that relevance propagation asks of it.

An operation is a frozen piece of the network: it owns its (possibly folded) parameters and never changes the module
it came from. Linear operations (convolution, dense, affine) share the interface `apply` / `adjoint`, so that every
rule is written once for all of them.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lrp.errors import UnsupportedLayerError
from lrp.onednn import Kernels, is_for

Sides = tuple[int, int, int, int]
"""Padding of an image on the left, right, top and bottom, as `torch.nn.functional.pad` takes it."""


Pair = tuple[int, int]
"""Height, width."""
Window = tuple[Pair, Pair, Pair, Pair]
"""Kernel, stride, dilation and padding before the first pixel."""
Unary = Callable[[Tensor], Tensor]


class Operation(ABC):
    """One step of a network. `kind` is what the rule tables of `lrp.composites` look up."""

    kind: ClassVar[str]
    nonnegative = False
    """The output is never negative, whatever the inputs."""
    keeps_sign = False
    """Non-negative inputs guarantee a non-negative output."""

    pixelwise = False
    """Every pixel of the output depends on the same pixel of the inputs alone."""
    fill = 0.0
    """What padding is filled with."""
    signal = slice(None)
    """Which of the inputs relevance goes on to."""

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute the step's output from its inputs."""

    def window(self, size: torch.Size) -> Window | None:
        """What one pixel of the output sees of an input of this size; None if that is not known."""
        return ((1, 1), (1, 1), (1, 1), (0, 0)) if self.pixelwise else None

    def unpadded(self, inside: Tensor) -> Operation:
        """The operation for cut-out inputs that hold their padding; `inside` (N, 1, H, W) is False there."""
        return self

    def to(self, device: torch.device, dtype: torch.dtype) -> None:  # noqa: B027 (most operations own nothing)
        """Move the parameters, if there are any, to a device and floating-point type."""

    def gradient(self, upstream: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Vector-Jacobian product with respect to every input; `upstream` has the output's shape."""
        # Inference tensors take no part in autograd, so under `torch.inference_mode` the probes are copies.
        with torch.inference_mode(False), torch.enable_grad():
            probes = [value.detach().clone().requires_grad_() for value in inputs]
            output = self.forward(*probes)
            return torch.autograd.grad(output, probes, upstream.detach().clone().to(output.dtype))


class LinearOperation(Operation):
    """y = A x + b. `apply` and `adjoint` take the weight explicitly, because the rules use parts of it (w+, w-)."""

    weight: Tensor
    bias: Tensor | None
    reads_all_channels = True
    """Every output reads every channel of the input, so that the weight's second dimension is that of channels."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight.detach()
        self.bias = None if bias is None else bias.detach()
        self._derived: dict[object, Tensor] = {}
        """What was computed from the weight, by name."""

    @abstractmethod
    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """A(weight) x + bias."""

    @abstractmethod
    def adjoint(self, upstream: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """A(weight)^T upstream, in the shape (first two dimensions excepted) of the input `like`."""

    def parts(self, sign: str) -> Iterator[Tensor]:
        """What positive, then what negative inputs are to be multiplied by for the size of contributions of one sign.

        `"+"`: w+ and w-, as x+ w+ and x- w- are the positive contributions; `"-"`: -w- and -w+. Each is computed once,
        when it is asked for, as inputs that are never negative need the first alone.
        """
        for key, bound in (((sign, "first"), {"min": 0}), ((sign, "second"), {"max": 0})):
            if key not in self._derived:
                weight = self.weight if sign == "+" else -self.weight
                self._derived[key] = _compact(weight.clamp(**bound))
            yield self._derived[key]

    def joined_parts(self, sign: str) -> Tensor:
        """Both `parts` as one weight, for an input with its positive and then its negative part as channels."""
        if sign not in self._derived:
            self._derived[sign] = _compact(torch.cat(tuple(self.parts(sign)), 1))
            del self._derived[sign, "first"], self._derived[sign, "second"]
        return self._derived[sign]

    def ones_like(self, x: Tensor) -> Tensor:
        """A constant image of ones as this operation sees it: one sample, or one per sample of cut-out inputs."""
        return torch.ones_like(x[:1])

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.apply(inputs[0], self.weight, self.bias)

    def gradient(self, upstream: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (self.adjoint(upstream, self.weight, inputs[0]),)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        self.weight = _compact(self.weight.to(device, dtype, copy=True))
        self.bias = None if self.bias is None else self.bias.to(device, dtype, copy=True)
        self.forget()

    def forget(self) -> None:
        """Drop what was derived from a weight that is another one now."""
        self._derived.clear()

    def scale_output(self, scale: Tensor, shift: Tensor) -> None:
        """Compose with y -> scale * y + shift per output channel, i.e. fold a batch norm in evaluation mode."""
        bias = torch.zeros_like(scale) if self.bias is None else self.bias
        self.weight = self.weight * scale.reshape(-1, *([1] * (self.weight.dim() - 1)))
        self.bias = bias * scale + shift
        self.forget()


def _compact(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight.contiguous()


class Convolution(LinearOperation):
    """Two-dimensional convolution.

    `padding` is (height, width) or `Sides`; `same_padding` is the dynamic padding of TensorFlow instead, which depends
    on the size of the image.
    """

    kind = "convolution"
    has_feature_maps = True
    """Whether the channels of the output are feature maps of the network."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: Pair = (1, 1),
        padding: Pair | Sides = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
        same_padding: bool = False,
    ) -> None:
        super().__init__(weight, bias)
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.padding: Sides = padding if len(padding) == 4 else (padding[1], padding[1], padding[0], padding[0])
        self.same_padding, self.reads_all_channels = same_padding, groups == 1
        self._inside: Tensor | None = None
        self._kernels = Kernels()

    @property
    def channels(self) -> int:
        """Number of feature maps (output channels)."""
        return self.weight.shape[0]

    def sides(self, size: torch.Size) -> Sides:
        """Padding of an input of this size (..., H, W)."""
        if not self.same_padding:
            return self.padding
        sides: list[int] = []
        for axis in (1, 0):
            kernel, stride, dilation = self.weight.shape[2 + axis], self.stride[axis], self.dilation[axis]
            length = size[-2 + axis]
            total = max((-(-length // stride) - 1) * stride + (kernel - 1) * dilation + 1 - length, 0)
            sides += [total // 2, total - total // 2]
        return (sides[0], sides[1], sides[2], sides[3])

    def _padding(self, x: Tensor) -> tuple[Pair, Sides | None]:
        """Symmetric padding for the convolution itself, and explicit where that fails."""
        left, right, top, bottom = sides = self.sides(x.shape)
        return ((top, left), None) if top == bottom and left == right else ((0, 0), sides)

    def window(self, size: torch.Size) -> Window | None:
        left, _, top, _ = self.sides(size)
        height, width = self.weight.shape[2:]
        return ((height, width), self.stride, self.dilation, (top, left))

    def unpadded(self, inside: Tensor) -> Operation:
        part = copy.copy(self)
        part.padding, part.same_padding, part._inside = (0, 0, 0, 0), False, inside
        return part

    def ones_like(self, x: Tensor) -> Tensor:
        return super().ones_like(x) if self._inside is None else self._inside.to(x.dtype).expand_as(x)

    @property
    def _is_pointwise(self) -> bool:
        """Whether this is one matrix product over pixels, which is faster than the general convolution."""
        return self.weight.shape[2:] == (1, 1) and self.groups == 1 and not any(self.padding)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        padding, explicit = self._padding(x)
        if explicit is not None:
            x = F.pad(x, explicit)
        x = x.to(weight.dtype)  # the mean before a squeeze-and-excitation gate is in float32 even in a bf16 network
        return self._kernels.convolve(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def forget(self) -> None:
        super().forget()
        self._kernels.clear()

    def adjoint(self, upstream: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        if self._is_slow_in_bfloat16(upstream):
            return self.adjoint(upstream.float(), weight.float(), like).to(upstream.dtype)
        padding, explicit = self._padding(like)
        reach = self._reach(padding)
        # as a convolution itself, which is up to twice as fast on processors where there is one weight for each output
        if self._is_pointwise or (is_for(upstream) and explicit is None and self.stride == (1, 1) and min(reach) >= 0):
            options = ((1, 1), reach, self.dilation, self.groups)
            share = self._kernels.convolve(upstream, self._turned(weight), None, *options)
            if self.stride == (1, 1):
                return share
            result = torch.zeros_like(like, dtype=share.dtype, memory_format=torch.channels_last)
            result[..., :: self.stride[0], :: self.stride[1]] = share
            return result
        height, width = like.shape[-2:]
        left, right, top, bottom = explicit or (0, 0, 0, 0)
        shape = (upstream.shape[0], weight.shape[1] * self.groups, height + top + bottom, width + left + right)
        # The backward pass wants the input for its shape and memory format only.
        if explicit is not None or like.shape != shape or like.dtype != upstream.dtype:
            like = torch.empty(shape, dtype=upstream.dtype, device=upstream.device, memory_format=torch.channels_last)
        backward = (self.stride, padding, self.dilation, False, (0, 0), self.groups, (True, False, False))
        result = torch.ops.aten.convolution_backward(upstream, like, weight, None, *backward)[0]
        if explicit is not None:
            result = result[..., top : top + height, left : left + width]
        return result

    def _reach(self, padding: Pair) -> Pair:
        """Padding of the output with which the adjoint of a convolution of stride 1 is a convolution."""
        (height, width), (down, across) = self.weight.shape[2:], self.dilation
        return (down * (height - 1) - padding[0], across * (width - 1) - padding[1])

    def _turned(self, weight: Tensor) -> Tensor:
        """The weight of that convolution: inputs and outputs exchanged, and turned by 180 degrees."""
        key = ("turned", weight)
        if key not in self._derived:
            outputs, inputs, *kernel = weight.shape
            turned = weight.reshape(self.groups, outputs // self.groups, inputs, *kernel).transpose(1, 2).flip(-2, -1)
            self._derived[key] = _compact(turned.reshape(inputs * self.groups, outputs // self.groups, *kernel))
        return self._derived[key]

    def _is_slow_in_bfloat16(self, upstream: Tensor) -> bool:
        """Whether the processor has no fast kernel: a strided grouped adjoint in bf16 takes 30 times that in fp32."""
        strided = self.groups > 1 and self.stride != (1, 1)
        return strided and upstream.dtype == torch.bfloat16 and upstream.device.type == "cpu"


class Dense(LinearOperation):
    """Fully connected layer. Kept in float32: it is small, and the logit decides which samples count."""

    kind = "dense"

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        super().to(device, torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x.to(weight.dtype), weight, bias)

    def adjoint(self, upstream: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        return upstream @ weight


class Affine(LinearOperation):
    """y = scale * x + shift, per channel (C,) or with one number (1,): a depthwise 1x1 convolution of any image."""

    kind = "affine"
    pixelwise = True
    reads_all_channels = False

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        scale = _per_channel(weight, x)
        return x * scale if bias is None else torch.addcmul(_per_channel(bias, x), x, scale)

    def adjoint(self, upstream: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        return upstream * _per_channel(weight, upstream)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *([1] * (x.dim() - 2)))


class BatchNorm(Affine):
    """Batch norm in evaluation mode; folded into the linear layer before it where there is one of its own."""

    weight: Tensor
    bias: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, residue: float = 1.0) -> None:
        super().__init__(scale, shift)
        self.residue = residue
        """Factor that remains when the published code neutralises this norm: 1 / sqrt(1 + eps)."""


# Element-wise functions by name, all of which keep non-negative inputs non-negative, and the same in place.
_ACTIVATIONS: dict[str, tuple[Unary, Unary | None]] = {
    "relu": (F.relu, torch.relu_),
    "relu6": (F.relu6, None),
    "swish": (F.silu, lambda x: F.silu(x, inplace=True)),
    "hardswish": (F.hardswish, None),
    "tanh": (torch.tanh, None),
    "sigmoid": (torch.sigmoid, torch.sigmoid_),
    "hardsigmoid": (F.hardsigmoid, None),
}
_NONNEGATIVE = ("relu", "relu6", "sigmoid", "hardsigmoid")


class Activation(Operation):
    """Element-wise non-linearity: a known one by its name, or a function.

    Args:
        name: Of the non-linearity; "sigmoid" and "hardsigmoid" make gates.
        function: Where the name says not enough (LeakyReLU(0.2)) or is not known. Then, if it is so, say that
        nonnegative: its output is never negative,
        keeps_sign: or at least not for a non-negative input; this saves half of the convolutions behind it.
    """

    kind = "activation"
    pixelwise = True

    def __init__(
        self, name: str, function: Unary | None = None, *, nonnegative: bool = False, keeps_sign: bool = False
    ) -> None:
        self.name = name
        self.in_place = False
        """Set by the program where nobody else reads the input."""
        self._function, self._overwrite = (function, None) if function else _ACTIVATIONS[name]
        self.nonnegative = nonnegative if function else name in _NONNEGATIVE
        self.keeps_sign = function is None or keeps_sign

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.in_place and self._overwrite is not None:
            return self._overwrite(inputs[0])
        return self._function(inputs[0])


class MaxPool(Operation):
    """Max pooling over windows of (height, width); its gradient already is the winner-take-all rule."""

    kind = "max_pool"
    keeps_sign = True
    fill = -torch.inf

    def __init__(
        self, kernel: Pair, stride: Pair, padding: Pair = (0, 0), dilation: Pair = (1, 1), ceil_mode: bool = False
    ) -> None:
        self._options = (kernel, stride, padding, dilation, ceil_mode)

    def forward(self, *inputs: Tensor) -> Tensor:
        return F.max_pool2d(inputs[0], *self._options)

    def gradient(self, upstream: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        _, winners = torch.ops.aten.max_pool2d_with_indices(inputs[0], *self._options)
        return (torch.ops.aten.max_pool2d_with_indices_backward(upstream, inputs[0], *self._options, winners),)

    def window(self, size: torch.Size) -> Window | None:
        kernel, stride, padding, dilation, _ = self._options
        return (kernel, stride, dilation, padding)

    def unpadded(self, inside: Tensor) -> Operation:
        kernel, stride, _, dilation, _ = self._options
        return MaxPool(kernel, stride, (0, 0), dilation)


class Function(Operation):
    """A function of one tensor that owns no parameters; `adjoint(upstream, x)` spares autograd if it is given."""

    keeps_sign = True

    def __init__(self, function: Unary, adjoint: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        self._function, self._adjoint = function, adjoint

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._function(inputs[0])

    def gradient(self, upstream: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self._adjoint is None:
            return super().gradient(upstream, *inputs)
        return (self._adjoint(upstream, inputs[0]),)


class AveragePool(Function):
    """Average pooling (fixed window, adaptive, or a mean over the pixels)."""

    kind = "average_pool"


class Reshape(Function):
    """The same numbers in another shape: flatten, view, squeeze."""

    kind = "reshape"


class Move(Reshape):
    """The same numbers in another order: `there` of the input, `back` of its relevance."""

    kind = "move"

    def __init__(self, there: Unary, back: Unary) -> None:
        super().__init__(there, lambda upstream, x: back(upstream))
        self.back = back


class Resample(Function):
    """Pixels picked, padded with zeros or interpolated: linear, and each output an average of inputs, or zero."""

    kind = "resample"


class Identity(Function):
    """Does nothing in evaluation mode (dropout, identity); removed by canonisation."""

    kind = "identity"

    def __init__(self) -> None:
        super().__init__(lambda x: x)


class Sum(Operation):
    """Element-wise sum (or, with `signs` of -1, difference) of tensors of equal shape: the residual addition."""

    kind = "sum"
    pixelwise = True

    def __init__(self, name: str, signs: tuple[int, ...] = (1, 1)) -> None:
        self.name, self.signs = name, signs
        self.keeps_sign = min(signs) > 0

    def forward(self, *inputs: Tensor) -> Tensor:
        if any(value.shape != inputs[0].shape for value in inputs):
            shapes = " and ".join(str(tuple(value.shape)) for value in inputs)
            raise UnsupportedLayerError(f"addition {self.name!r} broadcasts shapes {shapes}: not a residual sum")
        total = inputs[0] if self.signs[0] > 0 else -inputs[0]
        for value, sign in zip(inputs[1:], self.signs[1:], strict=True):
            total = torch.add(total, value, alpha=sign)
        return total

    def gradient(self, upstream: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(upstream if sign > 0 else -upstream for sign in self.signs)


class Product(Operation):
    """A product of two tensors as traced; canonisation turns it into a gate or refuses it."""

    kind = "product"
    keeps_sign = pixelwise = True

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] * inputs[1]


class Gate(Product):
    """signal * gate, the gate being a sigmoid of the network itself (squeeze-and-excitation)."""

    kind = "gate"
    signal = slice(1)


class Concatenation(Operation):
    """Concatenation of tensors along one dimension."""

    kind = "concatenation"
    keeps_sign = True

    def __init__(self, dim: int) -> None:
        self.dim, self.pixelwise = dim, dim in (1, -3)

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, self.dim)

    def gradient(self, upstream: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        # Copies: steps below add to the parts.
        return tuple(
            part.clone(memory_format=torch.preserve_format)
            for part in upstream.split([value.shape[self.dim] for value in inputs], self.dim)
        )
