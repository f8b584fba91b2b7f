"""The scripts of step 3 and 4 on a toy set, and their answers to what goes wrong."""

import csv
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detectors.networks import build_model
from passes.one_pass import PassBatch
from utils.files import sha256_file
from utils.provenance import read_record, record_path

pytestmark = pytest.mark.usefixtures("loaded_once")

SOURCE = Path(__file__).resolve().parents[1] / "src"
KEYS = ("layer1.0.conv1.#7(T=64)", "conv1.#3(T=64)", "layer2.0.conv2.#100(T=128)")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six fakes of two sizes, a random ResNet-18, a ranking of three of its maps."""
    folder = tmp_path_factory.mktemp("toy")
    generator = np.random.default_rng(0)
    for name in ("0_real", "1_fake"):
        (folder / "data/gan" / name).mkdir(parents=True)
    for number in range(6):
        shape = (48, 40, 3) if number % 3 else (64, 56, 3)
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"data/gan/1_fake/{number}.png")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save({"model": build_model("resnet18").state_dict()}, folder / "weights.pth")
    rows = [f"{key},{value}" for key, value in zip(KEYS, (0.5, 0.25, 0.125), strict=True)]
    (folder / "ranking.csv").write_text("\n".join(["key,mean_relevance", *rows]) + "\n")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run_script(script: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(SOURCE / script), *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(SOURCE / script), run_name="__main__")
        out, err = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, out, err

    return run_script


def common(toy: Path, output: Path, *more: object) -> tuple[object, ...]:
    flags = ["--arch", "resnet18", "--weights", toy / "weights.pth", "--relevances", toy / "ranking.csv", "--topk", 3]
    return (*flags, "--gan_name", "gan", "--output_dir", output, "--device", "cpu", "--bsize", 2, *more)


def rank(run: Run, toy: Path, output: Path, *more: object) -> tuple[int, str, str]:
    data = toy / "data"
    return run("get_max_activation_rankings.py", *common(toy, output, "--dataset_dir", data, *more))


def extract(run: Run, toy: Path, output: Path, *more: object) -> tuple[int, str, str]:
    return run("extract_max_activation_patches.py", *common(toy, output, *more))


def collage(run: Run, output: Path, *more: object) -> tuple[int, str, str]:
    return run("patch_collage.py", "--arch", "resnet18", "--gan_name", "gan", "--output_dir", output, *more)


@pytest.fixture(scope="module")
def done(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of all three scripts."""
    output = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:

        def run_script(script: str, *arguments: object) -> tuple[int, str, str]:
            patch.setattr(sys, "argv", [str(SOURCE / script), *map(str, arguments)])
            with pytest.raises(SystemExit) as left:
                runpy.run_path(str(SOURCE / script), run_name="__main__")
            return int(left.value.code or 0), "", ""

        for code, _, _ in (
            rank(run_script, toy, output),
            extract(run_script, toy, output, "--num_instances", 2),
            collage(run_script, output),
        ):
            assert code == 0
    return output


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def assert_one_line(result: tuple[int, str, str], *words: str) -> None:
    code, _, err = result
    assert code == 2, err
    # What is about to be done may have been announced before.
    *before, last = err.splitlines()
    assert last.startswith("error: ")
    assert not any("error" in line or "Traceback" in line for line in before)
    for word in words:
        assert word in last


def test_rankings(done: Path, toy: Path) -> None:
    folder = done / "activation_rankings/resnet18/gan_0.5"
    names = {f"{key}.csv" for key in KEYS}
    assert {path.name for path in folder.iterdir()} == names | {"max_activations.npz", "max_activations.npz.json"}
    with np.load(folder / "max_activations.npz") as arrays:
        values = arrays["max_act"]
        assert arrays["names"].tolist() == [f"gan/1_fake/{i}.png" for i in range(6)]
    assert values.dtype == np.float32
    assert values.shape == (6, 3)
    for column, key in enumerate(KEYS):
        rows = read(folder / f"{key}.csv")
        assert list(rows[0]) == ["name", "max_act"]
        assert [float(row["max_act"]) for row in rows] == sorted(values[:, column].tolist(), reverse=True)
    record = json.loads((folder / "max_activations.npz.json").read_text())
    assert (record["images"], record["maps"], record["skipped"]) == (6, 3, [])
    assert set(record["tables"]) == names


