"""Activation rankings, boxes, LRP-max for many maps at once, and the files of patches."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lrp_networks import largest_pixels
from PIL import Image
from torch import Tensor

from detectors.detector import Detector
from detectors.feature_maps import Observation
from detectors.networks import build_model, get_architecture
from fmap_ranking.names import FeatureMap
from images.choice import ImageChoice, Reading
from images.decoding import Crop
from images.sets import ImageItem, ImageSet
from lrp import Explainer
from passes.analysis import Subject
from passes.one_pass import run_pass
from passes.options import RunOptions
from passes.shared_forward import SharedForward
from patch_extraction.activations import MaxActivations, RankedImages, TopActivations
from patch_extraction.analyses import choose_maps
from patch_extraction.collages import draw_pages
from patch_extraction.files import MapPatches, PatchFiles
from patch_extraction.options import MapChoice, PatchOptions
from patch_extraction.patches import NUMBERS, Made, Patch, PatchCollector, Wanted, wanted_patches
from utils.boxes import Box, bounding_box
from utils.errors import UserError
from utils.provenance import Origin, write_record
from utils.settings import read_settings

MAPS = (FeatureMap("a", 1, 3), FeatureMap("b", 0, 2), FeatureMap("a", 0, 3))
OBSERVED = {"a": [0, 1, 2], "b": [0, 1]}


class FakeForward:
    """Stands in for shared forward passes: (images, 5) values of the maps a0, a1, a2, b0, b1."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = torch.from_numpy(values)

    def request(self, kind: str, maps: object) -> None:
        assert maps == {"a": [0, 1], "b": [0]}

    def of(self, batch: SimpleNamespace) -> Observation:
        values = self.values[list(batch.positions)]
        return Observation(OBSERVED, {"a": values[:, :3], "b": values[:, 3:]}, None)


def images(count: int, reals: tuple[int, ...] = ()) -> ImageSet:
    return ImageSet(
        Path("x"),
        tuple(ImageItem(Path(f"x/{i}"), f"gan/{i}.png", int(i not in reals), "", "gan") for i in range(count)),
    )


def batch(*positions: int) -> SimpleNamespace:
    return SimpleNamespace(positions=positions, items=[images(99).items[position] for position in positions])


def tied_values(count: int = 11) -> np.ndarray:
    """Small integers, many of them equal, with both zeros."""
    values = np.random.default_rng(3).integers(-2, 3, (count, 5)).astype(np.float32)
    values[1, 1], values[4, 1] = 0.0, -0.0
    return values


Ranked = list[tuple[str, float]]


def by_hand(values: np.ndarray, column: int, count: int | None = None, without: tuple[int, ...] = ()) -> Ranked:
    order = sorted(set(range(len(values))) - set(without), key=lambda image: (-values[image, column], image))
    return [(f"gan/{image}.png", float(values[image, column])) for image in order[:count]]


def of(rankings: RankedImages, fmap: FeatureMap, count: int | None = None) -> Ranked:
    return [(image.name, image.max_act) for image in rankings.of(fmap, count)]


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
        assert of(full.result(), fmap) == by_hand(values, column)
        assert of(full.result(), fmap, count) == by_hand(values, column, count)
        assert of(top.result(), fmap) == by_hand(values, column, count)
    assert top.state()["best"].shape == (3, min(count, 11))


def test_reals_of_a_shared_pass_are_passed_over() -> None:
    values, reals = tied_values(), (0, 3, 7)
    mixed = images(11, reals)
    full = MaxActivations(FakeForward(values), MAPS, mixed)  # type: ignore[arg-type]
    top = TopActivations(FakeForward(values), MAPS, mixed, 4)  # type: ignore[arg-type]
    for positions in ((8, 3), (0,), (1, 2, 10), (4, 5, 6, 7, 9)):
        full.update(batch(*positions))  # type: ignore[arg-type]
        top.update(batch(*positions))  # type: ignore[arg-type]
    for fmap, column in zip(MAPS, (1, 3, 0), strict=True):
        assert of(full.result(), fmap) == by_hand(values, column, without=reals)
        assert of(top.result(), fmap) == by_hand(values, column, 4, reals)


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
            assert of(other.result(), fmap) == of(whole.result(), fmap)


