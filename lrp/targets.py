"""What is explained: a class, the decision "fake" or "real" of a one-logit detector, or the highest logit.

The relevance that starts at the explained logit is sign(g), g being the explained quantity: f for "fake", -f for
"real", the class's logit for a classifier. Positive relevance then is evidence *for* what is explained, whatever the
sign of the logit, and the scale is the published one (relevance starts at +1 or -1, never at f). The published code
starts at +1 for fakes and at -1 for reals instead, so that on a real its positive relevance marks evidence for fake;
`fixed=True` does the same.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor

Target = str | SupportsIndex | Tensor | Sequence[str | SupportsIndex]
FAKE, REAL, TOP = "fake", "real", "top"


def start_relevance(logits: Tensor, target: Target, *, fixed: bool = False) -> Tensor:
    """Relevance at the output, (N, K), zero but for the explained logit of every sample.

    Nothing here waits for a GPU, so class indices in a tensor that lies on one are not checked.

    Args:
        logits: (N, K); K = 1 for a detector.
        target: `"fake"` or `"real"` (K = 1), `"top"` or a class index (K > 1), or one of these per sample.
        fixed: Start at +1 (fake, or the class) and -1 (real) whatever the logit's sign, as the published code.

    Raises:
        ValueError: The target does not fit the number of outputs or of samples.
    """
    count, outputs = logits.shape
    if isinstance(target, Tensor) and target.device.type == "cpu":
        target = target.tolist()
    if isinstance(target, Tensor):
        columns, sign = target.to(logits.device), logits.new_ones(count)
    else:
        one = isinstance(target, str) or not hasattr(target, "__len__")
        targets: list[Any] = [target] * count if one else list(target)  # type: ignore[arg-type]
        if len(targets) != count:
            raise ValueError(f"{len(targets)} targets for {count} samples")
        # One upload for the batch, that nobody waits for.
        chosen = torch.tensor([_column_and_sign(wanted, outputs) for wanted in targets]).reshape(count, 2)
        columns, sign = chosen.to(logits.device, non_blocking=True).unbind(1)
        columns, sign = torch.where(columns < 0, logits.argmax(1), columns), sign.to(logits.dtype)
    columns = columns[:, None]
    if not fixed:
        # A logit of exactly zero has no sign; call it positive, as `stabilize` does.
        sign = torch.where(logits.gather(1, columns)[:, 0] < 0, -sign, sign)
    return torch.zeros_like(logits).scatter_(1, columns, sign[:, None])


def _column_and_sign(wanted: object, outputs: int) -> tuple[int, int]:
    """Column of the explained logit (-1: the highest) and +1, or -1 where its negative is explained."""
    if wanted in (FAKE, REAL):
        if outputs != 1:
            raise ValueError(f"target {wanted!r} needs a one-logit detector; the network has {outputs} outputs")
        return 0, 1 if wanted == FAKE else -1
    if outputs == 1:
        raise ValueError(f"a one-logit detector is explained for 'fake' or 'real', not for {wanted!r}")
    if wanted == TOP:
        return -1, 1
    try:
        column = operator.index(wanted)  # type: ignore[arg-type]
    except TypeError:
        column = -1
    if not 0 <= column < outputs:
        raise ValueError(f"class {wanted!r} is not among the network's 0..{outputs - 1}")
    return column, 1
