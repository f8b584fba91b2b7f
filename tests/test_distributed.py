"""Two processes under torchrun do the work of one; what is interrupted goes on in any number of processes."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ranking_runs import LOGITS, SOURCES, Scripts, at_batch, contents, run_main, stop
from test_attribution_networks import made
from test_attribution_scripts import SIDE, TRAIN, write_images

from passes.processes import Ranks, process_group
from source_attribution.stored import write_stored

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
RANKING = ("rank_fmaps", "--crop", "none", "--bsize", "1", "--figures", "False")
STATES = ".states/*.npz"


@pytest.fixture(scope="module")
def common(small_images: Path, small_weights: Path) -> list[str]:
    """Flags of a run on the small images."""
    flags = ["--arch", "resnet18", "--weights", small_weights, "--dataset_dir", small_images, "--gan_name", "gan"]
    return [*map(str, flags), "--device", "cpu"]


@pytest.fixture(scope="module")
def whole(common: list[str], loaded_once: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one uninterrupted process without workers; not to be written to."""
    output = tmp_path_factory.mktemp("whole")
    run_main(*RANKING, *common, "--num_workers", "0", "--output_dir", output)
    return output


def start(launcher: tuple[str, ...], script: str, *flags: object) -> subprocess.Popen[str]:
    """A script in a process group of its own, as a batch system or `timeout` starts it."""
    return subprocess.Popen(
        [*launcher, str(SOURCES / f"{script}.py"), *map(str, flags)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group() as ranks:
        assert ranks == Ranks()
        assert ranks.is_first
        assert ranks.gather("mine") == ["mine"]
        assert ranks.sum([1.0]) == [1.0]
        assert ranks.from_first("mine") == "mine"
        ranks.wait()
        assert not torch.distributed.is_initialized()


@pytest.fixture
def slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every process that looks at a batch waits there until the file is gone."""
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    gate.touch()
    begun.mkdir()
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(
        "import sys, time\nfrom pathlib import Path\n"
        f"gate, begun = Path({str(gate)!r}), Path({str(begun)!r})\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name != 'fmap_ranking.analysis': return None\n"
        "        sys.meta_path.remove(self)\n"
        "        import os\n"
        "        from passes import one_pass\n"
        "        original = one_pass.PassBatch\n"
        "        def waiting(**parts):\n"
        "            (begun / str(os.getpid())).touch()\n"
        "            while gate.exists(): time.sleep(0.01)\n"
        "            return original(**parts)\n"
        "        one_pass.PassBatch = waiting\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'slow'}:{os.environ.get('PYTHONPATH', SOURCES.parent)}")
    return gate


def begun(gate: Path, processes: int, run: subprocess.Popen[str]) -> None:
    """Wait until so many processes look at their first batch."""
    end = time.monotonic() + 100
    while len(list(gate.with_name("begun").iterdir())) < processes:
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def relevance(output: Path, label: str) -> dict[str, float]:
    (path,) = output.glob(f"fmap_relevances/*/*/gan-{label}.csv")
    with path.open() as file:
        return {row["key"]: float(row["mean_relevance"]) for row in csv.DictReader(file)}


def tables(output: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(output).items() if name.endswith(".csv")}


def assert_alike(one: Path, other: Path) -> None:
    """The same tables, sums up to the order of their terms."""
    assert tables(one).keys() == tables(other).keys()
    for label in ("fake", "real"):
        first, second = relevance(one, label), relevance(other, label)
        assert first.keys() == second.keys()
        np.testing.assert_allclose([second[key] for key in first], list(first.values()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("under", [(), ("timeout", "100")], ids=["alone", "timeout"])
def test_terminated_with_loading_workers_and_resumed(
    under: tuple[str, ...], slowly: Path, common: list[str], whole: Path, scripts: Scripts
) -> None:
    """SIGTERM reaches the whole group, workers included, as batch systems send it; under `timeout` twice."""
    script, *flags = [*RANKING, *common, "--num_workers", "2", "--output_dir", "out"]
    run = start((*under, sys.executable), script, *flags)
    begun(slowly, 1, run)
    # The second worker may be late.
    time.sleep(0.5)
    run.terminate() if under else os.killpg(run.pid, signal.SIGTERM)
    time.sleep(0.2)
    slowly.unlink()
    _, messages = run.communicate(timeout=100)
    assert run.returncode == 130, messages
    assert f"after 1 of {len(LOGITS)} batches; state saved" in messages.splitlines()[-1]
    assert "Traceback" not in messages
    assert len(list(Path("out").glob(STATES))) == 1
    assert scripts(script, *flags, "--resume").code == 0
    assert tables(Path("out")) == tables(whole)
    assert not list(Path("out").glob(STATES))


@pytest.mark.slow
def test_two_processes_terminated_and_gone_on_with_by_one(
    slowly: Path, common: list[str], whole: Path, scripts: Scripts
) -> None:
    """And one by two; the numbers are those of one uninterrupted process."""
    script, *flags = [*RANKING, *common, "--num_workers", "0", "--output_dir", "out"]
    run = start(TORCHRUN, script, *flags)
    begun(slowly, 2, run)
    os.killpg(run.pid, signal.SIGTERM)
    time.sleep(0.2)
    slowly.unlink()
    run.communicate(timeout=100)
    assert run.returncode != 0
    names = ["ranking-resnet18_0.5-gan.rank0of2.npz", "ranking-resnet18_0.5-gan.rank1of2.npz"]
    assert sorted(path.name for path in Path("out").glob(STATES)) == names
    with at_batch(1, stop):
        alone = scripts(script, *flags, "--resume")
    assert alone.code == 130
    assert f"after 3 of {len(LOGITS)} batches" in alone.err
    assert [path.name for path in Path("out").glob(STATES)] == ["ranking-resnet18_0.5-gan.npz"]
    run = start(TORCHRUN, script, *flags, "--resume")
    said, messages = run.communicate(timeout=200)
    assert run.returncode == 0, messages
    # The first process alone says what came out.
    assert said.count("images used") == 2
    assert_alike(Path("out"), whole)
    assert not list(Path("out").glob(STATES))


def test_one_of_two_processes_calibrates_and_writes_secondaries(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", ("a", "b"))
    primary = made("primary", side=SIDE)
    write_stored(tmp_path / "p.safetensors", primary)
    words = ("att", "train", images, images, *TRAIN, "--multiclass", "--most_false", 0.2, "--device", "cpu")
    folders = ("--output_dir", tmp_path / "out", "--registry", tmp_path / "registry")
    run = start(TORCHRUN, "attribute_source", *words, "--det_model", tmp_path / "p.safetensors", *folders)
    said, messages = run.communicate(timeout=200)
    assert run.returncode == 0, messages
    assert [Path(line).name for line in said.splitlines()] == ["a.safetensors", "b.safetensors"]
    assert messages.count("are among the training images") == 1