@pytest.mark.parametrize("kind", [MaxActivations, TopActivations])
def test_values_that_are_no_numbers_are_refused(kind: type) -> None:
    values = tied_values()
    values[2, 3] = np.nan
    arguments = () if kind is MaxActivations else (2,)
    collector = kind(FakeForward(values), MAPS, images(11), *arguments)
    with pytest.raises(UserError, match="x/2: the largest value of a feature map is not a finite number"):
        collector.update(batch(1, 2))


@pytest.mark.parametrize("count", [None, 2])
def test_rankings_survive_writing_and_reading(tmp_path: Path, count: int | None) -> None:
    values = tied_values()
    forward = FakeForward(values)
    collector = (
        MaxActivations(forward, MAPS, images(11))  # type: ignore[arg-type]
        if count is None
        else TopActivations(forward, MAPS, images(11), count)  # type: ignore[arg-type]
    )
    collector.update(batch(*(range(9))))  # type: ignore[arg-type]
    written = collector.result()
    written.write(tmp_path / "r.npz")
    read = RankedImages.read(tmp_path / "r.npz")
    for fmap in MAPS:
        assert of(read, fmap) == of(written, fmap)
        assert len(of(read, fmap)) == (count or 9)
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
        RankedImages.read(path)


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
    explainer = detector.explainer(published=published)
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
            alone, largest, place = largest_pixels(explainer, inputs[sample : sample + 1], layer, [channel])
            torch.testing.assert_close(relevance[at], alone[0], rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(value[at], largest[0])
            assert places[at].tolist() == place[0].tolist()


def test_relevance_starts_at_the_largest_pixel_of_the_folded_map(detector: Detector, inputs: Tensor) -> None:
    explainer = detector.explainer()
    relevance, value, place = largest_pixels(explainer, inputs, "conv1", [7, 7])
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
    for number, shape in enumerate([(64, 48, 3), (64, 48, 3), (40, 56, 3), (40, 56, 3)]):
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
    names = [item.name for item in picture_set.items[:3]]
    values = np.random.default_rng(5).random((3, 3)).astype(np.float32)
    wanted = wanted_patches(RankedImages.of_all(maps, names, values), maps, 3)
    explainer = CountingExplainer(detector.model)
    seen: list[str] = []
    pictures: dict[tuple[int, int], np.ndarray] = {}

    def keep_patch(patch: Wanted, picture: np.ndarray) -> int:
        pictures[patch.row, patch.rank] = picture
        return 10 * patch.row + patch.rank

    def keep_image(item: ImageItem, picture: np.ndarray) -> int:
        seen.append(item.name)
        return len(item.name)

    def collector() -> PatchCollector:
        forward = SharedForward(detector)
        keep = {"keep_patch": keep_patch, "keep_image": keep_image}
        return PatchCollector(explainer, forward, maps, wanted, batch_size=2, **keep)  # type: ignore[arg-type]

    whole = collector()
    run_pass(picture_set, {"patches": whole}, device=detector.device, batch_size=2, crop=Crop("none"))
    # the fourth image is not wanted
    assert explainer.images == 3
    assert seen == names
    assert len(pictures) == len(whole.result()) == 9
    for made in whole.result():
        wanted_, patch = made.wanted, made.patch
        assert pictures[wanted_.row, wanted_.rank].shape[:2] == patch.box.size
        assert (patch.height, patch.width) == ((40, 56) if patch.path.endswith("2.png") else (64, 48))
        assert (made.patch_checksum, made.image_checksum) == (10 * wanted_.row + wanted_.rank, len(wanted_.name))
        assert patch.max_act == sorted(values[:, wanted_.row].tolist(), reverse=True)[wanted_.rank - 1]
    parts = [collector(), collector()]
    for number, part in enumerate(parts):
        some = picture_set.subset([0, 1] if number else [2, 3])
        run_pass(some, {"patches": part}, device=detector.device, batch_size=2, crop=Crop("none"))
    resumed = collector()
    resumed.load_state(parts[0].state())
    assert len(resumed.result()) == 3
    resumed.merge(parts[1].state())
    assert resumed.result() == whole.result()


def patch(rank: int = 1, path: str = "gan/1.png", max_act: float = 1.25, **changes: float) -> Patch:
    numbers = {**dict.fromkeys(NUMBERS, 1), **changes}
    return Patch(rank, path, max_act, **numbers, start_tensor="t", patch=f"{rank}.png", image="i")  # type: ignore[arg-type]


CONV = (FeatureMap("conv1", 3, 64), FeatureMap("conv1", 4, 64))


def written(files: PatchFiles, patches: dict[int, list[Patch]], weights: str = "abc") -> None:
    """Files as an analysis writes them, by number of the map."""
    made = []
    for row, of_map in patches.items():
        for entry in of_map:
            wanted = Wanted(row, entry.rank, entry.path, entry.max_act)
            picture = np.full((2, 3, 3), entry.rank, np.uint8)
            image = files.write_image(ImageItem(Path(entry.path), entry.path, 1, "", "gan"), picture)
            made.append(Made(wanted, entry, files.write_patch(CONV[row], entry.rank, picture), image))
    contents = files.write_tables(CONV[: max(patches) + 1], (0.5, None)[: max(patches) + 1], made)
    write_record([files.index], Origin(1, {"weights": weights}, {"tag": files.tag}), contents=contents)


def test_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    files = PatchFiles(tmp_path / "p", "0.5")
    rows = [patch(1, "gan/a,b.png", start_value=-0.1), patch(2, "gan/ü.png", -1e-9)]
    written(files, {0: rows, 1: []})
    header = files.table(CONV[0]).read_text().splitlines()[0]
    assert header.startswith("rank,path,max_act,row_min,row_max,col_min,col_max,")
    first, second = files.read()
    assert (first.fmap, first.omega, second.fmap, second.omega, second.patches) == (CONV[0], 0.5, CONV[1], None, ())
    assert list(first.patches) == rows
    assert [entry.fmap for entry in files.read(1)] == [CONV[0]]
    assert files.read(weights="abc")
    with pytest.raises(UserError, match="made with another checkpoint"):
        files.read(weights="abd")
    with pytest.raises(UserError, match=r"are of --blur_jpg 0\.5, not 0\.1"):
        PatchFiles(files.root, "0.1").read()
    files.remove_tables()
    with pytest.raises(UserError, match=r"no .*maps\.csv: make it with extract_max"):
        files.read()


def test_leftovers_of_an_earlier_run_go(tmp_path: Path) -> None:
    files = PatchFiles(tmp_path / "p", "0.5")
    written(files, {0: [patch(1), patch(2, "gan/2.png")], 1: [patch(1, "gan/a/3.png")]})
    note = files.root / "conv1.#3" / "note.png"
    note.touch()
    written(files, {0: [patch(1)]})
    here = {path.relative_to(files.root).as_posix() for path in files.root.rglob("*") if path.is_file()}
    ours = {"conv1.#3/1.png", "conv1.#3/patches.csv", "images/gan/1.png.png", "maps.csv", "maps.csv.json"}
    assert here == {*ours, "conv1.#3/note.png"}
    assert not (files.root / "conv1.#4").exists()
    assert not (files.root / "images/gan/a").exists()


@pytest.mark.parametrize("name", ["conv1.#3/1.png", "images/gan/1.png.png", "conv1.#3/patches.csv"])
@pytest.mark.parametrize("lost", [True, False])
def test_the_digest_tells_lost_and_changed_files(tmp_path: Path, name: str, lost: bool) -> None:
    files = PatchFiles(tmp_path / "p", "0.5")
    written(files, {0: [patch(1)]})
    before, path = files.digest(), files.root / name
    assert before == files.digest()
    if lost:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    assert files.digest() != before


def test_pictures_lost_on_the_way_are_noticed(tmp_path: Path) -> None:
    files = PatchFiles(tmp_path / "p", "0.5")
    checksum = files.write_patch(CONV[0], 1, np.zeros((2, 3, 3), np.uint8))
    image = files.write_image(ImageItem(Path("x"), "gan/1.png", 1, "", "gan"), np.zeros((4, 4, 3), np.uint8))
    made = Made(Wanted(0, 1, "gan/1.png", 1.25), patch(1), checksum, image)
    files.picture(CONV[0], 1).write_bytes(b"")
    with pytest.raises(UserError, match=r"1\.png was lost .* without --resume"):
        files.write_tables(CONV[:1], (0.5,), [made])
    assert not files.index.exists()


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("maps.csv", "key,", "name,", "lacks the column key"),
        ("maps.csv", "0.5", "0.25", "is not what its record describes"),
        ("conv1.#3/patches.csv", "1.25", "much", "line 2: could not convert"),
        ("conv1.#3/patches.csv", ",1.png", "", "line 2: not as many cells as columns"),
    ],
)
def test_damaged_tables_are_named(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    files = PatchFiles(tmp_path / "p", "0.5")
    written(files, {0: [patch(1)]})
    path = files.root / name
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message) as error:
        files.read()
    assert str(path) in str(error.value)
    assert "extract_max_activation_patches.py" in str(error.value)


