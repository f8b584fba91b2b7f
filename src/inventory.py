"""What is there to work with: machine, packages, weights, rankings and data sets, each looked at and none altered."""

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path

import torch

from detectors.choice import default_weights_path, imagenet_weights_path
from detectors.detector import load_detector, load_imagenet_classifier
from detectors.heads import Classes, LogitMap, OneLogit
from detectors.networks import TIMM, Architecture, architectures, build_model, get_architecture
from detectors.transforms import Normalise
from evaluation.published import generators, paper_topk, wang_results
from fmap_ranking.ranking import PAPER_GENERATOR, read_ranking
from images.composition import composition_warning
from images.decoding import Crop, Resize
from images.sets import find_image_set
from lrp.canonise import build_program, explained_layers
from utils.errors import UserError
from utils.layout import Layout
from utils.tables import markdown

OK, MISSING, BROKEN, NOTE = "ok", "missing", "broken", "note"
_CHECKPOINTS = frozenset({".pth", ".pt", ".safetensors"})
_GENERATORS = "_generators"  # ends the names of folders without detectors
_GIB = 2**30
_DETECTOR, _CLASSIFIER, _RANKING, _DATA = "weights", "ImageNet weights", "ranking", "data"

STEPS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "1 rank feature maps (FF-RS)": (("rank_fmaps",), (_DETECTOR, _DATA)),
    "k choice of k": (("find_topk",), (_DETECTOR, _RANKING, _DATA)),
    "2 sensitivity (Tab. 1)": (("transfer_sensitivity_analysis",), (_DETECTOR, _RANKING, _DATA)),
    "3 max activations, patches": (
        ("get_max_activation_rankings", "extract_max_activation_patches"),
        (_DETECTOR, _RANKING, _DATA),
    ),
    "4 collages (Fig. 1)": (("patch_collage",), (_DETECTOR, _RANKING, _DATA)),
    "5 colour ablation (Fig. 4)": (
        ("grayscale_sensitivity_whisker_plots", "grayscale_sensitivity_analysis"),
        (_DETECTOR, _DATA),
    ),
    "6 median test (Fig. 6)": (("median_test_activation_histograms",), (_DETECTOR, _RANKING, _DATA)),
    "7 colour-conditional share": (("find_color_conditional_percentage",), (_DETECTOR, _RANKING, _DATA)),
    "heat maps of detectors": (("ud_lrp", "gradcam"), (_DETECTOR,)),
    "heat maps of ImageNet": (("imagenet_lrp", "gradcam"), (_CLASSIFIER,)),
    "evaluate a detector": (("evaluate_detector",), (_DETECTOR, _DATA)),
}
"""Steps of the paper, their scripts, and what these need."""


@dataclass(frozen=True)
class Finding:
    """One thing looked for.

    Attributes:
        name: What it is.
        state: `ok`, `missing`, `broken`, or `note` where there is nothing to judge.
        detail: Lines that say more.
        arch: Network that it belongs to.
        use: What a step needs it as.
        path: File or folder.
    """

    name: str
    state: str
    detail: tuple[str, ...] = ()
    arch: str = ""
    use: str = ""
    path: Path | None = None


def take_inventory(root: Path, dataset_dir: Path | None, output_dir: Path) -> Iterator[str]:
    """Lines about all that is there, as it is looked at, and about what can be run with it.

    Raises:
        UserError: There is no such data set folder.
    """
    if dataset_dir is not None and not dataset_dir.is_dir():
        raise UserError(f"no data set folder {dataset_dir}: check --dataset_dir")
    sections = {
        "Machine": look_at_machine(output_dir),
        "Software": look_at_packages(root / "requirements.txt"),
        f"Weights in {root / 'weights'}, with their SHA-256": look_at_weights(root),
        f"Rankings in {root / 'fmap_relevances'}": look_at_rankings(root),
    }
    if dataset_dir is not None:
        sections[f"Data sets in {dataset_dir}"] = look_at_data(dataset_dir)
    findings: list[Finding] = []
    for title, section in sections.items():
        yield title
        for finding in section:
            first, *more = finding.detail or ("",)
            yield f"  {finding.name:<31} {finding.state:<8}{first}".rstrip()
            yield from (f"{'':42}{line}" for line in more)
            findings.append(finding)
        yield ""
    if dataset_dir is None:
        yield "Data sets: not looked at; name their folder with --dataset_dir DIR\n"
    yield from what_can_be_run(findings)
    yield "\ndocs/data_and_weights.md says where everything comes from and where it goes."


