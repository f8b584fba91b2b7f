"""Patch classifiers as published: goldens of every part, and the scripts from end to end on small images."""

from __future__ import annotations

import csv
import hashlib
import shutil
import signal
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from patch_goldens import PatchGoldens
from patch_sets import write_patch_images
from PIL import Image
from ranking_runs import Scripts, contents

import cr_ud.trainer
from detectors.detector import Detector
from detectors.networks import get_architecture
from detectors.patch_networks import HALF, PREFIX, build_patch_network
from evaluation.scores import read_scores
from images.decoding import Crop, decode_image
from images.loading import iterate_batches, plan_batches
from images.sets import ImageSet, find_image_pair
from passes.one_pass import PassBatch, run_pass
from passes.shared_forward import SharedForward
from patch_forensics.alterations import (
    PatchTransform,
    PublishedCrop,
    brightness_contrast,
    equalise,
    jpeg_of_swapped,
    power,
)
from patch_forensics.averages import AVERAGES, FILES, MapCollector, averaged, order_of
from patch_forensics.clusters import position_group, shown_label
from patch_forensics.experiments import EXPERIMENTS, KNOWN, experiment_flags, with_experiment
from patch_forensics.geometry import geometries
from patch_forensics.options import PatchTraining
from patch_forensics.overlays import blurred, combined_picture, notebook_overlay, scaled
from patch_forensics.patch_page import write_lightbox, write_page
from patch_forensics.patch_task import PatchTask, PatienceSchedule
from patch_forensics.tables import GROUPS
from patch_forensics.top_patches import TopPatchCollector, tiled
from patch_forensics.trained import run_name
from patch_forensics.training import PublishedOrder
from utils.errors import UserError
from utils.settings import read_settings

TESTED = ["--which_epoch", "bestval", "--partition", "test", "--dataset_name", "set", "--results_dir", "out"]


