"""Variants, collected scores, summaries, tables and the choice of k."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from sensitivity_assessment.choice import curves_of, next_number, smallest_below, variants_for
from sensitivity_assessment.outputs import GeneratorResult, ResultFiles, write_colour_table, write_sensitivity_table
from sensitivity_assessment.results import is_current, read_result, write_result
from sensitivity_assessment.scores import ScoreCollector, Scores, read_scores
from sensitivity_assessment.summary import (
    choose_threshold,
    read_summary,
    summarise,
    write_summary,
)
from torch import Tensor

from evaluation.metrics import average_precision
from evaluation.published import GENERATORS, published_colour_ap, published_sensitivity
from evaluation.thresholds import Threshold
from fmap_ranking.ranking import Ranking
from images.loading import Batch
from images.sets import ImageItem, ImageSet
from passes.one_pass import PassBatch
from sensitivity_assessment.figures import plot_sensitivity
from sensitivity_assessment.variants import BASELINE, LAYER_RANDOM, LOW, RANDOM, TOP, make_variants
from sensitivity_assessment.whiskers import chosen_fakes, plot_whiskers
from utils.errors import UserError
from utils.files import write_provenance

LAYERS = [("a", 4), ("b", 40), ("c", 60)]


def ranking() -> Ranking:
    values = np.random.default_rng(0).random(104) / 104
    values[:3] += 0.1  # three of the four maps of layer a lead
    return Ranking.from_values(LAYERS, values)


def scores(columns: Mapping[str, list[float]], labels: list[int], names: str = "x") -> Scores:
    paths = tuple(f"{names}/{number}.png" for number in range(len(labels)))
    return Scores(paths, np.array(labels), {name: np.array(values) for name, values in columns.items()})


def test_variants_drop_what_their_names_say() -> None:
    ranked = ranking()
    variants = make_variants(ranked, 10, seed=3, draws=2)
    assert list(variants.maps) == [
        BASELINE,
        TOP,
        LOW,
        "random-k-1",
        "random-k-2",
        "layer-random-k-1",
        "layer-random-k-2",
    ]
    top = set(variants.maps[TOP])
    assert variants.maps[BASELINE] == ()
    assert variants.maps[LOW] == ranked.maps[-10:]
    for name in variants.draws[RANDOM]:
        assert len(set(variants.maps[name])) == 10
        assert not top & set(variants.maps[name])
    for name in variants.draws[LAYER_RANDOM]:
        matched = variants.maps[name]
        assert not top & set(matched)
        # Layer a has one map outside the top ten, which holds three of it.
        assert variants.shortfall[name] == {"a": 2}
        assert sum(fmap.layer == "a" for fmap in matched) == 1
        for layer in ("b", "c"):
            assert sum(f.layer == layer for f in matched) == sum(f.layer == layer for f in top)
    assert variants.maps["random-k-1"] != variants.maps["random-k-2"]
    again = make_variants(ranked, 10, seed=3, draws=2)
    assert again.maps == variants.maps
    assert make_variants(ranked, 10, seed=4, draws=2).maps != variants.maps


def test_published_draws_are_with_replacement_and_not_layer_matched() -> None:
    ranked = ranking()
    drawn = [make_variants(ranked, 50, seed=seed, draws=1, published=True) for seed in range(5)]
    sizes = [len(variants.maps["random-k-1"]) for variants in drawn]
    assert max(sizes) < 50  # of 54 maps, 50 draws with replacement hold about 32
    for variants in drawn:
        assert list(variants.maps) == [BASELINE, TOP, LOW, "random-k-1"]
        assert not set(variants.maps[TOP]) & set(variants.maps["random-k-1"])


@pytest.mark.parametrize("k", [0, 53, 1000])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(UserError, match=f"k = {k} is out of range"):
        make_variants(ranking(), k, seed=0)


def test_metrics_by_hand() -> None:
    table = scores(
        {"base": [0.1, 0.4, 0.5, 0.35, 0.5, 0.9], "r1": [0, 0, 0, 1, 1, 1], "r2": [1, 1, 1, 0, 0, 0]},
        [0, 0, 0, 1, 1, 1],
    )
    threshold = Threshold(0.35, source="elsewhere")
    rows = {row.variant: row for row in summarise(table, {"r": ["r1", "r2"]}, threshold, bootstrap=50)}
    assert list(rows) == ["base", "r1", "r2", "r", "r-averaged"]
    base = rows["base"].values
    # A third of recall each: precision 1 at 0.9, 2/3 at 0.5, 3/5 at 0.35.
    assert base["ap"] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert (base["acc_real"], base["acc_fake"], base["acc"]) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert (base["acc_real_calibrated"], base["acc_fake_calibrated"]) == pytest.approx((1 / 3, 1))
    strict = summarise(table, {}, threshold, published=True, bootstrap=5)[0].values
    assert (strict["acc_real"], strict["acc_fake"]) == pytest.approx((1, 1 / 3))
    assert strict["acc_fake_calibrated"] == pytest.approx(2 / 3)
    mean = rows["r"]
    assert mean.draws == 2
    assert mean.values["ap"] == pytest.approx((1 + average_precision(table.labels, table.columns["r2"])) / 2)
    assert mean.spread["acc"] == pytest.approx(np.std([1, 0], ddof=1))
    assert rows["r-averaged"].values["ap"] == 0.5
    assert np.isnan(rows["base"].spread["ap"])


def test_where_the_threshold_comes_from() -> None:
    table = scores({BASELINE: [0.1, 0.2, 0.3, 0.6]}, [0, 0, 1, 1])
    held_out = scores({BASELINE: [0.1, 0.5, 0.7]}, [0, 0, 1], "other")
    own = choose_threshold("gan", table, BASELINE, None)
    assert (own.value, own.shared) == (0.25, 4)
    assert "optimistic" in own.note
    assert choose_threshold("gan", table, BASELINE, None, published=True).value == 0.3
    other = choose_threshold("gan", table, BASELINE, ("valid", held_out))
    assert (other.value, other.shared) == (0.6, 0)
    assert "valid" in other.note
    assert "optimistic" not in other.note
    assert choose_threshold("gan", table, BASELINE, ("same", table)).shared
    assert choose_threshold("progan", table, BASELINE, None) == Threshold()


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_an_error(label: int, tmp_path: Path) -> None:
    table = scores({BASELINE: [0.1, 0.2]}, [label, label])
    with pytest.raises(UserError, match=f"gan: no {'fake' if label == 0 else 'real'} images"):
        write_result(ResultFiles(tmp_path, "transfer", "x", "gan", "0.5"), table, chosen_on=BASELINE)
    assert not list(tmp_path.rglob("*"))


def test_files_come_back_as_they_were(tmp_path: Path) -> None:
    table = scores({"base": [0.1, 1 / 3], "r-1": [1e-30, 1.0]}, [0, 1])
    table.write(tmp_path / "scores.csv")
    back = read_scores(tmp_path / "scores.csv", made_by="x")
    assert back.paths == table.paths
    assert all(np.array_equal(back.columns[name], table.columns[name]) for name in table.columns)
    rows = summarise(table, {"r": ["r-1", "base"]}, Threshold(0.25), bootstrap=5)
    write_summary(tmp_path / "summary.csv", rows)
    read = read_summary(tmp_path / "summary.csv", made_by="x")
    assert [(r.variant, r.draws, r.threshold, r.values, r.low, r.high) for r in read] == [
        (r.variant, r.draws, r.threshold, r.values, r.low, r.high) for r in rows
    ]
    header = (tmp_path / "summary.csv").read_text().splitlines()[0]
    assert header.startswith(
        "variant,ap,acc_real,acc_fake,acc,threshold,acc_real_calibrated,acc_fake_calibrated,acc_calibrated"
    )


@pytest.mark.parametrize(
    "text", ["", "path,label\nx,a\n", "label,path\n0,x\n", "path,label,base\nx,0\n", "path,label,base\nx,0,much\n"]
)
def test_damaged_tables(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(text)
    for read in (read_scores, read_summary):
        if read is read_summary and not text:
            continue
        with pytest.raises(UserError, match=r"scores\.csv is damaged .*make it anew with src/x\.py"):
            read(path, made_by="src/x.py")  # type: ignore[operator]


def test_missing_tables_name_their_maker(tmp_path: Path) -> None:
    for read in (read_scores, read_summary):
        with pytest.raises(UserError, match=r"absent\.csv: make (it|them) with src/x\.py"):
            read(tmp_path / "absent.csv", made_by="src/x.py")  # type: ignore[operator]


def images(count: int) -> ImageSet:
    items = tuple(ImageItem(Path(f"{n}.png"), f"{n}.png", n % 2, "", "gan") for n in range(count))
    return ImageSet(Path(), items)


def batch(image_set: ImageSet, positions: tuple[int, ...]) -> PassBatch:
    items = tuple(image_set.items[position] for position in positions)
    labels = torch.tensor([item.label for item in items])
    return PassBatch(
        Batch(torch.zeros(len(items), 3, 2, 2, dtype=torch.uint8), labels, items, positions, 0), lambda x: x
    )


def collector(image_set: ImageSet, **options: bool) -> ScoreCollector:
    def score(view: PassBatch) -> dict[str, Tensor]:
        logits = torch.tensor([[float(position)] for position in view.batch.positions])
        return {"plus": 10 * logits, "minus": -logits}

    return ScoreCollector("test", image_set, ["plus", "minus"], score, **options)


def test_collected_batch_by_batch_resumed_and_merged() -> None:
    image_set = images(5)
    whole = collector(image_set)
    whole.update(batch(image_set, (0, 1, 2, 3, 4)))
    parts, other = collector(image_set), collector(image_set)
    parts.update(batch(image_set, (3, 0)))
    resumed = collector(image_set)
    resumed.load_state(parts.state())
    resumed.update(batch(image_set, (1,)))
    other.update(batch(image_set, (4, 2)))
    resumed.merge(other.state())
    for name, column in whole.result().columns.items():
        assert np.array_equal(resumed.result().columns[name], column)
    assert resumed.result().paths == tuple(f"{n}.png" for n in range(5))
    assert parts.result().paths == ("0.png", "3.png")
    assert parts.result().labels.tolist() == [0, 1]


def test_only_the_published_scores_tie_at_one() -> None:
    image_set = images(4)
    for single, ties in ((True, True), (False, False)):
        found = collector(image_set, single_precision=single)
        found.update(batch(image_set, (2, 3)))
        low, high = found.result().columns["plus"]
        assert (low == high) is np.bool_(ties)


def test_a_score_that_is_no_number_names_its_image() -> None:
    image_set = images(2)
    broken = ScoreCollector("test", image_set, ["x"], lambda view: {"x": torch.tensor([[0.0], [float("nan")]])})
    with pytest.raises(UserError, match=r"1\.png: the detector's output is not a number"):
        broken.update(batch(image_set, (0, 1)))


def result(tmp_path: Path, name: str, seed: int = 0) -> GeneratorResult:
    generator = np.random.default_rng(seed)
    labels = [0] * 10 + [1] * 10
    columns = {
        column: generator.random(20).tolist()
        for column in (BASELINE, TOP, LOW, "random-k-1", "random-k-2", "layer-random-k-1", "layer-random-k-2")
    }
    draws = {RANDOM: ["random-k-1", "random-k-2"], LAYER_RANDOM: ["layer-random-k-1", "layer-random-k-2"]}
    files = ResultFiles(tmp_path, "transfer", "resnet50", name, "0.5")
    write_result(files, scores(columns, labels), chosen_on=BASELINE, draws=draws, record={"inputs": {"weights": "w"}})
    return read_result(files, made_by="x")


def test_results_know_where_they_come_from(tmp_path: Path) -> None:
    found = result(tmp_path, "gan")
    files = ResultFiles(tmp_path, "transfer", "resnet50", "gan", "0.5")
    assert (found.images, found.fakes) == (20, 10)
    assert "optimistic" in found.note
    assert is_current(files, {"weights": "w"}, {})
    assert not is_current(files, {"weights": "v"}, {})
    assert not is_current(files, {"weights": "w"}, {"crop": "none"})
    write_provenance(files.summary, inputs={"weights": "v"})
    assert not is_current(files, {"weights": "w"}, {})
    files.scores.unlink()
    assert not is_current(files, {"weights": "v"}, {})


@pytest.mark.parametrize(("k", "tag", "shown"), [(114, "0.5", True), (113, "0.5", False), (114, "0.1", False)])
def test_published_figures_stand_beside_comparable_ones_only(tmp_path: Path, k: int, tag: str, shown: bool) -> None:
    results = [result(tmp_path, "stylegan2"), result(tmp_path, "mine", 1)]
    paths = write_sensitivity_table(tmp_path / "table", "resnet50", tag, k, results, ranking="r.csv", published=False)
    with paths[0].open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows if row["generator"] == "mine"] == [
        BASELINE,
        TOP,
        RANDOM,
        "random-k-averaged",
        LAYER_RANDOM,
        LOW,
    ]
    by_variant = {row["variant"]: row for row in rows if row["generator"] == "stylegan2"}
    assert by_variant[TOP]["published_ap"] == ("0.553" if shown else "")
    assert by_variant["random-k-averaged"]["published_ap"] == ("0.986" if shown else "")
    assert by_variant[RANDOM]["published_ap"] == ""
    assert {row["published_ap"] for row in rows if row["generator"] == "mine"} == {""}
    assert float(by_variant[TOP]["ap"]) == results[0].rows[TOP].values["ap"]
    text = paths[1].read_text()
    assert ("| 55.3 | 89.4 / 11.3 |" in text) is shown
    assert "ECCV 2022" in text


def test_colour_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = []
    for tag in ("0.5", "cr"):
        files = ResultFiles(tmp_path, "grayscale-transfer", "efb0", "cyclegan", tag)
        table = scores({"rgb": rng.random(8).tolist(), "grayscale": rng.random(8).tolist()}, [0, 1] * 4)
        write_result(files, table, chosen_on="rgb")
        found.append(read_result(files, made_by="x"))
    detectors = {"one": ("efb0", "0.5", found[:1]), "two": ("efb0", "cr", found[1:])}
    with write_colour_table(tmp_path / "table", detectors, published=False)[0].open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["detector"], row["images"], row["published_ap"]) for row in rows] == [
        ("one", "rgb", "0.973"),
        ("one", "grayscale", "0.865"),
        ("two", "rgb", "0.957"),
        ("two", "grayscale", "0.913"),
    ]


def test_published_figures() -> None:
    assert published_sensitivity("resnet50", "top-k", "biggan") == (55.4, 86.4, 18.3)
    assert published_sensitivity("efb0", "random-k", "gaugan") == (98.1, 87.8, 96.2)
    assert published_sensitivity("resnet18", "top-k", "biggan") is None
    assert published_sensitivity("efb0", "top-k", "san") is None
    assert published_colour_ap("resnet50", "cr-grayscale", GENERATORS[3]) == 87.6


def test_figures_are_drawn_also_for_one_generator_and_empty_boxes(tmp_path: Path) -> None:
    results = [result(tmp_path, "a"), result(tmp_path, "b", 1)]
    for number, chosen in enumerate((results, results[:1])):
        for path in plot_sensitivity(chosen, tmp_path / f"figure{number}", "title"):
            assert path.stat().st_size > 5000
    low = scores({"rgb": [0.1, 0.1, 0.1], "grayscale": [0.9, 0.9, 0.9]}, [0, 1, 1])
    high = scores({"rgb": [0.9, 0.9, 0.19], "grayscale": [0.1, 0.3, 0.9]}, [0, 1, 1])
    assert {key: values.tolist() for key, values in chosen_fakes(high).items()} == {"rgb": [90.0], "grayscale": [30.0]}
    for path in plot_whiskers({"one": {"low": low, "high": high}}, tmp_path / "whiskers", "title"):
        assert path.stat().st_size > 5000


def test_bisection_finds_k() -> None:
    def ap(k: int) -> float:
        return 1 - k / 1000

    tried = {k: ap(k) for k in (1, 10, 100, 1000)}
    while (k := next_number(tried, 0.58)) is not None:
        assert k not in tried
        tried[k] = ap(k)
    found = smallest_below(tried, 0.58)
    assert found is not None
    assert 420 <= found <= 442
    assert len(tried) < 14


@pytest.mark.parametrize(
    ("tried", "target"), [({1: 0.5, 10: 0.4}, 0.6), ({1: 0.9, 10: 0.8}, 0.6), ({5: 0.9, 6: 0.1}, 0.6)]
)
def test_bisection_ends_where_there_is_nothing_between(tried: dict[int, float], target: float) -> None:
    assert next_number(tried, target) is None


def test_curves_over_k() -> None:
    variants = variants_for(ranking(), [2, 20], seed=0, draws=2)
    assert list(variants.maps) == [
        BASELINE,
        *(f"{name}@{k}" for k in (2, 20) for name in (TOP, LOW, "random-k-1", "random-k-2")),
    ]
    rng = np.random.default_rng(1)
    table = scores({name: rng.random(10).tolist() for name in variants.maps}, [0, 1] * 5)
    rows = {row.variant: row for row in summarise(table, variants.draws, Threshold(), bootstrap=5)}
    curves = curves_of(rows)
    assert {name: sorted(points) for name, points in curves.items()} == {name: [2, 20] for name in (TOP, RANDOM, LOW)}
    point = curves[RANDOM][20]
    draws = [rows[f"random-k-{n}@20"].values["ap"] for n in (1, 2)]
    assert (point["ap_min"], point["ap_max"], point["ap"]) == pytest.approx((min(draws), max(draws), np.mean(draws)))
