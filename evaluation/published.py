"""Results of the papers, to set beside one's own: percent, as printed, for the published checkpoints."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple


class SensitivityPrinted(NamedTuple):
    """AP, and accuracies at the calibrated threshold, in percent."""

    ap: float
    acc_real: float
    acc_fake: float


@cache
def tables() -> dict[str, Any]:
    """All that is printed, as `published.json` has it."""
    content: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return content


def source() -> str:
    """Which paper the tables on sensitivity and colour are of."""
    return str(tables()["source"])


def generators() -> tuple[str, ...]:
    """The paper's generators, in the order of its tables."""
    return tuple(tables()["generators"])


def paper_topk() -> dict[str, int]:
    """Number of maps dropped, by architecture (Tab. 1)."""
    return dict(tables()["topk"])


def published_sensitivity(arch: str, tag: str, k: int, variant: str, generator: str) -> SensitivityPrinted | None:
    """What Tab. 1 says of a variant, or None if it was not published of such a detector and k.

    `random-k-averaged` (scores of five draws averaged) is the table's random-k.
    """
    if tag != tables()["tag"] or paper_topk().get(arch) != k:
        return None
    printed = {"random-k-averaged": "random-k", "random-k": ""}.get(variant, variant)
    row = tables()["sensitivity"].get(arch, {}).get(printed, {}).get(generator)
    return None if row is None else SensitivityPrinted(*row)


def published_colour_ap(arch: str, tag: str, condition: str, generator: str) -> float | None:
    """AP in percent on `rgb` or `grayscale`; tags that begin with `cr` stand for the colour-robust detector."""
    robust = tag.lower().startswith("cr")
    if not robust and tag != tables()["tag"]:
        return None
    value = tables()["colour_ap"].get(arch, {}).get(f"{'cr-' if robust else ''}{condition}", {}).get(generator)
    return None if value is None else float(value)


def wang_results() -> dict[str, dict[str, tuple[float, float]]]:
    """Accuracy and AP of Wang et al.'s ResNet-50 by probability of blur and JPEG (`0.5`, `0.1`) and test set."""
    results = tables()["wang"]["results"]
    return {tag: {name: (row[0], row[1]) for name, row in rows.items()} for tag, rows in results.items()}
