"""Two processes under torchrun do the work of one."""

from __future__ import annotations

import csv
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ranking_runs import SOURCES, USED, Scripts

from passes.processes import Ranks, process_group
from utils.files import read_npz

# Collects over the images of a folder, and leaves in another what each process then holds.
JOB = """
import sys
from pathlib import Path
import numpy as np
import torch
from images.decoding import Crop
from passes.processes import process_group
from utils.files import write_npz
from images.sets import find_image_set
from passes.one_pass import PassState, discard_state, run_pass

class Sums:
    name = "sums"
    def __init__(self, count):
        self.means, self.total, self.seen = np.zeros(count), np.zeros(3), 0
    def update(self, batch):
        self.means[list(batch.batch.positions)] = batch.inputs.mean((1, 2, 3)).numpy()
        self.total += batch.inputs.double().sum((0, 2, 3)).numpy()
        self.seen += len(batch.items)
    def state(self):
        return {"means": self.means.copy(), "total": self.total.copy(), "seen": np.array(self.seen)}
    def load_state(self, state):
        self.means, self.total, self.seen = state["means"], state["total"], int(state["seen"])
    def merge(self, state):
        self.means, self.total, self.seen = (
            self.means + state["means"], self.total + state["total"], self.seen + int(state["seen"]))

def collect(images, output, batch_size, ranks):
    collector = Sums(len(images))
    state = PassState(output / "state.npz", {"of": "test"})
    report = run_pass(images, [collector], preprocess=lambda x: x / 255, device=torch.device("cpu"),
                      batch_size=batch_size, crop=Crop("none"), state=state, ranks=ranks, skip_bad_images=True)
    left = sorted(path.name for path in output.glob("state*"))
    write_npz(output / f"{ranks.rank}.npz", images=np.array(report.images), left=np.array(left, dtype=str),
              skipped=np.array([entry.item.name for entry in report.skipped], dtype=str), **collector.state())
    discard_state(state, ranks)

with process_group() as ranks:
    for batch_size in (2, 100):
        images = find_image_set(Path(sys.argv[1]), "gan")
        collect(images, Path(sys.argv[2]) / str(batch_size), batch_size, ranks)
"""


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Two processes that meet at a free port (--standalone)."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [*launcher, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group() as ranks:
        assert ranks == Ranks()
        assert ranks.is_first
        assert ranks.gather("mine") == ["mine"]
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("chosen", "world_size", "device"),
    [("cpu", 2, "cpu"), ("cuda", 2, "cuda:1"), ("cuda:0", 2, "cuda:0"), ("cuda", 1, "cuda")],
)
def test_each_process_has_its_own_gpu(chosen: str, world_size: int, device: str) -> None:
    assert Ranks(1, world_size, 1).device(torch.device(chosen)) == torch.device(device)


@pytest.mark.slow
def test_the_first_process_ends_up_with_everything(
    small_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if one of them has nothing to do but to leave out a damaged image."""
    data = tmp_path / "data" / "gan"
    shutil.copytree(small_images / "gan", data)
    (data / "1_fake" / "b.png").write_bytes(b"no image")
    job = tmp_path / "job.py"
    job.write_text(JOB)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(sys, "argv", [str(job), str(data.parent), str(tmp_path / "alone")])
    runpy.run_path(str(job), run_name="__main__")
    done = torchrun(job, data.parent, tmp_path / "together")
    assert done.returncode == 0, done.stderr
    for batch_size in ("2", "100"):
        alone, together = tmp_path / "alone" / batch_size, tmp_path / "together" / batch_size
        expected, merged = read_npz(alone / "0.npz"), read_npz(together / "0.npz")
        assert int(expected["images"]) == int(merged["images"]) == int(merged["seen"]) == 10
        assert expected["skipped"].tolist() == merged["skipped"].tolist() == ["gan/1_fake/b.png"]
        np.testing.assert_allclose(merged["total"], expected["total"], rtol=1e-12)
        np.testing.assert_allclose(merged["means"], expected["means"], rtol=0, atol=1e-6)
        # Each process kept a state of its own, and removed it.
        assert expected["left"].tolist() == ["state.npz"]
        assert "state.rank0of2.npz" in merged["left"].tolist()
        assert sorted(path.name for path in together.iterdir()) == ["0.npz", "1.npz"]
    seen = [int(read_npz(tmp_path / "together" / "2" / f"{rank}.npz")["seen"]) for rank in range(2)]
    assert seen[1] < seen[0] == 10


def values(path: Path) -> dict[str, float]:
    with path.open() as file:
        return {row["key"]: float(row["mean_relevance"]) for row in csv.DictReader(file)}


@pytest.mark.slow
def test_ranking_of_two_processes_is_that_of_one(
    scripts: Scripts, small_images: Path, small_weights: Path, tmp_path: Path
) -> None:
    arguments = ("--arch", "resnet18", "--weights", small_weights, "--dataset_dir", small_images, "--gan_name", "gan")
    arguments += ("--crop", "none", "--bsize", 3, "--figures", "False", "--num_workers", 0, "--device", "cpu")
    run = scripts("rank_fmaps", *arguments, "--output_dir", tmp_path / "alone")
    assert run.code == 0, run.err
    done = torchrun(SOURCES / "rank_fmaps.py", *arguments, "--output_dir", tmp_path / "together")
    assert done.returncode == 0, done.stderr
    # The first process alone says what came out.
    assert done.stdout.count("images used") == 2
    alone, together = (tmp_path / name / "fmap_relevances" / "resnet18" / "gan_0.5" for name in ("alone", "together"))
    assert sorted(path.name for path in alone.iterdir()) == sorted(path.name for path in together.iterdir())
    for label in USED:
        one, two = values(alone / f"gan-{label}.csv"), values(together / f"gan-{label}.csv")
        assert one.keys() == two.keys()
        np.testing.assert_allclose([two[key] for key in one], list(one.values()), rtol=0, atol=1e-9)
    with (alone / "gan-samples.csv").open() as one_file, (together / "gan-samples.csv").open() as two_file:
        for one_row, two_row in zip(csv.DictReader(one_file), csv.DictReader(two_file), strict=True):
            assert abs(float(one_row.pop("probability")) - float(two_row.pop("probability"))) < 1e-9
            assert one_row == two_row
