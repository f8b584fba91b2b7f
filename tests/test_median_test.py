"""Activations on RGB and greyscale, Mood's median test, and the share of colour-conditional maps."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ranking_runs import Run, Scripts, contents, detector_of, image_set, tuned_model
from scipy.stats import binomtest, chi2_contingency, false_discovery_control, wilcoxon

import activation_histograms.analysis
from activation_histograms.collector import ActivationPairCollector, ActivationPairs, read_activations
from activation_histograms.figures import plot_histogram, plot_overview, plot_shares
from activation_histograms.median_test import MedianTest, colour_share, median_tests
from detectors.detector import Detector
from evaluation.intervals import wilson_interval
from fmap_ranking.names import FeatureMap
from fmap_ranking.ranking import Ranking
from images.decoding import Crop, decode_image
from images.distortions import to_grayscale
from lrp.canonise import build_program, explained_layers
from passes.one_pass import run_pass
from passes.shared_forward import SharedForward
from utils.errors import UserError
from utils.files import write_npz
from utils.tables import read_rows, write_rows

MAPS = [FeatureMap("layer1.0.conv1", 5, 64), FeatureMap("conv1", 60, 64), FeatureMap("conv1", 2, 64)]


def pairs(rgb: list[list[float]], grayscale: list[list[float]]) -> ActivationPairs:
    """Samples by map."""
    samples = [np.array(sample, dtype=np.float32).T for sample in (rgb, grayscale)]
    keys = tuple(f"conv1.#{number}(T=64)" for number in range(len(rgb)))
    return ActivationPairs(keys, tuple(f"{n}.png" for n in range(len(rgb[0]))), *samples)


def random_pairs(maps: int, images: int) -> ActivationPairs:
    generator = np.random.default_rng(0)
    shifts = np.linspace(0, 2, maps)[:, None]
    rgb, grey = generator.normal(size=(2, maps, images))
    return pairs((rgb + shifts).tolist(), grey.tolist())


def test_against_a_table_of_counts() -> None:
    sample = random_pairs(6, 31)
    tests = median_tests(sample)
    for place, test in enumerate(tests):
        both = np.concatenate([sample.rgb[:, place], sample.grayscale[:, place]])
        above = [int((part[:, place] > np.median(both)).sum()) for part in (sample.rgb, sample.grayscale)]
        statistic, p_value, *_ = chi2_contingency([above, [31 - count for count in above]])
        assert (test.statistic, test.p_value) == pytest.approx((statistic, p_value))
        assert [test.above_rgb, test.above_grayscale] == above
        assert test.median_difference == pytest.approx(test.median_rgb - test.median_grayscale)
    assert [test.p_value_bh for test in tests] == pytest.approx(false_discovery_control([t.p_value for t in tests]))
    assert tests[-1].p_value_bh < 0.05 < tests[0].p_value


@pytest.mark.parametrize(
    ("rgb", "grey", "degenerate"),
    [
        ([1, 1, 1, 1], [1, 1, 1, 1], True),  # nothing above the median
        ([1, 1, 1, 1], [1, 1, 1, 5], False),
        ([2], [2], True),
        ([1, 2, 3, 4], [1, 2, 3, 4], False),  # testable, and alike
    ],
)
def test_samples_that_say_nothing(rgb: list[float], grey: list[float], degenerate: bool) -> None:
    (test,) = median_tests(pairs([rgb], [grey]))
    assert bool(test.degenerate) is degenerate
    assert test.p_value == 1.0
    assert np.isnan(test.statistic) == degenerate


def test_no_images() -> None:
    with pytest.raises(UserError, match="no fake images"):
        median_tests(pairs([[]], [[]]))


def test_tables_come_back_as_they_were(tmp_path: Path) -> None:
    tests = median_tests(pairs([[1, 1], [1, 2]], [[1, 1], [0.1, 3]]))
    write_rows(tmp_path / "tests.csv", tests)
    back = read_rows(tmp_path / "tests.csv", MedianTest, made_by="x")
    assert [str(test) for test in back] == [str(test) for test in tests]
    header = "feature_map_name,p_value,p_value_bh,median_rgb,median_grayscale"
    assert (tmp_path / "tests.csv").read_text().startswith(header)
    sample = random_pairs(2, 3)
    sample.write(tmp_path / "a.npz")
    read = read_activations(tmp_path / "a.npz", made_by="x")
    assert (read.keys, read.paths) == (sample.keys, sample.paths)
    assert np.array_equal(read.rgb, sample.rgb)
    assert np.array_equal(read.grayscale, sample.grayscale)


def test_files_that_are_missing_or_damaged_name_their_maker(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"at .*absent: make them with src/x\.py"):
        read_activations(tmp_path / "absent", made_by="src/x.py")
    write_npz(tmp_path / "a.npz", keys=np.array(["a"]))
    write_npz(
        tmp_path / "b.npz", keys=np.array(["a"]), paths=np.array(["p"]), rgb=np.ones((2, 1)), grayscale=np.ones((1, 1))
    )
    for name, words in (("a.npz", "holds no 'paths'"), ("b.npz", "other shapes")):
        with pytest.raises(UserError, match=words):
            read_activations(tmp_path / name, made_by="x")


def test_share_of_a_generator() -> None:
    tests = median_tests(random_pairs(20, 12))
    share = colour_share("gan", tests)
    assert share.paired == sum(test.p_value_paired <= 0.05 for test in tests)
    assert share.paired_bh == sum(test.p_value_paired_bh <= 0.05 for test in tests)
    assert (share.share_paired_low, share.share_paired_high) == wilson_interval(share.paired, 20)
    assert share.conditional == sum(test.p_value <= 0.05 for test in tests)
    assert share.conditional_bh == sum(test.p_value_bh <= 0.05 for test in tests)
    assert 20 > share.conditional > share.conditional_bh > 0
    assert (share.share_low, share.share_high) == wilson_interval(share.conditional, 20)
    assert (share.images, share.maps, share.degenerate, share.degenerate_paired) == (12, 20, 0, 0)


def test_adjusted_over_the_maps_counted_only() -> None:
    """Twenty maps with an effect lose it among two hundred without one, but not when they are counted alone."""
    effect, none = paired_pairs(20, 28, 0.35), paired_pairs(200, 28, 0.0, seed=1)
    keys = tuple(f"conv1.#{number}(T=256)" for number in range(220))
    samples = (
        np.concatenate([getattr(part, kind) for part in (effect, none)], axis=1) for kind in ("rgb", "grayscale")
    )
    tests = median_tests(ActivationPairs(keys, effect.paths, *samples))
    share, alone = colour_share("gan", tests, 20), colour_share("gan", median_tests(effect))
    assert share == alone
    assert share.paired_bh > sum(test.p_value_paired_bh <= 0.05 for test in tests[:20])
    for topk in (0, 221):
        with pytest.raises(UserError, match="gan: 220 maps were tested"):
            colour_share("gan", tests, topk)


def paired_pairs(maps: int, images: int, shift: float, seed: int = 0) -> ActivationPairs:
    """Normal samples with correlation 0.9 between the responses to an image; the shift is in standard deviations."""
    generator = np.random.default_rng(seed)
    common, *own = generator.normal(size=(3, maps, images))
    rgb, grey = (np.sqrt(0.9) * common + np.sqrt(0.1) * part for part in own)
    return pairs((rgb + shift).tolist(), grey.tolist())


@pytest.mark.parametrize("images", [28, 200])
def test_size_and_power_on_the_same_images(images: int) -> None:
    """Responses vary in common, so Mood's test never finds what is not there, and hardly ever what is."""
    null, shifted = (median_tests(paired_pairs(600, images, shift)) for shift in (0.0, 0.2))

    def rejected(tests: list[MedianTest], name: str) -> float:
        return float(np.mean([getattr(test, name) <= 0.05 for test in tests]))

    assert rejected(null, "p_value") <= 0.01
    # three standard errors of a share of 600
    assert rejected(null, "p_value_paired") == pytest.approx(0.05, abs=0.027)
    assert 0.01 <= rejected(null, "p_value_sign") <= 0.06
    assert rejected(shifted, "p_value") <= 0.3
    assert rejected(shifted, "p_value_sign") >= rejected(shifted, "p_value") + 0.3
    assert rejected(shifted, "p_value_paired") >= rejected(shifted, "p_value") + 0.5


