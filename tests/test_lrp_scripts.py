"""LRP heat maps from the command line: against the published numbers, and from end to end."""

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lrp_networks import towards
from PIL import Image
from ranking_runs import Scripts, run_main

from attribution.attribution import Explanation
from attribution.lrp_heatmaps import LrpHeatMaps, explain_input, spread_shifts
from attribution.targets import Target
from detectors.detector import load_detector
from detectors.heads import OneLogit
from detectors.networks import build_model
from fmap_ranking.ffrs import FFRS
from lrp import Explainer
from utils.boxes import Box, bounding_box
from utils.errors import Interrupted, UserError
from utils.files import read_npz

SCRIPTS = ("ud_lrp", "ud_lrp_efb0", "imagenet_lrp", "imagenet_lrp_efb0")
Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a script in this process and returns its output folder."""

    def main(script: str, *arguments: object) -> Path:
        out = tmp_path / "out"
        run_main(script, *arguments, "--device", "cpu", "--output_dir", out)
        return out / "lrp"

    return main


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name, size in (("0_real/a.png", (64, 64)), ("1_fake/b.png", (64, 64)), ("c.jpg", (48, 80))):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def write_weights(path: Path, arch: str, outputs: int) -> Path:
    torch.manual_seed(0)
    torch.save({"model": build_model(arch, outputs).state_dict()}, path)
    return path


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "attributions.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("script", "arch", "rule"),
    [
        ("ud_lrp", "resnet50", "beta0"),
        ("ud_lrp_efb0", "efb0", "beta0"),
        ("ud_lrp", "efb0", "beta0"),
        ("ud_lrp", "resnet50", "beta1"),
        ("ud_lrp", "resnet50", "betaada"),
    ],
)
def test_published_numbers_and_pictures(
    script: str, arch: str, rule: str, shared_dir: Path, golden_weights: Callable[[str], Path], run: Run
) -> None:
    golden = shared_dir / "reference" / "golden"
    with np.load(golden / f"lrp_input_{arch}.npz") as file:
        expected = dict(file)
    paths = [shared_dir / "forensynths_sample" / name for name in expected["names"]]
    choice = ("--arch", arch) if script == "ud_lrp" else ()
    out = run(
        *(script, *choice, "--weights", golden_weights(arch), "--images", *paths),
        *("--compat", "published", "--crop", "center", "--rule", rule, "--look", "published"),
    )
    folder = out / arch / f"ud_0.5-{rule}-label-published"
    table = rows(folder)
    assert [row["path"] for row in table] == expected["names"].tolist()
    logits = torch.from_numpy(expected[f"logit_wrapped_{rule}"]).double()
    for i, row in enumerate(table):
        arrays = read_npz(folder / row["arrays"])
        theirs = expected[f"R_input_{rule}"][i]
        assert np.abs(arrays["relevance"] - theirs).sum() < 2e-4 * np.abs(theirs).sum()
        np.testing.assert_allclose(arrays["relevance_rgb"].sum(0), arrays["relevance"], atol=1e-7)
        assert arrays["start"] == (1 if expected["label"][i] else -1)
        assert abs(float(row["probability"]) - float(logits[i].sigmoid())) < 1e-4
        assert row["label"] == str(expected["label"][i])
        # the published start is -1 for a real whose logit is negative: what is positive speaks for fake
        assert row["explained"] == "fake"
    if rule != "beta0":
        return
    with np.load(golden / f"lrp_overlay_{arch}.npz") as file:
        for i, row in enumerate(table):
            ours = np.asarray(Image.open(folder / row["overlay"])).astype(int)
            difference = np.abs(ours - file["overlay_rgb"][i])
            # the published picture is truncated instead of rounded, so up to one level darker; where rounding of the
            # relevance crosses a border of the colour table by one more
            assert difference.max() <= 2
            assert (difference > 1).mean() < 1e-4


def test_positive_relevance_is_evidence_for_the_label(images: Path, tmp_path: Path, run: Run) -> None:
    weights = write_weights(tmp_path / "w.pth", "resnet18", 1)
    common = ("--arch", "resnet18", "--weights", weights, "--images", images)
    out = run("ud_lrp", *common, "--bsize", 2) / "resnet18"
    for target in ("fake", "real"):
        run("ud_lrp", *common, "--target", target)
    table = rows(out / "ud_0.5-beta0-label")
    assert [(row["path"], row["label"]) for row in table] == [
        ("0_real/a.png", "0"),
        ("1_fake/b.png", "1"),
        ("c.jpg", ""),
    ]
    decision = "fake" if float(table[2]["probability"]) > 0.5 else "real"
    assert [row["explained"] for row in table] == ["real", "fake", decision]
    for row in table:
        ours = read_npz(out / "ud_0.5-beta0-label" / row["arrays"])
        of = {name: read_npz(out / f"ud_0.5-beta0-{name}" / row["arrays"]) for name in ("fake", "real")}
        np.testing.assert_allclose(ours["relevance"], of[row["explained"]]["relevance"], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(of["real"]["relevance"], -of["fake"]["relevance"], rtol=1e-4, atol=1e-7)
        assert of["fake"]["start"] == np.sign(ours["logits"][0])
    record = json.loads((out / "ud_0.5-beta0-label" / "attributions.csv.json").read_text())
    facts = record["facts"]
    assert (facts["rule"], facts["target"], facts["compat"], record["images"]) == ("beta0", "label", "none", 3)


def test_arch_is_the_network_that_is_run(images: Path, tmp_path: Path, run: Run) -> None:
    weights = write_weights(tmp_path / "w.pth", "efb0", 1)
    image = ("--weights", weights, "--images", images / "c.jpg")
    with pytest.raises(UserError, match="looks like efb0"):
        run("ud_lrp", *image)
    first = run("ud_lrp", *image, "--arch", "EfficientNet-B0") / "efb0" / "ud_0.5-beta0-label"
    relevance = read_npz(first / "arrays" / "c.npz")["relevance"]
    assert relevance.any()
    again = run("ud_lrp_efb0", *image) / "efb0" / "ud_0.5-beta0-label"
    np.testing.assert_array_equal(read_npz(again / "arrays" / "c.npz")["relevance"], relevance)


@pytest.mark.parametrize(("script", "arch"), [("imagenet_lrp", "resnet18"), ("imagenet_lrp_efb0", "efb0")])
def test_imagenet_classifier(script: str, arch: str, images: Path, tmp_path: Path, run: Run) -> None:
    weights = write_weights(tmp_path / "w.pth", arch, 1000)
    common = ("--arch", arch, "--weights", weights, "--images", images / "0_real" / "a.png")
    out = run(script, *common) / arch
    (row,) = rows(out / "imagenet-beta0-top")
    arrays = read_npz(out / "imagenet-beta0-top" / row["arrays"])
    best = int(arrays["logits"].argmax())
    assert row["explained"].split()[0] == row["probability_of"].split()[0] == str(best)
    assert arrays["relevance"].shape == (224, 224)
    assert arrays["relevance"].any()
    run(script, *common, "--target", best)
    named = read_npz(out / f"imagenet-beta0-{best}" / row["arrays"])
    np.testing.assert_array_equal(named["relevance"], arrays["relevance"])
    with pytest.raises(UserError, match="top or a class"):
        run(script, *common, "--target", "fake")


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_weights_the_place_is_named(script: str, images: Path, scripts: Scripts, tmp_path: Path) -> None:
    # an architecture nobody has published weights of, so that the test does not depend on what is at hand
    done = scripts(script, "--arch", "efb7", "--images", images, "--output_dir", tmp_path / "o")
    assert done.code == 2
    assert done.err.count("\n") == 1
    where = "weights/efb7/blur_jpg_prob0.5.pth" if script.startswith("ud") else "weights/imagenet/efb7.pth"
    assert where in done.err
    assert "docs/data_and_weights.md" in done.err
    assert not (tmp_path / "o").exists()


def test_conservation(images: Path, tmp_path: Path, run: Run) -> None:
    weights = write_weights(tmp_path / "w.pth", "resnet18", 1)
    common = ("--arch", "resnet18", "--weights", weights, "--images", images, "--rule", "epsilon")
    names = ("received", "passed", "absorbed")

    def report(*arguments: object) -> tuple[Path, list[str], np.ndarray]:
        folder = run("ud_lrp", *common, "--conservation", *arguments) / "resnet18" / "ud_0.5-epsilon-label"
        with (folder / "conservation.csv").open() as file:
            table = list(csv.DictReader(file))
        return (
            folder,
            [row["layer"] for row in table],
            np.array([[float(row[name]) for name in names] for row in table]),
        )

    folder, layers, amounts = report("--bsize", 1)
    explainer = Explainer(build_model("resnet18").eval())
    assert layers == [step.name for step in reversed(explainer.program.steps)]
    assert (folder / "conservation.csv.json").is_file()
    # images are explained for real and for fake, and do not cancel
    assert amounts[0, 0] == 3.0
    arrays = [read_npz(path) for path in sorted((folder / "arrays").rglob("*.npz"))]
    pixels = [abs(float(one["relevance"].sum(dtype=np.float64))) for one in arrays]
    assert amounts[-1, 1] == pytest.approx(sum(pixels), rel=1e-4)
    np.testing.assert_allclose(report("--bsize", 2)[2], amounts, rtol=1e-4, atol=1e-5)
    parts = [report("--images", images / name)[2] for name in ("0_real", "1_fake", "c.jpg")]
    np.testing.assert_allclose(sum(parts), amounts, rtol=1e-4, atol=1e-5)

    run("ud_lrp", *common)
    assert not list(folder.glob("conservation*"))


@pytest.mark.parametrize("rule", ["beta0", "beta1", "betaada", "epsilon"])
@pytest.mark.parametrize("published", [False, True])
def test_relevance_is_that_of_the_explainer(rule: str, published: bool) -> None:
    torch.manual_seed(0)
    explainer = Explainer(build_model("resnet18").eval(), rule, published=published)
    inputs = torch.randn(2, 3, 48, 48)
    result = explain_input(explainer, inputs, Target("label", OneLogit()), torch.tensor([1, 0]))
    expected = explainer.explain(inputs, towards("fake", "real", published=published))
    assert expected.input is not None
    torch.testing.assert_close(result.arrays["relevance_rgb"], expected.input, rtol=0, atol=0)
    torch.testing.assert_close(result.arrays["start"], expected.start)
    assert result.reversed is not None
    # the published start ignores the logit's sign: where that is negative, positive relevance speaks against the label
    negative = (expected.logits[:, 0] < 0).tolist()
    assert result.reversed.tolist() == (negative if published else [False, False])


def test_bf16(images: Path, tmp_path: Path, run: Run) -> None:
    weights = write_weights(tmp_path / "w.pth", "resnet18", 1)
    common = ("--arch", "resnet18", "--weights", weights, "--images", images / "c.jpg", "--target", "fake")
    folder = run("ud_lrp", *common) / "resnet18" / "ud_0.5-beta0-fake"
    exact = read_npz(folder / "arrays" / "c.npz")["relevance"]
    run("ud_lrp", *common, "--precision", "bf16")
    rounded = read_npz(folder / "arrays" / "c.npz")["relevance"]
    difference = np.abs(rounded - exact).sum() / np.abs(exact).sum()
    assert 0 < difference < 0.2


def test_squeeze_excite_of_another_checkpoint(images: Path, tmp_path: Path, run: Run) -> None:
    weights = write_weights(tmp_path / "w.pth", "efb0", 1)
    other = {key: value + 1 for key, value in build_model("efb0", 1000).state_dict().items()}
    torch.save(other, tmp_path / "imagenet.pth")
    common = ("--weights", weights, "--images", images / "c.jpg", "--target", "fake")
    folder = run("ud_lrp_efb0", *common) / "efb0" / "ud_0.5-beta0-fake"
    own = read_npz(folder / "arrays" / "c.npz")["relevance"]
    run("ud_lrp_efb0", *common, "--compat_se", tmp_path / "imagenet.pth")
    assert np.abs(read_npz(folder / "arrays" / "c.npz")["relevance"] - own).sum() > 1e-3 * np.abs(own).sum()
    assert len(json.loads((folder / "attributions.csv.json").read_text())["inputs"]["squeeze_excite"]) == 64
    resnet = write_weights(tmp_path / "r.pth", "resnet18", 1)
    with pytest.raises(UserError, match="EfficientNet only"):
        run("ud_lrp", "--arch", "resnet18", "--weights", resnet, *common[2:], "--compat_se", tmp_path / "imagenet.pth")


def test_network_without_relevance_gives_empty_maps(images: Path, tmp_path: Path, run: Run) -> None:
    state = build_model("resnet18").state_dict()
    state["fc.weight"].zero_()
    torch.save(state, tmp_path / "w.pth")
    out = run("ud_lrp", "--arch", "resnet18", "--weights", tmp_path / "w.pth", "--images", images)
    assert [row["empty"] for row in rows(out / "resnet18" / "ud_0.5-beta0-label")] == ["1", "1", "1"]


def test_bad_images(images: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    weights = write_weights(tmp_path / "w.pth", "resnet18", 1)
    bad = images / "1_fake" / "bad.png"
    bad.write_bytes((images / "1_fake" / "b.png").read_bytes()[:200])
    common = ("--arch", "resnet18", "--weights", weights)
    with pytest.raises(UserError, match=r"bad\.png"):
        run("ud_lrp", *common, "--images", images)
    out = run("ud_lrp", *common, "--images", images, "--skip_bad_images")
    assert len(rows(out / "resnet18" / "ud_0.5-beta0-label")) == 3
    assert "skipped: " in capsys.readouterr().err
    with pytest.raises(UserError, match="none of the 1 images"):
        run("ud_lrp", *common, "--images", bad, "--skip_bad_images")


@pytest.mark.parametrize("rule", ["beta", "beta-1", "alpha", "beta0.5x", ""])
def test_unknown_rule(rule: str, run: Run) -> None:
    with pytest.raises(UserError, match="betaada"):
        run("ud_lrp", "--rule", rule)


@pytest.mark.parametrize("script", SCRIPTS)
def test_commands_of_the_original_read_me(script: str, tmp_path: Path, run: Run) -> None:
    classifier, _, arch = script.partition("_lrp")
    line = ("--arch", arch.strip("_") or "resnet50", "--images", tmp_path / "absent.png", "--classifier")
    with pytest.raises(UserError, match=r"absent\.png|weights .*not found"):
        run(script, *line, classifier)
    other = "ud" if classifier == "imagenet" else "imagenet"
    with pytest.raises(UserError, match=rf"--classifier {other}.*use src/{other}_lrp{arch}\.py$"):
        run(script, *line, other)


def test_shifts_move_relevance_back_to_its_pixels(images: Path, tmp_path: Path, run: Run) -> None:
    weights = write_weights(tmp_path / "w.pth", "resnet18", 1)
    common = ("--arch", "resnet18", "--weights", weights, "--images", images / "c.jpg", "--target", "fake")
    out = run("ud_lrp", *common, "--shifts", 3) / "resnet18"
    run("ud_lrp", *common)
    mean, plain = (read_npz(out / f"ud_0.5-beta0-fake{end}" / "arrays" / "c.npz") for end in ("-shifts3", ""))
    np.testing.assert_array_equal(mean["logits"], plain["logits"])
    explainer = load_detector("resnet18", weights, "cpu").explainer()
    expected = plain["relevance"] / 3
    for down, right in spread_shifts(3)[1:]:
        padded = np.pad(plain["image"], ((16, 16), (16, 16), (0, 0)), mode="reflect")
        shifted = np.ascontiguousarray(padded[16 + down : 64 + down, 16 + right : 96 + right])
        inputs = load_detector("resnet18", weights, "cpu").inputs(torch.from_numpy(shifted).permute(2, 0, 1)[None])
        relevance = explainer.explain(inputs).input
        assert relevance is not None
        canvas = np.zeros((80, 112))
        canvas[16 + down : 64 + down, 16 + right : 96 + right] = relevance[0].sum(0).numpy() / 3
        # what lies beyond the border belongs to the mirrored pixel
        canvas[17:33] += canvas[:16][::-1]
        canvas[47:63] += canvas[64:][::-1]
        canvas[:, 17:33] += canvas[:, :16][:, ::-1]
        canvas[:, 79:95] += canvas[:, 96:][:, ::-1]
        expected = expected + canvas[16:64, 16:96]
    np.testing.assert_allclose(mean["relevance"], expected, atol=1e-4 * np.abs(expected).max())


def test_strongest_maps_are_those_of_a_ranking_of_one_image(images: Path, tmp_path: Path, run: Run) -> None:
    weights = write_weights(tmp_path / "w.pth", "resnet18", 1)
    common = ("--arch", "resnet18", "--weights", weights, "--images", images / "c.jpg", "--target", "fake")
    out = run("ud_lrp", *common, "--maps", 2, "--shifts", 2) / "resnet18" / "ud_0.5-beta0-fake-shifts2-maps2"
    arrays = read_npz(out / "arrays" / "c.npz")
    detector = load_detector("resnet18", weights, "cpu")
    inputs = detector.inputs(torch.from_numpy(arrays["image"]).permute(2, 0, 1)[None])
    explainer = detector.explainer()
    layers = [name for name, _ in explainer.layers]
    statistic = FFRS(explainer.layers)
    parts = explainer.explain(inputs, lambda out: torch.full_like(out, float(arrays["start"])), layers=layers).channels
    statistic.update(
        statistic.stack({n: s.positive for n, s in parts.items()}, {n: s.absolute for n, s in parts.items()})
    )
    ranking = statistic.result()
    first = [ranking.maps[number] for number in np.argsort(-ranking.values, kind="stable")[:2]]
    names = [(layer, channel) for layer, count in explainer.layers for channel in range(count)]
    assert [names[int(number)] for number in arrays["maps"]] == [(fmap.layer, fmap.index) for fmap in first]
    np.testing.assert_allclose(arrays["map_shares"], np.sort(ranking.values)[:-3:-1], rtol=1e-5)
    for fmap, box in zip(first, arrays["map_boxes"], strict=True):
        (found,) = explainer.explain_feature_maps(inputs, {fmap.layer: [(0, fmap.index)]})
        assert bounding_box(found.relevance[0].sum(0).numpy()) == Box(*map(int, box))
    assert (out / "contact_sheet_001.png").is_file()


@pytest.mark.parametrize(("number", "farthest"), [(1, 23), (16, 8), (32, 6)])
def test_shifts_cover_the_stride(number: int, farthest: float) -> None:
    shifts = np.array(spread_shifts(number))
    assert shifts[0].tolist() == [0, 0]
    assert shifts.min() >= -16
    assert shifts.max() < 16
    # on the torus of a grid of dots, no pixel is far from a dot of one of the shifts
    pixels = np.stack(np.meshgrid(np.arange(32), np.arange(32)), axis=-1).reshape(-1, 1, 2)
    apart = (pixels - shifts + 16) % 32 - 16
    assert np.hypot(apart[..., 0], apart[..., 1]).min(axis=1).max() <= farthest


def test_a_network_that_says_nan_is_refused_for_its_image(images: Path, tmp_path: Path, run: Run) -> None:
    weights = write_weights(tmp_path / "w.pth", "resnet18", 1)
    state = torch.load(weights)["model"]
    # finite weights whose products are not
    state["fc.weight"].fill_(3e38)
    torch.save(state, weights)
    with pytest.raises(UserError, match=r"a\.png: .* is not a finite number"):
        run("ud_lrp", "--arch", "resnet18", "--weights", weights, "--images", images)


def test_done_and_another_look(images: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    weights = write_weights(tmp_path / "w.pth", "resnet18", 1)
    common = ("--arch", "resnet18", "--weights", weights, "--images", images / "c.jpg")
    folder = run("ud_lrp", *common) / "resnet18" / "ud_0.5-beta0-label"
    arrays, overlay = folder / "arrays" / "c.npz", folder / "overlays" / "c.png"
    before, picture = arrays.stat().st_mtime_ns, overlay.read_bytes()
    capsys.readouterr()
    run("ud_lrp", *common, "--look", "published")
    assert "nothing to compute" in capsys.readouterr().out
    assert arrays.stat().st_mtime_ns == before
    assert overlay.read_bytes() != picture
    arrays.unlink()
    run("ud_lrp", *common)
    assert arrays.is_file()
    assert overlay.read_bytes() == picture


def test_pictures_of_an_earlier_run_do_not_stay(images: Path, tmp_path: Path, run: Run) -> None:
    weights = write_weights(tmp_path / "w.pth", "resnet18", 1)
    common = ("--arch", "resnet18", "--weights", weights)
    folder = run("ud_lrp", *common, "--images", images) / "resnet18" / "ud_0.5-beta0-label"
    other = folder / "arrays" / "notes.txt"
    other.write_text("not ours")
    run("ud_lrp", *common, "--images", images / "c.jpg")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {name for name in files if name.startswith(("arrays", "overlays"))} == {
        "arrays/c.npz",
        "arrays/notes.txt",
        "overlays/c.png",
    }


def test_resumed_results_are_those_of_an_uninterrupted_run(
    images: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_weights(tmp_path / "w.pth", "resnet18", 1)
    line = ("--arch", "resnet18", "--weights", weights, "--images", images, "--conservation", "--bsize", 1)
    folder = run("ud_lrp", *line) / "resnet18" / "ud_0.5-beta0-label"

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"}

    expected, explained = files(), []
    explain = LrpHeatMaps.explain

    def interrupted(*arguments: Any) -> Explanation:
        explained.append(arguments)
        if len(explained) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return explain(*arguments)

    monkeypatch.setattr(LrpHeatMaps, "explain", interrupted)
    with pytest.raises(Interrupted, match="after 2 of 3 batches"):
        run("ud_lrp", *line, "--overwrite")
    run("ud_lrp", *line, "--overwrite", "--resume")
    assert len(explained) == 3
    assert files() == expected
