"""Bytes that call themselves XML -> a tree, or the name of the reason why not.

An XML parser is a machine that its input programs: a file of one kilobyte may declare entities that unfold to
gigabytes or that name a file of this computer, and one that is honest in all that may still be built to fill the
memory. An article needs none of it. So, before a parser sees the file:

- a document type with declarations of its own (an internal subset) is refused; the usual line that names the JATS DTD
  is kept, and the DTD is never loaded;
- only encodings are read in which markup can be recognised as such;
- the size of the tree is estimated from the number of `<` and `=`, and refused if it is too large;

and the parser keeps libxml2's own limits (depth 256, ten million bytes in one text or attribute), resolves no
entity and opens no file or connection. `reason` says by which of these a file was refused.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

from lxml import etree

from llavamed.errors import InputError

MAX_TREE_BYTES = 600 * 2**20
# What libxml2 takes for an element, for a text (one may follow each tag) and for an attribute with its value.
_BYTES_AN_ELEMENT, _BYTES_A_TEXT, _BYTES_AN_ATTRIBUTE = 136, 150, 270

_MOST_BYTES_A_BYTE = 72  # "<a/>" and nothing else

_BEFORE_ROOT = re.compile(rb"(?:\s++|<\?.*?\?>|<!--.*?-->)*+", re.DOTALL)
_DOCTYPE = re.compile(rb"<!DOCTYPE(?:[^\[>\"']++|\"[^\"]*+\"|'[^']*+')*+\[([^\]]*+)", re.IGNORECASE)
_ENCODING = re.compile(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([^\"']*)")
# Those in which a byte < is always the character <, and the two of UTF-16.
_ENCODINGS = re.compile(rb"utf-?8|utf-?16(?:le|be)?|us-ascii|iso-8859-\d+|latin-?1|windows-125\d", re.IGNORECASE)
_WIDE = (b"\xff\xfe", b"\xfe\xff")  # the marks of UTF-16
_LIMITS = (("amplification", "xml_bomb"), ("depth", "xml_too_deep"))
_SLIPS = {26, 201}  # XML_ERR_UNDECLARED_ENTITY, XML_NS_ERR_UNDEFINED_NAMESPACE
_PARSER: dict[str, Any] = {
    "resolve_entities": False,
    "no_network": True,
    "load_dtd": False,
    "huge_tree": False,
    "remove_comments": True,
    "remove_pis": True,
}
_RESOURCE_CODES = (110, 114)  # XML_ERR_NAME_TOO_LONG, XML_ERR_RESOURCE_LIMIT


class ArticleError(InputError):
    """A file that is no article. `reason`: "not_xml", "not_jats", or what makes it dangerous: "xml_entities",
    "xml_own_dtd", "xml_encoding", "xml_too_large", "xml_bomb", "xml_too_deep", "xml_oversized", "mentions_bomb",
    "text_bomb"."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def parse(xml: bytes, where: str) -> Any:
    """The root element, without comments and processing instructions. Raises ArticleError naming `where`."""
    return read(xml, where)[0]


def read(xml: bytes, where: str) -> tuple[Any, bool]:
    """The root element as of `parse`, and whether the file had slips that change nothing: a prefix or a named
    character that it does not declare."""
    xml = xml.lstrip(b" \t\r\n")
    _check(xml, where)
    parser = etree.XMLParser(**_PARSER)
    try:
        return etree.fromstring(xml, parser), False
    except etree.XMLSyntaxError as error:
        if {one.type for one in parser.error_log} <= _SLIPS and (root := _mended(xml)) is not None:
            return root, True
        message = " ".join(str(error).split()) or "nothing in it"
        if error.code in _RESOURCE_CODES:
            reason = next((name for word, name in _LIMITS if word in message.lower()), "xml_oversized")
            raise ArticleError(
                f"{where}: XML built to overwhelm its reader ({message}); leave it out", reason
            ) from None
        raise _not_xml(where, message) from None
    except ValueError as error:  # an encoding that does not exist
        raise _not_xml(where, str(error)) from None


def _mended(xml: bytes) -> Any:
    """The tree in spite of slips, or None if there is another error behind the first."""
    parser = etree.XMLParser(recover=True, **_PARSER)
    root = etree.fromstring(xml, parser)
    return root if {one.type for one in parser.error_log} <= _SLIPS else None


def _check(xml: bytes, where: str) -> None:
    declared = _ENCODING.match(xml[:400].removeprefix(b"\xef\xbb\xbf"))
    if declared and not _ENCODINGS.fullmatch(declared[1]):
        encoding = declared[1].decode("ascii", "replace")
        raise ArticleError(f"{where}: written in {encoding!r}; save it as UTF-8", "xml_encoding")
    wide = xml[:2] in _WIDE and xml[2:4] != b"\0\0"
    if b"\0" in xml[:4] and not wide:
        raise ArticleError(f"{where}: no text, or UTF-16 without its mark; save it as UTF-8", "xml_encoding")
    head = xml.decode("utf-16", "replace").encode() if wide else xml.removeprefix(b"\xef\xbb\xbf")
    before = _BEFORE_ROOT.match(head)
    subset = _DOCTYPE.match(head, before.end() if before else 0)
    if subset and b"<!ENTITY" in subset[1].upper():
        raise ArticleError(
            f"{where}: declares entities of its own, which no article needs; leave it out", "xml_entities"
        )
    if subset and subset[1].strip():
        raise ArticleError(f"{where}: brings declarations of its own ({subset[1][:40]!r}); leave it out", "xml_own_dtd")
    if len(xml) * _MOST_BYTES_A_BYTE < MAX_TREE_BYTES:  # nearly all articles, and cheaper than to count
        return
    tags, ends, equals = xml.count(b"<"), xml.count(b"</"), xml.count(b"=")
    estimate = _BYTES_AN_ELEMENT * (tags - ends) + _BYTES_A_TEXT * tags + _BYTES_AN_ATTRIBUTE * equals + len(xml)
    if estimate > MAX_TREE_BYTES:
        message = f"{where}: {tags - ends:,} elements would take about {estimate // 2**20} MiB"
        raise ArticleError(f"{message}, more than {MAX_TREE_BYTES // 2**20}; leave it out", "xml_too_large")


def _not_xml(where: str, message: str) -> ArticleError:
    return ArticleError(f"{where}: not XML ({message}); give an article in JATS XML", "not_xml")


def write_out(entities: Iterable[Any]) -> None:
    """Put characters where names of a DTD that is not loaded stand: HTML's names are JATS's too; others say nothing."""
    for entity in entities:
        character = html.unescape(entity.text)
        text = (character if character != entity.text else " ") + (entity.tail or "")
        before, parent = entity.getprevious(), entity.getparent()
        if before is not None:
            before.tail = (before.tail or "") + text
        else:
            parent.text = (parent.text or "") + text
        entity.tail = None
        parent.remove(entity)
