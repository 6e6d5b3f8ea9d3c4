"""XML that is built to harm its reader: each kind refused by its own name, quickly and in little memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from llavamed.corpus import safe_xml
from llavamed.corpus.safe_xml import ArticleError, parse

LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
BOMB = f'<!DOCTYPE article [<!ENTITY l0 "ha">{LAUGHS}]><article>&l9;</article>'
HOSTILE = {
    "billion laughs": (BOMB, "xml_entities"),
    "billion laughs in an attribute": (BOMB.replace("<article>&l9;", "<article a='&l9;'>"), "xml_entities"),
    "quadratic": (f'<!DOCTYPE a [<!ENTITY x "{"x" * 10_000}">]><article>{"&x;" * 10_000}</article>', "xml_entities"),
    "file": ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><article>&x;</article>', "xml_entities"),
    "address": ('<!DOCTYPE a [<!ENTITY x PUBLIC "p" "http://127.0.0.1:9/">]><article>&x;</article>', "xml_entities"),
    "parameter": ('<!DOCTYPE a [ <!ENTITY % x SYSTEM "file:///etc/hostname"> %x; ]><article/>', "xml_entities"),
    "behind a comment": ("<?xml version='1.0'?><!-- <a --><!DOCTYPE a [<!ENTITY x 'y'>]><article/>", "xml_entities"),
    "behind quotes": ("<!DOCTYPE a PUBLIC '>[' \"]\" [<!ENTITY x 'y'>]><article/>", "xml_entities"),
    "default attributes": (f"<!DOCTYPE a [<!ATTLIST a x CDATA '{'x' * 9999}'>]><article/>", "xml_own_dtd"),
    "parameter reference": ("<!DOCTYPE a [%x;]><article/>", "xml_own_dtd"),
    "deep": ("<article>" + "<a>" * 5000 + "</a>" * 5000 + "</article>", "xml_too_deep"),
    "attribute of 100 MB": (f"<article a='{'x' * 100_000_000}'/>", "xml_oversized"),
    "text of 20 MB": (f"<article>{'x' * 20_000_000}</article>", "xml_oversized"),
    "name of 100 kB": (f"<article><{'x' * 100_000}/></article>", "xml_oversized"),
    "16 million elements": (f"<article>{'<a/>' * 16_000_000}</article>", "xml_too_large"),
    "an encoding that hides tags": ("<?xml version='1.0' encoding='UTF-7'?><article/>", "xml_encoding"),
    "no such encoding": ("<?xml version='1.0' encoding='klingon'?><article/>", "xml_encoding"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_xml_is_refused_by_name(kind: str) -> None:
    text, reason = HOSTILE[kind]
    data = text.encode()
    began = time.process_time()
    with pytest.raises(ArticleError, match="here") as caught:
        parse(data, "here")
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 300
    assert time.process_time() - began < 2


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_another_encoding_hides_nothing(encoding: str) -> None:
    with pytest.raises(ArticleError) as caught:
        parse(BOMB.encode(encoding), "here")
    assert caught.value.reason == "xml_entities"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "cp037"])
def test_an_encoding_that_is_not_marked_is_refused(encoding: str) -> None:
    with pytest.raises(ArticleError) as caught:
        parse(BOMB.encode(encoding), "here")
    assert caught.value.reason in {"xml_encoding", "not_xml"}


@pytest.mark.parametrize(
    "head",
    [
        "",
        '<!DOCTYPE article PUBLIC "-//NLM//DTD JATS" "JATS-archivearticle1.dtd">',
        '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE article SYSTEM "it\'s.dtd" [ ]>',
        '<?xml version="1.0" encoding="iso-8859-1" standalone="no"?>',
    ],
)
def test_the_heads_of_honest_articles_are_accepted(head: str) -> None:
    text = "<p>An array a[0] and <![CDATA[<!DOCTYPE a [<!ENTITY x 'y'>]>]]></p>"
    assert parse(f"{head}<article>{text}</article>".encode(), "here").tag == "article"


def test_the_estimate_of_a_tree_is_not_below_what_libxml2_takes() -> None:
    """In a process of its own: the growth of its memory while a tree of many small parts is made."""
    code = (
        "from pathlib import Path\n"
        "from llavamed.corpus import safe_xml as s\n"
        "def peak():\n"  # getrusage would count the parent's memory too
        "    status = Path('/proc/self/status').read_text().split()\n"
        "    return int(status[status.index('VmHWM:') + 1])\n"
        "xml = ('<article>' + {part!r} * 100_000 + '</article>').encode()\n"
        "tags, ends, equals = xml.count(b'<'), xml.count(b'</'), xml.count(b'=')\n"
        "estimate = s._BYTES_AN_ELEMENT * (tags - ends) + s._BYTES_A_TEXT * tags + s._BYTES_AN_ATTRIBUTE * equals\n"
        "before = peak()\n"
        "root = s.parse(xml, '')\n"
        "print((peak() - before) * 1024 / estimate)"
    )
    root = Path(safe_xml.__file__).parents[2]
    for part in ("<a/>x", "<a b='c'/>"):  # the most memory a byte: without attributes, and with
        done = subprocess.run([sys.executable, "-c", code.format(part=part)], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert 0.1 < float(done.stdout) < 1.1, part
