"""Source attribution from the command line, on tiny images: training, testing, loose images, comparison, bad input."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from ranking_runs import Run, Scripts
from test_attribution_networks import made
from torch import nn

from detectors.attribution_networks import own_layers, shared_layers
from fmap_ranking.ranking import Ranking
from reproduction.source_contents import read_sources
from source_attribution.confusion import Confusion
from source_attribution.options import DataPreparation
from source_attribution.overlap import overlaps
from source_attribution.single_images import _caption
from source_attribution.source_evaluation import confusions, open_set
from source_attribution.source_scores import Scores, calibrated_threshold
from source_attribution.source_sets import find_sources, sources_in
from source_attribution.source_tasks import Branches, EarlyStopping, OneVersusRest, class_weights
from source_attribution.stored import Description, read_stored, write_stored
from utils.errors import UserError
from utils.provenance import read_record
from utils.tables import read_table

SIDE = 16
SHARES = st.floats(0, 0.999)
TRAIN = ("--image_size", SIDE, "-b", 8, "--learning_rate", 0.01, "-e", 2, "--init", "high_pass")


def write_images(root: Path, sources: tuple[str, ...], number: int = 6) -> Path:
    """`<root>/<source>/{0_real,1_fake}/<n>.png`: reals are noise, the same in all; each source raises its pixels."""
    for place, source in enumerate(sources):
        for label, name in enumerate(("0_real", "1_fake")):
            folder = root / source / name
            folder.mkdir(parents=True)
            for count in range(number):
                image = np.random.default_rng(count).integers(40, 160, (SIDE, SIDE, 3))
                image[place % 2 :: 2, :: 1 + place // 2] += 80 * label
                Image.fromarray(image.astype(np.uint8)).save(folder / f"{count}.png")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("sources"), ("a_x", "b", "c"))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A primary with secondaries of `a_x` and `b`; not to be written to."""
    path = tmp_path_factory.mktemp("registry") / "p.safetensors"
    primary = made("primary", side=SIDE)
    write_stored(path, primary)
    for seed, name in enumerate(("a_x", "b"), start=1):
        write_stored(
            path.with_suffix("") / f"{name}.safetensors", made("secondary", seed, SIDE, primary, sources=(name,))
        )
    return path


def attribute(scripts: Scripts, *words: object) -> Run:
    return scripts("attribute_source", *words)


def test_sources_are_added_one_by_one(data: Path, scripts: Scripts, tmp_path: Path) -> None:
    run = attribute(scripts, "det", "train", data, data, *TRAIN, "--class_bal", "--model_id", "p")
    assert run.code == 0, run.err
    assert "validation images are among the training images" in run.err
    primary = tmp_path / "output" / "attribution" / "p.safetensors"
    before = primary.read_bytes()
    for source in ("a_x", "b"):
        words = ("--source", source, "--det_model", primary, "--most_false", 0.2)
        run = attribute(scripts, "att", "train", data, data, *TRAIN, *words)
        assert run.code == 0, run.err
    files = sorted(path.name for path in primary.with_suffix("").glob("*.safetensors"))
    assert files == ["a_x.safetensors", "b.safetensors"]
    assert primary.read_bytes() == before
    first = (primary.with_suffix("") / "a_x.safetensors").read_bytes()
    run = attribute(scripts, "att", "test", primary, data, "--output_dir", "tested")
    assert run.code == 0, run.err
    folder = tmp_path / "tested" / "test_results" / "attribution" / "p"
    assert np.load(folder / "raw_predictions.npy").shape == (3, 24)
    assert np.load(folder / "ground_truth.npy").max() == 3
    header, rows = read_table(folder / "ATT_confusion.csv", made_by="")
    assert header == ["truth", "none", "a_x", "b"]
    assert [row[0] for row in rows] == ["real", "a_x", "b", "unknown"]
    assert (folder / "open_set.csv").is_file()
    assert (folder / "DET.png").is_file()
    again = attribute(scripts, "att", "test", primary, data, "--output_dir", "tested")
    assert "nothing to compute" in again.out
    (shown,) = read_sources(tmp_path / "tested")
    assert shown.unknown is not None
    assert (shown.unknown.images, shown.classes[-1].images, len(shown.open_set)) == (6, 24, 2)
    # all at once: the same files, refused unless they are to be replaced
    both = ("att", "train", data, data, *TRAIN, "--multiclass", "--det_model", primary, "--most_false", 0.2)
    run = attribute(scripts, *both)
    assert run.code == 2
    assert "is there already" in run.err
    run = attribute(scripts, *both, "--overwrite")
    assert run.code == 0, run.err
    # secondaries that are trained together do not know of each other
    assert (primary.with_suffix("") / "a_x.safetensors").read_bytes() == first
    assert len(list(primary.with_suffix("").glob("*.safetensors"))) == 3
    assert read_record(primary)["seed"] == 2021


