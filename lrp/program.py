"""A network as a flat list of steps: traced once with torch.fx, then run forwards and walked backwards by us.

Tracing replaces hooks: nothing is ever registered on the user's model, every addition is seen, every layer has its
name, and a value is freed as soon as nobody needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lrp.errors import UnknownLayerError
from lrp.operations import Activation, Convolution, LinearOperation, Operation, Resample, Reshape

Edit = Callable[[Tensor], Tensor]
Observer = Callable[[str, Tensor], None]


@dataclass
class Step:
    """One operation of the network. Values are numbered: value 0 is the input, step i makes value i + 1."""

    name: str
    operation: Operation
    inputs: tuple[int, ...]
    origin: str = ""
    """Type of the module or function that this step came from, for messages."""
    nonnegative_inputs: bool = False
    """Whether no input of this step can be negative (found by canonisation; saves work in the z+ rule)."""

    @property
    def explained_inputs(self) -> tuple[int, ...]:
        """Those that relevance goes on to: of a gate the signal alone."""
        return self.inputs[self.operation.signal]


@dataclass
class Program:
    """A traced network. Build it with `lrp.canonise.build_program`.

    Attributes:
        steps: The operations in the order in which they run.
        device: Where the parameters are.
        dtype: Floating-point type of the convolutions.
    """

    steps: list[Step]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    @property
    def output(self) -> int:
        """Number of the value that the network returns."""
        return len(self.steps)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Program:
        """Move all parameters to a device and floating-point type (in place); dense layers stay in float32."""
        self.device, self.dtype = torch.device(device), dtype
        for step in self.steps:
            step.operation.to(self.device, dtype)
        return self

    def consumers(self) -> list[list[int]]:
        """For every value the indices of the steps that read it."""
        readers: list[list[int]] = [[] for _ in range(len(self.steps) + 1)]
        for index, step in enumerate(self.steps):
            for value in step.inputs:
                readers[value].append(index)
        return readers

    def index(self, name: str) -> int:
        """Index of the step called `name`.

        Raises:
            UnknownLayerError: There is none.
        """
        for index, step in enumerate(self.steps):
            if step.name == name:
                return index
        known = [step.name for step in self.steps if isinstance(step.operation, LinearOperation)]
        shown = ", ".join(known[:4]) + (f", ... {known[-1]}" if len(known) > 4 else "")
        raise UnknownLayerError(f"the network has no layer {name!r}; its layers are {shown}")

    def convolutions(self) -> list[tuple[str, int]]:
        """Name and number of feature maps of every layer that has some, gates' own convolutions included."""
        return [
            (s.name, s.operation.channels)
            for s in self.steps
            if isinstance(s.operation, Convolution) and s.operation.has_feature_maps
        ]

    @torch.no_grad()
    def run(
        self,
        values: Mapping[int, Tensor] | Tensor,
        *,
        keep: Collection[int] = (),
        first: int = 0,
        last: int | None = None,
        edits: Mapping[str, Edit] | None = None,
        observed: Collection[str] = (),
        observer: Observer | None = None,
    ) -> dict[int, Tensor]:
        """Run steps `first` to `last` (exclusive; default all) and return the values asked for.

        Args:
            values: The input batch (N, 3, H, W), or the values alive at step `first`, by number.
            keep: Numbers of the values to return besides the last one computed.
            first: Step to start at; `values` must hold everything that it and later steps read.
            last: Step to stop before.
            edits: By layer name, a function applied to that step's output before anybody reads it.
            observed: Names of layers whose output is shown to `observer` (after edits; it must not change it).
            observer: Called as observer(name, output).
        """
        if isinstance(values, Tensor):
            values = {0: self.prepare(values)}
        alive = dict(values)
        last = len(self.steps) if last is None else last
        kept = {*keep, last}
        last_reader = {value: index for index in range(first, last) for value in self.steps[index].inputs}
        for index in range(first, last):
            step = self.steps[index]
            output = step.operation.forward(*(alive[value] for value in step.inputs))
            if edits and step.name in edits:
                output = edits[step.name](output)
            if observer is not None and step.name in observed:
                observer(step.name, output)
            alive[index + 1] = output
            for value in step.inputs:
                if last_reader[value] == index and value not in kept:
                    alive.pop(value, None)
        return {value: tensor for value, tensor in alive.items() if value in kept}

    def prepare(self, inputs: Tensor) -> Tensor:
        """The input batch on the program's device, in its type and memory format (channels last)."""
        return inputs.to(self.device, self.dtype, memory_format=torch.channels_last)

    def allow_in_place(self, needed: Collection[int]) -> None:
        """Let activations overwrite their input where it has no other reader and is not in `needed`."""
        readers = self.consumers()
        for step in self.steps:
            if isinstance(step.operation, Activation):
                (value,) = step.inputs
                # A tensor in another shape, or part of one, shares its memory with the tensor it comes from.
                unshared = value != 0 and not isinstance(self.steps[value - 1].operation, Reshape | Resample)
                step.operation.in_place = unshared and len(readers[value]) == 1 and value not in needed


def without_steps(program: Program, replaced: Mapping[int, int]) -> Program:
    """The program without some steps; `replaced` maps the value that each of them made to the earlier one it is."""

    numbers = {0: 0}
    steps: list[Step] = []
    for number, step in enumerate(program.steps, start=1):
        if number in replaced:
            numbers[number] = numbers[replaced[number]]
        else:
            steps.append(replace(step, inputs=tuple(numbers[value] for value in step.inputs)))
            numbers[number] = len(steps)
    return replace(program, steps=steps)
