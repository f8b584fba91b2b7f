import contextlib
import csv
import errno
import hashlib
import json
import math
import os
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from utils import files
from utils.errors import UserError
from utils.provenance import (
    Origin,
    is_current,
    read_record,
    record_path,
    refuse_other_weights,
    remove_with_record,
    write_record,
)
from utils.tables import ABSENT, markdown, percent, percent_range, read_rows, write_rows


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_half_way(error: BaseException, *targets: Path) -> None:
    with contextlib.ExitStack() as stack:
        for target in targets:
            stack.enter_context(files.atomic_path(target)).write_text("half")
        raise error


def test_atomic_path_replaces_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "table.csv"
    with files.atomic_path(target) as temporary:
        temporary.write_text("first")
        assert temporary.suffix == ".csv"
        assert not target.exists()
    with files.atomic_path(target) as temporary:
        temporary.write_text("second")
        assert target.read_text() == "first"
    assert target.read_text() == "second"
    assert names(target.parent) == ["table.csv"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_atomic_path_leaves_the_old_file_on_any_exception(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(error):
        fail_half_way(error(), target)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["table.csv"]


def test_files_written_together_are_replaced_together(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        fail_half_way(RuntimeError(), tmp_path / "a.csv", tmp_path / "a.csv.json")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permission denied"),
        (errno.EPERM, "permission denied"),
        (errno.EROFS, "read-only"),
    ],
)
def test_failing_writes_become_user_errors(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(UserError, match=f"table.csv.*{words}"):
        fail_half_way(OSError(number, os.strerror(number)), tmp_path / "table.csv")
    assert names(tmp_path) == []


def test_full_disk_in_earnest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    real_open = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **kwargs: real_open(Path("/dev/full"), *args, **kwargs))
    with pytest.raises(UserError, match=r"scores\.csv: the disk is full"):
        files.write_csv(tmp_path / "scores.csv", ["a"], [["b" * 100_000]])
    assert names(tmp_path) == []


def test_errors_about_other_files_are_not_blamed_on_the_target(tmp_path: Path) -> None:
    with pytest.raises(PermissionError):
        fail_half_way(PermissionError(errno.EACCES, "denied", "/elsewhere/image.png"), tmp_path / "table.csv")
    assert names(tmp_path) == []


def test_a_file_where_a_folder_should_be_and_the_reverse(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="not a folder"):
        files.write_text(tmp_path / "file" / "below" / "t.csv", "x")
    with pytest.raises(UserError, match="not a folder"):
        files.write_text(tmp_path / "file" / "t.csv", "x")
    with pytest.raises(UserError, match="this is a folder"):
        files.write_text(tmp_path / "folder", "x")
    assert names(tmp_path) == ["file", "folder"]


def test_unwritable_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(UserError, match="permission denied"):
        files.write_text(folder / "t.csv", "x")


def test_csv_keeps_floats_exactly(tmp_path: Path) -> None:
    values = [0.1, 1e-300, float(np.nextafter(1.0, 2.0)), np.float64(1 / 3), np.float32(0.1), 5]
    files.write_csv(tmp_path / "t.csv", ["name", "value"], [[f"n{i}", v] for i, v in enumerate(values)])
    data = (tmp_path / "t.csv").read_bytes()
    assert b"\r" not in data
    assert data.startswith(b"name,value\nn0,0.1\n")
    assert data.endswith(b"\n")
    rows = list(csv.reader((tmp_path / "t.csv").open(newline="")))[1:]
    assert [float(row[1]) for row in rows] == [float(value) for value in values]


def test_csv_keeps_odd_names(tmp_path: Path) -> None:
    odd = ["a,b", 'quote"', "line\nbreak", "é", os.fsdecode(b"\xff.png")]
    files.write_csv(tmp_path / "t.csv", ["name"], [[name] for name in odd])
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert [row[0] for row in csv.reader(file)] == ["name", *odd]


def test_json_is_stable_and_plain(tmp_path: Path) -> None:
    record = {
        "b": np.float32(0.5),
        "a": [np.int64(3), Path("x/y"), float("nan")],
        "c": np.arange(2),
        "d": {2, 1},
    }
    files.write_json(tmp_path / "a.json", record)
    files.write_json(tmp_path / "b.json", dict(reversed(record.items())))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "a": [3, "x/y", None],
        "b": 0.5,
        "c": [0, 1],
        "d": [1, 2],
    }