@pytest.mark.parametrize("words", [("-c", "notl"), ("-c", "gdaconv", "--dct"), ("-c", "postpool", "-g")])
def test_networks_that_stand_alone(words: tuple[str, ...], data: Path, scripts: Scripts, tmp_path: Path) -> None:
    size = ("--image_size", SIDE, "-b", 8, "-e", 1)
    run = attribute(scripts, "att", "train", data, data, *size, *words, "--multiclass", "--model_id", "n")
    assert run.code == 0, run.err
    model = tmp_path / "output" / "attribution" / "n.safetensors"
    assert read_stored(model).description.classes == ("real", "a_x", "b", "c")
    run = attribute(scripts, "att", "test", model, data, *words)
    assert run.code == 0, run.err
    assert np.load(tmp_path / "output" / "test_results" / "attribution" / "n" / "raw_predictions.npy").shape == (4, 24)
    run = attribute(scripts, "det", "train", data, data, *size, *words, "--model_id", "d")
    assert run.code == 0, run.err
    run = scripts("run_attribution", "det", tmp_path / "output" / "attribution" / "d.safetensors", data, "out")
    assert run.code == 0, run.err


def test_a_network_of_several_classes_needs_a_class_for_each_image(
    data: Path, scripts: Scripts, tmp_path: Path
) -> None:
    (tmp_path / "ids.csv").write_text("b,1\na_x,2\n")
    words = ("att", "train", data, data, *TRAIN, "-c", "notl", "--multiclass", "--source_list", "ids.csv")
    run = attribute(scripts, *words)
    message = f"error: {data} has images of c, which is not listed: list it, or choose --folders\n"
    assert (run.code, run.err) == (2, message)
    run = attribute(scripts, *words, "--folders", "a_x", "b")
    assert run.code == 0, run.err


def test_resuming_equals_uninterrupted(data: Path, scripts: Scripts, tmp_path: Path) -> None:
    words = ("det", "train", data, data, *TRAIN, "--model_id", "p", "--augment", "multi", "--pairs")
    assert attribute(scripts, *words).code == 0
    whole = (tmp_path / "output" / "attribution" / "p.safetensors").read_bytes()
    assert attribute(scripts, *words, "--output_dir", "other", "-e", 1).code == 0
    again = attribute(scripts, *words, "--output_dir", "other")
    assert again.code == 2
    assert "give --resume" in again.err
    assert attribute(scripts, *words, "--output_dir", "other", "--resume").code == 0
    assert (tmp_path / "other" / "attribution" / "p.safetensors").read_bytes() == whole


def test_training_on_arrays(data: Path, scripts: Scripts, tmp_path: Path) -> None:
    fake, real = tmp_path / "fake", tmp_path / "real"
    for source in ("a_x", "b"):
        for root, name in ((fake, "1_fake"), (real, "0_real")):
            (root / source).mkdir(parents=True)
            for path in (data / source / name).iterdir():
                (root / source / path.name).write_bytes(path.read_bytes())
    sizes = ("--train_size", 4, "--val_size", 1, "--test_size", 1)
    for words, flags in ((("-r", "-c", "-n"), ()), (("-l", "-n"), ("--dct",))):
        out = tmp_path / "x" / words[0]
        assert scripts("prepare_sources", "arrays", fake, real, out, *words, *sizes).code == 0
        train, val = (next(out.glob(f"*_{part}")) for part in ("train", "val"))
        short = ("--image_size", SIDE, "-b", 4, "-e", 1, "--model_id", f"m{words[0]}", "-n", 2)
        # statistics of spectra are not in the arrays, and not needed for what is normalised already
        run = attribute(scripts, "det", "train", train, val, *short, *flags)
        assert run.code == 0, run.err