def test_patches(done: Path, toy: Path) -> None:
    root = done / "patches/resnet18/gan_0.5/fake"
    assert [(row["key"], float(row["omega"]), row["patches"]) for row in read(root / "maps.csv")] == [
        (key, omega, "2") for key, omega in zip(KEYS, (0.5, 0.25, 0.125), strict=True)
    ]
    assert json.loads((root / "maps.csv.json").read_text())["patches"] == 6
    for key in KEYS:
        folder = root / key.split("(")[0]
        assert {path.name for path in folder.iterdir()} == {"1.png", "2.png", "patches.csv"}
        ranked = read(done / f"activation_rankings/resnet18/gan_0.5/{key}.csv")
        for rank_, row in enumerate(read(folder / "patches.csv"), start=1):
            assert (row["rank"], row["path"], row["max_act"]) == (
                str(rank_),
                ranked[rank_ - 1]["name"],
                ranked[rank_ - 1]["max_act"],
            )
            image = np.asarray(Image.open(toy / "data" / row["path"]))
            box = (
                slice(int(row["row_min"]), int(row["row_max"]) + 1),
                slice(int(row["col_min"]), int(row["col_max"]) + 1),
            )
            np.testing.assert_array_equal(np.asarray(Image.open(folder / row["patch"])), image[box])
            np.testing.assert_array_equal(np.asarray(Image.open(folder / row["image"])), image)
            assert row["start_tensor"] == "convolution with batch norm"


def test_collages(done: Path) -> None:
    folder = done / "collages/resnet18/0.5"
    assert set(files_below(folder)) == {"gan.png", *(f"{key.split('(')[0]}/gan.png" for key in KEYS)}
    for path in folder.rglob("*.png"):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert pixels.shape[1] > 800
        assert pixels.std() > 20


def test_runs_again_give_the_same_bytes(done: Path, toy: Path, tmp_path: Path, run: Run) -> None:
    assert rank(run, toy, tmp_path, "--num_workers", 1)[0] == 0
    assert extract(run, toy, tmp_path, "--num_instances", 2)[0] == 0
    assert collage(run, tmp_path)[0] == 0
    first, second = files_below(done), files_below(tmp_path)
    assert set(first) == set(second)
    # Provenance holds the command, and with it the output folder.
    different = {name for name in first if first[name] != second[name]}
    assert different <= {name for name in first if name.endswith(".json")}


