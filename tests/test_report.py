"""The report says what the numbers say, names only files that are there, stands alone on demand, works in a browser."""

import base64
import hashlib
import html
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from report_runs import ARCH, HOSTILE, MAPS, TAG, OnGenerator, page_of, write_run

from reproduction.page import Files, write_report
from utils.errors import UserError

OTHER = "a<b>&'"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
GAN = OnGenerator()
SECOND = OnGenerator(OTHER, ap=(0.95, 0.5, 0.9), scores=(0.6, 0.7), paired=(0.9, 0.001, 0.9), mood=(0.01, 0.01, 0.01))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two generators with its report; not to be written to."""
    root = write_run(tmp_path_factory.mktemp("finished"), GAN, SECOND)
    write_report(root)
    return root


def report(root: Path, *generators: OnGenerator) -> str:
    """The report on such results, without tags and line breaks."""
    write_report(write_run(root, *generators))
    text = re.sub(r"<(script|style).*?</\1>|<[^>]+>", "", page_of(root), flags=re.DOTALL)
    return " ".join(html.unescape(text).replace("\u00a0", " ").split())


def data_of(page: str) -> Any:
    return json.loads(page.split('id="maps-0">')[1].split("</script>")[0])


class Page(HTMLParser):
    """Tags of a page, and addresses in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.addresses = [a[key] or "" for _, a in self.tags for key in ("src", "href") if key in a]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ap": (0.99, 0.55, 0.97)}, "it depends on these maps in particular."),
        ({"ap": (0.99, 0.55, 0.97), "dropped": 1}, "does not settle whether on these or on their layers"),
        ({"dropped": 1}, "without others of the same layers (1 of 3, as these have no more)"),
        ({"ap": (0.99, 0.55, 0.56)}, "not shown to depend on these maps more than on others of their layers"),
        ({"ap": (0.99, 0.55, 0.3)}, "not shown to depend on these maps more than on others of their layers"),
        ({"ap": (0.99, 0.97, 0.97)}, "it is not shown to depend on these maps (95 %"),
        ({"ap": (0.9, 0.97, 0.97)}, "AP rises from 90.0 % to 97.0 % on gan"),
        ({"ap": (0.99, 0.99, 0.97)}, "AP stays at 99.0 % on gan"),
        ({"ap": (0.51, 0.4, 0.51)}, "not shown to do better than guessing, so the rest says little"),
        ({"ap": (0.51, 0.4, 0.51)}, "as many others of the same layers: there was nothing to lose"),
        ({"ap": (float("nan"),) * 3}, "there is no AP, which needs real and fake images"),
    ],
)
def test_what_it_depends_on_is_read_from_the_intervals(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    answers = report(tmp_path, replace(GAN, **change)).split("Images: gan")[0]
    assert says in answers
    assert answers.count("it depends on these maps in particular") == (
        says == "it depends on these maps in particular."
    )


def test_generators_that_differ_are_named(tmp_path: Path) -> None:
    text = report(tmp_path, GAN, replace(SECOND, name="other", ap=(0.95, 0.94, 0.94)))
    assert "it depends on these maps in particular on gan; elsewhere this is not shown" in text
    assert "2 generators, where guessing gives 50.0 %" in text


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ((0.9, 0.2), "on gan it lies lower (median p(fake) 90.0 % in colour, 20.0 % in greyscale)"),
        ((0.6, 0.7), "on gan it lies higher (median p(fake) 60.0 % in colour, 70.0 % in greyscale)"),
        ((0.9, 0.90004), "on gan it lies as high"),
        ((0.1, 0.9), "gan has none"),
    ],
)
def test_the_colour_caption_reads_its_direction(tmp_path: Path, scores: tuple[float, float], says: str) -> None:
    assert says in report(tmp_path, replace(GAN, scores=scores))


@pytest.mark.parametrize(
    ("paired", "mood", "says"),
    [
        ((0.9, 0.9, 0.9), (0.01, 0.01, 0.01), "None of these maps is shown to look at colour (0 of 3;"),
        ((0.001, 0.002, 0.9), (0.9, 0.9, 0.9), "Most of these maps look at colour (2 of 3;"),
        ((0.001, 0.9, 0.9), (0.9, 0.9, 0.9), "Some of these maps look at colour (1 of 3;"),
        # 0.04 is 0.06 after adjustment over these three maps, and would be less with a fourth of p = 1e-9.
        ((0.04, 0.04, 0.9), (0.9, 0.9, 0.9), "None of these maps is shown to look at colour (0 of 3;"),
    ],
)
def test_colour_is_judged_by_the_paired_test(
    tmp_path: Path, paired: tuple[float, ...], mood: tuple[float, ...], says: str
) -> None:
    assert says in report(tmp_path, replace(GAN, paired=paired, mood=mood))
    looks = sum(entry["count"] for entry in data_of(page_of(tmp_path))["maps"])
    assert f"({looks} of 3;" in says
    assert page_of(tmp_path).count("paired conditional") == looks


