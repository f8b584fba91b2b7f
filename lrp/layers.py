"""What the modules and functions of PyTorch stand for: two tables from type to the operation it becomes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrp.attention import Attention, Frozen, LayerNorm, Normalisation, Quotient, WeightedSum
from lrp.operations import (
    Activation,
    Affine,
    AveragePool,
    BatchNorm,
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
from lrp.tokens import Scaling, Shift

ModuleBuilder = Callable[[Any], Operation]
"""Gets a module; returns the operation it stands for. A `NotImplementedError` says what it cannot do."""


@dataclass(frozen=True)
class Value:
    """A tensor of the network in the arguments of a call.

    In a program the images of a batch always come first. Where the model has them in another place, as transformers
    with tokens first do, its dimensions are those of the program with the first one moved there.

    Attributes:
        number: In the program.
        batch: Dimension of the images in the model.
        made_by: The operation that made it, dropout aside; None for the image.
        look: Gives the sizes in the program for a trial image, by number.
    """

    number: int
    batch: int = 0
    made_by: Operation | None = field(default=None, compare=False)
    look: Callable[[int], Sequence[int]] = field(default=lambda number: (), compare=False, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in the model for a trial image, as `Size`."""
        _, *others = self.look(self.number)
        sizes: list[int] = [Size(size, self.number, dim) for dim, size in enumerate(others, start=1)]
        return (*sizes[: self.batch], Batch(), *sizes[self.batch :])

    def dimension(self, dim: int) -> int:
        """Of one of the model's dimensions, not that of the images: its place in the program.

        Raises:
            NotImplementedError: It is that of the images.
        """
        dim %= len(self.shape)
        if dim == self.batch:
            raise NotImplementedError("work on the dimension of the images")
        return dim + 1 if dim < self.batch else dim


class Size(int):
    """Size of a tensor of the network for a trial image, and what was computed from such sizes.

    Attributes:
        number, dim: Of which value and dimension in the program; None of what was computed.
    """

    number: int | None
    dim: int | None

    def __new__(cls, size: int, number: int | None = None, dim: int | None = None) -> Size:
        instance = super().__new__(cls, size)
        instance.number, instance.dim = number, dim
        return instance


def _computed(name: str) -> Callable[[Size, Any], Any]:
    function = getattr(int, name)

    def compute(first: Size, second: Any) -> Any:
        result = function(first, second)
        return Size(result) if isinstance(result, int) else result

    return compute


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "rfloordiv", "mod"):
    setattr(Size, f"__{_name}__", _computed(f"__{_name}__"))


class Batch(int):
    """Number of images; 1, so that a constant that is repeated for every image stays one."""

    def __new__(cls) -> Batch:
        return super().__new__(cls, 1)


@dataclass(frozen=True)
class Placed:
    """An operation with more said of it than its arguments say.

    Attributes:
        operation: The operation.
        batch: Dimension of the images in the model's output.
        inputs: What it reads; None for all tensors in the arguments.
    """

    operation: Operation
    batch: int
    inputs: tuple[Value, ...] | None = None


FunctionBuilder = Callable[..., Any]
"""Gets the arguments of a call, tensors as `Value`; returns what the call stands for: an `Operation` or `Placed` one, a
tuple of these, a `Value` that is the same in another order of dimensions, or a constant."""


def flat(parts: Sequence[Any]) -> list[Any]:
    """What is in nested tuples and lists."""
    return [one for part in parts for one in (flat(part) if isinstance(part, tuple | list) else [part])]


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
    if any(isinstance(part, Size) for part in flat([size])):
        raise NotImplementedError("interpolation to the size of another map; give a scale factor or numbers")
    others = {name: value for name, value in others.items() if name != "antialias" or value}
    return Resample(
        lambda x: F.interpolate(x, size, scale_factor, mode, align_corners if mode == "bilinear" else None, **others)
    )


def _pad(sides: Any, mode: str = "constant", value: float | None = None) -> Operation:
    if mode != "constant" or value:
        raise NotImplementedError("padding with anything but zeros")
    return Resample(lambda x: F.pad(x, tuple(sides)), lambda u, x: F.pad(u, [-side for side in sides]))


