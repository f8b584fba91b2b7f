"""Evaluation: scores under conditions, tables over detectors and sets, loose images, and what cannot be right."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranking_runs import LOGITS, Run, Scripts, detector_of, image_set, tuned_model
from training_helpers import register_tiny

import evaluation.evaluate
import evaluation.loose_images
import images.loading
import passes.running
from detectors.choice import DetectorChoice, named_detectors
from detectors.detector import Detector
from evaluation.assessment import Result
from evaluation.conditions import GRAYSCALE, RGB, Condition, WithoutMaps, sweeps
from evaluation.published import paper_topk, published_colour_ap, published_sensitivity, wang_results
from evaluation.scores import ScoreCollector, Scores, read_scores
from evaluation.summary import summarise_columns
from evaluation.tables import write_comparison, write_table
from images.decoding import Crop, decode_image
from images.distortions import blur, grayscale, jpeg, rescale
from passes.one_pass import run_pass
from passes.shared_forward import SharedForward
from utils.errors import UserError

PROBABILITIES = {name: 1 / (1 + np.exp(-logit)) for name, logit in LOGITS.items()}


@pytest.fixture(scope="module")
def detector(small_images: Path) -> Detector:
    return detector_of(tuned_model(small_images))


def by_hand(detector: Detector, image: np.ndarray) -> float:
    """p(fake) of one image (H, W, 3)."""
    with torch.no_grad():
        return float(detector.probability(torch.from_numpy(image.copy()).permute(2, 0, 1)[None]))


def scored(detector: Detector, root: Path, conditions: list[Condition], *, batch_size: int = 4) -> Scores:
    collector = ScoreCollector(SharedForward(detector), image_set(root), conditions)
    device = torch.device("cpu")
    run_pass(image_set(root), {"x": collector}, device=device, batch_size=batch_size, crop=Crop("none"))
    return collector.result()


# Conditions


def test_conditions_do_to_images_what_they_say(detector: Detector, small_images: Path) -> None:
    found = scored(detector, small_images, sweeps([60], [1.5], [0.5], encoder="cv2"))
    assert list(found.columns) == [RGB, GRAYSCALE, "jpeg-60", "blur-1.5", "rescale-0.5"]
    assert dict(zip(found.paths, found.columns[RGB], strict=True)) == pytest.approx(PROBABILITIES, abs=1e-4)
    for place in (0, 7):
        image = decode_image(small_images / found.paths[place])
        expected = {
            RGB: image,
            GRAYSCALE: np.asarray(Image.fromarray(image).convert("L").convert("RGB")),
            "jpeg-60": jpeg(image, 60, "cv2"),
            "blur-1.5": blur(image, 1.5),
            "rescale-0.5": rescale(image, 0.5),
        }
        for name, changed in expected.items():
            assert found.columns[name][place] == pytest.approx(by_hand(detector, changed), abs=1e-5), name


def test_conditions_together_are_as_one_by_one(detector: Detector, small_images: Path) -> None:
    """To the last bit, whoever shares a forward pass with whom."""
    dropped = [WithoutMaps("none", ()), WithoutMaps("some", (("layer3.0.conv1", 5), ("conv1", 2)))]
    conditions = [*sweeps([60, 90], [1.0]), *dropped]
    together = scored(detector, small_images, conditions)
    for condition in conditions:
        (alone,) = scored(detector, small_images, [condition]).columns.values()
        assert np.array_equal(alone, together.columns[condition.name]), condition.name
    assert not np.allclose(together.columns["some"], together.columns["none"], atol=1e-3)
    assert np.allclose(together.columns["none"], together.columns[RGB], atol=1e-6)


def test_names_and_order_of_conditions() -> None:
    names = [condition.name for condition in sweeps([90, 50, 90], [1.5], [0.5], crop=Crop("center"))]
    assert names == [RGB, GRAYSCALE, "jpeg-50", "jpeg-90", "blur-1.5", "rescale-0.5"]


@pytest.mark.parametrize("late", [True, False])
def test_blur_comes_before_the_crop(detector: Detector, tmp_path: Path, late: bool) -> None:
    generator = np.random.default_rng(0)
    for name in ("0_real", "1_fake"):
        (tmp_path / "gan" / name).mkdir(parents=True)
        pixels = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "gan" / name / "a.png")
    crop = Crop("center", size=20)
    found = scored(detector, tmp_path, sweeps(blur_sigmas=[2.0], crop=crop if late else None))
    for place, path in enumerate(found.paths):
        image = decode_image(tmp_path / path)
        centre = np.s_[5:25, 10:30] if late else np.s_[:, :]
        for name, changed in ((RGB, image), (GRAYSCALE, grayscale(image)), ("blur-2", blur(image, 2.0))):
            assert found.columns[name][place] == pytest.approx(by_hand(detector, changed[centre]), abs=1e-5)


# Scores


def test_scores_come_back_as_they_were(tmp_path: Path) -> None:
    columns = {"base": np.array([0.1, 1 / 3]), "r-1": np.array([1e-30, 1.0])}
    Scores(("a, b.png", "\udcff.png"), np.array([0, 1]), columns).write(tmp_path / "scores.csv")
    back = read_scores(tmp_path / "scores.csv", made_by="x")
    assert (back.paths, back.labels.tolist()) == (("a, b.png", "\udcff.png"), [0, 1])
    assert all(np.array_equal(back.columns[name], column) for name, column in columns.items())


@pytest.mark.parametrize(
    "text",
    [
        *("", "path,label,x\na,b,0.5\n", "label,path,x\n0,a,0.5\n", "path,label,x\na,0\n"),
        *("path,label,x\na,0,much\n", "path,label,x\na,0,nan\n"),
    ],
)
def test_damaged_scores_name_their_maker(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"scores\.csv.*make it anew with src/x\.py"):
        read_scores(path, made_by="src/x.py")


# The script


@pytest.fixture
def evaluate(
    scripts: Scripts, small_images: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Run]:
    """Evaluates the small detector on the small images; no pictures, except where a test draws them."""
    for module in (passes.running, evaluation.evaluate):
        monkeypatch.setattr(module, "draw_once", lambda *arguments: [])

    def call(*more: object, code: int = 0) -> Run:
        given = ["--arch", "resnet18", "--weights", small_weights, "--dataset_dir", small_images, "--gan_name", "gan"]
        given += ["--device", "cpu", "--bsize", 4, "--bootstrap", 50]
        done = scripts("evaluate_detector", *given, *more)
        assert done.code == code, done.err
        return done

    return call


def changed_weights(path: Path, weights: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    state = torch.load(weights, weights_only=True)["model"]
    change(state)
    torch.save({"model": state}, path)
    return path


def with_bias(path: Path, weights: Path, bias: float) -> Path:
    return changed_weights(path, weights, lambda state: state["fc.bias"].add_(bias))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_detectors_are_compared_in_one_table_and_images_decoded_once(
    evaluate: Callable[..., Run],
    small_weights: Path,
    small_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[object] = []
    original = images.loading.iterate_batches

    def counting(*arguments: object, **options: object):
        for batch in original(*arguments, **options):  # type: ignore[arg-type]
            decoded.extend(item.name for item in batch.items)
            yield batch

    monkeypatch.setattr("passes.one_pass.iterate_batches", counting)
    other = with_bias(tmp_path / "other.pth", small_weights, 2.0)
    named = ["--detectors", f"one=resnet18:{small_weights}", f"two=resnet18:{other}"]
    shutil.copytree(small_images / "gan", tmp_path / "held_out/valid")
    done = evaluate(*named, "--jpeg", "90", "--rescale", "0.5", "--calibrate_on", tmp_path / "held_out/valid")
    # The set for calibration by each detector, and the set reported on by both at once.
    assert len(decoded) == 3 * 11
    assert len([line for line in done.out.splitlines() if line.startswith(("one, gan:", "two, gan:"))]) == 2
    folder = tmp_path / "output/evaluation"
    assert {row["path"]: float(row["rgb"]) for row in rows(folder / "two/gan/scores.csv")} == pytest.approx(
        {name: 1 / (1 + np.exp(-logit - 2)) for name, logit in LOGITS.items()}, abs=1e-4
    )
    summary = rows(folder / "summary.csv")
    assert [(row["detector"], row["set"], row["variant"]) for row in summary] == [
        (name, "gan", variant) for name in ("one", "two") for variant in (RGB, GRAYSCALE, "jpeg-90", "rescale-0.5")
    ]
    page = (folder / "tables.md").read_text()
    assert "acc, calibrated" in page
    assert "11 of these images are reported on, so the calibrated accuracies are optimistic" in page


def test_a_threshold_is_chosen_on_images_cut_as_those_reported_on(
    evaluate: Callable[..., Run], small_images: Path, tmp_path: Path
) -> None:
    """Also where distortions ask for whole images: a crop of 224 puts black around the small ones."""
    thresholds = []
    for number, more in enumerate((["--crop", "center"], ["--crop", "center", "--blur", "1"], [])):
        folder = tmp_path / str(number)
        evaluate("--calibrate_on", small_images / "gan", "--output_dir", folder, *more)
        thresholds.append(rows(folder / "evaluation/resnet18_0.5/gan/summary.csv")[0]["threshold"])
    assert float(thresholds[0]) == pytest.approx(float(thresholds[1]), abs=1e-6)
    assert float(thresholds[0]) != pytest.approx(float(thresholds[2]), abs=1e-3)


def test_tables_hold_earlier_evaluations_under_the_same_settings(
    evaluate: Callable[..., Run], small_weights: Path, small_images: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_images / "gan", tmp_path / "data/other")
    other = with_bias(tmp_path / "other.pth", small_weights, 2.0)

    def there() -> list[tuple[str, str]]:
        table = rows(tmp_path / "output/evaluation/summary.csv")
        return list(dict.fromkeys((row["detector"], row["set"]) for row in table))

    evaluate("--detectors", f"two=resnet18:{other}", "--dataset_dir", tmp_path / "data", "--gan_name", "other")
    assert there() == [("two", "other")]
    evaluate()
    assert there() == [("resnet18_0.5", "gan"), ("two", "other")]
    page = (tmp_path / "output/evaluation/tables.md").read_text()
    assert "mean of sets ± standard error" in page
    evaluate("--blur", "1", "--blur_jpg", "blurred")
    assert there() == [("resnet18_blurred", "gan")]
    (tmp_path / "output/evaluation/two/other/summary.csv").write_text("edited")
    evaluate()
    assert there() == [("resnet18_0.5", "gan")]


@pytest.mark.usefixtures("pdf_too")
def test_pictures_are_drawn_from_the_files(
    scripts: Scripts, small_images: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sets, one of them of fakes alone; deleted pictures come back without a pass."""
    (tmp_path / "data/fakes").mkdir(parents=True)
    shutil.copytree(small_images / "gan", tmp_path / "data/gan")
    shutil.copytree(small_images / "gan/1_fake", tmp_path / "data/fakes/1_fake")
    given = ["--arch", "resnet18", "--weights", small_weights, "--dataset_dir", tmp_path / "data", "--device", "cpu"]
    given += ["--gan_name", "gan", "fakes", "--jpeg", 90, 50, "--blur", 1, "--bootstrap", 20]
    assert scripts("evaluate_detector", *given).code == 0
    folder = tmp_path / "output/evaluation"
    names = [f"{name}.{suffix}" for name in ("precision_recall", "accuracy", "robustness") for suffix in ("png", "pdf")]
    before = {name: (folder / name).read_bytes() for name in names}
    assert all(len(content) > 5000 for content in before.values())
    for name in names:
        (folder / name).unlink()
    monkeypatch.setattr(ScoreCollector, "update", None)
    done = scripts("evaluate_detector", *given)
    assert done.code == 0
    assert done.out.count("done before") == 2
    assert {name: (folder / name).read_bytes() for name in names} == before


