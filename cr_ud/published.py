"""Published results to set beside one's own, with their sources; all in percent."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class PublishedRow:
    """A row of a published table.

    Attributes:
        name: what was evaluated.
        arch: architecture.
        values: by variant (`rgb`, `grayscale`) or measure (`acc`, `ap`), then by test set, in percent.
    """

    name: str
    arch: str
    values: Mapping[str, Mapping[str, float]]


@cache
def _content() -> dict[str, Any]:
    return json.loads(_FILE.read_text(encoding="utf-8"))


def sources() -> Mapping[str, str]:
    """Where the numbers come from: `colour_robust` and `wang`."""
    return _content()["source"]


def colour_robust_rows(arch: str) -> list[PublishedRow]:
    """AP of the baseline and the colour-robust detector, RGB and greyscale; none for other architectures."""
    content = _content()
    return [
        PublishedRow(
            f"published {kind}",
            arch,
            {
                variant: dict(zip(content["generators"], numbers, strict=True))
                for variant, numbers in by_variant.items()
            },
        )
        for kind, by_variant in content["colour_robust"].get(arch, {}).items()
    ]


def wang_rows() -> list[PublishedRow]:
    """Accuracy and AP of Wang et al.'s two ResNet-50 at a centre crop of 224 pixels."""
    content = _content()
    return [
        PublishedRow(
            f"Wang et al. {tag}",
            "resnet50",
            {measure: dict(zip(content["wang_sets"], numbers, strict=True)) for measure, numbers in by_measure.items()},
        )
        for tag, by_measure in content["wang"].items()
    ]


def wang_sets() -> tuple[str, ...]:
    """Names of the 13 test sets of Wang et al., in their order."""
    return tuple(_content()["wang_sets"])