_OF_THE_IMAGE = "its mean and variance are those of each image, so it is not linear and no rule covers it"


def _norm_of_the_image(module: nn.Module) -> Operation:
    raise NotImplementedError(_OF_THE_IMAGE)


def _mean_of_tokens(keepdim: bool) -> Operation:
    def mean(x: Tensor) -> Tensor:
        return x.mean(1, keepdim=keepdim, dtype=torch.promote_types(x.dtype, torch.float32))

    def adjoint(upstream: Tensor, x: Tensor) -> Tensor:
        upstream = upstream.to(x.dtype) / x.shape[1]
        return (upstream if keepdim else upstream[:, None]).expand_as(x).clone()

    return AveragePool(mean, adjoint)


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
    nn.LayerNorm: lambda m: _layer_norm(Value(0), m.normalized_shape, m.weight, m.bias, m.eps),
    nn.Softmax: lambda m: Frozen("softmax", m.forward),
    nn.ZeroPad2d: lambda m: _pad(m.padding),
    nn.Upsample: lambda m: _interpolation(m.size, m.scale_factor, m.mode, m.align_corners),
    **dict.fromkeys((nn.GroupNorm, nn.InstanceNorm2d), _norm_of_the_image),
}


# Functions and methods


def _sum(first: Any, second: Any, signs: tuple[int, int]) -> Operation:
    if isinstance(first, Value) and isinstance(second, Value):
        return Sum("", signs)
    value, constant = (first, second) if isinstance(first, Value) else (second, first)
    sign, scale = signs if value is second else signs[::-1]
    constant = sign * _constant(constant)
    if not is_per_channel(constant, value):
        return Shift(in_order(constant, value), scale)
    return Affine(torch.full((constant.numel(),), float(scale), dtype=constant.dtype), constant.reshape(-1))


def _product(first: Any, second: Any) -> Operation:
    if isinstance(first, Value) and isinstance(second, Value):
        return Product()
    value, constant = (first, second) if isinstance(first, Value) else (second, first)
    return Scaling(in_order(_constant(constant), value))


def _quotient(first: Any, second: Any) -> Operation:
    if not isinstance(first, Value):
        raise NotImplementedError("a division by a tensor of the network")
    if not isinstance(second, Value):
        return Scaling(in_order(1.0 / _constant(second), first))
    if not (isinstance(second.made_by, Frozen) and second.made_by.name == "norm"):
        raise NotImplementedError("a division by a tensor of the network")
    return Quotient()


def _constant(constant: Any) -> Tensor:
    if isinstance(constant, Size | Batch) or not isinstance(constant, int | float | Tensor):
        raise NotImplementedError(f"arithmetic with {constant!r}; numbers and constants are supported")
    return torch.as_tensor(constant, dtype=torch.float64).detach()


def is_per_channel(constant: Tensor, value: Value) -> bool:
    """Whether a tensor is a number, or one for each channel of maps in the shape that broadcasts over them."""
    shape = constant.shape
    if constant.numel() == 1:
        return True
    return len(shape) in (3, 4) and constant.numel() == shape[-3] and len(value.shape) == 4


def in_order(constant: Tensor, value: Value) -> Tensor:
    """A constant that broadcasts with a value of the model, in the order of dimensions that the program has.

    Raises:
        NotImplementedError: The result would have another shape than the value, or differ from image to image.
    """
    if constant.numel() == 1:
        return constant.reshape(1)
    shape = value.shape
    constant = constant.reshape(*([1] * (len(shape) - constant.dim())), *constant.shape)
    if constant.dim() > len(shape) or any(
        size not in (1, other) for size, other in zip(constant.shape, shape, strict=True)
    ):
        raise NotImplementedError(
            f"arithmetic with a constant of shape {tuple(constant.shape)} and a tensor of {shape}"
        )
    return constant.movedim(value.batch, 0)


def _softmax(x: Value, dim: int, **options: Any) -> Operation:
    if x.batch != 0 or dim % len(x.shape) == 0:
        raise NotImplementedError("a softmax over images")
    return Frozen("softmax", lambda x: x.softmax(dim))


