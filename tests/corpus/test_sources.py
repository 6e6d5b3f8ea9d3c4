"""Finding articles and their images: layouts, zips, and what must not be reached."""

from __future__ import annotations

import json
import os
import tracemalloc
import unicodedata
import zipfile
from pathlib import Path

import pytest

from llavamed.corpus import neighbours, sources
from llavamed.corpus.archives import SourceError
from llavamed.corpus.sources import Listing, Package, Problem, Source, scan
from llavamed.errors import InputError


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def opened(listing: Listing) -> tuple[list[Source], list[Problem]]:
    """All articles, the archives' too, and all problems."""
    found: list[Source] = []
    problems = list(listing.problems)
    for entry in listing.entries:
        inside, wrong = entry.open() if isinstance(entry, Package) else ([entry], [])
        found += inside
        problems += wrong
    return found, problems


def put_zip(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_bucket_layout_with_metadata_and_only_the_latest_version(tmp_path: Path) -> None:
    files = {f"PMC7.{v}/PMC7.{v}.{kind}": b"{}" for v in (1, 2, 10) for kind in ("xml", "json")}
    files["PMC7.10/supplement.xml"] = b"<x/>"
    files["PMC7.10/PMC7.10.json"] = json.dumps({"license_code": "CC BY"}).encode()
    articles, problems = opened(scan(put(tmp_path, files)))
    assert [s.name for s in articles] == ["PMC7.10"]
    assert articles[0].metadata() == {"license_code": "CC BY"}
    assert [p.reason for p in problems] == ["superseded", "superseded"]


def test_metadata_that_is_absent_or_no_object_is_none_and_damaged_metadata_is_an_error(tmp_path: Path) -> None:
    files = {"a.xml": b"", "b.xml": b"", "b.json": b'{"is_retracted": true', "c.nxml": b"", "c.json": b"[1]"}
    files |= {"d.xml": b"", "d.json": b"[" * 100_000, "e.xml": b"", "e.json": b"\xff\xfe\xff"}
    a, b, c, d, e = opened(scan(put(tmp_path, files)))[0]
    assert [a.metadata(), c.metadata()] == [None, None]
    for damaged in (b, d, e):
        with pytest.raises(SourceError, match=r"\.json\) is no JSON") as caught:
            damaged.metadata()
        assert caught.value.reason == "metadata_damaged"


def test_a_mirror_gives_what_was_fetched_whole(tmp_path: Path) -> None:
    """Two were fetched, one failed, one was being fetched when the run was killed, one is known to the journal alone,
    one is being replaced; and somebody's own article stands beside them."""
    names = [f"PMC{n}.1" for n in range(1, 7)]
    files = {f"{name}/{name}.{kind}": b"{}" for name in names for kind in ("xml", "json")}
    files["PMC4.2/PMC4.2.xml"] = b""
    files["own/mine.xml"] = b""
    rows = [{"article": name, "state": "fetched"} for name in ("PMC1.1", "PMC2.1", "PMC3.1", "PMC4.1")]
    rows.append({"article": "PMC5.1", "state": "failed_wrong_md5"})
    journal: list[dict[str, object]] = [
        {"settings": "x"},
        {"pmcid": 6, "rows": [{"article": "PMC6.1", "state": "fetched"}]},
    ]
    journal.append({"pmcid": 2, "rows": [{"article": "PMC2.1", "state": "retracted"}]})
    files["articles.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    files["journal.jsonl"] = "".join(json.dumps(row) + "\n" for row in journal).encode() + b'{"pmcid": 3, "ro'
    root = put(tmp_path, files)
    (root / "PMC3.1/PMC3.1.json").unlink()
    assert len(opened(scan(root))[0]) == 7  # no mirror yet: whatever is there
    (root / "unfinished.json").write_text(json.dumps({"stage": "fetch"}))
    found, problems = opened(scan(root))
    assert [source.name for source in found] == ["PMC1.1", "PMC4.1", "PMC6.1", "mine"]
    assert {p.where.partition("/")[0]: p.reason for p in problems} == dict.fromkeys(
        ("PMC2.1", "PMC3.1", "PMC4.2", "PMC5.1"), "not_fetched"
    )
    (root / "unfinished.json").rename(root / "manifest.json")
    (root / "journal.jsonl").unlink()
    assert [source.name for source in opened(scan(root))[0]] == ["PMC1.1", "PMC2.1", "PMC4.1", "mine"]
    (root / "articles.jsonl").write_text("no JSON\n")
    with pytest.raises(InputError, match=r"articles\.jsonl: damaged"):
        scan(root)


def test_a_picture_in_another_format_is_said_to_be_there(tmp_path: Path) -> None:
    files = {
        "a.xml": b"",
        "s.svg": b"<svg/>",
        "e.EPS": b"%!PS",
        "both.pdf": b"%PDF",
        "both.png": b"png",
        "plain": b"jpg",
    }
    source = opened(scan(put(tmp_path, files)))[0][0]
    for href in ("s", "s.svg", "e.tif", "fig/e.eps"):
        with pytest.raises(SourceError, match="save it as PNG or JPEG") as caught:
            source.image(href)
        assert caught.value.reason == "image_format"
    assert (source.image("both.pdf"), source.image("plain"), source.image("plain.jpg")) == (b"png", b"jpg", b"jpg")
    assert source.image("a") is None  # the article itself


def test_accents_are_the_same_however_they_are_written(tmp_path: Path) -> None:
    apart, one = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFD", "NFC"))
    source = opened(scan(put(tmp_path, {"a.xml": b"", f"{apart}1.jpg": b"1", f"{one}2.jpg": b"2"})))[0][0]
    assert [source.image(href) for href in (f"{one}1", f"{apart}1.JPG", f"{one}2", f"{apart}2")] == [
        b"1",
        b"1",
        b"2",
        b"2",
    ]


def test_a_zip_of_windows_is_an_article_with_its_images(tmp_path: Path) -> None:
    path = put_zip(tmp_path / "w.zip", {"PMC7\\PMC7.xml": b"<a/>", "PMC7\\fig\\g1.jpg": b"jpg"})
    (source,), problems = opened(scan(path))
    assert (source.where, source.image("g1"), problems) == ("w.zip!PMC7/PMC7.xml", b"jpg", [])


def test_packages_that_are_not_looked_into_are_counted(tmp_path: Path) -> None:
    inner = put_zip(tmp_path / "inner.zip", {"b.xml": b""}).read_bytes()
    names = ("b.xml.gz", "c.tar.xz", "d.7z", "e.RAR", "data.csv.gz", "scan.nii.gz")
    put(tmp_path / "in", dict.fromkeys(("a.xml", *names), b"packed"))
    put_zip(tmp_path / "in/f.zip", {"f.xml": b"", "inner.zip": inner, "sub/x.tar.gz": b"", "data.csv.gz": b""})
    found, problems = opened(scan(tmp_path / "in"))
    assert [source.name for source in found] == ["a", "f"]
    assert {p.where: p.reason for p in problems} == {
        **dict.fromkeys(names[:4], "archive_unknown"),
        "f.zip!inner.zip": "nested_archive",
        "f.zip!sub/x.tar.gz": "nested_archive",
    }


@pytest.mark.parametrize(
    ("href", "found"),
    [
        ("img1", b"jpg"), ("img1.tif", b"jpg"), ("IMG1.JPG", b"jpg"), ("img2", b"gif"), ("img3.png", b"tif"),
        ("https://example.org/files/img1.gif?size=2", b"jpg"), ("info:doi/10.1371/journal.pone.0070598.g001", b"dots"),
        ("img4", b"below"), ("other", None), ("img", None), ("../secret", None), ("/etc/hostname", None), ("", None),
        ("text", None),
    ],
)  # fmt: skip
def test_an_image_is_found_by_its_stem(tmp_path: Path, href: str, found: bytes | None) -> None:
    root = put(
        tmp_path,
        {
            "secret.jpg": b"secret", "a/article.xml": b"", "a/Img1.jpg": b"jpg", "a/img1.gif": b"small",
            "a/img1.png": b"png", "a/img2.GIF": b"gif", "a/img3.tif": b"tif",
            "a/journal.pone.0070598.g001.png": b"dots", "a/text.txt": b"no", "a/figures/img4.jpeg": b"below",
            "a/b/article.xml": b"", "a/b/other.jpg": b"another article's",
        },
    )  # fmt: skip
    source = next(s for s in opened(scan(root))[0] if s.where == "a/article.xml")
    assert source.image(href) == found


def test_zips_are_read_in_place_beside_folders_and_alone(tmp_path: Path) -> None:
    put(tmp_path, {"in/one.xml": b"<a/>", "in/one.jpg": b"1"})
    package = {"sub/two.xml": b"<b/>", "sub/two.jpg": b"2", "__MACOSX/sub/._two.xml": b"junk", "sub/._x.xml": b"junk"}
    path = put_zip(tmp_path / "in/packages/p.zip", package)
    assert [s.where for s in opened(scan(tmp_path / "in"))[0]] == ["one.xml", "packages/p.zip!sub/two.xml"]
    alone, _ = opened(scan(path))
    assert [(s.name, s.xml(), s.image("two")) for s in alone] == [("two", b"<b/>", b"2")]
    assert sorted(p.name for p in (tmp_path / "in/packages").iterdir()) == ["p.zip"]


def test_zip_members_that_lead_out_are_ignored(tmp_path: Path) -> None:
    names = ["../evil.xml", "/abs.xml", "a/../../b.xml", "..\\win.xml", "good.xml"]
    found = scan(put_zip(tmp_path / "p.zip", dict.fromkeys(names, b"<a/>")))
    articles, problems = opened(found)
    assert [s.name for s in articles] == ["good"]
    assert [p.reason for p in problems] == ["archive_path_out"] * 4


def test_a_zip_member_is_cut_off_at_the_cap_whatever_its_header_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_XML_BYTES", 1000)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.xml", b"0" * 10_000_000)
    with pytest.raises(SourceError) as caught:
        opened(scan(path))[0][0].xml()
    assert caught.value.reason == "too_large"


def test_a_damaged_zip_is_a_problem_and_a_damaged_member_an_error(tmp_path: Path) -> None:
    put(tmp_path, {"a.xml": b"", "broken.zip": b"PK not a zip"})
    path = put_zip(tmp_path / "member.zip", {"b.xml": b"<b>" + b"x" * 100})
    path.write_bytes(path.read_bytes().replace(b"xxx", b"yyy"))
    found, problems = opened(scan(tmp_path))
    assert [p.reason for p in problems] == ["archive_damaged"]
    with pytest.raises(SourceError) as caught:
        found[1].xml()
    assert caught.value.reason == "archive_damaged"


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path, {"secret.jpg": b"secret", "in/a.xml": b"", "in/real.jpg": b"real"})
    os.symlink(tmp_path / "secret.jpg", tmp_path / "in/outside.jpg")
    os.symlink(tmp_path / "in/real.jpg", tmp_path / "in/inside.jpg")
    source = opened(scan(tmp_path / "in"))[0][0]
    assert source.image("outside") is None
    assert source.image("inside") == b"real"


