"""report.html in a real browser: no errors, sorting, details on a click, at desktop and phone width."""

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ranking_runs import SOURCES

HOSTILE = "<img src=x onerror=alert(1)>&\"'$%#.png"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def report(small_images: Path, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small run on two generators, one of them with a hostile file name."""
    folder = tmp_path_factory.mktemp("report")
    for name in ("gan", "a<b>&'\""):
        shutil.copytree(small_images / "gan", folder / "data" / name)
    (folder / "data/gan/1_fake/f.png").rename(folder / "data/gan/1_fake" / HOSTILE)
    arguments = [
        *("--arch", "resnet18", "--weights", small_weights, "--topk", 4, "--draws", 1, "--patches", 6),
        *("--crop", "none", "--bsize", 8, "--device", "cpu", "--output_dir", folder / "out"),
        *("--dataset_dir", folder / "data", "--gan_name", "gan", "a<b>&'\""),
    ]
    spec = importlib.util.spec_from_file_location("reproduce", SOURCES / "reproduce.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SOURCES / "reproduce.py"), *map(str, arguments)])
        module.main()
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on PATH: install it (apt-get install chromium) to test the report in a browser")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(params=[1280, 390])
def page(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The report, opened from disk; any message on the console or request beyond files fails the test."""
    complaints: list[str] = []
    opened = browser.new_page(viewport={"width": request.param, "height": 800})
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: (complaints.append("dialog"), dialog.dismiss()))
    opened.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    opened.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    opened.wait_for_load_state("networkidle")
    opened.close()
    assert complaints == []


def column(page: Any, number: int) -> list[str]:
    return [str(text) for text in page.locator(f"tr.map > :nth-child({number})").all_inner_texts()]


def test_it_fits_the_window(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
    page.locator("tr.map button").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]


def test_all_pictures_load(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page.locator("tr.map button").first.click()
    page.evaluate("document.querySelectorAll('img').forEach((i) => { i.loading = 'eager'; })")
    page.wait_for_function("Array.from(document.images).every((i) => i.complete)")
    assert page.evaluate("Array.from(document.images).every((i) => i.naturalWidth > 0)")
    assert page.evaluate("document.images.length") > 12


def test_sorting(page: Any) -> None:
    omega = page.get_by_role("button", name="ω in %")
    assert column(page, 1) == ["1", "2", "3", "4"]
    omega.click()
    values = [float(text) for text in column(page, 3)]
    assert values == sorted(values, reverse=True)
    omega.click()
    assert column(page, 1) == ["4", "3", "2", "1"]
    assert page.locator("th[aria-sort]").count() == 1
    assert page.locator("th[data-column=omega]").get_attribute("aria-sort") == "ascending"
    page.get_by_role("button", name="Median shift").click()
    shifts = [float(text) for text in column(page, 5)]
    assert shifts == sorted(shifts, reverse=True)


def test_a_click_shows_patches_and_histogram(page: Any) -> None:
    second = page.locator("tr.map button").nth(1)
    second.click()
    detail = page.locator("tr.detail")
    assert detail.locator(".patches li").count() == 6
    assert second.get_attribute("aria-expanded") == "true"
    assert HOSTILE in detail.inner_text()
    assert detail.locator("figure img").count() == 1
    page.locator("tr.map button").nth(2).click()
    assert detail.count() == 1
    page.locator("tr.map button").nth(2).click()
    assert detail.count() == 0


def test_keyboard_and_other_generator(page: Any) -> None:
    first = page.locator("tr.map button").first
    first.focus()
    page.keyboard.press("Enter")
    assert "on the fakes of gan" in page.locator("tr.detail").inner_text()
    page.get_by_label("Generator", exact=True).select_option(index=1)
    assert "on the fakes of a<b>&'\"" in page.locator("tr.detail").inner_text()
    assert page.locator("tr.detail .patches li").count() == 6
    first.focus()
    page.keyboard.press("Enter")
    assert page.locator("tr.detail").count() == 0
