"""Which ranking an experiment reads, and what it says of one that may be another detector's."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ranking_runs import detector_of

from detectors.networks import build_model
from fmap_ranking import ranking as rankings
from fmap_ranking.options import RankingChoice
from fmap_ranking.ranking import Ranking, find_ranking, read_ranking
from images.choice import Reading
from images.sets import ImageSet
from passes.analysis import Subject
from passes.options import RunOptions
from utils.errors import UserError
from utils.files import PROJECT_ROOT, sha256_file
from utils.layout import Layout
from utils.provenance import Origin, describes, read_record, write_record

WEIGHTS = "a" * 64
LAYERS = [("conv1", 64), ("layer1.0.conv1", 64)]
CHOICE = RankingChoice(topk=5)


@pytest.fixture(scope="module")
def network() -> object:
    return build_model("resnet18").eval()


@pytest.fixture
def subject(network: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """A detector whose project folder and working folder are empty ones."""
    monkeypatch.setattr(rankings, "PROJECT_ROOT", tmp_path / "project")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    detector = detector_of(network, tmp_path / "weights.pth", WEIGHTS)  # type: ignore[arg-type]
    run = RunOptions(output_dir=tmp_path / "output")
    return Subject(detector, "mine", "gan", ImageSet(tmp_path, ()), Reading(), run)


def put(path: Path, *, weights: str | None = WEIGHTS, seed: int = 0) -> Path:
    """A ranking with a record of its checkpoint, or without any."""
    Ranking.from_values(LAYERS, np.random.default_rng(seed).random(128) / 128).write(path)
    if weights is not None:
        write_record([path], Origin(1, {"weights": weights}, {"gan_name": "gan"}))
    return path


def test_places_in_order_of_preference(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no ranking at .*gan_mine/gan-fake\.csv: make it with rank_fmaps\.py"):
        find_ranking(subject, CHOICE)
    (tmp_path / "weights.pth.json").write_text(json.dumps({"ranked_on": "own_set"}))
    # From the least wanted to the most.
    for name in ("gan", "progan_val", "own_set"):
        for root in (tmp_path / "project", Path(), tmp_path / "output"):
            path = put(Layout(root, "resnet18", "mine").ranking(name, "fake"))
            found = find_ranking(subject, CHOICE)
            assert (found.path, found.warning, found.k) == (path, "", 5)
    named = put(tmp_path / "named.csv")
    assert find_ranking(subject, replace(CHOICE, relevances=named)).path == named
    with pytest.raises(UserError, match=r"no ranking at absent\.csv"):
        find_ranking(subject, replace(CHOICE, relevances=Path("absent.csv")))


@pytest.mark.parametrize("name", ["../../elsewhere", "", 7, None, ["gan"]])
def test_a_model_card_leads_nowhere_else(subject: Subject, tmp_path: Path, name: object) -> None:
    (tmp_path / "weights.pth.json").write_text(json.dumps({"ranked_on": name}))
    path = put(subject.layout.ranking("gan", "fake"))
    assert find_ranking(subject, CHOICE).path == path


def test_a_ranking_of_the_same_checkpoint_is_used_without_a_word(subject: Subject) -> None:
    path = put(subject.layout.ranking("gan", "fake"))
    found = find_ranking(subject, CHOICE)
    assert found.warning == ""
    assert found.record == read_record(path)
    assert found.sha256 == sha256_file(path)
    assert found.ranking.maps == read_ranking(path).maps
    # Layers are in the order of the detector, which has more of them.
    assert list(found.ranking.layers)[:2] == ["conv1", "layer1.0.conv1"]
    assert len(found.ranking.layers) > 2


def test_a_file_is_read_once_for_all_experiments_and_again_when_it_has_changed(
    subject: Subject, tmp_path: Path
) -> None:
    path = put(subject.layout.ranking("gan", "fake"))
    first = find_ranking(subject, CHOICE).ranking
    assert find_ranking(replace(subject, gan_name="another"), replace(CHOICE, relevances=path)).ranking is first
    time = path.stat()
    put(path, seed=1)
    os.utime(path, ns=(time.st_atime_ns, time.st_mtime_ns))
    assert find_ranking(subject, CHOICE).ranking.maps == read_ranking(path).maps != first.maps


def test_a_ranking_of_another_checkpoint_is_refused_unless_named(subject: Subject) -> None:
    path = put(subject.layout.ranking("gan", "fake"), weights="b" * 64)
    with pytest.raises(UserError, match=r"is of another checkpoint .*: rank this detector") as caught:
        find_ranking(subject, CHOICE)
    assert str(path) in str(caught.value)
    found = find_ranking(subject, replace(CHOICE, relevances=path))
    assert found.path == path
    assert "another checkpoint" in found.warning
    assert "bbbbbbbbbbbb" in found.warning
    assert "aaaaaaaaaaaa" in found.warning


def test_a_ranking_without_a_record_is_used_with_a_warning(subject: Subject) -> None:
    put(subject.layout.ranking("gan", "fake"), weights=None)
    found = find_ranking(subject, CHOICE)
    assert "no record of its checkpoint" in found.warning
    assert found.record == {}


def test_a_ranking_that_was_changed_is_used_with_a_warning(subject: Subject) -> None:
    path = put(subject.layout.ranking("gan", "fake"))
    Ranking.from_values(LAYERS, np.random.default_rng(1).random(128) / 128).write(path)
    found = find_ranking(subject, CHOICE)
    assert "not the file that its record describes" in found.warning
    assert found.record == {}


@pytest.mark.parametrize(("weights", "warned"), [("blur_jpg_prob0.5.pth", False), ("mine.pth", True)])
def test_published_rankings_belong_to_published_detectors(
    subject: Subject, shared_dir: Path, tmp_path: Path, weights: str, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a ResNet-50 and a resnet18 do not fit otherwise; here only what is said of the file matters."""
    folder = shared_dir / "reference" / "published_fmap_relevances" / "resnet50" / "progan_val_0.5"
    path = subject.layout.ranking("progan_val", "fake")
    path.parent.mkdir(parents=True)
    shutil.copy(folder / "progan_val-fake.csv", path)
    monkeypatch.setattr(rankings, "read_ranking", lambda path, layers: read_ranking(path))
    found = find_ranking(replace(subject, detector=replace(subject.detector, weights=tmp_path / weights)), CHOICE)
    assert ("not known to be the published one" in found.warning) == warned
    assert bool(found.warning) == warned


