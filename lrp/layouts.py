"""Changes of shape and of the order of dimensions: what each stands for, with images first in the program.

Importing this module makes the functions known to `lrp.layers`.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lrp.layers import FUNCTIONS, Batch, Placed, Size, Value, flat
from lrp.operations import Concatenation, Identity, Resample, Reshape
from lrp.tokens import Joined, permutation


class Rounding(Identity):
    """A cast to another floating-point type than that of the whole network; the program has one type."""


def _view(x: Value, *shape: Any) -> Reshape:
    """(batch, ...) in any spelling; sizes are those of the input, numbers, or one of them what remains."""
    images, *sizes = flat(shape)
    numbers = all(size > 0 and not isinstance(size, Size | Batch) for size in sizes)
    if x.batch != 0 or not sizes or not (isinstance(images, Batch) or (images == -1 and numbers)):
        raise NotImplementedError("a change of shape that is not (batch, ...)")
    if any(isinstance(size, Batch) for size in sizes):
        raise NotImplementedError("a change of shape that mixes images")
    dims = {index: s.dim for index, s in enumerate(sizes) if isinstance(s, Size) and s.number == x.number and s.dim}
    # Sizes of other tensors are those of the trial image; the first, mostly that of the tokens, is found from the rest.
    others = [index for index, size in enumerate(sizes) if isinstance(size, Size) and index not in dims]
    if others:
        if -1 in sizes:
            known = math.prod(size for size in sizes if size != -1)
            sizes[sizes.index(-1)] = math.prod(x.shape) // known
        sizes[others.pop(0)] = -1

    def reshape(x: Tensor) -> Tensor:
        return x.reshape(len(x), *(x.shape[dims[index]] if index in dims else size for index, size in enumerate(sizes)))

    return Reshape(reshape)


def _flatten(x: Value, start_dim: int = 0, end_dim: int = -1) -> Any:
    if x.batch == 0 and (start_dim, end_dim) == (1, -1):
        return Reshape(lambda x: x.flatten(1))
    start, end = x.dimension(start_dim), x.dimension(end_dim)
    if (start > x.batch) != (end > x.batch):
        raise NotImplementedError("a change of shape that mixes images")
    return Placed(Reshape(lambda x: x.flatten(start, end)), x.batch - (0 if start > x.batch else end - start))


def _unflatten(x: Value, dim: int, sizes: Sequence[int]) -> Placed:
    dimension = x.dimension(dim)
    more = 0 if dimension > x.batch else len(sizes) - 1
    return Placed(Reshape(lambda x: x.unflatten(dimension, tuple(sizes))), x.batch + more)


def _squeeze(x: Value, *args: Any, **options: Any) -> Reshape:
    return Reshape(lambda x: x.squeeze(*args, **options))


def _unsqueeze(x: Value, dim: int) -> Placed:
    at = dim % (len(x.shape) + 1)
    dimension = at + 1 if at <= x.batch else at
    return Placed(Reshape(lambda x: x.unsqueeze(dimension)), x.batch + (at <= x.batch))


def _permute(x: Value, *dims: Any) -> Any:
    order = [dim % len(x.shape) for dim in flat(dims)]
    places = [0, *(x.dimension(dim) for dim in order if dim != x.batch)]
    batch = order.index(x.batch)
    if places == sorted(places):
        return Value(x.number, batch, x.made_by, x.look)
    return Placed(permutation(places), batch)


def _transpose(x: Value, dim0: int, dim1: int) -> Any:
    order = list(range(len(x.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return _permute(x, *order)


def _pick(x: Value, dim: int, index: int | slice) -> Placed:
    """Part of a dimension; with a number the dimension goes."""
    dimension = x.dimension(dim)
    gone = isinstance(index, int) and dimension <= x.batch
    return Placed(_picked((*[slice(None)] * dimension, index)), x.batch - gone, (x,))


def _picked(index: Any) -> Resample:
    def put_back(upstream: Tensor, x: Tensor) -> Tensor:
        whole = torch.zeros_like(x, dtype=upstream.dtype)
        whole[index] = upstream
        return whole

    return Resample(lambda x: x[index], put_back)


def _unbind(x: Value, dim: int = 0) -> tuple[Placed, ...]:
    return tuple(_pick(x, dim, number) for number in range(x.shape[dim]))


def _split(x: Value, sizes: int | Sequence[int], dim: int = 0) -> tuple[Placed, ...]:
    if isinstance(sizes, int):
        ends = [*range(sizes, x.shape[dim], sizes), x.shape[dim]]
    else:
        ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return tuple(_pick(x, dim, slice(start, end)) for start, end in zip([0, *ends], ends, strict=False))


def _chunk(x: Value, chunks: int, dim: int = 0) -> tuple[Placed, ...]:
    return _split(x, -(-x.shape[dim] // chunks), dim)


def _item(x: Any, index: Any) -> Any:
    if not isinstance(x, Value):
        return x[index]
    parts = index if isinstance(index, tuple) else (index,)
    if x.batch != 0 and isinstance(index, int):
        return _pick(x, 0, index)
    images, *others = parts
    # a row of maps would be taken for something else; a token is what most transformers end with
    numbers = any(isinstance(part, int) for part in others)
    known = all(part is Ellipsis or isinstance(part, slice | int) for part in others)
    if x.batch != 0 or images not in (slice(None), Ellipsis) or not known or (numbers and len(x.shape) == 4):
        raise NotImplementedError("picking images or single channels, rows or columns; slices are supported")
    return _picked(index)


def _concatenation(tensors: Sequence[Any], dim: int = 0) -> Any:
    values = [part for part in tensors if isinstance(part, Value)]
    batch = values[0].batch
    if any(value.batch != batch for value in values):
        raise NotImplementedError("a concatenation of tensors with images in different places")
    constants = {index: part for index, part in enumerate(tensors) if not isinstance(part, Value)}
    if not constants and batch == 0:
        return Concatenation(dim)
    dimension = values[0].dimension(dim)
    if not constants:
        return Placed(Concatenation(dimension), batch)
    if any(part.shape[batch] != 1 for part in constants.values()):
        raise NotImplementedError("a concatenation with a constant that differs from image to image")
    constants = {number: part.detach().movedim(batch, 0) for number, part in constants.items()}
    return Placed(Joined(dimension, constants, len(tensors)), batch)


def _cast(x: Value, *args: Any, **options: Any) -> Any:
    """The same, unless its type is said in so many words; the type of another tensor is that of all."""
    types = [part for part in (*args, *options.values()) if isinstance(part, torch.dtype)]
    return Rounding() if any(dtype != torch.float64 for dtype in types) else x


def _same(x: Value, *args: Any, **options: Any) -> Value:
    return x


_BY_FUNCTION: dict[Callable[..., Any], tuple[Any, ...]] = {
    _view: (torch.reshape, "reshape", "view"),
    _flatten: (torch.flatten, "flatten"),
    _unflatten: (torch.unflatten, "unflatten"),
    _squeeze: (torch.squeeze, "squeeze"),
    _unsqueeze: (torch.unsqueeze, "unsqueeze"),
    _permute: (torch.permute, "permute"),
    _transpose: (torch.transpose, torch.swapaxes, "transpose", "swapaxes"),
    _unbind: (torch.unbind, "unbind"),
    _split: (torch.split, "split"),
    _chunk: (torch.chunk, "chunk"),
    _item: (operator.getitem,),
    _concatenation: (torch.cat, torch.concat),
    _cast: ("to", "type"),
    (lambda x: Rounding()): ("float", "half", "bfloat16"),
    _same: ("contiguous", "clone", "detach", "type_as"),
}
for _builder, _functions in _BY_FUNCTION.items():
    FUNCTIONS.update(dict.fromkeys(_functions, _builder))
