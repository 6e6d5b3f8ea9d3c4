"""Files that are an image and something else: an archive, a document, a script.

A corpus keeps a picture with the bytes that it was published with, and people put corpora on web servers. A GIF that
is a Java archive (GIFAR), a JPEG that a browser takes for a page, a PNG with a zip behind its end decode as any picture
does; what they do elsewhere is not the picture's business. They are told by signatures where the other format's
readers look for them: a zip's directory at the end, PDF's mark within the first kilobyte (its readers ask no more),
markup at the beginning or behind the end, packed archives anywhere.
"""

from __future__ import annotations

import struct

_BEGINNING, _END = 1024, 4096  # bytes that are searched for markup
_ZIP_END = b"PK\x05\x06"
_ZIP_TAIL = 22 + 0xFFFF  # the record and the longest comment behind it
_ANYWHERE = ((b"Rar!\x1a\x07", "a RAR archive"), (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"))
_MARKUP = (
    (b"<script", "a web page"),
    (b"<html", "a web page"),
    (b"<!doctype html", "a web page"),
    (b"<iframe", "a web page"),
    (b"<svg", "an SVG drawing"),
    (b"<?php", "a PHP script"),
)
# GIF and JPEG headers in which the size or a length is the sign of a comment, so that the file is a script.
_SCRIPTS = ((b"GIF", 6, b"/*"), (b"\xff\xd8\xff\xe0", 4, b"/*"), (b"BM", 2, b"/*"))


def other_kind(data: bytes) -> str:
    """What an image file is besides an image, or ""."""
    for signature, kind in _ANYWHERE:
        if signature in data:
            return kind
    if b"%PDF-" in data[:_BEGINNING]:
        return "a PDF document"
    if _is_zip(data):
        return "a zip archive"
    if any(data.startswith(magic) and data[at : at + 2] == mark for magic, at, mark in _SCRIPTS):
        return "a script"
    ends = (data[:_BEGINNING] + data[-_END:]).lower()
    return next((kind for signature, kind in _MARKUP if signature in ends), "")


def _is_zip(data: bytes) -> bool:
    """A zip's last record that holds together: its directory lies before it and fits."""
    at = data.rfind(_ZIP_END, max(0, len(data) - _ZIP_TAIL))
    if at < 0 or at + 22 > len(data):
        return False
    entries, size, _, comment = struct.unpack_from("<HIIH", data, at + 10)
    return size <= at and at + 22 + comment <= len(data) and (entries == 0 or b"PK\x01\x02" in data)
