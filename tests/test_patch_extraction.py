"""Activation rankings, boxes, LRP-max for many maps at once, and the files of patches."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fmap_ranking.locate import find_ranking
from PIL import Image
from torch import Tensor

from detectors.detector import Detector
from detectors.feature_maps import Observation
from detectors.networks import build_model, get_architecture
from fmap_ranking.names import FeatureMap
from images.decoding import Crop
from images.sets import ImageItem, ImageSet
from lrp import Explainer
from passes.one_pass import run_pass
from patch_extraction.activations import MaxActivations, TopActivations
from patch_extraction.boxes import Box, bounding_box
from patch_extraction.collages import plot_overview
from patch_extraction.files import MapPatches, Patch, PatchFiles
from patch_extraction.patches import Numbers, PatchCollector, Wanted, wanted_patches
from patch_extraction.rankings import ActivationRankings, Source
from patch_extraction.selection import select_maps
from utils.errors import UserError

MAPS = (FeatureMap("a", 1, 3), FeatureMap("b", 0, 2), FeatureMap("a", 0, 3))
OBSERVED = {"a": [0, 1, 2], "b": [0, 1]}


class FakeForward:
    """Stands in for shared forward passes: (images, 5) values of the maps a0, a1, a2, b0, b1."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = torch.from_numpy(values)

    def request(self, kind: str, maps: object) -> None:
        assert maps == {"a": [0, 1], "b": [0]}

    def of(self, batch: SimpleNamespace) -> Observation:
        values = self.values[list(batch.batch.positions)]
        return Observation(OBSERVED, {"a": values[:, :3], "b": values[:, 3:]}, None)


def images(count: int) -> ImageSet:
    return ImageSet(Path("x"), tuple(ImageItem(Path(f"x/{i}"), f"gan/{i}.png", 1, "", "gan") for i in range(count)))


def batch(*positions: int) -> SimpleNamespace:
    return SimpleNamespace(
        batch=SimpleNamespace(positions=positions), items=[images(99).items[position] for position in positions]
    )


def tied_values(count: int = 11) -> np.ndarray:
    """Small integers, many of them equal, with both zeros."""
    values = np.random.default_rng(3).integers(-2, 3, (count, 5)).astype(np.float32)
    values[1, 1], values[4, 1] = 0.0, -0.0
    return values


def by_hand(values: np.ndarray, column: int, count: int | None = None) -> list[tuple[str, float]]:
    order = sorted(range(len(values)), key=lambda image: (-values[image, column], image))
    return [(f"gan/{image}.png", float(values[image, column])) for image in order[:count]]


@pytest.mark.parametrize("count", [1, 4, 11, 50])
def test_rankings_are_descending_and_ties_keep_the_order_of_the_images(count: int) -> None:
    values = tied_values()
    forward = FakeForward(values)
    full = MaxActivations(forward, MAPS, images(11))  # type: ignore[arg-type]
    top = TopActivations(forward, MAPS, images(11), count)  # type: ignore[arg-type]
    for positions in ((8, 3), (0, 1, 2), (10,), (4, 5, 6, 7, 9)):
        full.update(batch(*positions))  # type: ignore[arg-type]
        top.update(batch(*positions))  # type: ignore[arg-type]
    for fmap, column in zip(MAPS, (1, 3, 0), strict=True):
        assert full.result().of(fmap) == by_hand(values, column)
        assert full.result().of(fmap, count) == by_hand(values, column, count)
        assert top.result().of(fmap) == by_hand(values, column, count)
    assert top.state()["best"].shape == (3, min(count, 11))


