"""From a PyTorch model to the steps of a program."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, fx, nn

from lrp import layers
from lrp.errors import UnsupportedLayerError
from lrp.operations import LinearOperation, Operation, Sum
from lrp.program import Program, Step


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return layers.builder_for(m) is not None or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> Program:
    """Trace a model in evaluation mode into a program of raw steps (nothing folded yet) that shares its parameters.

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
    known: dict[fx.Node, Any] = {}
    steps: list[Step] = []
    names: set[str] = set()
    for node in graph.nodes:
        if "input" in node.kwargs:
            node.args, node.kwargs = (node.kwargs["input"], *node.args), {**node.kwargs}
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "input"}
        if node.op == "placeholder":
            if known:
                raise UnsupportedLayerError(f"{type(model).__name__} takes more than one input")
            known[node] = layers.Value(0)
            continue
        if node.op == "output":
            result = known.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
            if not isinstance(result, layers.Value) or result.number != len(steps):
                raise UnsupportedLayerError(f"{type(model).__name__} must return one tensor, its logits")
            continue
        if node.op == "get_attr":
            known[node] = _constant_of(node, model)
            continue
        read: list[layers.Value] = []
        operation, origin = _operation(node, modules, known, read)
        if not isinstance(operation, Operation):
            known[node] = operation
            continue
        name = str(node.target) if node.op == "call_module" else _place(node)
        if name in names:
            if isinstance(operation, LinearOperation):
                raise UnsupportedLayerError(f"layer {name!r} ({origin}) is used twice; give each use its own module")
            name = f"{name}@{node.name}"
        names.add(name)
        if isinstance(operation, Sum):
            operation.name = name
        steps.append(Step(name, operation, tuple(value.number for value in read), origin))
        known[node] = layers.Value(len(steps))
    return Program(steps)


def _operation(
    node: fx.Node, modules: dict[str, nn.Module], known: dict[fx.Node, Any], read: list[layers.Value]
) -> tuple[Operation | layers.Size, str]:
    """What a node of the graph stands for and its type for messages; appends the values it reads to `read`."""

    def resolve(argument: fx.Node) -> Any:
        found = known[argument]
        if isinstance(found, layers.Value):
            read.append(found)
        return found

    # A tensor read twice is resolved twice, in the order of the arguments.
    args: Any
    kwargs: Any
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), resolve)
    builder: Callable[..., Operation | layers.Size] | None
    table: Iterable[Any]
    if node.op == "call_module":
        module = modules[str(node.target)]
        origin, where = type(module).__name__, f"layer {node.target!r} of type {type(module).__name__}"
        builder, args, kwargs = layers.builder_for(module), (module,), {}
        table, register = layers.MODULES, "register_module"
    else:
        origin = _name(node.target)
        where = f"{_place(node)!r} of type {origin}"
        builder, table, register = layers.FUNCTIONS.get(node.target), layers.FUNCTIONS, "register_function"
    if builder is None:
        supported = ", ".join(sorted(set(map(_name, table))))
        raise UnsupportedLayerError(f"{where} has no rule; supported are {supported}; lrp.{register} adds one")
    try:
        return builder(*args, **kwargs), origin
    except (NotImplementedError, TypeError) as error:
        raise UnsupportedLayerError(f"{where}: {error}") from error


def _name(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _constant_of(node: fx.Node, model: nn.Module) -> Tensor:
    value = operator.attrgetter(str(node.target))(model)
    if not isinstance(value, Tensor) or not layers.is_per_channel(value):
        raise UnsupportedLayerError(
            f"{_place(node)!r} of type {node.target}: a bare parameter in forward has no rule; wrap it in a module"
        )
    return value


def _place(node: fx.Node) -> str:
    """Where a function was called: the module whose forward it stands in, and the node's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    scope = list(stack)[-1] if stack else ""
    return f"{scope}.{node.name}" if scope else node.name
