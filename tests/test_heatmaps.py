"""Heat maps against the published rendering, and maps that have nothing to show."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import LinearSegmentedColormap

from utils.heatmaps import colour_table, overlay, render_heatmap


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
            assert not heat.empty


def test_colours_are_those_of_matplotlib() -> None:
    reference = LinearSegmentedColormap.from_list("", ["#000000", "#ffc300", "#ffaa00"], N=256)
    np.testing.assert_array_equal(colour_table(), reference(np.arange(256), bytes=True)[:, :3])


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_map_without_positive_relevance_is_black_and_says_so(value: float) -> None:
    heat = render_heatmap(np.full((6, 7), value))
    assert heat.empty
    assert not heat.rgb.any()
    image = np.full((6, 7, 3), 200, np.uint8)
    np.testing.assert_array_equal(overlay(image, heat), np.full((6, 7, 3), 90, np.uint8))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (32, 24)])
def test_rendering_does_not_depend_on_scale(scale: float, shape: tuple[int, int]) -> None:
    relevance = np.random.default_rng(1).uniform(0.5, 1, shape)
    reference, scaled = render_heatmap(relevance), render_heatmap(relevance * scale)
    np.testing.assert_allclose(scaled.strength, reference.strength, rtol=1e-5)
    assert 0 < scaled.strength.max() <= 1


def test_percentile_saturates_the_strongest_relevance() -> None:
    relevance = np.arange(400.0).reshape(20, 20)
    half = render_heatmap(relevance, percentile=50)
    assert (half.strength[12:] == 1).all()
    assert (half.strength >= render_heatmap(relevance).strength).all()
    sparse = np.zeros((20, 20))
    sparse[5:10, 5:10] = 3
    np.testing.assert_array_equal(render_heatmap(sparse, percentile=50).rgb, render_heatmap(sparse).rgb)


@pytest.mark.parametrize("relevance", [np.zeros((2, 2, 3)), np.array([[np.nan, 1.0]])])
def test_refused_maps(relevance: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite"):
        render_heatmap(relevance)


def test_overlay_refuses_another_size() -> None:
    with pytest.raises(ValueError, match="uint8 image"):
        overlay(np.zeros((4, 5, 3), np.uint8), render_heatmap(np.ones((5, 4))))