def test_what_is_passed_over_is_a_problem_with_its_reason(tmp_path: Path) -> None:
    put(tmp_path, {"in/a.xml": b"<a/>", "out/secret.xml": b"<a/>", "in/PMC5.1/article.xml": b"<a/>"})
    put_zip(tmp_path / "in/tables.zip", {"data.csv": b"1,2"})
    put_zip(tmp_path / "in/bucket.zip", {"PMC6.2/other.xml": b"<a/>", "PMC6.2/more.nxml": b"<a/>"})
    os.symlink(tmp_path / "nowhere.xml", tmp_path / "in/dangling.xml")
    os.symlink(tmp_path / "in/circle.xml", tmp_path / "in/circle.xml")
    os.symlink(tmp_path / "out/secret.xml", tmp_path / "in/outside.xml")
    os.symlink(tmp_path / "out", tmp_path / "in/folder")
    os.mkfifo(tmp_path / "in/pipe.xml")
    found, problems = opened(scan(tmp_path / "in"))
    assert [s.where for s in found] == ["a.xml"]
    assert {p.where: p.reason for p in problems} == {
        "dangling.xml": "no_file", "circle.xml": "no_file", "pipe.xml": "no_file", "outside.xml": "link_leads_out",
        "folder": "linked_folder", "tables.zip": "archive_without_article", "PMC5.1": "bucket_without_article",
        "bucket.zip!PMC6.2": "bucket_without_article",
    }  # fmt: skip
    assert all(p.message.startswith(p.where) for p in problems)


