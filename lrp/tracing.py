"""From a PyTorch model to the steps of a program."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lrp import layers
from lrp.attention import LayerNorm, Normalisation, Quotient, multi_head_attention
from lrp.errors import UnsupportedLayerError
from lrp.layers import Placed, Value
from lrp.layouts import Rounding
from lrp.operations import Activation, Dense, Identity, LinearOperation, Operation, Product, Sum
from lrp.program import Program, Step
from lrp.tokens import Scaling, Shift

# What works on each number, or on the last dimension, wherever the images are.
_ANYWHERE = (
    Activation, Identity, Sum, Product, Quotient, Scaling, Shift, Dense, LayerNorm, Normalisation,
)  # fmt: skip


@dataclass
class Trace:
    """A program as traced.

    Attributes:
        program: Its steps, nothing folded yet; they share the model's parameters.
        batches: By number, which dimension of the model's tensor is that of the images, which the program has first.
        sized: Whether it may depend on the sizes of the trial images, which were asked for.
        rounded: Whether the model computes in another precision than that of its weights in places.
    """

    program: Program
    batches: dict[int, int]
    sized: bool
    rounded: bool


def trace(model: nn.Module, images: Tensor) -> Trace:
    """Trace a model in evaluation mode.

    Args:
        model: The network.
        images: Some that it takes (N, 3, H, W), in the type of its weights.

    Raises:
        UnsupportedLayerError: The model cannot be traced, or a module, function, addition or product in it has no
            counterpart in `lrp.operations`; the message names the place and the type.
    """
    tracer = _Tracer(_Conversion(model, images))
    try:
        return tracer.conversion.finish(tracer.trace(model))
    except UnsupportedLayerError:
        raise
    except (fx.proxy.TraceError, TypeError, RuntimeError, ValueError, AttributeError, LookupError) as error:
        raise UnsupportedLayerError(
            f"{type(model).__name__} cannot be traced ({str(error).splitlines()[0]}); "
            "register its dynamic parts with lrp.register_module"
        ) from error


def refuse_unready(model: nn.Module) -> None:
    """Refuse a model that is in training mode or needs more than images.

    Raises:
        UnsupportedLayerError: It is, or does.
    """
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        where = f"layer {training!r}" if training else f"the model ({type(model).__name__})"
        raise UnsupportedLayerError(f"{where} is in training mode; call model.eval() before explaining it")
    required = [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if len(required) > 1:
        raise UnsupportedLayerError(f"{type(model).__name__} takes more than one input")


class _Proxy(fx.Proxy):
    """Stands for a tensor while a model is traced; its sizes are those for a trial image."""

    tracer: _Tracer

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tracer.conversion.shape_of(self.node)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tracer.conversion.images.dtype

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]


class _Tracer(fx.Tracer):
    def __init__(self, conversion: _Conversion) -> None:
        super().__init__()
        self.conversion = conversion

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        # other arguments, which have defaults, are left at them
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        # parts of a tensor, as of `chunk`, may be looped over; a tensor's own rows may not
        parts = self.conversion.parts_of(obj.node)
        return super().iter(obj) if parts is None else (operator.getitem(obj, number) for number in range(parts))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.MultiheadAttention):
            return False
        return layers.builder_for(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(m, nn.MultiheadAttention) and type(m).forward is nn.MultiheadAttention.forward:
            forward = partial(multi_head_attention, m)
        return super().call_module(m, forward, args, kwargs)


_PATCHED = {name: getattr(nn.Module, name) for name in ("__getattr__", "__call__")}


@contextmanager
def _untraced() -> Iterator[None]:
    """Modules as they are, in the middle of a trace, for which torch.fx replaces these two methods."""
    patches = {name: getattr(nn.Module, name) for name in _PATCHED}
    try:
        for name, method in _PATCHED.items():
            setattr(nn.Module, name, method)
        yield
    finally:
        for name, method in patches.items():
            setattr(nn.Module, name, method)


@dataclass
class _Conversion:
    """The nodes of a graph as steps, converted as far as the graph goes."""

    model: nn.Module
    images: Tensor
    steps: list[Step] = field(default_factory=list)
    known: dict[fx.Node, Any] = field(default_factory=dict)
    """What each node stands for."""

    def __post_init__(self) -> None:
        self._modules = dict(self.model.named_modules())
        self._names: set[str] = set()
        self._values: list[Value] = []
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._trial: list[Tensor] = []

    def shape_of(self, node: fx.Node) -> tuple[int, ...]:
        """Sizes of a tensor in the model."""
        with _untraced():
            self.convert(node.graph)
            known = self.known[node]
            return known.shape if isinstance(known, Value) else tuple(known.shape)

    def parts_of(self, node: fx.Node) -> int | None:
        """How many parts a node stands for; None of a single tensor."""
        with _untraced():
            self.convert(node.graph)
        known = self.known[node]
        return len(known) if isinstance(known, tuple) else None

    def sizes(self, number: int) -> torch.Size:
        """Sizes of a value of the program for the trial images, found without computing it."""
        if not self._trial:
            self._trial.append(self._mode.from_tensor(self.images))
        with self._mode, torch.no_grad():
            for step in self.steps[len(self._trial) - 1 : number]:
                self._trial.append(step.operation.forward(*(self._trial[value] for value in step.inputs)))
        return self._trial[number].shape

    def convert(self, graph: fx.Graph) -> None:
        """Convert the nodes that are new."""
        for node in graph.nodes:
            if node not in self.known and node.op != "output":
                self.known[node] = self._converted(node)

    def finish(self, graph: fx.Graph) -> Trace:
        """The program from the image to what the graph returns.

        Raises:
            UnsupportedLayerError: That is not one tensor.
        """
        self.convert(graph)
        (result,) = next(node for node in graph.nodes if node.op == "output").args
        value = self.known.get(result) if isinstance(result, fx.Node) else None
        if not isinstance(value, Value) or value.batch != 0:
            raise UnsupportedLayerError(f"{type(self.model).__name__} must return one tensor, its logits")
        rounded = any(isinstance(step.operation, Rounding) for step in self.steps)
        batches = {traced.number: traced.batch for traced in self._values}
        return Trace(Program(self.steps[: value.number]), batches, bool(self._trial), rounded)

    def _converted(self, node: fx.Node) -> Any:
        if "input" in node.kwargs:
            named = dict(node.kwargs)
            node.args, node.kwargs = (named.pop("input"), *node.args), named
        if node.op == "placeholder":
            return Value(0, look=self.sizes)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.model)
        read: list[Value] = []

        def resolve(argument: fx.Node) -> Any:
            converted = self.known[argument]
            if isinstance(converted, tuple) and node.target is not operator.getitem:
                converted = self.known[argument] = tuple(self._made(argument, part) for part in converted)
            read.extend(part for part in layers.flat([converted]) if isinstance(part, Value))
            return converted

        # A tensor read twice is resolved twice, in the order of the arguments.
        args: Any
        kwargs: Any
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), resolve)
        if not read and not any(isinstance(part, Placed) for part in layers.flat(args)):
            return self._constant(node, args, kwargs)
        converted, origin = self._stands_for(node, args, kwargs)
        if isinstance(converted, Operation):
            batches = {value.batch for value in read}
            if batches != {0} and not (len(batches) == 1 and isinstance(converted, _ANYWHERE)):
                raise UnsupportedLayerError(f"{_place(node)!r} of type {origin}: images are not the first dimension")
            converted = Placed(converted, batches.pop())
        return self._step(node, converted, read, origin) if isinstance(converted, Placed) else converted

    def _made(self, node: fx.Node, part: Any) -> Any:
        """A part of a tensor as a step of its own, where it is not picked by its number."""
        return self._step(node, part, list(part.inputs or ()), _name(node.target)) if isinstance(part, Placed) else part

    def _step(self, node: fx.Node, placed: Placed, read: list[Value], origin: str) -> Value:
        operation = placed.operation
        name = str(node.target) if node.op == "call_module" else _place(node)
        if name in self._names:
            if isinstance(operation, LinearOperation):
                raise UnsupportedLayerError(f"layer {name!r} ({origin}) is used twice; give each use its own module")
            name = f"{name}@{node.name}" if f"{name}@{node.name}" not in self._names else f"{name}@{len(self.steps)}"
        self._names.add(name)
        if isinstance(operation, Sum):
            operation.name = name
        inputs = read if placed.inputs is None else placed.inputs
        self.steps.append(Step(name, operation, tuple(value.number for value in inputs), origin))
        made_by = inputs[0].made_by if isinstance(operation, Identity) else operation
        self._values.append(Value(len(self.steps), placed.batch, made_by, self.sizes))
        return self._values[-1]

    def _constant(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """The value of a node that does not depend on the image."""
        if node.op == "call_module":
            return self._modules[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _stands_for(self, node: fx.Node, args: Any, kwargs: Any) -> tuple[Any, str]:
        """What a node with tensors of the network in its arguments stands for, and its type for messages."""
        builder: Callable[..., Any] | None
        table: Iterable[Any]
        if node.op == "call_module":
            module = self._modules[str(node.target)]
            origin, where = type(module).__name__, f"layer {node.target!r} of type {type(module).__name__}"
            builder, args, kwargs = layers.builder_for(module), (module,), {}
            table, register = layers.MODULES, "register_module"
        else:
            origin = _name(node.target)
            where = f"{_place(node)!r} of type {origin}"
            builder, table, register = layers.FUNCTIONS.get(node.target), layers.FUNCTIONS, "register_function"
        try:
            if builder is not None:
                return builder(*args, **kwargs), origin
            bare = next((part for part in node.all_input_nodes if isinstance(self.known[part], Tensor)), None)
            while bare is not None and bare.op != "get_attr":
                bare = next(iter(bare.all_input_nodes), None)
            if bare is not None:
                where = f"{_place(bare)!r} of type {bare.target}"
                failure = f"{where}: a bare parameter in forward has no rule; wrap it in a module"
            else:
                supported = ", ".join(sorted(set(map(_name, table))))
                failure = f"{where} has no rule; supported are {supported}; lrp.{register} adds one"
        except (NotImplementedError, TypeError) as error:
            failure = f"{where}: {error}"
        raise UnsupportedLayerError(failure)


def _name(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _place(node: fx.Node) -> str:
    """Where a function was called: the module whose forward it stands in, and the node's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    scope = list(stack)[-1] if stack else ""
    return f"{scope}.{node.name}" if scope else node.name
