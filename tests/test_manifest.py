"""A folder is complete or it has no manifest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llavamed import manifest
from llavamed.errors import InputError
from llavamed.manifest import Manifest


def test_a_written_folder_is_done_for_the_same_settings_and_inputs_only(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("x")
    Manifest("corpus", {"a": 1}, {"in": "abc"}).write(tmp_path)
    assert manifest.is_done(tmp_path, Manifest("corpus", {"a": 1}, {"elsewhere": "abc"}))
    assert not manifest.is_done(tmp_path, Manifest("corpus", {"a": 2}, {"in": "abc"}))
    assert not manifest.is_done(tmp_path, Manifest("corpus", {"a": 1}, {"in": "abd"}))
    assert not manifest.is_done(tmp_path / "absent", Manifest("corpus"))


def test_files_are_listed_with_their_hashes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "data.txt").write_text("x")
    Manifest("corpus").write(tmp_path)
    body = manifest.read(tmp_path)
    assert body is not None
    assert body["files"] == {"sub/data.txt": manifest.file_sha256(tmp_path / "sub" / "data.txt")}


def test_require_says_what_makes_the_folder(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match="run `llavamed corpus build`"):
            manifest.require(folder, "corpus", "run `llavamed corpus build`")
    Manifest("instruct").write(tmp_path)
    with pytest.raises(InputError, match="'instruct'"):
        manifest.require(tmp_path, "corpus", "run `llavamed corpus build`")


def test_a_damaged_manifest_is_told(tmp_path: Path) -> None:
    (tmp_path / manifest.NAME).write_text("{")
    with pytest.raises(InputError, match="damaged"):
        manifest.read(tmp_path)


def test_write_atomic_leaves_no_second_file(tmp_path: Path) -> None:
    manifest.write_atomic(tmp_path / "a.json", json.dumps([1]))
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_begin_makes_a_folder_unfinished_and_write_finishes_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    manifest.begin(folder, "corpus")
    assert manifest.read(folder) is None
    (folder / "data.txt").write_text("x")
    manifest.begin(folder, "corpus")  # a stage that was killed goes on in its own folder
    Manifest("corpus").write(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["data.txt", manifest.NAME]
    manifest.begin(folder, "corpus")
    assert manifest.read(folder) is None


@pytest.mark.parametrize("step", ["fsync", "rename", "remove"])
def test_begin_may_be_killed_at_any_step(tmp_path: Path, step: str) -> None:
    """Nothing is tidied up after a kill: what is left must not be taken for a stranger's folder."""
    code = f"""
import os, sys
sys.addaudithook(lambda event, args: os._exit(9) if event in ("os.rename", "os.remove") and "{step}" in event else None)
if "{step}" == "fsync":
    os.fsync = lambda handle: os._exit(9)
from pathlib import Path
from llavamed import manifest
manifest.begin(Path({str(tmp_path / "folder")!r}), "corpus", about="it")
"""
    folder = tmp_path / "folder"
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ended.returncode == 9, ended.stderr
    manifest.begin(folder, "corpus", about="it")
    assert [p.name for p in folder.iterdir()] == [manifest.UNFINISHED]
    assert manifest.read_marker(folder / manifest.UNFINISHED) == {"stage": "corpus", "about": "it"}


def test_begin_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    manifest.begin(tmp_path / "other", "instruct")
    for name, told in (("mine", "not made by llavamed"), ("file", "a file"), ("other", "'instruct'")):
        with pytest.raises(InputError, match=told):
            manifest.begin(tmp_path / name, "corpus")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_a_folder_whose_files_are_gone_is_not_done(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("x")
    Manifest("corpus").write(tmp_path)
    assert manifest.is_done(tmp_path, Manifest("corpus"))
    (tmp_path / "data.txt").unlink()
    assert not manifest.is_done(tmp_path, Manifest("corpus"))


@pytest.mark.parametrize("text", ["[]", "{}", '{"stage": "corpus"}'])
def test_a_strangers_manifest_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(InputError, match="not a manifest of llavamed"):
        manifest.read(tmp_path)


def test_exchanged_loose_files_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"12")
    before = manifest.files_fingerprint([tmp_path / "a.png"], tmp_path)
    (tmp_path / "a.png").write_bytes(b"123")
    assert manifest.files_fingerprint([tmp_path / "a.png"], tmp_path) != before
