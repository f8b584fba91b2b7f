"""The house is as docs/architecture.md says: imports run down the floors, every module has its line, recipes run."""

import ast
import re
import runpy
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from ranking_runs import SOURCES

from detectors.networks import architectures, build_model, unregister_architecture
from evaluation.scores import read_scores
from utils.provenance import read_record
from utils.tables import read_table

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
EXPERIMENTS = (
    "attribution",
    "fmap_ranking",
    "sensitivity_assessment",
    "patch_extraction",
    "activation_histograms",
    "cr_ud",
    "mini_forensynths",
)
TENANTS = ("patch_forensics", "source_attribution")  # experiments with a training of their own
GROUND = {"lrp", "utils"}
IMAGES = {"images", *GROUND}
DETECTORS = {"detectors", *IMAGES}
PASSES = {"passes", *DETECTORS}
EVALUATION = {"evaluation", *PASSES}
# Each room may import those below it, and itself.
ALLOWED = {
    "lrp": {"lrp"},
    "utils": {"utils"},
    "images": IMAGES - {"lrp"},
    "detectors": DETECTORS,
    "passes": PASSES,
    "evaluation": EVALUATION,
    **{name: {name, "fmap_ranking", *EVALUATION} for name in EXPERIMENTS},
    **{name: {name, "fmap_ranking", "cr_ud", *EVALUATION} for name in TENANTS},
    "reproduction": {"reproduction", *EXPERIMENTS, *TENANTS, *EVALUATION},
    "src": {"reproduction", *EXPERIMENTS, *TENANTS, *EVALUATION},
}
MODULES = sorted(path for name in ALLOWED for path in (ROOT / name).glob("*.py"))
NETWORKS = {"torchvision", "efficientnet_pytorch", "timm", "captum"}
# Reads checkpoints that hold an argparse.Namespace beside the weights.
UNPICKLES_ARGUMENTS = "detectors/checkpoints.py"


