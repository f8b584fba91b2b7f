"""FF-RS inside a pass: which samples count, and that their statistic is that of the definition."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranking_runs import LOGITS, SIDE, USED, detector_of, image_set, inputs, tuned_model, write_images
from torch import Tensor

from fmap_ranking.collector import RelevanceCollector, SampleCounts
from fmap_ranking.options import Confidence
from images.decoding import Crop, decode_image
from images.sets import ImageItem, ImageSet, find_loose_images
from lrp import Explainer
from passes.one_pass import PassReport, run_pass
from passes.processes import Ranks
from passes.shared_forward import SharedForward
from utils.errors import UserError

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
    named = {str(number): collector for number, collector in enumerate(collectors)}
    return run_pass(images, named, device=CPU, batch_size=batch_size, crop=Crop(crop), **changes)


def collector_of(explainer: Explainer, images: ImageSet, *given: Any, **changes: Any) -> RelevanceCollector:
    """A collector of a detector of which only input and head are used."""
    return RelevanceCollector(SharedForward(detector_of(torch.nn.Identity())), explainer, images, *given, **changes)


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
    collector = collector_of(explainer, image_set(root))
    run(image_set(root), collector)
    assert [sample.path for sample in collector.samples() if sample.used and label in sample.path] == USED[label]
    statistic = collector.statistics[label]
    assert statistic.count == len(USED[label])
    expected = naive_omega(explainer, root, USED[label], label)
    assert expected.sum() > 1
    np.testing.assert_allclose(statistic.omega(), expected, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batch_size_does_not_matter(explainer: Explainer, root: Path, batch_size: int) -> None:
    images = image_set(root)
    one, other = collector_of(explainer, images), collector_of(explainer, images)
    run(images, one, batch_size=4)
    run(images, other, batch_size=batch_size)
    assert one.counts() == other.counts()
    for label in USED:
        np.testing.assert_allclose(one.statistics[label].omega(), other.statistics[label].omega(), rtol=1e-3, atol=2e-6)


def test_labels_do_not_mix(explainer: Explainer, root: Path) -> None:
    """Fakes alone give the same statistic of fakes as fakes and reals in common batches."""
    images = image_set(root)
    both, fakes = collector_of(explainer, images), images.with_label(1)
    run(images, both, batch_size=3)
    alone = collector_of(explainer, fakes)
    run(fakes, alone)
    np.testing.assert_allclose(both.statistics["fake"].omega(), alone.statistics["fake"].omega(), rtol=1e-3, atol=2e-6)
    assert alone.statistics["real"].count == 0


def test_scores_and_counts(explainer: Explainer, root: Path) -> None:
    collector = collector_of(explainer, image_set(root))
    run(image_set(root), collector)
    # Of five reals one is taken for fake, and one is not sure enough; of six fakes likewise.
    assert collector.counts() == {"fake": SampleCounts(6, 5, 4), "real": SampleCounts(5, 4, 3)}
    used = {*USED["fake"], *USED["real"]}
    assert [(sample.path, sample.label, sample.used) for sample in collector.samples()] == [
        (name, int("1_fake" in name), int(name in used)) for name in NAMES
    ]
    expected = 1 / (1 + np.exp(-np.array(list(LOGITS.values()))))
    np.testing.assert_allclose([sample.probability for sample in collector.samples()], expected, atol=1e-4)


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
    with pytest.raises(UserError, match=r"need 0 <= --real_confidence <= 0\.5 <= --fake_confidence <= 1"):
        Confidence(fake, real)


def test_images_without_a_wanted_label_are_left_alone(explainer: Explainer, root: Path) -> None:
    """A pass may show images that another collector asked for."""
    images = image_set(root)
    fakes, both = collector_of(explainer, images, labels=["fake"]), collector_of(explainer, images)
    run(images, fakes, both, batch_size=3)
    assert fakes.samples() == [sample for sample in both.samples() if sample.label == 1]
    assert fakes.counts() == {"fake": both.counts()["fake"]}
    np.testing.assert_allclose(fakes.statistics["fake"].omega(), both.statistics["fake"].omega(), rtol=1e-3, atol=2e-6)

    elsewhere = root.parent / f"{root.name}-loose"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "f.png").write_bytes((root / "gan" / "1_fake" / "f.png").read_bytes())
    loose = find_loose_images([elsewhere])
    unlabelled = collector_of(explainer, loose)
    run(loose, unlabelled)
    assert unlabelled.samples() == []
    assert unlabelled.counts() == {label: SampleCounts(0, 0, 0) for label in USED}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_refused(root: Path, value: float) -> None:
    """It is neither an image that was not seen nor one of certain probability."""
    model = tuned_model(root)
    model.get_submodule("fc").bias.fill_(value)  # type: ignore[operator, union-attr]
    images = image_set(root)
    collector = collector_of(Explainer(model), images)
    with pytest.raises(UserError, match=r"a\.png: the detector's output is not a finite number"):
        run(images, collector)
    assert collector.samples() == []


@pytest.mark.parametrize("confidence", [Confidence(), Confidence(0.5, 0.5)], ids=["some count", "nearly all count"])
def test_values_are_freed_on_the_way_down(
    explainer: Explainer, root: Path, confidence: Confidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever keeps the forward pass alive while relevance goes down needs its memory twice."""
    values: list[weakref.ref[Tensor]] = []
    alive: dict[str, int] = {}
    record, propagate = Explainer.record, Explainer.propagate

    def recording(self: Explainer, *arguments: Any, **named: Any) -> Any:
        made = record(self, *arguments, **named)
        values.extend(weakref.ref(value) for value in made.values.values())
        return made

    def propagating(self: Explainer, *arguments: Any, measure: Any, **named: Any) -> Any:
        def looking(layer: str, sums: Any) -> None:
            alive[layer] = sum(value() is not None for value in values)
            measure(layer, sums)

        return propagate(self, *arguments, measure=looking, **named)

    monkeypatch.setattr(Explainer, "record", recording)
    monkeypatch.setattr(Explainer, "propagate", propagating)
    images = image_set(root)
    run(images, collector_of(explainer, images, confidence), batch_size=16)
    assert len(values) > 20
    assert alive["conv1"] <= 2


