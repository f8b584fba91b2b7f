"""The notebook of the docs: it runs from its first cell to its last, and no outputs are kept in it."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "tff_in_ten_minutes.ipynb"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """In a folder with what the project holds besides code."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "notebook"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    said = capfd.readouterr().out
    assert "p(fake)" in said
    assert "omega" in said
    assert "layer-random-k" in said
    assert [path.name for path in Path("output").iterdir()] == ["notebook"]


def test_links_of_the_notebook_lead_somewhere() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    for name in ("mini_forensynths.md", "tutorial.md"):
        assert f"]({name})" in text
        assert (NOTEBOOK.parent / name).is_file()
