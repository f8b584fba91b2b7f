"""Activation rankings and LRP-max patches against the published implementation."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lrp_networks import largest_pixels

from detectors.detector import Detector, load_detector
from fmap_ranking.names import FeatureMap, parse_key
from images.decoding import Crop, decode_image
from images.sets import ImageSet, find_image_set
from lrp import Explainer
from passes.one_pass import run_pass
from passes.shared_forward import SharedForward
from patch_extraction.activations import MaxActivations, RankedImages, TopActivations
from patch_extraction.patches import PatchCollector, Wanted, wanted_patches
from utils.boxes import bounding_box

ARCHITECTURES = ("resnet50", "efb0")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def detector(request: pytest.FixtureRequest, golden_weights: Callable[[str], Path]) -> Detector:
    return load_detector(request.param, golden_weights(request.param), "cpu")


@pytest.fixture(scope="module")
def fakes(shared_dir: Path) -> ImageSet:
    return find_image_set(shared_dir / "forensynths_sample", "cyclegan", labels=(1,))


@pytest.fixture(scope="module")
def patches(detector: Detector, shared_dir: Path) -> list[dict]:
    golden = shared_dir / "reference" / "golden"
    names = (f"lrpmax_{detector.arch}_cyclegan.json", f"lrpmax_deep_{detector.arch}_cyclegan.json")
    return [entry for name in names for entry in json.loads((golden / name).read_text())]


def rankings(detector: Detector, fakes: ImageSet, maps: list[FeatureMap]) -> RankedImages:
    """Complete rankings; the best five of a bounded collector in the same pass must be their head."""
    forward = SharedForward(detector)
    full, top = MaxActivations(forward, maps, fakes), TopActivations(forward, maps, fakes, 5)
    run_pass(fakes, {"full": full, "top": top}, device=detector.device, batch_size=10, crop=Crop("none"))
    for fmap in maps:
        assert top.result().of(fmap) == full.result().of(fmap, 5)
    return full.result()


@pytest.fixture(scope="module")
def ranked(detector: Detector, fakes: ImageSet, shared_dir: Path, patches: list[dict]) -> RankedImages:
    keys = (shared_dir / f"reference/golden/ffrs_{detector.arch}_fake.csv").read_text().splitlines()[1:11]
    of_patches = [parse_key(entry["feature_map"]) for entry in patches]
    maps = list(dict.fromkeys([parse_key(line.rsplit(",", 1)[0]) for line in keys] + of_patches))
    return rankings(detector, fakes, maps)


def test_activation_rankings(detector: Detector, ranked: RankedImages, shared_dir: Path) -> None:
    expected: dict[str, list[tuple[str, float]]] = {}
    with (shared_dir / f"reference/golden/activation_rankings_{detector.arch}_cyclegan.csv").open() as file:
        for row in csv.DictReader(file):
            expected.setdefault(row["feature_map"], []).append((row["name"], float(row["max_act"])))
    assert len(expected) == 10
    for key, rows in expected.items():
        ours = ranked.of(parse_key(key))
        assert [image.name for image in ours] == [name for name, _ in rows]
        values = [image.max_act for image in ours]
        np.testing.assert_allclose(values, [value for _, value in rows], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def explainer(detector: Detector) -> Explainer:
    return detector.explainer(published=True)


def test_boxes(
    detector: Detector, explainer: Explainer, ranked: RankedImages, fakes: ImageSet, patches: list[dict]
) -> None:
    maps = list(dict.fromkeys(parse_key(entry["feature_map"]) for entry in patches))
    wanted = wanted_patches(ranked, maps, 5)
    used = {patch.name for patch in wanted}
    cut: dict[tuple[int, int], np.ndarray] = {}

    def keep_patch(patch: Wanted, picture: np.ndarray) -> int:
        cut[patch.row, patch.rank] = picture
        return 0

    collector = PatchCollector(
        explainer,
        SharedForward(detector),
        maps,
        wanted,
        keep_patch=keep_patch,
        keep_image=lambda *_: 0,
        batch_size=4,
    )
    images = fakes.subset(position for position, item in enumerate(fakes.items) if item.name in used)
    run_pass(images, {"patches": collector}, device=detector.device, batch_size=8, crop=Crop("none"))
    found = {(maps[made.wanted.row].key, made.wanted.rank): made for made in collector.result()}
    assert len(found) == len(patches) == 25
    for entry in patches:
        made = found[entry["feature_map"], entry["rank"]]
        numbers = made.patch
        assert numbers.path == entry["name"]
        assert numbers.max_act == pytest.approx(entry["max_act"], abs=1e-4)
        # The published code reads the value before its neutralised batch norm, which divides by sqrt(1 + eps).
        assert numbers.start_value == pytest.approx(entry["z_printed"], abs=6e-4 + 6e-4 * entry["z_printed"])
        box = entry["box_x_min_x_max_y_min_y_max"]
        assert [numbers.row_min, numbers.row_max, numbers.col_min, numbers.col_max] == box
        assert cut[made.wanted.row, made.wanted.rank].shape[:2] == (box[1] - box[0], box[3] - box[2])
        assert numbers.relevance_max == pytest.approx(entry["R_scale"], rel=2e-4)
        assert numbers.relevance_sum == pytest.approx(entry["R_sum"], rel=2e-4)


def test_relevance_maps(detector: Detector, explainer: Explainer, shared_dir: Path, patches: list[dict]) -> None:
    folder = shared_dir / "reference/golden"
    names = (f"lrpmax_maps_{detector.arch}_cyclegan.npz", f"lrpmax_deep_maps_{detector.arch}_cyclegan.npz")
    arrays = []
    for name in names:
        with np.load(folder / name) as file:
            arrays.append(file["R_over_scale"].astype(np.float32))
    expected = np.concatenate(arrays)
    for entry, golden in list(zip(patches, expected, strict=True))[::2]:
        fmap = parse_key(entry["feature_map"])
        image = torch.from_numpy(decode_image(shared_dir / "forensynths_sample" / entry["name"])).permute(2, 0, 1)
        relevance, _, _ = largest_pixels(explainer, detector.inputs(image[None]), fmap.layer, [fmap.index])
        pixels = relevance[0].sum(0).numpy()
        scaled = pixels / np.abs(pixels).max()
        # Half of 2 ** -11 is what float16 leaves on average; the rest would be ours.
        assert np.abs(scaled - golden).sum() < 4e-4 * np.abs(golden).sum()
        box = bounding_box(pixels)
        assert [box.row_min, box.row_max, box.col_min, box.col_max] == entry["box_x_min_x_max_y_min_y_max"]
