"""The code on the pages about relevance and about adding a detector runs, and prints what the pages say."""

import contextlib
import io
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from detectors.choice import DetectorChoice
from detectors.detector import Detector
from detectors.networks import architectures, build_model, get_architecture, unregister_architecture
from lrp.layers import MODULES
from utils.settings import read_settings

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def restored_registries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr("lrp.layers.MODULES", dict(MODULES))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = architectures()
    yield
    for name in architectures():
        if name not in before:
            unregister_architecture(name)


def run_page(page: str) -> tuple[str, str]:
    """Run the Python blocks of a page in one namespace; what they print, and what the page says they print."""
    namespace: dict[str, object] = {"__name__": "page"}
    text = (DOCS / page).read_text()
    printed = io.StringIO()
    said = ""
    blocks = 0
    for match in BLOCK.finditer(text):
        language, code = match.groups()
        if language == "text":
            said += code
        if language != "python":
            continue
        blocks += 1
        # line numbers in a traceback are those of the page
        padding = "\n" * text.count("\n", 0, match.start(2))
        with contextlib.redirect_stdout(printed):
            exec(compile(padding + code, str(DOCS / page), "exec"), namespace)
    assert blocks > 2
    return printed.getvalue(), said


def test_adding_a_detector(restored_registries: None) -> None:
    printed, _ = run_page("adding_a_detector.md")
    assert re.fullmatch(r"(\S+\.#\d+\(T=\d+\) +0\.\d{3}\n){5}", printed)
    assert "highpass-vgg" in architectures()


def test_the_page_as_a_plugin(restored_registries: None, tmp_path: Path) -> None:
    """Its network, registration and rules in one file, named on the command line."""
    text = (DOCS / "adding_a_detector.md").read_text()
    blocks = [code for language, code in BLOCK.findall(text) if language == "python"]
    needed = [code for code in blocks if re.search("^(class|register_architecture|register_module)", code, re.M)]
    assert len(needed) == 3
    (tmp_path / "highpass_vgg.py").write_text("\n".join(needed))
    words = ["--plugin", str(tmp_path / "highpass_vgg.py"), "--arch", "HighPass-VGG"]
    (choice,) = read_settings("d", "e", DetectorChoice, argv=words)
    detector = Detector(get_architecture(choice.arch), build_model(choice.arch).eval())
    assert [channels for _, channels in detector.explainer().layers] == [3, 8, 16]


def test_relevance() -> None:
    printed, said = (text.split() for text in run_page("relevance.md"))
    assert len(printed) == len(said) > 40
    for found, expected in zip(printed, said, strict=True):
        number = expected.rstrip(",")
        if "." in number:
            # the last digit may differ between processors
            assert float(found.rstrip(",")) == pytest.approx(float(number), abs=2e-3)
        else:
            assert found == expected


@pytest.mark.parametrize("page", ["relevance.md", "adding_a_detector.md"])
def test_links_between_pages(page: str) -> None:
    targets = re.findall(r"\]\(([\w./-]+)\)", (DOCS / page).read_text())
    assert targets
    for target in targets:
        assert (DOCS / target).exists(), target