@pytest.mark.usefixtures("pdf_too")
def test_collages_need_the_files_only_and_those_of_other_maps_go(done: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(done / "patches", tmp_path / "patches")
    stale = [tmp_path / f"collages/resnet18/0.5/gan_{page}.png" for page in (2, 3)]
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    # Flags that all steps have mean nothing here, and there is no data set and no checkpoint.
    assert collage(run, tmp_path, "--bsize", 2, "--weights", "none.pth", "--compat", "published")[0] == 0
    assert len(files_below(tmp_path / "collages/resnet18/0.5")) == 3 * 2 + 2
    assert collage(run, tmp_path, "--topk", 2, "--num_instances", 1)[0] == 0
    assert not any(path.exists() for path in stale)
    assert len(files_below(tmp_path / "collages/resnet18/0.5")) == 2 * 2 + 2


def test_edited_and_missing_files_are_made_again(toy: Path, done: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    more = ("--num_instances", 2)
    for step, given in ((rank, ()), (extract, more)):
        assert "nothing to compute" in step(run, toy, tmp_path, *given)[1]
    for name in (f"activation_rankings/resnet18/gan_0.5/{KEYS[0]}.csv", "patches/resnet18/gan_0.5/fake/conv1.#3/1.png"):
        step, given = (extract, more) if name.startswith("patches") else (rank, ())
        path = tmp_path / name
        for damage in (path.unlink, lambda path=path: path.write_bytes(b"name,max_act\n")):  # type: ignore[misc]
            damage()
            code, out, _ = step(run, toy, tmp_path, *given)
            assert code == 0
            assert "nothing to compute" not in out
            assert path.read_bytes() == (done / name).read_bytes()


def test_maps_that_are_no_longer_chosen_leave_nothing(toy: Path, done: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    assert rank(run, toy, tmp_path, "--topk", 1)[0] == 0
    assert extract(run, toy, tmp_path, "--topk", 1, "--num_instances", 1)[0] == 0
    first = KEYS[0].split("(")[0]
    left = {name for name in files_below(tmp_path) if not name.startswith(".") and not name.endswith(".json")}
    rankings, patches, collages = "activation_rankings/resnet18/gan_0.5/", "patches/resnet18/gan_0.5/fake/", "collages/"
    assert {name for name in left if name.startswith(rankings)} == {
        f"{rankings}{KEYS[0]}.csv",
        f"{rankings}max_activations.npz",
    }
    of_patches = {name.removeprefix(patches) for name in left if name.startswith(patches)}
    assert {name for name in of_patches if not name.startswith("images/")} == {
        "maps.csv",
        f"{first}/1.png",
        f"{first}/patches.csv",
    }
    assert sum(name.startswith("images/") for name in of_patches) == 1
    assert {Path(name).parent.name for name in left if name.startswith(collages)} == {first, "0.5"}


def test_patches_of_another_detector_are_not_replaced(toy: Path, done: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    weights = torch.load(toy / "weights.pth", weights_only=True)
    weights["model"]["fc.bias"] += 1
    torch.save(weights, tmp_path / "other.pth")
    other = ("--weights", tmp_path / "other.pth")
    assert_one_line(rank(run, toy, tmp_path, *other), "was made with another checkpoint", "--overwrite")
    assert rank(run, toy, tmp_path, *other, "--overwrite")[0] == 0
    assert_one_line(extract(run, toy, tmp_path, *other), "was made with another checkpoint", "--overwrite")
    assert rank(run, toy, tmp_path, *other, "--blur_jpg", "0.1")[0] == 0
    assert extract(run, toy, tmp_path, *other, "--blur_jpg", "0.1", "--num_instances", 2)[0] == 0
    kept = "patches/resnet18/gan_0.5/fake"
    assert files_below(tmp_path / kept) == files_below(done / kept)


def test_a_data_set_that_has_moved(toy: Path, done: Path, tmp_path: Path, run: Run) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(toy, mine)
    assert rank(run, mine, tmp_path)[0] == 0
    (mine / "data").rename(tmp_path / "moved")
    assert_one_line(extract(run, mine, tmp_path, "--num_instances", 2), "no such image", "--dataset_dir")
    assert extract(run, mine, tmp_path, "--num_instances", 2, "--dataset_dir", tmp_path / "moved")[0] == 0
    name = "patches/resnet18/gan_0.5/fake/conv1.#3/patches.csv"
    assert (tmp_path / name).read_bytes() == (done / name).read_bytes()


def test_all_maps_keep_the_best_images_only(toy: Path, done: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = rank(run, toy, tmp_path, "--topk", "all")
    assert code == 0
    assert "4,800 maps" in out
    folder = tmp_path / "activation_rankings/resnet18/gan_0.5"
    assert not list(folder.glob("*.csv"))
    assert extract(run, toy, tmp_path, "--num_instances", 2)[0] == 0
    patches = "patches/resnet18/gan_0.5/fake/conv1.#3/patches.csv"
    assert (tmp_path / patches).read_bytes() == (done / patches).read_bytes()


def interrupting(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Send this process a Ctrl-C during the `after`-th batch."""
    import os
    import signal

    seen = 0
    original = PassBatch.__init__

    def count(self: PassBatch, **parts: object) -> None:
        nonlocal seen
        seen += 1
        if seen == after:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, **parts)  # type: ignore[arg-type]

    monkeypatch.setattr(PassBatch, "__init__", count)


def test_interrupted_runs_resume(toy: Path, done: Path, tmp_path: Path, run: Run) -> None:
    for step, more in ((rank, ()), (extract, ("--num_instances", 2))):
        with pytest.MonkeyPatch.context() as patch:
            interrupting(patch, after=2)
            code, _, err = step(run, toy, tmp_path, *more)
        assert code == 130
        assert "--resume" in err
        code, _, err = step(run, toy, tmp_path, *more, "--resume")
        assert code == 0, err
    for name in ("activation_rankings", "patches"):
        first, second = files_below(done / name), files_below(tmp_path / name)
        assert {k: v for k, v in first.items() if not k.endswith(".json")} == {
            k: v for k, v in second.items() if not k.endswith(".json")
        }


def test_interrupted_extraction_leaves_no_table(toy: Path, done: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        interrupting(patch, after=1)
        assert extract(run, toy, tmp_path, "--num_instances", 1)[0] == 130
    assert not list((tmp_path / "patches").rglob("*.csv"))
    assert_one_line(collage(run, tmp_path), "maps.csv: make it with", "extract_max_activation_patches.py")
    assert_one_line(extract(run, toy, tmp_path, "--num_instances", 2, "--resume"), "saved under other conditions")


@pytest.fixture
def spoilt(toy: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "spoilt"
    shutil.copytree(toy, folder)
    (folder / "data/gan/1_fake/2.png").write_bytes(b"no image")
    return folder


def test_bad_images_stop_the_ranking_or_are_left_out(spoilt: Path, tmp_path: Path, run: Run) -> None:
    assert_one_line(rank(run, spoilt, tmp_path), "1_fake/2.png is damaged", "--skip_bad_images")
    assert not list(tmp_path.glob("activation_rankings/**/*.csv"))
    code, _, err = rank(run, spoilt, tmp_path, "--skip_bad_images")
    assert code == 0
    assert err.count("skipped: ") == 1
    rows = read(tmp_path / f"activation_rankings/resnet18/gan_0.5/{KEYS[0]}.csv")
    assert len(rows) == 5


def test_images_lost_or_spoilt_after_the_ranking(toy: Path, tmp_path: Path, run: Run) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(toy, mine)
    assert rank(run, mine, tmp_path)[0] == 0
    lost = mine / "data/gan/1_fake/0.png"
    lost.unlink()
    assert_one_line(extract(run, mine, tmp_path, "--num_instances", 6), f"no such image: {lost}", "--dataset_dir")
    lost.write_bytes(b"no image")
    assert_one_line(extract(run, mine, tmp_path, "--num_instances", 6), f"{lost} is damaged")
    code, _, err = extract(run, mine, tmp_path, "--num_instances", 6, "--skip_bad_images")
    assert code == 0
    assert "skipped: " in err
    rows = read(tmp_path / "patches/resnet18/gan_0.5/fake/conv1.#3/patches.csv")
    assert len(rows) == 5
    assert len({row["rank"] for row in rows}) == 5


def test_patches_are_cut_from_images_as_they_were_ranked(toy: Path, tmp_path: Path, run: Run) -> None:
    data = tmp_path / "data"
    shutil.copytree(toy / "data", data)
    for number in range(2):
        shutil.copy(data / f"gan/1_fake/{number}.png", data / f"gan/0_real/{number}.png")
    assert rank(run, toy, tmp_path, "--dataset_dir", data, "--equalize")[0] == 0
    assert extract(run, toy, tmp_path, "--num_instances", 2)[0] == 0
    rows = read(tmp_path / "patches/resnet18/gan_0.5/fake/conv1.#3/patches.csv")
    assert {(row["height"], row["width"]) for row in rows} == {("40", "40")}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--topk", 4), ("k = 4 is out of range",)),
        (("--topk", 0), ("--topk", "at least 1")),
        (("--relevances", "none.csv"), ("no ranking at none.csv", "rank_fmaps.py")),
        (("--gan_name", "other"), ("no folder", "there: gan")),
        (("--dataset_dir", "nowhere"), ("no data set folder nowhere",)),
    ],
)
def test_rankings_say_what_is_wrong(
    toy: Path, tmp_path: Path, run: Run, more: tuple[object], words: tuple[str]
) -> None:
    assert_one_line(rank(run, toy, tmp_path, *more), *words)
    assert not (tmp_path / "activation_rankings").exists()


def test_maps_that_the_detector_lacks(toy: Path, tmp_path: Path, run: Run) -> None:
    foreign = tmp_path / "foreign.csv"
    foreign.write_text("key,mean_relevance\n_conv_stem.#1(T=32),0.5\n")
    more = ("--relevances", foreign, "--topk", 1)
    for step in (rank, extract):
        assert_one_line(step(run, toy, tmp_path, *more), f"{foreign}, line 2", "_conv_stem")


def test_a_generator_without_fakes(toy: Path, tmp_path: Path, run: Run) -> None:
    data = tmp_path / "data"
    shutil.copytree(toy / "data", data)
    for path in (data / "gan/1_fake").iterdir():
        path.unlink()
    assert_one_line(rank(run, toy, tmp_path, "--dataset_dir", data), "no images in", "1_fake")


def test_extraction_names_the_missing_step(toy: Path, done: Path, tmp_path: Path, run: Run) -> None:
    assert_one_line(extract(run, toy, tmp_path), "no activation rankings at", "get_max_activation_rankings.py")
    assert rank(run, toy, tmp_path, "--topk", 1)[0] == 0
    assert_one_line(extract(run, toy, tmp_path), "(2 missing)", "get_max_activation_rankings.py")
    assert rank(run, toy, tmp_path, "--crop", "center")[0] == 0
    assert_one_line(extract(run, toy, tmp_path), "whole images", "--crop none")


def test_extraction_refuses_rankings_of_another_checkpoint(toy: Path, done: Path, tmp_path: Path, run: Run) -> None:
    weights = torch.load(toy / "weights.pth", weights_only=True)
    weights["model"]["fc.bias"] += 1
    torch.save(weights, tmp_path / "other.pth")
    result = extract(run, toy, done, "--weights", tmp_path / "other.pth")
    assert_one_line(result, "made with another checkpoint", "--weights")


def test_names_in_a_ranking_cannot_lead_out_of_the_data_set(toy: Path, tmp_path: Path, run: Run) -> None:
    assert rank(run, toy, tmp_path)[0] == 0
    path = tmp_path / "activation_rankings/resnet18/gan_0.5/max_activations.npz"
    with np.load(path) as arrays:
        np.savez(path, **{**arrays, "names": np.array([f"../../{i}.png" for i in range(6)])})  # type: ignore[arg-type]
    assert_one_line(extract(run, toy, tmp_path), "is not what its record describes")
    record = read_record(path)
    record_path(path).write_text(json.dumps({**record, "sha256": sha256_file(path)}))
    assert_one_line(extract(run, toy, tmp_path), "leads out of")


def test_collages_say_what_is_missing(done: Path, tmp_path: Path, run: Run) -> None:
    assert_one_line(collage(run, tmp_path), "maps.csv: make it with", "extract_max_activation_patches.py")
    assert_one_line(collage(run, done, "--topk", 9), "lists 3 feature maps, fewer than 9")
    shutil.copytree(done / "patches", tmp_path / "patches")
    shutil.copytree(done / "patches/resnet18/gan_0.5", tmp_path / "patches/resnet18/gan_0.1")
    assert_one_line(collage(run, tmp_path, "--blur_jpg", "0.1"), "of --blur_jpg 0.5, not 0.1")
    (tmp_path / "patches/resnet18/gan_0.5/fake/conv1.#3/1.png").unlink()
    assert_one_line(collage(run, tmp_path), "conv1.#3/1.png is missing or damaged")
