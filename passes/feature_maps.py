"""Feature maps of a detector: how strongly they respond, and what it says without some of them.

A feature map is one channel of one convolution, named by (layer, index); nothing here knows where a choice of maps
comes from. Its values are the raw output of the convolution, before batch norm, as in the published experiments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from detectors.detector import Detector
from images.distortions import to_grayscale
from lrp.canonise import build_program
from lrp.operations import Activation, BatchNorm, Convolution, Sum
from lrp.program import Program
from passes.one_pass import PassBatch
from utils.errors import UserError

Maps = Mapping[str, Sequence[int]]
"""Channels by layer."""
Precision = Literal["fp32", "bf16"]
Kind = Literal["rgb", "grayscale"]

# Tensors beyond 32 MiB are asked from the system and given back each time, which costs as much as filling them.
_PIXELS_AT_ONCE = 8 * 224 * 224
_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
    """A detector whose feature maps can be observed and dropped; the detector itself is left as it was found.

    Args:
        detector: The network with its weights.
        precision: Of the convolutions; what is returned is float32 in any case.

    Raises:
        UnsupportedLayerError: The network has a layer that `lrp` does not know.
    """

    def __init__(self, detector: Detector, precision: Precision = "fp32") -> None:
        self._detector = detector
        self._dtype = _DTYPES[precision]
        # Batch norms kept: only so are the outputs of convolutions the raw maps.
        self._raw = self._prepared(build_program(detector.model, fold=False, dtype=self._dtype))
        self._folded: Program | None = None
        self._dropped_values = _values_of_dropped_maps(self._raw)
        self.layers: dict[str, int] = dict(self._raw.convolutions())
        """Number of feature maps by convolution, in order of depth."""

    @staticmethod
    def _prepared(program: Program) -> Program:
        program.allow_in_place(())
        readers = program.consumers()
        for step in program.steps:
            if isinstance(step.operation, Sum) and len(step.inputs) == 2:
                # Only a convolution's output is sure to be a tensor of its own.
                own = [
                    value for value in step.inputs if len(readers[value]) == 1 and _made_by_convolution(program, value)
                ]
                if own:
                    step.operation = _AddTo(step.operation.name)
                    step.inputs = (own[0], *(value for value in step.inputs if value != own[0]))
        return program

    @property
    def _fast(self) -> Program:
        if self._folded is None:
            self._folded = self._prepared(build_program(self._detector.model, dtype=self._dtype))
        return self._folded

    def check(self, maps: Maps) -> dict[str, list[int]]:
        """The maps in order of depth, each once.

        Raises:
            UserError: The detector has no such layer or no such channel; the message names it.
        """
        for layer, indices in maps.items():
            if layer not in self.layers:
                known = list(self.layers)
                raise UserError(
                    f"{self._detector.arch} has no layer {layer} (its layers are {known[0]}, ... {known[-1]}): "
                    "use a ranking of the same architecture"
                )
            for index in indices:
                if not 0 <= index < self.layers[layer]:
                    raise UserError(
                        f"layer {layer} of {self._detector.arch} has {self.layers[layer]} feature maps, so there is "
                        f"no map {index}: use a ranking of the same architecture"
                    )
        return {layer: sorted(set(maps[layer])) for layer in self.layers if maps.get(layer)}

    def observe(self, inputs: Tensor, maps: Maps, *, logits: bool = True) -> Observation:
        """Largest value of each map, from one forward pass for any number of maps.

        Args:
            inputs: (N, 3, H, W) normalised images.
            maps: Channels by layer, perhaps none.
            logits: Go on to the end of the network; else stop after the last layer looked at.

        Raises:
            UserError: The detector lacks a map.
        """
        wanted = self.check(maps)
        # Without maps the folded network gives the same logits for less.
        program = self._raw if wanted else self._fast
        found: dict[str, Tensor] = {}

        def look(layer: str, output: Tensor) -> None:
            found[layer] = _maxima(output, wanted[layer]).float()

        last = program.output
        if not logits:
            last = max((program.index(layer) + 1 for layer in wanted), default=0)
        values = program.run(inputs, last=last, observed=wanted, observer=look)
        return Observation(wanted, found, values[last].float() if logits else None)

    def max_activations(self, inputs: Tensor, maps: Maps) -> dict[str, Tensor]:
        """By layer the largest value over height and width of the maps in the order given, (N, len) float32.

        Raises:
            UserError: The detector lacks a map.
        """
        observation = self.observe(inputs, maps, logits=False)
        return {
            layer: observation.select([(layer, index) for index in indices])
            for layer, indices in maps.items()
            if indices
        }

    def logits_with_dropout(self, inputs: Tensor, variants: Mapping[str, Maps]) -> dict[str, Tensor]:
        """Logits (N, outputs) float32 of each variant of the network with some maps set to 0 before batch norm.

        Variants share all layers up to their first dropped map, and beyond as long as they drop the same maps; each
        gives the same numbers as alone.

        Args:
            inputs: (N, 3, H, W) normalised images.
            variants: By name the channels to drop, by layer; none gives the network as it is.

        Raises:
            UserError: The detector lacks a map.
        """
        checked = {name: self.check(maps) for name, maps in variants.items()}
        if not checked:
            return {}
        parts: dict[str, list[Tensor]] = {name: [] for name in variants}
        for some in self._portions(inputs):
            run = _BranchingRun(self._fast, self._dropped_values, checked)
            run.finish(list(checked), 0, {0: self._fast.prepare(some)})
            for name, logits in run.results.items():
                parts[name].append(logits.float())
        return {name: torch.cat(logits) for name, logits in parts.items()}

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


def _maxima(output: Tensor, indices: Sequence[int]) -> Tensor:
    if len(indices) == output.shape[1]:
        return output.amax((2, 3))
    # Picking channels first costs more than the maximum of all when there are many of them.
    if 4 * len(indices) > output.shape[1]:
        return output.amax((2, 3))[:, list(indices)]
    return output[:, list(indices)].amax((2, 3))


def _values_of_dropped_maps(raw: Program) -> dict[str, Tensor]:
    """What a map that is 0 before batch norm becomes behind it: the norm's shift, or 0 where there is none."""
    readers = raw.consumers()
    values: dict[str, Tensor] = {}
    for index, step in enumerate(raw.steps):
        if isinstance(step.operation, Convolution):
            followers = [raw.steps[reader].operation for reader in readers[index + 1]]
            norm = next((follower for follower in followers if isinstance(follower, BatchNorm)), None)
            channels = step.operation.channels
            zeros = torch.zeros(channels, device=raw.device, dtype=raw.dtype)
            values[step.name] = zeros if norm is None else norm.shift
    return values


