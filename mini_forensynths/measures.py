"""How far fakes are from their reals: fidelity, sharpness, file sizes."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from images.decoding import decode_image
from images.sets import LABEL_FOLDERS
from utils.errors import UserError

# luma, blue and red difference of ITU-R 601-2, as in JPEG
TO_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


@dataclass(frozen=True)
class SetMeasures:
    """Real against fake of one set of a data set.

    Attributes:
        images: Of each label.
        psnr: Peak signal-to-noise ratio, RGB, in dB, mean over images.
        psnr_luma, psnr_chroma: The same of Y and of Cb and Cr.
        luma_hf: Root mean square of the high frequencies of luma (the image less its Gaussian blur of sigma 1),
            fake over real; below 1 the fakes are blurred.
        chroma_hf: The same of Cb and Cr.
        real_bytes, fake_bytes: Mean size of a file.
        formats: File endings of reals and of fakes.
    """

    images: int
    psnr: float
    psnr_luma: float
    psnr_chroma: float
    luma_hf: float
    chroma_hf: float
    real_bytes: float
    fake_bytes: float
    formats: str


MEASURES = tuple(field.name for field in fields(SetMeasures))


def measure_set(folder: Path) -> SetMeasures:
    """Measure `<folder>/{0_real,1_fake}`, whose files correspond by name.

    Raises:
        UserError: A fake without its real.
    """
    # hidden: temporary files that a killed process has left
    fakes = sorted(path for path in (folder / LABEL_FOLDERS[1]).iterdir() if not path.name.startswith("."))
    energies = np.zeros((2, 3))
    psnrs = np.zeros(3)
    sizes = np.zeros(2)
    formats: tuple[set[str], set[str]] = (set(), set())
    for path in fakes:
        pair = (folder / LABEL_FOLDERS[0] / path.name, path)
        if not pair[0].is_file():
            raise UserError(f"{path} has no real beside it: make the data set anew")
        real, fake = (decode_image(file).astype(np.float64) for file in pair)
        for label, (file, image) in enumerate(zip(pair, (real, fake), strict=True)):
            energies[label] += high_frequency_energy(image)
            sizes[label] += file.stat().st_size
            formats[label].add(file.suffix.lstrip("."))
        errors = ((fake - real) @ TO_YCBCR.T) ** 2
        psnrs += [_psnr(((fake - real) ** 2).mean()), _psnr(errors[..., 0].mean()), _psnr(errors[..., 1:].mean())]
    number = max(1, len(fakes))
    luma_hf = float(np.sqrt(energies[1, 0] / max(energies[0, 0], 1e-12)))
    chroma_hf = float(np.sqrt(energies[1, 1:].sum() / max(energies[0, 1:].sum(), 1e-12)))
    psnr, psnr_luma, psnr_chroma = (psnrs / number).tolist()
    real_bytes, fake_bytes = (sizes / number).tolist()
    endings = "/".join("+".join(sorted(names)) for names in formats)
    return SetMeasures(len(fakes), psnr, psnr_luma, psnr_chroma, luma_hf, chroma_hf, real_bytes, fake_bytes, endings)


def high_frequency_energy(image: np.ndarray) -> np.ndarray:
    """Mean square of Y, Cb and Cr of (H, W, 3) after a high-pass filter: (3,), in squared grey levels."""
    planes = np.asarray(image, dtype=np.float64) @ TO_YCBCR.T
    return ((planes - gaussian_filter(planes, (1.0, 1.0, 0.0))) ** 2).mean(axis=(0, 1))


def _psnr(mean_square: float) -> float:
    # equal images, up to the rounding of 8 bits
    return float(10.0 * np.log10(255.0**2 / max(mean_square, 1.0 / 12.0)))
