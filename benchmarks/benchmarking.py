"""What the benchmarks share: contenders timed in turn, peak memory in processes of their own, results as Markdown."""

import argparse
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from detectors.detector import Detector, load_detector
from detectors.networks import build_model, get_architecture
from utils.allocation import keep_freed_memory
from utils.files import PROJECT_ROOT, write_text
from utils.tables import markdown

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"


@dataclass(frozen=True)
class Contender:
    """Work on so many images; `prepare` makes it, which is not timed."""

    images: int
    prepare: Callable[[], Callable[[], object]]


@dataclass(frozen=True)
class Measurement:
    """Median time of an image, the median ratio to the first contender, and peak memory in MB."""

    name: str
    images: int
    seconds: float
    ratio: float
    megabytes: float


def make_parser(description: str, *, batch: int, rounds: int) -> argparse.ArgumentParser:
    """A command line with the flags of every comparison of contenders, whose memory is kept as in the scripts."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--arch", nargs="+", default=["resnet50", "efb0"])
    parser.add_argument("--batch", type=int, default=batch, help="images at a time")
    parser.add_argument("--rounds", type=int, default=rounds, help="counted rounds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.md")
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    return parser


def compare(
    contenders: Mapping[str, Contender], args: argparse.Namespace, *child_flags: object
) -> tuple[list[Measurement], list[str]]:
    """Time contenders in turn, after one warm-up each, and run each once more alone for its peak memory.

    The ratio is that of times of the same round, which holds when the machine's speed drifts.

    Args:
        contenders: By name.
        args: Of `make_parser`.
        child_flags: Choose the same contenders in a process of its own, besides the flags of this one.

    Returns:
        The measurements, and a sentence for each contender that does not work.
    """
    if args.peak_of:
        contenders[args.peak_of].prepare()()
        sys.stdout.write(f"{_own_peak(args.device)}\n")
        sys.exit()
    works: dict[str, Callable[[], object]] = {}
    failed: list[str] = []
    for name, contender in contenders.items():
        try:
            works[name] = contender.prepare()
            works[name]()
        except Exception as error:  # a peer that cannot do this network is a result, not a failure of ours
            works.pop(name, None)
            failed.append(f"{name} does not work: {type(error).__name__}: {str(error).splitlines()[0]}")
    seconds = interleaved(works, args.rounds, args.device)
    first = next(iter(seconds.values()))
    return [
        Measurement(
            name,
            contenders[name].images,
            statistics.median(measured) / contenders[name].images,
            statistics.median(a / b for a, b in zip(measured, first, strict=True)),
            peak_megabytes(*child_flags, "--peak_of", name),
        )
        for name, measured in seconds.items()
    ], failed


def interleaved(works: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every round of every work, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def peak_megabytes(*flags: object) -> float:
    """Peak memory in MB of this script run anew with more flags, since a process never gives its largest size back."""
    command = [sys.executable, *sys.argv, *map(str, flags)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(answer.stdout.strip().splitlines()[-1])


def _own_peak(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    # Unlike ru_maxrss this does not begin with the size of the process that started this one.
    peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(peak[1] if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024


def seeded_detector(arch: str, device: str, precision: str = "fp32") -> Detector:
    """A detector with random weights."""
    torch.manual_seed(0)
    model = build_model(arch).eval().requires_grad_(False)
    model.to(device=torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Detector(get_architecture(arch), model, torch.device(device), precision=precision)  # type: ignore[arg-type]


def shipped_detector(arch: str, device: str) -> Detector:
    """A detector with trained weights, whose relevance is spread otherwise and may so cost another time."""
    return load_detector(arch, PROJECT_ROOT / "weights" / arch / "mini.safetensors", device)


def report(title: str, lines: Sequence[str], *, write: bool) -> None:
    """Print results; with `write` also put them into their section of benchmarks/RESULTS.md."""
    sys.stdout.write("\n".join(lines) + "\n")
    if not write:
        return
    # folders of this machine say nothing to others
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
    section = "\n".join([f"## {title}", "", f"`{command}`", "", _machine(), "", *lines]).rstrip("\n")
    text = RESULTS.read_text() if RESULTS.exists() else "# Benchmark results\n"
    pattern = re.compile(rf"## {re.escape(title)}\n.*?(?=\n## |\Z)", re.DOTALL)
    is_there = pattern.search(text) is not None
    text = pattern.sub(lambda _: section + "\n", text) if is_there else f"{text.rstrip()}\n\n{section}"
    write_text(RESULTS, text.rstrip("\n") + "\n")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    return markdown(header, rows).splitlines()


def _machine() -> str:
    """One line: processor, threads, GPU, versions."""
    name, flags = platform.processor() or platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text()
        model = re.search(r"model name\s*:\s*(.+)", text)
        name = model[1].strip() if model else name
        flags = ", ".join(flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f" {flag}" in text)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("torch", "torchvision"))
    cores = len(os.sched_getaffinity(0))
    return f"{name} ({flags}), {cores} cores, {torch.get_num_threads()} threads; {gpu}; {versions}"
