"""How a detector is explained: the flags, and the squeeze-and-excitation weights of the published explanations."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import UserError
from utils.files import sha256_file
from utils.settings import flag

if TYPE_CHECKING:
    from torch import nn

    from detectors.detector import Detector
    from lrp import Explainer

_SQUEEZE_EXCITE = re.compile(r"\._se_(reduce|expand)\.(weight|bias)$")


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
        "rule of the convolutions: beta0, beta1, betaada, epsilon, or beta<number> such as beta0.5",
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


def with_squeeze_excite_of(model: nn.Module, imagenet_checkpoint: Path) -> nn.Module:
    """A copy of an EfficientNet with the squeeze-and-excitation convolutions of an ImageNet checkpoint.

    The published rankings of EfficientNet were most likely computed with such a hybrid, because the explained
    copy of the detector kept the squeeze-and-excitation weights it was created with.

    Raises:
        UserError: if the model has no squeeze-and-excitation convolutions, or the checkpoint lacks one or its shape.
    """
    import torch

    from detectors.checkpoints import read_state

    hybrid = copy.deepcopy(model)
    targets = {key: tensor for key, tensor in hybrid.state_dict().items() if _SQUEEZE_EXCITE.search(key)}
    if not targets:
        raise UserError("--compat_se is for EfficientNet only: this network has no squeeze-excite convolutions")
    state = read_state(imagenet_checkpoint)
    for key, tensor in targets.items():
        if key not in state or state[key].shape != tensor.shape or not bool(torch.isfinite(state[key]).all()):
            raise UserError(
                f"--compat_se {imagenet_checkpoint}: {key} is missing, of another shape or not finite: "
                "give the ImageNet checkpoint of the same EfficientNet"
            )
        tensor.copy_(state[key])
    return hybrid
