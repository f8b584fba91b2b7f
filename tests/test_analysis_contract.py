"""What holds for every experiment alike: resumed as uninterrupted, two processes as one, done, stale, bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ranking_runs import Scripts, at_batch, contents, stop

import evaluation.evaluate
import passes.running
import sensitivity_assessment.topk
from detectors.networks import build_model
from fmap_ranking.ranking import Ranking
from lrp.canonise import build_program, explained_layers
from passes.analysis import Analysis
from passes.processes import Ranks
from utils.files import read_npz, write_npz

pytestmark = pytest.mark.usefixtures("loaded_once")


@dataclass(frozen=True)
class Case:
    """A script, its own flags, and a table that it leaves below the output folder."""

    script: str
    flags: tuple[str, ...]
    table: str
    steps_before: tuple[str, ...] = ()


RANKED = ("--topk", "3", "--relevances", "RANKING")
CASES = {
    "ranking": Case("rank_fmaps", ("--crop", "none", "--figures", "False"), "fmap_relevances/*/*/gan-fake.csv"),
    "sensitivity": Case(
        "transfer_sensitivity_analysis", (*RANKED, "--draws", "2", "--bootstrap", "50"), "transfer/*/*/scores.csv"
    ),
    "colour": Case("grayscale_sensitivity_analysis", ("--bootstrap", "50"), "grayscale-transfer/*/*/scores.csv"),
    "topk": Case(
        "find_topk",
        ("--relevances", "RANKING", "--numbers", "2", "4", "--draws", "1", "--bootstrap", "50"),
        "find_topk/*/*/passes/2_4/scores.csv",
    ),
    "activations": Case("get_max_activation_rankings", RANKED, "activation_rankings/*/*/max_activations.npz"),
    "patches": Case(
        "extract_max_activation_patches",
        (*RANKED, "--num_instances", "4"),
        "patches/*/*/fake/maps.csv",
        ("activations",),
    ),
    "median": Case("median_test_activation_histograms", (*RANKED, "--histograms", "none"), "median_test/*/gan.csv"),
    "evaluation": Case("evaluate_detector", ("--jpeg", "75", "--bootstrap", "50"), "evaluation/*/gan/scores.csv"),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(scope="module")
def ranking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ranking of the maps of a resnet18."""
    path = tmp_path_factory.mktemp("ranking") / "fake.csv"
    layers = explained_layers(build_program(build_model("resnet18").eval()))
    values = np.random.default_rng(0).random(sum(channels for _, channels in layers))
    Ranking.from_values(layers, values / 1000).write(path)
    return path