@pytest.mark.usefixtures("pdf_too")
def test_overview_takes_as_many_pages_as_it_needs(tmp_path: Path) -> None:
    files = PatchFiles(tmp_path / "p", "0.5")
    for number in range(11):
        files.write_patch(FeatureMap("conv1", number, 64), 1, np.full((3, 5, 3), 200, np.uint8))
    entries = [MapPatches(files, i + 1, FeatureMap("conv1", i, 64), None, (patch(1),)) for i in range(11)]
    stem = tmp_path / "pages" / "gan.v2"
    drawn = draw_pages(entries, "gan.v2", "resnet18", stem)
    assert [path.name for path in drawn] == ["gan.v2.pdf", "gan.v2.png", "gan.v2_2.png"]
    assert drawn[0].read_bytes().count(b"/Type /Page ") == 2
    assert len(draw_pages(entries[:2], "gan.v2", "resnet18", stem)) == 2
    assert sorted(path.name for path in stem.parent.iterdir()) == ["gan.v2.pdf", "gan.v2.png"]


def subject(detector: Detector, output: Path = Path("nowhere")) -> Subject:
    return Subject(detector, "0.5", "gan", images(0), Reading(), RunOptions(output_dir=output))


def test_selection_of_all_maps(detector: Detector) -> None:
    everything = choose_maps(subject(detector), MapChoice(topk="all"))
    assert len(everything.maps) == 4800
    assert (everything.maps[0].key, everything.maps[-1].key) == ("conv1.#0(T=64)", "layer4.1.conv2.#511(T=512)")


def test_selection_from_a_ranking(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "ranking.csv"
    path.write_text("key,mean_relevance\nconv1.#3(T=64),0.5\nlayer1.0.conv1.#7(T=64),0.25\n")
    chosen = choose_maps(subject(detector), MapChoice(topk=2, relevances=path))
    assert [fmap.key for fmap in chosen.maps] == ["conv1.#3(T=64)", "layer1.0.conv1.#7(T=64)"]
    assert chosen.omega == (0.5, 0.25)
    fewer = choose_maps(subject(detector), MapChoice(topk=1, relevances=path))
    assert fewer.inputs()["ranking"] == chosen.inputs()["ranking"]
    assert fewer.inputs() != chosen.inputs()


def test_flags_of_patches_that_images_have_too() -> None:
    groups = (ImageChoice, PatchOptions)
    images, patches = read_settings("d", "e", *groups, argv=["--num_instances", "3", "--dataset_dir", "data"])
    assert (images.num_instances, patches.num_instances) == (3, 3)
    assert images.dataset_dir == patches.dataset_dir == Path("data")
    _, patches = read_settings("d", "e", *groups, argv=[])
    assert (patches.num_instances, patches.dataset_dir) == (5, None)