def test_paired_tests_are_those_of_scipy() -> None:
    sample = paired_pairs(5, 31, 0.1)
    for place, test in enumerate(median_tests(sample)):
        differences = sample.rgb[:, place].astype(float) - sample.grayscale[:, place]
        assert test.p_value_paired == wilcoxon(differences).pvalue
        assert test.p_value_sign == binomtest(int((differences > 0).sum()), 31).pvalue
        assert test.paired_median == np.median(differences)
        # the share of all pairs of images, each with itself as well, whose mean difference is positive
        walsh = np.add.outer(differences, differences)[np.triu_indices(31)]
        assert test.rank_biserial == pytest.approx(np.sign(walsh).mean())
        assert (test.units, test.degenerate_paired) == (31, 0)


def test_maps_without_any_difference_are_counted_not_tested() -> None:
    tests = median_tests(pairs([[1, 2, 3, 4], [1, 2, 3, 4]], [[1, 2, 3, 4], [1, 2, 3, 5]]))
    assert [test.degenerate_paired for test in tests] == [1, 0]
    assert (tests[0].p_value_paired, tests[0].p_value_sign, tests[0].rank_biserial) == (1, 1, 0)
    assert tests[1].rank_biserial == -1
    assert colour_share("gan", tests).degenerate_paired == 1


