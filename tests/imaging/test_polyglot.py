"""Images that are something else as well."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llavamed.imaging.decode import FORMATS, ImageError, decode, glance
from llavamed.imaging.polyglot import other_kind


def picture(kind: str, size: int = 64) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).save(out, kind)
    return out.getvalue()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("META-INF/MANIFEST.MF", "Main-Class: Evil")
    return out.getvalue()


def commented(kind: str, comment: bytes) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, kind, comment=comment)
    return out.getvalue()


def script() -> bytes:
    """A GIF whose width and height are the beginning of a comment: `GIF89a/*...*/=alert(1)`."""
    data = bytearray(picture("GIF"))
    data[6:8] = b"/*"
    return bytes(data) + b"*/=alert(1);//"


POLYGLOTS = {
    "GIF + zip (GIFAR)": (picture("GIF") + zipped(), "zip"),
    "JPEG + zip": (picture("JPEG") + zipped(), "zip"),
    "PNG + zip + comment": (picture("PNG") + zipped()[:-2] + b"\x05\x00hello", "zip"),
    "JPEG with a PDF in its comment": (commented("JPEG", b"%PDF-1.7 1 0 obj"), "PDF"),
    "GIF with a page in its comment": (commented("GIF", b"<HTML><body>"), "page"),
    "JPEG with a script behind": (picture("JPEG") + b"<script>alert(1)</script>", "page"),
    "PNG with PHP behind": (picture("PNG") + b"<?php system($_GET[0]); ?>", "PHP"),
    "GIF that is a script": (script(), "script"),
    "JPEG + RAR": (picture("JPEG") + b"Rar!\x1a\x07\x00" + bytes(9000), "RAR"),
    "JPEG + 7z": (picture("JPEG") + b"7z\xbc\xaf\x27\x1c" + bytes(9000), "7-Zip"),
}


@pytest.mark.parametrize("name", POLYGLOTS)
def test_a_polyglot_is_refused_by_name(name: str) -> None:
    data, kind = POLYGLOTS[name]
    assert kind in other_kind(data)
    for read in (decode, glance):
        with pytest.raises(ImageError, match=kind) as caught:
            read(data, "fig")
        assert caught.value.reason == "polyglot"


def test_the_zip_among_them_is_one() -> None:
    with zipfile.ZipFile(io.BytesIO(POLYGLOTS["GIF + zip (GIFAR)"][0])) as archive:
        assert archive.read("META-INF/MANIFEST.MF").startswith(b"Main-Class")


@pytest.mark.parametrize("kind", FORMATS)
def test_plain_pictures_are_not_taken_for_more(kind: str) -> None:
    assert other_kind(picture(kind, 300)) == ""


def test_bytes_that_look_like_the_end_of_a_zip_by_chance_are_no_zip() -> None:
    assert other_kind(picture("JPEG") + b"PK\x05\x06") == ""
    assert other_kind(picture("JPEG") + b"PK\x05\x06" + b"\xff" * 18) == ""


def test_real_pictures_are_not_taken_for_more(shared_data: Path) -> None:
    files = [*shared_data.glob("vqa_rad/images/*.jpg"), *shared_data.glob("modality/*.png")]
    files += [*shared_data.glob("medicat/figures/*.png"), *shared_data.glob("jats_packages/*/*.jpg")]
    assert len(files) > 300
    assert [file.name for file in files if other_kind(file.read_bytes())] == []
