"""The operations a traced network is made of, each with the little that relevance propagation asks of it.

An operation is a frozen piece of the network: it owns its (possibly folded) parameters and never changes the module
it came from. Linear operations (convolution, dense) share the interface `apply` / `adjoint`, so that every rule is
written once for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lrp.errors import UnsupportedLayerError


class Operation(ABC):
    """One step of a network. `kind` is what the rule tables of `lrp.composites` look up."""

    kind: ClassVar[str]

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute the step's output from its inputs."""

    def to(self, device: torch.device, dtype: torch.dtype) -> None:  # noqa: B027 (most operations own nothing)
        """Move the parameters, if there are any, to a device and floating-point type."""

    def preserves_sign(self) -> bool:
        """Whether non-negative inputs guarantee a non-negative output."""
        return False

    def gradient(self, upstream: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Vector-Jacobian product with respect to every input; `upstream` has the output's shape."""
        with torch.enable_grad():
            probes = [value.detach().requires_grad_() for value in inputs]
            output = self.forward(*probes)
        return torch.autograd.grad(output, probes, upstream.to(output.dtype))


class LinearOperation(Operation):
    """y = A x + b. `apply` and `adjoint` take the weight explicitly, because the rules use parts of it (w+, w-)."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight.detach().clone()
        self.bias = None if bias is None else bias.detach().clone()
        self._parts: dict[str, Tensor] = {}

    @abstractmethod
    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """A(weight) x + bias."""

    @abstractmethod
    def adjoint(self, upstream: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """A(weight)^T upstream, in the shape (first two dimensions excepted) of the input `like`."""

    def part(self, sign: str) -> Tensor:
        """The positive (`"+"`) or negative (`"-"`) part of the weight, computed once."""
        if sign not in self._parts:
            clamped = self.weight.clamp(min=0) if sign == "+" else self.weight.clamp(max=0)
            self._parts[sign] = _compact(clamped)
        return self._parts[sign]

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.apply(inputs[0], self.weight, self.bias)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        self.weight = _compact(self.weight.to(device, dtype))
        self.bias = None if self.bias is None else self.bias.to(device, dtype)
        self._parts.clear()

    def scale_output(self, scale: Tensor, shift: Tensor) -> None:
        """Compose with y -> scale * y + shift per output channel, i.e. fold a batch norm in evaluation mode."""
        shape = (-1, *([1] * (self.weight.dim() - 1)))
        bias = torch.zeros_like(scale) if self.bias is None else self.bias
        self.weight = self.weight * scale.reshape(shape)
        self.bias = bias * scale + shift
        self._parts.clear()


def _compact(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight.contiguous()


class Convolution(LinearOperation):
    """Two-dimensional convolution; `same_padding` is the dynamic ("TensorFlow same") padding of EfficientNet."""

    kind = "convolution"

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        same_padding: bool = False,
    ) -> None:
        super().__init__(weight, bias)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.same_padding = same_padding

    @property
    def channels(self) -> int:
        """Number of feature maps (output channels)."""
        return self.weight.shape[0]

    def _padding(self, x: Tensor) -> tuple[tuple[int, int], tuple[int, int, int, int] | None]:
        """Symmetric padding for the convolution itself, and explicit (left, right, top, bottom) where that fails."""
        if not self.same_padding:
            return self.padding, None
        before_after: list[tuple[int, int]] = []
        for size, kernel, stride, dilation in zip(
            x.shape[-2:], self.weight.shape[-2:], self.stride, self.dilation, strict=True
        ):
            total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            before_after.append((total // 2, total - total // 2))
        (top, bottom), (left, right) = before_after
        if top == bottom and left == right:
            return (top, left), None
        return (0, 0), (left, right, top, bottom)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        padding, explicit = self._padding(x)
        if explicit is not None:
            x = F.pad(x, explicit)
        x = x.to(weight.dtype)  # the mean before a squeeze-and-excitation gate is in float32 even in a bf16 network
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def adjoint(self, upstream: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        if self._is_slow_in_bfloat16(upstream):
            return self.adjoint(upstream.float(), weight.float(), like).to(upstream.dtype)
        padding, explicit = self._padding(like)
        height, width = like.shape[-2:]
        left, right, top, bottom = explicit or (0, 0, 0, 0)
        shape = (upstream.shape[0], like.shape[1], height + top + bottom, width + left + right)
        # The backward pass wants the input for its shape and memory format only.
        reads_input = explicit is None and like.shape == shape and like.dtype == upstream.dtype
        placeholder = like if reads_input else _empty_channels_last(shape, upstream)
        result = torch.ops.aten.convolution_backward(
            upstream,
            placeholder,
            weight,
            None,
            self.stride,
            padding,
            self.dilation,
            False,
            (0, 0),
            self.groups,
            (True, False, False),
        )[0]
        if explicit is not None:
            result = result[..., top : top + height, left : left + width]
        return result

    def _is_slow_in_bfloat16(self, upstream: Tensor) -> bool:
        """Whether the processor has no fast kernel: a strided grouped adjoint in bf16 takes 30 times that in fp32."""
        strided = self.groups > 1 and self.stride != (1, 1)
        return strided and upstream.dtype == torch.bfloat16 and upstream.device.type == "cpu"


def _empty_channels_last(shape: tuple[int, int, int, int], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


class Dense(LinearOperation):
    """Fully connected layer. Kept in float32: it is small, and the logit decides which samples count."""

    kind = "dense"

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        super().to(device, torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x.to(weight.dtype), weight, bias)

    def adjoint(self, upstream: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        return upstream @ weight


class BatchNorm(Operation):
    """Batch norm in evaluation mode, y = scale * x + shift per channel; folded away before propagation."""

    kind = "batch_norm"

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        self.scale, self.shift = scale.detach().clone(), shift.detach().clone()
        self.residue = 1.0
        """Factor that remains when the published code neutralises this norm: 1 / sqrt(1 + eps)."""

    def forward(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        shape = (1, -1, *([1] * (x.dim() - 2)))
        return torch.addcmul(self.shift.reshape(shape), x, self.scale.reshape(shape))

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        self.scale, self.shift = self.scale.to(device, dtype), self.shift.to(device, dtype)


# Element-wise functions by name; the second entry tells whether the output is never negative, the third whether
# a non-negative input stays non-negative.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], bool, bool]] = {
    "relu": (F.relu, True, True),
    "relu6": (F.relu6, True, True),
    "swish": (F.silu, False, True),
    "hardswish": (F.hardswish, False, True),
    "gelu": (F.gelu, False, True),
    "elu": (F.elu, False, True),
    "leaky_relu": (F.leaky_relu, False, True),
    "tanh": (torch.tanh, False, True),
    "sigmoid": (torch.sigmoid, True, True),
    "hardsigmoid": (F.hardsigmoid, True, True),
}
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "swish": lambda x: F.silu(x, inplace=True),
    "sigmoid": torch.sigmoid_,
}


class Activation(Operation):
    """Element-wise non-linearity; `in_place` is set by the program where nobody else reads the input."""

    kind = "activation"

    def __init__(self, name: str, function: Callable[[Tensor], Tensor] | None = None) -> None:
        self.name = name
        self._function, self.nonnegative, self._keeps_sign = ACTIVATIONS[name]
        self._overwrite = _IN_PLACE.get(name)
        if function is not None:  # a module with a parameter of its own, e.g. LeakyReLU(0.2)
            self._function, self._overwrite = function, None
        self.in_place = False

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.in_place and self._overwrite is not None:
            return self._overwrite(inputs[0])
        return self._function(inputs[0])

    def preserves_sign(self) -> bool:
        return self._keeps_sign


class Pool(Operation):
    """A pooling function of one tensor, `maximum` or average, given as a callable without state."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._function(inputs[0])

    def preserves_sign(self) -> bool:
        return True


class MaxPool(Pool):
    """Max pooling; its gradient already is the winner-take-all rule."""

    kind = "max_pool"


class AveragePool(Pool):
    """Average pooling (fixed window, adaptive, or a mean over the pixels)."""

    kind = "average_pool"


class Sum(Operation):
    """Element-wise sum of two or more tensors of equal shape: the canonised residual addition."""

    kind = "sum"

    def __init__(self, name: str) -> None:
        self.name = name

    def forward(self, *inputs: Tensor) -> Tensor:
        if any(value.shape != inputs[0].shape for value in inputs):
            shapes = " and ".join(str(tuple(value.shape)) for value in inputs)
            raise UnsupportedLayerError(f"addition {self.name!r} broadcasts shapes {shapes}: not a residual sum")
        total = inputs[0] + inputs[1]
        for value in inputs[2:]:
            total = total + value
        return total

    def preserves_sign(self) -> bool:
        return True


class Gate(Operation):
    """signal * gate, the gate being a sigmoid of the network itself (squeeze-and-excitation)."""

    kind = "gate"

    def forward(self, *inputs: Tensor) -> Tensor:
        signal, gate = inputs
        return signal * gate

    def preserves_sign(self) -> bool:
        return True


class Concatenation(Operation):
    """Concatenation of tensors along one dimension."""

    kind = "concatenation"

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, self.dim)

    def preserves_sign(self) -> bool:
        return True


class Flatten(Operation):
    """Flatten the dimensions from `start` on."""

    kind = "flatten"

    def __init__(self, start: int = 1) -> None:
        self.start = start

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].flatten(self.start)

    def preserves_sign(self) -> bool:
        return True


class Identity(Operation):
    """Does nothing in evaluation mode (dropout, identity); removed by canonisation."""

    kind = "identity"

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0]

    def preserves_sign(self) -> bool:
        return True
