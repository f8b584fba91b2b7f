"""House style of all figures, and saving figures and pictures with reproducible bytes."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from utils.files import atomic_path, write_bytes

# Okabe and Ito's palette, told apart by colour-blind readers too
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
VERMILLION = "#D55E00"
SKY = "#56B4E9"
PURPLE = "#CC79A7"
YELLOW = "#F0E442"
BLACK = "#000000"
GREY = "#7F7F7F"
PALETTE = (BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, YELLOW, BLACK)

REAL = BLUE
FAKE = VERMILLION

_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "tff",
}

# the creation date and the program's version would change the bytes of equal figures
PDF_METADATA: dict[str, None] = {"CreationDate": None, "Creator": None, "Producer": None}
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": PDF_METADATA,
    "svg": {"Date": None, "Creator": None},
}


_formats: ContextVar[tuple[str, ...]] = ContextVar("formats of figures", default=("png", "pdf"))


def chosen_formats() -> tuple[str, ...]:
    """The formats that figures are saved in: PNG and PDF, unless `figure_formats` says otherwise."""
    return _formats.get()


@contextmanager
def figure_formats(*formats: str) -> Iterator[None]:
    """Save figures inside the `with` in these formats only; embedding fonts makes a PDF five times as slow as a PNG."""
    token = _formats.set(formats)
    try:
        yield
    finally:
        _formats.reset(token)


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib settings of the project, in force inside the `with` only."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)  # type: ignore[arg-type]
        yield


def new_figure(
    width: float = 6.4, height: float = 4.0, rows: int = 1, columns: int = 1, **subplots: Any
) -> tuple[Figure, Any]:
    """An empty figure in the house style, off screen and unknown to pyplot.

    Args:
        width, height: size in inches.
        rows, columns: grid of axes.
        subplots: passed on to `Figure.subplots` (`sharex`, `squeeze`, `width_ratios`, ...).

    Returns:
        The figure, and its axes: one, or an array as `Figure.subplots` gives it.
    """
    with house_style():
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, **subplots)


def save_figure(figure: Figure, stem: Path, formats: Sequence[str] | None = None) -> list[Path]:
    """Write `<stem>.<format>` for every format, each atomically; equal figures give equal bytes.

    Args:
        figure: figure of `new_figure`.
        stem: path without the format's suffix; dots in the name (`blur_jpg_prob0.5`) are kept.
        formats: out of `png`, `pdf`, `svg`; absent: `chosen_formats()`.

    Returns:
        The paths written, in the order of `formats`.
    """
    paths = []
    for name in chosen_formats() if formats is None else formats:
        path = stem.with_name(f"{stem.name}.{name}")
        with house_style(), atomic_path(path) as temporary:
            if name == "png":
                _save_png(figure, temporary)
            else:
                figure.savefig(temporary, format=name, metadata=_METADATA[name])
        paths.append(path)
    return paths


def _save_png(figure: Figure, path: Path) -> None:
    """What `Figure.savefig` writes, without its first drawing, which does no more than to start the layout."""
    layout, dpi = figure.get_layout_engine(), figure.dpi
    figure.dpi = mpl.rcParams["savefig.dpi"]
    if layout is not None:
        layout.execute(figure)
    figure.set_layout_engine("none")
    try:
        FigureCanvasAgg(figure).print_png(path, metadata=_METADATA["png"])
    finally:
        figure.set_layout_engine(layout)
        figure.dpi = dpi


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write a uint8 (H, W, 3) RGB or (H, W) grey picture as PNG, atomically."""
    write_bytes(path, png_bytes(picture))


def png_bytes(picture: np.ndarray) -> bytes:
    """A uint8 (H, W, 3) RGB or (H, W) grey picture as PNG, compressed little: half the time for 6 % more bytes."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG", compress_level=1)
    return file.getvalue()
