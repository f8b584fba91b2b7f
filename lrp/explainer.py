"""The public call: relevance of the input and of layers for a batch of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrp.canonise import build_program, explained_layers
from lrp.composites import RuleTable, rule_table
from lrp.errors import UnknownLayerError
from lrp.explanation import Absorption, ChannelStatistics, Explanation, MapExplanation
from lrp.operations import Convolution
from lrp.program import Step
from lrp.receptive import FieldWalk
from lrp.rules import GUARD, Rule
from lrp.tokens import patch_of

Visitor = Callable[[str, Tensor], None]
Measurer = Callable[[str, ChannelStatistics], None]


def sign(output: Tensor) -> Tensor:
    """+1 or -1; zero counts as positive. Arithmetic, because `torch.where` would copy its constants and wait."""
    return (output >= 0).to(output.dtype) * 2 - 1


@dataclass
class Record:
    """A forward pass with the values that the rules will ask for.

    Attributes:
        values: Saved values by number (see `lrp.program.Step`).
        reached: Number of the last value computed.
        output: That value: the logits, or the output of the layer at which the pass stopped.
    """

    values: dict[int, Tensor]
    reached: int
    output: Tensor

    def select(self, samples: Tensor | Sequence[int]) -> Record:
        """The same pass for some of the samples, in any order and as often as named (indices, not a mask).

        This record is used up: its values are freed one by one as those of the new record are copied. A selection of
        all samples in order copies nothing.
        """
        indices = torch.as_tensor(samples, dtype=torch.long)
        # A GPU is not waited for to know it.
        everything = indices.device.type == "cpu" and torch.equal(indices, torch.arange(len(self.output)))
        indices = indices.to(self.output.device)

        def chosen(values: Tensor) -> Tensor:
            return values if everything else values.index_select(0, indices)

        values = {number: chosen(self.values.pop(number)) for number in list(self.values)}
        return Record(values, self.reached, chosen(self.output))


class Explainer:
    """Layer-wise relevance propagation through one network.

    The network is traced and canonised once, into a program of its own; the model is not touched, so later changes
    of the model's weights need a new explainer.

    Args:
        model: A network in evaluation mode, from images (N, 3, H, W) to logits (N, K).
        rules: A table, or the name of one (`beta0`, `beta1`, `betaada`, `epsilon`, `beta<number>`, `gamma<number>`).
        published: Compute as the published code: keep the factor 1 / sqrt(1 + eps) of neutralised batch norms, in
            LRP-max look for the peak of a map's positive part (the first pixel of a map without any), and have no
            guard in a table given by name (see `lrp.composites.rule_table`).
        dtype: Floating-point type of the convolutions; torch.bfloat16 is about twice as fast where the processor
            has it.

    Raises:
        UnsupportedLayerError: A layer, addition or product cannot be explained; the message names it and its type.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: RuleTable | str = "beta0",
        *,
        published: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.published = published
        if isinstance(rules, str):
            rules = rule_table(rules, guard=0.0 if published else GUARD)
        self.program = build_program(model, norm_residue=published, dtype=dtype)
        # All rules are linear in relevance: walking with a large power of two of it changes no bit, and keeps the tail
        # of the relevance out of the subnormal numbers, which are slow and imprecise. Half of the exponents are left
        # for relevance that grows on the way.
        self._scale = 2.0 ** (math.frexp(torch.finfo(dtype).max)[1] // 2)
        self.rules = rules.assign(self.program)
        self.layers: list[tuple[str, int]] = explained_layers(self.program)
        """Name and number of feature maps of every layer that has some and that relevance reaches, in network order."""
        self._saved = frozenset(
            value
            for step, rule in zip(self.program.steps, self.rules, strict=True)
            if rule.needs_inputs
            for value in step.inputs
        )
        self.program.allow_in_place(self._saved)

    @torch.no_grad()
    def record(
        self,
        inputs: Tensor,
        *,
        until: str | None = None,
        observed: Collection[str] = (),
        observer: Visitor | None = None,
    ) -> Record:
        """Run forwards and save what the rules will need.

        Args:
            inputs: Normalised images (N, 3, H, W).
            until: Stop after this layer instead of at the logits.
            observed: Names of layers whose (folded) output is shown to `observer`.
            observer: Called as observer(layer, output); the output may be overwritten afterwards.
        """
        last = self.program.output if until is None else self.program.index(until) + 1
        values = self.program.run(inputs, keep=self._saved, last=last, observed=observed, observer=observer)
        output = values[last]
        return Record({n: v for n, v in values.items() if n in self._saved}, last, output)

    @torch.no_grad()
    def propagate(
        self,
        record: Record,
        start: Tensor,
        *,
        layers: Collection[str] = (),
        visit: Visitor | None = None,
        measure: Measurer | None = None,
        input_relevance: bool = True,
        conservation: list[Absorption] | None = None,
    ) -> Tensor | None:
        """Walk backwards from the last value of a record.

        Args:
            record: A forward pass; its saved values are given free on the way.
            start: Relevance of the value where the walk begins, same shape as it.
            layers: Convolutions whose relevance is shown to `visit` and `measure`.
            visit: Called as visit(layer, relevance of the convolution's output (N, C, H, W)); the map is not kept.
            measure: Called as measure(layer, statistics of that relevance), which costs less than whole maps.
            input_relevance: Go on down to the input; otherwise nothing below the last layer asked for is computed.
            conservation: A list to which one row per step is appended.

        Returns:
            Relevance of the input (N, 3, H, W), or None without `input_relevance`.

        Raises:
            UnknownLayerError: A layer that relevance does not reach.
        """
        wanted = set(layers)
        self.check_layers(wanted)
        steps = self.program.steps
        reached = record.reached
        needed = self._needed(wanted, input_relevance, reached)
        first_reader = {value: index for index in reversed(range(reached)) for value in steps[index].inputs}
        relevance: dict[int, Tensor] = {reached: start * self._scale}
        for index in reversed(range(reached)):
            step, rule = steps[index], self.rules[index]
            received = relevance.pop(index + 1, None)
            if received is not None:
                if visit is not None and step.name in wanted:
                    visit(step.name, received / self._scale)
                if measure is not None and step.name in wanted:
                    measure(step.name, ChannelStatistics.of(received, scale=self._scale))
                if any(value in needed for value in step.inputs):
                    inputs = tuple(record.values[v] for v in step.inputs) if rule.needs_inputs else ()
                    passed = rule.propagate(step.operation, inputs, received, nonnegative=step.nonnegative_inputs)
                    if conservation is not None:
                        conservation.append(self._absorption(step, rule, received, passed))
                    for value, share in zip(step.inputs, passed, strict=True):
                        if share is not None and value in needed:
                            relevance[value] = relevance[value].add_(share) if value in relevance else share
                    # Otherwise these maps would live on through the next step.
                    del inputs, passed, share
            for value in step.inputs:
                if first_reader[value] == index:
                    record.values.pop(value, None)
        return relevance[0].div_(self._scale) if input_relevance else None

    def explain(
        self,
        inputs: Tensor,
        start: Callable[[Tensor], Tensor] = sign,
        *,
        layers: Collection[str] = (),
        keep: str = "channels",
        input_relevance: bool = True,
        conservation: bool = False,
    ) -> Explanation:
        """Explain a batch of images.

        Args:
            inputs: Normalised images (N, 3, H, W).
            start: From the network's output to its relevance, same shape. The default is the sign of every output:
                positive relevance then is evidence for what a single logit stands for.
            layers: Convolutions to report; `explainer.layers` names them all.
            keep: `"channels"` keeps per-channel sums of each layer, `"maps"` the whole maps.
            input_relevance: Also compute the relevance of the input.
            conservation: Also report what every step absorbed.

        Raises:
            ValueError: `keep` is wrong.
            UnknownLayerError: A layer that the network does not have or that relevance does not reach.
        """
        if keep not in ("channels", "maps"):
            raise ValueError(f"keep must be 'channels' or 'maps', got {keep!r}")
        record = self.record(inputs)
        relevance = start(record.output)
        result = Explanation(record.output, relevance.flatten(1).sum(1))
        result.input = self.propagate(
            record,
            relevance,
            layers=layers,
            visit=result.maps.__setitem__ if keep == "maps" else None,
            measure=result.channels.__setitem__ if keep == "channels" else None,
            input_relevance=input_relevance,
            conservation=result.conservation if conservation else None,
        )
        return result

    def explain_feature_maps(
        self, inputs: Tensor, wanted: Mapping[str, Sequence[tuple[int, int]]], *, batch_size: int = 16
    ) -> Iterator[MapExplanation]:
        """LRP-max for any number of feature maps of any layers, from one forward pass.

        Relevance 1 starts at the largest pixel of each map (convolution with its batch norm folded in).

        Args:
            inputs: Normalised images (N, 3, H, W), run forwards once and only up to the deepest layer.
            wanted: By layer (sample, channel) pairs: whose map, and which.
            batch_size: Most maps to walk backwards from at once.

        Yields:
            Explanations of at most `batch_size` maps of one layer, in the order of `wanted` within each layer, the
            deepest layer first.

        Raises:
            UnknownLayerError: A layer that the network does not have or that relevance does not reach.
        """
        wanted = {layer: pairs for layer, pairs in wanted.items() if pairs}
        self.check_layers(wanted)
        if not wanted:
            return
        steps = self.program.steps
        numbers = {step.name: number for number, step in enumerate(steps, start=1)}
        deepest_first = sorted(wanted, key=numbers.__getitem__, reverse=True)
        # One upload for all layers, that nobody waits for.
        pairs = torch.tensor([pair for layer in deepest_first for pair in wanted[layer]], dtype=torch.long)
        pairs = pairs.to(self.program.device, non_blocking=True)
        of_layer = dict(zip(deepest_first, pairs.split([len(wanted[layer]) for layer in deepest_first]), strict=True))
        shapes = {0: inputs.shape}
        peaks: dict[str, tuple[Tensor, Tensor]] = {}

        def look(layer: str, output: Tensor) -> None:
            shapes[numbers[layer]] = output.shape
            if layer in of_layer:
                maps = output[of_layer[layer].unbind(1)].flatten(1)
                peaks[layer] = (maps.clamp(min=0) if self.published else maps).max(1)

        record = self.record(inputs, until=deepest_first[0], observed=numbers, observer=look)
        for layer in deepest_first:
            number = numbers[layer]
            for value in [value for value in record.values if value >= number]:
                del record.values[value]
            walk = FieldWalk(steps[:number], self.rules[:number], shapes)
            width = shapes[number][-1]
            for part, value, pixel in zip(
                *(tensor.split(batch_size) for tensor in (of_layer[layer], *peaks[layer])), strict=True
            ):
                samples, channels = part.unbind(1)
                row, column = pixel // width, pixel % width
                start = F.one_hot(channels, shapes[number][1]).to(value.dtype)[:, :, None, None] * self._scale
                relevance = walk.propagate(record.values, samples, start, row, column).div_(self._scale)
                places = patch_of(steps[:number], shapes, row, column)
                yield MapExplanation(layer, samples, channels, relevance, value, *places)

    def check_layers(self, names: Collection[str]) -> None:
        """Raise `UnknownLayerError` if a name is not one of a convolution that relevance reaches."""
        for name in sorted(set(names).difference(dict(self.layers))):
            step = self.program.steps[self.program.index(name)]
            maps = isinstance(step.operation, Convolution) and step.operation.has_feature_maps
            why = "only feeds a gate" if maps else "is not a convolution, nor the hidden units of an MLP"
            raise UnknownLayerError(f"layer {name!r} receives no relevance of feature maps: it {why}")

    def _needed(self, layers: Collection[str], input_relevance: bool, reached: int) -> set[int]:
        """Values whose relevance has to be computed: those asked for, and all between them and the output."""
        needed = {0} if input_relevance else set()
        for index, step in enumerate(self.program.steps[:reached]):
            if step.name in layers or any(value in needed for value in step.inputs):
                needed.add(index + 1)
        return needed

    def _absorption(self, step: Step, rule: Rule, received: Tensor, passed: Sequence[Tensor | None]) -> Absorption:
        def per_sample(tensor: Tensor) -> Tensor:
            return tensor.flatten(1).sum(1, dtype=torch.float64) / self._scale

        total = torch.stack([per_sample(share) for share in passed if share is not None]).sum(0)
        return Absorption(step.name, step.operation.kind, type(rule).__name__, per_sample(received), total)