@pytest.fixture(scope="module")
def goldens(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> PatchGoldens:
    return PatchGoldens(shared_dir, tmp_path_factory.mktemp("patch_runs"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patch_images(tmp_path_factory.mktemp("patch_images"))


def sample(shared_dir: Path) -> list[object]:
    folder = shared_dir / "forensynths_sample" / "cyclegan"
    return ["--real_im_path", folder / "0_real", "--fake_im_path", folder / "1_fake"]


def of(folder: Path, part: str = "val") -> list[object]:
    return ["--real_im_path", folder / "real" / part, "--fake_im_path", folder / "fake" / part]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# the published code


def test_images_are_read_as_published(goldens: PatchGoldens, shared_dir: Path) -> None:
    folders = {"real": "0_real", "fake": "1_fake"}
    for entry in goldens.json("transforms"):
        name, _, change = entry["image"].partition(" ")
        kind, file = name.split("/")
        image = decode_image(shared_dir / "forensynths_sample" / "cyclegan" / folders[kind] / file)
        if change.startswith("crop"):
            left, top, right, bottom = map(int, change.removeprefix("crop(").removesuffix(")").split(","))
            image = image[top:bottom, left:right]
        elif change:
            image = np.array(Image.fromarray(image).resize((128, 128), Image.Resampling.LANCZOS))
        side = entry["loadSize"] if entry["model"] == "patch_discriminator" else entry["fineSize"]
        seen = PublishedCrop("center", side, entry["loadSize"], flip=entry["flip"])(image, seed=0, name="")
        assert hashlib.sha256(np.ascontiguousarray(seen).tobytes()).hexdigest() == entry["sha256"]


def test_alterations(goldens: PatchGoldens) -> None:
    golden = goldens.arrays("augment")
    image = golden["image"]
    found = {
        "blur3": PublishedCrop(box=3)(image, seed=0, name=""),
        "jpeg30": jpeg_of_swapped(image, 30),
        "jpeg75": PublishedCrop(quality=75)(image, seed=0, name=""),
        "bc_alpha1.2_beta0.1": brightness_contrast(image, 1.2, 0.1),
        "bc_alpha0.8_beta-0.2": brightness_contrast(image, 0.8, -0.2),
        "gamma0.8": power(image, 0.8),
        "gamma1.2": PublishedCrop(gamma=120)(image, seed=0, name=""),
        "clahe2.5": equalise(image, 2.5),
    }
    for name, picture in found.items():
        np.testing.assert_array_equal(picture, golden[name], err_msg=name)


def test_pictures_of_the_notebooks(goldens: PatchGoldens) -> None:
    golden, maps = goldens.arrays("notebook_overlays"), goldens.arrays("heatmaps_xception_block2")
    for name in ("fakes_easiest", "reals_easiest"):
        heat, image = maps[f"raw_{name}_1"], golden[f"image_{name}"]
        np.testing.assert_allclose(scaled(blurred(heat, 1)), golden[f"blurnorm_sigma1_{name}"], atol=1e-6)
        for sigma in (1, 2):
            picture = notebook_overlay(image, heat, above=name.startswith("reals"), sigma=sigma)
            np.testing.assert_array_equal(picture, golden[f"contour_sigma{sigma}_{name}"])
    both = combined_picture(maps["avg_raw_fakes_easiest"], maps["avg_raw_reals_easiest"], 2)
    np.testing.assert_array_equal(both, golden["bone_combined"])
    cells = tiled(golden["grid_in"][:, :20, :20])
    assert cells.shape == (60, 60, 3)
    assert (cells[40:, 20:] == 255).all()


def test_the_test_script_on_the_sample(goldens: PatchGoldens, shared_dir: Path, scripts: Scripts) -> None:
    network = "resnet18_layer1"
    words = ["--average_mode", "after_softmax", "--visualize", "--topn", 2, "--bootstrap", 20]
    run = scripts("test_patch_forensics", *TESTED, *sample(shared_dir), "--train_config", goldens.run(network), *words)
    assert run.code == 0, run.err
    folder, golden = Path("out", network, "test", "epoch_bestval", "set"), goldens.arrays(f"golden_{network}")
    scores = read_scores(folder / "scores.csv", made_by="")
    assert [
        f"{'real' if label == 0 else 'fake'}/{Path(name).name}"
        for name, label in zip(scores.paths, scores.labels, strict=True)
    ] == (golden["names"].tolist())
    for name in AVERAGES:
        key = FILES[name].removeprefix("metrics_")
        np.testing.assert_allclose(scores.columns[name], golden[f"pred_{key}"][:, 0], atol=1e-5)
    for key in [*(FILES[name].removeprefix("metrics_") for name in AVERAGES), "patch"]:
        with np.load(folder / f"metrics_{key}.npz") as metrics:
            tolerance = 1e-4 if key == "patch" else 1e-6
            assert {name: float(metrics[name]) for name in ("ap", "acc", "n")} == pytest.approx(
                {name: float(golden[f"{name}_{key}"]) for name in ("ap", "acc", "n")}, abs=tolerance
            )
            assert {"precision", "recall", "thresholds"} <= set(metrics)
            if key != "patch":
                np.testing.assert_allclose(metrics["thresholds"], golden[f"pr_thresholds_{key}"], atol=1e-5)
    for group in ("fakes/easiest", "fakes/hardest", "reals/easiest", "reals/hardest"):
        check_group(folder / "vis" / group, goldens.arrays(f"heatmaps_{network}"), group.replace("/", "_"))


def check_group(folder: Path, golden: dict[str, np.ndarray], name: str) -> None:
    lines = [line.split(",") for line in (folder / "preds.txt").read_text().splitlines()]
    for line, known in zip(lines, (str(text).split(",") for text in golden[f"preds_{name}"]), strict=True):
        assert (line[0], Path(line[3]).name) == (known[0], Path(known[3]).name)
        assert [float(line[1]), float(line[2])] == pytest.approx([float(known[1]), float(known[2])], abs=2e-5)
    for rank in (1, 2):
        with np.load(folder / f"{rank:03d}_heatmap_1.npz") as heat:
            np.testing.assert_allclose(heat["heatmap"], golden[f"raw_{name}_{rank}"], atol=2e-5)
    with np.load(folder / "heatmap_avg.npz") as heat:
        np.testing.assert_allclose(heat["heatmap"], golden[f"avg_raw_{name}"], atol=2e-5)
    for file, key in (("001_patch_1", "overlay"), ("001_orig", "orig")):
        if f"{key}_{name}_1" in golden:
            with Image.open(folder / f"{file}.png") as picture:
                gap = np.abs(np.asarray(picture).astype(int) - golden[f"{key}_{name}_1"])
            gap[4:26, :110] = 0 if key == "overlay" else gap[4:26, :110]  # the text, which OpenCV 5 draws otherwise
            assert gap.max() <= 4
            assert (gap > 0).any(axis=2).mean() <= 0.01


def test_whole_images(goldens: PatchGoldens, shared_dir: Path, scripts: Scripts) -> None:
    config = ["--train_config", goldens.run("resnet18")]
    run = scripts("test_patch_forensics", *TESTED, *sample(shared_dir), *config, "--bootstrap", 20)
    assert run.code == 0, run.err
    folder, golden = Path("out/resnet18/test/epoch_bestval/set"), goldens.arrays("golden_resnet18")
    scores = read_scores(folder / "scores.csv", made_by="")
    np.testing.assert_allclose(scores.columns["full"], golden["pred_full"][:, 0], atol=1e-5)
    with np.load(folder / "metrics.npz") as metrics:
        assert float(metrics["ap"]) == pytest.approx(float(golden["ap_full"]), abs=1e-6)
        assert float(metrics["acc"]) == float(golden["acc_full"])
    refused = scripts("test_patch_forensics", *TESTED, *of(shared_dir), *config, "--visualize")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--average_mode" in refused.err


def test_top_patches_of_the_sample(goldens: PatchGoldens, shared_dir: Path, scripts: Scripts) -> None:
    network = "resnet18_layer1"
    config = ["--train_config", goldens.run(network)]
    golden = goldens.arrays(f"patches_{network}")
    for kind, count, words in (("unique", 5, ["--unique"]), ("all", 20, [])):
        run = scripts("extract_top_patches", *TESTED, *sample(shared_dir), *config, "--topn", count, *words)
        assert run.code == 0, run.err
        folder = Path("out", network, "test", "epoch_bestval", "set", f"patches_top{count}")
        for label in ("reals", "fakes"):
            key = f"{label}_{kind}_top{count}"
            with np.load(folder / f"{label}_easiest.npz") as found:
                np.testing.assert_allclose(found["value"], golden[f"value_{key}"], atol=2e-5)
                np.testing.assert_array_equal(found["pos"], golden[f"pos_{key}"])
                sums = found["patch"].sum((1, 2, 3), dtype=np.float64)
                np.testing.assert_allclose(sums, golden[f"patchsum_{key}"], atol=1e-3)
                for name in ("outsize", "rf", "finesize"):
                    np.testing.assert_array_equal(found[name], golden[name])
                if f"patch_{key}" in golden:
                    np.testing.assert_array_equal(found["patch"], golden[f"patch_{key}"])
                    with Image.open(folder / f"{label}_easiest_grid.jpg") as picture:
                        assert np.asarray(picture).shape == tuple(golden[f"gridshape_{key}"])
            files = (folder / f"{label}_easiest_files.txt").read_text().splitlines()
            assert [Path(file).name for file in files] == [Path(file).name for file in golden[f"files_{key}"].tolist()]
    # neither number has taken away the pictures of the other
    assert (folder.parent / "patches_top5" / "fakes_easiest_grid.jpg").is_file()


@pytest.mark.parametrize(("network", "steps"), [("xception_block1", 1), ("resnet18_layer1", 3)])
def test_training_steps(network: str, steps: int, goldens: PatchGoldens) -> None:
    golden, task = goldens.arrays(f"train_{network}"), PatchTask()
    model = build_patch_network(network)
    model.load_state_dict(goldens.state(network))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    inputs, targets = HALF(goldens.inputs(network)), torch.from_numpy(golden["label8"])
    for step in range(steps):
        output = model.train()(inputs)
        losses = task.losses(output, targets)
        numbers = task.summary(task.evidence(output.detach()).numpy(), targets.numpy())
        assert float(losses.detach().mean()) == pytest.approx(golden["loss"][step], abs=1e-4)
        assert numbers["loss"] == pytest.approx(golden["loss"][step], abs=1e-4)
        assert numbers["acc_raw"] == pytest.approx(golden["acc_raw"][step], abs=2e-4)
        assert [numbers["acc_voted"], numbers["acc_avg"]] == [golden["acc_voted"][step], golden["acc_avg"][step]]
        optimizer.zero_grad()
        losses.mean().backward()
        if step == 0:
            norms = {
                name: float(value.grad.norm()) for name, value in model.named_parameters() if value.grad is not None
            }
            known = dict(zip(golden["param_names"].tolist(), golden["grad1_norm"].tolist(), strict=True))
            assert norms == pytest.approx(known, rel=5e-4)
        optimizer.step()


# averages


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (2, 3), (4, 4)]))
def test_averages(seed: int, size: tuple[int, int]) -> None:
    """In 0..1, turned over with the classes (but for ties), the same of one patch, and in any order of patches."""
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (5, *size)))
    found = averaged(logits)
    assert found.shape == (5, len(AVERAGES))
    assert bool(((found >= 0) & (found <= 1)).all())
    torch.testing.assert_close(averaged(-logits), 1 - found)
    torch.testing.assert_close(averaged(logits.flip(1)), found)
    if size == (1, 1):
        torch.testing.assert_close(found[:, 1], found[:, 2])