def test_nothing_is_propagated_if_no_sample_counts(
    explainer: Explainer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Explainer, "propagate", lambda *args, **kwargs: pytest.fail("propagated"))
    kept: list[object] = []
    collector = collector_of(
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
    collector = collector_of(explainer, images, keep=keep)
    run(images, collector, crop=crop)
    by_name = {sample.path: (sample.probability, sample.used) for sample in collector.samples()}
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
    plain = collector_of(explainer, images)
    keeping = collector_of(explainer, images, keep=lambda *arguments: None)
    run(images, plain)
    run(images, keeping)
    for label in USED:
        np.testing.assert_array_equal(plain.statistics[label].omega(), keeping.statistics[label].omega())


def halves(images: ImageSet, explainer: Explainer) -> list[RelevanceCollector]:
    """Two collectors of the whole set, each of which saw every other batch."""

    class Alone(Ranks):
        def gather(self, value: Any) -> None:
            return None

    collectors = [collector_of(explainer, images) for _ in range(2)]
    for rank, collector in enumerate(collectors):
        run(images, collector, batch_size=2, ranks=Alone(rank, 2))
    return collectors


def test_halves_merge_into_the_whole(explainer: Explainer, root: Path) -> None:
    images = image_set(root)
    first, second = halves(images, explainer)
    whole = collector_of(explainer, images)
    run(images, whole, batch_size=2)
    assert 0 < first.statistics["fake"].count < whole.statistics["fake"].count
    first.merge(second.state())
    assert first.samples() == whole.samples()
    assert first.counts() == whole.counts()
    for label in USED:
        one, other = first.statistics[label], whole.statistics[label]
        assert one.count == other.count
        np.testing.assert_allclose(one.omega(), other.omega(), rtol=0, atol=1e-12)
        assert one.standard_errors() == pytest.approx(other.standard_errors(), rel=0, abs=1e-9)


def test_state_round_trip(explainer: Explainer, root: Path) -> None:
    images = image_set(root)
    collector, _ = halves(images, explainer)
    state = collector.state()
    other = collector_of(explainer, images)
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