def test_clusters_count_once() -> None:
    """Ten copies of each image are no more evidence than the image; Mood's test stays as published."""
    sample = paired_pairs(6, 14, 0.3)
    copied = pairs(*(np.repeat(values.T, 10, axis=1).tolist() for values in (sample.rgb, sample.grayscale)))
    alone, naive = median_tests(sample), median_tests(copied)
    honest = median_tests(copied, [f"photo {number // 10}" for number in range(140)])
    for one, many, clustered in zip(alone, naive, honest, strict=True):
        assert (clustered.p_value_paired, clustered.p_value_sign) == (one.p_value_paired, one.p_value_sign)
        assert (clustered.units, clustered.images) == (14, 140)
        assert many.p_value_paired < one.p_value_paired
        assert clustered.p_value == many.p_value


@pytest.fixture(scope="module")
def detector(small_images: Path) -> Detector:
    return detector_of(tuned_model(small_images))


@pytest.mark.parametrize("batch_size", [2, 11])
def test_activations_of_fakes_on_both_kinds_of_image(detector: Detector, small_images: Path, batch_size: int) -> None:
    """Against two separate passes over each map's hooked output."""
    images = image_set(small_images)
    collector = ActivationPairCollector(SharedForward(detector), MAPS, images)
    run_pass(images, {"x": collector}, device=torch.device("cpu"), batch_size=batch_size, crop=Crop("none"))
    found = collector.result()
    assert found.paths == tuple(item.name for item in images.with_label(1).items)
    assert found.keys == tuple(fmap.key for fmap in MAPS)
    pixels = torch.from_numpy(np.stack([decode_image(small_images / name) for name in found.paths])).permute(0, 3, 1, 2)
    for values, shown in ((found.rgb, pixels), (found.grayscale, to_grayscale(pixels))):
        for column, fmap in enumerate(MAPS):
            expected = hooked_maxima(detector, fmap, shown)
            np.testing.assert_allclose(values[:, column], expected, rtol=1e-4, atol=1e-4)
    assert not np.allclose(found.rgb, found.grayscale, atol=1e-2)


def hooked_maxima(detector: Detector, fmap: FeatureMap, images: torch.Tensor) -> np.ndarray:
    maxima: list[torch.Tensor] = []

    def hook(module: object, inputs: object, output: torch.Tensor) -> None:
        maxima.append(output[:, fmap.index].amax((1, 2)))

    handle = detector.model.get_submodule(fmap.layer).register_forward_hook(hook)
    detector.model(detector.inputs(images))
    handle.remove()
    return maxima[0].numpy()


# The scripts

MEDIAN, SHARE = "median_test_activation_histograms", "find_color_conditional_percentage"


@pytest.fixture(scope="module")
def ranking(tmp_path_factory: pytest.TempPathFactory, detector: Detector) -> Path:
    path = tmp_path_factory.mktemp("ranking") / "fake.csv"
    layers = explained_layers(build_program(detector.model))
    values = np.random.default_rng(0).random(sum(channels for _, channels in layers))
    Ranking.from_values(layers, values / 1000).write(path)
    return path


@pytest.fixture
def run(
    scripts: Scripts, small_images: Path, small_weights: Path, ranking: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Run]:
    """Runs a script on the small images; no figures over generators."""
    monkeypatch.setattr(activation_histograms.analysis, "draw_once", lambda *arguments: [])

    def call(name: str, *more: object, code: int = 0) -> Run:
        given: list[object] = ["--arch", "resnet18", "--gan_name", "gan"]
        if name == MEDIAN:
            given += ["--weights", small_weights, "--dataset_dir", small_images, "--device", "cpu", "--bsize", 4]
            given += ["--relevances", ranking, "--topk", 3, "--histograms", "none"]
        done = scripts(name, *given, *more)
        assert done.code == code, done.err
        return done

    return call


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_tests_of_the_top_maps_and_their_share(run: Callable[..., Run], ranking: Path, tmp_path: Path) -> None:
    run(MEDIAN)
    folder = tmp_path / "output/median_test/resnet18_0.5"
    tests = rows(folder / "gan.csv")
    keys = [line.split(",")[0] for line in ranking.read_text().splitlines()[1:4]]
    assert [row["feature_map_name"] for row in tests] == keys
    assert {row["images"] for row in tests} == {"6"}
    counted = run(SHARE, "--topk", 2)
    (share,) = rows(folder / "color_conditional.csv")
    assert (share["generator"], share["maps"]) == ("gan", "2")
    assert float(share["share"]) == sum(float(row["p_value"]) <= 0.05 for row in tests[:2]) / 2
    assert (folder / "color_conditional.md").read_text() in counted.out
    assert "more than the 3 maps" in run(SHARE, "--topk", 4, code=2).err
    refused = run(SHARE, "--gan_name", "other", code=2)
    assert f"python src/{MEDIAN}.py --arch resnet18 --blur_jpg 0.5 --gan_name other" in refused.err