def _matrix_product(first: Any, second: Any) -> Operation:
    if not isinstance(second, Value):
        return Dense(_parameter(second).t(), None)
    if not isinstance(first, Value):
        raise NotImplementedError("a constant times tokens")
    if isinstance(first.made_by, Frozen) and first.made_by.name == "softmax":
        return WeightedSum()
    return Frozen("similarity", torch.matmul)


def _parameter(parameter: Any) -> Tensor:
    if not isinstance(parameter, Tensor) or parameter.dim() > 2:
        raise NotImplementedError("a product with a weight that is no matrix of the model's own")
    return parameter


def _layer_norm(x: Value, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Operation:
    if len(normalized_shape) != 1:
        raise NotImplementedError(_OF_THE_IMAGE)
    return LayerNorm(weight, bias, eps, normalized_shape[0])


def _attention(
    q: Value, k: Value, v: Value, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, **others: Any
) -> Operation:
    scale = others.pop("scale", None)
    if attn_mask is not None or is_causal or dropout_p or any(others.values()):
        raise NotImplementedError("attention with a mask, dropout or shared heads")
    return Attention(scale)


def _norm(x: Value, p: Any = 2, dim: Any = None, keepdim: bool = False, ord: Any = None) -> Operation:
    order = p if ord is None else ord
    if dim is None or not keepdim:
        raise NotImplementedError("a norm over all numbers, or without keepdim=True")
    return Frozen("norm", lambda x: torch.linalg.vector_norm(x, 2 if order == "fro" else order, dim, True))


def _dropout(x: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Operation:
    if training and p > 0:
        raise NotImplementedError("dropout that is active in evaluation mode; give it training=self.training")
    return Identity()


def _mean(x: Value, dim: Any = None, keepdim: bool = False) -> Operation:
    dims = [dim] if isinstance(dim, int) else list(dim or ())
    if x.batch == 0 and sorted(d % 4 for d in dims) == [2, 3]:
        return _mean_of_pixels(keepdim)
    if len(dims) != 1 or len(x.shape) != 3 or x.batch != 0 or dims[0] % 3 != 1:
        raise NotImplementedError("a mean over other dimensions than height and width, or tokens")
    return _mean_of_tokens(keepdim)


def _leaky_relu(x: Value, negative_slope: float = 0.01, inplace: bool = False) -> Operation:
    return _function_of("leaky_relu", lambda x: F.leaky_relu(x, negative_slope))


def _activation(name: str) -> Callable[..., Operation]:
    return lambda x, inplace=False: Activation(name)


FUNCTIONS: dict[Any, FunctionBuilder] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), lambda a, b: _sum(a, b, (1, 1))),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub", "sub_"), lambda a, b: _sum(a, b, (1, -1))),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _product),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div", "div_"), _quotient),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), lambda x: _product(x, -1)),
    **dict.fromkeys((F.dropout, F.dropout2d), _dropout),
    **dict.fromkeys((torch.mean, "mean"), _mean),
    F.gelu: lambda x, **options: _function_of("gelu", lambda x: F.gelu(x, **options)),
    F.leaky_relu: _leaky_relu,
    F.adaptive_avg_pool2d: lambda x, output_size: _adaptive_average_pool(output_size),
    F.avg_pool2d: lambda x, *args, **options: AveragePool(lambda x: F.avg_pool2d(x, *args, **options)),
    F.max_pool2d: lambda x, *args, **options: _max_pool(*args, **options),
    F.interpolate: lambda x, *args, **options: _interpolation(*args, **options),
    F.pad: lambda x, *args, **options: _pad(*args, **options),
    **dict.fromkeys((F.softmax, torch.softmax, "softmax"), _softmax),
    **dict.fromkeys((operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm"), _matrix_product),
    F.linear: lambda x, weight, bias=None: Dense(_parameter(weight), None if bias is None else _parameter(bias)),
    F.layer_norm: _layer_norm,
    F.scaled_dot_product_attention: _attention,
    F.normalize: lambda x, **options: Normalisation(lambda x: F.normalize(x, **options)),
    **dict.fromkeys((torch.norm, torch.linalg.norm, torch.linalg.vector_norm, "norm"), _norm),
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
