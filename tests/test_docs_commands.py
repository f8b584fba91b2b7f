"""Every command on a page of documentation runs as it stands there, or says in one line which data it lacks."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ranking_runs import Run, Scripts

pytestmark = pytest.mark.usefixtures("loaded_once")

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md")))]
MINI, DEMO_DATA = "output/mini_forensynths", "output/demo/mini_forensynths"
# Records the words of every command instead of running it; variables, loops and comments are the shell's business.
PRELUDE = """
record() { printf '%s\\0' "$@" '' >&3; }
command_not_found_handle() { record "$@"; }
cd() { record cd "$@"; }
source() { record source "$@"; }
"""
# Why a command is not run here.
ELSEWHERE = {
    "make": "test_makefile_names_the_targets checks the target; tests/test_demo.py runs the demo",
    "source": "the shell's environment",
    "git": "needs a network",
    "pip": "needs a network; test_packaging checks what is declared",
    "tff": "tests/test_packaging.py",
    "docker": "needs a daemon",
    "cd": "the user's folder",
    "sha256sum": "not ours",
    "bash": "tests/test_scripts.py",
    "torchrun": "tests/test_distributed.py",
}
# What keeps a command short; argparse takes the last of two values.
FEW = "--num_instances 4"
SHORT = {
    "make_mini_forensynths": "--most_tiles 1 --tile 96",
    "rank_fmaps": f"{FEW} --figures False",
    "transfer_sensitivity_analysis": f"{FEW} --topk 2 --draws 1 --bootstrap 10",
    "get_max_activation_rankings": f"{FEW} --topk 2",
    "extract_max_activation_patches": "--topk 2 --num_instances 1",
    "patch_collage": "--topk 2 --num_instances 1",
    "grayscale_sensitivity_analysis": f"{FEW} --bootstrap 10",
    "grayscale_sensitivity_whisker_plots": f"{FEW} --bootstrap 10",
    "median_test_activation_histograms": f"{FEW} --topk 2",
    "find_color_conditional_percentage": "--topk 2",
    "find_topk": f"{FEW} --numbers 1 2 --draws 1 --bootstrap 10",
    "evaluate_detector": f"{FEW} --bootstrap 10",
    "reproduce": f"{FEW} --topk 2 --draws 1 --bootstrap 10 --patches 1 --pdf False",
}
# In the words of the README of the published code.
ORIGINAL = """
python src/rank_fmaps.py --arch resnet50 --blur_jpg 0.5 --bsize 16 --dataset_dir ForenSynths/ --gan_name progan_val --have_classes True --num_real 50 --num_fake 50 --save_pt_files False
python src/rank_fmaps.py --arch efb0 --blur_jpg 0.5 --bsize 16 --dataset_dir ForenSynths/ --gan_name progan_val --have_classes 1 --num_real 5 --num_fake 5 --save_pt_files False
python src/find_topk.py --arch resnet50 --blur_jpg 0.5 --bsize 16 --dataset_dir ForenSynths/ --gan_name progan_val --have_classes True --num_instances 50
python src/transfer_sensitivity_analysis.py --arch resnet50 --blur_jpg 0.5 --bsize 16 --dataset_dir ForenSynths/ --gan_name stylegan2 --topk 114 --num_instances 200
python src/transfer_sensitivity_analysis.py --arch efb0 --blur_jpg 0.5 --bsize 16 --dataset_dir ForenSynths/ --gan_name biggan --have_classes False --topk 27 --num_instances 200
python src/get_max_activation_rankings.py --arch resnet50 --blur_jpg 0.5 --bsize 16 --dataset_dir ForenSynths/ --gan_name stylegan2 --topk 114
python src/extract_max_activation_patches.py --arch resnet50 --blur_jpg 0.5 --bsize 16 --dataset_dir ForenSynths/ --gan_name stylegan2 --topk 114 --num_instances 5
python src/patch_collage.py --arch resnet50 --blur_jpg 0.5 --gan_name stylegan2 --topk 114 --num_instances 5
python src/grayscale_sensitivity_whisker_plots.py --arch resnet50 --blur_jpg 0.5 --bsize 16 --dataset_dir ForenSynths/ --gan_name stylegan2 --num_instances 200
python src/grayscale_sensitivity_analysis.py --arch efb0 --blur_jpg 0.5 --bsize 16 --dataset_dir ForenSynths/ --gan_name stylegan2
python src/median_test_activation_histograms.py --arch resnet50 --blur_jpg 0.5 --bsize 16 --dataset_dir ForenSynths/ --gan_name stylegan2 --topk 114 --num_instances 200
python src/find_color_conditional_percentage.py --arch resnet50 --blur_jpg 0.5 --bsize 16 --gan_name stylegan2 --topk 114
python src/ud_lrp.py --arch resnet50 --blur_jpg 0.5 --classifier ud
python src/ud_lrp_efb0.py --arch efb0 --blur_jpg 0.5 --classifier ud
python src/imagenet_lrp.py --arch resnet50 --classifier imagenet
python src/imagenet_lrp_efb0.py --arch efb0 --classifier imagenet
python src/gradcam.py --arch resnet50 --blur_jpg 0.5 --classifier ud
python src/gradcam.py --arch resnet50 --classifier imagenet
"""  # noqa: E501


def recorded(script: str, folder: Path) -> list[list[str]]:
    """The words of every command of a shell script, in order, as the shell would run them."""
    bash = shutil.which("bash")
    assert bash is not None
    log = folder / "commands"
    code = f"exec 3>{log}\n{PRELUDE}{script}\ntrue"
    answer = subprocess.run([bash, "-c", code], cwd=folder, env={"PATH": "/absent"}, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    return [command.split("\0") for command in log.read_text().removesuffix("\0\0").split("\0\0") if command]


def blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(?:sh|bash)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the project holds besides code: weights and rankings."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "weights").symlink_to(ROOT / "weights")
    shutil.copytree(ROOT / "fmap_relevances", folder / "fmap_relevances")
    return folder


def make_mini(workplace: Path, scripts: Scripts) -> Path:
    """A small mini-ForenSynths in its default place; made once."""
    if not (workplace / MINI).exists():
        made = scripts("make_mini_forensynths", *SHORT["make_mini_forensynths"].split())
        assert made.code == 0, made.err
        assert (workplace / MINI).is_dir()
    return workplace / MINI


def lacks_data(run: Run, words: list[str]) -> bool:
    """Whether the command was understood, and what is missing named in one line."""
    line = run.err.splitlines()[-1] if run.err else ""
    named = [part for word in words for part in re.split("[=:]", word) if len(part) > 4]
    return (
        run.code == 2
        and line.startswith("error: ")
        and "--help)" not in line
        and (any(part.rstrip("/") in line for part in named) or "weights" in line or "no images" in line)
    )


def is_script(words: list[str]) -> bool:
    return words[0] == "python" and words[1].startswith("src/")


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_docs(page: str, workplace: Path, scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published data and weights are absent here, so commands that need them have to say so; rankings are there."""
    monkeypatch.chdir(workplace)
    for words in recorded("\n".join(blocks(page)), workplace):
        if words[0] == "python" and words[1].startswith("benchmarks/"):
            assert (ROOT / words[1]).is_file()
            continue
        if not is_script(words):
            assert words[0] in ELSEWHERE, words
            continue
        name = Path(words[1]).stem
        makes_mini = name == "make_mini_forensynths" and "--photos" not in words
        if makes_mini:
            make_mini(workplace, scripts)
        run = scripts(name, *words[2:], *SHORT.get(name, "").split())
        needs_nothing = makes_mini or name == "compare_sources"
        assert run.code == 0 if needs_nothing else lacks_data(run, words), (words, run)


