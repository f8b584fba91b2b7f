"""What is there to work with: machine, packages, weights and data sets, each looked at and none of them altered."""

import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from detectors.choice import default_weights_path, imagenet_weights_path
from detectors.detector import load_detector, load_imagenet_classifier
from detectors.networks import architectures, get_architecture
from images.composition import composition_warning
from images.sets import find_image_set
from utils.errors import UserError

OK, MISSING, BROKEN, NOTE = "ok", "missing", "broken", "note"
PAPER_DETECTORS = ("resnet50", "efb0")
PAPER_TAGS = ("0.5", "0.1")
RANKING_SET = "progan_val"
PAPER_GENERATORS = ("progan", "stylegan2", "stylegan", "biggan", "cyclegan", "stargan", "gaugan")
_CHECKPOINTS = frozenset({".pth", ".pt", ".safetensors"})
_GENERATORS = "simulated_generators"  # weights of mini-ForenSynths, no detectors
_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing looked for.

    Attributes:
        name: what it is.
        state: `ok`, `missing`, `broken`, or `note` where there is nothing to judge.
        detail: lines that say more.
        path: the file or folder, where it is one.
    """

    name: str
    state: str
    detail: tuple[str, ...] = ()
    path: Path | None = None


def look_at_machine(output_dir: Path) -> list[Finding]:
    """Processor, memory, GPU, bfloat16, and the free space where results would go."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    place = next(path for path in (output_dir.absolute(), *output_dir.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free / _GIB
    return [
        Finding("processor", OK, (f"{cores} cores, {memory:.0f} GiB memory", _processor_bf16())),
        *_graphics(),
        Finding("free disk", OK if free > 1 else NOTE, (f"{free:,.0f} GiB at {place}",)),
    ]


def _processor_bf16() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return "--precision bf16: speed unknown on this system"
    flags = set(re.findall(r"\b(amx_bf16|avx512_bf16)\b", info.read_text(encoding="utf-8", errors="replace")))
    if "amx_bf16" in flags:
        return "--precision bf16: fast (amx_bf16)"
    if "avx512_bf16" in flags:
        return "--precision bf16: some gain (avx512_bf16)"
    return "--precision bf16: no gain, the processor has no instructions for it"


def _graphics() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        yield Finding("GPU", NOTE, ("none: everything runs on the processor",))
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            bf16 = "fast" if torch.cuda.is_bf16_supported(including_emulation=False) else "no gain"
        yield Finding(
            f"GPU cuda:{index}", OK, (f"{facts.name}, {facts.total_memory / _GIB:.0f} GiB, --precision bf16: {bf16}",)
        )


def look_at_packages(requirements: Path) -> list[Finding]:
    """Versions of the installed packages against the pins of a requirements file."""
    wrong: list[Finding] = []
    pins = re.findall(r"^([\w.-]+)==(\S+)$", requirements.read_text(encoding="utf-8"), re.MULTILINE)
    for name, pinned in pins:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(Finding(name, MISSING, (f"pinned is {pinned}",)))
            continue
        if found.split("+")[0] != pinned:
            wrong.append(Finding(name, NOTE, (f"{found}, pinned is {pinned}",)))
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    count = f"{len(pins) - len(wrong)} of {len(pins)} packages are those of {requirements.name}"
    return [Finding("software", OK if not wrong else NOTE, (versions, count)), *wrong]


def look_at_weights(root: Path) -> dict[str, list[Finding]]:
    """By architecture, or `imagenet`, the checkpoints of `<root>/weights`: those of the paper and any others.

    Each is loaded as the architecture its place says, on the CPU, and its checksum is computed. Simulated generators
    are left out.
    """
    published = {(arch, tag): default_weights_path(arch, tag, root) for arch in PAPER_DETECTORS for tag in PAPER_TAGS}
    imagenet_paths = {arch: imagenet_weights_path(arch, root) for arch in PAPER_DETECTORS}
    found: dict[str, list[Finding]] = {}
    for (arch, tag), path in published.items():
        found.setdefault(arch, []).append(_checkpoint(f"{arch}, blur_jpg {tag}", arch, path, 1))
    found["imagenet"] = [_checkpoint(f"{arch}, ImageNet", arch, path, 1000) for arch, path in imagenet_paths.items()]
    expected = {*published.values(), *imagenet_paths.values()}
    for path in sorted((root / "weights").glob("*/*")):
        if path in expected or path.suffix.lower() not in _CHECKPOINTS or path.name.startswith("."):
            continue
        if path.parent.name == _GENERATORS:
            continue
        imagenet = path.parent.name == "imagenet"
        arch = path.stem if imagenet else path.parent.name
        kind = "imagenet" if imagenet else arch
        if arch in architectures():
            finding = _checkpoint(f"{arch}, {path.stem}", arch, path, 1000 if imagenet else 1)
        else:
            finding = Finding(path.name, NOTE, (f"no architecture is called {arch}: not looked at",), path)
        found.setdefault(kind, []).append(finding)
    return found


def _checkpoint(name: str, arch: str, path: Path, outputs: int) -> Finding:
    place = Path(*path.parts[-2:]).as_posix()
    if not path.exists():
        return Finding(name, MISSING, (f"expected at {place}",), path)
    try:
        load = load_detector if outputs == 1 else load_imagenet_classifier
        detector = load(arch, path, "cpu")
    except UserError as error:
        return Finding(name, BROKEN, (str(error),), path)
    kind = "a detector" if outputs == 1 else "an ImageNet classifier"
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    lines = [f"{place}: {kind}, {size}", detector.sha256]
    if outputs == 1000:
        lines.append(compared_with_published(detector.sha256, get_architecture(arch).imagenet_files))
    return Finding(name, OK, tuple(lines), path)


def compared_with_published(digest: str, files: tuple[str, ...]) -> str:
    """Whether a SHA-256 is that of a public file, which carries its first eight digits in the name."""
    for file in files:
        match = re.search(r"-([0-9a-f]{8})\.pth$", file)
        if match and digest.startswith(match[1]):
            return f"the file published as {file}"
    return f"not the file published as {' or '.join(files)}, or saved anew"


def look_at_data(dataset_dir: Path) -> dict[str, Finding]:
    """By name, the data sets of the paper and any others below `dataset_dir`, with images counted by label.

    Raises:
        UserError: there is no such folder.
    """
    if not dataset_dir.is_dir():
        raise UserError(f"no data set folder {dataset_dir}: check --dataset_dir")
    there = sorted(path.name for path in dataset_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
    paper = (RANKING_SET, *PAPER_GENERATORS)
    return {
        name: _data_set(dataset_dir, name) if name in there else Finding(name, MISSING)
        for name in (*paper, *(name for name in there if name not in paper))
    }


def _data_set(dataset_dir: Path, name: str) -> Finding:
    try:
        image_set = find_image_set(dataset_dir, name)
    except UserError as error:
        return Finding(name, BROKEN, (str(error),), dataset_dir / name)
    labels = [item.label for item in image_set.items]
    classes = {item.class_name for item in image_set.items}
    layout = "no classes" if classes == {""} else f"{len(classes)} class{'es' * (len(classes) > 1)}"
    lines = [f"{labels.count(0):,} real, {labels.count(1):,} fake, {layout}"]
    warning = composition_warning(image_set)
    if warning:
        lines.append(warning)
    return Finding(name, OK, tuple(lines), dataset_dir / name)


def usable_weights(weights: Mapping[str, list[Finding]], arch: str) -> Path | None:
    """The first checkpoint of an architecture that loads as a detector."""
    return next((finding.path for finding in weights.get(arch, ()) if finding.state == OK), None)