def test_a_set_of_one_label_has_a_rate_but_no_ranking(
    evaluate: Callable[..., Run], small_images: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_images / "gan/0_real", tmp_path / "data/reals/0_real")
    done = evaluate("--dataset_dir", tmp_path / "data", "--gan_name", "reals")
    assert "reals: 5 real and 0 fake images, accuracy (real 0.8000)" in done.out
    row = rows(tmp_path / "output/evaluation/resnet18_0.5/reals/summary.csv")[0]
    assert (row["acc_real"], row["acc_fake"], row["ap"], row["threshold"]) == ("0.8", "", "", "0.5")
    assert float(row["acc_real_low"]) < 0.8 < float(row["acc_real_high"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state["fc.weight"].zero_(), "all scores are near"),
        (lambda state: state["fc.bias"].sub_(7.0), "every image is called real at 0.5: choose another threshold"),
        (lambda state: state["fc.bias"].add_(7.0), "every image is called fake at 0.5"),
        (lambda state: [state[name].neg_() for name in ("fc.weight", "fc.bias")], "AP is below chance"),
    ],
)
def test_what_cannot_be_right_is_said(
    evaluate: Callable[..., Run],
    small_weights: Path,
    small_images: Path,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], object],
    words: str,
) -> None:
    weights = changed_weights(tmp_path / "changed.pth", small_weights, change)
    assert "warning" not in evaluate("--output_dir", tmp_path / "unchanged").out
    # Few images are no evidence against a ranking.
    for name in ("0_real", "1_fake"):
        for copy in range(6):
            shutil.copytree(small_images / "gan" / name, tmp_path / f"data/gan/{copy}/{name}")
    done = evaluate("--weights", weights, "--dataset_dir", tmp_path / "data")
    assert f"warning: gan: {words}" in done.out
    assert done.out.count("warning") == 1