def test_a_tie_of_a_patch_is_class_0_and_large_logits_stay_finite() -> None:
    assert averaged(torch.zeros(1, 2, 2)).tolist() == [[0.0, 0.5, 0.5]]
    assert averaged(torch.tensor([[[1e4, -1e4, -1e4]]])).tolist() == [[1 / 3, 0.0, 1 / 3]]


def test_order() -> None:
    assert order_of([0.2, 0.9, 0.1, 0.5], 2) == {"hardest": [2, 0], "easiest": [1, 3]}
    assert order_of([0.2], 5) == {"hardest": [0], "easiest": [0]}


# collectors


def small_detector(name: str = "xception_block1") -> Detector:
    torch.manual_seed(2)
    architecture = get_architecture(PREFIX + name)
    return Detector(architecture, architecture.build(1).eval().requires_grad_(False))


def shown(images: ImageSet, make: Callable[[], Any], batch_size: int = 4) -> Any:
    collector = make()
    run_pass(images, {"x": collector}, device=torch.device("cpu"), batch_size=batch_size, crop=Crop("none"))
    return collector


def mixed_sizes(folder: Path) -> ImageSet:
    write_patch_images(folder, ("test",), number=4)
    with Image.open(folder / "fake/test/1.png") as image:
        image.resize((57, 33)).save(folder / "fake/test/1.png")
    return find_image_pair(folder / "real", folder / "fake", "set")


def test_maps_of_any_size(tmp_path: Path) -> None:
    images, forward = mixed_sizes(tmp_path), SharedForward(small_detector())
    whole = shown(images, lambda: MapCollector(forward, images, 0))
    assert len({heat.shape for heat in whole.maps.values()}) == 2
    for position, heat in whole.maps.items():
        np.testing.assert_allclose(averaged(torch.from_numpy(heat)[None])[0], whole.values[position], atol=1e-12)
    other = shown(images, lambda: MapCollector(forward, images, 1))
    np.testing.assert_allclose(other.values, 1 - whole.values)
    halves = [images.subset(range(5)), images.subset(range(5, 8))]
    first = shown(halves[0], lambda: MapCollector(forward, images, 0))
    second = MapCollector(forward, images, 0)
    second.load_state({**whole.state()})
    second.merge(first.state())
    assert all(np.allclose(second.maps[position], whole.maps[position], atol=1e-5) for position in whole.maps)


