"""Spectra as input: the logarithm of the discrete cosine transform of the grey image, each coefficient normalised."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.fft import dctn
from torch import Tensor

from images.distortions import to_grayscale
from utils.errors import UserError
from utils.files import read_npy, write_npy

_LEAST = 1e-12  # so that the logarithm of a coefficient that is zero stays finite
_FILES = ("mean", "std_dev", "variance")


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of every coefficient over a training set, (H, W) float64 each."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> Statistics:
        """From `mean.npy` and `std_dev.npy`, as published.

        Raises:
            UserError: A file is missing, or no map of finite numbers, or they differ in shape.
        """
        mean, std = (_read_map(folder / f"{name}.npy") for name in _FILES[:2])
        if mean.shape != std.shape:
            raise UserError(f"{folder}: mean.npy is {mean.shape} and std_dev.npy {std.shape}: give those of one set")
        if (std <= 0).any():
            raise UserError(f"{folder / 'std_dev.npy'} has values that are not positive: make it anew")
        return cls(mean, std)

    @classmethod
    def given(cls, folder: Path | None) -> Statistics | None:
        """As `read`, if a folder is named."""
        return None if folder is None else cls.read(folder)

    def normalised(self, values: np.ndarray) -> np.ndarray:
        """Log spectra (..., H, W), in their own precision."""
        return np.asarray((values - self.mean.astype(values.dtype)) / self.std.astype(values.dtype))

    def write(self, folder: Path) -> list[Path]:
        """Write `mean.npy`, `std_dev.npy` and `variance.npy` into a folder."""
        paths = [folder / f"{name}.npy" for name in _FILES]
        for path, values in zip(paths, (self.mean, self.std, self.std**2), strict=True):
            write_npy(path, values)
        return paths


def _read_map(path: Path) -> np.ndarray:
    values = read_npy(path)
    if values.ndim != 2 or values.dtype.kind != "f" or not np.isfinite(values).all():
        raise UserError(f"{path} is no map (H, W) of finite numbers: make it anew")
    return values.astype(np.float64)


def spectrum(grey: np.ndarray, *, single_precision: bool = False) -> np.ndarray:
    """Orthonormal DCT II of uint8 (..., H, W) along rows and columns; arguments as of `log_spectrum`."""
    pixels = grey.astype(np.float32 if single_precision else np.float64)
    return np.asarray(dctn(pixels, type=2, norm="ortho", axes=(-2, -1)))


def log_spectrum(grey: np.ndarray, *, single_precision: bool = False) -> np.ndarray:
    """ln(|DCT| + 1e-12) of uint8 (..., H, W).

    Args:
        grey: Images.
        single_precision: Compute in float32 as the published `run_classifier.py`; otherwise in float64.
    """
    return np.asarray(np.log(np.abs(spectrum(grey, single_precision=single_precision)) + _LEAST))


def spectrum_statistics(grey_images: Iterable[np.ndarray]) -> Statistics:
    """Mean and population standard deviation of log spectra, in one pass (Welford).

    Raises:
        UserError: There is no image, or a coefficient is the same in all.
    """
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for grey in grey_images:
        values = log_spectrum(grey)
        count += 1
        delta = values - mean
        mean = mean + delta / count
        squares = squares + delta * (values - mean)
    if not count or not (squares > 0).all():
        raise UserError("no statistics of spectra without images that differ in every coefficient: give more of them")
    return Statistics(mean, np.sqrt(squares / count))


@dataclass(frozen=True, eq=False)
class LogSpectrum:
    """Normalised log spectra as the input of a network.

    Attributes:
        statistics: Of the training set; None: not normalised.
        single_precision: As `log_spectrum`.
    """

    statistics: Statistics | None
    single_precision: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) uint8 to (N, 1, H, W) float32, on the same device."""
        grey = to_grayscale(images)[:, 0].cpu().numpy()
        values = log_spectrum(grey, single_precision=self.single_precision)
        if self.statistics is not None:
            values = self.statistics.normalised(values)
        return torch.from_numpy(values.astype(np.float32))[:, None].to(images.device)