@pytest.mark.parametrize("count", [None, 3])
def test_halves_merge_and_resume_to_the_whole(count: int | None) -> None:
    values = tied_values()

    def collector() -> MaxActivations | TopActivations:
        forward = FakeForward(values)
        if count is None:
            return MaxActivations(forward, MAPS, images(11))  # type: ignore[arg-type]
        return TopActivations(forward, MAPS, images(11), count)  # type: ignore[arg-type]

    whole, first, second, resumed = collector(), collector(), collector(), collector()
    for positions in ((0, 1, 2), (5, 3, 4), (6, 7), (8, 9, 10)):
        whole.update(batch(*positions))  # type: ignore[arg-type]
        (first if positions[0] < 6 else second).update(batch(*positions))  # type: ignore[arg-type]
    resumed.load_state(first.state())
    for positions in ((6, 7), (8, 9, 10)):
        resumed.update(batch(*positions))  # type: ignore[arg-type]
    second.merge(first.state())
    for other in (second, resumed):
        for fmap in MAPS:
            assert other.result().of(fmap) == whole.result().of(fmap)


@pytest.mark.parametrize("kind", [MaxActivations, TopActivations])
def test_values_that_are_no_numbers_are_refused(kind: type) -> None:
    values = tied_values()
    values[2, 3] = np.nan
    arguments = () if kind is MaxActivations else (2,)
    collector = kind(FakeForward(values), MAPS, images(11), *arguments)
    with pytest.raises(UserError, match=r"x/2: feature map b\.#0\(T=2\) has no finite maximum"):
        collector.update(batch(1, 2))


@pytest.mark.parametrize("count", [None, 2])
def test_rankings_survive_writing_and_reading(tmp_path: Path, count: int | None) -> None:
    values = tied_values()
    source = Source("abc", "/data", "center")
    forward = FakeForward(values)
    collector = (
        MaxActivations(forward, MAPS, images(11))  # type: ignore[arg-type]
        if count is None
        else TopActivations(forward, MAPS, images(11), count)  # type: ignore[arg-type]
    )
    collector.update(batch(*(range(9))))  # type: ignore[arg-type]
    written = collector.result(source)
    written.write(tmp_path / "r.npz")
    read = ActivationRankings.read(tmp_path / "r.npz")
    assert read.source == source
    for fmap in MAPS:
        assert read.of(fmap) == written.of(fmap)
        assert len(read.of(fmap)) == (count or 9)
    with np.load(tmp_path / "r.npz") as arrays:
        if count is None:
            np.testing.assert_array_equal(arrays["max_act"], values[:9, [1, 3, 0]])
            assert arrays["names"].tolist() == [f"gan/{i}.png" for i in range(9)]
        assert arrays["keys"].tolist() == [fmap.key for fmap in MAPS]


