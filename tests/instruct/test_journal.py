"""Answers that survive the process that asked for them."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from llavamed.errors import InputError
from llavamed.instruct.journal import Journal

ONE, TWO = "0" * 15 + "1", "f" * 16


def test_an_answer_is_known_to_the_next_process_and_only_to_the_same_request(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as first:
        assert first.answer(ONE) is None
        first.keep(ONE, "k", "größer\nals", (100, 10))
        assert first.answer(ONE) == "größer\nals"
    with Journal(path) as second:
        assert ONE in second
        assert second.answer(ONE) == "größer\nals"
        assert second.answer(TWO) is None
        second.keep(TWO, "k", "x", (5, 1))
        assert [second.answer(name) for name in (TWO, ONE)] == ["x", "größer\nals"]
        assert second.tokens == [105, 11]


def test_a_lost_call_costs_and_is_no_answer(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.lose(ONE, "k", "the stream was cut", (100, 3))
    with Journal(tmp_path / "j", writable=False) as again:
        assert (again.answer(ONE), again.tokens, again.lost, len(again)) == (None, [100, 3], 1, 0)


@pytest.mark.parametrize("cut", [2, 5, 40])
def test_a_cut_last_line_is_dropped_and_writing_goes_on(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        for name in (ONE, TWO):
            journal.keep(name, "k", f"answer {name}")
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path, writable=False) as reader:  # a dry run leaves the file as it is
        assert reader.answer(ONE) == f"answer {ONE}"
    with Journal(path) as again:
        assert (again.answer(ONE), again.answer(TWO)) == (f"answer {ONE}", None)
        again.keep(TWO, "k", "second")
    with Journal(path) as last:
        assert [last.answer(name) for name in (ONE, TWO)] == [f"answer {ONE}", "second"]


@pytest.mark.parametrize("line", ['{"other": 1}', "[1]", '{"request": "zz", "answer": "x"}', '{"request": "1"}', "x"])
def test_another_file_by_that_name_is_an_input_error_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.keep(ONE, "k", "answer")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=r"journal\.jsonl:2: not a line of a journal"):
        Journal(path)


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    code = f"from pathlib import Path; from llavamed.instruct.journal import Journal; Journal(Path({str(path)!r}))"
    with Journal(path):
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "another process is writing it" in found.stderr
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_where_files_cannot_be_locked_it_is_said_and_the_journal_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with Journal(tmp_path / "j") as journal:
        journal.keep(ONE, "k", "answer")
    assert "let no second process write it" in capsys.readouterr().err
    with Journal(tmp_path / "j", writable=False) as again:
        assert again.answer(ONE) == "answer"


def test_only_places_are_kept_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    with Journal(tmp_path / "j") as journal:
        tracemalloc.start()
        for number in range(5000):
            journal.keep(f"{number:016x}", "k", "x" * 2000)
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert used < 5000 * 250


def test_a_full_disk_is_one_line_and_leaves_no_half_one(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        journal.keep(ONE, "k", "answer")
        before = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # as on a full disk, half of the line still finds room
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 60, limits[1]))
        try:
            with pytest.raises(InputError, match=r"cannot be written .*make room and run again"):
                journal.keep(TWO, "k", "x" * 100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before
        journal.keep(TWO, "k", "x" * 100)
    with Journal(path, writable=False) as again:
        assert [again.answer(name) for name in (ONE, TWO)] == ["answer", "x" * 100]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        for name in (ONE, TWO):
            journal.keep(name, "k", f"answer {name}", (5, 1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])  # as an editor may leave it
    with Journal(path, writable=False) as reader:
        assert (reader.answer(TWO), reader.tokens) == (f"answer {TWO}", [10, 2])
    assert path.read_bytes() == whole[:-1]
    with Journal(path) as again:
        assert again.answer(TWO) == f"answer {TWO}"
        again.keep("2", "k", "third")
        assert again.answer("2") == "third"
    assert path.read_bytes().startswith(whole)
    with Journal(path) as last:
        assert len(last) == 3


def test_what_is_written_over_a_cut_line_is_read_as_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.keep(ONE, "k", "first")
    path.write_bytes(path.read_bytes() * 2)
    path.write_bytes(path.read_bytes()[:-20])
    with Journal(path) as again:
        again.keep(TWO, "k", "second")
        assert [again.answer(name) for name in (ONE, TWO)] == ["first", "second"]


def _reads() -> int:
    """System calls of this process that read."""
    (line,) = [line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("syscr")]
    return int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts the system's reads, which Linux tells")
def test_a_journal_is_not_read_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        for number in range(300):
            journal.keep(f"{number:016x}", "k", "x" * 1000)
    before = _reads()
    with Journal(path) as journal:
        opened = _reads() - before
        assert all(journal.answer(f"{number:016x}") for number in range(299, -1, -1))
        answered = _reads() - before - opened
    size = path.stat().st_size
    assert size > 300_000
    assert opened < size / 1000
    assert answered < 3 * 300
