"""FF-RS inside a pass: which samples count, and that their statistic is that of the definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranking_runs import LOGITS, SIDE, USED, image_set, inputs, tuned_model, write_images

from detectors.detector import Detector
from detectors.networks import get_architecture
from fmap_ranking.collector import Confidence, RelevanceCollector, SampleCounts
from fmap_ranking.ffrs import FFRS
from images.decoding import Crop, decode_image
from images.sets import ImageItem, ImageSet, find_loose_images
from lrp import Explainer
from passes.one_pass import PassReport, run_pass
from passes.processes import Ranks

CPU = torch.device("cpu")
NAMES = list(LOGITS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def explainer(root: Path) -> Explainer:
    return Explainer(tuned_model(root))


def run(
    images: ImageSet, *collectors: RelevanceCollector, batch_size: int = 4, crop: str = "none", **changes: Any
) -> PassReport:
    detector = Detector(get_architecture("resnet18"), collectors[0].explainer.program)  # type: ignore[arg-type]
    return run_pass(
        images,
        collectors,
        preprocess=detector.inputs,
        device=CPU,
        batch_size=batch_size,
        crop=Crop(crop),
        **changes,
    )


def naive_omega(explainer: Explainer, root: Path, names: list[str], target: str) -> np.ndarray:
    """Algorithm 1 of the paper, from full maps of one image at a time."""
    batch = inputs(root)
    layers = [name for name, _ in explainer.layers]
    shares = []
    for name in names:
        image = batch[NAMES.index(name)][None]
        maps = explainer.explain(image, target, layers=layers, keep="maps").maps
        parts = [maps[layer][0].double() for layer in layers]
        shares.append(torch.cat([part.clamp(min=0).sum((1, 2)) / part.abs().sum() for part in parts]))
    return torch.stack(shares).mean(0).numpy()


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("label", ["fake", "real"])
def test_statistic_is_that_of_the_definition(root: Path, label: str, published: bool) -> None:
    explainer = Explainer(tuned_model(root), published=published)
    collector = RelevanceCollector(explainer, image_set(root))
    run(image_set(root), collector)
    assert [name for name, _, _, used in collector.samples() if used and label in name] == USED[label]
    statistic = collector.statistics[label]
    assert statistic.count == len(USED[label])
    expected = naive_omega(explainer, root, USED[label], label)
    assert expected.sum() > 1
    np.testing.assert_allclose(statistic.omega(), expected, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batch_size_does_not_matter(explainer: Explainer, root: Path, batch_size: int) -> None:
    images = image_set(root)
    one, other = RelevanceCollector(explainer, images), RelevanceCollector(explainer, images)
    run(images, one, batch_size=4)
    run(images, other, batch_size=batch_size)
    assert one.counts() == other.counts()
    for label in USED:
        np.testing.assert_allclose(one.statistics[label].omega(), other.statistics[label].omega(), rtol=1e-3, atol=2e-6)


def test_labels_do_not_mix(explainer: Explainer, root: Path) -> None:
    """Fakes alone give the same statistic of fakes as fakes and reals in common batches."""
    images = image_set(root)
    both, fakes = RelevanceCollector(explainer, images), images.with_label(1)
    run(images, both, batch_size=3)
    alone = RelevanceCollector(explainer, fakes)
    run(fakes, alone)
    np.testing.assert_allclose(both.statistics["fake"].omega(), alone.statistics["fake"].omega(), rtol=1e-3, atol=2e-6)
    assert alone.statistics["real"].count == 0


def test_scores_and_counts(explainer: Explainer, root: Path) -> None:
    collector = RelevanceCollector(explainer, image_set(root))
    run(image_set(root), collector)
    # Of five reals one is taken for fake, and one is not sure enough; of six fakes likewise.
    assert collector.counts() == {"fake": SampleCounts(6, 5, 4), "real": SampleCounts(5, 4, 3)}
    used = {*USED["fake"], *USED["real"]}
    assert [(name, label, bool(u)) for name, label, _, u in collector.samples()] == [
        (name, int("1_fake" in name), name in used) for name in NAMES
    ]
    expected = 1 / (1 + np.exp(-np.array(list(LOGITS.values()))))
    np.testing.assert_allclose([p for _, _, p, _ in collector.samples()], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("confidence", "label", "probability", "accepted"),
    [
        (Confidence(), 1, 0.9, True),
        (Confidence(), 1, np.nextafter(0.9, 0), False),
        (Confidence(), 1, 1.0, True),
        (Confidence(), 1, 0.05, False),
        (Confidence(), 0, 0.1, True),
        (Confidence(), 0, np.nextafter(0.1, 1), False),
        (Confidence(), 0, 0.0, True),
        (Confidence(), 0, 0.95, False),
        (Confidence(), -1, 0.95, False),
        (Confidence(), -1, 0.05, False),
        # Exactly 0.5 is no decision, and so not a correct one.
        (Confidence(0.5, 0.5), 1, 0.5, False),
        (Confidence(0.5, 0.5), 0, 0.5, False),
        (Confidence(0.5, 0.5), 1, np.nextafter(0.5, 1), True),
        (Confidence(0.5, 0.5), 0, np.nextafter(0.5, 0), True),
        (Confidence(0.5, 0.5), 0, np.nextafter(0.5, 1), False),
        (Confidence(1.0, 0.0), 1, 1.0, True),
        (Confidence(1.0, 0.0), 0, 0.0, True),
        (Confidence(1.0, 0.0), 1, np.nextafter(1, 0), False),
    ],
)
def test_which_samples_count(confidence: Confidence, label: int, probability: float, accepted: bool) -> None:
    mask = confidence.accepts(torch.tensor([probability], dtype=torch.float64), torch.tensor([label]))
    assert mask.tolist() == [accepted]


@pytest.mark.parametrize(("fake", "real"), [(0.49, 0.1), (0.9, 0.51), (1.01, 0.1), (0.9, -0.01), (float("nan"), 0.1)])
def test_thresholds_that_let_wrong_samples_in_are_refused(fake: float, real: float) -> None:
    with pytest.raises(ValueError, match=r"need 0 <= real <= 0\.5 <= fake <= 1"):
        Confidence(fake, real)


def test_unlabelled_images_are_scored_but_never_used(explainer: Explainer, root: Path) -> None:
    image = root / "gan" / "1_fake" / "f.png"
    elsewhere = root.parent / f"{root.name}-loose"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "f.png").write_bytes(image.read_bytes())
    images = find_loose_images([elsewhere])
    collector = RelevanceCollector(explainer, images)
    run(images, collector)
    (sample,) = collector.samples()
    assert sample[:2] == ("f.png", None)
    assert sample[2] > 0.99
    assert sample[3] == 0
    assert collector.counts() == {label: SampleCounts(0, 0, 0) for label in USED}
    assert all(statistic.count == 0 for statistic in collector.statistics.values())


def test_nothing_is_propagated_if_no_sample_counts(
    explainer: Explainer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Explainer, "propagate", lambda *args, **kwargs: pytest.fail("propagated"))
    kept: list[object] = []
    collector = RelevanceCollector(
        explainer, image_set(root), Confidence(1.0, 0.0), keep=lambda *arguments: kept.append(arguments)
    )
    run(image_set(root), collector)
    assert kept == []
    assert {label: counts.used for label, counts in collector.counts().items()} == {"fake": 0, "real": 0}
    assert collector.counts()["fake"].correct == 5
    with pytest.raises(ValueError, match="no samples"):
        collector.statistics["fake"].result()


@pytest.mark.parametrize("crop", ["none", "center"])
def test_what_is_kept_of_each_sample(explainer: Explainer, root: Path, crop: str) -> None:
    kept: dict[str, tuple[np.ndarray, np.ndarray, float]] = {}

    def keep(item: ImageItem, image: np.ndarray, relevance: np.ndarray, probability: float) -> None:
        kept[item.name] = image, relevance, probability

    images = image_set(root)
    collector = RelevanceCollector(explainer, images, keep=keep)
    run(images, collector, crop=crop)
    by_name = {name: (probability, used) for name, _, probability, used in collector.samples()}
    assert set(kept) == {name for name, (_, used) in by_name.items() if used}
    if crop == "none":
        assert set(kept) == {*USED["fake"], *USED["real"]}
    side = SIDE if crop == "none" else 224
    items = {item.name: item for item in images.items}
    for name, (image, relevance, probability) in kept.items():
        expected = Crop(crop)(decode_image(items[name].path), seed=0, name=name)
        np.testing.assert_array_equal(image, expected)
        assert relevance.shape == (side, side)
        assert relevance.dtype == np.float32
        assert probability == by_name[name][0]
        if crop == "none":
            target = "fake" if items[name].label else "real"
            explained = explainer.explain(inputs(root)[NAMES.index(name)][None], target).input
            assert explained is not None
            wanted = explained[0].sum(0).numpy()
            assert np.abs(relevance - wanted).sum() <= 2e-4 * np.abs(wanted).sum()


def test_keeping_changes_no_statistic(explainer: Explainer, root: Path) -> None:
    images = image_set(root)
    plain = RelevanceCollector(explainer, images)
    keeping = RelevanceCollector(explainer, images, keep=lambda *arguments: None)
    run(images, plain)
    run(images, keeping)
    for label in USED:
        np.testing.assert_array_equal(plain.statistics[label].omega(), keeping.statistics[label].omega())


def halves(images: ImageSet, explainer: Explainer) -> list[RelevanceCollector]:
    """Two collectors of the whole set, each of which saw every other batch."""

    class Alone(Ranks):
        def gather(self, value: Any) -> None:
            return None

    collectors = [RelevanceCollector(explainer, images) for _ in range(2)]
    for rank, collector in enumerate(collectors):
        run(images, collector, batch_size=2, ranks=Alone(rank, 2))
    return collectors


def test_halves_merge_into_the_whole(explainer: Explainer, root: Path) -> None:
    images = image_set(root)
    first, second = halves(images, explainer)
    whole = RelevanceCollector(explainer, images)
    run(images, whole, batch_size=2)
    assert 0 < first.statistics["fake"].count < whole.statistics["fake"].count
    first.merge(second.state())
    assert first.samples() == whole.samples()
    assert first.counts() == whole.counts()
    for label in USED:
        one, other = first.statistics[label], whole.statistics[label]
        assert one.count == other.count
        np.testing.assert_allclose(one.omega(), other.omega(), rtol=0, atol=1e-12)
        np.testing.assert_allclose(one.standard_error(), other.standard_error(), rtol=0, atol=1e-9)


def test_state_round_trip(explainer: Explainer, root: Path) -> None:
    images = image_set(root)
    collector, _ = halves(images, explainer)
    state = collector.state()
    other = RelevanceCollector(explainer, images)
    other.load_state(state)
    assert other.samples() == collector.samples()
    assert other.state().keys() == state.keys()
    for key, array in other.state().items():
        np.testing.assert_array_equal(array, state[key], strict=True)
    # A state is a copy: going on does not change it.
    before = {key: array.copy() for key, array in state.items()}
    run(images, collector)
    for key, array in state.items():
        np.testing.assert_array_equal(array, before[key])


def test_state_of_another_detector_is_refused(explainer: Explainer, root: Path) -> None:
    images = image_set(root)
    collector = RelevanceCollector(explainer, images)
    other = collector.state() | {f"fake/{key}": array for key, array in FFRS([("conv1", 3)]).state().items()}
    with pytest.raises(ValueError, match="different layers"):
        collector.load_state(other)
    with pytest.raises(ValueError, match="different layers"):
        collector.merge(other)
