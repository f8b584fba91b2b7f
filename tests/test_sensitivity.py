"""Sensitivity, colour ablation and the choice of k: what is dropped, thresholds, tables over generators, figures."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranking_runs import LOGITS, Run, Scripts, contents

import passes.running
import sensitivity_assessment.colour
import sensitivity_assessment.sensitivity
import sensitivity_assessment.topk
from detectors.networks import build_model
from evaluation.assessment import Result
from evaluation.scores import Scores
from evaluation.summary import ScoreSummary, summarise_columns
from fmap_ranking.ranking import Ranking
from lrp.canonise import build_program, explained_layers
from sensitivity_assessment.figures import plot_sensitivity, plot_topk
from sensitivity_assessment.topk import curves_of, next_number, smallest_below
from sensitivity_assessment.variants import BASELINE, LAYER_RANDOM, LOW, RANDOM, TOP, make_variants
from sensitivity_assessment.whiskers import chosen_fakes, plot_whiskers
from utils.errors import UserError

PROBABILITIES = {name: 1 / (1 + np.exp(-logit)) for name, logit in LOGITS.items()}

# What is dropped


def small_ranking() -> Ranking:
    """Of layers of 4, 40 and 60 maps; three of the first four lead."""
    values = np.random.default_rng(0).random(104) / 104
    values[:3] += 0.1
    return Ranking.from_values([("a", 4), ("b", 40), ("c", 60)], values)


def test_variants_drop_what_their_names_say() -> None:
    ranking = small_ranking()
    variants = make_variants(ranking, 10, seed=3, draws=2)
    drawn = [f"{kind}-{number}" for kind in (RANDOM, LAYER_RANDOM) for number in (1, 2)]
    assert list(variants.maps) == [BASELINE, TOP, LOW, *drawn]
    top = set(variants.maps[TOP])
    assert variants.maps[BASELINE] == ()
    assert (variants.maps[TOP], variants.maps[LOW]) == (ranking.maps[:10], ranking.maps[-10:])
    # Layer a has one map outside the top ten, which holds three of it.
    assert variants.shortfall == {"a": 2}
    for name in drawn:
        assert not top & set(variants.maps[name])
        assert len(set(variants.maps[name])) == (10 if name in variants.draws[RANDOM] else 8)
    for name in variants.draws[LAYER_RANDOM]:
        of_layer = {layer: sum(f.layer == layer for f in variants.maps[name]) for layer in "abc"}
        assert of_layer == {"a": 1, **{layer: sum(f.layer == layer for f in top) for layer in "bc"}}
    assert variants.maps["random-k-1"] != variants.maps["random-k-2"]
    assert make_variants(ranking, 10, seed=3, draws=2).maps == variants.maps
    assert make_variants(ranking, 10, seed=4, draws=2).maps != variants.maps


def test_published_draws_are_with_replacement_and_not_layer_matched() -> None:
    for seed in range(5):
        variants = make_variants(small_ranking(), 50, seed=seed, draws=1, published=True)
        assert list(variants.maps) == [BASELINE, TOP, LOW, "random-k-1"]
        assert not set(variants.maps[TOP]) & set(variants.maps["random-k-1"])
        # Of 54 maps, 50 draws with replacement hold about 32.
        assert len(variants.maps["random-k-1"]) < 45


@pytest.mark.parametrize("k", [0, 53, 1000])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(UserError, match=f"k = {k} is out of range"):
        make_variants(small_ranking(), k, seed=0)


# The scripts


@pytest.fixture(scope="module")
def rankings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rankings of a resnet18: in random order, and from the first layer to the last."""
    folder = tmp_path_factory.mktemp("rankings")
    layers = explained_layers(build_program(build_model("resnet18").eval()))
    count = sum(channels for _, channels in layers)
    for name, values in (("random", np.random.default_rng(0).random(count)), ("depth", np.linspace(1, 0, count))):
        Ranking.from_values(layers, values / 1000).write(folder / f"{name}.csv")
    return {name: folder / f"{name}.csv" for name in ("random", "depth")}


@pytest.fixture
def run(
    scripts: Scripts, small_images: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Run]:
    """Runs a script on the small images and detector; pictures are left out, except where a test draws them."""
    for module in (passes.running, *_DRAWING):
        monkeypatch.setattr(module, "draw_once", lambda *arguments: [])

    def call(name: str, *more: object, code: int = 0) -> Run:
        common = ["--arch", "resnet18", "--weights", small_weights, "--dataset_dir", small_images, "--device", "cpu"]
        done = scripts(name, *common, "--gan_name", "gan", "--bsize", 4, "--bootstrap", 50, *more)
        assert done.code == code, done.err
        return done

    return call


