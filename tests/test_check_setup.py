"""What check_setup.py finds: nothing, everything, and damaged files; its table is readable and exact."""

import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranking_runs import SOURCES, Scripts

from detectors.choice import default_weights_path, imagenet_weights_path
from detectors.networks import build_model, get_architecture
from evaluation.published import paper_topk
from fmap_ranking.ranking import Ranking
from inventory import STEPS, compared_with_published, look_at_packages, look_at_weights, take_inventory
from lrp import build_program
from lrp.canonise import explained_layers
from utils.files import sha256_file

SCRIPT = SOURCES / "check_setup.py"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty project: no weights, no rankings."""
    root = tmp_path / "project"
    for name in ("weights", "fmap_relevances"):
        (root / name).mkdir(parents=True)
    (root / "requirements.txt").write_text("numpy==0.0.1\nno-such-package==1.0\n")
    return root


@pytest.fixture
def run(project: Path) -> Callable[..., str]:
    """What is said of the project, and of a data set folder."""

    def look(dataset_dir: Path | None = None) -> str:
        return "\n".join(take_inventory(project, dataset_dir, project))

    return look


def save(path: Path, arch: str, outputs: int) -> str:
    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": build_model(arch, outputs).state_dict()}, path)
    return sha256_file(path)


def save_ranking(path: Path, arch: str) -> None:
    layers = explained_layers(build_program(build_model(arch).eval()))
    count = sum(channels for _, channels in layers)
    path.parent.mkdir(parents=True, exist_ok=True)
    Ranking.from_values(layers, np.linspace(1e-6, 0, count)).write(path)


def save_images(folder: Path, reals: int, fakes: int, suffix: str = ".png") -> None:
    for name, count in (("0_real", reals), ("1_fake", fakes)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (4, 4)).save(folder / name / f"{number}{suffix if name == '0_real' else '.png'}")


def cells(text: str, start: str) -> str:
    """The words of the first line that begins so, without the beginning and the bars of a table."""
    line = next(line for line in text.splitlines() if line.strip("| ").startswith(start))
    return " ".join(line.strip("| ").removeprefix(start).replace("|", " ").split())


def test_nothing_is_there(run: Callable[..., str]) -> None:
    text = run()
    assert cells(text, "resnet50, blur_jpg 0.5") == "missing expected at weights/resnet50/blur_jpg_prob0.5.pth"
    assert cells(text, "efb0, ImageNet") == "missing expected at weights/imagenet/efb0.pth"
    assert cells(text, "efb0, progan_val-fake").split()[0] == "missing"
    assert "name their folder with --dataset_dir" in text
    assert cells(text, "1 rank feature maps (FF-RS)") == "needs weights, data needs weights, data"
    assert cells(text, "heat maps of ImageNet") == "needs ImageNet weights needs ImageNet weights"
    assert cells(text, "6 median test (Fig. 6)") == "needs weights, ranking, data needs weights, ranking, data"
    assert cells(text, "numpy").split()[0] == "note"
    assert cells(text, "no-such-package") == "missing pinned is 1.0"


def test_what_is_there_is_counted_and_checked(project: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    weights, rankings, data = project / "weights", project / "fmap_relevances", tmp_path / "data"
    digest = save(weights / "resnet50" / "blur_jpg_prob0.5.pth", "resnet50", 1)
    mini = save(weights / "efb0" / "mini.pth", "efb0", 1)
    save(weights / "imagenet" / "efb0.pth", "efb0", 1000)
    save_ranking(rankings / "resnet50" / "progan_val_0.5" / "progan_val-fake.csv", "resnet50")
    for name in ("cat", "dog"):
        save_images(data / "progan_val" / name, 2, 3)
    save_images(data / "gaugan", 2, 2, ".jpg")
    save_images(data / "my_generator", 1, 4)
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    text = run(data)
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before
    assert digest in text.split()
    assert mini in text.split()
    assert cells(text, "resnet50, blur_jpg 0.5").split()[0] == "ok"
    assert cells(text, "efb0, mini").split()[0] == "ok"
    assert "not the file published as efficientnet-b0-355c32eb.pth" in text
    assert cells(text, "resnet50, progan_val-fake").split()[0] == "ok"
    assert "26,560 maps of 53 layers; first conv1.#0" in text
    assert cells(text, "progan_val ") == "ok 4 real, 6 fake, 2 classes"
    assert cells(text, "my_generator") == "ok 1 real, 4 fake, no classes"
    assert cells(text, "stylegan2").startswith("missing")
    assert "differ in file format" in text
    assert cells(text, "1 rank feature maps (FF-RS)") == "yes yes"
    assert cells(text, "2 sensitivity (Tab. 1)") == "yes after step 1"
    assert cells(text, "heat maps of detectors") == "yes yes"
    assert cells(text, "heat maps of ImageNet") == "needs ImageNet weights yes"
    assert "efb0: with --weights" in text
    assert "resnet50: with --weights" not in text

    shutil.rmtree(data / "progan_val")
    text = run(data)
    assert cells(text, "1 rank feature maps (FF-RS)") == "yes, but not on progan_val yes, but not on progan_val"
    assert cells(text, "2 sensitivity (Tab. 1)") == "yes needs ranking"


def test_damaged_files_are_named(project: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    save(project / "weights" / "efb0" / "blur_jpg_prob0.5.pth", "resnet50", 1)
    ranking = project / "fmap_relevances" / "efb0" / "progan_val_0.5" / "progan_val-fake.csv"
    ranking.parent.mkdir(parents=True)
    ranking.write_text("key,mean_relevance\nconv1.#0(T=64),0.5\n")
    (project / "weights" / "other" / "x.pth").parent.mkdir()
    (project / "weights" / "other" / "x.pth").write_bytes(b"")
    (tmp_path / "data" / "stargan").mkdir(parents=True)
    text = " ".join(run(tmp_path / "data").split())
    assert "efb0, blur_jpg 0.5 broken" in text
    assert "looks like resnet50" in text
    assert "efb0, progan_val-fake broken" in text
    assert "the detector has no layer conv1" in text
    assert "x.pth note no architecture is called other" in text
    assert "stargan broken no label folders (0_real and 1_fake" in text
    assert "(FF-RS) | needs weights, data | needs weights, data" in text


def test_simulated_generators_are_no_detectors(project: Path) -> None:
    before = list(look_at_weights(project))
    folder = project / "weights" / "simulated_generators"
    folder.mkdir()
    (folder / "nearest.safetensors").write_bytes(b"weights")
    assert list(look_at_weights(project)) == before
    folder.rename(folder.with_name("other"))
    assert [finding.name for finding in look_at_weights(project)][len(before) :] == ["nearest.safetensors"]


@pytest.mark.parametrize(("digest", "words"), [("0676ba61", "the file published as"), ("1" * 8, "not the file")])
def test_published_imagenet_file_is_known_by_its_checksum(digest: str, words: str) -> None:
    files = ("resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth")
    assert compared_with_published(digest + "0" * 56, files).startswith(words)


@pytest.mark.parametrize("build", ["", "+cpu"])
def test_packages_as_pinned(build: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: f"2.0{build}")
    (tmp_path / "r.txt").write_text("# comment\ntorch==2.0\n-e .\n")
    (finding,) = look_at_packages(tmp_path / "r.txt")
    assert finding.state == "ok"


@pytest.mark.parametrize("arch", paper_topk())
def test_documented_places_and_names_are_those_looked_for(arch: str) -> None:
    root = SCRIPT.parents[1]
    wanted = [f"{arch}/blur_jpg_prob0.5.pth", f"imagenet/{arch}.pth", get_architecture(arch).imagenet_files[0]]
    for page in ("docs/data_and_weights.md", "weights/README.md"):
        text = (root / page).read_text()
        assert [name for name in wanted if name not in text] == []
    assert default_weights_path(arch, "0.5", root) == root / "weights" / wanted[0]
    assert imagenet_weights_path(arch, root) == root / "weights" / wanted[1]


def test_every_script_of_a_step_is_there_and_documented() -> None:
    text = (SCRIPT.parents[1] / "docs" / "data_and_weights.md").read_text()
    names = sorted({name for scripts, _ in STEPS.values() for name in scripts})
    assert [name for name in names if not SCRIPT.with_name(f"{name}.py").is_file()] == []
    assert [name for name in names if f"{name}.py" not in text] == []


def test_exit_codes(tmp_path: Path, scripts: Scripts) -> None:
    refused = scripts("check_setup", "--dataset_dir", tmp_path / "absent")
    assert (refused.code, refused.out) == (2, "")
    assert "check --dataset_dir" in refused.err
    done = scripts("check_setup")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Machine\n")
