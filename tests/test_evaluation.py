"""Evaluation: scores, metrics, tables, robustness sweeps, loose images."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cr_ud.evaluation import SetScores, summarise
from cr_ud.evaluation_files import read_scores, read_summaries, write_scores, write_summaries
from cr_ud.scoring import ScoreCollector, Variant, variants
from PIL import Image
from torchvision import transforms
from training_helpers import load_script, register_tiny, write_images

from cr_ud.published import WANG_SETS, colour_robust_rows, wang_results
from detectors.detector import build_model, load_detector
from evaluation.metrics import accuracies, average_precision, expected_calibration_error
from evaluation.thresholds import gmean_threshold
from images import decoding
from images.decoding import Crop, decode_image
from images.distortions import blur, grayscale, jpeg
from images.sets import find_image_set
from passes.one_pass import run_pass
from utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> None:
    register_tiny()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    write_images(root / "progan", ("cat", "dog"), number=4)
    write_images(root, ("gaugan",), number=6, size=32)
    return root


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("weights")
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        paths.append(folder / f"{seed}.pth")
        torch.save({"model": build_model("tiny").state_dict()}, paths[-1])
    return paths


def evaluate(*given: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate_detector.py", *map(str, given), "--device", "cpu"])
        load_script("evaluate_detector").main()


def by_hand(checkpoint: Path, image: np.ndarray) -> float:
    detector = load_detector("tiny", checkpoint, "cpu")
    normalise = transforms.Normalize(detector.mean, detector.std)
    tensor = normalise(transforms.ToTensor()(Image.fromarray(image)))
    with torch.no_grad():
        return float(torch.sigmoid(detector.model(tensor[None]).double()))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_everything_at_once(data: Path, checkpoints: list[Path], tmp_path: Path) -> None:
    named = [f"base=tiny:{checkpoints[0]}", f"cr=tiny:{checkpoints[1]}"]
    more = ["--jpeg", "60", "--blur", "1.5", "--resize", "0.5", "--calibrate_on", "progan", "--bootstrap", "50"]
    evaluate(
        "--detectors", *named, "--dataset_dir", data, "--gan_name", "progan", "gaugan", "--output_dir", tmp_path, *more
    )
    folder = tmp_path / "evaluation"
    rows = table(folder / "scores.csv")
    assert [row["path"] for row in rows if row["detector"] == "cr" and row["set"] == "gaugan"] == [
        f"gaugan/{label}/{number}.png" for label in ("0_real", "1_fake") for number in range(6)
    ]
    for row in (rows[3], rows[-1]):
        checkpoint = checkpoints[row["detector"] == "cr"]
        image = decode_image(data / row["path"])
        height, width = image.shape[:2]
        half = np.array(Image.fromarray(image).resize((width // 2, height // 2), Image.Resampling.BILINEAR))
        expected = {
            "rgb": image,
            "grayscale": np.array(transforms.Grayscale(3)(Image.fromarray(image))),
            "jpeg-60": jpeg(image, 60, "pil"),
            "blur-1.5": blur(image, 1.5),
            "resize-0.5": half,
        }
        for name, changed in expected.items():
            assert float(row[name]) == pytest.approx(by_hand(checkpoint, changed), abs=1e-6)
    summaries = table(folder / "summary.csv")
    assert len(summaries) == 2 * 2 * 5
    one = next(
        row for row in summaries if (row["detector"], row["test_set"], row["variant"]) == ("cr", "gaugan", "jpeg-60")
    )
    own = [row for row in rows if row["detector"] == "cr"]
    labels, scores = zip(
        *[(int(row["label"]), float(row["jpeg-60"])) for row in own if row["set"] == "gaugan"], strict=True
    )
    assert float(one["ap"]) == pytest.approx(average_precision(labels, scores))
    assert float(one["ece"]) == pytest.approx(expected_calibration_error(labels, scores))
    assert float(one["ap_low"]) <= float(one["ap"]) <= float(one["ap_high"])
    calibration = [(int(row["label"]), float(row["rgb"])) for row in own if row["set"] == "progan"]
    threshold = gmean_threshold(*zip(*calibration, strict=True), "progan").value
    assert float(one["threshold"]) == threshold
    assert float(one["acc_calibrated"]) == accuracies(labels, scores, threshold)[2]
    assert one["calibrated_on"] == "progan"
    for name in ("precision_recall", "accuracy", "robustness"):
        assert (folder / f"{name}.png").stat().st_size > 5000
        assert (folder / f"{name}.pdf").exists()
    facts = json.loads((folder / "summary.csv.json").read_text())
    assert facts["counts"]["progan"] == {"cat": {"fake": 4, "real": 4}, "dog": {"fake": 4, "real": 4}}
    assert not list(folder.glob(".*"))


def test_tables_and_figures_are_drawn_from_the_files(
    data: Path, checkpoints: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--arch", "tiny", "--weights", checkpoints[0], "--output_dir", tmp_path, "--blur", "1"]
    evaluate(*given, "--dataset_dir", data, "--gan_name", "gaugan")
    folder = tmp_path / "evaluation"
    names = ["tables.md", "ap_table.csv", "accuracy.png", "precision_recall.pdf", "robustness.png"]
    before = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        (folder / name).unlink()
    monkeypatch.setattr(ScoreCollector, "update", None)
    evaluate("--redraw", "--output_dir", tmp_path)
    assert {name: (folder / name).read_bytes() for name in names} == before


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_scores_depend_on_neither_batch_size_nor_order(data: Path, checkpoints: list[Path], batch_size: int) -> None:
    image_set = find_image_set(data, "progan")
    detector = load_detector("tiny", checkpoints[0], "cpu")

    def scores(size: int) -> np.ndarray:
        collector = ScoreCollector([detector], variants([70]), len(image_set))
        run_pass(image_set, [collector], preprocess=detector.preprocess, device=CPU, batch_size=size, crop=Crop("none"))
        return collector.scores

    np.testing.assert_allclose(scores(batch_size), scores(4), atol=1e-6)


def test_images_are_decoded_once(data: Path, checkpoints: list[Path], tmp_path: Path) -> None:
    decoded: list[Path] = []
    original = decoding._open

    def counting(path: Path, *, decode: bool):
        if decode:
            decoded.append(path)
        return original(path, decode=decode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_open", counting)
        named = [f"a=tiny:{checkpoints[0]}", f"b=tiny:{checkpoints[1]}"]
        more = ["--jpeg", "90", "50", "--blur", "1", "--num_workers", "0"]
        evaluate("--detectors", *named, "--dataset_dir", data, "--gan_name", "gaugan", "--output_dir", tmp_path, *more)
    assert len(decoded) == len(set(decoded)) == 12


def test_blur_and_jpeg_act_before_the_crop(data: Path, checkpoints: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    given = ["--arch", "tiny", "--weights", checkpoints[0], "--dataset_dir", data, "--gan_name", "gaugan"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cr_ud.evaluation_run.Crop", lambda kind, size=20: Crop(kind, 20))
        evaluate(*given, "--crop", "center", "--blur", "2", "--output_dir", tmp_path)
    row = table(folder / "scores.csv")[0]
    image = decode_image(data / row["path"])
    centre = slice(6, 26)
    assert float(row["blur-2"]) == pytest.approx(by_hand(checkpoints[0], blur(image, 2.0)[centre, centre]), abs=1e-6)
    assert float(row["grayscale"]) == pytest.approx(by_hand(checkpoints[0], grayscale(image)[centre, centre]), abs=1e-6)


def test_rules_of_wang(data: Path, checkpoints: list[Path], tmp_path: Path) -> None:
    given = ["--arch", "tiny", "--weights", checkpoints[0], "--dataset_dir", data, "--output_dir", tmp_path]
    evaluate(*given, "--gan_name", "progan", "gaugan", "--rules", "wang")
    facts = json.loads((tmp_path / "evaluation" / "scores.csv.json").read_text())
    assert "kind='center', size=224" in facts["crop"]
    assert "| Wang et al. 0.5 | 100.0 / 100.0 | 79.3 / 98.1 |" in (tmp_path / "evaluation" / "tables.md").read_text()
    # a set of theirs without classes must not have class folders
    (data / "progan").rename(data / "crn")
    try:
        with pytest.raises(UserError, match=r"no 0_real and 1_fake directly in .*crn"):
            evaluate(*given, "--gan_name", "crn", "--rules", "wang")
    finally:
        (data / "crn").rename(data / "progan")


def test_published_numbers_are_those_of_the_reference(shared_dir: Path) -> None:
    published = json.loads((shared_dir / "reference" / "paper_tables.json").read_text())["colour_robust_ap"]
    for arch, expected in published.items():
        baseline, robust = colour_robust_rows(arch)
        assert baseline.values == {"rgb": expected["baseline_rgb"], "grayscale": expected["baseline_color_ablated"]}
        assert robust.values == {"rgb": expected["cr_rgb"], "grayscale": expected["cr_color_ablated"]}
    assert colour_robust_rows("resnet18") == []
    assert len(WANG_SETS) == 13
    assert list(wang_results()) == ["0.5", "0.1"]
    assert all(set(known) == set(WANG_SETS) for known in wang_results().values())


def test_published_rows_stand_beside_measured_ones(tmp_path: Path) -> None:
    from cr_ud.evaluation_tables import write_tables

    labels = np.array([0, 1, 0, 1])
    scores = {"rgb": np.array([0.1, 0.9, 0.2, 0.8]), "grayscale": np.array([0.9, 0.1, 0.3, 0.8])}
    tables = [SetScores("mine", "efb0", name, ("",) * 4, ("x",) * 4, labels, scores) for name in ("biggan", "own")]
    write_tables(tmp_path, summarise(tables, draws=10))
    text = (tmp_path / "tables.md").read_text()
    assert "| mine | 100.0 / 50.0 | 100.0 / 50.0 |" in text
    assert "| published baseline | 84.4 / 68.4 | – / – |" in text
    assert "| published colour-robust | 82.3 / 81.0 | – / – |" in text
    rows = table(tmp_path / "ap_table.csv")
    assert [row["detector"] for row in rows] == ["mine", "published baseline", "published colour-robust"]
    assert rows[2]["biggan grayscale"] == "81.0"
    assert rows[2]["own rgb"] == ""


def test_files_restore_scores_and_metrics(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.array([0, 1] * 10)
    scores = {"rgb": generator.random(20), "grayscale": generator.random(20)}
    whole = SetScores("a", "tiny", "s", ("c, d",) * 20, tuple(f"{place}.png" for place in range(20)), labels, scores)
    summaries = summarise([whole], calibrate_on="s", draws=20)
    write_scores(tmp_path / "scores.csv", [whole])
    write_summaries(tmp_path / "summary.csv", summaries)
    (read,) = read_scores(tmp_path / "scores.csv")
    assert (read.detector, read.arch, read.test_set, read.classes, read.paths) == (
        "a",
        "tiny",
        "s",
        whole.classes,
        whole.paths,
    )
    np.testing.assert_array_equal(read.labels, labels)
    for name, values in scores.items():
        np.testing.assert_array_equal(read.scores[name], values)
    assert read_summaries(tmp_path / "summary.csv") == summaries


def test_strict_rule_of_the_published_code() -> None:
    labels, scores = np.array([0, 0, 1, 1]), {"rgb": np.array([0.1, 0.2, 0.5, 0.9])}
    tables = [SetScores("a", "tiny", "s", ("",) * 4, ("x",) * 4, labels, scores)]
    (ours,) = summarise(tables, calibrate_on="s", draws=10)
    (published,) = summarise(tables, calibrate_on="s", draws=10, strict=True)
    assert (ours.threshold, ours.acc_fake, ours.acc_fake_calibrated) == (0.35, 1.0, 1.0)
    assert (published.threshold, published.acc_fake, published.acc_fake_calibrated) == (0.5, 0.5, 0.5)


def test_loose_images_are_ranked(data: Path, checkpoints: list[Path], tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    for place in range(5):
        Image.fromarray(np.full((20 + place, 30, 3), 50 * place, np.uint8)).save(loose / f"{place}.png")
    evaluate("--detectors", f"a=tiny:{checkpoints[0]}", "--images", loose, data / "gaugan", "--output_dir", tmp_path)
    rows = table(tmp_path / "ranked_images" / "a.csv")
    scores = [float(row["probability_of_fake"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert [int(row["rank"]) for row in rows] == list(range(1, 18))
    unlabelled = [row for row in rows if row["label"] == ""]
    assert len(unlabelled) == 5
    for row in unlabelled:
        image = decode_image(loose / Path(row["path"]).name)
        assert float(row["probability_of_fake"]) == pytest.approx(by_hand(checkpoints[0], image), abs=1e-6)
    assert (tmp_path / "ranked_images" / "a_001.png").exists()


def test_sheets_show_both_ends(checkpoints: list[Path], data: Path, tmp_path: Path) -> None:
    shown: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cr_ud.ranked_sheet.ContactSheets.add", lambda self, pictures, caption: shown.append(caption))
        given = ["--arch", "tiny", "--weights", checkpoints[0], "--images", data / "gaugan", "--sheet_images", "5"]
        evaluate(*given, "--output_dir", tmp_path)
    assert [caption[0].split(".")[0] for caption in shown] == ["1", "2", "3", "11", "12"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no test images: give --dataset_dir and --gan_name, or --images"),
        (["--dataset_dir", "{data}", "--gan_name", "stargan"], "no folder .*stargan"),
        (["--dataset_dir", "{data}", "--gan_name", "gaugan", "--calibrate_on", "progan"], "--calibrate_on progan: add"),
        (["--dataset_dir", "{data}", "--gan_name", "gaugan", "--jpeg", "101"], "JPEG quality 101"),
        (["--dataset_dir", "{data}", "--gan_name", "gaugan", "--blur", "-1"], "blur sigma -1"),
        (["--dataset_dir", "{data}", "--gan_name", "gaugan", "--resize", "0"], "resize factor 0"),
        (["--dataset_dir", "{data}", "--gan_name", "gaugan", "--detectors", "x"], "write NAME=ARCH:FILE"),
        (["--dataset_dir", "{data}", "--gan_name", "gaugan", "--detectors", "x=tiny:no.pth"], "weights not found"),
        (["--dataset_dir", "{data}", "--gan_name", "gaugan", "--detectors", "x=vgg:no.pth"], "unknown architecture"),
        (["--images", "{data}/none"], "no such file or folder"),
        (["--redraw"], "run the evaluation first"),
    ],
)
def test_bad_arguments_are_refused(
    data: Path, checkpoints: list[Path], tmp_path: Path, given: list[str], message: str
) -> None:
    filled = [text.format(data=data) for text in given]
    with pytest.raises(UserError, match=message):
        evaluate("--arch", "tiny", "--weights", checkpoints[0], "--output_dir", tmp_path, *filled)
    assert not list(tmp_path.rglob("*.csv"))


def test_a_set_whose_images_of_one_kind_are_all_damaged(data: Path, checkpoints: list[Path], tmp_path: Path) -> None:
    write_images(tmp_path, ("broken",), number=2)
    for path in (tmp_path / "broken" / "1_fake").iterdir():
        path.write_bytes(b"")
    given = ["--arch", "tiny", "--weights", checkpoints[0], "--dataset_dir", tmp_path, "--gan_name", "broken"]
    with pytest.raises(UserError, match=r"is empty: replace or remove it, or use --skip_bad_images"):
        evaluate(*given, "--output_dir", tmp_path)
    with pytest.raises(UserError, match="broken: no fake images"):
        evaluate(*given, "--output_dir", tmp_path, "--skip_bad_images")


def test_variant_names() -> None:
    chosen = variants([90, 50, 90], [1.5], [0.5])
    assert [variant.name for variant in chosen] == ["rgb", "grayscale", "jpeg-50", "jpeg-90", "blur-1.5", "resize-0.5"]
    assert not Variant("grayscale").changes_neighbourhood
