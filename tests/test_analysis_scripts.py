"""Steps 2, 5, 6, 7 and the choice of k from the command line, on a toy set."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ranking_runs import LOGITS, Scripts, contents
from sensitivity_assessment.scores import ScoreCollector

from detectors.networks import build_model
from fmap_ranking.ranking import Ranking
from lrp.canonise import build_program, explained_layers
from passes.one_pass import PassBatch

SENSITIVITY = "transfer_sensitivity_analysis"
COLOUR = "grayscale_sensitivity_analysis"
WHISKERS = "grayscale_sensitivity_whisker_plots"
MEDIAN = "median_test_activation_histograms"
SHARE = "find_color_conditional_percentage"
TOPK = "find_topk"
WITH_IMAGES = (SENSITIVITY, COLOUR, WHISKERS, MEDIAN, TOPK)
WITH_RANKING = (SENSITIVITY, MEDIAN, TOPK)


@pytest.fixture(scope="module")
def ranking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranking") / "fake.csv"
    layers = explained_layers(build_program(build_model("resnet18").eval()))
    values = np.random.default_rng(0).random(sum(channels for _, channels in layers))
    Ranking.from_values(layers, values / 1000).write(path)
    return path


@pytest.fixture
def common(small_images: Path, small_weights: Path) -> list[object]:
    return [
        "--arch",
        "resnet18",
        "--weights",
        small_weights,
        "--dataset_dir",
        small_images,
        "--gan_name",
        "gan",
        "--device",
        "cpu",
        "--bsize",
        4,
    ]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_sensitivity(scripts: Scripts, common: list[object], ranking: Path, tmp_path: Path) -> None:
    done = scripts(SENSITIVITY, *common, "--relevances", ranking, "--topk", 20, "--draws", 2)
    assert done.code == 0, done.err
    folder = tmp_path / "output/transfer/resnet18/gan_0.5"
    assert sorted(path.name for path in folder.iterdir()) == [
        "dropped_maps.csv",
        "scores.csv",
        "scores.csv.json",
        "summary.csv",
        "summary.csv.json",
    ]
    scores = rows(folder / "scores.csv")
    assert list(scores[0]) == [
        "path",
        "label",
        "baseline",
        "top-k",
        "low-k",
        "random-k-1",
        "random-k-2",
        "layer-random-k-1",
        "layer-random-k-2",
    ]
    expected = {name: 1 / (1 + np.exp(-logit)) for name, logit in LOGITS.items()}
    assert {row["path"]: float(row["baseline"]) for row in scores} == pytest.approx(expected, abs=1e-4)
    assert {row["path"]: int(row["label"]) for row in scores} == {name: int("1_fake" in name) for name in LOGITS}
    assert "optimistic" in done.out
    record = json.loads((folder / "summary.csv.json").read_text())
    assert record["topk"] == 20
    assert set(record["inputs"]) == {"images", "ranking", "weights"}
    dropped = rows(folder / "dropped_maps.csv")
    assert [row["key"] for row in dropped if row["variant"] == "top-k"] == [
        line.split(",")[0] for line in ranking.read_text().splitlines()[1:21]
    ]
    stem = tmp_path / "output/transfer/resnet18/transfer_0.5"
    for suffix in (".csv", ".md", ".png", ".pdf"):
        assert stem.with_name(stem.name + suffix).is_file()


def test_published_variants(scripts: Scripts, common: list[object], ranking: Path, tmp_path: Path) -> None:
    done = scripts(SENSITIVITY, *common, "--relevances", ranking, "--topk", 20, "--compat", "published")
    assert done.code == 0, done.err
    folder = tmp_path / "output/transfer/resnet18/gan_0.5"
    assert list(rows(folder / "scores.csv")[0])[2:] == [
        "baseline",
        "top-k",
        "low-k",
        *(f"random-k-{n}" for n in range(1, 6)),
    ]
    baseline = rows(folder / "summary.csv")[0]
    # The fake that defines the threshold is not above it.
    assert float(baseline["acc_fake_calibrated"]) < 1
    assert "fake above the threshold" in done.out


def test_calibration_on_a_held_out_set(
    scripts: Scripts, common: list[object], ranking: Path, small_images: Path, tmp_path: Path
) -> None:
    held_out = tmp_path / "held_out"
    for name, label in (("e", "0_real"), ("a", "1_fake"), ("d", "1_fake")):
        (held_out / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(small_images / "gan" / label / f"{name}.png", held_out / label)
    arguments = [*common, "--relevances", ranking, "--topk", 5, "--draws", 1]
    done = scripts(SENSITIVITY, *arguments, "--calibrate_on", held_out)
    assert done.code == 0, done.err
    folder = tmp_path / "output/transfer/resnet18/gan_0.5"
    threshold = float(rows(folder / "summary.csv")[0]["threshold"])
    assert threshold == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-4)
    assert [row["path"] for row in rows(folder / "calibration.csv")] == [
        "held_out/0_real/e.png",
        "held_out/1_fake/a.png",
        "held_out/1_fake/d.png",
    ]
    assert "held_out" in done.out
    assert "optimistic" not in done.out
    same = scripts(SENSITIVITY, *arguments, "--calibrate_on", small_images / "gan")
    assert "optimistic" in same.out


def test_an_interrupted_run_is_resumed_to_the_same_bytes(
    scripts: Scripts, common: list[object], ranking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*common, "--relevances", ranking, "--topk", 5, "--draws", 1, "--output_dir"]
    assert scripts(SENSITIVITY, *arguments, tmp_path / "whole").code == 0
    seen: list[int] = []
    update = ScoreCollector.update

    def interrupted(self: ScoreCollector, batch: PassBatch) -> None:
        update(self, batch)
        seen.append(len(batch.items))
        if len(seen) == 2:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ScoreCollector, "update", interrupted)
    stopped = scripts(SENSITIVITY, *arguments, tmp_path / "parts")
    assert stopped.code == 130, stopped.err
    assert "--resume" in stopped.err
    assert scripts(SENSITIVITY, *arguments, tmp_path / "parts", "--resume").code == 0
    assert seen == [4, 4, 3]
    tables = [
        {name: data for name, data in contents(tmp_path / run).items() if not name.endswith(".json")}
        for run in ("whole", "parts")
    ]
    assert tables[0] == tables[1]


def test_colour_ablation_and_whiskers(
    scripts: Scripts, common: list[object], small_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    torch.save({"model": build_model("resnet18").state_dict()}, tmp_path / "second.pth")
    more = [*common, "--second_weights", tmp_path / "second.pth"]
    done = scripts(COLOUR, *more)
    assert done.code == 0, done.err
    folder = tmp_path / "output/grayscale-transfer/resnet18"
    scores = rows(folder / "gan_0.5" / "scores.csv")
    assert list(scores[0]) == ["path", "label", "rgb", "grayscale"]
    expected = {name: 1 / (1 + np.exp(-logit)) for name, logit in LOGITS.items()}
    assert {row["path"]: float(row["rgb"]) for row in scores} == pytest.approx(expected, abs=1e-4)
    assert any(abs(float(row["rgb"]) - float(row["grayscale"])) > 0.01 for row in scores)
    assert [row["variant"] for row in rows(folder / "gan_cr" / "summary.csv")] == ["rgb", "grayscale"]
    assert (folder / "grayscale-transfer_0.5.md").is_file()

    before = contents(folder)
    update = ScoreCollector.update
    monkeypatch.setattr(ScoreCollector, "update", lambda self, batch: pytest.fail("computed again"))
    drawn = scripts(WHISKERS, *more)
    assert drawn.code == 0, drawn.err
    assert contents(folder) == before
    plots = tmp_path / "output/whisker_plots/resnet18"
    assert sorted(contents(plots)) == ["0.5/gan.pdf", "0.5/gan.png"]

    # Other images, other scores: what is there does not count.
    monkeypatch.setattr(ScoreCollector, "update", update)
    again = scripts(WHISKERS, *more, "--num_fake", 4)
    assert again.code == 0, again.err
    assert len(rows(folder / "gan_0.5" / "scores.csv")) == 9

    clash = scripts(WHISKERS, *more, "--second_tag", "0.5")
    assert clash.code == 2
    assert "--second_tag" in clash.err


def test_whiskers_compute_what_is_not_there(scripts: Scripts, common: list[object], tmp_path: Path) -> None:
    assert scripts(WHISKERS, *common).code == 0
    assert (tmp_path / "output/grayscale-transfer/resnet18/gan_0.5/scores.csv").is_file()
    assert (tmp_path / "output/whisker_plots/resnet18/0.5/gan.png").is_file()


def test_median_test_and_share(scripts: Scripts, common: list[object], ranking: Path, tmp_path: Path) -> None:
    done = scripts(MEDIAN, *common, "--relevances", ranking, "--topk", 3)
    assert done.code == 0, done.err
    folder = tmp_path / "output/median_test/resnet18_0.5"
    tests = rows(folder / "gan.csv")
    keys = [line.split(",")[0] for line in ranking.read_text().splitlines()[1:4]]
    assert [row["feature_map_name"] for row in tests] == keys
    assert {row["images"] for row in tests} == {"6"}
    pictures = tmp_path / "output/activation_histograms/resnet18/0.5"
    wanted = ["gan.pdf", "gan.png", *(f"{key}/gan.{kind}" for key in keys for kind in ("pdf", "png"))]
    assert sorted(contents(pictures)) == sorted(wanted)

    arguments = ["--arch", "resnet18", "--blur_jpg", "0.5", "--gan_name", "gan"]
    counted = scripts(SHARE, *arguments)
    assert counted.code == 0, counted.err
    (share,) = rows(folder / "color_conditional.csv")
    assert (share["generator"], share["maps"]) == ("gan", "3")
    assert float(share["share"]) == sum(float(row["p_value"]) <= 0.05 for row in tests) / 3
    assert (folder / "color_conditional.png").is_file()
    for extra, words in (
        (["--topk", "4"], "more than the 3 maps"),
        (["--gan_name", "other"], "python src/median_test_activation_histograms.py --arch resnet18"),
    ):
        refused = scripts(SHARE, *arguments, *extra)
        assert refused.code == 2
        assert words in refused.err


def test_overview_only(scripts: Scripts, common: list[object], ranking: Path, tmp_path: Path) -> None:
    assert scripts(MEDIAN, *common, "--relevances", ranking, "--topk", 2, "--histograms", "overview").code == 0
    assert sorted(contents(tmp_path / "output/activation_histograms")) == [
        "resnet18/0.5/gan.pdf",
        "resnet18/0.5/gan.png",
    ]


def test_choice_of_k(scripts: Scripts, common: list[object], tmp_path: Path) -> None:
    # Without all 64 maps of the first convolution every image looks the same.
    layers = explained_layers(build_program(build_model("resnet18").eval()))
    omega = np.linspace(0.01, 0, sum(channels for _, channels in layers))
    Ranking.from_values(layers, omega).write(tmp_path / "depth.csv")
    arguments = [*common, "--relevances", tmp_path / "depth.csv", "--draws", 1, "--numbers", 1, 64]
    done = scripts(TOPK, *arguments)
    assert done.code == 0, done.err
    folder = tmp_path / "output/find_topk/resnet18/gan_0.5"
    ap = json.loads((folder / "topk.json").read_text())["ap"]
    assert ap["1"] > ap["64"] == pytest.approx(6 / 11)
    done = scripts(TOPK, *arguments, "--bisect", "--target_ap", (ap["1"] + ap["64"]) / 2)
    assert done.code == 0, done.err
    chosen = json.loads((folder / "topk.json").read_text())
    tried = sorted(int(k) for k in chosen["ap"])
    assert chosen["k"] in tried
    assert chosen["ap"][str(chosen["k"])] <= chosen["target_ap"]
    assert all(chosen["ap"][str(k)] > chosen["target_ap"] for k in tried if k < chosen["k"])
    before = max(k for k in tried if k < chosen["k"])
    assert chosen["k"] - before <= max(1, 0.05 * before)
    assert {(row["k"], row["variant"]) for row in rows(folder / "curves.csv")} == {
        (str(k), variant) for k in tried for variant in ("top-k", "random-k", "low-k")
    }
    assert (folder / "topk.png").is_file()
    assert not list(folder.glob(".*"))
    none = scripts(TOPK, *arguments, "--target_ap", 0)
    assert none.code == 0
    assert "no k chosen" in none.out
    assert scripts(TOPK, *arguments, "--target_ap", 1.5).code == 2


@pytest.mark.parametrize("script", WITH_RANKING)
@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--topk", "0"], "at least 1"),
        (["--topk", "1000000"], "k = 1000000 is out of range"),
        (["--relevances", "absent.csv"], "rank_fmaps.py"),
        (["--arch", "resnet50"], "--weights"),
    ],
)
def test_wrong_choices_of_maps(
    scripts: Scripts, common: list[object], ranking: Path, script: str, extra: list[str], words: str
) -> None:
    if extra[0] == "--arch":
        words = "resnet"
    done = scripts(script, *common, "--relevances", ranking, *extra)
    assert done.code == 2
    assert words in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("script", WITH_RANKING)
def test_a_ranking_of_another_network(scripts: Scripts, common: list[object], tmp_path: Path, script: str) -> None:
    (tmp_path / "other.csv").write_text("key,mean_relevance\n_conv_stem.#6(T=32),0.5\n")
    done = scripts(script, *common, "--relevances", tmp_path / "other.csv")
    assert done.code == 2
    assert "the detector has no layer _conv_stem" in done.err


@pytest.mark.parametrize("script", WITH_IMAGES)
@pytest.mark.parametrize("without", ["folder", "images", "generator"])
def test_a_generator_without_fakes(
    scripts: Scripts, common: list[object], ranking: Path, small_images: Path, tmp_path: Path, script: str, without: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(small_images / "gan" / "0_real", data / "gan" / "0_real")
    if without == "images":
        (data / "gan" / "1_fake").mkdir()
    more = ["--relevances", ranking, "--topk", 2] if script in WITH_RANKING else []
    name = "other" if without == "generator" else "gan"
    done = scripts(script, *common, *more, "--dataset_dir", data, "--gan_name", name)
    assert done.code == 2
    assert ("1_fake" if without != "generator" else "other") in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("script", WITH_IMAGES)
def test_all_fakes_damaged(
    scripts: Scripts, common: list[object], ranking: Path, small_images: Path, tmp_path: Path, script: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(small_images / "gan" / "0_real", data / "gan" / "0_real")
    (data / "gan" / "1_fake").mkdir()
    (data / "gan" / "1_fake" / "x.png").write_bytes(b"no image")
    more = ["--relevances", ranking, "--topk", 2] if script in WITH_RANKING else []
    done = scripts(script, *common, *more, "--dataset_dir", data)
    assert (done.code, "x.png" in done.err) == (2, True)
    done = scripts(script, *common, *more, "--dataset_dir", data, "--skip_bad_images")
    assert done.code == 2
    assert "gan: no fake images" in done.err
