"""Zips and tars: what is in them is read, what they try is refused by its name, and nothing is ever written."""

from __future__ import annotations

import gzip
import io
import random
import shutil
import stat
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from llavamed.corpus import archives, unpacked
from llavamed.corpus.archives import Archive, SourceError


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def put_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for info, data in members:
            info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(("suffix", "mode"), [("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar", "w")])
def test_an_old_package_is_read_member_by_member(tmp_path: Path, suffix: str, mode: str) -> None:
    files = {"PMC7/a.nxml": b"<a/>", "PMC7/a.jpg": b"jpg", "PMC7/b.pdf": b"pdf"}
    path = put_tar(tmp_path / f"PMC7.{suffix}", [(member(name), data) for name, data in files.items()], mode)
    archive = Archive(path)
    assert archive.names == sorted(files)
    assert {name: archive.read(name, 1000) for name in files} == files
    assert archive.refused == []


@pytest.mark.parametrize("suffix", ["tar.gz", "tar"])
def test_a_large_tar_is_unpacked_once_however_many_members_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Counted in bytes: read in the tar's order it is unpacked a second time at most, backwards not often either."""
    monkeypatch.setattr(unpacked, "_BLOCK", 50_000)
    monkeypatch.setattr(unpacked, "_HELD", 150_000)
    rng = random.Random(0)
    files = {f"PMC{n:03d}/{kind}": rng.randbytes(4000) for n in range(100) for kind in ("a.xml", "a.jpg", "b.pdf")}
    whole = sum(map(len, files.values()))
    mode = "w:gz" if suffix == "tar.gz" else "w"
    archive = Archive(put_tar(tmp_path / f"a.{suffix}", [(member(name), data) for name, data in files.items()], mode))
    blocks: list[int] = []
    real = unpacked._Gzip._unpack
    monkeypatch.setattr(unpacked._Gzip, "_unpack", lambda self, n: blocks.append(n) or real(self, n))  # type: ignore[func-returns-value]
    for names in (files, reversed(files)):
        blocks.clear()
        assert {name: archive.read(name, 5000) for name in names} == files
        assert len(blocks) * 50_000 < 2 * whole
    with pytest.raises(SourceError) as caught:
        archive.read("PMC007/a.jpg", 3999)
    assert caught.value.reason == "too_large"


def test_of_one_name_twice_the_last_is_read_as_tar_unpacks_it(tmp_path: Path) -> None:
    archive = Archive(put_tar(tmp_path / "a.tar.gz", [(member("a.xml"), b"old"), (member("a.xml"), b"new")]))
    assert archive.read("a.xml", 100) == b"new"


