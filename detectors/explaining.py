"""How a detector is explained: the flags, and the squeeze-and-excitation weights of the published explanations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import sha256_file
from utils.settings import flag

if TYPE_CHECKING:
    from detectors.detector import Detector
    from lrp import Explainer


def parse_rule(text: str) -> str:
    """The name of a propagation rule.

    Raises:
        ValueError: There is no such rule.
    """
    from lrp import rule_table

    rule_table(text)
    return text


@dataclass(frozen=True)
class Explaining:
    """Relevance propagation."""

    rule: str = flag(
        "beta0",
        "rule of the convolutions: beta0, beta1, betaada, epsilon, beta<number> such as beta0.5, or gamma<number>, "
        "which dense layers (those of transformers, too) then have as well instead of epsilon",
        parse=parse_rule,
        metavar="NAME",
    )
    compat_se: Path | None = flag(
        None,
        "EfficientNet: explain with the squeeze-and-excitation weights of this ImageNet checkpoint, as published",
        metavar="FILE",
    )

    def inputs(self) -> dict[str, str]:
        """SHA-256 of what goes in besides the detector, for records."""
        return {} if self.compat_se is None else {"squeeze_excite": sha256_file(self.compat_se)}

    def of(self, detector: Detector, *, published: bool = False) -> Explainer:
        """The explainer of a detector.

        Raises:
            UserError: As `Detector.explainer`.
        """
        return detector.explainer(self.rule, published=published, squeeze_excite=self.compat_se)