def test_secondaries_leave_the_primary_as_it_is() -> None:
    primary = made("primary", side=SIDE)
    before = {name: value.clone() for name, value in primary.network.state_dict().items()}
    branch = own_layers(made("secondary", 1, SIDE, primary, sources=("a",)).network)
    model = Branches(shared_layers(primary.network), [branch]).train()
    assert any(module.training for module in branch if isinstance(module, torch.nn.BatchNorm2d))
    fixed = Branches(shared_layers(primary.network), [branch], fixed_norms=True).train()
    assert not any(module.training for module in fixed.modules() if isinstance(module, torch.nn.BatchNorm2d))
    model.train()
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad])
    task = OneVersusRest(["a"])
    task.losses(model(torch.randn(4, 3, SIDE, SIDE)), torch.ones(4, 1)).sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in primary.network.state_dict().items())


def test_a_yes_without_bias_needs_evidence() -> None:
    branch = own_layers(made("secondary", 1, SIDE, sources=("a",)).network)
    nn.init.ones_(branch[-1].get_parameter("bias"))
    model = Branches(None, [branch], zero_bias=True)
    maps = torch.randn(4, 16, SIDE // 4, SIDE // 4)
    OneVersusRest(["a"]).losses(model(maps), torch.ones(4, 1)).sum().backward()
    torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=1.0).step()
    evidence = branch[:-1](maps) @ branch[-1].get_parameter("weight").T
    torch.testing.assert_close(model(maps), evidence)


def test_weighted_classes_count_as_said(data: Path) -> None:
    images = find_sources(data)
    weights = class_weights(["a_x", "b"], images)
    task = OneVersusRest(["a_x", "b"], weights)
    targets = np.stack([task.target(item) for item in images.items])
    made_by = np.array([item.generator for item in images.items])
    shares = {name: np.abs(targets[made_by == name]).sum(0) / len(images) for name in ("a_x", "b", "c", "")}
    np.testing.assert_allclose(shares["a_x"], [1 / 2, 1 / 8])
    np.testing.assert_allclose(shares["c"], [1 / 8, 1 / 8])
    np.testing.assert_allclose(shares[""], [1 / 4, 1 / 4])
    assert (np.sign(targets[:, 0]) == np.where(made_by == "a_x", 1, -1)).all()


@pytest.mark.parametrize("left", [("a_x", "b", "c"), ("a_x", "b"), ("a_x", "")])
def test_half_of_the_weight_is_for_all_else(left: tuple[str, ...], data: Path) -> None:
    images = find_sources(data)
    some = replace(images, items=tuple(item for item in images.items if item.generator in left))
    weights = class_weights(["a_x"], some)["a_x"]
    own = sum(weights[item.generator] for item in some.items if item.generator == "a_x")
    assert own == pytest.approx(len(some) / 2)
    assert sum(weights[item.generator] for item in some.items) == pytest.approx(len(some))


@given(st.lists(SHARES, min_size=1, max_size=40), st.lists(SHARES, max_size=9), SHARES)
def test_calibrated_thresholds_keep_what_they_promise(reals: list[float], others: list[float], most: float) -> None:
    groups = [np.array(reals), np.array(others)]
    threshold = calibrated_threshold(groups, most)
    assert 0.5 <= threshold < 1
    for values in groups:
        assert (values >= threshold).sum() <= most * len(values)
    # no lower one would do
    lower = np.append(np.concatenate(groups), 0.0)
    lower = lower[lower < threshold].max()
    assert threshold == 0.5 or any((values >= lower).sum() > most * len(values) for values in groups)


