"""What the benchmarks share: interleaved timing in one process, peak memory in child processes, results as Markdown."""

from __future__ import annotations

import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch

from utils.files import write_text

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "RESULTS.md"


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int, *, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of every round of every contender, taken in turn after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, work in contenders.items():
            started = time.perf_counter()
            work()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio_to(seconds: Mapping[str, Sequence[float]], name: str, reference: str) -> float:
    """Median over rounds of time / reference time of the same round: holds when the machine's speed drifts."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[reference], strict=True))


def peak_megabytes(arguments: Sequence[str]) -> float:
    """Largest resident memory of this script run anew with other arguments, in MB.

    A fresh process per contender, because a process never gives its largest size back.
    """
    answer = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    return float(answer.stdout.strip().splitlines()[-1])


def own_peak_megabytes() -> float:
    """Largest resident memory of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike ru_maxrss this does not begin with the size of the process that started this one.
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> str:
    """One line: processor, threads, GPU, versions."""
    name = platform.processor() or platform.machine()
    flags = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text()
        found = re.search(r"model name\s*:\s*(.+)", text)
        name = found[1].strip() if found else name
        flags = ", ".join(flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f" {flag}" in text)
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "; no GPU"
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("torch", "torchvision"))
    cores = len(os.sched_getaffinity(0))
    return f"{name} ({flags}), {cores} cores, {torch.get_num_threads()} threads{gpu}; {versions}"


def write_section(title: str, command: str, lines: Sequence[str]) -> None:
    """Replace one section of benchmarks/RESULTS.md, or append it."""
    section = f"## {title}\n\n`{command}`\n\n{machine()}\n\n" + "\n".join(lines) + "\n"
    text = RESULTS.read_text() if RESULTS.exists() else "# Benchmark results\n"
    pattern = re.compile(rf"## {re.escape(title)}\n.*?(?=\n## |\Z)", re.DOTALL)
    if pattern.search(text):
        text = pattern.sub(lambda _: section.rstrip("\n"), text)
    else:
        text = text.rstrip("\n") + "\n\n" + section
    write_text(RESULTS, text.rstrip("\n") + "\n")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