@dataclass
class Finished:
    """Whole runs, each made once for all tests that start from one.

    Attributes:
        images: The data set that they are on.
        folder: Holds an output folder for each.
        batches: By script, how many its pass had.
    """

    images: Path
    folder: Path
    batches: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def finished(small_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """No run yet."""
    return Finished(small_images, tmp_path_factory.mktemp("finished"))


@dataclass
class Runs:
    """Runs cases on a copy of the small images."""

    scripts: Scripts
    images: Path
    weights: Path
    ranking: Path
    finished: Finished

    def __call__(self, case: Case, output: Path, *more: object) -> Any:
        flags = [str(self.ranking) if flag == "RANKING" else flag for flag in case.flags]
        common = ["--arch", "resnet18", "--weights", self.weights, "--dataset_dir", self.images, "--gan_name", "gan"]
        common += ["--device", "cpu", "--bsize", 2, "--output_dir", output]
        return self.scripts(case.script, *common, *flags, *more)

    def whole(self, case: Case) -> Path:
        """The output of a whole run on the images as they are at first; not to be changed."""
        output = self.finished.folder / case.script
        if case.script not in self.finished.batches:
            self.before(case, output)
            with at_batch(99, stop) as batches:
                assert replace(self, images=self.finished.images)(case, output).code == 0
            self.finished.batches[case.script] = batches[0]
        return output

    def done(self, case: Case, output: Path) -> None:
        """Make `output` that of a whole run."""
        shutil.copytree(self.whole(case), output)

    def before(self, case: Case, output: Path) -> None:
        """Make `output` that of the step before, if there is one."""
        for name in case.steps_before:
            self.done(CASES[name], output)


@pytest.fixture
def runs(
    scripts: Scripts,
    small_images: Path,
    small_weights: Path,
    ranking: Path,
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Runs:
    """Runs on images that a test may change."""
    images = tmp_path / "images"
    shutil.copytree(small_images, images)
    # Pictures have tests of their own.
    for module in (passes.running, evaluation.evaluate, sensitivity_assessment.topk):
        monkeypatch.setattr(module, "draw_once", lambda *arguments: [])
    monkeypatch.setattr(passes.running, "_by_detector", lambda analyses: [])
    return Runs(scripts, images, small_weights, ranking, finished)


@every_case
def test_resumed_is_as_uninterrupted(case: Case, runs: Runs, tmp_path: Path) -> None:
    whole, broken = runs.whole(case), tmp_path / "broken"
    runs.before(case, broken)
    with at_batch(1, stop):
        stopped = runs(case, broken)
    assert stopped.code == 130
    assert "--resume" in stopped.err
    assert not list(broken.glob(case.table)), "a table of an interrupted run"
    with at_batch(99, stop) as batches:
        assert runs(case, broken, "--resume").code == 0
    assert batches[0] < runs.finished.batches[case.script], "the batch that was done was not done again"
    assert tables(broken) == tables(whole)
    assert not list(broken.glob(".states/*.npz"))


def tables(output: Path) -> dict[str, bytes]:
    """All files but records of commands, whose paths differ."""
    return {
        name: data for name, data in contents(output).items() if not name.endswith(".json") and ".drawn" not in name
    }


@every_case
def test_done_is_not_done_again(case: Case, runs: Runs) -> None:
    output = runs.whole(case)
    before = contents(output)
    with at_batch(99, stop) as batches:
        again = replace(runs, images=runs.finished.images)(case, output)
    assert again.code == 0
    assert batches[0] == 0
    assert "done before" in again.out
    assert contents(output) == before


def darker_image(runs: Runs, table: Path) -> None:
    """Another image of the same name, and of the same number of bytes where that can be."""
    path = runs.images / "gan" / "1_fake" / "a.png"
    pixels = np.asarray(Image.open(path)) // 2
    Image.fromarray(pixels).save(path)


def edited_table(runs: Runs, table: Path) -> None:
    table.write_bytes(table.read_bytes() + b"\n")


def no_record(runs: Runs, table: Path) -> None:
    table.with_name(table.name + ".json").unlink()


def older_computation(runs: Runs, table: Path) -> None:
    record = table.with_name(table.name + ".json")
    content = json.loads(record.read_text())
    content["computation"] -= 1
    record.write_text(json.dumps(content))


@every_case
@pytest.mark.parametrize("change", [edited_table, no_record, older_computation, darker_image])
def test_stale_is_not_done(case: Case, change: Callable[[Runs, Path], None], runs: Runs, tmp_path: Path) -> None:
    runs.done(case, tmp_path / "out")
    (table,) = (tmp_path / "out").glob(case.table)
    before = table.read_bytes()
    change(runs, table)
    if change is darker_image and case.steps_before:
        # The step before is made anew first, from the changed image.
        assert runs(CASES[case.steps_before[0]], tmp_path / "out").code == 0
    with at_batch(99, stop) as batches:
        assert runs(case, tmp_path / "out", "--overwrite").code == 0
    assert batches[0] > 0
    if change is not darker_image:
        assert table.read_bytes() == before


@every_case
def test_results_of_another_checkpoint_are_not_overwritten(case: Case, runs: Runs, tmp_path: Path) -> None:
    runs.done(case, tmp_path / "out")
    state = torch.load(runs.weights, weights_only=True)["model"]
    state["fc.bias"] = state["fc.bias"] + 0.1
    runs.weights = tmp_path / "other.pth"
    torch.save({"model": state}, runs.weights)
    before = contents(tmp_path / "out")
    refused = runs(case, tmp_path / "out")
    assert refused.code == 2
    assert len(refused.err.strip().splitlines()[-1]) > 0
    assert "checkpoint" in refused.err or "origin" in refused.err
    assert {k: v for k, v in contents(tmp_path / "out").items() if ".states" not in k} == {
        k: v for k, v in before.items() if ".states" not in k
    }


@every_case
def test_a_bad_image_is_one_line_or_left_out(case: Case, runs: Runs, tmp_path: Path) -> None:
    bad = runs.images / "gan" / "1_fake" / "a.png"
    runs.before(case, tmp_path / "out")
    bad.write_bytes(bad.read_bytes()[:100])
    refused = runs(case, tmp_path / "out")
    assert refused.code == 2
    assert str(bad) in refused.err.strip().splitlines()[-1]
    assert not list((tmp_path / "out").glob(case.table))
    assert runs(case, tmp_path / "out", "--skip_bad_images").code == 0
    (table,) = (tmp_path / "out").glob(case.table)
    skipped = json.loads(table.with_name(table.name + ".json").read_text())["skipped"]
    assert [name for name, _ in skipped] == ["gan/1_fake/a.png"]


class OneOfTwo(Ranks):
    """A process of a group of two that run one after the other: the second leaves its states to the first."""

    left: list[Any] = []  # noqa: RUF012

    def gather(self, value: Any) -> list[Any] | None:
        if self.rank == 1:
            self.left.append(value)
            return None
        return [value, self.left.pop()]

    def wait(self) -> None:
        """The other process is not there at the same time."""


@every_case
def test_two_processes_do_the_work_of_one(case: Case, runs: Runs, tmp_path: Path) -> None:
    whole = runs.whole(case)
    runs.before(case, tmp_path / "two")
    for rank in (1, 0):

        @contextmanager
        def group(rank: int = rank) -> Iterator[Ranks]:
            yield OneOfTwo(rank, 2)

        with pytest.MonkeyPatch.context() as patch:
            for module in ("passes.running", "evaluation.evaluate"):
                patch.setattr(f"{module}.process_group", group, raising=False)
            done = runs(case, tmp_path / "two")
        if rank == 0:
            assert done.code == 0, done.err
    assert sorted(tables(whole)) == sorted(tables(tmp_path / "two"))
    (a,), (b,) = (folder.glob(case.table) for folder in (whole, tmp_path / "two"))
    if a.suffix == ".csv":
        first, second = (np.genfromtxt(path, delimiter=",", dtype=str, comments=None) for path in (a, b))
        assert np.array_equal(first[:, 0], second[:, 0])
    assert not list((tmp_path / "two").glob(".states/*.npz"))


@pytest.mark.parametrize("name", CASES)
def test_separate_jobs_do_the_work_of_one(name: str, runs: Runs, tmp_path: Path) -> None:
    case = CASES[name]
    if name == "patches":
        runs.before(case, tmp_path / "one")
        assert "without --part" in runs(case, tmp_path / "one", "--part", "1/2").err
        return
    whole = runs.whole(case)
    folders = [tmp_path / name for name in ("a", "b", "merged")]
    for number, folder in enumerate(folders[:2], start=1):
        part = runs(case, folder, "--part", f"{number}/2")
        assert part.code == 0, part.err
        assert not list(folder.glob(case.table)), "a table of a part"
    missing = runs.scripts("merge_states", folders[0], "--output_dir", folders[2])
    assert missing.code == 2
    assert "2 missing" in missing.err
    assert not list(folders[2].glob("**/*.npz"))
    assert runs.scripts("merge_states", *folders[:2], "--output_dir", folders[2]).code == 0
    with at_batch(99, stop) as batches:
        done = runs(case, folders[2], "--resume")
    assert done.code == 0, done.err
    assert batches[0] == 0, "an image was seen again"
    assert sorted(tables(folders[2])) == sorted(tables(whole))
    (a,), (b,) = (folder.glob(case.table) for folder in (whole, folders[2]))
    if a.name == "scores.csv":
        assert a.read_bytes() == b.read_bytes()
    assert not list(folders[2].glob(".states/*.npz"))


def test_parts_of_other_runs_are_not_merged(runs: Runs, tmp_path: Path) -> None:
    a, b, merged = (tmp_path / name for name in ("a", "b", "merged"))
    case = CASES["evaluation"]
    assert runs(case, a, "--part", "1/2").code == 0
    assert runs(case, b, "--part", "2/2", "--jpeg", "90").code == 0
    refused = runs.scripts("merge_states", a, b, "--output_dir", merged)
    assert refused.code == 2
    assert "of different runs" in refused.err
    twice = runs.scripts("merge_states", a, shutil.copytree(a, tmp_path / "c"), "--output_dir", merged)
    assert twice.code == 2
    assert "there twice" in twice.err
    assert runs(case, a, "--part", "1/3", "--resume").code == 2
    assert "is no part K/N" in runs(case, a, "--part", "3/2").err
    assert runs.scripts("merge_states", tmp_path, "--output_dir", merged).code == 2
    (state,) = a.glob(".states/*.npz")
    arrays = read_npz(state)
    for done in (np.array(1), np.zeros((2, 2), int), np.array(["x"])):
        write_npz(state, **{**arrays, "done": done})
        refused = runs.scripts("merge_states", a, "--output_dir", merged)
        assert (refused.code, "is not a saved state" in refused.err) == (2, True), refused.err
    assert not merged.exists()


@every_case
def test_the_record_is_a_config(case: Case, runs: Runs, tmp_path: Path) -> None:
    runs.before(case, tmp_path / "out")
    assert runs(case, tmp_path / "out").code == 0
    (table,) = (tmp_path / "out").glob(case.table)
    record = table.with_name(table.name + ".json")
    settings = json.loads(record.read_text())["settings"]
    assert settings["arch"] == "resnet18"
    assert settings["bsize"] == 2
    with at_batch(99, stop) as batches:
        again = runs.scripts(case.script, "--config", record)
    assert again.code == 0, again.err
    assert batches[0] == 0, "the same settings, so nothing to do"


def test_every_experiment_is_here() -> None:
    import sensitivity_assessment.colour
    import sensitivity_assessment.topk  # noqa: F401

    def below(kind: type[Any]) -> set[str]:
        return {kind.name for kind in kind.__subclasses__() if hasattr(kind, "name")} | {
            name for child in kind.__subclasses__() for name in below(child)
        }

    known = {"ranking", "sensitivity", "colour", "find_topk", "activation_rankings", "patches", "median_test"}
    # Loose images, calibration, the explanations of single images and patch forensics have tests of their own.
    others = {"evaluation", "images", "calibration", "lrp", "gradcam", "patch_test", "top_patches"}
    assert below(Analysis) - known <= others