def test_npz_round_trip_and_bytes(tmp_path: Path) -> None:
    arrays = {
        "relevance": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4),
        "names": np.array(["a", "bc"]),
        "count": np.int64(7),
        "empty": np.zeros((0, 3)),
    }
    files.write_npz(tmp_path / "a.npz", **arrays)
    files.write_npz(tmp_path / "b.npz", **arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    ours = files.read_npz(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as theirs:
        assert list(ours) == list(theirs) == list(arrays)
        for name, array in arrays.items():
            for read in (ours[name], theirs[name]):
                assert read.dtype == np.asarray(array).dtype
                np.testing.assert_array_equal(read, array)


def test_npz_written_by_numpy_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(5))
    np.testing.assert_array_equal(files.read_npz(tmp_path / "a.npz")["x"], np.arange(5))


def test_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    with pytest.raises(UserError, match="no such file"):
        files.read_npz(path)
    files.write_npz(path, x=np.arange(1000))
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    for damaged in (b"", b"text", data[: len(data) // 2], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"state\.npz is damaged"):
            files.read_npz(path)


def test_npz_with_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "objects.npz"
    np.savez(path, x=np.array([{}, None], dtype=object))
    with pytest.raises(UserError, match=r"objects\.npz"):
        files.read_npz(path)
    with pytest.raises(ValueError):
        files.write_npz(tmp_path / "out.npz", x=np.array([{}], dtype=object))
    assert names(tmp_path) == ["objects.npz"]


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a\nb\n")
    expected = hashlib.sha256(b"a\nb\n").hexdigest()
    assert files.sha256_file(tmp_path / "x") == files.sha256_text(["a", "b"]) == expected
    assert files.sha256_text(["ab"]) != files.sha256_text(["a", "b"])
    with pytest.raises(UserError, match="nothing"):
        files.sha256_file(tmp_path / "nothing")


ORIGIN = Origin(3, {"weights": "ab", "images": "cd"}, {"topk": 4, "crop": None, "level": np.float32(0.5)})


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table and its record."""
    script = files.PROJECT_ROOT / "src" / "rank_fmaps.py"
    monkeypatch.setattr("sys.argv", [str(script), "--bsize", "4", "--resume", "True"])
    path = tmp_path / "scores.csv"
    files.write_csv(path, ["a"], [[1]])
    write_record([path], ORIGIN, settings={"bsize": 4}, seed=3, device="cpu", counts={"real": 2})
    return path


def test_a_record_says_how_a_table_was_made(table: Path) -> None:
    record = read_record(table)
    # A resumed run leaves the same record as one that was not interrupted.
    assert record["command"] == ["src/rank_fmaps.py", "--bsize", "4"]
    assert (record["seed"], record["device"], record["counts"]) == (3, "cpu", {"real": 2})
    assert (record["inputs"], record["settings"], record["computation"]) == (ORIGIN.inputs, {"bsize": 4}, 3)
    assert record["sha256"] == files.sha256_file(table)
    assert record["versions"]["numpy"] == np.__version__
    assert {"python", "torch", "torchvision", "pillow"} <= set(record["versions"])
    before = record_path(table).read_bytes()
    write_record([table], ORIGIN, settings={"bsize": 4}, seed=3, device="cpu", counts={"real": 2})
    assert record_path(table).read_bytes() == before


def test_a_table_is_current_until_anything_changes(table: Path) -> None:
    assert is_current([table], ORIGIN)
    others = [
        replace(ORIGIN, computation=4),
        replace(ORIGIN, inputs={"weights": "ab"}),
        replace(ORIGIN, inputs={**ORIGIN.inputs, "images": "ce"}),
        replace(ORIGIN, facts={**ORIGIN.facts, "topk": 5}),
        replace(ORIGIN, facts={**ORIGIN.facts, "new": True}),
    ]
    assert [is_current([table], other) for other in others] == [False] * len(others)
    assert len({origin.digest() for origin in (ORIGIN, *others)}) == 6
    assert not is_current([], ORIGIN)
    assert not is_current([table, table.with_name("absent.csv")], ORIGIN)
    content = table.read_bytes()
    table.write_bytes(content + b"2\n")
    assert not is_current([table], ORIGIN)
    table.write_bytes(content)
    assert is_current([table], ORIGIN)
    record_path(table).write_text("[]")
    assert not is_current([table], ORIGIN)


def test_another_checkpoint_is_refused_where_its_table_is_there(table: Path) -> None:
    refuse_other_weights([table, table.with_name("absent.csv")], "ab")
    with pytest.raises(UserError, match=r"scores\.csv was made with another checkpoint.*--blur_jpg"):
        refuse_other_weights([table], "ac")
    remove_with_record(table)
    assert names(table.parent) == []
    refuse_other_weights([table], "ac")


@dataclass(frozen=True)
class Row:
    name: str
    count: int
    share: float
    bound: float | None = None
    seen: bool = True


ROWS = [Row("a,b", 3, 1 / 3, 0.1), Row(os.fsdecode(b"\xff.png"), 0, math.nan), Row("", -1, 1e-300, None, False)]


def test_rows_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write_rows(path, ROWS)
    read = read_rows(path, Row, made_by="python src/x.py")
    assert read[::2] == ROWS[::2]
    assert math.isnan(read[1].share)
    assert replace(read[1], share=0.0) == replace(ROWS[1], share=0.0)
    write_rows(path, [], Row)
    assert read_rows(path, Row, made_by="python src/x.py") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "make it with python src/x.py"),
        ("", "damaged or not a table"),
        ("name,count,share,bound\n", "lacks the column seen"),
        ("name,count,share,bound,seen\na,1,2,,True\na,many,2,,True\n", "line 3: .*many"),
        ("name,count,share,bound,seen\na,1,2\n", "line 2: not as many cells"),
        ('name,count,share,bound,seen\n"a', "damaged or not a table"),
    ],
)
def test_a_bad_table_names_the_file_and_what_makes_it(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "rows.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=rf"rows\.csv.*{words}") as caught:
        read_rows(path, Row, made_by="python src/x.py")
    assert "python src/x.py" in str(caught.value)


def test_markdown_and_percent() -> None:
    assert markdown(("a", "b"), [("x|y", "1")]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |"
    assert [percent(value) for value in (0.1234, 1.0, None, math.nan)] == ["12.3", "100.0", ABSENT, ABSENT]
    assert [percent_range(0.1, 0.2), percent_range(None, 0.2), percent_range(0.1, math.nan)] == ["[10.0, 20.0]", "", ""]


@pytest.mark.parametrize("parts", [("..", "x"), ("a/../../x",), ("/etc/passwd",), ("link", "x"), ("a\0b",)])
def test_safe_join_refuses_to_leave(tmp_path: Path, parts: tuple[str, ...]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="leads out of"):
        files.safe_join(root, *parts)


def test_safe_join_stays_inside(tmp_path: Path) -> None:
    assert files.safe_join(tmp_path, "a", "b.c/d..e") == tmp_path / "a" / "b.c" / "d..e"


@pytest.mark.parametrize("text", ["layer4.2.conv3.#3(T=64)", "photo 1.png", "Ünï", "a" * 200])
def test_harmless_names_stay(text: str) -> None:
    assert files.safe_name(text) == text


@pytest.mark.parametrize("text", ["", ".", "..", "../x", "/etc", "a\nb", "a\0b", "-rf", ".hidden", "é" * 300, "\udcff"])
def test_harmful_names_are_made_harmless(text: str, tmp_path: Path) -> None:
    name = files.safe_name(text)
    assert files.is_plain_name(name)
    assert name[0] not in ".-"
    assert name.isprintable()
    (tmp_path / name).write_text("x")
    assert names(tmp_path) == [name]


def test_different_texts_get_different_names() -> None:
    texts = ["a/b", "a_b", "a:b", "a\\b", "x" * 300, "x" * 301]
    assert len({files.safe_name(text) for text in texts}) == len(texts)