def imported(path: Path) -> set[str]:
    """First parts of the names of all modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").partition(".")[0])
            assert all(alias.name != "*" for alias in node.names), f"{path}: star import"
    return names


def test_imports_run_down() -> None:
    wrong = {
        path.relative_to(ROOT).as_posix(): above
        for path in MODULES
        if (above := imported(path) & ALLOWED.keys() - ALLOWED[path.relative_to(ROOT).parts[0]])
    }
    assert not wrong


def test_relevance_propagation_knows_pytorch_only() -> None:
    third_party = {name for path in (ROOT / "lrp").glob("*.py") for name in imported(path)}
    assert third_party - sys.stdlib_module_names == {"lrp", "torch"}


def test_the_command_line_is_made_in_one_place() -> None:
    using = {path.relative_to(ROOT).as_posix() for path in MODULES if "argparse" in imported(path)}
    assert using == {"utils/settings.py", UNPICKLES_ARGUMENTS}


def test_no_option_pulls_in_pytorch() -> None:
    """So that `--help` is quick: what the options of all rooms import, they import without torch."""
    rooms = [path.parent.name for path in MODULES if path.name == "options.py"]
    code = "; ".join(f"import {room}.options" for room in rooms)
    code += "; import sys; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_names_that_recur_are_explained() -> None:
    rooms: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        if path.parent.name != "src":
            rooms[path.name].append(path.parent.name)
    recurring = {name for name, where in rooms.items() if len(where) > 1} - {"__init__.py"}
    explained = re.search(r"Names that recur.*?\n\n", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert explained is not None
    assert recurring <= set(explained.group().split("`"))


def test_no_name_fits_everything() -> None:
    vague = {"made", "found", "kinds", "own", "place"}
    bound = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in [*MODULES, *sorted((ROOT / "benchmarks").glob("*.py"))]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Name) and node.id in vague) or (isinstance(node, ast.arg) and node.arg in vague)
    ]
    assert not bound, "a variable is to be called by what it holds"


def test_every_module_has_its_line() -> None:
    page = PAGE.read_text(encoding="utf-8")
    names = [path.relative_to(ROOT).as_posix() for path in MODULES if path.parent.name != "src"]
    missing = [name for name in names if not name.endswith("__init__.py") and f"`{name}`" not in page]
    assert not missing


def test_every_module_named_exists() -> None:
    prose = re.sub(r"^```python\n.*?^```$", "", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = {word for word in prose.split("`") if re.fullmatch(r"[a-z_]+/[a-z_]+\.py", word)}
    assert len(named) > 50
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_every_public_name_is_there() -> None:
    table = re.search(r"## Public API\n(.*?)\n## ", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert table is not None
    listed = re.findall(r"`([a-z_.]+)(?:: ([\w, ]+))?`", "".join(re.findall(r"^\| (`.*?) \|", table.group(1), re.M)))
    assert len(listed) > 12
    for module, names in listed:
        found = __import__(module, fromlist=["*"])
        assert all(hasattr(found, name) for name in names.split(", ") if name), module
    for path in re.findall(r"`([a-z_]+\.[a-z_]+)\.([A-Z]\w+)`", table.group(1)):
        assert hasattr(__import__(path[0], fromlist=["*"]), path[1]), path


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The files of the recipes as they stand on the page, in a folder that Python looks in."""
    blocks = re.findall(
        r"^```python\n(# (\w+\.py)\n.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    files = {name: tmp_path / name for _, name in blocks}
    for code, name in blocks:
        files[name].write_text(code, encoding="utf-8")
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return files


def test_recipes(
    recipes: dict[str, Path],
    small_images: Path,
    small_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(recipes) == ["mirrored.py", "brightness.py", "brightest.py", "one_layer.py"]

    def run(name: str, *more: str, arch: str = "resnet18", weights: Path = small_weights) -> None:
        words = ["--arch", arch, "--weights", str(weights), "--dataset_dir", str(small_images), "--gan_name", "gan"]
        monkeypatch.setattr(sys, "argv", [name, *words, "--device", "cpu", *more])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(recipes[name]), run_name="__main__")
        assert caught.value.code == 0, capsys.readouterr().err

    run("mirrored.py", "--bootstrap", "10")
    scores = read_scores(Path("output/evaluation/resnet18_0.5/gan/scores.csv"), made_by="")
    assert list(scores.columns) == ["rgb", "grayscale", "mirrored"]
    assert (scores.columns["mirrored"] != scores.columns["rgb"]).all()

    table = Path("output/brightness/resnet18/gan_0.5/brightness.csv")
    run("brightness.py")
    by_name = dict(zip(scores.paths, scores.columns["rgb"], strict=True))
    _, rows = read_table(table, made_by="")
    assert {name: float(probability) for name, _, probability in rows} == pytest.approx(by_name)
    capsys.readouterr()
    run("brightness.py")
    assert "nothing to compute" in capsys.readouterr().out

    means = {name: float(value) for name, value, _ in rows}
    run("brightest.py", "--quantile", "1", "--output_dir", "other")
    _, rows = read_table(Path("other") / table.relative_to("output"), made_by="")
    assert all(float(value) > means[name] for name, value, _ in rows)
    assert read_record(Path("other") / table.relative_to("output"))["settings"]["quantile"] == 1

    before = architectures()
    try:
        torch.manual_seed(0)
        monkeypatch.delitem(sys.modules, f"tff_plugin:{recipes['one_layer.py'].resolve()}", raising=False)
        monkeypatch.setattr(sys, "argv", ["x"])
        runpy.run_path(str(recipes["one_layer.py"]))
        torch.save(build_model("one_layer").state_dict(), "one_layer.pth")
        unregister_architecture("one_layer")
        words = ["--plugin", "one_layer.py", "--bootstrap", "10", "--blur_jpg", "t"]
        run("mirrored.py", *words, arch="one_layer", weights=Path("one_layer.pth"))
        assert Path("output/evaluation/one_layer_t/gan/scores.csv").is_file()
    finally:
        for name in set(architectures()) - set(before):
            unregister_architecture(name)


def test_scripts_hold_no_loops_over_generators() -> None:
    """A script reads its flags and names its analysis; those that take longer are about the project itself."""
    longer = {"__main__.py", "check_setup.py", "inventory.py", "demo.py", "compare_rankings.py"}
    assert not [p.name for p in SOURCES.glob("*.py") if p.name not in longer and len(p.read_text().splitlines()) > 40]
