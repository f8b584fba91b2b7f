"""Figures and contact sheets: same bytes every time, nothing half-written, no settings left behind."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from utils.figures import FAKE, REAL, new_figure, save_figure, save_picture
from utils.pictures import ContactSheets, picture_grid, save_grid

DRAW = """
import sys
from pathlib import Path
from utils.figures import REAL, new_figure, save_figure
figure, axes = new_figure(4, 3)
axes.plot([1, 2, 3], [2, 1, 3], color=REAL, label="layer4.0.conv1.#3")
axes.fill_between([1, 2, 3], [0, 0, 0], [2, 1, 3], alpha=0.3)
axes.set_title("FF-RS \\u03c9")
axes.legend()
save_figure(figure, Path(sys.argv[1]), ("png", "pdf", "svg"))
"""


def test_equal_figures_give_equal_bytes_in_another_process(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "SOURCE_DATE_EPOCH": ""}
        environment.pop("SOURCE_DATE_EPOCH")
        subprocess.run([sys.executable, "-c", DRAW, str(tmp_path / seed)], check=True, env=environment)
    for name in ("png", "pdf", "svg"):
        first, second = ((tmp_path / f"{seed}.{name}").read_bytes() for seed in ("1", "2"))
        assert len(first) > 1000
        assert first == second, name


@pytest.mark.usefixtures("pdf_too")
def test_dots_in_the_name_are_kept(tmp_path: Path) -> None:
    paths = save_figure(new_figure(1, 1)[0], tmp_path / "new" / "blur_jpg_prob0.5")
    assert [path.name for path in paths] == ["blur_jpg_prob0.5.png", "blur_jpg_prob0.5.pdf"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)


def test_style_stays_inside_and_figures_are_unknown_to_pyplot(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    figure, axes = new_figure(3, 2, 1, 2, sharey=True)
    save_figure(figure, tmp_path / "f", ("png",))
    assert dict(mpl.rcParams) == before
    assert axes.shape == (2,)
    assert not axes[0].spines["top"].get_visible()
    assert REAL != FAKE


def test_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.png"
    path.write_bytes(b"old")
    figure, axes = new_figure(1, 1)
    axes.set_title(r"$\undefinedcommand$")
    with pytest.raises(ValueError, match="undefinedcommand"):
        save_figure(figure, tmp_path / "f", ("png",))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.png"]


def test_picture_round_trip(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    save_picture(tmp_path / "p.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "p.png")), picture)


def entries(count: int) -> list[tuple[list[np.ndarray], list[str]]]:
    shapes = [(8, 8, 3), (30, 600, 3), (500, 20, 3), (1, 1, 3)]
    return [
        ([np.full(shapes[i % 4], i, np.uint8)] * 2, [f"folder/image {i}.png", "real \u00b7 p(fake) = 0.123"])
        for i in range(count)
    ]


def write_sheets(stem: Path, count: int, title: str = "title") -> list[Path]:
    sheets = ContactSheets(stem, columns=3, rows=2, title=title)
    for pictures, caption in entries(count):
        sheets.add(pictures, caption)
    return sheets.finish()


@pytest.mark.parametrize(("count", "pages"), [(0, 0), (1, 1), (6, 1), (7, 2), (13, 3)])
def test_pages(tmp_path: Path, count: int, pages: int) -> None:
    paths = write_sheets(tmp_path / "sheet", count)
    assert paths == [tmp_path / f"sheet_{page:03d}.png" for page in range(1, pages + 1)]
    assert all(path.exists() for path in paths)


def test_shorter_run_removes_the_pages_of_a_longer_one(tmp_path: Path) -> None:
    (tmp_path / "sheet_old.png").write_bytes(b"someone else's")
    write_sheets(tmp_path / "sheet", 13)
    write_sheets(tmp_path / "sheet", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sheet_001.png", "sheet_old.png"]


def test_pictures_lie_where_they_should_and_captions_are_drawn(tmp_path: Path) -> None:
    red, green = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)
    red[..., 0], green[..., 1] = 255, 255
    blank, written = (ContactSheets(tmp_path / name, columns=1) for name in ("blank", "written"))
    blank.add([red, green], [])
    written.add([red, green], ["a name", "p(fake) = 0.5"])
    without, page = (np.asarray(Image.open(sheets.finish()[0])).astype(int) for sheets in (blank, written))
    reds, greens = (np.argwhere((page == colour).all(-1)) for colour in ((255, 0, 0), (0, 255, 0)))
    assert len(reds) == len(greens) == 256 * 256
    assert reds[:, 1].max() < greens[:, 1].min()
    changed = np.argwhere((page != without).any(-1))
    assert len(changed) > 200
    assert changed[:, 0].min() > reds[:, 0].max()


def test_names_of_any_kind_can_be_written(tmp_path: Path) -> None:
    sheets = ContactSheets(tmp_path / "sheet", title="t" * 500)
    for name in ("x" * 300, "\udcff\udc80.png", "line\nbreak", "\u753b\u50cf.png", ""):
        sheets.add([np.zeros((4, 4, 3), np.uint8)] * 2, [name])
    assert len(sheets.finish()) == 1


def test_long_titles_go_on_in_another_line(tmp_path: Path) -> None:
    heights = []
    for title in ("word", "word " * 20, "word " * 60):
        sheets = ContactSheets(tmp_path / "sheet", title=title)
        sheets.add([np.zeros((4, 4, 3), np.uint8)] * 2, ["name"])
        heights.append(Image.open(sheets.finish()[0]).height)
    assert heights[0] < heights[1] < heights[2]


def test_sheets_refuse_another_number_of_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 2 pictures"):
        ContactSheets(tmp_path / "sheet").add([np.zeros((4, 4, 3), np.uint8)], ["one"])


def colour(red: int, green: int, blue: int, shape: tuple[int, int] = (4, 4)) -> np.ndarray:
    return np.full((*shape, 3), (red, green, blue), np.uint8)


def test_a_grid_places_pictures_in_rows_and_columns(tmp_path: Path) -> None:
    colours = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 0, 255)]]
    rows = [[colour(*one) for one in row] for row in colours]
    texts = {
        "bare": {},
        "labels": {"labels": [["first", "second line"], ["b"]]},
        "heads": {"heads": ["left", "right"], "title": "A title", "note": "a note"},
        "captions": {"captions": [[["under"], ["more", "lines"]], []]},
    }
    corners = {}
    for name, more in texts.items():
        (path,) = save_grid(picture_grid(rows, **more), tmp_path / name, ("png",))  # type: ignore[arg-type]
        page = np.asarray(Image.open(path)).astype(int)
        assert page.shape[2] == 3
        found = {one: np.argwhere((page == one).all(-1)) for row in colours for one in row}
        assert {len(places) for places in found.values()} == {256 * 256}
        corners[name] = np.array([[found[one].min(0) for one in row] for row in colours])
    for places in corners.values():
        assert (places[0, :, 0] + 256 <= places[1, :, 0]).all()
        assert (places[:, 0, 1] + 256 <= places[:, 1, 1]).all()
    # labels make room at the left, heads above, captions between the rows
    assert (corners["labels"] - corners["bare"])[..., 1].min() > 50
    assert (corners["heads"] - corners["bare"])[..., 0].min() > 50
    assert (corners["captions"] - corners["bare"])[1, :, 0].min() > 50


def test_pictures_keep_their_shape_in_a_grid(tmp_path: Path) -> None:
    save_grid(picture_grid([[colour(255, 0, 0, (8, 4)), colour(0, 0, 255, (300, 600))]]), tmp_path / "grid", ("png",))
    page = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    for one, shape in (((255, 0, 0), (256, 128)), ((0, 0, 255), (128, 256))):
        places = np.argwhere((page == one).all(-1))
        assert tuple(places.max(0) - places.min(0) + 1) == shape


@pytest.mark.usefixtures("pdf_too")
def test_grids_are_reproducible(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    written = [
        [path.read_bytes() for path in save_grid(picture_grid([[noise]], title="$x^2$"), tmp_path / name)]
        for name in ("a", "b")
    ]
    assert len(written[0]) == 2
    assert written[0] == written[1]
