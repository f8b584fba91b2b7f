"""Training of the simulated generators on photographs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from mini_forensynths.files import save_weights
from mini_forensynths.generators import SPECS, GeneratorSpec, SimulatedGenerator
from mini_forensynths.measures import TO_YCBCR
from mini_forensynths.options import Photographs, Training
from mini_forensynths.photos import find_photos, split_photos, usable_photos
from utils.cli import progress
from utils.errors import UserError
from utils.files import sha256_file, sha256_text, write_text
from utils.provenance import Origin, is_current, write_record
from utils.settings import plain

_COMPUTATION = 1
_SPECTRUM = 16  # side of the windows whose spectra are compared
# The mean square of errors is brought near the scale of the mean absolute error.
_L2_SCALE = 30.0
_SHORTEST_CYCLE = 11  # steps of the learning rate
_CLIP = 1.0  # norm of the gradient at most; a single bad step can end in a constant output


@dataclass(frozen=True)
class GeneratorTraining:
    """How a generator is trained.

    Attributes:
        steps: Of the optimiser.
        batch_size: Crops in a step.
        crop: Side of the crops, pixels.
        rate: Highest learning rate of Adam; it rises and falls once (one-cycle).
        luma_weight: Weight of the luma error; Cb and Cr have 1 each. Photographs vary more in luma than in colour, and
            so do people's eyes: codecs and perceptual losses weigh it more, too.
        spectrum_weight: Weight of the difference between the local spectra of luma, magnitudes only. It makes fakes as
            sharp as photographs where their details cannot be the same.
        seed: Of the weights and crops.
    """

    steps: int = 5000
    batch_size: int = 16
    crop: int = 32
    rate: float = 4e-3
    luma_weight: float = 2.0
    spectrum_weight: float = 0.5
    seed: int = 0


def train_generators(photographs: Photographs, choice: Training) -> Iterator[str]:
    """Train the generators that are wanted and not there yet; yields a line for each.

    Raises:
        UserError: A photograph cannot be used, or there is no such generator.
    """
    specs = {spec.name: spec for spec in SPECS}
    unknown = [name for name in choice.generators if name not in specs]
    if unknown:
        raise UserError(f"--generators {unknown[0]}: choose among {', '.join(specs)}")
    training = GeneratorTraining(steps=choice.steps, seed=choice.seed)
    photos = split_photos(find_photos(photographs.photos), photographs.shares, photographs.split_seed)["train"]
    inputs = {"photographs": sha256_text(sha256_file(photo.path) for photo in photos)}
    skipped: list[str] = []
    skip = photographs.skip_bad_images
    images = [image for _, image in usable_photos(photos, training.crop, "training", skipped, skip_bad_images=skip)]
    for name in choice.generators or specs:
        path = choice.output_dir / f"{name}.safetensors"
        facts = {"generator": asdict(specs[name]), "training": asdict(training), "photographs": len(images)}
        origin = Origin(_COMPUTATION, inputs, facts)
        if is_current([path], origin):
            yield f"{path} is there already"
            continue
        save_weights(train_generator(specs[name], images, training), name, path)
        write_record([path], origin, settings=plain(photographs, choice), seed=choice.seed, device="cpu")
        yield str(path)
    if skipped:
        write_text(choice.output_dir / "skipped.txt", "".join(f"{line}\n" for line in skipped))


def train_generator(
    spec: GeneratorSpec, photos: Sequence[np.ndarray], training: GeneratorTraining
) -> SimulatedGenerator:
    """Train a generator from random weights, on the CPU.

    Args:
        spec: Its architecture and pixel loss.
        photos: uint8 (H, W, 3), each at least as large as the crop.
        training: How.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        generator = SimulatedGenerator(spec).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(generator.parameters(), training.rate)
    # PyTorch divides by zero where the rise would be one step
    cycle = max(training.steps, _SHORTEST_CYCLE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.rate, cycle, pct_start=0.1)
    with progress(_crops(photos, training), total=training.steps, description=spec.name, unit="step") as bar:
        for index, crops in enumerate(bar):
            with torch.autocast("cpu", torch.bfloat16):
                fakes = generator(crops)
            loss = generator_loss(fakes.float(), crops, spec.pixel_loss, training)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(generator.parameters(), _CLIP)
            optimizer.step()
            schedule.step()
            if index % 100 == 0:
                bar.set_postfix_str(f"loss {float(loss.detach()):.4f}")
    return generator.eval()


def generator_loss(fakes: Tensor, reals: Tensor, pixel_loss: str, training: GeneratorTraining) -> Tensor:
    """Loss of reconstructions (N, 3, H, W) of 0..1."""
    to_ycbcr = torch.tensor(TO_YCBCR, dtype=fakes.dtype)
    fake_planes, real_planes = (torch.einsum("nchw,dc->ndhw", images, to_ycbcr) for images in (fakes, reals))
    total = fakes.new_zeros(())
    for plane, weight in enumerate((training.luma_weight, 1.0, 1.0)):
        pair = fake_planes[:, plane], real_planes[:, plane]
        total = total + weight * (l1_loss(*pair) if pixel_loss == "l1" else _L2_SCALE * mse_loss(*pair))
    if training.spectrum_weight:
        spectra = l1_loss(_local_spectra(fake_planes[:, 0]), _local_spectra(real_planes[:, 0]))
        total = total + training.spectrum_weight * spectra
    return total


def _local_spectra(planes: Tensor) -> Tensor:
    """Magnitudes of the spectra of overlapping windows of (N, H, W)."""
    window = torch.hann_window(_SPECTRUM, periodic=False, dtype=planes.dtype)
    patches = planes.unfold(1, _SPECTRUM, _SPECTRUM // 2).unfold(2, _SPECTRUM, _SPECTRUM // 2)
    return torch.fft.rfft2(patches * window[:, None] * window, norm="ortho").abs()


def _crops(photos: Sequence[np.ndarray], training: GeneratorTraining) -> Iterator[Tensor]:
    """Batches of random crops, half of them mirrored: (N, 3, crop, crop), 0..1."""
    generator = np.random.default_rng(training.seed)
    for _ in range(training.steps):
        batch = np.empty((training.batch_size, training.crop, training.crop, 3), dtype=np.uint8)
        for crop in batch:
            photo = photos[int(generator.integers(len(photos)))]
            top, left = (int(generator.integers(side - training.crop + 1)) for side in photo.shape[:2])
            part = photo[top : top + training.crop, left : left + training.crop]
            crop[:] = part[:, ::-1] if generator.random() < 0.5 else part
        planes = torch.from_numpy(batch).permute(0, 3, 1, 2)
        yield planes.float().div(255.0).contiguous(memory_format=torch.channels_last)
