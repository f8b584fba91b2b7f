"""Published detectors: golden outputs of the published classes, and inputs as their authors have them."""

import csv
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ranking_runs import Scripts, tuned_model

from detectors.detector import Detector, load_detector
from detectors.networks import architectures, get_architecture, unregister_architecture
from detectors.transforms import DiagonalDetail, NearestResidual, Residual
from evaluation.agreement import Agreement
from evaluation.scores import read_scores
from reproduction.options import Detectors
from utils.errors import UserError
from utils.tables import read_rows

PAGE = Path(__file__).resolve().parents[1] / "docs" / "detectors.md"
GOLDEN = {"resnet50_nodown": "resnet50-nodown", "npr": "npr", "safe": "safe", "ladeda9": "ladeda9"}


@pytest.fixture(scope="session")
def golden_folder(shared_dir: Path) -> Path:
    folder = shared_dir / "reference" / "published_detectors"
    if not folder.is_dir():
        pytest.skip(f"no golden outputs of published detectors in {shared_dir}")
    return folder


@pytest.fixture(scope="session")
def recipe(golden_folder: Path) -> ModuleType:
    """How weights and images of the golden outputs are drawn."""
    spec = importlib.util.spec_from_file_location("recipe", golden_folder / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(recipe: ModuleType, golden: Any, seed: int) -> dict[str, torch.Tensor]:
    state, _ = recipe.draw_state(golden["keys"].tolist(), golden["shapes"].tolist(), seed)
    # published counters have one dimension more
    return {key: torch.from_numpy(value.reshape(()) if "num_batches" in key else value) for key, value in state.items()}


@pytest.mark.parametrize("name", GOLDEN)
def test_outputs_are_those_of_the_published_class(golden_folder: Path, recipe: ModuleType, name: str) -> None:
    golden = np.load(golden_folder / f"{name}.npz")
    architecture = get_architecture(GOLDEN[name])
    sizes = [key.removeprefix("logits_") for key in golden if key.startswith("logits_")]
    assert sizes
    model = architecture.build(golden[f"logits_{sizes[0]}"].shape[1]).eval()
    model.load_state_dict(draw(recipe, golden, int(golden["weights_seed"])), strict=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == int(golden["parameters"])
    for size in sizes:
        expected = golden[f"logits_{size}"]
        height, width = map(int, size.split("x"))
        pixels = recipe.draw_images(int(golden[f"image_seed_{size}"]), len(expected), height, width)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            detector = Detector(architecture, model.to(dtype))
            found = detector.logits(detector.inputs(images))
            np.testing.assert_allclose(found.reshape(expected.shape).numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("arch", "maps"), [("npr", 5_056), ("safe", 5_056), ("ladeda9", 26_624), ("dire", 26_560)])
def test_every_convolution_is_explained(arch: str, maps: int) -> None:
    """The program that relevance goes through says what the network says, and has its feature maps."""
    torch.manual_seed(0)
    architecture = get_architecture(arch)
    detector = Detector(architecture, architecture.build(1).eval())
    x = detector.inputs(torch.randint(0, 256, (1, 3, 37, 40), dtype=torch.uint8))
    explainer = detector.explainer()
    assert sum(channels for _, channels in explainer.layers) == maps
    torch.testing.assert_close(explainer.record(x).output, detector.logits(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["npr", "safe", "resnet50_nodown"])
def test_scores_of_the_command_line(
    golden_folder: Path, recipe: ModuleType, name: str, tmp_path: Path, scripts: Scripts
) -> None:
    """Other weights and images; expected is what the network says in double precision."""
    golden = np.load(golden_folder / f"{name}.npz")
    architecture = get_architecture(GOLDEN[name])
    state = draw(recipe, golden, 5)
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "d.pth")
    model = architecture.build(len(state[f"{architecture.last_layer}.weight"])).double().eval()
    model.load_state_dict(state)
    detector = Detector(architecture, model)
    expected = {}
    for label, (folder, size) in enumerate((("0_real", (21, 32)), ("1_fake", (32, 20)))):
        (tmp_path / "data" / "gan" / folder).mkdir(parents=True)
        for number, pixels in enumerate(recipe.draw_images(7 + label, 2, *size)):
            path = tmp_path / "data" / "gan" / folder / f"{number}.png"
            Image.fromarray(pixels).save(path)
            logits = detector.logits(detector.inputs(torch.from_numpy(pixels).permute(2, 0, 1)[None])).flatten()
            logit = float(logits[-1] - logits[:-1].sum())
            expected[f"gan/{folder}/{number}.png"] = 1 / (1 + np.exp(-logit))
    words = ["--detectors", f"d={GOLDEN[name]}:d.pth", "--dataset_dir", "data", "--gan_name", "gan", "--bootstrap", 5]
    run = scripts("evaluate_detector", *words, "--preprocessing", "as_is", "--output_dir", "out")
    assert run.code == 0, run.err
    with (tmp_path / "out/evaluation/d/gan/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["path"]: float(row["rgb"]) for row in rows} == pytest.approx(expected, abs=1e-4)
    assert {row["label"] for row in rows} == {"0", "1"}
    record = json.loads((tmp_path / "out/evaluation/d/gan/scores.csv.json").read_text())
    assert record["facts"]["arch"] == GOLDEN[name]


@pytest.fixture(scope="session")
def tuned(small_images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of detectors that give the images of `small_images`, as they are, their known scores."""
    folder = tmp_path_factory.mktemp("tuned")
    paths = {arch: folder / f"{arch}.pth" for arch in ("npr", "safe", "resnet18")}
    for arch, path in paths.items():
        torch.save({"model": tuned_model(small_images, arch).state_dict()}, path)
    return paths


def test_every_analysis_runs_on_residual_detectors(
    tuned: dict[str, Path], small_images: Path, tmp_path: Path, scripts: Scripts
) -> None:
    """Ranking, maps dropped, colour, patches, median test and report; and how far the two agree."""
    words = ["--weights", *(f"{arch}={tuned[arch]}" for arch in ("npr", "safe")), "--dataset_dir", small_images]
    words += ["--gan_name", "gan", "--topk", 2, 2, "--draws", 1, "--bootstrap", 5, "--patches", 1, "--pdf", "False"]
    words += ["--crop", "none", "--preprocessing", "as_is", "--blur_jpg", "t", "--output_dir", "out"]
    run = scripts("reproduce", "--arch", "npr", "safe", *words)
    assert run.code == 0, run.err
    rows = read_rows(Path("out/agreement.csv"), Agreement, made_by="test")
    assert [(row.first, row.second, row.images) for row in rows] == [("npr", "safe", 11)]
    # both give the same scores, but for rounding, so that their errors are the same
    assert rows[0].rank > 0.95
    assert rows[0].wrong_both == rows[0].wrong_first == 2
    page = Path("out/report.html").read_text()
    assert "Do the detectors agree?" in page
    for arch in ("npr", "safe"):
        assert len(list(Path(f"out/patches/{arch}").rglob("patches.csv"))) == 2


def test_each_detector_has_its_own_preprocessing_in_one_pass(
    tuned: dict[str, Path], small_images: Path, tmp_path: Path, scripts: Scripts
) -> None:
    words = ["--dataset_dir", small_images, "--gan_name", "gan", "--bootstrap", 5, "--jpeg", 50, "--output_dir", "out"]
    alone = scripts("evaluate_detector", "--detectors", f"alone=npr:{tuned['npr']}", *words)
    assert alone.code == 0, alone.err
    detectors = [f"{arch}={arch}:{path}" for arch, path in tuned.items()]
    together = scripts("evaluate_detector", "--detectors", *detectors, *words)
    assert together.code == 0, together.err
    assert "gan: evaluation, evaluation, evaluation, 11 images" in together.err
    scores = {
        name: read_scores(Path(f"out/evaluation/{name}/gan/scores.csv"), made_by="") for name in ("alone", *tuned)
    }
    assert scores["npr"].paths == scores["alone"].paths
    for condition in ("rgb", "grayscale", "jpeg-50"):
        one, other = (scores[name].columns[condition] for name in ("npr", "alone"))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    # tables hold all that were evaluated under these flags, whatever their own preprocessing
    assert len(Path("out/evaluation/ap_table.csv").read_text().splitlines()) == 1 + len(scores)
    assert len(read_rows(Path("out/evaluation/agreement.csv"), Agreement, made_by="")) == 6
    # scaled as torchvision scales, and scored
    detector = load_detector("npr", tuned["npr"], "cpu")
    name = scores["npr"].paths[0]
    with Image.open(small_images / name) as image:
        scaled = np.array(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR))
    expected = detector.probability(torch.from_numpy(scaled).permute(2, 0, 1)[None]).item()
    assert scores["npr"].columns["rgb"][0] == pytest.approx(expected, abs=1e-6)


def test_relevance_of_pixels(tuned: dict[str, Path], small_images: Path, tmp_path: Path, scripts: Scripts) -> None:
    for arch in ("npr", "safe"):
        words = ["--arch", arch, "--weights", tuned[arch], "--images", small_images / "gan/1_fake/a.png"]
        run = scripts("ud_lrp", *words, "--pixels", "--conservation", "--output_dir", "out", "--preprocessing", "as_is")
        assert run.code == 0, run.err
        folder = Path("out/lrp") / arch / "ud_0.5-beta0-label-pixels"
        arrays = np.load(next(folder.rglob("*.npz")))
        assert arrays["relevance"].shape == arrays["relevance_residual"].shape == arrays["image"].shape[:2]
        assert arrays["relevance"].sum() == pytest.approx(arrays["relevance_residual"].sum(), rel=1e-4)
        last = (folder / "conservation.csv").read_text().splitlines()[-1]
        assert last.startswith("input,residual,ZBox,")
    run = scripts("ud_lrp", "--arch", "resnet18", "--weights", tuned["resnet18"], "--pixels")
    assert (run.code, "--pixels: resnet18 reads pixels" in run.err) == (2, True)


def test_detectors_are_explained_side_by_side(
    tuned: dict[str, Path], small_images: Path, tmp_path: Path, scripts: Scripts
) -> None:
    detectors = ["--detectors", *(f"{arch}={arch}:{tuned[arch]}" for arch in ("npr", "resnet18"))]
    run = scripts("ud_lrp", *detectors, "--images", small_images / "gan/1_fake", "--output_dir", "out")
    assert run.code == 0, run.err
    sheet = Path("out/lrp/side_by_side/npr-resnet18-beta0-label/contact_sheet_001.png")
    assert str(sheet) in run.out
    drawn = sheet.read_bytes()
    # each reads the images in its own way
    shapes = [np.load(next(Path("out/lrp", arch).rglob("a.npz")))["image"].shape[0] for arch in ("npr", "resnet18")]
    assert shapes == [256, 48]
    assert (
        "nothing to compute"
        in scripts("ud_lrp", *detectors, "--images", small_images / "gan/1_fake", "--output_dir", "out").out
    )
    assert sheet.read_bytes() == drawn


@pytest.mark.parametrize("transform", [NearestResidual(), NearestResidual(scale=1.0), DiagonalDetail()])
@pytest.mark.parametrize("size", [(8, 6), (7, 9), (2, 3)])
def test_pixels_get_what_the_z_box_gives(transform: Residual, size: tuple[int, int]) -> None:
    """The rule written as matrices: of the two averages, so also for parts that cancel."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    images[1] = torch.randint(0, 2, size) * 255  # at the bounds
    residual = transform(images, torch.float64)
    relevance = torch.randn_like(residual)
    found = transform.to_pixels(images, relevance)
    pixels = size[0] * size[1]
    units = torch.eye(pixels, dtype=torch.float64).reshape(pixels, 1, *size)
    first, second = (part.flatten(1).t() for part in transform.averages(units))
    assert min(first.min(), second.min()) >= 0
    x = transform.normalise(images, torch.float64).flatten(2)
    torch.testing.assert_close((x @ (first - second).t() * transform.scale).view_as(residual), residual)
    low, high = (torch.tensor(bound, dtype=torch.float64)[:, None] for bound in transform.normalise.bounds())
    z = (x - low).clamp(min=1e-6)[:, :, None] * first + (high - x).clamp(min=1e-6)[:, :, None] * second
    expected = (z / z.sum(3, keepdim=True) * relevance.flatten(2)[..., None]).sum(2)
    torch.testing.assert_close(found.flatten(2), expected)
    torch.testing.assert_close(found.sum((1, 2, 3)), relevance.sum((1, 2, 3)))


def test_a_checkpoint_of_another_stride_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(get_architecture("resnet50-nodown").build(1).state_dict(), tmp_path / "nodown.pth")
    load_detector("cnndetect", tmp_path / "nodown.pth", "cpu")
    said = capsys.readouterr().err
    assert "resnet50-nodown" in said
    assert "strides" in said
    # a record of training says what it is
    (tmp_path / "nodown.pth.json").write_text(json.dumps({"facts": {"arguments": {"arch": "resnet50-nodown"}}}))
    load_detector("resnet50-nodown", tmp_path / "nodown.pth", "cpu")
    assert capsys.readouterr().err == ""
    detector = load_detector("fredect", tmp_path / "nodown.pth", "cpu")
    assert "note: fredect reads spectra" in capsys.readouterr().err
    assert detector.architecture.transform.bounds()[1] == pytest.approx((5, 5, 5))


def test_which_class_is_fake_of_several_detectors() -> None:
    def chosen(*words: str) -> list[int | None]:
        return [choice.fake_class for choice in Detectors(arch=("npr", "safe"), fake_class=words).choices()]

    assert (chosen(), chosen("0"), chosen("0", "1"), chosen("safe=1")) == ([None] * 2, [0, 0], [0, 1], [None, 1])
    with pytest.raises(UserError, match="--fake_class 2: use 0 or 1"):
        chosen("2")


def test_the_example_of_the_page() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    exec(compile(code, "mine.py", "exec"), {})
    try:
        architecture = get_architecture("mine")
        network = architecture.build(1).eval()
        assert {architecture.last_layer, architecture.gradcam_layer} <= dict(network.named_modules()).keys()
        detector = Detector(architecture, network)
        report = detector.explainer().explain(detector.inputs(torch.zeros(1, 3, 33, 32).byte()), conservation=True)
        assert report.conservation
    finally:
        unregister_architecture("mine")


def test_the_page_has_all_detectors() -> None:
    page = PAGE.read_text(encoding="utf-8")
    # those of torchvision, of efficientnet_pytorch and of other pages aside
    others = ("resnet18", "resnet34", "resnet101", "resnet152", "efb", "patchforensics", "attribution", "timm:")
    ours = [name for name in architectures() if get_architecture(name).source]  # other tests register more
    missing = [name for name in ours if not name.startswith(others) and f"`{name}`" not in page]
    assert not missing


def test_the_table_of_detectors(scripts: Scripts) -> None:
    run = scripts("check_setup", "--detectors")
    assert run.code == 0, run.err
    for name in [*GOLDEN.values(), "univfd", "timm:NAME"]:
        assert f"\n| {name}" in run.out
    assert "(no licence stated)" in run.out