@pytest.mark.parametrize("unique", [True, False])
def test_top_patches_of_parts_are_those_of_the_whole(unique: bool, small: Path) -> None:
    """Whatever the batches, and merged in any order; ties too, in an image without any texture."""
    images, forward = find_image_pair(small / "real", small / "fake", "set"), SharedForward(small_detector())

    def make() -> TopPatchCollector:
        return TopPatchCollector(forward, images, 6, unique=unique, seed=1)

    whole = shown(images, make, 3)
    halves = [make(), make()]
    for number, half in enumerate(halves):
        plan = plan_batches(images, 3, Crop("none"))[number::2]
        options: dict[str, Any] = {"batch_size": 3, "crop": Crop("none"), "seed": 0, "num_workers": 0, "plan": plan}
        for batch in iterate_batches(images, device=torch.device("cpu"), **options):
            half.update(PassBatch(**vars(batch)))
    merged = make()
    merged.load_state(halves[1].state())
    merged.merge(halves[0].state())
    for label in (0, 1):
        best, parts = whole.best(label), merged.best(label)
        for name, array in best.items():
            np.testing.assert_allclose(parts[name], array, err_msg=name)
        assert list(best["logit"]) == sorted(best["logit"])
        assert len(best["logit"]) == 6
        assert not unique or len(set(best["position"])) == 6


def test_cut_patches_hold_what_a_place_sees() -> None:
    geometry = geometries(small_detector().model)(40, 48)
    image = np.random.default_rng(0).random((40, 48, 3))
    assert geometry.field == 19
    inner = geometry.cut(image, 4, 4, 0.0)
    rows, columns = geometry.span(4, 4)
    np.testing.assert_array_equal(inner, image[rows, columns])
    corner = geometry.cut(image, 0, 0, -1.0)
    assert corner.shape == (19, 19, 3)
    np.testing.assert_array_equal(corner[6:, 6:], image[:13, :13])
    assert (corner[:6] == -1).all()
    with pytest.raises(UserError, match="raise --loadSize"):
        geometries(small_detector("xception_block2").model)(40, 48)


# training


def test_orders_of_pairs(small: Path, tmp_path: Path) -> None:
    images = find_image_pair(small / "real" / "train", small / "fake" / "train", "train")
    fewer = images.subset([*range(5), *range(8, 16)])
    order = PublishedOrder(fewer, 6, seed=3)
    assert order.steps == 3
    pairs = order.positions(0).reshape(-1, 2)
    assert sorted(pairs[:, 1]) == list(range(5, 13))
    assert np.bincount(pairs[:, 0]).tolist() == [2, 2, 2, 1, 1]
    assert all((fake - 5) % 5 == real for real, fake in pairs)
    assert [part.step_size for part in order.micro_batches(0)] == [6, 6, 4]
    assert not np.array_equal(order.positions(1), order.positions(0))
    alike = PublishedOrder(fewer, 6, seed=3, pairs=True)
    assert [part.slots for part in alike.micro_batches(0)] == [(0, 0, 1, 1, 2, 2), (3, 3, 4, 4, 5, 5), (6, 6, 7, 7)]
    assert np.array_equal(alike.positions(0), order.positions(0))
    random = PublishedOrder(fewer, 6, seed=3, any_fake=True)
    assert np.array_equal(random.positions(0).reshape(-1, 2)[:, 0], pairs[:, 0])
    assert not np.array_equal(random.positions(0), order.positions(0))


def test_when_training_ends() -> None:
    def epochs(scores: list[float], **options: Any) -> tuple[int, PatienceSchedule]:
        schedule = PatienceSchedule(1e-3, **options)
        for number, score in enumerate(scores, start=1):
            if schedule.update(score).stop:
                return number, schedule
        return 0, schedule

    assert epochs([0.5, *[0.4] * 20], patience=2)[0] == 12
    assert epochs([1.0, 1.0], patience=2)[0] == 2
    assert epochs([0.1, 0.2, 0.3, 0.4, 0.4], patience=2, max_epochs=1)[0] == 5
    assert epochs([0.5, *[0.4] * 9], patience=2)[1].lr == 1e-3
    schedule = epochs([0.5, *[0.50001] * 4], patience=2, policy="plateau")[1]
    assert schedule.lr == pytest.approx(1e-4)


@pytest.mark.parametrize("words", [[], ["--random_crop"], ["--random_resized_crop"], ["--all_augment"]])
def test_training_images(words: list[str]) -> None:
    folders = ["--real_im_path", "r", "--fake_im_path", "f", "--loadSize", "40", "--fineSize", "32"]
    (options,) = read_settings("", "", PatchTraining, argv=[*folders, *words, "--cnn_detection_augment", "0.5"])
    transform = PatchTransform(options)
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3)).astype(np.uint8)
    made = [transform.training(image, np.random.default_rng(seed), "x") for seed in range(12)]
    again = [transform.training(image, np.random.default_rng(seed), "x") for seed in range(12)]
    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))
    assert {(picture.shape, picture.dtype) for picture in made} == {((32, 32, 3), np.dtype(np.uint8))}
    assert len({picture.tobytes() for picture in made}) > 4
    assert transform.validation(image, np.random.default_rng(0), "x").shape == (40, 40, 3)


