"""What the modules and functions of PyTorch stand for: two tables from type to the operation it becomes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrp.operations import (
    Activation,
    Affine,
    AveragePool,
    BatchNorm,
    Concatenation,
    Convolution,
    Dense,
    Identity,
    MaxPool,
    Operation,
    Product,
    Resample,
    Reshape,
    Sides,
    Sum,
)

ModuleBuilder = Callable[[Any], Operation]
"""Gets a module; returns the operation it stands for. A `NotImplementedError` says what it cannot do."""


@dataclass(frozen=True)
class Value:
    """A tensor of the network in the arguments of a call, by its number in the program."""

    number: int


@dataclass(frozen=True)
class Size:
    """Sizes in the arguments of a call: of dimension `dim` of some value, or of all."""

    dim: int | None = None


BATCH = Size(0)
FunctionBuilder = Callable[..., Operation | Size]
"""Gets the arguments of a call, tensors as `Value`, sizes as `Size`; returns what the call stands for."""


# Modules


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _convolution(module: nn.Conv2d) -> Operation:
    if module.padding_mode != "zeros":
        raise NotImplementedError(f"padding mode {module.padding_mode!r}; only zero padding is supported")
    padding: tuple[int, int] | Sides
    if module.padding == "same":
        extra = [d * (k - 1) for d, k in zip(_pair(module.dilation), _pair(module.kernel_size), strict=True)]
        padding = (extra[1] // 2, extra[1] - extra[1] // 2, extra[0] // 2, extra[0] - extra[0] // 2)
    else:
        padding = (0, 0) if isinstance(module.padding, str) else _pair(module.padding)
    return Convolution(
        module.weight,
        module.bias,
        stride=_pair(module.stride),
        padding=padding,
        dilation=_pair(module.dilation),
        groups=module.groups,
    )


def _batch_norm(module: nn.BatchNorm2d) -> Operation:
    if module.running_mean is None or module.running_var is None:
        raise NotImplementedError("a batch norm without running statistics depends on the other images of a batch")
    scale = torch.rsqrt(module.running_var.double() + module.eps)
    if module.weight is not None:
        scale = scale * module.weight.double()
    shift = -module.running_mean.double() * scale
    if module.bias is not None:
        shift = shift + module.bias.double()
    # The published networks keep a neutralised batch norm that still divides by sqrt(1 + eps).
    return BatchNorm(scale, shift, residue=(1.0 + module.eps) ** -0.5)


def _max_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Operation:
    if return_indices:
        raise NotImplementedError("max pooling that returns indices")
    kernel = _pair(kernel_size)
    return MaxPool(kernel, _pair(stride) if stride else kernel, _pair(padding), _pair(dilation), ceil_mode)


def _adaptive_average_pool(output_size: Any) -> Operation:
    if output_size in (1, (1, 1), [1, 1]):
        return _mean_of_pixels(True)
    return AveragePool(lambda x: F.adaptive_avg_pool2d(x, output_size))


def _mean_of_pixels(keepdim: bool) -> Operation:
    def mean(x: Tensor) -> Tensor:
        # In float32 whatever the type of the maps: a mean over many pixels is where short types lose most.
        return x.mean((-2, -1), keepdim=keepdim, dtype=torch.promote_types(x.dtype, torch.float32))

    def adjoint(upstream: Tensor, x: Tensor) -> Tensor:
        upstream = upstream.to(x.dtype) / (x.shape[-2] * x.shape[-1])
        return (upstream if keepdim else upstream[..., None, None]).expand_as(x).clone()

    return AveragePool(mean, adjoint)


def _interpolation(
    size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None, **others: Any
) -> Operation:
    if mode not in ("nearest", "nearest-exact", "bilinear", "area"):
        raise NotImplementedError(f"interpolation mode {mode!r}; its weights are not all positive")
    if any(isinstance(part, Size) for part in _flat([size])):
        raise NotImplementedError("interpolation to the size of another map; give a scale factor or numbers")
    others = {name: value for name, value in others.items() if name != "antialias" or value}
    return Resample(
        lambda x: F.interpolate(x, size, scale_factor, mode, align_corners if mode == "bilinear" else None, **others)
    )


def _pad(sides: Any, mode: str = "constant", value: float | None = None) -> Operation:
    if mode != "constant" or value:
        raise NotImplementedError("padding with anything but zeros")
    return Resample(lambda x: F.pad(x, tuple(sides)), lambda u, x: F.pad(u, [-side for side in sides]))


def _norm_of_the_image(module: nn.Module) -> Operation:
    raise NotImplementedError(
        "its mean and variance are those of each image, so it is not linear and no rule covers it"
    )


def _function_of(name: str, function: Callable[[Tensor], Tensor]) -> Operation:
    return Activation(name, function, keeps_sign=True)


MODULES: dict[type[nn.Module], ModuleBuilder] = {
    nn.Conv2d: _convolution,
    nn.Linear: lambda m: Dense(m.weight, m.bias),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm), _batch_norm),
    nn.MaxPool2d: lambda m: _max_pool(m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices),
    nn.AvgPool2d: lambda m: AveragePool(m.forward),
    nn.AdaptiveAvgPool2d: lambda m: _adaptive_average_pool(m.output_size),
    nn.GELU: lambda m: _function_of("gelu", lambda x: F.gelu(x, approximate=m.approximate)),
    nn.ELU: lambda m: _function_of("elu", lambda x: F.elu(x, m.alpha)),
    nn.LeakyReLU: lambda m: _function_of("leaky_relu", lambda x: F.leaky_relu(x, m.negative_slope)),
    **dict.fromkeys((nn.Dropout, nn.Dropout2d, nn.Identity), lambda m: Identity()),
    nn.Flatten: lambda m: Reshape(m.forward),
    nn.ZeroPad2d: lambda m: _pad(m.padding),
    nn.Upsample: lambda m: _interpolation(m.size, m.scale_factor, m.mode, m.align_corners),
    **dict.fromkeys((nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d), _norm_of_the_image),
}


# Functions and methods


def _sum(first: Any, second: Any, signs: tuple[int, int]) -> Operation:
    if isinstance(first, Value) and isinstance(second, Value):
        return Sum("", signs)
    constant, sign, scale = (second, signs[1], signs[0]) if isinstance(first, Value) else (first, signs[0], signs[1])
    shift = sign * _constant(constant)
    return Affine(torch.full_like(shift, scale), shift)


def _product(first: Any, second: Any) -> Operation:
    if isinstance(first, Value) and isinstance(second, Value):
        return Product()
    return Affine(_constant(second if isinstance(first, Value) else first), None)


def _quotient(first: Any, second: Any) -> Operation:
    if not isinstance(first, Value) or isinstance(second, Value):
        raise NotImplementedError("a division by a tensor of the network")
    return Affine(1.0 / _constant(second), None)


def _constant(constant: Any) -> Tensor:
    """A number, or one per channel, as (1,) or (C,)."""
    if isinstance(constant, Size) or not isinstance(constant, int | float | Tensor):
        raise NotImplementedError(f"arithmetic with {constant!r}; numbers and constants per channel are supported")
    return torch.as_tensor(constant, dtype=torch.float64).detach().reshape(-1)


def is_per_channel(constant: Tensor) -> bool:
    """Whether a tensor is a number, or one per channel in the shape that broadcasts over images."""
    shape = constant.shape
    return constant.numel() == 1 or (len(shape) in (3, 4) and constant.numel() == shape[-3])


def _dropout(x: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Operation:
    if training and p > 0:
        raise NotImplementedError("dropout that is active in evaluation mode; give it training=self.training")
    return Identity()


def _mean(x: Value, dim: Any = None, keepdim: bool = False) -> Operation:
    if not isinstance(dim, tuple | list) or sorted(d % 4 for d in dim) != [2, 3]:
        raise NotImplementedError("a mean over other dimensions than height and width")
    return _mean_of_pixels(keepdim)


def _view(x: Value, *shape: Any) -> Operation:
    """(N, -1) in any spelling: everything but the batch becomes one dimension."""
    rows, *columns = _flat(shape)
    width = columns[0] if len(columns) == 1 else None
    if not isinstance(width, int) or not (width > 0 if rows == -1 else rows == BATCH):
        raise NotImplementedError("a change of shape that is not (batch, -1)")
    return Reshape(lambda x: x.reshape(len(x) if rows == BATCH else -1, width))


def _flat(parts: Sequence[Any]) -> list[Any]:
    return [one for part in parts for one in (_flat(part) if isinstance(part, tuple | list) else [part])]


def _item(x: Any, index: Any) -> Operation | Size:
    if isinstance(x, Size):
        # sizes of other dimensions are only refused where they are used
        return Size(index) if x.dim is None and isinstance(index, int) else Size(-1)
    batch, *others = index if isinstance(index, tuple) else (index,)
    if batch not in (slice(None), Ellipsis) or not all(part is Ellipsis or isinstance(part, slice) for part in others):
        raise NotImplementedError("picking images or single channels, rows or columns; slices are supported")

    def put_back(upstream: Tensor, x: Tensor) -> Tensor:
        whole = torch.zeros_like(x, dtype=upstream.dtype)
        whole[index] = upstream
        return whole

    return Resample(lambda x: x[index], put_back)


def _attribute(x: Any, name: str) -> Size:
    if name != "shape":
        raise NotImplementedError(f"attribute {name!r}")
    return Size()


def _leaky_relu(x: Value, negative_slope: float = 0.01, inplace: bool = False) -> Operation:
    return _function_of("leaky_relu", lambda x: F.leaky_relu(x, negative_slope))


def _activation(name: str) -> Callable[..., Operation]:
    return lambda x, inplace=False: Activation(name)


def _reshape(method: str, args: tuple[Any, ...], options: dict[str, Any]) -> Operation:
    return Reshape(lambda x: getattr(x, method)(*args, **options))


FUNCTIONS: dict[Any, FunctionBuilder] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), lambda a, b: _sum(a, b, (1, 1))),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub", "sub_"), lambda a, b: _sum(a, b, (1, -1))),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _product),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div", "div_"), _quotient),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), lambda x: _product(x, -1)),
    **dict.fromkeys((F.dropout, F.dropout2d), _dropout),
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((torch.flatten, "flatten"), lambda x, *args, **options: _reshape("flatten", args, options)),
    **dict.fromkeys((torch.squeeze, "squeeze"), lambda x, *args, **options: _reshape("squeeze", args, options)),
    **dict.fromkeys((torch.reshape, "reshape", "view"), _view),
    F.gelu: lambda x, **options: _function_of("gelu", lambda x: F.gelu(x, **options)),
    F.leaky_relu: _leaky_relu,
    F.adaptive_avg_pool2d: lambda x, output_size: _adaptive_average_pool(output_size),
    F.avg_pool2d: lambda x, *args, **options: AveragePool(lambda x: F.avg_pool2d(x, *args, **options)),
    F.max_pool2d: lambda x, *args, **options: _max_pool(*args, **options),
    F.interpolate: lambda x, *args, **options: _interpolation(*args, **options),
    F.pad: lambda x, *args, **options: _pad(*args, **options),
    torch.cat: lambda tensors, dim=0: Concatenation(dim),
    operator.getitem: _item,
    getattr: _attribute,
    "size": lambda x, dim=None: Size(dim),
    "contiguous": lambda x, **options: Identity(),
}


# Element-wise functions that `Activation` knows by name: as a module, and as functions or methods.
_ACTIVATIONS: dict[str, tuple[type[nn.Module], tuple[Any, ...]]] = {
    "relu": (nn.ReLU, (F.relu, torch.relu, torch.relu_, "relu", "relu_")),
    "relu6": (nn.ReLU6, (F.relu6,)),
    "swish": (nn.SiLU, (F.silu,)),
    "hardswish": (nn.Hardswish, (F.hardswish,)),
    "sigmoid": (nn.Sigmoid, (F.sigmoid, torch.sigmoid, "sigmoid")),
    "hardsigmoid": (nn.Hardsigmoid, (F.hardsigmoid,)),
    "tanh": (nn.Tanh, (F.tanh, torch.tanh, "tanh")),
}
for _name, (_module, _functions) in _ACTIVATIONS.items():
    MODULES[_module] = _activation(_name)
    FUNCTIONS.update(dict.fromkeys(_functions, _activation(_name)))


def register_module(kind: type[nn.Module], builder: ModuleBuilder) -> None:
    """Teach the tracer a module of your own: `builder(module)` returns the operation it stands for."""
    MODULES[kind] = builder


def register_function(function: Callable[..., Any] | str, builder: FunctionBuilder) -> None:
    """Teach the tracer a function, or a tensor method by its name."""
    FUNCTIONS[function] = builder


def builder_for(module: nn.Module) -> ModuleBuilder | None:
    """The builder of a module's type, or of a type it inherits all that it computes from."""
    kind = next((kind for kind in type(module).__mro__ if kind in MODULES), None)
    if kind is None:
        return None
    # A subclass that computes something else is not what it inherits from.
    methods = ("forward", "_conv_forward")
    same = all(getattr(type(module), name, None) is getattr(kind, name, None) for name in methods)
    return MODULES[kind] if same else None