def look_at_machine(output_dir: Path) -> Iterator[Finding]:
    """Processor, memory, GPU, bfloat16, and the free space where results would go."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    info = Path("/proc/cpuinfo")
    flags = info.read_text(encoding="utf-8", errors="replace").split() if info.is_file() else []
    bf16 = "fast" if "amx_bf16" in flags else "some gain" if "avx512_bf16" in flags else "slow"
    yield Finding("processor", OK, (f"{cores} cores, {memory:.0f} GiB memory, --precision bf16: {bf16}",))
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            bf16 = "fast" if torch.cuda.is_bf16_supported(including_emulation=False) else "slow"
        yield Finding(f"cuda:{index}", OK, (f"{facts.name}, {facts.total_memory / _GIB:.0f} GiB, bf16: {bf16}",))
    if not torch.cuda.is_available():
        yield Finding("GPU", NOTE, ("none: everything runs on the processor",))
    folder = next(path for path in (output_dir.absolute(), *output_dir.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free / _GIB
    yield Finding("free disk", OK if free > 1 else NOTE, (f"{free:,.0f} GiB at {folder}",))


def look_at_packages(requirements: Path) -> list[Finding]:
    """Versions of the installed packages against the pins of a requirements file."""
    wrong: list[Finding] = []
    pins = re.findall(r"^([\w.-]+)==(\S+)$", requirements.read_text(encoding="utf-8"), re.MULTILINE)
    for name, pinned in pins:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(Finding(name, MISSING, (f"pinned is {pinned}",)))
            continue
        if version.split("+")[0] != pinned:
            wrong.append(Finding(name, NOTE, (f"{version}, pinned is {pinned}",)))
    count = f"{len(pins) - len(wrong)} of {len(pins)} packages are those of {requirements.name}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}; {count}"
    return [Finding("packages", OK if not wrong else NOTE, (versions,)), *wrong]


def look_at_weights(root: Path) -> Iterator[Finding]:
    """The checkpoints of `<root>/weights`: those of the paper and any others, but no generators.

    Each is loaded as the architecture its place says, on the CPU, and its checksum is computed.
    """
    published = {
        default_weights_path(arch, tag, root): (f"{arch}, blur_jpg {tag}", arch, _DETECTOR)
        for arch in paper_topk()
        for tag in wang_results()
    }
    published |= {imagenet_weights_path(arch, root): (f"{arch}, ImageNet", arch, _CLASSIFIER) for arch in paper_topk()}
    others = {}
    for path in sorted((root / "weights").glob("*/*")):
        hidden = path.name.startswith(".") or path.suffix.lower() not in _CHECKPOINTS or path.stem == "backbone"
        if path in published or hidden or path.parent.name.endswith(_GENERATORS):
            continue
        arch, use = path.parent.name, _DETECTOR
        if arch == "imagenet":  # <arch>.safetensors, or <arch>_<more>.safetensors
            arch, use = path.stem.partition("_")[0], _CLASSIFIER
        others[path] = (f"{arch}, {path.stem}", arch, use)
    for path, (name, arch, use) in (published | others).items():
        if arch in architectures():
            yield _judged(name, path, partial(_look_at_checkpoint, path, arch, use), arch=arch, use=use)
        else:
            yield Finding(path.name, NOTE, (f"no architecture is called {arch}: not looked at",))


def _look_at_checkpoint(path: Path, arch: str, use: str) -> tuple[str, ...]:
    load = load_detector if use == _DETECTOR else load_imagenet_classifier
    digest = load(arch, path, "cpu").sha256
    lines = (f"{_place(path)}, {path.stat().st_size / 1e6:.1f} MB", digest)
    if use == _DETECTOR:
        return lines
    return (*lines, compared_with_published(digest, get_architecture(arch).imagenet_files))


def compared_with_published(digest: str, files: Sequence[str]) -> str:
    """Whether a SHA-256 is that of a public file, which carries its first eight digits in the name."""
    for file in files:
        match = re.search(r"-([0-9a-f]{8})\.pth$", file)
        if match and digest.startswith(match[1]):
            return f"the file published as {file}"
    return f"not the file published as {' or '.join(files)}, or saved anew"


def look_at_rankings(root: Path) -> Iterator[Finding]:
    """The rankings that the paper's steps read, and any others below `<root>/fmap_relevances`."""
    tag = next(iter(wang_results()))
    wanted = [
        Layout(root, arch, tag).ranking(PAPER_GENERATOR, label) for arch in paper_topk() for label in ("fake", "real")
    ]
    there = sorted(path for label in ("fake", "real") for path in root.glob(f"fmap_relevances/*/*/*-{label}.csv"))
    for path in dict.fromkeys([*wanted, *there]):
        arch = path.parts[-3]
        use = _RANKING if path in wanted and path.stem.endswith("-fake") else ""
        yield _judged(f"{arch}, {path.stem}", path, partial(_look_at_ranking, path, arch), arch=arch, use=use)


def _look_at_ranking(path: Path, arch: str) -> tuple[str, ...]:
    ranking = read_ranking(path, _layers(arch) if arch in architectures() else None)
    ranking.check()
    top = ranking.maps[0]
    return (
        _place(path),
        f"{len(ranking):,} maps of {len(ranking.layers)} layers; first {top.layer}.#{top.index}",
    )


@cache
def _layers(arch: str) -> dict[str, int]:
    return dict(explained_layers(build_program(build_model(arch).eval())))


