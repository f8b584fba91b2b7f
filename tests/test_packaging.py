"""What `pip install .` would install: declared packages, dependencies, data and the command `tff`."""

import ast
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from ranking_runs import SOURCES

from utils.cli import EXIT_DONE, EXIT_USER_ERROR

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


def names(requirements: list[str]) -> set[str]:
    """Distribution names, as packaging compares them."""
    found = (re.match(r"[\w.-]+", line) for line in requirements)
    return {re.sub("[-_.]+", "-", match.group()).lower() for match in found if match}


DECLARED = names(PROJECT["project"]["dependencies"])
# Brought by matplotlib and jinja2; and one import name may be offered by several distributions.
INDIRECT = {"cycler", "markupsafe", "opencv-python", "opencv-contrib-python"}
EXTRAS = PROJECT["project"]["optional-dependencies"]
DISTRIBUTIONS = packages_distributions()
OPTIONAL = names([line for extra in EXTRAS.values() for line in extra]) - {"tff"}


def third_party(path: Path, *, lazily: bool) -> set[str]:
    """Distributions that a module imports: while it is imported, or inside of functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    lazy |= {id(n) for c in tree.body if isinstance(c, ast.If) and "TYPE_CHECKING" in ast.dump(c.test) for n in c.body}
    found: set[str] = set()
    for node in ast.walk(tree):
        if (id(node) in lazy) != lazily:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    scripts = {path.stem for path in SOURCES.glob("*.py")}
    found -= {*sys.stdlib_module_names, *ROOMS, *scripts}
    return set().union(*(names(DISTRIBUTIONS.get(name, [name])) for name in found))


def test_every_room_is_a_package() -> None:
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted([*ROOMS, "tff"])


def test_what_is_imported_is_declared() -> None:
    modules = [path for room in (*ROOMS, "src") for path in (ROOT / room).glob("*.py")]
    needed = set().union(*(third_party(path, lazily=False) for path in modules))
    assert needed - DECLARED <= INDIRECT
    later = set().union(*(third_party(path, lazily=True) for path in modules))
    assert later - DECLARED - OPTIONAL <= INDIRECT
    assert {"captum", "wandb"} <= later - needed


def test_what_is_declared_is_pinned() -> None:
    pins = names(re.findall(r"^[\w.-]+(?===)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE))
    assert pins >= DECLARED
    development = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    assert pins | names(re.findall(r"^[\w.-]+(?===)", development, re.MULTILINE)) >= OPTIONAL


def test_data_of_packages_is_included() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    included = {path for room, globs in patterns.items() for glob in globs for path in (ROOT / room).glob(glob)}
    others = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file() and path.suffix != ".py"]
    assert {path for path in others if "__pycache__" not in path.parts} <= included


def test_tff_runs_scripts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    module = runpy.run_path(str(SOURCES / "__main__.py"))

    def tff(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tff", *words])
        with pytest.raises(SystemExit) as caught:
            module["main"]()
        return (int(caught.value.code or 0), *capsys.readouterr())

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    code, out, _ = tff()
    assert code == EXIT_DONE
    assert "rank_fmaps" in out
    assert "inventory" not in out
    assert tff("rank_fmaps", "--help")[0] == EXIT_DONE
    code, _, err = tff("rank_fmap")
    assert code == EXIT_USER_ERROR
    assert "rank_fmaps" in err


def test_an_installed_copy_looks_for_weights_in_the_current_folder(tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(ROOT / "utils", site / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from utils.files import CODE_ROOT, PROJECT_ROOT"
    code += "; print(CODE_ROOT); print(PROJECT_ROOT)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == [str(site), str(tmp_path)]