_DRAWING = (sensitivity_assessment.sensitivity, sensitivity_assessment.colour, sensitivity_assessment.topk)
SENSITIVITY, COLOUR, TOPK = "transfer_sensitivity_analysis", "grayscale_sensitivity_analysis", "find_topk"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def by_name(path: Path) -> dict[str, dict[str, str]]:
    return {row["variant"]: row for row in rows(path)}


def other_name(images: Path, folder: Path, name: str = "other") -> Path:
    """The small images in a data set folder where the generator has another name, too."""
    for generator in ("gan", name):
        shutil.copytree(images / "gan", folder / generator)
    return folder


def test_sensitivity(run: Callable[..., Run], rankings: dict[str, Path], tmp_path: Path) -> None:
    done = run(SENSITIVITY, "--relevances", rankings["random"], "--topk", 20, "--draws", 2)
    folder = tmp_path / "output/transfer/resnet18/gan_0.5"
    scores = rows(folder / "scores.csv")
    assert list(scores[0]) == [
        *("path", "label", "baseline", "top-k", "low-k", "random-k-1", "random-k-2"),
        *("layer-random-k-1", "layer-random-k-2"),
    ]
    assert {row["path"]: float(row["baseline"]) for row in scores} == pytest.approx(PROBABILITIES, abs=1e-4)
    assert {row["path"]: int(row["label"]) for row in scores} == {name: int("1_fake" in name) for name in LOGITS}
    assert any(abs(float(row["top-k"]) - float(row["baseline"])) > 1e-3 for row in scores)
    assert "11 of these images are reported on, so the calibrated accuracies are optimistic" in done.out
    assert set(json.loads((folder / "summary.csv.json").read_text())["inputs"]) == {"images", "ranking", "weights"}
    dropped = rows(folder / "dropped_maps.csv")
    keys = [line.split(",")[0] for line in rankings["random"].read_text().splitlines()[1:21]]
    assert [row["key"] for row in dropped if row["variant"] == "top-k"] == keys
    summary = by_name(folder / "summary.csv")
    assert {name: row["maps_dropped"] for name, row in summary.items() if "-1" not in name and "-2" not in name} == {
        **{"baseline": "0", "top-k": "20", "low-k": "20", "random-k": "20", "random-k-averaged": "20"},
        **{"layer-random-k": "20", "layer-random-k-averaged": "20"},
    }
    draws = [float(summary[f"random-k-{number}"]["ap"]) for number in (1, 2)]
    assert float(summary["random-k"]["ap"]) == pytest.approx(np.mean(draws))
    assert float(summary["random-k"]["ap_spread"]) == pytest.approx(np.std(draws, ddof=1))


def test_layers_dropped_whole_and_maps_that_lack_are_said(
    run: Callable[..., Run], rankings: dict[str, Path], tmp_path: Path
) -> None:
    done = run(SENSITIVITY, "--relevances", rankings["depth"], "--topk", 70, "--draws", 1)
    page = (tmp_path / "output/transfer/resnet18/transfer_0.5.md").read_text()
    for text in (done.out, page):
        assert "The top 70 hold all 64 maps of conv1" in text
        assert "layer-random-k drops 6 of 70 maps" in text
    assert "| gan | layer-random-k | 6 |" in page
    # A blind detector gives every image the same score, which ranks like guessing.
    top = by_name(tmp_path / "output/transfer/resnet18/gan_0.5/summary.csv")["top-k"]
    assert float(top["ap"]) == pytest.approx(6 / 11)


def test_published_variants_and_rule(run: Callable[..., Run], rankings: dict[str, Path], tmp_path: Path) -> None:
    run(SENSITIVITY, "--relevances", rankings["random"], "--topk", 20, "--compat", "published")
    folder = tmp_path / "output/transfer/resnet18"
    columns = list(rows(folder / "gan_0.5/scores.csv")[0])[2:]
    assert columns == ["baseline", "top-k", "low-k", *(f"random-k-{n}" for n in range(1, 6))]
    # The fake that defines the threshold is not above it.
    assert float(by_name(folder / "gan_0.5/summary.csv")["baseline"]["acc_fake_calibrated"]) < 1
    assert "fake above the threshold" in (folder / "transfer_0.5.md").read_text()