@pytest.mark.parametrize(
    "change",
    [
        {"keys": np.array(["conv"])},
        {"max_act": np.zeros((3, 2), np.float32)},
        {"names": np.array(["a"])},
        {"image": np.full((9, 3), 9)},
        {"image": np.zeros((2, 3), np.int32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_damaged_rankings_are_refused(tmp_path: Path, change: dict[str, np.ndarray]) -> None:
    path = tmp_path / "r.npz"
    collector = MaxActivations(FakeForward(tied_values()), MAPS, images(9))  # type: ignore[arg-type]
    collector.update(batch(*(range(9))))  # type: ignore[arg-type]
    collector.result().write(path)
    with np.load(path) as arrays:
        np.savez(path, **{**arrays, **change})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"get_max_activation_rankings\.py"):
        ActivationRankings.read(path)


def test_missing_rankings_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"make them with get_max_activation_rankings\.py"):
        ActivationRankings.read(tmp_path / "none.npz")
    rankings = ActivationRankings.of_all(MAPS[:1], ["a"], np.zeros((1, 1), np.float32))
    with pytest.raises(UserError, match=r"no ranking of b\.#0\(T=2\) \(2 missing\): run get_max_activation_rankings"):
        rankings.require(MAPS, Path("r.npz"))


def test_box_holds_the_pixels_above_the_percentile() -> None:
    relevance = np.zeros((20, 30), np.float32)
    relevance[4:7, 10:15] = 1.0
    relevance[0, 0] = -5.0
    assert bounding_box(relevance) == Box(4, 6, 10, 14)


def test_box_leaves_out_weak_relevance_when_much_is_positive() -> None:
    relevance = np.linspace(0.01, 0.5, 400, dtype=np.float32).reshape(20, 20)
    # The upper quarter of 400 pixels is the last 100; of these and 300 zeros the percentile lies just below the
    # first, so that all stay.
    assert bounding_box(relevance) == Box(15, 19, 0, 19)


@pytest.mark.parametrize(
    ("relevance", "expected"),
    [
        (np.zeros((4, 6)), Box(0, 3, 0, 5)),
        (-np.ones((4, 6)), Box(0, 3, 0, 5)),
        (np.ones((4, 6)), Box(0, 3, 0, 5)),
        (np.eye(8)[:, ::-1] * np.array([0] * 5 + [1, 0, 0]), Box(2, 2, 5, 5)),
    ],
    ids=["zero", "negative", "constant", "one pixel"],
)
def test_box_is_never_empty(relevance: np.ndarray, expected: Box) -> None:
    box = bounding_box(relevance)
    assert box == expected
    image = np.arange(relevance.size * 3).reshape(*relevance.shape, 3)
    patch = box.cut(image)
    assert patch.shape[:2] == box.size
    np.testing.assert_array_equal(patch[0, 0], image[box.row_min, box.col_min])
    np.testing.assert_array_equal(patch[-1, -1], image[box.row_max, box.col_max])
    assert box.cut(image, half_open=True).shape[:2] == tuple(max(1, length - 1) for length in box.size)


def test_relevance_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        bounding_box(np.array([[1.0, np.inf]]))


@pytest.fixture(scope="module")
def detector() -> Detector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model("resnet18").eval().requires_grad_(False)
    return Detector(get_architecture("resnet18"), model)


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn((2, 3, 64, 48), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("published", [False, True])
def test_maps_of_several_layers_are_explained_as_one_by_one(
    detector: Detector, inputs: Tensor, batch_size: int, published: bool
) -> None:
    explainer = Explainer(detector.model, published=published)
    wanted = {
        "conv1": [(1, 5), (0, 5)],
        "layer3.0.conv2": [(0, 200), (0, 3), (1, 200), (1, 7)],
        "layer2.0.downsample.0": [(1, 9)],
        "layer4.1.conv2": [],
    }
    found = list(explainer.explain_feature_maps(inputs, wanted, batch_size=batch_size))
    order = list(dict.fromkeys(part.layer for part in found))
    assert order == ["layer3.0.conv2", "layer2.0.downsample.0", "conv1"]
    for layer in order:
        parts = [part for part in found if part.layer == layer]
        assert max(len(part.value) for part in parts) <= batch_size
        pairs = [pair for part in parts for pair in zip(part.samples.tolist(), part.channels.tolist(), strict=True)]
        assert pairs == wanted[layer]
        relevance = torch.cat([part.relevance for part in parts])
        value = torch.cat([part.value for part in parts])
        places = torch.cat([torch.stack([part.row, part.column], 1) for part in parts])
        for at, (sample, channel) in enumerate(pairs):
            alone, largest, place = explainer.explain_feature_map(inputs[sample : sample + 1], layer, [channel])
            torch.testing.assert_close(relevance[at], alone[0], rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(value[at], largest[0])
            assert places[at].tolist() == place[0].tolist()


def test_relevance_starts_at_the_largest_pixel_of_the_folded_map(detector: Detector, inputs: Tensor) -> None:
    explainer = Explainer(detector.model)
    relevance, value, place = explainer.explain_feature_map(inputs, "conv1", [7, 7])
    folded = detector.model.bn1(detector.model.conv1(inputs))[:, 7]  # type: ignore[operator]
    for sample in range(2):
        row, column = divmod(int(folded[sample].argmax()), folded.shape[-1])
        assert place[sample].tolist() == [row, column]
        torch.testing.assert_close(value[sample], folded[sample].max(), rtol=1e-5, atol=1e-6)
        # 7x7 window, stride 2, padding 3
        rows, columns = np.nonzero(relevance[sample].abs().sum(0).numpy())
        assert abs(rows - 2 * row).max() <= 3
        assert abs(columns - 2 * column).max() <= 3


@pytest.fixture
def picture_set(tmp_path: Path) -> ImageSet:
    generator = np.random.default_rng(0)
    items = []
    for number, shape in enumerate([(64, 48, 3), (64, 48, 3), (40, 56, 3)]):
        name = f"gan/1_fake/{number}.png"
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(path)
        items.append(ImageItem(path, name, 1, "", "gan"))
    return ImageSet(tmp_path / "data", tuple(items))


class CountingExplainer(Explainer):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        self.images = 0

    def record(self, inputs: Tensor, **options: object) -> object:  # type: ignore[override]
        self.images += len(inputs)
        return super().record(inputs, **options)  # type: ignore[arg-type]


def test_each_image_is_run_forwards_once_for_all_maps(detector: Detector, picture_set: ImageSet) -> None:
    maps = (FeatureMap("conv1", 3, 64), FeatureMap("layer2.0.conv1", 8, 128), FeatureMap("conv1", 60, 64))
    names = [item.name for item in picture_set.items]
    values = np.random.default_rng(5).random((3, 3)).astype(np.float32)
    wanted = wanted_patches(ActivationRankings.of_all(maps, names, values), maps, 3)
    explainer = CountingExplainer(detector.model)
    seen: list[str] = []
    pictures: dict[tuple[int, int], np.ndarray] = {}

    def keep_patch(patch: Wanted, picture: np.ndarray) -> None:
        pictures[patch.row, patch.rank] = picture

    collector = PatchCollector(
        explainer, maps, wanted, keep_patch=keep_patch, keep_image=lambda item, _: seen.append(item.name), batch_size=2
    )
    run_pass(
        picture_set,
        [collector],
        preprocess=detector.inputs,
        device=detector.device,
        batch_size=2,
        crop=Crop("none"),
    )
    assert explainer.images == 3
    assert seen == names
    assert len(pictures) == 9
    for row, of_map in enumerate(collector.result()):
        assert [patch.max_act for patch, _ in of_map] == sorted(values[:, row].tolist(), reverse=True)
        for patch, numbers in of_map:
            assert pictures[row, patch.rank].shape[:2] == numbers.box.size
            assert (numbers.height, numbers.width) == ((40, 56) if patch.name.endswith("2.png") else (64, 48))
    half = PatchCollector(explainer, maps, wanted, keep_patch=keep_patch, keep_image=lambda *_: None)
    half.load_state(collector.state())
    half._numbers[1] = np.nan
    assert half.result()[1] == []
    half.merge(collector.state())
    assert half.result() == collector.result()


def numbers(**changes: float) -> Numbers:
    return Numbers(**{**dict.fromkeys(Numbers.__dataclass_fields__, 1), **changes})  # type: ignore[arg-type]


def test_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    files = PatchFiles(tmp_path, "resnet18", "gan")
    maps = (FeatureMap("conv1", 3, 64), FeatureMap("conv1", 4, 64))
    rows = [
        [(Wanted(0, 1, "gan/a,b.png", 1.25), numbers(start_value=-0.1)), (Wanted(0, 2, "gan/ü.png", -1e-9), numbers())],
        [],
    ]
    for stale in ("3.png", "note.png"):
        files.picture(maps[0], 3).with_name(stale).parent.mkdir(parents=True, exist_ok=True)
        files.picture(maps[0], 3).with_name(stale).touch()
    files.write_tables(maps, (0.5, None), rows)
    assert sorted(path.name for path in files.folder(maps[0]).iterdir()) == ["note.png", "patches.csv"]
    header = files.table(maps[0]).read_text().splitlines()[0]
    assert header.startswith("rank,path,max_act,row_min,row_max,col_min,col_max,")
    first, second = files.read()
    assert (first.fmap, first.omega, second.fmap, second.omega, second.patches) == (maps[0], 0.5, maps[1], None, ())
    assert [(patch.rank, patch.name, patch.max_act, patch.numbers) for patch in first.patches] == [
        (wanted.rank, wanted.name, wanted.max_act, of) for wanted, of in rows[0]
    ]
    assert [entry.fmap for entry in files.read(1)] == [maps[0]]
    files.remove_tables(maps)
    with pytest.raises(UserError, match=r"no patches at .*maps\.csv: make them with extract_max"):
        files.read()


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("maps.csv", "key,", "name,", "does not have the columns"),
        ("maps.csv", "(T=64)", "", "line 2: 'conv1.#3' is not a feature-map key"),
        ("conv1.#3/patches.csv", "1.25", "much", "line 2: could not convert"),
        ("conv1.#3/patches.csv", ",1.png", "", "does not have the columns"),
    ],
)
def test_damaged_tables_are_named(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    files = PatchFiles(tmp_path, "resnet18", "gan")
    files.write_tables((FeatureMap("conv1", 3, 64),), (0.5,), [[(Wanted(0, 1, "gan/1.png", 1.25), numbers())]])
    path = files.root / name
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as error:
        files.read()
    assert str(path) in str(error.value)
    assert "extract_max_activation_patches.py" in str(error.value)


def test_overview_takes_as_many_pages_as_it_needs(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 5, 3), 200, np.uint8)).save(tmp_path / "1.png")
    patch = Patch(1, "a.png", 0.5, numbers(), tmp_path / "1.png", tmp_path / "1.png")
    entries = [MapPatches(i + 1, FeatureMap("conv1", i, 64), None, (patch,)) for i in range(11)]
    stem = tmp_path / "pages" / "gan.v2"
    written = plot_overview(entries, "gan.v2", "resnet18", stem)
    assert [path.name for path in written] == ["gan.v2.pdf", "gan.v2.png", "gan.v2_2.png"]
    assert written[0].read_bytes().count(b"/Type /Page ") == 2
    assert len(plot_overview(entries[:2], "gan.v2", "resnet18", stem)) == 2
    assert sorted(path.name for path in stem.parent.iterdir()) == ["gan.v2.pdf", "gan.v2.png"]


def test_selection_of_layers_and_of_all_maps(detector: Detector) -> None:
    everything = select_maps(detector, "gan", "0.5", topk="all")
    assert len(everything.maps) == 4800
    assert (everything.maps[0].key, everything.maps[-1].key) == ("conv1.#0(T=64)", "layer4.1.conv2.#511(T=512)")
    some = select_maps(detector, "gan", "0.5", layers=["layer1.0.conv1", "conv1"])
    assert [fmap.layer for fmap in some.maps] == ["conv1"] * 64 + ["layer1.0.conv1"] * 64
    with pytest.raises(UserError, match="resnet18 has no ranked layer 'fc'"):
        select_maps(detector, "gan", "0.5", layers=["conv1", "fc"])


def test_selection_from_a_ranking(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "ranking.csv"
    path.write_text("key,mean_relevance\nconv1.#3(T=64),0.5\nlayer1.0.conv1.#7(T=64),0.25\n")
    chosen = select_maps(detector, "gan", "0.5", topk=2, relevances=path)
    assert [fmap.key for fmap in chosen.maps] == ["conv1.#3(T=64)", "layer1.0.conv1.#7(T=64)"]
    assert chosen.omega == (0.5, 0.25)
    with pytest.raises(UserError, match="--topk 3 is more than the 2 feature maps"):
        select_maps(detector, "gan", "0.5", topk=3, relevances=path)
    path.write_text("key,mean_relevance\n_conv_stem.#3(T=32),0.5\n")
    with pytest.raises(UserError, match="the detector has no layer _conv_stem"):
        select_maps(detector, "gan", "0.5", topk=1, relevances=path)


def test_the_ranking_of_progan_val_is_preferred(tmp_path: Path) -> None:
    own = tmp_path / "fmap_relevances/resnet18/gan_0.7/gan-fake.csv"
    progan = tmp_path / "fmap_relevances/resnet18/progan_val_0.7/progan_val-fake.csv"
    assert find_ranking("resnet18", "gan", "0.7", relevances=Path("x.csv"), output_dir=tmp_path) == Path("x.csv")
    missing = find_ranking("resnet18", "gan", "0.7", output_dir=tmp_path)
    assert missing.parts[-4:] == ("fmap_relevances", "resnet18", "gan_0.7", "gan-fake.csv")
    for path in (own, progan):
        path.parent.mkdir(parents=True)
        path.touch()
        assert find_ranking("resnet18", "gan", "0.7", output_dir=tmp_path) == path
