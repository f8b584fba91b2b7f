import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmap_ranking.names import FeatureMap, parse_key

LAYERS = st.from_regex(r"[A-Za-z0-9_]{1,8}(\.[A-Za-z0-9_]{1,8}){0,3}", fullmatch=True)


@given(layer=LAYERS, channels=st.integers(1, 5000), data=st.data())
def test_key_round_trip(layer: str, channels: int, data: st.DataObject) -> None:
    fmap = FeatureMap(layer, data.draw(st.integers(0, channels - 1)), channels)
    assert parse_key(fmap.key) == fmap


def test_key_and_folder_name_are_the_published_ones() -> None:
    fmap = parse_key("layer1.0.conv1.#63(T=64)")
    assert fmap == FeatureMap("layer1.0.conv1", 63, 64)
    assert fmap.key == "layer1.0.conv1.#63(T=64)"
    assert fmap.folder_name == "layer1.0.conv1.#63"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "layer1.0.conv1",
        "layer1.0.conv1#63(T=64)",
        "layer1.0.conv1.#63",
        "layer1.0.conv1.#63(T=64) ",
        "layer1.0.conv1.#63(T=64)\n",
        "layer1.0.conv1.#-1(T=64)",
        "layer1.0.conv1.#063(T=64)",
        "layer1.0.conv1.#64(T=64)",
        "layer1.0.conv1.#0(T=0)",
        "layer1.0.conv1.#٣(T=64)",
        "../../etc.#0(T=64)",
        "...#0(T=64)",
        "a/b.#0(T=64)",
        "a b.#0(T=64)",
        ".hidden.#0(T=64)",
        ".#0(T=64)",
        f"{'a' * 300}.#0(T=64)",
        f"a.#{'9' * 5000}(T=64)",
    ],
)
def test_malformed_keys_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_key(text)


def test_maps_sort_by_layer_and_index() -> None:
    maps = [FeatureMap("b", 0, 2), FeatureMap("a", 10, 20), FeatureMap("a", 9, 20)]
    assert sorted(maps) == [maps[2], maps[1], maps[0]]
    with pytest.raises(AttributeError):
        maps[0].index = 1  # type: ignore[misc]
