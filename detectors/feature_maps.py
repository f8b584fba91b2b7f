"""Feature maps of a detector: how strongly they respond, and what it says without some of them.

A feature map is one channel of one convolution, named by (layer, index); nothing here knows where a choice of maps
comes from. Its values are the raw output of the convolution, before batch norm, as in the published experiments. The
hidden units of an MLP of tokens count as well (ours), before their activation; a token then is a pixel.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lrp.canonise import build_program
from lrp.operations import Activation, BatchNorm, Convolution, Sum
from lrp.program import Program
from utils.errors import UserError

Maps = Mapping[str, Sequence[int]]
"""Channels by layer."""

# Tensors beyond 32 MiB are asked from the system and given back each time, which costs as much as filling them.
_PIXELS_AT_ONCE = 8 * 224 * 224


def by_layer(maps: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    """Group maps by layer; each once, channels ascending, layers in order of first appearance.

    >>> by_layer([("conv1", 3), ("conv2", 0), ("conv1", 1)])
    {'conv1': [1, 3], 'conv2': [0]}
    """
    grouped: dict[str, set[int]] = {}
    for layer, index in maps:
        grouped.setdefault(layer, set()).add(index)
    return {layer: sorted(indices) for layer, indices in grouped.items()}


@dataclass(frozen=True)
class Observation:
    """What one forward pass showed.

    Attributes:
        indices: The channels looked at, by layer.
        maxima: By layer the largest value over height and width, (N, number of channels looked at) float32.
        logits: (N, outputs) float32, or None if the pass stopped before.
    """

    indices: Maps
    maxima: Mapping[str, Tensor]
    logits: Tensor | None

    def select(self, maps: Sequence[tuple[str, int]]) -> Tensor:
        """Maxima of the maps in the order given, (N, len(maps)) float32."""
        places = {layer: {index: at for at, index in enumerate(indices)} for layer, indices in self.indices.items()}
        columns = [self.maxima[layer][:, places[layer][index]] for layer, index in maps]
        return torch.stack(columns, dim=1)


class FeatureMapNetwork:
    """A network whose feature maps can be observed and dropped; the model itself is left as it was found.

    Args:
        model: In evaluation mode.
        name: Of the architecture, for messages.
        dtype: Of the convolutions; what is returned is float32 in any case.

    Raises:
        UnsupportedLayerError: The network has a layer that `lrp` does not know.
    """

    def __init__(self, model: nn.Module, name: str, dtype: torch.dtype = torch.float32) -> None:
        self._model, self._name, self._dtype = model, name, dtype
        # Batch norms kept: only so are the outputs of convolutions the raw maps.
        self._raw = self._prepared(build_program(model, fold=False, dtype=dtype))
        self._dropped_values = _values_of_dropped_maps(self._raw)
        self.layers: dict[str, int] = dict(self._raw.convolutions())
        """Number of feature maps by layer, in order of depth."""

    @staticmethod
    def _prepared(program: Program) -> Program:
        program.allow_in_place(())
        readers = program.consumers()
        for step in program.steps:
            if isinstance(step.operation, Sum) and step.operation.signs == (1, 1):
                # Only a convolution's output is sure to be a tensor of its own.
                overwritable = [
                    value for value in step.inputs if len(readers[value]) == 1 and _made_by_convolution(program, value)
                ]
                if overwritable:
                    step.operation = _AddTo(step.operation.name)
                    step.inputs = (overwritable[0], *(value for value in step.inputs if value != overwritable[0]))
        return program

    @cached_property
    def _fast(self) -> Program:
        if not any(isinstance(step.operation, BatchNorm) for step in self._raw.steps):
            return self._raw  # nothing to fold
        return self._prepared(build_program(self._model, dtype=self._dtype))

    def check(self, maps: Maps) -> dict[str, list[int]]:
        """The maps in order of depth, each once.

        Raises:
            UserError: The detector has no such layer or no such channel; the message names it.
        """
        for layer, indices in maps.items():
            if layer not in self.layers:
                known = list(self.layers)
                raise UserError(
                    f"{self._name} has no layer {layer} (its layers are {known[0]}, ... {known[-1]}): "
                    "use a ranking of the same architecture"
                )
            for index in indices:
                if not 0 <= index < self.layers[layer]:
                    raise UserError(
                        f"layer {layer} of {self._name} has {self.layers[layer]} feature maps, so there is "
                        f"no map {index}: use a ranking of the same architecture"
                    )
        return {layer: sorted(set(maps[layer])) for layer in self.layers if maps.get(layer)}

    def observing(self, maps: Maps, *, logits: bool = True) -> Callable[[Tensor], Observation]:
        """A function from inputs to the largest value of each map, for any number of maps and batches.

        Args:
            maps: Channels by layer, perhaps none.
            logits: Go on to the end of the network; else stop after the last layer looked at.

        Raises:
            UserError: The detector lacks a map.
        """
        wanted = self.check(maps)
        # Without maps the folded network gives the same logits for less.
        program = self._raw if wanted else self._fast
        last = program.output if logits else max((program.index(layer) + 1 for layer in wanted), default=0)
        picked = {layer: torch.tensor(indices, device=program.device) for layer, indices in wanted.items()}

        def observe(inputs: Tensor) -> Observation:
            maxima: dict[str, Tensor] = {}

            def look(layer: str, output: Tensor) -> None:
                maxima[layer] = _maxima(output, picked[layer]).float()

            values = program.run(inputs, last=last, observed=wanted, observer=look)
            return Observation(wanted, maxima, values[last].float() if logits else None)

        return observe

    def dropping(self, variants: Mapping[str, Maps]) -> Callable[[Tensor], dict[str, Tensor]]:
        """A function from inputs to the output in float32 of each variant, some maps set to 0 before batch norm.

        Variants share all layers up to their first dropped map, and beyond as long as they drop the same maps; each
        gives the same numbers as alone.

        Args:
            variants: By name the channels to drop, by layer; none gives the network as it is.

        Raises:
            UserError: The detector lacks a map.
        """
        checked = {name: self.check(maps) for name, maps in variants.items()}
        if not checked:
            return lambda inputs: {}
        branches = _Branches(self._fast, self._dropped_values, checked)

        def drop(inputs: Tensor) -> dict[str, Tensor]:
            parts = [branches.run(some) for some in self._portions(inputs)]
            return {name: torch.cat([part[name].float() for part in parts]) for name in variants}

        return drop

    def _portions(self, inputs: Tensor) -> Sequence[Tensor]:
        """The batch in portions that a CPU works on fastest."""
        if self._fast.device.type != "cpu":
            return [inputs]
        return inputs.split(max(1, _PIXELS_AT_ONCE // (inputs.shape[-2] * inputs.shape[-1])))


def _made_by_convolution(program: Program, value: int) -> bool:
    return value > 0 and isinstance(program.steps[value - 1].operation, Convolution)


class _AddTo(Sum):
    """A sum written over its first input, which nobody else reads."""

    def forward(self, *inputs: Tensor) -> Tensor:
        total, other = inputs
        return total.add_(other)


def _maxima(output: Tensor, indices: Tensor) -> Tensor:
    if len(indices) == output.shape[1]:
        return output.amax((2, 3))
    # Picking channels first costs more than the maximum of all when there are many of them.
    if 4 * len(indices) > output.shape[1]:
        return output.amax((2, 3))[:, indices]
    return output[:, indices].amax((2, 3))


def _values_of_dropped_maps(raw: Program) -> dict[str, Tensor]:
    """What a map that is 0 before batch norm becomes behind it: the norm's shift, or 0 where there is none."""
    readers = raw.consumers()
    values: dict[str, Tensor] = {}
    for index, step in enumerate(raw.steps):
        if isinstance(step.operation, Convolution):
            followers = [raw.steps[reader].operation for reader in readers[index + 1]]
            # a norm beside other readers is not folded
            norm = followers[0] if len(followers) == 1 and isinstance(followers[0], BatchNorm) else None
            channels = step.operation.channels
            zeros = torch.zeros(channels, device=raw.device, dtype=raw.dtype)
            values[step.name] = zeros if norm is None else norm.bias
    return values


