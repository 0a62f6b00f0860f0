"""Files are whole whatever happens, torn lines cost themselves, locks die with their owner."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digit_study.support.files import (
    append_json_lines,
    drop_torn_line,
    file_lock,
    parse_json_lines,
    replacing,
    write_whole,
)

ROOT = Path(__file__).parents[1]


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_whole(path, b"old")
    with replacing(path) as new:
        new.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_whole(path, b"old")
    with pytest.raises(OSError, match="full"), replacing(path) as new:
        new.write_bytes(b"half of it")
        raise OSError("disk full")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_libraries_that_go_by_the_suffix_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "digits.npz"
    with replacing(path) as new:
        np.savez(new, x=np.arange(3))
    with np.load(path) as arrays:
        assert arrays["x"].tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@given(st.lists(st.dictionaries(st.text(), st.integers())), st.data())
def test_a_torn_line_costs_itself_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, int]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("lines") / "log.jsonl"
    append_json_lines(path, records)
    content = path.read_bytes()
    whole = content[: data.draw(st.integers(0, len(content)))]
    path.write_bytes(whole)
    append_json_lines(path, [{"after": 1}], sync=True)
    found = list(parse_json_lines(path.read_bytes().splitlines()))
    # a line that lost nothing but its newline is whole
    kept = [record for record in records if json.dumps(record).encode() in whole.split(b"\n")]
    assert found[-1] == {"after": 1}
    assert found[:-1] == records[: len(found) - 1]
    assert len(found) - 1 >= whole.count(b"\n") and len(kept) >= len(found) - 1


def test_text_and_bytes_are_parsed_alike() -> None:
    assert list(parse_json_lines(['{"a": 1}', '{"a": ', "", "2"])) == [{"a": 1}, 2]
    assert list(parse_json_lines([b'{"a": 1}', b'{"a": \xff', b"[]"])) == [{"a": 1}, []]


@pytest.mark.parametrize(
    ("content", "left"),
    [(b"", b""), (b"a\nb\n", b"a\nb\n"), (b"a\nb", b"a\n"), (b"a", b"")],
)
def test_what_follows_the_last_line_is_cut_off(content: bytes, left: bytes, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    with path.open("rb+") as file:
        drop_torn_line(file)
    assert path.read_bytes() == left


def test_a_lock_keeps_others_away_and_can_be_shared(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path) as is_held:
        assert is_held
        with file_lock(path, wait=False) as is_held_twice:
            assert not is_held_twice
        with file_lock(path, exclusive=False, wait=False) as is_shared:
            assert not is_shared
    with file_lock(path, exclusive=False), file_lock(path, exclusive=False, wait=False) as is_held:
        assert is_held
        with file_lock(path, wait=False) as is_exclusive:
            assert not is_exclusive


def test_a_lock_dies_with_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = "import sys, pathlib; from digit_study.support.files import file_lock\n"
    code += "with file_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); input()"
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None and owner.stdout.readline() == "held\n"
    with file_lock(path, wait=False) as is_held:
        assert not is_held
    owner.kill()
    owner.communicate()
    with file_lock(path, wait=False) as is_held:
        assert is_held