def test_a_score_that_is_no_number_names_its_image(
    evaluate: Callable[..., Run], small_images: Path, tmp_path: Path
) -> None:
    register_tiny()
    from detectors.networks import build_model

    torch.save({"model": build_model("tiny-nan").state_dict()}, tmp_path / "nan.pth")
    for more in ([], ["--images", small_images]):
        refused = evaluate("--arch", "tiny-nan", "--weights", tmp_path / "nan.pth", *more, code=2)
        assert "a.png: the detector's output is not a finite number" in refused.err
    assert not list(tmp_path.rglob("*.csv"))


def test_rules_of_wang(evaluate: Callable[..., Run], small_images: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("progan/cat", "gaugan", "crn/cat"):
        shutil.copytree(small_images / "gan", data / name)
    given = ["--dataset_dir", data, "--rules", "wang"]
    done = evaluate(*given, "--gan_name", "progan", "gaugan")
    record = json.loads((tmp_path / "output/evaluation/resnet18_0.5/gaugan/scores.csv.json").read_text())
    assert "224" in record["facts"]["crop"]
    assert "warning: gaugan: 11 images are smaller than the crop" in done.out
    page = (tmp_path / "output/evaluation/tables.md").read_text()
    assert "| Wang et al. 0.5 | 100.0 / 100.0 | 79.3 / 98.1 |" in page
    # A set of theirs without classes must not have class folders.
    refused = evaluate(*given, "--gan_name", "crn", code=2)
    assert "crn" in refused.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--gan_name", "absent"], "absent"),
        (["--calibrate_on", "absent"], "absent"),
        (["--jpeg", "101"], "JPEG quality 101"),
        (["--blur", "-1"], "blur sigma -1"),
        (["--rescale", "0"], "scaling factor 0"),
        (["--detectors", "x"], "write NAME=ARCH:FILE"),
        (["--detectors", "a/b=resnet18:x.pth"], "write NAME=ARCH:FILE"),
        (["--detectors", "x=resnet18:x.pth", "x=resnet18:y.pth"], "two are called x"),
        (["--detectors", "x=resnet18:no.pth"], "no.pth"),
        (["--detectors", "x=vgg:no.pth"], "vgg"),
        (["--images", "absent"], "absent"),
    ],
)
def test_bad_arguments_are_one_line(evaluate: Callable[..., Run], tmp_path: Path, given: list[str], words: str) -> None:
    refused = evaluate(*given, code=2)
    assert words in refused.err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.csv"))


