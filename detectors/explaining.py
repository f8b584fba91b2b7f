"""How a detector is explained: settings, and the explainer that they name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.files import sha256_file
from utils.settings import flag


@dataclass(frozen=True)
class Explaining:
    """Relevance propagation."""

    rule: str = flag("beta0", "rule of the convolutions: beta0, beta1, betaada, epsilon, or beta<number>")
    compat_se: Path | None = flag(
        None,
        "EfficientNet: explain with the squeeze-and-excitation weights of this ImageNet checkpoint, as published",
        metavar="FILE",
    )

    def inputs(self) -> dict[str, str]:
        """Digest of what goes in besides the detector."""
        return {} if self.compat_se is None else {"squeeze_excite": sha256_file(self.compat_se)}


def explainer_for(detector: Any, explaining: Explaining, *, published: bool) -> Any:
    """The explainer of a detector.

    Raises:
        UserError: the network cannot be explained, or `compat_se` does not fit it.
    """
    import argparse

    from detectors.explainers import make_explainer

    compat = "published" if published else "none"
    return make_explainer(
        argparse.Namespace(
            rule=explaining.rule, compat_se=explaining.compat_se, compat=compat, precision=detector.precision
        ),
        detector,
    )
