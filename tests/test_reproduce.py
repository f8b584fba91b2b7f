"""reproduce.py on a toy set: one pass equals the single scripts, it resumes, it answers to what goes
wrong."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from ranking_runs import SOURCES, Scripts, contents, run_main

import passes.one_pass
from activation_histograms.collector import ActivationPairCollector
from images.sets import find_image_pair
from reproduction.options import Detectors, by_architecture
from utils.errors import UserError
from utils.files import sha256_file

pytestmark = pytest.mark.usefixtures("loaded_once")

K = 3
OTHER = "a &b#'%"
HOSTILE = "<img src=x onerror=alert(1)>&\"'$%#.png"


@pytest.fixture(scope="module")
def data(small_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generator `gan`, and one with a hostile name: the same without some images and with a hostile file name."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(small_images / "gan", folder / "gan")
    shutil.copytree(small_images / "gan", folder / OTHER)
    (folder / OTHER / "0_real/e.png").unlink()
    (folder / OTHER / "1_fake/b.png").rename(folder / OTHER / "1_fake" / HOSTILE)
    return folder


@pytest.fixture(scope="module")
def detector(small_weights: Path) -> list[object]:
    """Arguments of a small run."""
    return [
        *("--arch", "resnet18", "--weights", small_weights, "--topk", K, "--draws", 2, "--patches", 2),
        *("--crop", "none", "--bsize", 4, "--device", "cpu", "--output_dir", "out", "--pdf", "False"),
    ]


@pytest.fixture(scope="module")
def arguments(detector: list[object], data: Path) -> list[object]:
    """A small run on both generators."""
    return [*detector, "--dataset_dir", data, "--gan_name", "gan", OTHER]


@pytest.fixture(scope="module")
def finished(arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a whole run; not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_main("reproduce", *arguments)
    return folder / "out"


@pytest.fixture
def again(finished: Path, scripts: Scripts) -> Path:
    """A copy of a whole run in the folder that scripts run in."""
    shutil.copytree(finished, "out")
    return Path("out")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def no_pass(*args: object, **kwargs: object) -> None:
    raise AssertionError("images were read")


@pytest.mark.parametrize("name", ["gan", OTHER], ids=["plain", "hostile"])
def test_one_pass_gives_what_the_single_scripts_give(
    finished: Path, scripts: Scripts, small_weights: Path, data: Path, name: str
) -> None:
    ranking = finished / "fmap_relevances/resnet18/gan_0.5/gan-fake.csv"
    shared = ["--arch", "resnet18", "--weights", small_weights, "--dataset_dir", data, "--gan_name", name]
    shared += ["--device", "cpu", "--bsize", 4, "--output_dir", "single"]
    chosen = ["--topk", K, "--relevances", ranking]
    for script, more in {
        "transfer_sensitivity_analysis": [*chosen, "--draws", 2],
        "grayscale_sensitivity_analysis": [],
        "get_max_activation_rankings": chosen,
        "extract_max_activation_patches": [*chosen, "--num_instances", 2],
        "median_test_activation_histograms": [*chosen, "--histograms", "none"],
    }.items():
        run = scripts(script, *shared, *more)
        assert run.code == 0, run.err
    for table in ("transfer", "grayscale-transfer"):
        place = Path(table) / "resnet18" / f"{name}_0.5" / "scores.csv"
        ours, theirs = rows(finished / place), rows("single" / place)
        assert [row["path"] for row in ours] == [row["path"] for row in theirs]
        assert ours[0].keys() == theirs[0].keys()
        values = [[[float(row[column]) for column in list(row)[1:]] for row in table] for table in (ours, theirs)]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-5, atol=1e-6)  # other batches, other rounding
    place = Path("median_test/resnet18_0.5") / f"{name}.csv"
    for mine, other in zip(rows(finished / place), rows("single" / place), strict=True):
        assert mine["feature_map_name"] == other["feature_map_name"]
        for column in ("p_value", "p_value_bh", "median_rgb", "median_grayscale", "images"):
            assert float(mine[column]) == pytest.approx(float(other[column]), abs=1e-5)
        place_of_map = Path(f"activation_rankings/resnet18/{name}_0.5/{mine['feature_map_name']}.csv")
        names = [[row["name"] for row in rows(root / place_of_map)] for root in (finished, Path("single"))]
        assert names[0] == names[1]
        folder = Path("patches/resnet18") / f"{name}_0.5" / "fake" / mine["feature_map_name"].split("(")[0]
        boxes = [
            [[row[c] for c in ("rank", "path", "row_min", "row_max", "col_min", "col_max")] for row in rows(root)]
            for root in (finished / folder / "patches.csv", "single" / folder / "patches.csv")
        ]
        assert boxes[0] == boxes[1]
        assert len(boxes[0]) == 2


def test_a_second_run_computes_nothing(
    again: Path, scripts: Scripts, arguments: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(again)
    monkeypatch.setattr("passes.running.run_pass", no_pass)
    monkeypatch.setattr("utils.figures.save_figure", no_pass)
    run = scripts("reproduce", *arguments)
    assert run.code == 0, run.err
    assert contents(again) == before


def test_interrupted_and_run_again_is_like_never_interrupted(
    finished: Path, scripts: Scripts, arguments: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "fmap_relevances", "out/fmap_relevances")
    update = ActivationPairCollector.update
    seen: list[int] = []

    def counting(self: ActivationPairCollector, batch: passes.one_pass.PassBatch) -> None:
        if len(seen) == 2:
            seen.append(0)
            raise KeyboardInterrupt
        seen.append(len(batch.items))
        update(self, batch)

    monkeypatch.setattr(passes.one_pass, "_SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(ActivationPairCollector, "update", counting)
    assert scripts("reproduce", *arguments).code == 130
    assert not Path("out/transfer").exists()
    run = scripts("reproduce", *arguments)
    assert run.code == 0, run.err
    assert sum(seen) == 11 + 10  # each image of both generators once
    assert contents(Path("out")) == contents(finished)


def test_only_what_depends_on_a_setting_is_computed_again(
    again: Path, scripts: Scripts, arguments: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(again)
    monkeypatch.setattr(ActivationPairCollector, "update", no_pass)
    run = scripts("reproduce", *arguments, "--draws", 1, "--only", "sensitivity")
    assert run.code == 0, run.err
    changed = {name for name, content in contents(again).items() if before.get(name) != content}
    assert {name.split("/")[0] for name in changed} == {"transfer", ".drawn"}
    assert "random-k-2" not in (again / "transfer/resnet18/gan_0.5/scores.csv").read_text().splitlines()[0]


def test_what_is_missing_is_made_again(again: Path, scripts: Scripts, arguments: list[object]) -> None:
    before = contents(again)
    (again / "patches/resnet18/gan_0.5/fake/maps.csv").unlink()
    (again / "whisker_plots/resnet18/0.5/gan.png").unlink()
    (again / "median_test/resnet18_0.5" / f"{OTHER}.csv").unlink()
    run = scripts("reproduce", *arguments)
    assert run.code == 0, run.err
    assert f"{OTHER}: median_test, 6 images" in run.err
    assert "gan: median_test" not in run.err
    assert contents(again).keys() == before.keys()


def test_another_checkpoint_gets_a_ranking_of_its_own(
    again: Path, scripts: Scripts, arguments: list[object], small_weights: Path
) -> None:
    state = torch.load(small_weights, weights_only=True)["model"]
    torch.save({"model": {name: tensor + 0.0 for name, tensor in state.items()}, "epoch": 1}, "copy.pth")
    assert sha256_file("copy.pth") != sha256_file(small_weights)
    ranking = again / "fmap_relevances/resnet18/gan_0.5/gan-fake.csv"
    record = ranking.with_name("gan-fake.csv.json")
    before = record.read_text()
    command = [*arguments, "--weights", "copy.pth", "--only", "ranking"]
    run = scripts("reproduce", *command)
    assert run.code == 2
    assert "made with another checkpoint" in run.err
    assert record.read_text() == before
    run = scripts("reproduce", *command, "--overwrite")
    assert run.code == 0, run.err
    assert sha256_file("copy.pth") in record.read_text()


def test_summary(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert [entry["name"] for entry in summary["generators"]] == ["gan", OTHER]
    (detector,) = summary["detectors"]
    assert detector["k"] == len(detector["top_maps"]) == K
    table = rows(finished / "summary.csv")
    for result, row in zip(detector["results"], table, strict=True):
        assert float(row["ap_baseline"]) == result["ap"]["baseline"]
        summaries = rows(finished / f"transfer/resnet18/{row['generator']}_0.5/summary.csv")
        assert {line["variant"]: line["ap"] for line in summaries}["top-k"] == row["ap_top-k"]
        assert row["published_ap_baseline"] == ""
    assert "| resnet18 | 3 | gan | 11 |" in (finished / "summary.md").read_text()


def data_of(page: Path) -> Any:
    return json.loads(page.read_text().split('id="maps-0">')[1].split("</script>")[0])


def test_report_shows_every_map_on_every_generator(finished: Path) -> None:
    data = data_of(finished / "report.html")
    generators = [entry for fmap in data["maps"] for entry in fmap["generators"]]
    assert len(generators) == K * 2
    assert all(entry["histogram"] is not None and len(entry["patches"]) == 2 for entry in generators)
    assert all((finished / unquote(address)).is_file() for address in data["files"])
    assert HOSTILE not in (finished / "report.html").read_text()
    assert any(HOSTILE in patch["name"] for entry in generators for patch in entry["patches"])


def test_figures_of_some_maps(finished: Path, scripts: Scripts, arguments: list[object]) -> None:
    assert not list(finished.rglob("*.pdf"))
    run = scripts("reproduce", *arguments, "--maps_drawn", 1, "--pdf", "True")
    assert run.code == 0, run.err
    drawn = sorted(Path("out").rglob("*.png"))
    histograms = {path.stem for path in drawn if path.parts[1] == "activation_histograms"}
    assert {path.stem for path in Path("out").rglob("*.pdf")} > histograms
    for folder in ("collages", "activation_histograms"):
        maps = {path.parent.name for path in drawn if path.parts[1] == folder} - {"0.5"}
        assert len(maps) == 1
    data = data_of(Path("out", "report.html"))
    generators = [entry for fmap in data["maps"] for entry in fmap["generators"]]
    for name in ("histogram", "collage"):
        assert [entry[name] is None for entry in generators] == [False, False, True, True, True, True]
    assert all(Path("out", unquote(entry["collage"])).is_file() for entry in generators[:2])


def test_report_is_drawn_from_files(again: Path, scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(again)
    (again / "report.html").unlink()
    monkeypatch.setattr("passes.running.run_pass", no_pass)
    run = scripts("reproduce", "--report_only", "--output_dir", "out")
    assert run.code == 0, run.err
    assert contents(again) == before


def test_tutorial(scripts: Scripts, finished: Path, small_images: Path, small_weights: Path) -> None:
    """Its commands run on two folders, on a small network; the lines of Python give what the command gave."""
    shutil.copytree(small_images / "gan/0_real", "photos")
    shutil.copytree(small_images / "gan/1_fake", "generated/by me")
    shutil.copy(small_weights, "detector.pth")
    text = (SOURCES.parent / "docs/tutorial.md").read_text(encoding="utf-8")
    commands = [block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "reproduce" in block]
    small = f"--topk {K} --draws 5 --patches 2 --crop none --bsize 4 --device cpu"
    for command in commands:
        python, script, *arguments = shlex.split(command.replace("--arch resnet50", f"--arch resnet18 {small}"))
        assert (python, script) == ("python", "src/reproduce.py")
        run = scripts("reproduce", *arguments)
        assert run.code == 0, run.err
    assert Path("results/report.html").is_file()
    ours = rows(Path("results/transfer/resnet18/my_images_0.5/scores.csv"))
    theirs = rows(finished / "transfer/resnet18/gan_0.5/scores.csv")
    assert ours[-1]["path"] == "generated/by me/f.png"
    assert [row["baseline"] for row in ours] == [row["baseline"] for row in theirs]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--real", "photos"], "--real and --fake go together"),
        (["--real", "photos", "--fake", "absent"], "no such folder"),
        (["--real", "photos", "--fake", "photos/below"], "lie in each other"),
        (["--real", "photos", "--fake", "empty"], "no images below"),
        (["--real", "photos", "--fake", "fakes", "--gan_name", "gan"], "leave out --dataset_dir and --gan_name"),
        (["--real", "photos", "--fake", "fakes", "--rank_on", "progan_val"], "leave the flag out"),
        ([], "give --real DIR --fake DIR, or --dataset_dir"),
        (["--dataset_dir", "photos"], "none of the paper's generators"),
        (["--real", "photos", "--fake", "fakes", "--topk", "2", "3"], "2 values for 1 architectures"),
        (["--real", "photos", "--fake", "fakes", "--topk", "0"], "at least 1"),
        (["--real", "photos", "--fake", "fakes", "--topk", "99999", "--relevances", "r.csv"], "k = 99999"),
        (["--real", "photos", "--fake", "fakes", "--relevances", "absent.csv"], "no ranking at absent.csv"),
        (["--real", "photos", "--fake", "fakes", "--weights", "efb0=x.pth"], "name an architecture of --arch"),
        (["--report_only", "--only", "colour"], "exclude each other"),
    ],
)
def test_bad_input_is_one_line(
    scripts: Scripts,
    small_images: Path,
    small_weights: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: list[str],
    says: str,
) -> None:
    shutil.copytree(small_images / "gan/0_real", "photos")
    shutil.copytree(small_images / "gan/1_fake", "fakes")
    Path("photos/below").mkdir()
    Path("empty").mkdir()
    shutil.copy(finished / "fmap_relevances/resnet18/gan_0.5/gan-fake.csv", "r.csv")
    monkeypatch.setattr("passes.running.run_pass", no_pass)
    given = ["--arch", "resnet18", "--device", "cpu"]
    run = scripts("reproduce", *given, *([] if "--weights" in change else ["--weights", small_weights]), *change)
    assert run.code == 2
    assert says in run.err.splitlines()[-1]
    assert "Traceback" not in run.err
    assert not Path("output").exists()


def test_a_head_gets_its_own_backbone() -> None:
    detectors = Detectors(arch=("univfd", "resnet50"), weights=("univfd=head.pth",), backbone=("univfd=clip.pth",))
    found = [(choice.arch, choice.weights, choice.backbone) for choice in detectors.choices()]
    assert found == [("univfd", Path("head.pth"), Path("clip.pth")), ("resnet50", None, None)]
    assert Detectors(arch=("clipbased",), backbone=("clip.pth",)).choices()[0].backbone == Path("clip.pth")
    with pytest.raises(UserError, match=r"^--backbone: 1 values for 2 architectures"):
        Detectors(arch=("univfd", "clipbased"), backbone=("clip.pth",)).choices()


def test_values_by_architecture() -> None:
    archs = ["resnet50", "efb0"]
    assert by_architecture("--topk", (), archs, int) == {}
    assert by_architecture("--topk", ["EfficientNet-B0=5"], archs, int) == {"efb0": 5}
    assert by_architecture("--weights", ["a=b.pth", "c.pth"], archs, str) == {"resnet50": "a=b.pth", "efb0": "c.pth"}
    with pytest.raises(UserError, match="twice"):
        by_architecture("--topk", ["efb0=5", "efb0=6"], archs, int)


def test_image_pair(tmp_path: Path, small_images: Path) -> None:
    shutil.copytree(small_images / "gan/1_fake", tmp_path / "a/deep/fakes")
    (tmp_path / "link").symlink_to(tmp_path / "a/deep/fakes")
    shutil.copytree(small_images / "gan/0_real", tmp_path / "b")
    pair = find_image_pair(tmp_path / "b", tmp_path / "link", "mine", num_real=2)
    assert [(item.name, item.label) for item in pair.items][:3] == [
        ("b/a.png", 0),
        ("b/b.png", 0),
        ("a/deep/fakes/a.png", 1),
    ]
    assert pair.root == tmp_path.resolve()
