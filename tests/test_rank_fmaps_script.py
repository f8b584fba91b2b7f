"""The ranking script from end to end: what it writes, interrupted and resumed, and the golden values."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranking_runs import LOGITS, SIDE, SOURCES, USED, Scripts, contents

from detectors.networks import build_model
from fmap_ranking.collector import RelevanceCollector
from fmap_ranking.ranking import read_ranking
from images.decoding import decode_image
from images.sets import find_image_set
from lrp import Explainer
from passes.one_pass import PassBatch
from utils.files import sha256_file
from utils.heatmaps import overlay, render_heatmap
from utils.provenance import describes

pytestmark = pytest.mark.usefixtures("loaded_once")

RANKINGS = Path("fmap_relevances") / "resnet18" / "gan_0.5"
TABLES = [f"{table}{record}" for table in ("-layers.csv", "-standard_errors.csv", ".csv") for record in ("", ".json")]
SAMPLES = ["gan-samples.csv", "gan-samples.csv.json"]
FIGURES = [
    "gan-omega.png",
    "gan-omega.pdf",
    *(f"gan-{label}-layers.{kind}" for label in USED for kind in ("png", "pdf")),
]
ROW = re.compile(r"[A-Za-z0-9_.]+\.#\d+\(T=\d+\),[0-9.e-]+")


@pytest.fixture
def arguments(small_images: Path, small_weights: Path) -> list[object]:
    return [
        *("--arch", "resnet18", "--weights", small_weights, "--dataset_dir", small_images, "--gan_name", "gan"),
        *("--crop", "none", "--bsize", 4, "--device", "cpu"),
    ]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("pdf_too")
def test_writes_rankings_tables_provenance_and_figures(
    scripts: Scripts, arguments: list[object], small_images: Path, small_weights: Path
) -> None:
    run = scripts("rank_fmaps", *arguments, "--output_dir", "out")
    assert run.code == 0, run.err
    assert "gan: 4 of 6 fake images used (5 classified correctly; used are those with p(fake) >= 0.9)" in run.out
    assert "gan: 3 of 5 real images used (4 classified correctly; used are those with p(fake) <= 0.1)" in run.out
    folder = Path("out") / RANKINGS
    names = [f"gan-{label}{table}" for label in USED for table in TABLES]
    assert sorted(contents(folder)) == sorted([*names, *FIGURES, *SAMPLES])

    layers = dict(Explainer(build_model("resnet18").eval()).layers)
    for label in USED:
        path = folder / f"gan-{label}.csv"
        lines = path.read_text().split("\n")
        assert lines[0] == "key,mean_relevance"
        assert lines[-1] == ""
        assert len(lines) == 2 + sum(layers.values())
        assert all(ROW.fullmatch(line) for line in lines[1:-1])
        ranking = read_ranking(path, layers)
        ranking.write(Path("again.csv"))
        assert Path("again.csv").read_bytes() == path.read_bytes()
        assert all(0 < row.total <= 1 + 1e-6 for row in ranking.per_layer_summary())
        assert f"first {ranking.maps[0].key} with omega {ranking.values[0]:.4f}" in run.out
        summary = table(folder / f"gan-{label}-layers.csv")
        assert [row["layer"] for row in summary] == list(layers)
        assert sum(int(row["in_top_k"]) for row in summary) == 21
        errors = table(folder / f"gan-{label}-standard_errors.csv")
        assert [row["key"] for row in errors] == [fmap.key for fmap in ranking.maps]
        assert all(0 <= float(row["standard_error"]) < 0.5 for row in errors)

        record = json.loads((folder / f"gan-{label}.csv.json").read_text())
        assert record["command"] == ["src/rank_fmaps.py", *map(str, arguments), "--output_dir", "out"]
        assert record["inputs"] == {
            "weights": sha256_file(small_weights),
            "images": find_image_set(small_images, "gan").digest(),
        }
        assert describes(record, folder / f"gan-{label}.csv")
        assert record["counts"][label]["used"] == len(USED[label])
        assert record["versions"]["torch"] == torch.__version__.split("+")[0]
        expected = {"arch": "resnet18", "rule": "beta0", "bsize": 4, "seed": 0, "gan_name": "gan", "tag": "0.5"}
        expected |= {"compat": "none", "precision": "fp32", "fake_confidence": 0.9, "real_confidence": 0.1, "topk": 21}
        assert {key: record["facts"][key] for key in expected} == expected
        assert (record["skipped"], record["zero_relevance"], record["device"]) == ([], {"fake": {}, "real": {}}, "cpu")


def test_samples_table(scripts: Scripts, arguments: list[object]) -> None:
    assert scripts("rank_fmaps", *arguments, "--output_dir", "out", "--figures", "False").code == 0
    rows = table(Path("out") / RANKINGS / "gan-samples.csv")
    assert [row["path"] for row in rows] == list(LOGITS)
    assert [int(row["label"]) for row in rows] == [int("1_fake" in name) for name in LOGITS]
    assert [row["path"] for row in rows if row["used"] == "1"] == [*USED["real"], *USED["fake"]]
    logits = [float(np.log(p / (1 - p))) for p in (float(row["probability"]) for row in rows)]
    np.testing.assert_allclose(logits, list(LOGITS.values()), atol=1e-3)
    assert not list(Path("out").rglob("*.png"))


@pytest.mark.parametrize(("flag", "saved"), [((), False), (("False",), False), (("True",), True), ("bare", True)])
def test_save_pt_files(
    scripts: Scripts, arguments: list[object], small_images: Path, flag: tuple[str, ...] | str, saved: bool
) -> None:
    given = [] if flag == () else ["--save_pt_files", *(() if flag == "bare" else flag)]
    assert scripts("rank_fmaps", *arguments, "--output_dir", "out", "--figures", "False", *given).code == 0
    pictures = Path("out") / "pt_files"
    assert pictures.exists() == saved
    if not saved:
        return
    used = [*USED["real"], *USED["fake"]]
    assert sorted(contents(pictures / "resnet18" / "gan_0.5")) == sorted(
        f"{n}.{k}" for n in used for k in ("pt", "png")
    )
    probability = {row["path"]: float(row["probability"]) for row in table(Path("out") / RANKINGS / "gan-samples.csv")}
    for name in used:
        path = pictures / "resnet18" / "gan_0.5" / f"{name}.pt"
        content = torch.load(path, weights_only=True)
        assert set(content) == {"relevance", "probability", "label"}
        relevance = content["relevance"]
        assert relevance.shape == (SIDE, SIDE)
        assert relevance.dtype == torch.float32
        assert relevance.abs().sum() > 0
        assert content["label"] == int("1_fake" in name)
        assert content["probability"] == probability[name]
        image = decode_image(small_images / name)
        with Image.open(path.with_suffix(".png")) as picture:
            np.testing.assert_array_equal(np.asarray(picture), overlay(image, render_heatmap(relevance.numpy())))


def test_same_run_gives_same_bytes(scripts: Scripts, arguments: list[object]) -> None:
    runs = []
    for _ in range(2):
        assert scripts("rank_fmaps", *arguments, "--output_dir", "out", "--save_pt_files", "True").code == 0
        runs.append(contents(Path("out")))
        shutil.rmtree("out")
    assert runs[0] == runs[1]


def test_several_generators(scripts: Scripts, arguments: list[object], small_images: Path) -> None:
    data = Path("data")
    shutil.copytree(small_images / "gan", data / "gan")
    shutil.copytree(small_images / "gan", data / "other")
    (data / "other" / "1_fake" / "f.png").unlink()
    given = [*arguments, "--dataset_dir", data, "--output_dir", "out", "--figures", "False"]
    run = scripts("rank_fmaps", *given, "--gan_name", "other", "gan")
    assert run.code == 0, run.err
    assert "other: 3 of 5 fake images used" in run.out
    assert "gan: 4 of 6 fake images used" in run.out
    folder = Path("out") / "fmap_relevances" / "resnet18"
    both = contents(folder / "gan_0.5")
    assert set(contents(folder / "other_0.5")) == {name.replace("gan-", "other-") for name in both}
    # One generator does not depend on another.
    shutil.rmtree("out")
    assert scripts("rank_fmaps", *given, "--gan_name", "gan").code == 0
    assert (folder / "gan_0.5" / "gan-fake.csv").read_bytes() == both["gan-fake.csv"]


@pytest.mark.usefixtures("pdf_too")
def test_one_label_alone(scripts: Scripts, arguments: list[object], small_images: Path) -> None:
    shutil.copytree(small_images / "gan" / "1_fake", Path("data") / "gan" / "1_fake")
    run = scripts("rank_fmaps", *arguments, "--dataset_dir", "data", "--labels", "fake", "--output_dir", "out")
    assert run.code == 0, run.err
    assert sorted(contents(Path("out") / RANKINGS)) == sorted(
        [*(f"gan-fake{table}" for table in TABLES), *SAMPLES] + [name for name in FIGURES if "real" not in name]
    )
    assert len(table(Path("out") / RANKINGS / "gan-samples.csv")) == 6


def test_zero_means_all_images(scripts: Scripts, arguments: list[object]) -> None:
    given = ("--num_real", 0, "--num_fake", 1, "--output_dir", "out", "--figures", "False")
    run = scripts("rank_fmaps", *arguments, *given)
    assert run.code == 0, run.err
    assert "gan: 3 of 5 real images used" in run.out
    assert "gan: 1 of 1 fake images used" in run.out


@pytest.mark.usefixtures("pdf_too")
def test_label_without_confident_images_has_no_ranking(scripts: Scripts, arguments: list[object]) -> None:
    """Nor one of an earlier run beside the new one of the other label."""
    assert scripts("rank_fmaps", *arguments, "--output_dir", "out").code == 0
    assert len(list(Path("out").rglob("gan-real*"))) == len(TABLES) + 2
    given = [*arguments, "--real_confidence", "0.001", "--output_dir", "out"]
    run = scripts("rank_fmaps", *given)
    assert run.code == 0, run.err
    assert "gan: 0 of 5 real images used" in run.out
    assert not list(Path("out").rglob("gan-real*"))
    assert (Path("out") / RANKINGS / "gan-fake.csv").is_file()
    before = contents(Path("out"))
    assert "nothing to compute" in scripts("rank_fmaps", *given).out
    assert contents(Path("out")) == before


def test_no_confident_image_at_all(scripts: Scripts, arguments: list[object]) -> None:
    run = scripts("rank_fmaps", *arguments, "--output_dir", "out", "--fake_confidence", 1, "--real_confidence", 0)
    assert run.code == 2
    assert "gan: no image is classified correctly with enough confidence (0 of 6 fake images, 0 of 5 real" in run.err
    assert not list(Path("out").rglob("*.csv"))


def test_a_detector_without_relevance_has_no_ranking(
    scripts: Scripts, arguments: list[object], small_weights: Path
) -> None:
    """One score for all images: omega is 0 throughout, and its order that of the layers."""
    state = torch.load(small_weights, weights_only=True)["model"]
    state["fc.weight"].zero_()
    state["fc.bias"].fill_(5.0)
    torch.save(state, "dead.pth")
    run = scripts("rank_fmaps", *arguments, "--weights", "dead.pth", "--output_dir", "out")
    assert run.code == 2
    assert run.err.splitlines()[-1].startswith("error: gan: ranking: the relevance of every feature map is 0")
    assert not list(Path("out").rglob("*.csv"))


@pytest.mark.parametrize("origin", ["no record", "edited", "other images"])
def test_a_ranking_of_another_origin_is_not_overwritten_silently(
    scripts: Scripts, arguments: list[object], origin: str
) -> None:
    """A published ranking lies where step 1 would write, and was made of thousands of images."""
    given = [*arguments, "--output_dir", "out", "--figures", "False"]
    assert scripts("rank_fmaps", *given).code == 0
    path = Path("out") / RANKINGS / "gan-fake.csv"
    if origin == "no record":
        path.with_name("gan-fake.csv.json").unlink()
    elif origin == "edited":
        path.write_text(path.read_text().rpartition("\nl")[0] + "\n")
    else:
        given += ["--num_fake", 5]
    before = contents(Path("out"))
    run = scripts("rank_fmaps", *given)
    assert run.code == 2
    reason = "was made from other images" if origin == "other images" else "is of unknown origin"
    assert run.err.startswith(f"error: {path} {reason} and would be lost: give --overwrite")
    assert run.err.count("\n") == 1
    assert contents(Path("out")) == before
    assert scripts("rank_fmaps", *given, "--overwrite").code == 0
    assert contents(Path("out")) != before


def test_settings_that_are_no_other_origin_need_no_flag(scripts: Scripts, arguments: list[object]) -> None:
    given = [*arguments, "--output_dir", "out", "--figures", "False"]
    assert scripts("rank_fmaps", *given).code == 0
    before = (Path("out") / RANKINGS / "gan-fake.csv").read_bytes()
    assert scripts("rank_fmaps", *given, "--rule", "beta1").code == 0
    assert (Path("out") / RANKINGS / "gan-fake.csv").read_bytes() != before


def interrupt(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Press Ctrl-C while the batch is looked at, counted from one."""
    original, seen = RelevanceCollector.update, [0]

    def update(self: RelevanceCollector, shown: PassBatch) -> None:
        original(self, shown)
        seen[0] += 1
        if seen[0] == batch:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RelevanceCollector, "update", update)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_interrupted_and_resumed_gives_the_same_bytes(
    scripts: Scripts, arguments: list[object], monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    given = [*arguments, "--output_dir", "out", "--save_pt_files", "True", "--figures", batch == 2]
    assert scripts("rank_fmaps", *given).code == 0
    expected = contents(Path("out"))
    shutil.rmtree("out")

    with monkeypatch.context() as patch:
        interrupt(patch, batch)
        run = scripts("rank_fmaps", *given)
    assert run.code == 130
    assert run.err.splitlines()[-1].startswith(f"interrupted: after {batch} of 3 batches; state saved, run the same")
    assert [name for name in contents(Path("out")) if "pt_files" not in name and ".npz" not in name] == []

    run = scripts("rank_fmaps", *given, "--resume")
    assert run.code == 0, run.err
    assert contents(Path("out")) == expected


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("--rule", "beta1"), "rule (was beta0, is beta1)"),
        (("--fake_confidence", 0.8), "fake_confidence (was 0.9, is 0.8)"),
        (("--save_pt_files",), "save_pt_files (was False, is True)"),
        (("--labels", "fake"), "labels (was ['fake', 'real'], is ['fake'])"),
    ],
)
def test_state_of_another_run_is_refused(
    scripts: Scripts,
    arguments: list[object],
    monkeypatch: pytest.MonkeyPatch,
    changed: tuple[object, ...],
    named: str,
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        assert scripts("rank_fmaps", *arguments, "--output_dir", "out").code == 130
    before = contents(Path("out"))
    run = scripts("rank_fmaps", *arguments, *changed, "--output_dir", "out", "--resume")
    assert run.code == 2
    last = run.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert ".npz was saved under other conditions" in last
    assert named in last
    assert contents(Path("out")) == before


@pytest.mark.slow
def test_ctrl_c_from_outside(scripts: Scripts, arguments: list[object], small_images: Path, tmp_path: Path) -> None:
    for number in range(6):
        shutil.copytree(small_images / "gan", tmp_path / "data" / "gan" / f"class{number}")
    given = [*arguments, "--dataset_dir", tmp_path / "data", "--bsize", 1, "--output_dir", "out"]
    given += ["--save_pt_files", "True", "--figures", "False"]
    command = [sys.executable, str(SOURCES / "rank_fmaps.py"), *map(str, given)]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "out").rglob("*.pt")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("interrupted: after ")
    assert not list((tmp_path / "out").rglob("*.tmp*"))
    done = scripts("rank_fmaps", *given, "--resume")
    assert done.code == 0, done.err
    assert "gan: 24 of 36 fake images used" in done.out
    assert len(list((tmp_path / "out").rglob("*.pt"))) == 6 * 7
    assert not list((tmp_path / "out").rglob("*.npz"))


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "topk"), [("resnet50", 114), ("efb0", 27)])
def test_golden_rankings(
    scripts: Scripts, shared_dir: Path, golden_weights: Callable[[str], Path], arch: str, topk: int
) -> None:
    """The published script on two classes of 20 reals and 20 fakes, with central crops."""
    root = Path("data") / "progan_val"
    root.mkdir(parents=True)
    for name in ("biggan", "cyclegan"):
        (root / name).symlink_to(shared_dir / "forensynths_sample" / name)
    run = scripts(
        "rank_fmaps",
        *("--arch", arch, "--weights", golden_weights(arch), "--dataset_dir", "data", "--gan_name", "progan_val"),
        *("--have_classes", "True", "--num_real", 20, "--num_fake", 20, "--bsize", 8, "--device", "cpu"),
        *("--compat", "published", "--figures", "False", "--output_dir", "out"),
    )
    assert run.code == 0, run.err
    folder = Path("out") / "fmap_relevances" / arch / "progan_val_0.5"
    golden = shared_dir / "reference" / "golden"
    samples = json.loads((golden / "ffrs_samples.json").read_text())[arch]
    rows = table(folder / "progan_val-samples.csv")
    assert len(rows) == 80
    for label in USED:
        expected = {f"progan_val/{entry['name']}": entry["p_wrapped"] for entry in samples[label]}
        used = {
            row["path"]: float(row["probability"])
            for row in rows
            if row["used"] == "1" and row["label"] == str(int(label == "fake"))
        }
        assert used.keys() == expected.keys()
        np.testing.assert_allclose([used[name] for name in expected], list(expected.values()), atol=1e-4)
        ours = read_ranking(folder / f"progan_val-{label}.csv")
        published = read_ranking(golden / f"ffrs_{arch}_{label}.csv")
        assert set(ours.maps) == set(published.maps)
        assert set(ours.top_k(topk)) == set(published.top_k(topk))
        values = dict(zip(ours.maps, ours.values.tolist(), strict=True))
        first = [values[fmap] for fmap in published.maps[:1000]]
        np.testing.assert_allclose(first, published.values[:1000], rtol=1e-3, atol=2e-6)
        rest = [values[fmap] for fmap in published.maps]
        np.testing.assert_allclose(rest, published.values, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_a_real_detector_on_real_images(
    scripts: Scripts, shared_dir: Path, golden_weights: Callable[[str], Path]
) -> None:
    """Without --output_dir rankings go to fmap_relevances/ here."""
    run = scripts(
        "rank_fmaps",
        *("--arch", "efb0", "--blur_jpg", 0.5, "--bsize", 16, "--dataset_dir", shared_dir / "forensynths_sample"),
        *("--gan_name", "cyclegan", "--have_classes", "False", "--num_real", 20, "--num_fake", 20),
        *("--weights", golden_weights("efb0"), "--save_pt_files", "False"),
    )
    assert run.code == 0, run.err
    folder = Path("fmap_relevances") / "efb0" / "cyclegan_0.5"
    assert len(read_ranking(folder / "cyclegan-fake.csv")) == len(read_ranking(folder / "cyclegan-real.csv")) == 21_008
    assert not Path("output").exists()