def test_tables_say_what_was_dropped_and_how_draws_spread(tmp_path: Path) -> None:
    text = report(tmp_path, replace(GAN, dropped=1), replace(SECOND, name="other", dropped=1))
    assert "gan random, same layers (mean of 5) 1 of 3 97.0 1.2 95.0 – 99.0" in text
    assert "without 1 of 3 of the same layers 90.0 % (mean of 5 draws, spread 1.2)" in text
    assert "mean of 2 top k 52.5 ± 2.5" in text
    assert "other: threshold chosen on other" in text
    assert "99.0 (12.3)" in text
    assert "In brackets the published figures" in text


def test_warnings_stand_on_top(tmp_path: Path) -> None:
    summary = write_run(tmp_path, GAN) / "summary.json"
    content = json.loads(summary.read_text())
    content["detectors"][0]["ranking_warning"] = "the ranking is of another checkpoint"
    content["generators"][0]["warning"] = "all fakes are JPEG"
    summary.write_text(json.dumps(content))
    top = write_report(tmp_path).read_text().split("<main>")[0]
    assert "resnet18: the ranking is of another checkpoint" in top
    assert "gan: all fakes are JPEG" in top


def test_it_names_only_files_that_are_there(finished: Path) -> None:
    page, text = Page(page_of(finished)), page_of(finished)
    data = data_of(text)
    generators = [entry for fmap in data["maps"] for entry in fmap["generators"]]
    addresses = [*page.addresses, *data["files"], *(entry["collage"] for entry in generators)]
    assert len(data["files"]) == 2 * (3 * (1 + 2) + 1)  # histograms, patches, and the image of each generator
    for address in addresses:
        assert not address.startswith(("http", "//", "/"))
        if not address.startswith(("#", "data:,")):
            assert (finished / unquote(address)).is_file()
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    assert any(HOSTILE in patch["name"] for entry in generators for patch in entry["patches"])


def test_nothing_from_outside_becomes_markup(finished: Path) -> None:
    text = page_of(finished)
    page = Page(text)
    assert not any(name.startswith(("on", "style")) for _, attributes in page.tags for name in attributes)
    assert OTHER not in text
    assert "<img src=x" not in text
    (policy,) = [a["content"] or "" for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_any_name_of_a_file_has_an_address(tmp_path: Path) -> None:
    assert Files(tmp_path).link(tmp_path / "a#b" / "c d%\udcff.png") == "a%23b/c%20d%25%FF.png"


def test_a_single_file_stands_alone(tmp_path: Path) -> None:
    text = write_report(write_run(tmp_path, GAN), single_file=True).read_text()
    data = data_of(text)
    assert {fmap["generators"][0]["collage"] for fmap in data["maps"]} == {None}
    pictures = [address for address in Page(text).addresses if not address.startswith("#")] + data["files"]
    pictures.remove("data:,")
    assert len(pictures) == 6 + 10
    assert all(p.startswith("data:image/png;base64,iVBOR") for p in pictures)


def test_the_same_files_give_the_same_page(finished: Path, tmp_path: Path) -> None:
    write_report(write_run(tmp_path, GAN, SECOND))
    assert page_of(tmp_path) == page_of(finished)


def test_histograms_and_collages_may_be_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, GAN)
    shutil.rmtree(tmp_path / "activation_histograms" / ARCH / TAG / MAPS[1].key)
    shutil.rmtree(tmp_path / "collages" / ARCH / TAG / MAPS[1].folder_name)
    write_report(tmp_path)
    of_maps = [fmap["generators"][0] for fmap in data_of(page_of(tmp_path))["maps"]]
    assert [entry["histogram"] is None for entry in of_maps] == [False, True, False]
    assert [entry["collage"] is None for entry in of_maps] == [False, True, False]


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("summary.json", "make it with src/reproduce.py"),
        ("transfer/resnet18/gan_mine/summary.csv", "src/transfer_sensitivity_analysis.py"),
        ("grayscale-transfer/resnet18/gan_mine/scores.csv", "src/grayscale_sensitivity_analysis.py"),
        ("patches/resnet18/gan_mine/fake/maps.csv", "extract_max_activation_patches.py"),
        ("median_test/resnet18_mine/gan.csv", "src/median_test_activation_histograms.py"),
        ("transfer/resnet18/transfer_mine.png", "without --report_only"),
        ("activation_histograms/resnet18/mine/gan.png", "without --report_only"),
    ],
)
def test_a_missing_earlier_step_is_named(tmp_path: Path, missing: str, says: str) -> None:
    write_run(tmp_path, GAN)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=re.escape(says)):
        write_report(tmp_path)


