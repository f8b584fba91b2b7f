"""Time and memory of one explanation: ours, a plain training step, zennit and captum, interleaved in one process.

All explain the same batch, with the z+ rule (alpha 1, beta 0) where the library has one for this network. Ours also
computes the per-channel statistics of all convolutions that FF-RS needs; the others give the relevance of the input.
Weights are random, but for the rows that say otherwise.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
from benchmarking import Contender, compare, make_parser, report, seeded_detector, shipped_detector, table
from torch import Tensor, nn

from lrp import Explainer

Work = Callable[[], object]


def make_contenders(arch: str, batch: int, device: str) -> dict[str, Contender]:
    """The unit, a forward-backward step, first."""
    detector = seeded_detector(arch, device)
    model, architecture = detector.model.requires_grad_(requires_grad=True), detector.architecture
    images = torch.randn(batch, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    prepare: dict[str, Callable[[], Work]] = {
        "forward-backward step (S)": lambda: lambda: _step(model, images),
        "forward-backward step, bf16": lambda: lambda: _step(model, images, autocast=True),
        "forward": lambda: lambda: _forward(model, images),
    }

    @cache
    def explainer(dtype: torch.dtype, shipped: bool) -> Explainer:
        explained = shipped_detector(arch, device).model if shipped else model
        return Explainer(explained, architecture.rules("beta0", architecture.transform.bounds()), dtype=dtype)

    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for more, of_input, shipped in (
            ("", False, False),
            (" and input", True, False),
            (", shipped weights", False, True),
        ):
            prepare[f"ours, {name}, channel statistics{more}"] = partial(
                _ours, explainer, dtype, shipped, images, of_input
            )
    if arch.startswith("resnet"):
        prepare["zennit EpsilonPlus, input"] = lambda: _zennit(model, images)
    prepare["captum LRP (its epsilon rule), input"] = lambda: _captum(model, images)
    return {name: Contender(batch, function) for name, function in prepare.items()}


def _step(model: nn.Module, images: Tensor, autocast: bool = False) -> None:
    model.zero_grad()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
        logits = model(images)
    logits.float().sum().backward()


@torch.no_grad()
def _forward(model: nn.Module, images: Tensor) -> None:
    model(images)


def _ours(
    explainer: Callable[[torch.dtype, bool], Explainer],
    dtype: torch.dtype,
    shipped: bool,
    images: Tensor,
    with_input: bool,
) -> Work:
    prepared = explainer(dtype, shipped)
    layers = [name for name, _ in prepared.layers]
    return lambda: prepared.explain(images, layers=layers, input_relevance=with_input)


def _zennit(model: nn.Module, images: Tensor) -> Work:
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonPlus
    from zennit.torchvision import ResNetCanonizer

    composite = EpsilonPlus(canonizers=[ResNetCanonizer()])

    def work() -> None:
        with Gradient(model=model, composite=composite) as attributor:
            attributor(images, torch.ones(len(images), 1, device=images.device))

    return work


def _captum(model: nn.Module, images: Tensor) -> Work:
    from captum.attr import LRP

    attribution = LRP(model)
    return lambda: attribution.attribute(images.clone().requires_grad_(), target=0)


def main() -> None:
    args = make_parser(__doc__, batch=8, rounds=7).parse_args()
    header = ("", "ms an image", "in units of S", "peak memory of the process, MB")
    lines: list[str] = []
    for arch in args.arch:
        measured, failed = compare(make_contenders(arch, args.batch, args.device), args, "--arch", arch)
        rows = [(one.name, f"{1000 * one.seconds:.1f}", f"{one.ratio:.2f}", f"{one.megabytes:.0f}") for one in measured]
        title = f"{arch}, batch {args.batch} at 224 x 224, {args.device}, median of {args.rounds} rounds"
        lines += [f"**{title}**", "", *table(header, rows), "", *[f"{line}." for line in failed], ""]
    report(f"Relevance propagation, {args.device.split(':')[0]}", lines, write=args.write)


if __name__ == "__main__":
    main()
