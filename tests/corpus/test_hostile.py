"""A folder of hostile files through the whole build: each refused by name, in little memory, nothing written outside.

The kinds one by one are in `test_safe_xml`, `test_archives` and `test_polyglot`; here all of them stand beside one good
article, in a process of its own whose memory is measured.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llavamed.corpus.jats import parse_article
from llavamed.corpus.store import Corpus

ROOT = Path(__file__).parents[2]
CAPTION = "Axial CT of the liver"
RUN = (
    "import json\n"
    "from pathlib import Path\n"
    "from llavamed.corpus.build import build\n"
    "made = build(Path('in'), Path('out'))\n"
    "status = Path('/proc/self/status').read_text().split()\n"  # getrusage would count the parent's memory too
    "peak = int(status[status.index('VmHWM:') + 1]) * 1024\n"
    "print(json.dumps({'funnel': made.funnel, 'counts': made.counts, 'peak': peak}))"
)


def jpeg() -> bytes:
    out = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save(out, "JPEG")
    return out.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header says so; its pixels, all black, unfold to gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(2**20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def article(*hrefs: str, head: str = "", attribute: str = "") -> bytes:
    figures = "".join(
        f"<fig id='f{n}'><caption><p>{CAPTION} {n}.</p></caption><graphic xlink:href={json.dumps(href)}/></fig>"
        for n, href in enumerate(hrefs)
    )
    licence = "<permissions><license xlink:href='https://creativecommons.org/licenses/by/4.0/'/></permissions>"
    return (
        f"{head}<article {attribute} xmlns:xlink='http://www.w3.org/1999/xlink'><front><article-meta>{licence}"
        f"</article-meta></front><body>{figures}</body></article>"
    ).encode()


def tarred(*members: tuple[str, bytes, str, bytes]) -> bytes:
    """(name, type, link, data) of each member."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, kind, link, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
PLAIN = tarfile.REGTYPE


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    huge = tarfile.TarInfo("a.xml")
    huge.size = 100 * 2**30
    with_zip = jpeg() + zipped({"Evil.class": b"x"})
    hrefs = (
        "ok",
        "../../secret",
        "/etc/hostname",
        "bomb",
        "many",
        "gifar",
        "page",
        "cut",
        "..\\..\\secret",
        "x" * 5000,
    )
    files = {
        "good/good.xml": article(*hrefs),
        "good/ok.jpg": jpeg(),
        "good/bomb.png": png_of(50_000, 50_000),
        "good/many.jpg": jpeg()[:-2] + b"\xff\xda\x00" * 10_000 + b"\xff\xd9",
        "good/gifar.jpg": with_zip,
        "good/page.jpg": jpeg() + b"<script>alert(1)</script>",
        "good/cut.jpg": jpeg()[:500],
        "laughs.xml": article("ok", head=f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]>'),
        "external.xml": article("ok", head='<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'),
        "default.xml": article("ok", head="<!DOCTYPE a [<!ATTLIST article x CDATA 'y'>]>"),
        "attribute.xml": article("ok", attribute=f"x='{'y' * 50_000_000}'"),
        "deep.xml": article("ok").replace(b"<body>", b"<body>" + b"<sec>" * 9000).replace(b"</body>", b"</sec>" * 9000),
        "wide.xml": article("ok").replace(b"</body>", b"<p/>" * 12_000_000 + b"</body>"),
        "utf7.xml": b"<?xml version='1.0' encoding='UTF-7'?>" + article("ok"),
        "bytes.xml": bytes(70 * 2**20),
        "out.tar.gz": tarred(("../../evil.xml", PLAIN, "", article("ok")), ("/tmp/evil.xml", PLAIN, "", b"")),
        "links.tar.gz": tarred(("a.xml", tarfile.SYMTYPE, "/etc/passwd", b""), ("b.xml", tarfile.LNKTYPE, "../x", b"")),
        "devices.tar.gz": tarred(("a.xml", tarfile.CHRTYPE, "", b""), ("b.xml", tarfile.FIFOTYPE, "", b"")),
        "bomb.tar.gz": gzip.compress(huge.tobuf() + bytes(100_000)),
        "bomb.zip": zipped({"a.xml": bytes(80 * 2**20)}),
        "out.zip": zipped({"../../evil.xml": article("ok"), "C:/evil.xml": b""}),
    }
    for name, data in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    os.symlink("/etc/passwd", tmp_path / "in" / "link.xml")
    os.mkfifo(tmp_path / "in" / "pipe.xml")
    return tmp_path


def test_every_hostile_file_is_refused_by_name_in_little_memory(hostile: Path) -> None:
    before = {path for path in hostile.rglob("*")}
    run = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=hostile,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["funnel"] == {
        "article_archive_bomb": 2, "article_archive_device": 2, "article_archive_link": 2,
        "article_archive_path_out": 4,
        "article_archive_without_article": 4, "article_link_leads_out": 1, "article_no_file": 1,
        "article_too_large": 1, "article_xml_encoding": 1, "article_xml_entities": 2, "article_xml_oversized": 1,
        "article_xml_own_dtd": 1, "article_xml_too_deep": 1, "article_xml_too_large": 1,
        "image_missing": 4, "image_polyglot": 2, "image_too_many_pixels": 1, "image_too_many_scans": 1,
        "image_truncated": 1,
    }  # fmt: skip
    assert told["counts"]["pairs"] == 1
    assert told["peak"] < 2**30, f"{told['peak'] / 2**20:.0f} MiB"
    written = {path for path in hostile.rglob("*") if path not in before}
    assert all(path.relative_to(hostile).parts[0] == "out" for path in written)
    assert not Path("/tmp/evil.xml").exists()
    assert [pair.figure for pair in Corpus(hostile / "out").pairs()] == ["f0"]


def test_formulas_in_formulas_are_looked_through_once() -> None:
    """Each of 240 has TeX, and asks whether something else in it is text; to ask all of it anew takes 30 times as
    long."""
    opening, closing = "<inline-formula><tex-math>x</tex-math>", "</inline-formula>"
    body = f"<p>{opening * 240}{'<a/>' * 100_000}{closing * 240}</p>"
    xml = f"<article><front><article-meta/></front><body>{body}</body></article>".encode()
    began = time.process_time()
    parse_article(xml)
    assert time.process_time() - began < 2