def test_a_sparse_file_of_a_tar_has_its_empty_parts(tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("needs GNU tar")
    content = bytes(100_000) + b"middle" + bytes(300_000) + b"end"
    with (tmp_path / "a.xml").open("wb") as out:
        for at in (100_000, 400_006):
            out.seek(at)
            out.write(content[at : at + 6])
    for form in ("gnu", "posix"):
        made = subprocess.run(
            ["tar", "-C", tmp_path, "--sparse", f"--format={form}", "-czf", tmp_path / "a.tgz", "a.xml"]
        )
        assert made.returncode == 0
        assert Archive(tmp_path / "a.tgz").read("a.xml", 1_000_000) == content


def test_a_zip_of_windows_has_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        for name, data in {"PMC7\\PMC7.xml": b"<a/>", "PMC7\\g1.jpg": b"jpg", "PMC7\\empty\\": b""}.items():
            made.writestr(name, data)
    archive = Archive(tmp_path / "a.zip")
    assert archive.names == ["PMC7/PMC7.xml", "PMC7/g1.jpg"]
    assert archive.read("PMC7/g1.jpg", 10) == b"jpg"


def test_what_a_tar_tries_is_refused_by_name(tmp_path: Path) -> None:
    path = put_tar(
        tmp_path / "evil.tar.gz",
        [
            (member("good.xml"), b"<a/>"),
            (member("../../evil.xml"), b"x"),
            (member("/etc/evil"), b"x"),
            (member("C:/evil"), b"x"),
            (member("a/../../evil"), b"x"),
            (member("passwd.xml", tarfile.SYMTYPE, "/etc/passwd"), b""),
            (member("hard.xml", tarfile.LNKTYPE, "/etc/passwd"), b""),
            (member("zero.xml", tarfile.CHRTYPE), b""),
            (member("disk.xml", tarfile.BLKTYPE), b""),
            (member("pipe.xml", tarfile.FIFOTYPE), b""),
            (member("folder", tarfile.DIRTYPE), b""),
        ],
    )
    archive = Archive(path)
    assert archive.names == ["good.xml"]
    assert {r.name: r.reason for r in archive.refused} == {
        "../../evil.xml": "archive_path_out", "/etc/evil": "archive_path_out", "C:/evil": "archive_path_out",
        "a/../../evil": "archive_path_out", "passwd.xml": "archive_link", "hard.xml": "archive_link",
        "zero.xml": "archive_device", "disk.xml": "archive_device", "pipe.xml": "archive_device",
    }  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["evil.tar.gz"]


def test_what_a_zip_tries_is_refused_by_name(tmp_path: Path) -> None:
    kinds = {"link.xml": stat.S_IFLNK, "device.xml": stat.S_IFCHR, "pipe.xml": stat.S_IFIFO, "good.xml": stat.S_IFREG}
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        for name, kind in {**kinds, "../evil.xml": 0, "..\\evil2.xml": 0, "/abs.xml": 0, "../dir/": 0}.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind | 0o644) << 16
            archive.writestr(info, "/etc/passwd")
    found = Archive(tmp_path / "evil.zip")
    assert found.names == ["good.xml"]
    assert {r.name.replace("\\", "/"): r.reason for r in found.refused} == {
        "link.xml": "archive_link", "device.xml": "archive_device", "pipe.xml": "archive_device",
        "../evil.xml": "archive_path_out", "../evil2.xml": "archive_path_out", "/abs.xml": "archive_path_out",
        "../dir/": "archive_path_out",
    }  # fmt: skip


def test_a_name_that_is_good_once_and_bad_once_is_bad(tmp_path: Path) -> None:
    twice = [(member("a.xml"), b"<a/>"), (member("a.xml", tarfile.SYMTYPE, "/etc/passwd"), b"")]
    assert Archive(put_tar(tmp_path / "a.tar", twice, "w")).names == []


def test_bombs_are_refused_by_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.xml", bytes(70 * 2**20))
    head = member("a.xml", size=200 * 2**30).tobuf()
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(head + bytes(10_000)))
    with tarfile.open(tmp_path / "real.tar.gz", "w:gz", compresslevel=1) as tar:
        for name in ("a.xml", "b.xml"):
            tar.addfile(member(name, size=40 * 2**20), io.BytesIO(bytes(40 * 2**20)))
    for name in ("bomb.zip", "bomb.tar.gz", "real.tar.gz"):
        with pytest.raises(SourceError, match=name) as caught:
            Archive(tmp_path / name)
        assert caught.value.reason == "archive_bomb"


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 10)
    put_tar(tmp_path / "a.tar", [(member(str(n)), b"") for n in range(11)], "w")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for n in range(11):
            archive.writestr(str(n), "")
    for name in ("a.tar", "a.zip"):
        with pytest.raises(SourceError) as caught:
            Archive(tmp_path / name)
        assert caught.value.reason == "archive_too_many_files"


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.7])
def test_cut_archives_are_damaged(tmp_path: Path, kept: float) -> None:
    noise = bytes(range(256)) * 400
    data = put_tar(tmp_path / "a.tar.gz", [(member("a.xml"), noise), (member("b.xml"), noise)]).read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(data[: int(len(data) * kept)])
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04" + data)
    for name in ("a.tar.gz", "a.zip"):
        with pytest.raises(SourceError) as caught:
            Archive(tmp_path / name)
        assert caught.value.reason == "archive_damaged"
