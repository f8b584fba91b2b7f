"""From a PyTorch model to the steps of a program: which modules and functions are known, and what they become."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from efficientnet_pytorch.utils import (
    Conv2dDynamicSamePadding,
    Conv2dStaticSamePadding,
    MemoryEfficientSwish,
    Swish,
)
from torch import Tensor, fx, nn

from lrp.errors import UnsupportedLayerError
from lrp.operations import (
    Activation,
    AveragePool,
    BatchNorm,
    Concatenation,
    Convolution,
    Dense,
    Flatten,
    Identity,
    MaxPool,
    Operation,
)
from lrp.program import Program, Step

ModuleBuilder = Callable[[Any], Operation]


class Product(Operation):
    """A product of two tensors as traced; canonisation turns it into a gate or refuses it."""

    kind = "product"

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] * inputs[1]


class Addition(Operation):
    """An addition of two tensors as traced; canonisation turns it into a residual sum or refuses it."""

    kind = "addition"

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _convolution(module: nn.Conv2d) -> Operation:
    if module.padding_mode != "zeros":
        raise UnsupportedLayerError(f"padding mode {module.padding_mode!r}; only zero padding is supported")
    if isinstance(module.padding, str):
        raise UnsupportedLayerError(f"padding={module.padding!r}; give it in numbers")
    padding, same = _pair(module.padding), isinstance(module, Conv2dDynamicSamePadding)
    if isinstance(module, Conv2dStaticSamePadding):
        pad = getattr(module.static_padding, "padding", (0, 0, 0, 0))
        if pad[0] != pad[1] or pad[2] != pad[3]:
            raise UnsupportedLayerError(
                "asymmetric static padding; build the EfficientNet with image_size=None (dynamic same padding)"
            )
        padding = (pad[2], pad[0])
    return Convolution(
        module.weight,
        module.bias,
        stride=_pair(module.stride),
        padding=padding,
        dilation=_pair(module.dilation),
        groups=module.groups,
        same_padding=same,
    )


def _batch_norm(module: nn.BatchNorm2d) -> Operation:
    if module.running_mean is None or module.running_var is None:
        raise UnsupportedLayerError("a batch norm without running statistics cannot be folded")
    deviation = torch.sqrt(module.running_var.double() + module.eps)
    weight = torch.ones_like(deviation) if module.weight is None else module.weight.double()
    bias = torch.zeros_like(deviation) if module.bias is None else module.bias.double()
    scale = weight / deviation
    operation = BatchNorm(scale, bias - module.running_mean.double() * scale)
    # The published networks keep a neutralised batch norm that still divides by sqrt(1 + eps).
    operation.residue = (1.0 + module.eps) ** -0.5
    return operation


def _max_pool(module: nn.MaxPool2d) -> Operation:
    options = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "ceil_mode")}
    kernel = module.kernel_size
    return MaxPool(lambda x: F.max_pool2d(x, kernel, **options))


def _average_pool(module: nn.AvgPool2d) -> Operation:
    names = ("stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    options = {name: getattr(module, name) for name in names}
    kernel = module.kernel_size
    return AveragePool(lambda x: F.avg_pool2d(x, kernel, **options))


def _adaptive_average_pool(size: Any) -> Operation:
    if size in (1, (1, 1), [1, 1]):
        # In float32 whatever the type of the maps: a mean over many pixels is where short types lose most.
        return AveragePool(lambda x: x.mean((-2, -1), keepdim=True, dtype=_at_least_float32(x)))
    return AveragePool(lambda x: F.adaptive_avg_pool2d(x, size))


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _named(name: str) -> ModuleBuilder:
    return lambda module: Activation(name)


MODULES: dict[type[nn.Module], ModuleBuilder] = {
    nn.Conv2d: _convolution,
    Conv2dDynamicSamePadding: _convolution,
    Conv2dStaticSamePadding: _convolution,
    nn.Linear: lambda module: Dense(module.weight, module.bias),
    nn.BatchNorm2d: _batch_norm,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: lambda module: _adaptive_average_pool(module.output_size),
    nn.ReLU: _named("relu"),
    nn.ReLU6: _named("relu6"),
    nn.SiLU: _named("swish"),
    nn.Hardswish: _named("hardswish"),
    nn.Sigmoid: _named("sigmoid"),
    nn.Hardsigmoid: _named("hardsigmoid"),
    nn.Tanh: _named("tanh"),
    nn.GELU: lambda module: Activation("gelu", lambda x: F.gelu(x, approximate=module.approximate)),
    nn.ELU: lambda module: Activation("elu", lambda x: F.elu(x, module.alpha)),
    nn.LeakyReLU: lambda module: Activation("leaky_relu", lambda x: F.leaky_relu(x, module.negative_slope)),
    nn.Dropout: lambda module: Identity(),
    nn.Dropout2d: lambda module: Identity(),
    nn.Identity: lambda module: Identity(),
    nn.Flatten: lambda module: Flatten(module.start_dim),
    Swish: _named("swish"),
    MemoryEfficientSwish: _named("swish"),
}


def _mean(*args: Any, **kwargs: Any) -> Operation:
    dims = kwargs.get("dim", args[0] if args else None)
    if not isinstance(dims, tuple | list) or sorted(d % 4 for d in dims) != [2, 3]:
        raise UnsupportedLayerError("a mean over other dimensions than height and width")
    keep = bool(kwargs.get("keepdim", args[1] if len(args) > 1 else False))
    return AveragePool(lambda x: x.mean((-2, -1), keepdim=keep, dtype=_at_least_float32(x)))


def _flatten(start_dim: int = 0, end_dim: int = -1) -> Operation:
    if end_dim != -1:
        raise UnsupportedLayerError("a flatten that stops before the last dimension")
    return Flatten(start_dim)


def _max_pool_function(kernel_size: Any, *args: Any, **kwargs: Any) -> Operation:
    kwargs.pop("return_indices", None)
    return MaxPool(lambda x: F.max_pool2d(x, kernel_size, *args, **kwargs))


# Functions and tensor methods of one tensor argument; the builder gets the other arguments.
FUNCTIONS: dict[Any, Callable[..., Operation]] = {
    torch.flatten: _flatten,
    "flatten": _flatten,
    torch.mean: _mean,
    "mean": _mean,
    F.adaptive_avg_pool2d: lambda output_size: _adaptive_average_pool(output_size),
    F.avg_pool2d: lambda *args, **kwargs: AveragePool(lambda x: F.avg_pool2d(x, *args, **kwargs)),
    F.max_pool2d: _max_pool_function,
    F.relu: lambda inplace=False: Activation("relu"),
    torch.relu: lambda: Activation("relu"),
    "relu": lambda: Activation("relu"),
    F.relu6: lambda inplace=False: Activation("relu6"),
    F.silu: lambda inplace=False: Activation("swish"),
    F.dropout: lambda *args, **kwargs: Identity(),
    torch.sigmoid: lambda: Activation("sigmoid"),
    F.sigmoid: lambda: Activation("sigmoid"),
    "sigmoid": lambda: Activation("sigmoid"),
}
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
IN_PLACE = (operator.iadd, operator.imul, "add_", "mul_")
IN_PLACE_ARGUMENT = (F.relu, F.relu6, F.silu)


def register_module(kind: type[nn.Module], builder: ModuleBuilder) -> None:
    """Teach the tracer a module of your own: `builder(module)` returns the operation it stands for."""
    MODULES[kind] = builder


def _builder_for(module: nn.Module) -> ModuleBuilder | None:
    kind = next((kind for kind in type(module).__mro__ if kind in MODULES), None)
    # A subclass that computes something else is not what it inherits from.
    return MODULES[kind] if kind is not None and type(module).forward is kind.forward else None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _builder_for(m) is not None or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> Program:
    """Trace a model in evaluation mode into a program of raw steps (nothing folded yet).

    Raises:
        UnsupportedLayerError: The model cannot be traced, or a module, function, addition or product in it has no
            counterpart in `lrp.operations`; the message names the place and the type.
    """
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        place = f"layer {training!r}" if training else f"the model ({type(model).__name__})"
        raise UnsupportedLayerError(f"{place} is in training mode; call model.eval() before explaining it")
    try:
        graph = _Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise UnsupportedLayerError(
            f"{type(model).__name__} cannot be traced ({str(error).splitlines()[0]}); "
            "register its dynamic parts with lrp.register_module"
        ) from error
    modules = dict(model.named_modules())
    numbers: dict[fx.Node, int] = {}
    steps: list[Step] = []
    seen: set[str] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            if numbers:
                raise UnsupportedLayerError(f"{type(model).__name__} takes more than one input")
            numbers[node] = 0
            continue
        if node.op == "output":
            result = node.args[0]
            if not isinstance(result, fx.Node) or numbers.get(result) != len(steps):
                raise UnsupportedLayerError(f"{type(model).__name__} must return one tensor, its logits")
            continue
        operation, origin = _operation(node, modules)
        name = str(node.target) if node.op == "call_module" else _place(node)
        if name in seen:
            if isinstance(operation, Convolution | Dense | BatchNorm):
                raise UnsupportedLayerError(f"layer {name!r} ({origin}) is used twice; give each use its own module")
            name = f"{name}@{node.name}"
        seen.add(name)
        tensors: list[fx.Node] = []
        fx.map_arg((node.args, node.kwargs), tensors.append)  # unlike all_input_nodes, a tensor read twice comes twice
        if not isinstance(operation, Identity):
            _check_overwriting(node, name, origin, tensors[0], modules)
        steps.append(Step(name, operation, tuple(numbers[argument] for argument in tensors), origin))
        numbers[node] = len(steps)
    return Program(steps)


def _check_overwriting(node: fx.Node, name: str, origin: str, value: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Refuse a step that overwrites a tensor which is read afterwards: steps of a program leave their inputs alone."""
    if node.op == "call_module":
        overwrites = bool(getattr(modules[str(node.target)], "inplace", False))
    else:
        given = node.kwargs.get("inplace", len(node.args) > 1 and node.target in IN_PLACE_ARGUMENT and node.args[1])
        overwrites = given is True or node.target in IN_PLACE
    if not overwrites:
        return
    order = {other: place for place, other in enumerate(node.graph.nodes)}
    later = [other for other in value.users if order[other] > order[node]]
    if later:
        raise UnsupportedLayerError(
            f"{name!r} of type {origin} overwrites its input, which {_place(later[0])!r} reads afterwards; "
            "let it work out of place"
        )


