"""Receptive fields: what one pixel of a layer can see of every value before it, cut out so that the rest costs nothing.

The pixels of several maps of a layer see fields of one size, each at its own place. What a field has outside its image
is filled in as the padding of the operation that reads it, so the operations then work without padding of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lrp.operations import Window
from lrp.program import Program, Step
from lrp.rules import Rule


@dataclass(frozen=True)
class Span:
    """A field along one axis: from pixel p of the layer, `length` pixels from `step` * p + `first` on."""

    step: int = 1
    first: int = 0
    length: int = 1

    def below(self, window: Window, axis: int) -> Span:
        """The field in the input of an operation that has this one in its output."""
        kernel, stride, dilation, before = (numbers[axis] for numbers in window)
        return Span(
            self.step * stride, self.first * stride - before, (self.length - 1) * stride + (kernel - 1) * dilation + 1
        )

    def joined(self, other: Span) -> Span:
        """The field that holds both."""
        first = min(self.first, other.first)
        return Span(self.step, first, max(self.first + self.length, other.first + other.length) - first)


Field = tuple[Span, Span]
"""Rows and columns."""


def receptive_field(program: Program, size: torch.Size) -> Field:
    """What one pixel of the output sees of the input, as if images had no end; `size` is that of an input.

    Raises:
        ValueError: An operation has no fixed window.
    """
    fields: dict[int, Field] = {program.output: (Span(), Span())}
    for index, window in _windows(program, _sizes(program, size)):
        rows, columns = (span.below(window, axis) for axis, span in enumerate(fields.pop(index + 1)))
        for value in program.steps[index].explained_inputs:
            before = fields.get(value, (rows, columns))
            fields[value] = (rows.joined(before[0]), columns.joined(before[1]))
    return fields[0]


def visible_pixels(program: Program, size: torch.Size) -> tuple[Tensor, Tensor]:
    """First and last + 1 input pixel that each row, and each column, of the output depends on: (h, 2) and (w, 2) int64.

    What a field has outside of an image, or outside of a map on the way (the last pixel before a stride that does not
    divide the size), is cut off.

    Raises:
        ValueError: An operation has no fixed window.
    """
    sizes = _sizes(program, size)
    seen: dict[int, list[tuple[Tensor, Tensor]]] = {}
    seen[program.output] = [(torch.arange(side), torch.arange(side)) for side in sizes[program.output][2:]]
    for index, window in _windows(program, sizes):
        below = [
            _clipped(*ends, window, axis, sizes[program.steps[index].inputs[0]][2 + axis])
            for axis, ends in enumerate(seen.pop(index + 1))
        ]
        for value in program.steps[index].explained_inputs:
            before = seen.get(value, below)
            seen[value] = [
                (torch.minimum(a, c), torch.maximum(b, d)) for (a, b), (c, d) in zip(below, before, strict=True)
            ]
    rows, columns = (torch.stack([first, last + 1], dim=1) for first, last in seen[0])
    return rows, columns


def _clipped(first: Tensor, last: Tensor, window: Window, axis: int, side: int) -> tuple[Tensor, Tensor]:
    """First and last pixel of the input of an operation; of a dilated window only those that it touches."""
    kernel, stride, dilation, before = (numbers[axis] for numbers in window)
    first = first * stride - before
    last = last * stride - before + (kernel - 1) * dilation
    first = torch.where(first < 0, first % dilation, first)
    beyond = (last - side).div(dilation, rounding_mode="floor") + 1
    return first, torch.where(last >= side, last - beyond * dilation, last)


def _windows(program: Program, sizes: Mapping[int, torch.Size]) -> Iterator[tuple[int, Window]]:
    """The steps, from the last to the first, and their windows."""
    for index in reversed(range(len(program.steps))):
        step = program.steps[index]
        window = step.operation.window(sizes[step.inputs[0]])
        if window is None:
            raise ValueError(f"{step.name} sees no part of fixed size of its input, so there is no receptive field")
        yield index, window


def _sizes(program: Program, size: torch.Size) -> dict[int, torch.Size]:
    values = program.run(torch.zeros(size), keep=range(program.output + 1))
    return {value: tensor.shape for value, tensor in values.items()}


class FieldWalk:
    """Relevance of the input for single pixels of one layer.

    Args:
        steps: Of the program, up to the layer.
        rules: One for every step.
        shapes: Of all values, by number.
    """

    def __init__(self, steps: Sequence[Step], rules: Sequence[Rule], shapes: Mapping[int, torch.Size]) -> None:
        self._steps, self._rules, self._shapes = steps, rules, shapes
        self._fields: dict[int, Field | None] = {len(steps): (Span(), Span())}
        """By value; None where it is the whole value."""
        for index in reversed(range(len(steps))):
            if index + 1 in self._fields:
                field = self._below(index)
                for value in steps[index].explained_inputs:
                    self._fields[value] = self._join(value, field)

    def _below(self, index: int) -> Field | None:
        step, field = self._steps[index], self._fields[index + 1]
        window = step.operation.window(self._shapes[step.inputs[0]])
        return None if field is None or window is None else (field[0].below(window, 0), field[1].below(window, 1))

    def _join(self, value: int, field: Field | None) -> Field | None:
        before = self._fields.get(value, field)
        if field is None or before is None or any(a.step != b.step for a, b in zip(field, before, strict=True)):
            return None
        joined = (field[0].joined(before[0]), field[1].joined(before[1]))
        smaller = all(span.length < size for span, size in zip(joined, self._shapes[value][2:], strict=True))
        return joined if smaller else None

    @torch.no_grad()
    def propagate(
        self, values: Mapping[int, Tensor], samples: Tensor, start: Tensor, row: Tensor, column: Tensor
    ) -> Tensor:
        """Walk backwards from one pixel for each of M maps.

        Args:
            values: Saved values of N images, by number; they are left as they are.
            samples: Image of each map, (M,).
            start: Relevance of the pixels, (M, C, 1, 1).
            row, column: Of each pixel, (M,).

        Returns:
            Relevance of the input, (M, 3, H, W).
        """
        peak = (row, column)
        relevance = {len(self._steps): start}
        for index in reversed(range(len(self._steps))):
            received = relevance.pop(index + 1, None)
            if received is None:
                continue
            step, rule = self._steps[index], self._rules[index]
            operation, field = step.operation, self._below(index)
            inputs: tuple[Tensor, ...] = ()
            if field is None:
                received = self._moved(received, self._fields[index + 1], index + 1, None, peak)
            if rule.needs_inputs and field is None:
                inputs = tuple(values[value].index_select(0, samples) for value in step.inputs)
            elif rule.needs_inputs and field:
                cuts = [_cut(values[value], samples, field, peak, operation.fill) for value in step.inputs]
                inputs = tuple(part for part, _ in cuts)
                operation = operation.unpadded(cuts[0][1])
            passed = rule.propagate(operation, inputs, received, nonnegative=step.nonnegative_inputs)
            for value, share in zip(step.inputs, passed, strict=True):
                if share is not None:
                    share = self._moved(share, field, value, self._fields[value], peak)
                    relevance[value] = relevance[value].add_(share) if value in relevance else share
        return self._moved(relevance[0], self._fields[0], 0, None, peak)

    def _moved(
        self, part: Tensor, field: Field | None, value: int, goal: Field | None, peak: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Relevance in one field of a value as relevance in a larger one, zero elsewhere."""
        if field == goal or field is None:
            return part
        if goal is None:
            # every pixel of the whole looks up its place in the part
            places = [span.step * p + span.first for span, p in zip(field, peak, strict=True)]
            whole = tuple(Span(-1, 0, size) for size in self._shapes[value][2:])
            return _cut(
                part, torch.arange(len(part), device=part.device), (whole[0], whole[1]), (places[0], places[1]), 0.0
            )[0]
        sides: list[int] = []
        for span, wide in zip(reversed(field), reversed(goal), strict=True):
            before = span.first - wide.first
            sides += [before, wide.length - span.length - before]
        return F.pad(part, sides)


def _cut(
    tensor: Tensor, samples: Tensor, field: Field, peak: tuple[Tensor, Tensor], fill: float
) -> tuple[Tensor, Tensor]:
    """A field of each sample (M, C, h, w), `fill` where it leaves the image, and where it does not (M, 1, h, w)."""
    indices, inside = [], []
    for span, centre, size in zip(field, peak, tensor.shape[2:], strict=True):
        pixels = (span.step * centre + span.first)[:, None] + torch.arange(span.length, device=tensor.device)
        indices.append(pixels.clamp(0, size - 1))
        inside.append((pixels >= 0) & (pixels < size))
    rows, columns = indices[0][:, :, None], indices[1][:, None, :]
    both = inside[0][:, :, None] & inside[1][:, None, :]
    part = tensor.permute(0, 2, 3, 1)[samples[:, None, None], rows, columns]
    return part.masked_fill_(~both[..., None], fill).permute(0, 3, 1, 2), both[:, None]
