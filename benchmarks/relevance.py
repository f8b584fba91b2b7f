"""Time and memory of one explanation: ours, a plain training step, zennit and captum, interleaved in one process.

All explain the same batch, with the z+ rule (alpha 1, beta 0) where the library has one for this network. Ours also
computes the per-channel statistics of all convolutions that FF-RS needs; the others give the relevance of the input.
"""

import argparse
from collections.abc import Callable

import torch
from benchmarking import interleaved, own_peak_megabytes, peak_megabytes, ratio_to, table, write_section
from torch import Tensor, nn

from detectors.networks import Architecture, build_model, get_architecture
from lrp import Explainer

STEP = "forward-backward step (S)"
Work = Callable[[], object]


def make_contenders(arch: str, batch: int, device: str) -> dict[str, Callable[[], Work]]:
    """By name, a function that prepares a contender and returns its unit of work."""
    torch.manual_seed(0)
    model = build_model(arch).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    images = torch.randn(batch, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    architecture = get_architecture(arch)
    contenders: dict[str, Callable[[], Work]] = {
        STEP: lambda: lambda: _step(model, images),
        "forward-backward step, bf16": lambda: lambda: _step(model, images, autocast=True),
        "forward": lambda: lambda: _forward(model, images),
    }
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        contenders[f"ours, {name}, channel statistics"] = lambda dtype=dtype: _ours(
            model, architecture, dtype, images, False
        )
        contenders[f"ours, {name}, channel statistics and input"] = lambda dtype=dtype: _ours(
            model, architecture, dtype, images, True
        )
    if arch.startswith("resnet"):
        contenders["zennit EpsilonPlus, input"] = lambda: _zennit(model, images)
    contenders["captum LRP (its epsilon rule), input"] = lambda: _captum(model, images)
    return contenders


def _step(model: nn.Module, images: Tensor, autocast: bool = False) -> None:
    model.zero_grad()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
        logits = model(images)
    logits.float().sum().backward()


@torch.no_grad()
def _forward(model: nn.Module, images: Tensor) -> None:
    model(images)


def _ours(model: nn.Module, architecture: Architecture, dtype: torch.dtype, images: Tensor, with_input: bool) -> Work:
    explainer = Explainer(model, architecture.rules("beta0", architecture.transform.bounds()), dtype=dtype)
    layers = [name for name, _ in explainer.layers]
    return lambda: explainer.explain(images, layers=layers, input_relevance=with_input)


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="+", default=["resnet50", "efb0"])
    parser.add_argument("--batch", type=int, default=8, help="images at a time (default 8)")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds (default 7)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        work = make_contenders(args.arch[0], args.batch, args.device)[args.memory_of]()
        if args.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        work()
        cuda = args.device.startswith("cuda")
        print(torch.cuda.max_memory_allocated() / 2**20 if cuda else own_peak_megabytes())
        return
    lines: list[str] = []
    for arch in args.arch:
        lines += measure(arch, args)
    command = f"python benchmarks/relevance.py --batch {args.batch} --rounds {args.rounds}"
    print("\n".join(lines))
    write_section(f"Relevance propagation, {args.device.split(':')[0]}", command, lines)


def measure(arch: str, args: argparse.Namespace) -> list[str]:
    works: dict[str, Work] = {}
    failed: list[str] = []
    for name, prepare in make_contenders(arch, args.batch, args.device).items():
        try:
            work = prepare()
            work()
        except Exception as error:  # a peer that cannot do this network is a result, not a failure of ours
            failed.append(f"{name} does not work on {arch}: {type(error).__name__}: {str(error).splitlines()[0]}")
        else:
            works[name] = work
    seconds = interleaved(works, args.rounds, device=args.device)
    rows = []
    for name in works:
        child = [__file__, "--arch", arch, "--batch", str(args.batch), "--device", args.device, "--memory_of", name]
        per_image = 1000 * sorted(seconds[name])[args.rounds // 2] / args.batch
        rows.append((name, f"{per_image:.1f}", f"{ratio_to(seconds, name, STEP):.2f}", f"{peak_megabytes(child):.0f}"))
    header = ("", "ms an image", "in units of S", "peak memory of the process, MB")
    title = f"{arch}, batch {args.batch} at 224 x 224, {args.device}, median of {args.rounds} rounds"
    return [f"**{title}**", "", *table(header, rows), "", *[f"{line}." for line in failed], ""]


if __name__ == "__main__":
    main()