def test_commands_of_docs_on_what_the_demo_leaves(
    workplace: Path, scripts: Scripts, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The steps of the README one after the other, with its variables for the demo's images."""
    monkeypatch.chdir(workplace)
    (workplace / DEMO_DATA).parent.mkdir(parents=True)
    (workplace / DEMO_DATA).symlink_to(make_mini(workplace, scripts))
    script = "\n".join(block for block in blocks("README.md") if "ForenSynths/" not in block)
    commands = [words for words in recorded(script, workplace) if is_script(words)]
    used = [Path(words[1]).stem for words in commands]
    assert set(SHORT) - {"make_mini_forensynths", "grayscale_sensitivity_analysis"} <= set(used)
    for words, name in zip(commands, used, strict=True):
        run = scripts(name, *words[2:], *SHORT.get(name, "").split())
        assert run.code == 0, (words, run.err)
    # the Python of the pages, on the same
    shutil.copy(next((workplace / DEMO_DATA).glob("skip/1_fake/*.png")), workplace / "photo.png")
    for page, said in [("README.md", "tensor("), ("docs/tutorial.md", "baseline: AP ")]:
        (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.DOTALL)
        exec(compile(code, page, "exec"), {"__name__": "page"})
        assert said in capfd.readouterr().out


@pytest.mark.parametrize("command", ORIGINAL.strip().splitlines())
def test_original_commands_of_docs(
    command: str, scripts: Scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = command.split()
    run = scripts(Path(words[1]).stem, *words[2:])
    stands_in = "imagenet" in words and "efb0" in words  # ImageNet weights of EfficientNet-Lite0 are shipped
    assert run.code == 0 if stands_in else lacks_data(run, words), run


def test_makefile_names_the_targets_of_docs(tmp_path: Path) -> None:
    named = {words[1] for page in PAGES for words in recorded("\n".join(blocks(page)), tmp_path) if words[0] == "make"}
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert named <= set(phony.group(1).split())
    assert "demo" in named


def test_a_command_that_does_not_parse_is_noticed(scripts: Scripts) -> None:
    assert not lacks_data(scripts("rank_fmaps", "--no_such_flag", "weights"), ["weights"])


@pytest.mark.parametrize("page", PAGES)
def test_links_of_docs(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([\w./-]*)(?:#([\w-]+))?\)", text):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, f"{target}#{anchor}"