def test_sources_are_compared_by_their_thresholds() -> None:
    values = np.array([[0.9, 0.8], [0.6, 0.55], [0.3, 0.2]])
    assert Scores(["a", "b"], values).said().tolist() == [1, 1, 0]
    assert Scores(["a", "b"], values, {"a": 0.95, "b": 0.5}).said().tolist() == [2, 2, 0]
    assert Scores(["a", "b"], values, {"a": 0.7, "b": 0.7}).said().tolist() == [1, 0, 0]


def test_thresholds_are_kept_with_the_networks(data: Path, scripts: Scripts, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    primary = made("primary", side=SIDE)
    write_stored(path, primary)
    for name in ("a_x", "b", "c"):
        ready = made("secondary", 1, SIDE, primary, sources=(name,))
        nn.init.constant_(ready.network[-1].get_parameter("bias"), 3.0)
        write_stored(tmp_path / "p" / f"{name}.safetensors", ready)
    (tmp_path / "p").rename(tmp_path / "start.1")
    words = ("att", "train", data, data, *TRAIN[:4], "-e", 1, "--learning_rate", 1e-6, "--multiclass")
    more = (
        "--det_model",
        path,
        "--model",
        tmp_path / "start.1",
        "--registry",
        "more",
        "--class_weights",
        "--most_false",
        0.01,
    )
    run = attribute(scripts, *words, *more)
    assert run.code == 0, run.err
    assert read_stored(tmp_path / "more" / "p" / "b.safetensors").description.threshold > 0.9
    run = attribute(scripts, "det", "train", data, data, *TRAIN, "--model", tmp_path / "start.1")
    assert (run.code, "no network" in run.err, "Traceback" in run.err) == (2, True, False), run.err
    shares = []
    for number, threshold in enumerate(((), ("--threshold", 0.5), ("--threshold", 1e-6))):
        run = attribute(
            scripts, "att", "test", "more/p.safetensors", data, "--output_dir", f"t{number}", *map(str, threshold)
        )
        assert run.code == 0, run.err
        _, rows = read_table(next((tmp_path / f"t{number}").rglob("ATT_confusion.csv")), made_by="")
        # of real images: none of these, or a source
        shares.append([int(rows[0][1]), sum(map(int, rows[0][2:]))])
    assert shares == [[6, 0], [0, 6], [0, 6]]


def test_thresholds_are_for_tests_of_secondaries(data: Path, registry: Path, scripts: Scripts, tmp_path: Path) -> None:
    several = made("notl", side=SIDE, sources=("a_x", "b"))
    write_stored(tmp_path / "several.safetensors", several)
    images = data / "a_x"
    for words in (
        ("attribute_source", "det", "test", registry, data),
        ("attribute_source", "att", "train", data, data, *TRAIN, "--multiclass"),
        ("attribute_source", "att", "test", tmp_path / "several.safetensors", data),
        ("run_attribution", "det", registry, images, "out"),
        ("run_attribution", "att", tmp_path / "several.safetensors", images, "out"),
    ):
        run = scripts(*words, "--threshold", 0.9)
        assert (run.code, "--threshold" in run.err, run.err.count("\n")) == (2, True, 1), run.err


def test_captions_say_what_a_source_needs() -> None:
    values = np.array([[0.2, 0.7]])
    assert _caption("x", Scores(["fake", "b"], values, {"b": 0.8}))[2] == "none of these: p(b) 70.0 %, needs 80.0 %"
    assert _caption("x", Scores(["b"], values[:, 1:]))[2] == "b: p(b) 70.0 %, needs 50.0 %"
    # the most probable class is the answer, however probable
    assert _caption("x", Scores(["real", "b", "c"], np.array([[0.3, 0.4, 0.3]])))[2] == "b: p(b) 40.0 %"


@pytest.mark.parametrize("text", ["NaN", "1e999", '"0.4"', "null", "[0.5]", "0", "1", "[" * 100_000])
def test_thresholds_of_damaged_files(text: str) -> None:
    described = json.dumps(asdict(made("secondary", 1, SIDE, made("primary", side=SIDE), sources=("b",)).description))
    assert '"threshold": 0.5' in described
    with pytest.raises(UserError, match="cannot be read"):
        Description.read(described.replace('"threshold": 0.5', f'"threshold": {text}'), Path("b.safetensors"))


def test_early_stopping() -> None:
    schedule = EarlyStopping(patience=2)
    decisions = [schedule.update(score) for score in (0.1, 0.3, 0.2, 0.3)]
    assert [decision.is_best for decision in decisions] == [True, True, False, False]
    assert [decision.stop for decision in decisions] == [False, False, False, True]


def test_loose_images(data: Path, registry: Path, scripts: Scripts, tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 30, 3), 90, np.uint8)).save(tmp_path / "other.png")
    run = scripts("run_attribution", "att", registry, data / "a_x", "out")
    assert run.code == 0, run.err
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "p_fake", "p_a_x", "p_b"]
    assert len(rows) == 12
    one = scripts("run_attribution", "att", registry, data / "a_x", "one", "--source", "b", "-b", 1)
    assert one.code == 0, one.err
    with (tmp_path / "one" / "scores.csv").open() as file:
        single = list(csv.DictReader(file))
    assert [float(row["p_b"]) for row in single] == pytest.approx([float(row["p_b"]) for row in rows], abs=1e-6)
    secondary = registry.with_suffix("") / "b.safetensors"
    same = scripts("run_attribution", "att", secondary, tmp_path / "other.png", "o", "--look", "published")
    assert same.code == 0, same.err
    assert (tmp_path / "o" / "scores.csv").read_text().startswith("path,p_fake,p_b\n")
    assert (tmp_path / "o" / "sheet_001.png").is_file()
    arrays = np.load(tmp_path / "o" / "arrays" / "other.png.npz")
    assert arrays["image"].shape == (SIDE, SIDE, 3)
    assert arrays["map_1"].shape == (SIDE // 8, SIDE // 8)


def test_any_script_takes_the_networks(data: Path, registry: Path, scripts: Scripts, tmp_path: Path) -> None:
    for arch, weights in (
        ("attribution", registry),
        ("attribution-secondary", registry.with_suffix("") / "b.safetensors"),
    ):
        choice = ("--arch", arch, "--weights", weights, "--blur_jpg", "t", "--dataset_dir", data, "--gan_name", "b")
        run = scripts("rank_fmaps", *choice, "--output_dir", "o", "--fake_confidence", 0.5, "--real_confidence", 0.5)
        assert run.code in (0, 2), run.err
        assert run.code == 0 or "none of" in run.err or "no " in run.err
        run = scripts("evaluate_detector", *choice, "--output_dir", "o", "--jpeg", 60, "--bootstrap", 10)
        assert run.code == 0, run.err


def test_comparison_of_sources(scripts: Scripts, tmp_path: Path) -> None:
    layers = [("dConv_01", 3), ("dConv_02", 8), ("dConv_03", 16), ("dConv_04", 16), ("aConv_01", 32)]
    rng = np.random.default_rng(0)
    for name in "xyz":
        Ranking.from_values(layers, rng.random(75)).write(tmp_path / f"{name}.csv")
    words = [f"{name}={tmp_path / name}.csv" for name in "xyz"]
    run = scripts("compare_sources", *words, "--topk", 10)
    assert run.code == 0, run.err
    assert (tmp_path / "output" / "attribution_overlap" / "overlap.png").is_file()
    same = scripts("compare_sources", words[0], words[0])
    assert same.code == 2


def test_overlap_of_random_maps_is_that_of_chance() -> None:
    maps = Ranking.from_values([("a", 3), ("b", 40)], np.arange(43.0)).maps
    maps = tuple(sorted(maps, key=lambda entry: (entry.layer, entry.index)))
    rng = np.random.default_rng(1)
    rows = overlaps({str(number): rng.random(43) for number in range(30)}, maps, 10)
    assert np.mean([row.common for row in rows]) == pytest.approx(np.mean([row.by_chance for row in rows]), abs=0.15)
    assert np.mean([row.common > row.most_by_chance for row in rows]) < 0.04
    values = rng.random(43)
    (row,) = overlaps({"x": values, "y": values}, maps, 10)
    assert (row.common, row.correlation) == (10, pytest.approx(1.0))


def test_confusions_and_unknown_generators(data: Path) -> None:
    images = find_sources(data)
    assert sources_in(images) == ["a_x", "b", "c"]
    truth = [item.generator for item in images.items]
    assert truth.count("") == 6  # the same reals lie in three folders
    scores = np.array([[0.9, 0.8 if name == "a_x" else 0.1, 0.9 if name == "b" else 0.2] for name in truth])
    matrices = confusions(images, Scores(["fake", "a_x", "b"], scores))
    attributed = matrices["ATT"]
    assert attributed.truths == ("real", "a_x", "b", "unknown")
    assert attributed.correct() == len(images)
    known, none = open_set(images, Scores(["fake", "a_x", "b"], scores))
    assert (known.roc_auc, none.roc_auc) == (1.0, 1.0)
    assert matrices["DET"].rows()[0].recall == 0.0


def test_numbers_of_classes() -> None:
    confusion = Confusion(np.array([[8, 2], [1, 9]]), ("real", "fake"), ("real", "fake"))
    fake = confusion.rows()[1]
    assert (fake.precision, fake.recall) == (9 / 11, 0.9)
    assert fake.f1 == pytest.approx(2 * 9 / (10 + 11))
    assert fake.f1_low is not None
    assert fake.f1_high is not None
    assert fake.f1_low < fake.f1 < fake.f1_high < 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("att", "train", "DATA", "DATA"), "give --source NAME, or --multiclass"),
        (("att", "train", "DATA", "DATA", "--source", "b"), "give --det_model"),
        (("att", "train", "DATA", "DATA", "--source", "z", "--det_model", "PRIMARY"), "no images of z"),
        (("att", "train", "DATA", "DATA", "--source", "b", "--det_model", "PRIMARY", "--dct"), "match --dct"),
        (("det", "train", "DATA", "DATA", "--source", "b"), "--source and --multiclass are for att"),
        (("det", "train", "DATA", "DATA", "--most_false", "0.1"), "are for secondaries"),
        (("det", "train", "DATA", "DATA", "--class_bal", "--class_weights"), "exclude each other"),
        (("att", "test", "PRIMARY", "DATA", "--threshold", "1"), "between 0 and 1"),
        (("det", "train", "absent", "DATA"), "no folder absent"),
        (("det", "train", "DATA", "DATA", "-n", "2"), "has 3 sources"),
        (("det", "train", "DATA", "DATA", "-i", "20"), "multiple of 8"),
        (("det", "test", "absent.safetensors", "DATA"), "no network absent.safetensors"),
        (("det", "test", "DATA/a_x/1_fake/0.png", "DATA"), "damaged"),
        (("att", "test", "PRIMARY", "DATA", "--source", "z"), "no secondary module of z"),
        (("det", "train", "DATA", "DATA", "-c", "nonsense"), "invalid choice"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...], message: str, data: Path, registry: Path, scripts: Scripts
) -> None:
    places = {"DATA": str(data), "PRIMARY": str(registry)}
    given = [places.get(word, word.replace("DATA/", f"{data}/")) for word in words]
    run = attribute(scripts, *given)
    assert run.code == 2
    assert message in run.err
    assert run.err.splitlines()[-1].startswith("error: ")


def test_bad_images_are_left_out(data: Path, registry: Path, scripts: Scripts, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "good.png").write_bytes((data / "b" / "1_fake" / "0.png").read_bytes())
    run = scripts("run_attribution", "det", registry, folder, "out")
    assert run.code == 2
    assert "bad.png" in run.err
    run = scripts("run_attribution", "det", registry, folder, "out", "--skip_bad_images")
    assert run.code == 0, run.err
    assert "skipped:" in run.err
    assert (tmp_path / "out" / "scores.csv").read_text().count("\n") == 2


def test_settings_of_preparation() -> None:
    assert DataPreparation("crop", (Path("a"), Path("b"))).amount == 10000