class _Branches:
    """Several variants of a program as a tree: a branch begins where variants first drop different maps.

    All that the batches have in common is prepared once, the tensors of indices and values above all.
    """

    def __init__(
        self, program: Program, dropped_values: Mapping[str, Tensor], variants: Mapping[str, Mapping[str, list[int]]]
    ) -> None:
        self._program = program
        self._dropped_values = dropped_values
        self._steps = {name: {program.index(layer): layer for layer in maps} for name, maps in variants.items()}
        self._variants = variants
        self._last_read = [max(steps, default=-1) for steps in program.consumers()]
        self._overwritten = {
            step.inputs[0]
            for step in program.steps
            if isinstance(step.operation, _AddTo)
            or (isinstance(step.operation, Activation) and step.operation.in_place)
        }
        self._edits = {
            (layer, tuple(indices)): self._dropping(layer, indices)
            for maps in variants.values()
            for layer, indices in maps.items()
        }

    def run(self, inputs: Tensor) -> dict[str, Tensor]:
        """The output of every variant."""
        results: dict[str, Tensor] = {}
        self._finish(list(self._variants), 0, {0: self._program.prepare(inputs)}, results)
        return results

    def _finish(self, names: list[str], first: int, values: dict[int, Tensor], results: dict[str, Tensor]) -> None:
        """Run the variants `names`, which have the values before step `first` in common, to the end."""
        coming = [step for name in names for step in self._steps[name] if step >= first]
        if len(names) == 1 or not coming:
            edits = {
                layer: self._edits[layer, tuple(self._variants[names[0]][layer])]
                for step, layer in self._steps[names[0]].items()
                if step >= first
            }
            output = self._program.run(values, first=first, edits=edits)[self._program.output]
            results.update(dict.fromkeys(names, output))
            return
        step = min(coming)
        last = step + 1
        alive = [value for value in range(last + 1) if self._last_read[value] >= last]
        values = self._program.run(values, first=first, last=last, keep=alive)
        layer = self._program.steps[step].name
        branches: dict[tuple[int, ...], list[str]] = {}
        for name in names:
            branches.setdefault(tuple(self._variants[name].get(layer, ())), []).append(name)
        for number, (dropped, members) in enumerate(branches.items(), start=1):
            branch = dict(values)
            if number < len(branches):
                # Later branches need what this one would overwrite.
                for value in {last, *self._overwritten} & branch.keys():
                    branch[value] = branch[value].clone()
            if dropped:
                branch[last] = self._edits[layer, dropped](branch[last])
            self._finish(members, last, branch, results)

    def _dropping(self, layer: str, indices: Sequence[int]) -> Callable[[Tensor], Tensor]:
        chosen = torch.tensor(indices, device=self._program.device)
        values = self._dropped_values[layer][chosen].view(-1, 1, 1)

        def edit(output: Tensor) -> Tensor:
            output[:, chosen] = values
            return output

        return edit
