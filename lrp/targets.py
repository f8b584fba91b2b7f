"""What is explained: a class, the decision "fake" or "real" of a one-logit detector, or the highest logit.

The relevance that starts at the explained logit is sign(g), g being the explained quantity: f for "fake", -f for
"real", the class's logit for a classifier. Positive relevance then is evidence *for* what is explained, whatever the
sign of the logit, and the scale is the published one (relevance starts at +1 or -1, never at f). The published code
starts at +1 for fakes and at -1 for reals instead, so that on a real its positive relevance marks evidence for fake;
`published=True` does the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Target = str | int | Tensor | Sequence[str | int]
FAKE, REAL, TOP = "fake", "real", "top"


def start_relevance(logits: Tensor, target: Target, *, published: bool = False) -> Tensor:
    """Relevance at the output, (N, K), zero but for the explained logit of every sample.

    Args:
        logits: (N, K); K = 1 for a detector.
        target: `"fake"` or `"real"` (K = 1), `"top"` or a class index (K > 1), or one of these per sample.
        published: Start at +1 (fake, or the class) and -1 (real) whatever the logit's sign.

    Raises:
        ValueError: The target does not fit the number of outputs or of samples.
    """
    count, outputs = logits.shape
    targets: list[str | int]
    if isinstance(target, str | int):
        targets = [target] * count
    else:
        targets = target.tolist() if isinstance(target, Tensor) else list(target)
    if len(targets) != count:
        raise ValueError(f"{len(targets)} targets for {count} samples")
    columns, signs = [], []
    for row, wanted in enumerate(targets):
        if wanted in (FAKE, REAL):
            if outputs != 1:
                raise ValueError(f"target {wanted!r} needs a one-logit detector; the network has {outputs} outputs")
            columns.append(0)
            signs.append(1.0 if wanted == FAKE else -1.0)
            continue
        if outputs == 1:
            raise ValueError(f"a one-logit detector is explained for 'fake' or 'real', not for {wanted!r}")
        if wanted == TOP:
            wanted = int(logits[row].argmax())
        if not isinstance(wanted, int) or not 0 <= wanted < outputs:
            raise ValueError(f"class {wanted!r} is not among the network's 0..{outputs - 1}")
        columns.append(wanted)
        signs.append(1.0)
    rows = torch.arange(count)
    start = torch.zeros_like(logits)
    sign = torch.tensor(signs, dtype=logits.dtype, device=logits.device)
    explained = logits[rows, columns]
    if not published:
        # A logit of exactly zero has no sign; call it positive, as `stabilize` does.
        sign = sign * torch.where(explained < 0, -1.0, 1.0).to(logits.dtype)
    start[rows, columns] = sign
    return start