def test_names_that_are_not_utf8_are_read_and_can_be_written_down(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.xml")).write_bytes(b"<a/>")
    source = opened(scan(tmp_path))[0][0]
    assert source.xml() == b"<a/>"
    assert source.where.encode() == "caf\ufffd.xml".encode()


def test_many_zips_need_few_open_files(tmp_path: Path) -> None:
    for number in range(30):
        put_zip(tmp_path / f"{number:02d}.zip", {"a.xml": b"<a/>", "a.jpg": b"%d" % number})
    found, _ = opened(scan(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    assert [(s.xml(), s.image("a")) for s in found] == [(b"<a/>", b"%d" % n) for n in range(30)]
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_zip_that_vanished_is_an_error_of_its_articles(tmp_path: Path) -> None:
    source = opened(scan(put_zip(tmp_path / "p.zip", {"a.xml": b"<a/>"})))[0][0]
    (tmp_path / "p.zip").unlink()
    with pytest.raises(SourceError) as caught:
        source.xml()
    assert caught.value.reason == "archive_damaged"


def test_only_folders_below_are_near_and_not_those_whose_names_begin_alike(tmp_path: Path) -> None:
    files = [
        "a/x.xml",
        "a/fig/one.jpg",
        "a/z/deep/two.jpg",
        "a-b/three.jpg",
        "a.b/four.jpg",
        "ab/five.jpg",
        "b/six.jpg",
    ]
    source = opened(scan(put(tmp_path, dict.fromkeys(files, b"yes"))))[0][0]
    hrefs = ("one", "two", "three", "four", "five", "six")
    assert [source.image(href) for href in hrefs] == [b"yes", b"yes", None, None, None, None]


@pytest.mark.parametrize("files", [{}, {"notes.txt": b"no article"}])
def test_a_folder_without_articles_says_what_was_expected(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match=r"no article in it; expected a folder of JATS articles"):
        scan(put(tmp_path, files))


def test_a_listing_keeps_less_than_a_kilobyte_an_article(tmp_path: Path) -> None:
    """Of articles with seven files each, also in a mirror, which looks for the metadata of all."""
    names = [f"PMC{1_000_000 + number}.1" for number in range(400)]
    for name in names:
        put(tmp_path / name, {f"{name}.xml": b"<article/>", f"{name}.json": b"{}"})
        for figure in range(5):
            (tmp_path / name / f"journal.{name}.g00{figure}.jpg").touch()
    rows = "".join(json.dumps({"article": name, "state": "fetched"}) + "\n" for name in names)
    put(tmp_path, {"articles.jsonl": rows.encode(), "unfinished.json": b'{"stage": "fetch"}'})
    scan(tmp_path)  # whatever is made once
    tracemalloc.start()
    listing = scan(tmp_path)
    neighbours._in_use.cache_clear()
    taken = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, "*pathlib*")])
    tracemalloc.stop()
    assert len(listing.entries) == 400
    assert not listing.problems
    assert sum(trace.size for trace in taken.traces) < 1000 * 400


