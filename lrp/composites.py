"""Which rule goes where: one table from kind of step to rule, and from layer name to rule."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lrp.attention import FrozenWeights
from lrp.errors import UnsupportedLayerError
from lrp.operations import Convolution
from lrp.program import Program
from lrp.rules import (
    GUARD,
    AdaptiveBeta,
    AlphaBeta,
    Epsilon,
    Gamma,
    Gradient,
    MoveBack,
    PassThrough,
    Restore,
    Rule,
    SignalTakesAll,
)

_SHARED: Mapping[str, Rule] = {
    "dense": Epsilon(),
    "activation": PassThrough(),
    "max_pool": Gradient(),
    "average_pool": Epsilon(),
    "sum": Epsilon(),
    "gate": SignalTakesAll(),
    "concatenation": Gradient(),
    "reshape": Restore(),
    "resample": Gradient(),
    "move": MoveBack(),
    "scale": PassThrough(),
    "shift": Epsilon(),
    "layer_norm": Epsilon(),
    "normalisation": PassThrough(),
    "attention": FrozenWeights(),
    "frozen": Gradient(),
}


@dataclass(frozen=True)
class RuleTable:
    """Rules of a network.

    Attributes:
        by_kind: Kind of step (`Operation.kind`) to rule.
        first_convolution: Rule of the convolution that reads the image, if it is another one.
        by_name: Layer name to rule; goes before the two above.
    """

    by_kind: Mapping[str, Rule]
    first_convolution: Rule | None = None
    by_name: Mapping[str, Rule] = field(default_factory=dict)

    def with_rules(self, **by_kind: Rule) -> RuleTable:
        """A copy with other rules for some kinds, e.g. `with_rules(dense=Epsilon(1e-3))`.

        Raises:
            ValueError: The table has no such kind (make a new table to add one).
        """
        unknown = sorted(by_kind.keys() - self.by_kind.keys())
        if unknown:
            raise ValueError(f"unknown kind {unknown[0]!r}; the table has rules for {', '.join(sorted(self.by_kind))}")
        return replace(self, by_kind={**self.by_kind, **by_kind})

    def assign(self, program: Program) -> list[Rule]:
        """One rule for every step of a program.

        Raises:
            UnsupportedLayerError: A step has no rule, or `by_name` names a layer that is not there.
        """
        for name in self.by_name:
            program.index(name)
        rules: list[Rule] = []
        for step in program.steps:
            kind = step.operation.kind
            first = self.first_convolution if 0 in step.inputs and isinstance(step.operation, Convolution) else None
            rule = self.by_name.get(step.name) or first or self.by_kind.get(kind)
            if rule is None:
                raise UnsupportedLayerError(
                    f"layer {step.name!r} of type {step.origin} ({kind}) has no rule in the table; "
                    f"it has rules for {', '.join(sorted(self.by_kind))}"
                )
            rules.append(rule)
        return rules


RULE_NAMES = ("beta0", "beta1", "betaada", "epsilon")


def rule_table(name: str = "beta0", first: Rule | None = None, *, guard: float = GUARD) -> RuleTable:
    """The table of a published composite.

    Args:
        name: Rule of the convolutions: `beta0` (z+), `beta1`, `betaada`, `epsilon`, or `beta<number>`, e.g. `beta0.5`;
            `gamma<number>`, e.g. `gamma0.05`, is that of the dense layers, too, which else have the epsilon rule.
        first: Rule of the convolution that reads the image, if it is another one: `ZBox(low, high)` where pixels have
            known bounds.
        guard: See `lrp.rules.divide`; the published code has 0.

    Raises:
        ValueError: An unknown rule; the message lists the known ones.
    """
    linear: Rule
    dense = _SHARED["dense"]
    if name == "betaada":
        linear = AdaptiveBeta(guard=guard)
    elif name == "epsilon":
        linear = Epsilon()
    elif match := re.fullmatch(r"beta(\d+(?:\.\d+)?)", name):
        linear = AlphaBeta(float(match[1]), guard)
    elif match := re.fullmatch(r"gamma(\d+(?:\.\d+)?)", name):
        linear = dense = Gamma(float(match[1]))
    else:
        raise ValueError(f"unknown rule {name!r}; known are {', '.join(RULE_NAMES)}, beta<number> and gamma<number>")
    # Norms that could not be folded are convolutions of 1x1 pixels.
    return RuleTable({**_SHARED, "convolution": linear, "affine": linear, "dense": dense}, first)