def look_at_data(dataset_dir: Path) -> Iterator[Finding]:
    """The data sets of the paper and any others below `dataset_dir`, with images counted by label."""
    there = sorted(path.name for path in dataset_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
    for name in dict.fromkeys([PAPER_GENERATOR, *generators(), *there]):
        yield _judged(name, dataset_dir / name, partial(_look_at_set, dataset_dir, name), use=_DATA)


def _look_at_set(dataset_dir: Path, name: str) -> tuple[str, ...]:
    image_set = find_image_set(dataset_dir, name)
    labels = [item.label for item in image_set.items]
    classes = len({item.class_name for item in image_set.items} - {""}) or "no"
    warning = composition_warning(image_set)
    counted = f"{labels.count(0):,} real, {labels.count(1):,} fake, {classes} class{'es' * (classes != 1)}"
    return (counted, warning) if warning else (counted,)


def _judged(name: str, path: Path, look: Callable[[], tuple[str, ...]], *, arch: str = "", use: str = "") -> Finding:
    """What is found where something should be; `look` raises UserError if that cannot be used."""
    if not path.exists():
        return Finding(name, MISSING, (f"expected at {_place(path)}",), arch, use, path)
    try:
        return Finding(name, OK, look(), arch, use, path)
    except UserError as error:
        return Finding(name, BROKEN, (str(error),), arch, use, path)


def known_detectors() -> Iterator[str]:
    """A table of all registered networks: what they read, how their authors prepare it, and what means fake."""
    header = ("--arch", "input", "images, by the authors", "fake where", "source (licence)")
    rows = [
        (
            ", ".join([entry.name, *entry.aliases]),
            _input(entry),
            _preparation(entry.crop),
            _meaning(entry),
            entry.source,
        )
        for entry in map(get_architecture, architectures())
    ]
    timm = (f"{TIMM}NAME", "normalised as timm does", "as timm tests", "logit > 0", "any network of timm (Apache-2.0)")
    yield from markdown(header, [*rows, timm]).splitlines()
    yield "\nAn image is called fake from p(fake) = 0.5 on, a logit of 0. --fake_class says which of two outputs it is"
    yield "where the table does not. --preprocessing as_is takes images as they are. docs/detectors.md has more."


def _input(architecture: Architecture) -> str:
    transform = architecture.transform
    normalise = getattr(transform, "normalise", transform)
    parts = [architecture.reads.partition(":")[0]] if architecture.reads else []
    if isinstance(normalise, Normalise):
        mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (normalise.mean, normalise.std))
        parts.append(f"mean {mean}, std {std}")
    if normalise is not transform:
        parts.append(type(transform).__name__)
    return "; ".join(parts)


def _preparation(crop: Crop) -> str:
    scaling, parts = crop.resize, []
    if isinstance(scaling, Resize):
        sides = "scaled to {0}x{0}" if scaling.square else "shorter side scaled to {0}"
        parts.append(f"{sides.format(scaling.size)} ({scaling.interpolation})")
    if crop.kind == "center":
        parts.append(f"central {crop.size}x{crop.size}")
    return ", ".join(parts) or "as they are"


def _meaning(architecture: Architecture) -> str:
    head = architecture.head
    if isinstance(head, Classes) or not isinstance(head, OneLogit):
        return "one of the classes"
    of_two = "" if architecture.fake_class is None else f" (class {architecture.fake_class} of two)"
    if isinstance(head, LogitMap) and head.mean_of == "probabilities":
        return f"mean p(fake) of the places > 0.5{of_two}"
    logit = "mean logit of the places" if isinstance(head, LogitMap) else "logit"
    return f"{logit} {'>' if head.sign > 0 else '<'} 0{of_two}"


def _place(path: Path) -> str:
    return Path(*path.parts[-3:]).as_posix()


def what_can_be_run(findings: Iterable[Finding]) -> list[str]:
    """A table with a line per step and a column per detector of the paper, and notes below it."""
    usable = [finding for finding in findings if finding.state == OK and finding.use]
    ranked_on = any(finding.use == _DATA and finding.name == PAPER_GENERATOR for finding in usable)
    rows = []
    for step, (_, needs) in STEPS.items():
        row = [step]
        for arch in paper_topk():
            lacking = [need for need in needs if not any(f.use == need and f.arch in ("", arch) for f in usable)]
            if not lacking:
                row.append("yes" if ranked_on or not step.startswith("1") else f"yes, but not on {PAPER_GENERATOR}")
            else:
                row.append("after step 1" if lacking == [_RANKING] and ranked_on else f"needs {', '.join(lacking)}")
        rows.append(row)
    lines = ["What can be run", "", markdown(("step", *paper_topk()), rows)]
    for arch in paper_topk():
        path = next((finding.path for finding in usable if finding.use == _DETECTOR and finding.arch == arch), None)
        if path is not None and path.name != default_weights_path(arch, next(iter(wang_results()))).name:
            lines += ["", f"{arch}: with --weights {path}"]
    return lines