def test_a_missing_path_and_a_wrong_file_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        scan(tmp_path / "absent")
    put(tmp_path, {"a.pdf": b""})
    with pytest.raises(InputError, match=r"neither a folder nor one of \.zip"):
        scan(tmp_path / "a.pdf")


def test_the_fingerprint_changes_with_content_and_name_and_not_with_time(tmp_path: Path) -> None:
    root = put(tmp_path, {"a.xml": b"1", "a.jpg": b"2"})
    before = scan(root).fingerprint
    os.utime(root / "a.jpg", (1, 1))
    assert scan(root).fingerprint == before
    (root / "a.jpg").write_bytes(b"3")
    changed = scan(root).fingerprint
    (root / "a.jpg").rename(root / "b.jpg")
    assert len({before, changed, scan(root).fingerprint}) == 3


def test_real_packages_list_their_six_articles_and_find_their_images(shared_data: Path) -> None:
    found, _ = opened(scan(shared_data / "jats_packages"))
    assert len(found) == 6
    by_name = {s.name: s for s in found}
    assert by_name["2236-8906-hoehnea-49-e1112020"].image("2236-8906-hoehnea-49-e1112020-gf1.jpg")
    assert by_name["2318-0889-tinf-33-e200039"].image("2318-0889-tinf-33-e200039-gf01.tif")