def _place(node: fx.Node) -> str:
    """Where a function was called: the module whose forward it stands in, and the node's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    scope = list(stack)[-1] if stack else ""
    return f"{scope}.{node.name}" if scope else node.name


def _operation(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[Operation, str]:
    if node.op == "call_module":
        module = modules[str(node.target)]
        origin = type(module).__name__
        builder = _builder_for(module)
        if builder is None:
            supported = ", ".join(sorted(kind.__name__ for kind in MODULES))
            raise UnsupportedLayerError(
                f"layer {node.target!r} of type {origin} has no rule; supported are {supported}; "
                "lrp.register_module adds one"
            )
        try:
            return builder(module), origin
        except UnsupportedLayerError as error:
            raise UnsupportedLayerError(f"layer {node.target!r} of type {origin}: {error}") from error
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    where = f"{_place(node)!r} of type {name}"
    if node.op == "get_attr":
        raise UnsupportedLayerError(f"{where}: a bare parameter in forward has no rule; wrap it in a module")
    if node.target in ADDITIONS or node.target in PRODUCTS:
        word = "an addition" if node.target in ADDITIONS else "a product"
        operands = [a for a in node.args if isinstance(a, fx.Node)]
        if len(operands) != 2 or node.kwargs:
            raise UnsupportedLayerError(f"{where}: {word} that is not of two tensors cannot be canonised")
        return (Addition() if node.target in ADDITIONS else Product()), str(name)
    if node.target is torch.cat:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        if not isinstance(dim, int):
            raise UnsupportedLayerError(f"{where}: the dimension of a concatenation must be a number")
        return Concatenation(dim), str(name)
    builder_function = FUNCTIONS.get(node.target)
    if builder_function is None:
        known = sorted({key if isinstance(key, str) else key.__name__ for key in FUNCTIONS})
        raise UnsupportedLayerError(f"{where} has no rule; supported functions are {', '.join(known)}")
    try:
        return builder_function(*node.args[1:], **{k: v for k, v in node.kwargs.items() if k != "input"}), str(name)
    except (UnsupportedLayerError, TypeError) as error:
        raise UnsupportedLayerError(f"{where}: {error}") from error