def test_calibration_on_another_set(
    run: Callable[..., Run], rankings: dict[str, Path], small_images: Path, tmp_path: Path
) -> None:
    """The real e of logit -3.5 and the fakes a and d of 3 and 4; a copy of the real is among the images reported on."""
    held_out = tmp_path / "held_out"
    for name, label in (("e", "0_real"), ("a", "1_fake"), ("d", "1_fake")):
        (held_out / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(small_images / "gan" / label / f"{name}.png", held_out / label / f"renamed_{name}.png")
    data = other_name(small_images, tmp_path / "data")
    for name in ("1_fake/a.png", "1_fake/d.png"):
        (data / "other" / name).unlink()
    given = ["--relevances", rankings["random"], "--topk", 5, "--draws", 1, "--dataset_dir", data]
    run(SENSITIVITY, *given, "--gan_name", "gan", "other", "--calibrate_on", held_out)
    folder = tmp_path / "output/transfer/resnet18"
    for name, shared in (("gan", 3), ("other", 1)):
        summary = by_name(folder / f"{name}_0.5/summary.csv")
        assert float(summary["baseline"]["threshold"]) == pytest.approx(
            np.mean(1 / (1 + np.exp([3.5, -3.0]))), abs=1e-4
        )
        note = json.loads((folder / f"{name}_0.5/summary.csv.json").read_text())["threshold_note"]
        assert "on held_out" in note
        assert f"{shared} of these images are reported on" in note
    paths = [row["path"] for row in rows(tmp_path / "output/calibration/resnet18/held_out_0.5/scores.csv")]
    names = ("0_real/renamed_e.png", "1_fake/renamed_a.png", "1_fake/renamed_d.png")
    assert paths == [f"held_out/{name}" for name in names]


def test_a_set_of_the_data_folder_can_be_named_for_calibration(run: Callable[..., Run], tmp_path: Path) -> None:
    done = run(COLOUR, "--calibrate_on", "gan")
    assert "11 of these images are reported on" in done.out
    assert "no folder" in run(COLOUR, "--calibrate_on", "absent", code=2).err


def test_progan_has_the_threshold_of_training(run: Callable[..., Run], small_images: Path, tmp_path: Path) -> None:
    data = other_name(small_images, tmp_path / "data", "progan")
    done = run(COLOUR, "--dataset_dir", data, "--gan_name", "progan")
    assert "threshold 0.5, fixed" in done.out


def test_tables_hold_the_sets_of_earlier_commands(
    run: Callable[..., Run], rankings: dict[str, Path], small_images: Path, tmp_path: Path
) -> None:
    data = other_name(small_images, tmp_path / "data")
    given = ["--dataset_dir", data, "--topk", 5, "--draws", 1]
    table = tmp_path / "output/transfer/resnet18/transfer_0.5.csv"

    def generators() -> list[str]:
        return list(dict.fromkeys(row["generator"] for row in rows(table)))

    run(SENSITIVITY, *given, "--relevances", rankings["random"], "--gan_name", "other")
    assert generators() == ["other"]
    assert "mean of" not in table.with_suffix(".md").read_text()
    run(SENSITIVITY, *given, "--relevances", rankings["random"])
    assert generators() == ["gan", "other"]
    ap = {row["generator"]: 100 * float(row["ap"]) for row in rows(table) if row["variant"] == TOP}
    mean, error = np.mean(list(ap.values())), np.std(list(ap.values()), ddof=1) / 2**0.5
    assert (
        f"| mean of 2 sets ± standard error | top-k |  | {mean:.1f} ± {error:.1f} |"
        in table.with_suffix(".md").read_text()
    )
    # Another ranking, or another k, is another table.
    run(SENSITIVITY, *given, "--relevances", rankings["depth"])
    assert generators() == ["gan"]
    run(SENSITIVITY, *given, "--relevances", rankings["random"])
    assert generators() == ["gan", "other"]
    run(SENSITIVITY, *given, "--relevances", rankings["random"], "--topk", 6)
    assert generators() == ["gan"]


@pytest.mark.parametrize(
    ("script", "extra", "words"),
    [
        (SENSITIVITY, ["--topk", "0"], "at least 1"),
        (SENSITIVITY, ["--topk", "1000000"], "k = 1000000 is out of range"),
        (SENSITIVITY, ["--relevances", "absent.csv"], "rank_fmaps.py"),
        (COLOUR, ["--second_weights", "x.pth", "--second_tag", "0.5"], "--second_tag 0.5"),
        (TOPK, ["--target_ap", "1.5"], "--target_ap"),
    ],
)
def test_wrong_choices(
    run: Callable[..., Run], rankings: dict[str, Path], tmp_path: Path, script: str, extra: list[str], words: str
) -> None:
    given = [] if script == COLOUR else ["--relevances", rankings["random"]]
    refused = run(script, *given, *extra, code=2)
    assert words in refused.err.splitlines()[-1]
    assert not (tmp_path / "output").exists()


def test_images_of_one_kind_are_refused(run: Callable[..., Run], small_images: Path, tmp_path: Path) -> None:
    """Also where the others cannot be decoded."""
    data = other_name(small_images, tmp_path / "data")
    for path in (data / "gan/1_fake").iterdir():
        path.write_bytes(b"no image")
    refused = run(COLOUR, "--dataset_dir", data, "--skip_bad_images", code=2)
    assert "gan: no fake images" in refused.err.splitlines()[-1]
    shutil.rmtree(data / "gan/1_fake")
    assert "1_fake" in run(COLOUR, "--dataset_dir", data, code=2).err
    assert not list(tmp_path.rglob("*.csv"))


def test_colour_ablation_of_two_detectors(run: Callable[..., Run], small_weights: Path, tmp_path: Path) -> None:
    second = shutil.copy(small_weights, tmp_path / "second.pth")
    run(COLOUR, "--second_weights", second)
    folder = tmp_path / "output/grayscale-transfer/resnet18"
    scores = rows(folder / "gan_0.5/scores.csv")
    assert list(scores[0]) == ["path", "label", "rgb", "grayscale"]
    assert {row["path"]: float(row["rgb"]) for row in scores} == pytest.approx(PROBABILITIES, abs=1e-4)
    assert any(abs(float(row["rgb"]) - float(row["grayscale"])) > 0.01 for row in scores)
    assert [row["variant"] for row in rows(folder / "gan_cr/summary.csv")] == ["rgb", "grayscale"]
    for tag in ("0.5", "cr"):
        page = (folder / f"grayscale-transfer_{tag}.md").read_text()
        assert "| gan | grayscale |" in page
        # Nothing is dropped here, and nothing was published of a resnet18.
        assert "maps dropped" not in page
        assert "ublished" not in page
    done = run("grayscale_sensitivity_whisker_plots", "--second_weights", second)
    assert done.out.count("done before") == 1


# The choice of k


def test_choice_of_k(run: Callable[..., Run], rankings: dict[str, Path], tmp_path: Path) -> None:
    """Without all 64 maps of the first convolution every image looks the same."""
    given = ["--relevances", rankings["depth"], "--draws", 1, "--numbers", 1, 64]
    assert "warning: gan: the ranking" in run(TOPK, *given).out, "its checkpoint is not known"
    folder = tmp_path / "output/find_topk/resnet18/gan_0.5"
    ap = json.loads((folder / "topk.json").read_text())["ap"]
    assert ap["1"] > ap["64"] == pytest.approx(6 / 11)
    target = (ap["1"] + ap["64"]) / 2
    done = run(TOPK, *given, "--bisect", "--target_ap", target)
    chosen = json.loads((folder / "topk.json").read_text())
    tried = sorted(int(k) for k in chosen["ap"])
    assert f"gan: k = {chosen['k']}, smallest k tried with top-k AP <= {target:.3f}" in done.out
    assert chosen["ap"][str(chosen["k"])] <= target
    assert all(chosen["ap"][str(k)] > target for k in tried if k < chosen["k"])
    before = max(k for k in tried if k < chosen["k"])
    assert chosen["k"] - before <= max(1, 0.05 * before)
    curves = rows(folder / "curves.csv")
    assert {(row["k"], row["variant"]) for row in curves} == {
        (str(k), variant) for k in tried for variant in (TOP, RANDOM, LOW)
    }
    assert all(float(row["ap_low"]) <= float(row["ap"]) <= float(row["ap_high"]) for row in curves)
    # A bisection goes on where it was: nothing is computed again.
    scores = {name: data for name, data in contents(folder / "passes").items() if name.endswith("scores.csv")}
    assert len(scores) == len(tried) - 1
    again = run(TOPK, *given, "--bisect", "--target_ap", target)
    assert again.out.count("done before") == len(scores)


@pytest.mark.parametrize(
    ("target", "words"), [(0, "AP stays above 0.000: try larger"), (0.9, "the unchanged detector has AP 0.8")]
)
def test_no_k_where_there_is_none(
    run: Callable[..., Run], rankings: dict[str, Path], target: float, words: str
) -> None:
    """A real and a fake of equal scores leave the unchanged detector an AP of 0.88 to 0.9."""
    done = run(TOPK, "--relevances", rankings["random"], "--draws", 1, "--numbers", 1, "--target_ap", target)
    assert "no k chosen" in done.out
    assert words in done.out


@given(st.floats(0.02, 0.98), st.lists(st.integers(1, 1000), min_size=2, max_size=6, unique=True))
def test_bisection_finds_k(target: float, first: list[int]) -> None:
    """Of an AP that falls steadily; it never tries a k twice, and ends at a k known to 5 %."""
    tried = {k: 1 - k / 1001 for k in first}
    for _ in range(20):
        k = next_number(tried, target)
        if k is None:
            break
        assert k not in tried
        tried[k] = 1 - k / 1001
    found = smallest_below(tried, target)
    below = [k for k in first if tried[k] > target]
    if found is None or not below:
        assert tried.keys() == set(first)
    else:
        exact = next(k for k in range(1, 1001) if 1 - k / 1001 <= target)
        assert exact <= found <= max(exact + 1, 1.06 * exact)


# Figures


def result(name: str, seed: int = 0) -> Result:
    """A set of random scores under every variant."""
    draws = {kind: [f"{kind}-1", f"{kind}-2"] for kind in (RANDOM, LAYER_RANDOM)}
    columns = [BASELINE, TOP, LOW, *draws[RANDOM], *draws[LAYER_RANDOM]]
    return Result(name, {row.variant: row for row in summarised(columns, draws, seed)}, {})


def summarised(columns: Sequence[str], draws: dict[str, list[str]], seed: int = 0) -> list[ScoreSummary]:
    generator = np.random.default_rng(seed)
    return summarise_columns([0, 1] * 10, {name: generator.random(20) for name in columns}, draws, draws=20)


def test_figures_of_one_and_of_several_sets(tmp_path: Path) -> None:
    for number, results in enumerate(([result("a")], [result("a"), result("b", 1)])):
        (path,) = plot_sensitivity(results, tmp_path / str(number), "title")
        assert path.stat().st_size > 5000


def test_curves_over_k_and_their_figure(tmp_path: Path) -> None:
    columns = [BASELINE, *(f"{name}@{k}" for k in (20, 2) for name in (TOP, LOW, "random-k-1", "random-k-2"))]
    draws = {f"{RANDOM}@{k}": [f"random-k-{n}@{k}" for n in (1, 2)] for k in (2, 20)}
    rows = {row.variant: row for row in summarised(columns, draws)}
    rows["random-k@2-averaged"] = rows["random-k@2"]
    curves = curves_of(rows)
    assert {name: list(points) for name, points in curves.items()} == {name: [2, 20] for name in (TOP, RANDOM, LOW)}
    assert curves[RANDOM][20] is rows[f"{RANDOM}@20"]
    for chosen in (2, None):
        (path,) = plot_topk(curves, rows[BASELINE], chosen, tmp_path / "topk", "title")
        assert path.stat().st_size > 5000


def scores(rgb: list[float], grayscale: list[float], labels: list[int]) -> Scores:
    columns: dict[str, Any] = {"rgb": np.array(rgb), "grayscale": np.array(grayscale)}
    return Scores(tuple(map(str, range(len(labels)))), np.array(labels), columns)


def test_boxes_hold_the_fakes_that_look_fake_in_colour(tmp_path: Path) -> None:
    high = scores([0.9, 0.9, 0.19], [0.1, 0.3, 0.9], [0, 1, 1])
    assert {key: values.tolist() for key, values in chosen_fakes(high).items()} == {"rgb": [90.0], "grayscale": [30.0]}
    none = scores([0.1, 0.1], [0.9, 0.9], [0, 1])
    (path,) = plot_whiskers({"one": {"high": high, "none": none}, "two": {"high": high}}, tmp_path / "w", "title")
    assert path.stat().st_size > 5000
