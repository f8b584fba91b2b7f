import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fmap_ranking.figures import plot_layer_summary, plot_omega_distribution
from fmap_ranking.names import FeatureMap, parse_key
from fmap_ranking.ranking import PUBLISHED, Ranking, read_ranking
from utils.errors import UserError
from utils.files import sha256_file

LAYERS = [("conv1", 4), ("layer1.0.conv1", 8), ("layer1.10.conv1", 8)]
FILES = ["resnet50/fake", "resnet50/real", "efb0/fake", "efb0/real"]
PUBLISHED_LAYERS = {"resnet50": (26560, 53, 114), "efb0": (21008, 49, 27)}


def make_ranking(seed: int = 0) -> Ranking:
    values = np.random.default_rng(seed).random(20) / 20
    values[5:9] = 0.0
    return Ranking.from_values(LAYERS, values)


@pytest.fixture
def published(shared_dir: Path, request: pytest.FixtureRequest) -> Path:
    arch, label = request.param.split("/")
    folder = shared_dir / "reference" / "published_fmap_relevances" / arch / "progan_val_0.5"
    return folder / f"progan_val-{label}.csv"


@pytest.mark.parametrize("published", FILES, indirect=True)
def test_published_files_round_trip_byte_for_byte(published: Path, tmp_path: Path) -> None:
    ranking = read_ranking(published)
    ranking.write(tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_bytes() == published.read_bytes()
    assert PUBLISHED[sha256_file(published)] == f"{published.parts[-3]}, {published.stem.split('-')[1]}"


@pytest.mark.parametrize("published", FILES, indirect=True)
def test_published_files_are_complete_and_consistent(published: Path) -> None:
    maps, layers, topk = PUBLISHED_LAYERS[published.parent.parent.name]
    ranking = read_ranking(published)
    assert len(ranking) == maps
    assert len(ranking.layers) == layers
    assert sum(ranking.layers.values()) == maps
    ranking.check()
    lines = published.read_text().splitlines()
    assert [fmap.key for fmap in ranking.top_k(topk)] == [row.split(",")[0] for row in lines[1 : topk + 1]]
    assert [fmap.key for fmap in ranking.low_k(topk)] == [row.split(",")[0] for row in lines[-topk:]]


@pytest.mark.parametrize("name", ["resnet50_fake", "resnet50_real", "efb0_fake", "efb0_real"])
def test_reference_rankings_round_trip_byte_for_byte(shared_dir: Path, tmp_path: Path, name: str) -> None:
    source = shared_dir / "reference" / "golden" / f"ffrs_{name}.csv"
    read_ranking(source).write(tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_bytes() == source.read_bytes()


@given(values=st.lists(st.floats(0, 1, allow_subnormal=True), min_size=20, max_size=20))
def test_any_values_survive_writing_and_reading(values: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("ranking") / "r.csv"
    ranking = Ranking.from_values(LAYERS, np.array(values))
    assume(any(values))
    ranking.write(path)
    again = read_ranking(path, dict(LAYERS))
    assert again.maps == ranking.maps
    assert again.values.tobytes() == ranking.values.tobytes()
    assert list(again.layers.items()) == LAYERS


def test_ties_stay_in_layer_and_channel_order() -> None:
    ranking = Ranking.from_values([("b", 3), ("a", 2)], np.array([0.1, 0.2, 0.1, 0.1, 0.2]))
    keys = [fmap.key for fmap in ranking.maps]
    assert keys == ["b.#1(T=3)", "a.#1(T=2)", "b.#0(T=3)", "b.#2(T=3)", "a.#0(T=2)"]


def test_layers_without_a_detector_are_in_natural_order(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("key,mean_relevance\n_blocks.10.#0(T=1),0.2\n_blocks.2.#0(T=1),0.1\n")
    assert list(read_ranking(tmp_path / "r.csv").layers) == ["_blocks.2", "_blocks.10"]


def test_windows_line_ends_and_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(b"\xef\xbb\xbfkey,mean_relevance\r\na.#1(T=2),0.5\r\na.#0(T=2),0.25\r\n")
    assert read_ranking(tmp_path / "r.csv").values.tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("name,value\na.#0(T=2),0.5\n", 1, "expected header"),
        ("key,mean_relevance\na.#0(T=2),0.5\na.#0(T=2),0.4\n", 3, "already in line 2"),
        ("key,mean_relevance\na.#0(T=2),0.4\na.#1(T=2),0.5\n", 3, "descending"),
        ("key,mean_relevance\na.#0(T=2),nan\n", 2, "finite"),
        ("key,mean_relevance\na.#0(T=2),inf\n", 2, "finite"),
        ("key,mean_relevance\na.#0(T=2),-0.5\n", 2, "negative"),
        ("key,mean_relevance\na.#0(T=2),much\n", 2, "not a number"),
        ("key,mean_relevance\na.#0(T=2),\n", 2, "not a number"),
        ("key,mean_relevance\na.#0(T=2)\n", 2, "cells as columns"),
        ("key,mean_relevance\n\na.#0(T=2),0.5\n", 2, "cells as columns"),
        ("key,mean_relevance\na.#0(T=2),0.5,1\n", 2, "cells as columns"),
        ("key,mean_relevance\na.#2(T=2),0.5\n", 2, "no channel 2"),
        ("key,mean_relevance\n../a.#0(T=2),0.5\n", 2, "layer name"),
        ("key,mean_relevance\na.#0(T=2),0.5\na.#2(T=3),0.4\n", 3, "2 channels further up"),
        ("key,mean_relevance\na.#0(T=3),0.5\n", 2, "the detector's layer has 2 channels"),
        ("key,mean_relevance\nb.#0(T=2),0.5\n", 2, "no layer b"),
    ],
)
def test_faulty_files_name_file_and_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_ranking(path, {"a": 2})
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}: ")
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [None, b"", b"key,mean_relevance\n", b"\xff\xfe\x00", b"PK\x03\x04\x00\n\x80"])
def test_missing_empty_and_binary_files(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "r.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)):
        read_ranking(path)


def test_folder_instead_of_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        read_ranking(tmp_path)


@pytest.mark.parametrize("k", [-1, 0, 21])
def test_k_out_of_range(k: int) -> None:
    ranking = make_ranking()
    for call in (
        ranking.top_k,
        ranking.low_k,
        ranking.per_layer_summary,
        lambda k: ranking.random_k(k, seed=0),
        lambda k: ranking.layer_matched_random_k(k, seed=0),
    ):
        with pytest.raises(UserError, match=f"k = {k} is out of range: choose 1 to"):
            call(k)


def test_random_k_needs_k_maps_outside_the_top_k() -> None:
    ranking = make_ranking()
    assert set(ranking.random_k(10, seed=0)) == set(ranking.maps[10:])
    with pytest.raises(UserError, match="choose 1 to 10"):
        ranking.random_k(11, seed=0)


@given(k=st.integers(1, 10), seed=st.integers(0, 2**32), draw=st.integers(0, 9))
def test_random_k_draws_distinct_maps_outside_the_top_k(k: int, seed: int, draw: int) -> None:
    ranking = make_ranking()
    drawn = ranking.random_k(k, seed, draw)
    assert len(set(drawn)) == k
    assert not set(drawn) & set(ranking.top_k(k))
    assert drawn == ranking.random_k(k, seed, draw)


def test_random_k_depends_on_seed_and_draw_and_reaches_every_map() -> None:
    ranking = make_ranking()
    draws = {(seed, draw): ranking.random_k(5, seed, draw) for seed in range(5) for draw in range(20)}
    assert len(set(draws.values())) > 90
    assert {fmap for drawn in draws.values() for fmap in drawn} == set(ranking.maps[5:])


def test_random_draws_do_not_depend_on_the_hash_seed() -> None:
    code = (
        "import numpy as np; from fmap_ranking.ranking import Ranking;"
        "r = Ranking.from_values([('a', 30), ('b', 30)], np.arange(60) / 2000);"
        "print([f.key for f in r.random_k(9, 1, 2)], [f.key for f in r.layer_matched_random_k(9, 1, 2).maps])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@given(k=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_layer_matched_draw_has_the_layers_of_the_top_k(k: int, seed: int) -> None:
    ranking = make_ranking()
    result = ranking.layer_matched_random_k(k, seed)
    top, drawn = ranking.top_k(k), result.maps
    assert len(set(drawn)) == len(drawn)
    assert not set(drawn) & set(top)
    missing = Counter(fmap.layer for fmap in top) - Counter(fmap.layer for fmap in drawn)
    assert dict(missing) == dict(result.shortfall)
    for layer, lacking in result.shortfall.items():
        left = sum(fmap.layer == layer for fmap in ranking.maps[k:])
        assert lacking == sum(fmap.layer == layer for fmap in top) - left


def test_layer_matched_draw_reports_an_exhausted_layer() -> None:
    ranking = Ranking.from_values([("a", 4), ("b", 4)], np.array([0.9, 0.02, 0.03, 0.04, 0.01, 0, 0, 0]))
    result = ranking.layer_matched_random_k(3, seed=0)
    assert result.maps == (FeatureMap("a", 1, 4),)
    assert result.shortfall == {"a": 2}


@given(k=st.integers(5, 10), seed=st.integers(0, 2**32))
def test_the_two_kinds_of_random_choices_are_drawn_apart(k: int, seed: int) -> None:
    """On one layer both draw k maps of the same rest; with the same stream they would be one control."""
    ranking = Ranking.from_values([("a", 40)], np.arange(40) / 1000)
    pairs = [(ranking.random_k(k, seed, draw), ranking.layer_matched_random_k(k, seed, draw).maps) for draw in range(5)]
    assert sum(one == other for one, other in pairs) <= 1


def test_omega_of_zero_throughout_is_neither_written_nor_read(tmp_path: Path) -> None:
    zero = Ranking.from_values([("a", 2)], np.zeros(2))
    path = tmp_path / "r.csv"
    for refused in (lambda: zero.write(path), zero.check):
        with pytest.raises(UserError, match="relevance of every feature map is 0"):
            refused()
    assert not path.exists()
    path.write_text("key,mean_relevance\na.#0(T=2),0.0\na.#1(T=2),0.0\n")
    with pytest.raises(UserError, match=r"r\.csv: the relevance of every feature map is 0"):
        read_ranking(path)


def test_layer_summary() -> None:
    ranking = Ranking.from_values([("a", 3), ("b", 2)], np.array([0.5, 0.0, 0.25, 0.125, 0.75]))
    a, b = ranking.per_layer_summary(k=2)
    assert (a.layer, a.channels, a.ranked, a.total, a.maximum, a.mean, a.zeros, a.in_top_k) == (
        "a",
        3,
        3,
        0.75,
        0.5,
        0.25,
        1,
        1,
    )
    assert (b.total, b.maximum, b.in_top_k) == (0.875, 0.75, 1)
    assert [row.in_top_k for row in ranking.per_layer_summary()] == [0, 0]


def test_check_names_the_layer_whose_shares_exceed_one() -> None:
    Ranking.from_values([("a", 2)], np.array([0.5, 0.5 + 5e-7])).check()
    with pytest.raises(UserError, match=r"layer b sum to 1\.2"):
        Ranking.from_values([("a", 1), ("b", 2)], np.array([1.0, 0.6, 0.6])).check()


@pytest.mark.parametrize(
    ("maps", "values"),
    [
        (["a.#0(T=2)"], [0.2, 0.1]),
        (["a.#0(T=2)", "a.#0(T=2)"], [0.2, 0.1]),
        (["a.#0(T=2)", "a.#1(T=2)"], [0.1, 0.2]),
        (["a.#0(T=2)", "a.#1(T=2)"], [0.1, float("nan")]),
        (["a.#0(T=2)", "a.#1(T=2)"], [0.1, -0.1]),
    ],
)
def test_inconsistent_rankings_cannot_be_made(maps: list[str], values: list[float]) -> None:
    with pytest.raises(ValueError):
        Ranking(tuple(map(parse_key, maps)), np.array(values))


def test_values_cannot_be_changed() -> None:
    source = np.array([0.5, 0.25])
    ranking = Ranking.from_values([("a", 2)], source)
    source[0] = 9
    assert ranking.values.tolist() == [0.5, 0.25]
    with pytest.raises(ValueError):
        ranking.values[0] = 1


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.csv"
    path.write_text("old")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(UserError, match="disk is full"):
        make_ranking().write(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("pdf_too")
@pytest.mark.parametrize("kind", ["omega", "layers"])
def test_figures_have_the_same_bytes_every_time(tmp_path: Path, kind: str) -> None:
    ranking = make_ranking()
    written = []
    for folder in (tmp_path / "1", tmp_path / "2"):
        if kind == "omega":
            written.append(plot_omega_distribution({"fake": ranking}, folder / "figure", 5))
        else:
            written.append(plot_layer_summary(ranking, folder / "figure", 5))
    assert [path.name for path in written[0]] == ["figure.png", "figure.pdf"]
    assert [path.read_bytes() for path in written[0]] == [path.read_bytes() for path in written[1]]
