"""A small detector with known scores, images for it, and runs of the ranking script."""

from __future__ import annotations

import runpy
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import attribution.scripts
import passes.command
import passes.one_pass
import utils.cli
from detectors.detector import Detector
from detectors.networks import build_model, get_architecture
from images.sets import ImageSet, find_image_set

SOURCES = Path(__file__).resolve().parents[1] / "src"
SIDE = 48
# Logits the detector is given; p(fake) is 0.95 or more at 3 and 0.05 or less at -3, between 0.18 and 0.82 within 1.5.
LOGITS: Mapping[str, float] = {
    "gan/0_real/a.png": -3.0,
    "gan/0_real/b.png": -1.5,
    "gan/0_real/c.png": 3.0,
    "gan/0_real/d.png": -4.0,
    "gan/0_real/e.png": -3.5,
    "gan/1_fake/a.png": 3.0,
    "gan/1_fake/b.png": -3.0,
    "gan/1_fake/c.png": 1.5,
    "gan/1_fake/d.png": 4.0,
    "gan/1_fake/e.png": 3.5,
    "gan/1_fake/f.png": 5.0,
}
USED = {
    "fake": ["gan/1_fake/a.png", "gan/1_fake/d.png", "gan/1_fake/e.png", "gan/1_fake/f.png"],
    "real": ["gan/0_real/a.png", "gan/0_real/d.png", "gan/0_real/e.png"],
}


def write_images(root: Path) -> Path:
    """The images of `LOGITS` below `root`, SIDE x SIDE; always the same."""
    rng = np.random.default_rng(7)
    for name in LOGITS:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = rng.integers(0, 256, 3)
        noise = rng.normal(0, 60, (SIDE, SIDE, 3))
        Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(path)
    return root


def image_set(root: Path) -> ImageSet:
    """The same images as a pass takes them."""
    return find_image_set(root, "gan")


def tuned_model(root: Path, arch: str = "resnet18") -> nn.Module:
    """A network with seeded weights and a head that gives the images below `root` (uncropped) their `LOGITS`."""
    torch.manual_seed(3)
    model = build_model(arch).eval()
    head = model.get_submodule(get_architecture(arch).last_layer)
    assert isinstance(head, nn.Linear)
    features: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0].double()))
    with torch.no_grad():
        model(inputs(root, arch))
        hook.remove()
        (values,) = features
        wanted = torch.tensor(list(LOGITS.values()), dtype=torch.float64)
        centred = values - values.mean(0)
        weight = torch.linalg.pinv(centred) @ (wanted - wanted.mean())
        head.weight.copy_(weight[None].float())
        head.bias.copy_((wanted.mean() - values.mean(0) @ weight)[None].float())
    return model.requires_grad_(False)


def detector_of(model: nn.Module, weights: Path | None = None, sha256: str = "") -> Detector:
    """A resnet18 as a detector on the CPU."""
    return Detector(get_architecture("resnet18"), model, torch.device("cpu"), weights, sha256)


def inputs(root: Path, arch: str = "resnet18") -> torch.Tensor:
    """The images below `root` as a network reads them, (N, 3, SIDE, SIDE)."""
    pixels = np.stack([np.asarray(Image.open(root / name)) for name in LOGITS])
    return get_architecture(arch).transform(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())


class Run(NamedTuple):
    """How a run of a script ended."""

    code: int
    out: str
    err: str


def run_main(name: str, *arguments: object) -> None:
    """Run a script of src/ in this process; its errors come as they are, not as exit codes."""
    path = SOURCES / f"{name}.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        for module in (utils.cli, passes.command, attribution.scripts):
            patch.setattr(module, "run_script", lambda main: main())
        runpy.run_path(str(path), run_name="__main__")


class Scripts:
    """Runs scripts in this process, as `python src/<name>.py` would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd
        self._monkeypatch.chdir(folder)

    def __call__(self, name: str, *arguments: object) -> Run:
        self._capfd.readouterr()
        code = self.exit_code(str(SOURCES / f"{name}.py"), *map(str, arguments))
        return Run(code, *self._capfd.readouterr())

    def exit_code(self, path: str, *arguments: str) -> int:
        """Run the script at a path, and leave what it writes to the caller."""
        self._monkeypatch.setattr(sys, "argv", [path, *arguments])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.raises(SystemExit) as caught:
                runpy.run_path(path, run_name="__main__")
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        assert isinstance(caught.value.code, int)
        return caught.value.code


@contextmanager
def at_batch(number: int, do: Callable[[], None]) -> Iterator[list[int]]:
    """Call `do` when so many batches have begun; the number of batches so far."""
    seen = [0]
    original = passes.one_pass.PassBatch

    def counted(**parts: Any) -> Any:
        seen[0] += 1
        if seen[0] == number:
            do()
        return original(**parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes.one_pass, "PassBatch", counted)
        yield seen


def stop() -> None:
    """What `kill` and batch systems send."""
    signal.raise_signal(signal.SIGTERM)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files below a folder, by name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