def test_a_ranking_of_another_network_is_refused(subject: Subject) -> None:
    path = subject.layout.ranking("gan", "fake")
    Ranking.from_values([("conv2", 3)], np.array([0.1, 0.2, 0.3])).write(path)
    with pytest.raises(UserError, match="the detector has no layer conv2"):
        find_ranking(subject, CHOICE)


def test_k_is_that_of_the_choice_or_the_paper(subject: Subject) -> None:
    put(subject.layout.ranking("gan", "fake"))
    assert find_ranking(subject, RankingChoice()).k == 1
    with pytest.raises(UserError, match="k = 129 is out of range: choose 1 to 128"):
        find_ranking(subject, RankingChoice(topk=129))
    assert rankings.default_topk("resnet50", 26_560) == 114
    assert rankings.default_topk("efb0", 21_008) == 27
    assert rankings.default_topk("resnet18", 4_800) == 21


@pytest.mark.parametrize("arch", ["resnet50", "efb0"])
@pytest.mark.parametrize("label", ["fake", "real"])
def test_shipped_rankings_are_recorded_and_of_the_shipped_detectors(arch: str, label: str) -> None:
    weights = PROJECT_ROOT / "weights" / arch / "mini.safetensors"
    ranked_on = read_record(weights)["ranked_on"]
    path = Layout(PROJECT_ROOT, arch, "mini").ranking(ranked_on, label)
    record = read_record(path)
    assert describes(record, path)
    assert record["inputs"]["weights"] == sha256_file(weights)
    assert record["facts"]["gan_name"] == ranked_on
    assert record["counts"][label]["used"] >= 90
    read_ranking(path).check()