def test_colons_of_timm_belong_to_the_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detectors.networks.canonical_architecture", lambda name, plugins: name)
    found = named_detectors(DetectorChoice(), ("a=timm:vit:x.pth,fake_class=0,backbone=b.pth", "b=efb0:y:z.pth"))
    assert [(d.fake_class, d.backbone) for d in found] == [(0, Path("b.pth")), (None, None)]
    assert [(d.blur_jpg, d.arch, str(d.weights)) for d in found] == [
        ("a", "timm:vit", "x.pth"),
        ("b", "efb0", "y:z.pth"),
    ]


# Loose images


def test_loose_images_are_judged_and_ranked(evaluate: Callable[..., Run], small_images: Path, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    for name in ("1_fake/f.png", "0_real/d.png"):
        shutil.copy(small_images / "gan" / name, loose)
    done = evaluate("--images", loose, small_images / "gan")
    table = rows(tmp_path / "output/ranked_images/resnet18_0.5.csv")
    scores = [float(row["probability_of_fake"]) for row in table]
    assert scores == sorted(scores, reverse=True)
    assert [int(row["rank"]) for row in table] == list(range(1, 14))
    assert sorted(row["label"] for row in table) == [*[""] * 2, *["0"] * 5, *["1"] * 6]
    for row in table:
        label = {"f.png": "1_fake", "d.png": "0_real"}
        name = row["path"].partition("gan/")[2] or f"{label[Path(row['path']).name]}/{Path(row['path']).name}"
        assert float(row["probability_of_fake"]) == pytest.approx(PROBABILITIES[f"gan/{name}"], abs=1e-4)
    assert "f.png: p(fake) 0.993: fake" in done.out.splitlines()[1]
    assert "7 of 13 images called fake, from a score of 0.5 on" in done.out


def test_long_verdicts_go_on_in_the_table(evaluate: Callable[..., Run], small_images: Path, tmp_path: Path) -> None:
    for number in range(3):
        shutil.copytree(small_images / "gan", tmp_path / "many" / str(number))
    done = evaluate("--images", tmp_path / "many")
    assert len([line for line in done.out.splitlines() if ": p(fake) " in line]) == 20
    assert "the other 13 are in the table" in done.out


def test_sheets_show_both_ends(
    scripts: Scripts, small_images: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[str]] = []
    sheets = evaluation.loose_images.ContactSheets

    class Watched(sheets):  # type: ignore[misc, valid-type]
        def add(self, pictures: list[np.ndarray], caption: list[str]) -> None:
            shown.append(caption)
            super().add(pictures, caption)

    monkeypatch.setattr(evaluation.loose_images, "ContactSheets", Watched)
    given = ["--arch", "resnet18", "--weights", small_weights, "--images", small_images / "gan", "--device", "cpu"]
    assert scripts("evaluate_detector", *given, "--sheet_images", 5).code == 0
    assert [caption[0].split(".")[0] for caption in shown] == ["1", "2", "3", "10", "11"]
    assert shown[0][1] == "fake · f.png"
    assert (tmp_path / "output/ranked_images/resnet18_0.5_001.png").is_file()


# Published numbers


def result(name: str, arch: str, columns: Mapping[str, list[float]], labels: list[int]) -> Result:
    rows = summarise_columns(labels, {key: np.array(value) for key, value in columns.items()}, {}, draws=5)
    return Result(name, {row.variant: row for row in rows}, {"facts": {"arch": arch}})


COLUMNS = {RGB: [0.1, 0.9, 0.2, 0.8], GRAYSCALE: [0.9, 0.1, 0.3, 0.8]}
LABELS = [0, 1, 0, 1]


def test_published_rows_stand_beside_measured_ones(tmp_path: Path) -> None:
    results = [("mine", result(name, "efb0", COLUMNS, LABELS)) for name in ("biggan", "own")]
    write_comparison(tmp_path, results)
    text = (tmp_path / "tables.md").read_text()
    assert "| mine | efb0 | 100.0 / 50.0 | 100.0 / 50.0 | 100.0 ± 0.0 / 50.0 ± 0.0 |" in text
    assert "| published baseline | efb0 | 84.4 / 68.4 | – / – | 84.4 / 68.4 |" in text
    assert "| published colour-robust | efb0 | 82.3 / 81.0 | – / – |" in text
    table = rows(tmp_path / "ap_table.csv")
    assert [row["detector"] for row in table] == ["mine", "published baseline", "published colour-robust"]
    assert (table[2]["biggan grayscale"], table[2]["own rgb"]) == ("81.0", "")


@pytest.mark.parametrize(("arch", "names"), [("resnet18", ["biggan"]), ("efb0", ["own"])])
def test_no_empty_published_rows(tmp_path: Path, arch: str, names: list[str]) -> None:
    write_comparison(tmp_path, [("mine", result(name, arch, COLUMNS, LABELS)) for name in names])
    assert "ublished" not in (tmp_path / "tables.md").read_text()


@pytest.mark.parametrize(("k", "tag", "shown"), [(114, "0.5", True), (113, "0.5", False), (114, "0.1", False)])
def test_published_figures_stand_beside_comparable_ones_only(tmp_path: Path, k: int, tag: str, shown: bool) -> None:
    columns = {"baseline": COLUMNS[RGB], "top-k": COLUMNS[GRAYSCALE], "random-k-averaged": COLUMNS[RGB]}
    results = [result(name, "resnet50", columns, LABELS) for name in ("stylegan2", "own")]
    table, page = write_table(
        tmp_path / "transfer_0.5",
        "Title",
        "Caption.",
        results,
        list(columns),
        published=lambda variant, name: published_sensitivity("resnet50", tag, k, variant, name),
    )
    printed = {(row["generator"], row["variant"]): row["published_ap"] for row in rows(table)}
    assert printed["stylegan2", "top-k"] == ("0.553" if shown else "")
    assert printed["stylegan2", "random-k-averaged"] == ("0.986" if shown else "")
    assert {value for (name, _), value in printed.items() if name == "own"} == {""}
    text = page.read_text()
    assert page.name == "transfer_0.5.md"
    assert ("| 55.3 / 89.4 / 11.3 |" in text) is shown
    assert ("ECCV 2022" in text) is shown


def test_published_numbers_are_those_of_the_reference(shared_dir: Path) -> None:
    reference = json.loads((shared_dir / "reference" / "paper_tables.json").read_text())
    columns = {
        "baseline_rgb": ("0.5", RGB),
        "baseline_color_ablated": ("0.5", GRAYSCALE),
        "cr_rgb": ("cr", RGB),
        "cr_color_ablated": ("cr", GRAYSCALE),
    }
    for arch, expected in reference["colour_robust_ap"].items():
        for column, (tag, condition) in columns.items():
            for generator, value in expected[column].items():
                assert published_colour_ap(arch, tag, condition, generator) == value
    assert paper_topk() == {"resnet50": 114, "efb0": 27}
    assert published_sensitivity("resnet50", "0.5", 114, "top-k", "biggan") == (55.4, 86.4, 18.3)
    assert published_sensitivity("efb0", "0.5", 27, "random-k-averaged", "gaugan") == (98.1, 87.8, 96.2)
    assert published_sensitivity("efb0", "0.5", 27, "random-k", "gaugan") is None
    assert list(wang_results()) == ["0.5", "0.1"]
    assert all(len(known) == 13 for known in wang_results().values())