def test_shares_hold_the_generators_of_earlier_commands(
    run: Callable[..., Run], small_images: Path, tmp_path: Path
) -> None:
    for name in ("gan", "other"):
        shutil.copytree(small_images / "gan", tmp_path / "data" / name)
    given = ["--dataset_dir", tmp_path / "data"]
    table = tmp_path / "output/median_test/resnet18_0.5/color_conditional.csv"

    def generators() -> list[str]:
        return [row["generator"] for row in rows(table)]

    run(MEDIAN, *given, "--gan_name", "other")
    run(MEDIAN, *given)
    assert generators() == ["gan", "other"]
    cells = []
    for name in ("share", "share_bh", "share_paired", "share_paired_bh"):
        shares = [100 * float(row[name]) for row in rows(table)]
        cells.append(f"{np.mean(shares):.1f} ± {np.std(shares, ddof=1) / 2**0.5:.1f}")
    line = f"| mean of 2 generators ± standard error |  |  | {' | '.join(cells)} |  |"
    assert line in table.with_suffix(".md").read_text()
    # Tests of other maps are another table, and so are edited ones.
    run(MEDIAN, *given, "--topk", 4)
    assert generators() == ["gan"]
    run(MEDIAN, *given)
    assert generators() == ["gan", "other"]
    with table.with_name("other.csv").open("a") as file:
        file.write("\n")
    run(MEDIAN, *given)
    assert generators() == ["gan"]


@pytest.mark.parametrize(
    ("flags", "drawn"),
    [
        (["--histograms", "overview"], ["gan.png"]),
        (["--histograms", "all", "--maps_drawn", "1"], ["conv1/gan.png", "gan.png"]),
        (["--histograms", "none"], []),
    ],
)
def test_histograms_asked_for(run: Callable[..., Run], tmp_path: Path, flags: list[str], drawn: list[str]) -> None:
    run(MEDIAN, *flags)
    found = sorted(contents(tmp_path / "output/activation_histograms/resnet18/0.5"))
    assert len(found) == len(drawn)
    assert [Path(name).name for name in found] == [Path(name).name for name in drawn]


def test_clusters_of_the_images_are_those_of_the_tests(
    run: Callable[..., Run], small_images: Path, tmp_path: Path
) -> None:
    for name in ("x", "y"):
        shutil.copytree(small_images / "gan", tmp_path / "data/gan" / name)
    run(MEDIAN, "--dataset_dir", tmp_path / "data", "--cluster", "folder")
    tests = rows(tmp_path / "output/median_test/resnet18_0.5/gan.csv")
    assert {(row["images"], row["units"]) for row in tests} == {("12", "2")}


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--topk", "1000000"], "k = 1000000 is out of range"),
        (["--relevances", "absent.csv"], "rank_fmaps.py"),
        (["--relevances", "other.csv"], "the detector has no layer _conv_stem"),
    ],
)
def test_wrong_rankings_are_one_line(run: Callable[..., Run], tmp_path: Path, extra: list[str], words: str) -> None:
    (tmp_path / "other.csv").write_text("key,mean_relevance\n_conv_stem.#6(T=32),0.5\n")
    assert words in run(MEDIAN, *extra, code=2).err.splitlines()[-1]
    assert not (tmp_path / "output").exists()


def test_fakes_that_cannot_be_decoded(run: Callable[..., Run], small_images: Path, tmp_path: Path) -> None:
    shutil.copytree(small_images / "gan/0_real", tmp_path / "data/gan/0_real")
    (tmp_path / "data/gan/1_fake").mkdir()
    (tmp_path / "data/gan/1_fake/x.png").write_bytes(b"no image")
    refused = run(MEDIAN, "--dataset_dir", tmp_path / "data", "--skip_bad_images", code=2)
    assert "gan: no fake images" in refused.err.splitlines()[-1]


# Figures


def test_figures(tmp_path: Path) -> None:
    sample = pairs([[1, 1, 1], [1, 2, 3]], [[1, 1, 1], [5, 6, 7]])
    tests = median_tests(sample)
    share = colour_share("gan", tests)
    drawn = plot_histogram(sample, 0, tests[0], tmp_path / "one", "title")
    drawn += plot_overview(sample, tests, tmp_path / "all", "title")
    drawn += plot_overview(random_pairs(9, 5), median_tests(random_pairs(9, 5)), tmp_path / "some", "title", most=3)
    drawn += plot_shares([share, share], tmp_path / "shares", "title")
    assert len(drawn) == 4
    assert all(path.stat().st_size > 5000 for path in drawn)