def test_training_images_that_are_not_scaled() -> None:
    folders = ["--real_im_path", "r", "--fake_im_path", "f", "--loadSize", "0", "--fineSize", "32"]
    (options,) = read_settings("", "", PatchTraining, argv=[*folders, "--random_crop", "--no_flip"])
    transform = PatchTransform(options)
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3)).astype(np.uint8)
    parts = np.lib.stride_tricks.sliding_window_view(pixels, (32, 32), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    for seed in range(4):
        made = transform.training(pixels, np.random.default_rng(seed), "x")
        assert (parts == made).all(axis=(2, 3, 4)).sum() == 1
    central = transform.validation(pixels, np.random.default_rng(0), "x")
    np.testing.assert_array_equal(central, pixels[9:41, 19:51])
    with pytest.raises(UserError, match=r"x is smaller than the crop of 32.*--fineSize"):
        transform.training(pixels[:31], np.random.default_rng(0), "x")


TRAINED = ["--which_model_netD", "xception_block1", "--loadSize", 40, "--fineSize", 40, "--batch_size", 8, "--no_flip"]
TRAINED += ["--init_type", "kaiming", "--device", "cpu", "--name", "small", "--suffix", "s{seed}", "--patience", 3]


def test_training_learns_and_its_run_is_tested(small: Path, scripts: Scripts) -> None:
    folders = ["--real_im_path", small / "real", "--fake_im_path", small / "fake"]
    run = scripts("train_patch_forensics", *folders, *TRAINED, "--epochs", 12, "--tensorboard")
    assert run.code == 0, run.err
    folder = Path("checkpoints/small_s0")
    epochs = [row for row in table(folder / "log.csv") if row["kind"] == "epoch"]
    assert len(epochs) == 12
    assert float(epochs[-1]["acc_avg"]) >= 0.75
    assert set(torch.load(folder / "bestval_net_D.pth", weights_only=True)) == {"state_dict"}
    assert (folder / "tensorboard").is_dir()
    again = scripts("train_patch_forensics", *folders, *TRAINED, "--epochs", 12)
    assert (again.code, "holds an earlier run" in again.err) == (2, True)

    words = [*of(small), "--train_config", folder / "opt.yml", "--bootstrap", 20]
    visualise = ["--average_mode", "vote", "--visualize", "--topn", 2]
    tested = scripts("test_patch_forensics", *TESTED, *words, *visualise)
    assert tested.code == 0, tested.err
    result = Path("out/small_s0/test/epoch_bestval/set")
    rows = {row["average"]: row for row in table(result / "metrics.csv")}
    assert float(rows["after_softmax"]["ap_fake"]) > 0.7
    assert int(rows["patch"]["n"]) > int(rows["vote"]["n"]) == 16
    before = contents(Path("out"))
    once_more = scripts("test_patch_forensics", *TESTED, *words, *visualise)
    assert "nothing to compute" in once_more.out
    assert contents(Path("out")) == before
    # images of any size as they are
    bare = scripts("test_patch_forensics", *TESTED, *words, "--loadSize", 0, "--name", "bare {}")
    assert bare.code == 0, bare.err
    assert read_scores(Path("out/bare {}/test/epoch_bestval/set/scores.csv"), made_by="").columns["vote"].shape == (16,)
    # the other scripts of the house take the network as any other
    detector = ["--arch", f"{PREFIX}xception_block1", "--weights", folder / "bestval_net_D.pth", "--device", "cpu"]
    sets = Path("sets/mine")
    for kind, label in (("real", "0_real"), ("fake", "1_fake")):
        shutil.copytree(small / kind / "val", sets / label)
    images = ["--dataset_dir", sets.parent, "--gan_name", "mine"]
    evaluated = scripts("evaluate_detector", *detector, *images, "--bootstrap", 10, "--jpeg", 50)
    assert evaluated.code == 0, evaluated.err
    scores = read_scores(Path(f"output/evaluation/{PREFIX}xception_block1_0.5/mine/scores.csv"), made_by="")
    own = read_scores(result / "scores.csv", made_by="")
    np.testing.assert_allclose(scores.columns["rgb"], own.columns["after_softmax"], atol=1e-6)
    confident = ["--images", sets / "1_fake"]
    for script, words in (
        ("rank_fmaps", [*images, "--fake_confidence", 0.5, "--real_confidence", 0.5]),
        ("transfer_sensitivity_analysis", [*images, "--topk", 3, "--draws", 1, "--bootstrap", 10, "--relevances"]),
        ("grayscale_sensitivity_analysis", [*images, "--bootstrap", 10]),
        ("ud_lrp", confident),
        ("gradcam", confident),
    ):
        if words[-1] == "--relevances":
            words.append(next(Path().rglob("fmap_relevances/**/mine-????.csv")))
        done = scripts(script, *detector, *words)
        assert done.code == 0, (script, done.err)


@pytest.mark.parametrize("policy", ["plateau", "cosine"])
def test_a_resumed_training_is_that_of_an_uninterrupted_one(
    policy: str, small: Path, scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = ["--real_im_path", small / "real", "--fake_im_path", small / "fake", "--all_augment"]
    words = [*folders, *TRAINED, "--epochs", 3, "--lr_policy", policy]
    assert scripts("train_patch_forensics", *words).code == 0
    steps = iter([False] * 2 + [True])
    step = cr_ud.trainer.Trainer._step

    def interrupted(trainer: Any, *arguments: Any) -> None:
        step(trainer, *arguments)
        trainer._interrupt.requested = next(steps)

    with monkeypatch.context() as patch:
        patch.setattr(cr_ud.trainer.Trainer, "_step", interrupted)
        stopped = scripts("train_patch_forensics", *words, "--checkpoints_dir", "other")
        assert (stopped.code, "--resume" in stopped.err) == (130, True)
    resumed = scripts("train_patch_forensics", *words, "--checkpoints_dir", "other", "--load_model")
    assert resumed.code == 0, resumed.err
    for name in ("bestval_net_D.pth", "latest_net_D.pth"):
        first, second = (
            torch.load(Path(root, "small_s0", name), weights_only=True) for root in ("checkpoints", "other")
        )
        assert all(torch.equal(first["state_dict"][key], value) for key, value in second["state_dict"].items())


def test_published_experiments() -> None:
    for name in EXPERIMENTS:
        for network in ("xception_block1", "xception_block5", "resnet18", "xception", "resnet18_layer1"):
            (options,) = read_settings("", "", PatchTraining, argv=experiment_flags(name, network))
            assert options.sizes[1] == (224 if "resnet" in network else 299)
            assert options.patience == (50 if network == "xception_block1" else 10)
    words = with_experiment(["--seed", "1", "--config", "gp1b-gan-winversion", "--which_model_netD", "xception_block2"])
    (options,) = read_settings("", "", PatchTraining, argv=[word for word in words if word not in ("--seed", "1")])
    assert (options.random_crop, options.sizes, options.patience) == (True, (333, 299), 20)
    saved = {"seed": 1, "which_model_netD": "xception_block2", "lr_policy": "constant", "patience": 20}
    name = run_name({**saved, "name": options.name, "suffix": options.suffix})
    assert name == "gp1b-gan-winversion_seed1_xception_block2_constant_p20_randcrop"
    # a name that was made before is not made longer
    assert run_name({**saved, "name": name, "suffix": options.suffix}) == name
    assert with_experiment(["--config", "mine.yml"]) == ["--config", "mine.yml"]
    names = {row["name"] for group in GROUPS for row in table(KNOWN / f"{group}.csv")}
    assert names >= {"celeba-gmm", "NT", "ffhq-sgan2"}


# what a user can mend


@pytest.fixture
def refusals(small: Path, scripts: Scripts, tmp_path: Path) -> Callable[..., str]:
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"state_dict": build_patch_network("xception_block2").state_dict()}, folder / "bestval_net_D.pth")
    lines = ["model: patch_discriminator", "which_model_netD: xception_block2", "loadSize: 64", "name: run"]

    def refuse(script: str, *words: object, opt: list[str] = lines, images: list[object] | None = None) -> str:
        (folder / "opt.yml").write_text("\n".join(opt))
        given = of(small) if images is None else images
        run = scripts(script, *TESTED, *given, "--train_config", folder / "opt.yml", *words)
        assert (run.code, run.out) == (2, ""), run
        lines = [line for line in run.err.splitlines() if not line.startswith("warning: ")]
        assert len(lines) == 1, run.err
        return lines[0]

    return refuse


