"""The house is as docs/architecture.md says: imports run one way, and every module has its line."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = (
    "attribution",
    "fmap_ranking",
    "sensitivity_assessment",
    "patch_extraction",
    "activation_histograms",
    "cr_ud",
    "mini_forensynths",
)
# Each floor may import those below it, and itself.
GROUND = {"utils", "lrp"}
IMAGES = {"images", *GROUND}
DETECTORS = {"detectors", *IMAGES}
PASSES = {"passes", *DETECTORS}
EVALUATION = {"evaluation", *PASSES}
ALLOWED = {
    "lrp": {"lrp"},
    "utils": {*GROUND, "detectors"},  # the parser of --arch, until flags come from settings
    "images": IMAGES,
    "detectors": DETECTORS,
    "passes": PASSES,
    "evaluation": EVALUATION,
    **{name: {name, "fmap_ranking", *EVALUATION} for name in EXPERIMENTS},
    "reproduction": {"reproduction", *EXPERIMENTS, *EVALUATION},
    "src": {"reproduction", *EXPERIMENTS, *EVALUATION},
}
MODULES = sorted(path for name in ALLOWED for path in (ROOT / name).glob("*.py"))


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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    floor = path.relative_to(ROOT).parts[0]
    assert imported(path) & ALLOWED.keys() <= ALLOWED[floor]


def test_every_module_has_its_line() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = [path.relative_to(ROOT).as_posix() for path in MODULES if path.parent.name != "src"]
    missing = [name for name in names if not name.endswith("__init__.py") and f"`{name}`" not in page]
    assert not missing


def test_every_named_module_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {word for word in page.split("`") if word.endswith(".py") and "/" in word and " " not in word}
    assert named
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]
