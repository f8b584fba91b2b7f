"""Heat maps against the published rendering, both signs on one scale, and maps that have nothing to show."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import LinearSegmentedColormap

from utils.heatmaps import LOOKS, HeatMap, Look, colour_table, overlay, overlay_signed, render_heatmap, render_signed


@pytest.mark.parametrize("arch", ["resnet50", "efb0"])
def test_published_rendering(arch: str, shared_dir: Path) -> None:
    golden = shared_dir / "reference" / "golden"
    with np.load(golden / f"lrp_input_{arch}.npz") as file:
        relevance = file["R_input_beta0"]
    with np.load(golden / f"lrp_overlay_{arch}.npz") as expected:
        for i, one in enumerate(relevance):
            heat = render_heatmap(one)
            np.testing.assert_allclose(heat.strength, expected["blurred"][i], atol=1e-6)
            np.testing.assert_array_equal(heat.rgb, expected["heat_rgb"][i])
            np.testing.assert_array_equal(overlay(expected["image_rgb"][i], heat), expected["overlay_rgb"][i])


def test_colours_are_those_of_matplotlib() -> None:
    reference = LinearSegmentedColormap.from_list("", ["#000000", "#ffc300", "#ffaa00"], N=256)
    np.testing.assert_array_equal(colour_table(), reference(np.arange(256), bytes=True)[:, :3])


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_map_without_positive_relevance_is_black(value: float) -> None:
    heat = render_heatmap(np.full((6, 7), value))
    assert not heat.rgb.any()
    image = np.full((6, 7, 3), 200, np.uint8)
    np.testing.assert_array_equal(overlay(image, heat), np.full((6, 7, 3), 90, np.uint8))


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (32, 24)])
def test_rendering_does_not_depend_on_scale(look: Look, scale: float, shape: tuple[int, int]) -> None:
    relevance = np.random.default_rng(1).uniform(0.5, 1, shape)
    reference, scaled = look.render(relevance), look.render(relevance * scale)
    np.testing.assert_allclose(scaled.strength, reference.strength, rtol=1e-5)
    assert 0 < scaled.strength.max() <= 1


def signed_map() -> np.ndarray:
    relevance = np.random.default_rng(2).normal(0, 0.01, (64, 96))
    relevance[10:20, 10:20] += 1.0
    relevance[40:50, 60:70] -= 0.5
    return relevance


def test_signed_look_is_symmetric() -> None:
    heat, opposite = render_signed(signed_map()), render_signed(-signed_map())
    np.testing.assert_allclose(opposite.strength, -heat.strength, atol=1e-6)
    # one scale for both: half the relevance is half the strength
    assert heat.strength.max() == 1
    assert heat.strength[45, 65] == pytest.approx(-0.5, abs=0.05)


def test_signed_look_is_orange_for_and_purple_against_and_the_image_elsewhere() -> None:
    heat = render_signed(signed_map())
    red, green, blue = heat.rgb[15, 15].astype(int)
    assert red > green > blue
    red, green, blue = heat.rgb[45, 65].astype(int)
    assert blue > red > green
    image = np.random.default_rng(3).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    picture = overlay_signed(image, HeatMap(np.zeros((64, 96), np.float32), heat.rgb)).astype(int)
    assert (np.ptp(picture, axis=2) == 0).all()
    luminance = image @ [0.299, 0.587, 0.114]
    assert np.corrcoef(picture[..., 0].ravel(), luminance.ravel())[0, 1] > 0.99
    np.testing.assert_array_equal(overlay_signed(image, heat)[15, 15], heat.rgb[15, 15])


def test_one_strong_pixel_does_not_hide_the_rest() -> None:
    relevance = np.zeros((128, 128))
    relevance[30:90, 30:90] = 1
    relevance[5, 5] = 1000
    assert render_signed(relevance).strength[60, 60] > 0.5
    assert render_heatmap(relevance).strength[60, 60] < 0.01


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_signed_map_of_one_value_has_full_colour(value: float) -> None:
    heat = render_signed(np.full((6, 7), value))
    assert (heat.strength == np.sign(value)).all()


def test_grid_of_dots_is_smoothed() -> None:
    relevance = np.zeros((256, 256))
    relevance[::4, ::4] = 1
    inner = render_signed(relevance).strength[32:-32, 32:-32]
    assert inner.min() > 0.5 * inner.max()


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("relevance", [np.zeros((2, 2, 3)), np.array([[np.nan, 1.0]])])
def test_refused_maps(look: Look, relevance: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite"):
        look.render(relevance)


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_overlay_refuses_another_size(look: Look) -> None:
    with pytest.raises(ValueError, match="uint8 image"):
        look.overlay(np.zeros((4, 5, 3), np.uint8), look.render(np.ones((5, 4))))


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_colour_bar_runs_from_the_least_to_the_greatest_strength(look: Look) -> None:
    _, bar, _ = look.legend(width=100, height=3)
    assert bar.shape == (3, 100, 3)
    np.testing.assert_array_equal(bar[0, [0, -1]], look.colours(np.array(look.scale)))