def test_bad_input(refusals: Callable[..., str], small: Path, tmp_path: Path) -> None:
    test, top = "test_patch_forensics", "extract_top_patches"
    assert "no such folder" in refusals(test, images=of(tmp_path))
    (tmp_path / "empty").mkdir()
    empty = ["--real_im_path", small / "real" / "val", "--fake_im_path", tmp_path / "empty"]
    assert str(tmp_path / "empty") in refusals(test, images=empty)
    assert "does not say which_model_netD" in refusals(test, opt=["model: patch_discriminator"])
    other = ["model: patch_discriminator", "which_model_netD: resnet18_layer1", "name: run"]
    assert "looks like patchforensics-xception_block2" in refusals(test, opt=other)
    assert "no-such" in refusals(test, opt=["model: patch_discriminator", "which_model_netD: no-such"])
    assert "is not YAML" in refusals(test, opt=["{"])
    assert "whole numbers" in refusals(test, opt=["which_model_netD: xception_block2", "loadSize: big"])
    for line in ("loadSize: [1]", "loadSize: .inf", "loadSize: -5", "batch_size: 0", "fake_class_id: 7"):
        assert line.partition(":")[0] in refusals(test, opt=["which_model_netD: xception_block2", line])
    assert "model is 'x'" in refusals(test, opt=["model: x", "which_model_netD: xception_block2"])
    assert "weights not found" in refusals(test, "--which_epoch", "latest")
    assert "43x43" in refusals(top, "--loadSize", 32)
    assert "43x43" in refusals(top, "--loadSize", 0)
    assert "43x43" in refusals(test, "--loadSize", 0)
    assert "not a plain name" in refusals(test, "--dataset_name", "a/b")


def test_bad_training(small: Path, scripts: Scripts, tmp_path: Path) -> None:
    folders = ["--real_im_path", small / "real", "--fake_im_path", small / "fake"]
    for words, said in (
        (["--batch_size", 7], "even number"),
        (["--loadSize", 20, "--fineSize", 30], "less than --fineSize"),
        (["--random_crop", "--random_resized_crop"], "exclude each other"),
        (["--which_model_netD", "xception_block99"], "xception_block99"),
        (["--fake_im_path", tmp_path], "no such folder"),
        (["--name", "{nothing}"], "cannot be made out"),
        (["--lr_policy", "cosine"], "give --epochs"),
        (["--lr_policy", "cosine", "--epochs", 2, "--max_epochs", 1], "give --epochs alone"),
    ):
        run = scripts("train_patch_forensics", *folders, *words)
        assert (run.code, said in run.err.splitlines()[-1]) == (2, True), run


def test_consecutive_names_sort_as_strings(small: Path) -> None:
    images = find_image_pair(small / "real", small / "fake", "set")
    names = [item.name for item in images.items if item.label == 1]
    assert all(a < b for a, b in pairwise(names))


# groups, tables, pages