class _BranchingRun:
    """Runs several variants of a program as a tree: a branch begins where variants first drop different maps."""

    def __init__(
        self, program: Program, dropped_values: Mapping[str, Tensor], variants: Mapping[str, Mapping[str, list[int]]]
    ) -> None:
        self._program = program
        self._dropped_values = dropped_values
        self._steps = {name: {program.index(layer): layer for layer in maps} for name, maps in variants.items()}
        self._variants = variants
        readers = program.consumers()
        self._last_read = [max(steps, default=-1) for steps in readers]
        self._overwritten = {
            step.inputs[0]
            for step in program.steps
            if isinstance(step.operation, _AddTo)
            or (isinstance(step.operation, Activation) and step.operation.in_place)
        }
        self.results: dict[str, Tensor] = {}

    def finish(self, names: list[str], first: int, values: dict[int, Tensor]) -> None:
        """Run the variants `names`, which have the values before step `first` in common, to the end."""
        coming = [step for name in names for step in self._steps[name] if step >= first]
        if len(names) == 1 or not coming:
            edits = {
                layer: self._dropping(layer, self._variants[names[0]][layer])
                for step, layer in self._steps[names[0]].items()
                if step >= first
            }
            output = self._program.run(values, first=first, edits=edits)[self._program.output]
            self.results.update(dict.fromkeys(names, output))
            return
        step = min(coming)
        last = step + 1
        alive = [value for value in range(last + 1) if self._last_read[value] >= last]
        values = self._program.run(values, first=first, last=last, keep=alive)
        branches: dict[tuple[int, ...], list[str]] = {}
        for name in names:
            layer = self._steps[name].get(step)
            dropped = () if layer is None else tuple(self._variants[name][layer])
            branches.setdefault(dropped, []).append(name)
        layer = self._program.steps[step].name
        for number, (dropped, members) in enumerate(branches.items(), start=1):
            own = dict(values)
            if number < len(branches):
                # Later branches need what this one would overwrite.
                for value in {last, *self._overwritten} & own.keys():
                    own[value] = own[value].clone()
            own[last] = self._dropping(layer, dropped)(own[last])
            self.finish(members, last, own)

    def _dropping(self, layer: str, indices: Sequence[int]) -> Callable[[Tensor], Tensor]:
        chosen = list(indices)

        def edit(output: Tensor) -> Tensor:
            if chosen:
                output[:, chosen] = self._dropped_values[layer][chosen].view(-1, 1, 1)
            return output

        return edit


@dataclass
class _Request:
    maps: dict[str, set[int]] = field(default_factory=dict)
    logits: bool = False


class SharedForward:
    """One forward pass per batch and kind of image, whatever number of collectors look at it.

    Each collector says beforehand what it wants to see; the first that asks runs the network.
    """

    def __init__(self, network: FeatureMapNetwork) -> None:
        self.network = network
        self._requests: dict[Kind, _Request] = {}

    def request(self, kind: Kind, maps: Maps | None = None, *, logits: bool = False) -> None:
        """Ask for maps, and perhaps for the logits, of all images as they are or in greyscale.

        Raises:
            UserError: The detector lacks a map.
        """
        request = self._requests.setdefault(kind, _Request())
        for layer, indices in self.network.check(maps or {}).items():
            request.maps.setdefault(layer, set()).update(indices)
        request.logits |= logits

    def of(self, batch: PassBatch, kind: Kind = "rgb") -> Observation:
        """What all collectors together asked for, of this batch."""
        request = self._requests[kind]

        def look() -> Observation:
            maps = {layer: sorted(indices) for layer, indices in request.maps.items()}
            return self.network.observe(inputs_of(batch, kind), maps, logits=request.logits)

        return batch.memo(("forward", id(self), kind), look)


def inputs_of(batch: PassBatch, kind: Kind) -> Tensor:
    """Normalised input of the network, of the images as they are or in greyscale; made once per batch."""
    if kind == "rgb":
        return batch.inputs
    return batch.memo("grayscale inputs", lambda: batch.preprocess(to_grayscale(batch.images)))