@pytest.mark.parametrize("folder", ["transfer", "grayscale-transfer", "median_test", "patches"])
def test_results_of_another_checkpoint_are_refused(tmp_path: Path, folder: str) -> None:
    write_run(tmp_path / "ours", GAN)
    write_run(tmp_path / "theirs", GAN, weights="b" * 64)
    shutil.rmtree(tmp_path / "ours" / folder)
    shutil.copytree(tmp_path / "theirs" / folder, tmp_path / "ours" / folder)
    with pytest.raises(UserError, match="another checkpoint"):
        write_report(tmp_path / "ours")


def test_a_map_without_a_test_is_named(tmp_path: Path) -> None:
    path = write_run(tmp_path, GAN) / "median_test/resnet18_mine/gan.csv"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if MAPS[2].key not in line) + "\n")
    with pytest.raises(UserError, match=re.escape(MAPS[2].key)):
        write_report(tmp_path)


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


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same report as a single file, away from its folder."""
    root = write_run(tmp_path_factory.mktemp("whole"), GAN, SECOND)
    return Path(shutil.copy(write_report(root, single_file=True), tmp_path_factory.mktemp("alone")))


@pytest.fixture(params=[(1280, False), (390, False), (390, True)], ids=["wide", "narrow", "single"])
def page(browser: Any, finished: Path, alone: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The report, opened from disk; any message on the console or request beyond files fails the test."""
    width, single_file = request.param
    complaints: list[str] = []
    opened = browser.new_page(viewport={"width": width, "height": 800})
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: (complaints.append("dialog"), dialog.dismiss()))
    opened.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    opened.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
    opened.goto((alone if single_file else finished / "report.html").as_uri())
    yield opened
    opened.wait_for_load_state("networkidle")
    opened.close()
    assert complaints == []


def column(page: Any, number: int) -> list[str]:
    return [str(text) for text in page.locator(f"tr.map > :nth-child({number})").all_inner_texts()]


def test_it_fits_the_window(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
    page.locator("tr.map button").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]


def test_all_pictures_load(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page.locator("tr.map button").first.click()
    page.evaluate("document.querySelectorAll('img').forEach((i) => { i.loading = 'eager'; })")
    page.evaluate("Promise.all(Array.from(document.images).map((i) => i.decode()))")
    # Three figures, a histogram and two pages of patches for each generator; then two patches, images, a histogram.
    assert page.evaluate("document.images.length") == 3 + 2 * 3 + 2 * 2 + 1


def test_sorting(page: Any) -> None:
    omega = page.get_by_role("button", name="ω in %")
    assert column(page, 1) == ["1", "2", "3"]
    omega.click()
    values = [float(text) for text in column(page, 3)]
    assert values == sorted(values, reverse=True)
    omega.click()
    assert column(page, 1) == ["3", "2", "1"]
    assert page.locator("th[aria-sort]").count() == 1
    assert page.locator("th[data-column=omega]").get_attribute("aria-sort") == "ascending"
    page.get_by_role("button", name="Feature map").click()
    assert column(page, 1) == ["2", "1", "3"]  # by depth
    page.get_by_role("button", name="p, adjusted").click()
    p_values = [float(text) for text in column(page, 4)]
    assert p_values == sorted(p_values)


def test_a_click_shows_patches_and_histogram(page: Any) -> None:
    second = page.locator("tr.map button").nth(1)
    second.click()
    detail = page.locator("tr.detail")
    assert detail.locator(".patches li").count() == 2
    assert second.get_attribute("aria-expanded") == "true"
    assert f"gan/1_fake/{HOSTILE}.png" in detail.inner_text()
    assert detail.locator("figure img").count() == 1
    assert "It looks at colour" in detail.inner_text()
    page.locator("tr.map button").nth(2).click()
    assert detail.count() == 1
    assert "does not show that it looks at colour" in detail.inner_text()
    page.locator("tr.map button").nth(2).click()
    assert detail.count() == 0


def test_keyboard_and_other_generator(page: Any) -> None:
    first = page.locator("tr.map button").first
    first.focus()
    page.keyboard.press("Enter")
    assert "on the fakes of gan" in page.locator("tr.detail").inner_text()
    assert page.locator("td.conditional").count() == 2
    page.get_by_label("Generator", exact=True).select_option(index=1)
    assert f"on the fakes of {OTHER}" in page.locator("tr.detail").inner_text()
    assert page.locator("tr.detail .patches li").count() == 2
    assert page.locator("td.conditional").count() == 1
    first.focus()
    page.keyboard.press("Enter")
    assert page.locator("tr.detail").count() == 0
