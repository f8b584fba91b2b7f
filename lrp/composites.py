"""Which rule goes where: one table from kind of step to rule, and what a network family changes in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lrp.errors import UnsupportedLayerError
from lrp.operations import Convolution
from lrp.program import Program
from lrp.rules import (
    AdaptiveBeta,
    AlphaBeta,
    Epsilon,
    EpsilonSum,
    Gradient,
    PassThrough,
    Reshape,
    Rule,
    SignalTakesAll,
    ZBox,
)

_SHARED: Mapping[str, Rule] = {
    "dense": Epsilon(),
    "activation": PassThrough(),
    "max_pool": Gradient(),
    "average_pool": Epsilon(),
    "sum": EpsilonSum(),
    "gate": SignalTakesAll(),
    "concatenation": Gradient(),
    "flatten": Reshape(),
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
        """A copy with other rules for some kinds, e.g. `with_rules(dense=Epsilon(1e-3))`."""
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
            rule = self.by_name.get(step.name)
            if rule is None and 0 in step.inputs and isinstance(step.operation, Convolution):
                rule = self.first_convolution
            if rule is None:
                rule = self.by_kind.get(kind)
            if rule is None:
                raise UnsupportedLayerError(
                    f"layer {step.name!r} of type {step.origin} ({kind}) has no rule in the table; "
                    f"it has rules for {', '.join(sorted(self.by_kind))}"
                )
            rules.append(rule)
        return rules


@dataclass(frozen=True)
class Family:
    """What a family of networks asks for: at the image the z-box (published for ResNet), or the rule of the others."""

    zbox: bool


FAMILIES: dict[str, Family] = {"resnet": Family(zbox=True), "efficientnet": Family(zbox=False)}
RULE_NAMES = ("beta0", "beta1", "betaada", "epsilon")


def rule_table(name: str = "beta0", family: str = "resnet") -> RuleTable:
    """The table of a published composite.

    Args:
        name: Rule of the convolutions: `beta0` (z+), `beta1`, `betaada`, `epsilon`, or `beta<number>`, e.g. `beta0.5`.
        family: A name in `FAMILIES`.

    Raises:
        ValueError: An unknown rule or family; the message lists the known ones.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; known are {', '.join(FAMILIES)}")
    convolution: Rule
    if name == "betaada":
        convolution = AdaptiveBeta()
    elif name == "epsilon":
        convolution = Epsilon()
    elif match := re.fullmatch(r"beta(\d+(?:\.\d+)?)", name):
        convolution = AlphaBeta(float(match[1]))
    else:
        raise ValueError(f"unknown rule {name!r}; known are {', '.join(RULE_NAMES)} and beta<number>")
    return RuleTable(
        by_kind={**_SHARED, "convolution": convolution},
        first_convolution=ZBox() if FAMILIES[family].zbox else None,
    )