@pytest.fixture(scope="module")
def tested(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`opt.yml` of a classifier that was hardly trained."""
    folder = tmp_path_factory.mktemp("hardly") / "hardly"
    folder.mkdir()
    torch.manual_seed(0)
    torch.save({"state_dict": build_patch_network("xception_block1").state_dict()}, folder / "bestval_net_D.pth")
    lines = ["model: patch_discriminator", "which_model_netD: xception_block1", "loadSize: 40", "name: hardly"]
    (folder / "opt.yml").write_text("\n".join(lines))
    return folder / "opt.yml"


def test_groups_of_patches(tested: Path, small: Path, scripts: Scripts, tmp_path: Path) -> None:
    words = [*TESTED, *of(small), "--train_config", tested, "--topn", 8, "--unique"]
    assert scripts("extract_top_patches", *words).code == 0
    folder = Path("out/hardly/test/epoch_bestval/set/patches_top8")
    run = scripts("cluster_patches", folder)
    assert run.code == 0, run.err
    rows = table(folder / "clusters/clusters.csv")
    for label in ("real", "fake"):
        mine = [row for row in rows if row["label"] == label]
        assert sum(int(row["patches"]) for row in mine) == sum(int(row["random"]) for row in mine) == 8
        counts = [int(row["patches"]) for row in mine]
        assert counts == sorted(counts, reverse=True)
        assert all(float(row["share_low"]) <= float(row["share"]) <= float(row["share_high"]) for row in mine)
        place = folder / "clusters" / f"{label}s_easiest_clusters"
        files = [line for path in place.glob("cluster_*.txt") for line in path.read_text().splitlines()]
        assert len(files) == 8
        assert (place / "counts.txt").read_text().splitlines()[0] == f"0: {mine[0]['group']}, {counts[0]} patches"
        with np.load(place / "cluster_0.npz") as arrays:
            assert arrays["patch"].shape == (counts[0], 3, 19, 19)
    assert (folder / "clusters/best_patches.png").is_file()
    # label maps of another size: 1 at the left, 17 elsewhere
    for kind in ("real", "fake"):
        (tmp_path / kind).mkdir()
        for path in (small / kind / "val").iterdir():
            labels = np.where(np.arange(80) < 40, 1, 17).astype(np.uint8)[None].repeat(80, axis=0)
            Image.fromarray(labels).save(tmp_path / kind / path.name)
    maps = ["--real_labels", tmp_path / "real", "--fake_labels", tmp_path / "fake"]
    run = scripts("cluster_patches", folder, *maps)
    assert run.code == 0, run.err
    rows = table(folder / "clusters/clusters.csv")
    assert {row["group"] for row in rows} == {"skin", "hair"}
    top = {(row["path"], row["left"], row["right"]) for row in table(folder / "top_patches.csv")}
    left = sum(int(start) + int(end) < 40 for _, start, end in top)
    assert abs(sum(int(row["patches"]) for row in rows if row["group"] == "skin") - left) <= sum(
        int(start) + int(end) == 40 for _, start, end in top
    )
    (tmp_path / "groups.csv").write_text("label,group\n1,west\n")
    assert scripts("cluster_patches", folder, *maps, "--groups", tmp_path / "groups.csv").code == 0
    text = (folder / "clusters/clusters.csv").read_text()
    assert "west" in text
    assert "label 17" in text
    rows = (folder / "top_patches.csv").read_text()
    (folder / "top_patches.csv").write_text("".join(rows.splitlines(keepends=True)[:-1]))
    refused = scripts("cluster_patches", folder)
    assert (refused.code, "not as many rows" in refused.err) == (2, True)
    (folder / "top_patches.csv").write_text(rows)
    next((tmp_path / "fake").iterdir()).unlink()
    refused = scripts("cluster_patches", folder, *maps)
    assert (refused.code, "no label map" in refused.err) == (2, True)


def test_small_parts_win_over_large_ones() -> None:
    labels = np.zeros((10, 10), np.uint8)
    labels[4, 4], labels[9, :] = 3, 7
    assert shown_label(labels, (slice(2, 9), slice(2, 9))) == 3
    assert shown_label(labels, (slice(0, 10), slice(0, 10))) == 0  # all of all of them: the first met
    assert position_group((slice(0, 10), slice(20, 30)), 30, 30) == "top right"
    assert position_group((slice(12, 18), slice(10, 20)), 30, 30) == "middle centre"


def test_tables_over_sets_and_runs(tested: Path, small: Path, scripts: Scripts, tmp_path: Path) -> None:
    (tmp_path / "sets.csv").write_text("name,real,fake\nmine,real,fake\nabsent,nowhere,fake\n")
    words = [tested.parent, tmp_path / "sets.csv", "val", "--data_root", small, "--bootstrap", 10]
    run = scripts("test_patch_forensics_runs", *words)
    assert run.code == 0, run.err
    assert "absent is left out" in run.err
    rows = table(Path("results/runs.csv"))
    assert [row["average"] for row in rows] == [*AVERAGES, "patch"]
    assert {(row["run"], row["dataset"]) for row in rows} == {("hardly", "mine")}
    assert "| hardly | val | bestval |" in Path("results/tables.md").read_text()
    assert Path("results/runs.png").is_file()
    (tmp_path / "twice.csv").write_text("name,real,fake\nmine,real,fake\nmine,fake,real\n")
    refused = scripts("test_patch_forensics_runs", tested.parent, tmp_path / "twice.csv", "val", "--data_root", small)
    assert (refused.code, "two data sets called mine" in refused.err) == (2, True)
    refused = scripts("test_patch_forensics_runs", tested.parent, "gen_models", "test", "--data_root", tmp_path)
    assert (refused.code, "--data_root" in refused.err.splitlines()[-1]) == (2, True)


def test_maps_beside_explanations(tested: Path, small: Path, scripts: Scripts) -> None:
    network = ["--arch", f"{PREFIX}xception_block1", "--weights", tested.with_name("bestval_net_D.pth")]
    run = scripts("compare_patch_maps", *network, "--images", small / "fake" / "val" / "0.png", "--device", "cpu")
    assert run.code == 0, run.err
    with Image.open(f"output/patch_maps_{PREFIX}xception_block1_001.png") as picture:
        assert picture.width > 4 * 256


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on PATH: install it (apt-get install chromium) to test the lightbox in a browser")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_lightbox(browser: Any, tmp_path: Path) -> None:
    """Opened from disk: filter, large view, keys; nothing is asked of a network."""
    names = ["001_orig.png", "001_patch_1.png", "002 </script>%23.png"]
    for number, name in enumerate(names[:2]):
        Image.new("RGB", (20, 10), (number * 100, 0, 0)).save(tmp_path / name)
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: asked.append(str(error)))
    page.goto(write_lightbox(tmp_path / "+lightbox.html", names, "fakes <b>").as_uri())
    assert page.title() == "fakes <b>"
    assert page.locator("#thumbnails span").all_inner_texts() == names
    page.fill("#filter", "^001")
    assert page.locator("#count").inner_text() == "2 of 3"
    page.fill("#filter", "(")
    assert page.get_attribute("#filter", "aria-invalid") == "true"
    page.fill("#filter", "001")
    page.locator("#thumbnails button").first.click()
    assert page.locator("#name").inner_text() == names[0]
    page.keyboard.press("ArrowRight")
    assert page.locator("#name").inner_text() == names[1]
    page.locator("#close").click()
    assert not page.locator("#large").is_visible()
    assert all(url.startswith("file:") for url in asked)


def test_page_of_the_demo(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    header = "detector,arch,set,variant,ap,ap_low,ap_high\n"
    lines = "patches,x,one,rgb,0.9,0.8,0.95\npatches,x,one,grayscale,0.5,0.4,0.6\n<b>,x,two,rgb,0.7,0.6,0.8\n"
    (tmp_path / "evaluation" / "summary.csv").write_text(header + lines)
    sheet = tmp_path / "run" / "one" / "vis" / "fakes" / "easiest" / "sheet_001.png"
    sheet.parent.mkdir(parents=True)
    sheet.touch()
    text = write_page(tmp_path, tmp_path / "run" / "one", tmp_path / "run" / "one" / "patches_top2", []).read_text()
    assert "90.0 [80.0, 95.0]" in text
    assert "&lt;b&gt;" in text
    assert 'src="run/one/vis/fakes/easiest/sheet_001.png"' in text


def test_classes_the_other_way_round(tested: Path, small: Path, scripts: Scripts, tmp_path: Path) -> None:
    """With the two outputs exchanged and `fake_class_id` 1 every p(fake) is the same; class 1 is then fake."""
    state = torch.load(tested.with_name("bestval_net_D.pth"), weights_only=True)["state_dict"]
    turned = {key: value.flip(0) if key.startswith("convout") else value for key, value in state.items()}
    torch.save({"state_dict": turned}, tmp_path / "bestval_net_D.pth")
    (tmp_path / "opt.yml").write_text(tested.read_text().replace("hardly", "turned") + "\nfake_class_id: 1")
    vis = ["--visualize", "--average_mode", "vote", "--topn", 1, "--bootstrap", 10]
    for config in (tested, tmp_path / "opt.yml"):
        run = scripts("test_patch_forensics", *TESTED, *of(small), "--train_config", config, *vis)
        assert run.code == 0, run.err
    one, other = (Path("out", name, "test/epoch_bestval/set") for name in ("hardly", "turned"))
    first, second = (read_scores(folder / "scores.csv", made_by="") for folder in (one, other))
    for name in AVERAGES:
        np.testing.assert_allclose(first.columns[name], second.columns[name], atol=1e-9)
    for before, after in zip(table(one / "metrics.csv"), table(other / "metrics.csv"), strict=True):
        assert float(before["ap_fake"]) == pytest.approx(float(after["ap_fake"]), abs=1e-6)
        assert after["ap_class_1"] == after["ap_fake"]
    for view in ("fakes/easiest", "reals/hardest"):
        names = [(folder / "vis" / view / "preds.txt").read_text().split(",") for folder in (one, other)]
        assert (names[0][0], names[0][1], names[0][3]) == (names[1][0], names[1][2], names[1][3])
        pictures = [np.asarray(Image.open(folder / "vis" / view / "001_readable.png")) for folder in (one, other)]
        assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1


def test_an_interrupted_test_goes_on(
    tested: Path, small: Path, scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heat maps of images seen before the interruption are those of an uninterrupted run."""
    words = [*TESTED, *of(small), "--train_config", tested, "--batch_size", 3, "--bootstrap", 10]
    vis = ["--visualize", "--average_mode", "after_softmax", "--topn", 2]
    assert scripts("test_patch_forensics", *words, *vis, "--results_dir", "whole").code == 0
    update, seen = MapCollector.update, iter([False, True])

    def interrupted(collector: MapCollector, batch: PassBatch) -> None:
        update(collector, batch)
        if next(seen, False):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(MapCollector, "update", interrupted)
        stopped = scripts("test_patch_forensics", *words, *vis)
    assert (stopped.code, "--resume" in stopped.err) == (130, True)
    resumed = scripts("test_patch_forensics", *words, *vis, "--resume")
    assert resumed.code == 0, resumed.err
    whole, parts = (contents(Path(root, "hardly")) for root in ("whole", "out"))
    kept = [name for name in whole if not name.endswith(".json")]
    assert [name for name in kept if whole[name] != parts.get(name)] == []
