"""Settings: the command line, a config file and Python are the same thing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from utils.errors import UserError
from utils.settings import flag, plain, plain_name, positive, read_settings


@dataclass(frozen=True)
class Reading:
    """Reading."""

    bsize: int = flag(16, "images in a batch", parse=positive)
    names: tuple[str, ...] = flag((), "names", parse=plain_name)
    weights: Path | None = flag(None, "checkpoint")
    skip: bool = flag(False, "leave out")
    kind: Literal["a", "b"] = flag("a", "which")
    level: float | None = flag(None, "a number")
    resume: bool = flag(False, "go on", recorded=False)


def read(*words: str) -> Reading:
    return read_settings("what", "how", Reading, argv=words)[0]


def test_defaults_are_those_of_the_dataclass() -> None:
    assert read() == Reading()


def test_words_become_values() -> None:
    settings = read("--bsize", "3", "--names", "x", "y", "--weights", "w.pth", "--skip", "--kind", "b", "--level", "2")
    assert settings == Reading(3, ("x", "y"), Path("w.pth"), True, "b", 2.0)


@pytest.mark.parametrize(("word", "value"), [("True", True), ("yes", True), ("0", False), ("No", False)])
def test_booleans_take_a_word(word: str, value: bool) -> None:
    assert read("--skip", word).skip is value


@pytest.mark.parametrize(
    "words",
    [("--bsize", "0"), ("--bsize", "x"), ("--names", "a/b"), ("--skip", "perhaps"), ("--kind", "c"), ("--nothing",)],
)
def test_a_bad_word_is_one_line(words: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*--(bsize|names|skip|kind|nothing)[^\n]*--help\)$"):
        read(*words)


def test_config_files_stand_below_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "flags.yaml"
    config.write_text("bsize: 5\nnames: [x, y]\nskip: true\nlevel: null\n")
    assert read("--config", str(config), "--bsize", "7") == Reading(7, ("x", "y"), skip=True)


def test_the_record_of_a_result_is_a_config(tmp_path: Path) -> None:
    settings = Reading(3, ("x",), Path("w.pth"), skip=True, kind="b", level=0.5, resume=True)
    record = tmp_path / "table.csv.json"
    record.write_text(json.dumps({"settings": plain(settings) | {"flag_of_another_step": 1}}))
    assert read("--config", str(record)) == Reading(3, ("x",), Path("w.pth"), skip=True, kind="b", level=0.5)


@pytest.mark.parametrize("text", ["bsize: 0", "unknown: 1", "- 1", "a: [", "names: a/b"])
def test_a_bad_config_names_the_file(tmp_path: Path, text: str) -> None:
    config = tmp_path / "flags.yaml"
    config.write_text(text)
    with pytest.raises(UserError, match=r"flags\.yaml"):
        read("--config", str(config))
    with pytest.raises(UserError, match=r"none\.yaml"):
        read("--config", str(tmp_path / "none.yaml"))


def test_an_instance_gives_the_defaults_of_a_script() -> None:
    assert read_settings("what", "how", Reading(bsize=2), argv=[])[0] == Reading(bsize=2)


def test_help_says_what_argparse_would(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        read("--help")
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "images in a batch (default: 16)" in text
    assert "None" not in text
    assert "how" in text
