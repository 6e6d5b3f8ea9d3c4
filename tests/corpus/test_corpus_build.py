"""From articles to a corpus: every figure accounted for, equal input equal bytes, errors a person can mend."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from llavamed import manifest
from llavamed.cli import app
from llavamed.corpus.alone import alone
from llavamed.corpus.build import build
from llavamed.corpus.show import show, stats
from llavamed.corpus.store import Corpus
from llavamed.errors import InputError
from llavamed.recipe import CorpusSection

DATA_FILES = ("index.parquet", "without_image.jsonl", "README.md", "ATTRIBUTION.md", "report.html")
CC_BY = "<permissions><license xlink:href='https://creativecommons.org/licenses/by/4.0/'/></permissions>"


def picture(kind: str = "JPEG", width: int = 64, height: int = 64, seed: int = 0) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).save(out, kind)
    return out.getvalue()


def article(*figures: tuple[str, str], permissions: str = CC_BY) -> bytes:
    """Figures as (href, caption); figure n has the id fn and is cited once."""
    body = "".join(
        f"<p>Seen in <xref ref-type='fig' rid='f{n}'>Fig. {n}</xref>.</p><fig id='f{n}'><label>Fig. {n}</label>"
        f"<caption><p>{caption}</p></caption>{f'<graphic xlink:href={href!r}/>' if href else ''}</fig>"
        for n, (href, caption) in enumerate(figures, 1)
    )
    return (
        "<article xmlns:xlink='http://www.w3.org/1999/xlink'><front><article-meta>"
        f"<title-group><article-title>A case</article-title></title-group>{permissions}</article-meta></front>"
        f"<body>{body}</body></article>"
    ).encode()


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def blank() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """One good figure of each format, and one figure or article for every reason to drop it."""
    figures = [
        (name, "Axial CT of the liver") for name in ("ok", "tiff", "gone", "cut", "page", "small", "thin", "blank")
    ]
    return put(
        tmp_path / "articles",
        {
            "PMC1.1/PMC1.1.xml": article(*figures, ("ok", "Short"), ("", "No graphic at all")),
            "PMC1.1/PMC1.1.json": json.dumps({"license_code": "CC BY", "pmid": 7}).encode(),
            "PMC1.1/ok.jpg": picture(),
            "PMC1.1/tiff.tif": picture("TIFF", seed=1),
            "PMC1.1/cut.jpg": picture()[:900],
            "PMC1.1/page.jpg": b"<html>404</html>",
            "PMC1.1/small.png": picture("PNG", 64, 20),
            "PMC1.1/thin.png": picture("PNG", 64 * 9, 64),
            "PMC1.1/blank.png": blank(),
            "PMC2.1/PMC2.1.xml": article(("ok", "Chest X-ray of a man"), permissions=""),
            "PMC2.1/ok.jpg": picture(),
            "PMC3.1/PMC3.1.xml": article(("ok", "Chest X-ray of a man")),
            "PMC3.1/PMC3.1.json": json.dumps({"license_code": "CC BY-NC-ND"}).encode(),
            "PMC4.1/PMC4.1.xml": article(("ok", "Chest X-ray of a man")),
            "PMC4.1/PMC4.1.json": json.dumps({"is_retracted": True}).encode(),
            "not_jats.xml": b"<html/>",
            "not_xml.xml": b"<article><body>",
            "bad.zip": b"no zip",
        },
    )


def test_every_figure_and_article_is_accounted_for_by_reason(mixed: Path, tmp_path: Path) -> None:
    result = build(mixed, tmp_path / "out")
    assert result.funnel == {
        "article_not_jats": 1, "article_not_xml": 1, "article_retracted": 1, "article_archive_damaged": 1,
        "caption_too_short": 1, "image_missing": 1, "image_truncated": 1, "licence_excluded": 1, "licence_unknown": 1,
        "near_constant": 1, "no_graphic": 1, "not_an_image": 1, "too_elongated": 1, "too_small": 1,
    }  # fmt: skip
    assert result.counts["articles"] == 3
    assert result.counts["articles_left_out"] == 4
    assert result.counts["figures"] == result.counts["figure_images"] == result.counts["mentions"] == 12
    assert result.counts["pairs"] == 2
    assert [row["reason"] for row in result.extra["articles_left_out"]] == [
        "retracted",
        "archive_damaged",
        "not_jats",
        "not_xml",
    ]
    assert "not_jats.xml" in result.extra["articles_left_out"][2]["message"]


def test_a_pair_holds_what_the_article_says(mixed: Path, tmp_path: Path) -> None:
    build(mixed, tmp_path / "out")
    first, second = Corpus(tmp_path / "out").pairs()
    assert (first.key, first.file, first.article, first.figure) == ("PMC1-1_f1", "PMC1-1_f1.jpg", "PMC1.1", "f1")
    assert (first.caption, first.label, first.title) == ("Axial CT of the liver", "Fig. 1", "A case")
    assert (first.licence, first.pmid, first.domain, first.domain_score) == ("CC-BY-4.0", "7", "ct_scan", 1.0)
    assert [m.sentence for m in first.mentions] == ["Seen in Fig. 1."]
    assert (first.width, first.height, first.source) == (64, 64, "PMC1.1/PMC1.1.xml")
    assert Corpus(tmp_path / "out").image(first.key) == (mixed / "PMC1.1/ok.jpg").read_bytes()
    assert first.sha256 == hashlib.sha256((mixed / "PMC1.1/ok.jpg").read_bytes()).hexdigest()
    assert second.file == "PMC1-1_f2.png"
    stored = Image.open(io.BytesIO(Corpus(tmp_path / "out").image(second.key)))
    np.testing.assert_array_equal(np.asarray(stored), np.asarray(Image.open(mixed / "PMC1.1/tiff.tif")))


def test_a_missing_image_leaves_its_text(mixed: Path, tmp_path: Path) -> None:
    build(mixed, tmp_path / "out")
    rows = show(tmp_path / "out", limit=10)
    assert [row["image"] for row in rows] == [
        "PMC1-1_f1.jpg, 64 x 64 pixels",
        "PMC1-1_f2.png, 64 x 64 pixels",
        "missing",
    ]
    assert (rows[2]["label"], rows[2]["caption"]) == ("Fig. 3", "Axial CT of the liver")
    assert rows[2]["mentions"] == ["Seen in Fig. 3."]
    assert show(tmp_path / "out", rows[2]["key"]) == [rows[2]]
    with pytest.raises(InputError, match="did you mean 'PMC1-1_f1'"):
        show(tmp_path / "out", "PMC1_f1")


@pytest.mark.parametrize(("policy", "pairs"), [("commercial", 2), ("noncommercial", 2), ("any", 3)])
def test_the_licence_policy_decides(mixed: Path, tmp_path: Path, policy: str, pairs: int) -> None:
    (mixed / "PMC3.1/ok.jpg").unlink(missing_ok=True)
    result = build(mixed, tmp_path / "out", CorpusSection(licence=policy))
    assert result.counts["pairs"] == pairs


def test_same_input_same_bytes(mixed: Path, tmp_path: Path) -> None:
    build(mixed, tmp_path / "one")
    for path in mixed.rglob("*"):
        os.utime(path, (1, 1))
    build(mixed, tmp_path / "two")
    shards = [path.name for path in (tmp_path / "one").glob("shard-*.tar")]
    assert len(shards) == 1
    for name in (*shards, *DATA_FILES):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_a_finished_corpus_is_not_built_again_and_an_unfinished_one_is(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = build(mixed, out)
    stamp = (out / "manifest.json").stat().st_mtime_ns
    again = build(mixed, out)
    assert (out / "manifest.json").stat().st_mtime_ns == stamp
    assert (again.counts, again.funnel, again.files) == (first.counts, first.funnel, first.files)
    manifest.begin(out, "corpus")  # as after kill -9 ...
    (out / "shard-000007.tar").write_bytes(b"left over")
    (out / "notes.txt").write_text("mine")
    rebuilt = build(mixed, out)
    assert rebuilt.counts == first.counts
    assert not (out / "shard-000007.tar").exists()
    assert (out / "notes.txt").exists()


def test_changed_settings_or_articles_build_again(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(mixed, out)
    assert build(mixed, out, CorpusSection(min_side=16)).counts["pairs"] == 3
    shutil.rmtree(mixed / "PMC1.1")
    assert build(mixed, out, CorpusSection(min_side=16)).counts["pairs"] == 0


def test_several_images_of_a_figure_are_several_pairs(tmp_path: Path) -> None:
    xml = article(("a'/><graphic xlink:href='b", "MRI of the brain")).replace(b'"', b"'")
    put(tmp_path / "in", {"x.xml": xml, "a.png": picture("PNG"), "b.png": picture("PNG", seed=1)})
    result = build(tmp_path / "in", tmp_path / "out")
    assert [p.key for p in Corpus(tmp_path / "out").pairs()] == ["x_f1", "x_f1-2"]
    assert (result.counts["figures"], result.counts["figure_images"]) == (1, 2)


def test_the_page_and_the_attribution_name_what_they_must(mixed: Path, tmp_path: Path) -> None:
    build(mixed, tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    for words in ("licence_unknown", "CC-BY-4.0", "ct_scan", "not_jats.xml", "Seen in Fig. 1.", "data:image/jpeg"):
        assert words in page
    attribution = (tmp_path / "out/ATTRIBUTION.md").read_text()
    assert "- A case. <https://pmc.ncbi.nlm.nih.gov/articles/PMC1/> (PMC1.1). CC-BY-4.0." in attribution
    assert "| CC-BY-4.0 | 2 | <https://creativecommons.org/licenses/by/4.0/> |" in attribution
    assert "PMC2.1" not in attribution


def test_input_in_which_no_article_can_be_read_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "in", {"a.xml": b"<html/>", "b.xml": b"<html/>", "c.xml": b"no"})
    with pytest.raises(InputError, match=r"2 not_jats, 1 not_xml.*a\.xml.*<html>"):
        build(tmp_path / "in", tmp_path / "out")
    assert manifest.read(tmp_path / "out") is None


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="no article in it"):
        build(tmp_path / "in", tmp_path / "out")


def test_the_corpus_needs_a_folder_of_its_own(mixed: Path, tmp_path: Path) -> None:
    for out in (mixed, mixed / "corpus"):
        with pytest.raises(InputError, match="folder of its own"):
            build(mixed, out)
    manifest.begin(tmp_path / "run", "train")
    manifest.Manifest("train").write(tmp_path / "run")
    with pytest.raises(InputError, match="'train'"):
        build(mixed, tmp_path / "run")


def test_a_folder_that_is_not_ours_is_left_as_it_is(mixed: Path, tmp_path: Path) -> None:
    mine = {name: b"mine" for name in ("report.html", "shard-photos.tar", "shard-000000.tar", "index.parquet", "x.tmp")}
    put(tmp_path / "mine", mine)
    with pytest.raises(InputError, match="not made by llavamed"):
        build(mixed, tmp_path / "mine")
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == mine


def test_a_rebuild_clears_only_its_own_files(mixed: Path, tmp_path: Path) -> None:
    build(mixed, tmp_path / "out")
    mine = {name: b"mine" for name in ("notes.md", "shard-photos.tar", "x.tmp")}
    put(tmp_path / "out", mine)
    assert build(mixed, tmp_path / "out", CorpusSection(min_side=16)).counts["shards"] == 1
    assert all((tmp_path / "out" / name).read_bytes() == data for name, data in mine.items())


@pytest.mark.parametrize("wrong", [{}, {"a.xml": b"<html/>"}, {"a.txt": b""}])
def test_a_rebuild_from_the_wrong_folder_leaves_the_corpus_as_it_was(
    mixed: Path, tmp_path: Path, wrong: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    build(mixed, out)
    before = content(out)
    (tmp_path / "wrong").mkdir()
    with pytest.raises(InputError, match="no article in it"):
        build(put(tmp_path / "wrong", wrong), out)
    assert content(out) == before
    assert len(Corpus(out)) == 2


def test_a_link_to_nowhere_among_the_articles_is_counted(mixed: Path, tmp_path: Path) -> None:
    os.symlink(tmp_path / "nowhere", mixed / "gone.xml")
    assert build(mixed, tmp_path / "out").funnel["article_no_file"] == 1
    assert "a link to nothing" in (tmp_path / "out/report.html").read_text()


def test_a_finished_corpus_is_said_to_be_skipped(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(mixed, tmp_path / "out")
    assert "skipped" not in capsys.readouterr().err
    build(mixed, tmp_path / "out")
    assert capsys.readouterr().err == f"{tmp_path / 'out'}: finished already, skipped\n"


# --- real articles ---------------------------------------------------------------------------


def test_real_packages_give_pairs_with_images_and_licences(shared_data: Path, tmp_path: Path) -> None:
    result = build(shared_data / "jats_packages", tmp_path / "out")
    pairs = list(Corpus(tmp_path / "out").pairs())
    assert len(pairs) == 6  # 3 JPEG of the folder, 3 TIFF of a zip
    assert result.funnel == {"image_missing": 2}  # one zip names its images by hashes, its XML by other names
    assert {p.licence for p in pairs} == {"CC-BY-4.0"}
    assert sorted(p.file.rpartition(".")[2] for p in pairs) == ["jpg"] * 3 + ["png"] * 3
    folder = shared_data / "jats_packages/2236-8906-hoehnea-49-e1112020"
    expected = {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.jpg")}
    assert expected <= {p.sha256 for p in pairs}


def test_real_articles_without_images_give_their_texts_and_report_the_images(shared_data: Path, tmp_path: Path) -> None:
    result = build(shared_data / "jats_pmc", tmp_path / "out")
    assert result.counts["pairs"] == 0
    assert result.counts["articles"] == 19
    assert (result.counts["mentions"], result.counts["mentions_bare"]) == (164, 72)  # 72 table cells say "Fig. 5"
    assert result.funnel == {"image_missing": 68, "licence_excluded": 2, "licence_unknown": 22}
    texts = show(tmp_path / "out", limit=100)
    assert len(texts) == 68
    assert all(row["image"] == "missing" and row["caption"] and row["label"] for row in texts)
    assert sum(bool(row["mentions"]) for row in texts) > 60
    assert not any("PMC2386533" in row["source"] for row in texts)
    assert "image_missing" in (tmp_path / "out/report.html").read_text()


def test_stats_count_each_pair_once_in_each_table_and_the_page_shows_what_was_left_out(
    mixed: Path, tmp_path: Path
) -> None:
    made = build(mixed, tmp_path / "c", workers=1)
    rows = stats(tmp_path / "c")
    for table in ("domains", "licences", "words of the caption", "words of the mentions"):
        assert sum(int(count) for name, _, count in rows if name == table) == made.counts["pairs"], table
    assert ("read and kept", "pairs", made.counts["pairs"]) in rows
    page = (tmp_path / "c/report.html").read_text()
    left_out = page[page.index("Left out: a few of each reason") :]
    for reason in (name for name in made.funnel if not name.startswith("article_")):
        assert f"{reason}: " in left_out, reason
    shown = CliRunner().invoke(app, ["corpus", "stats", str(tmp_path / "c"), "--json"])
    assert [tuple(row.values()) for row in json.loads(shown.stdout)] == rows


def test_what_a_person_should_know_at_once_is_told(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(mixed, tmp_path / "out")
    assert "no pair" not in capsys.readouterr().err
    build(mixed, tmp_path / "none", CorpusSection(min_side=1000))
    assert "none: no pair was kept (5 too_small, " in capsys.readouterr().err
    (mixed / "articles.jsonl").write_text(json.dumps({"article": "PMC1.1", "state": "fetched"}) + "\n")
    (mixed / "manifest.json").write_text(json.dumps({"stage": "fetch"}))
    made = build(mixed, tmp_path / "mirror")
    assert made.funnel["article_not_fetched"] == 3
    assert "3 articles are not fetched whole" in capsys.readouterr().err


def test_damaged_metadata_leaves_the_article_out(mixed: Path, tmp_path: Path) -> None:
    (mixed / "PMC1.1/PMC1.1.json").write_text('{"is_retracted": true')
    made = build(mixed, tmp_path / "out")
    assert (made.counts["pairs"], made.funnel["article_metadata_damaged"]) == (0, 1)


def test_a_picture_in_another_format_leaves_its_text_and_its_own_reason(mixed: Path, tmp_path: Path) -> None:
    (mixed / "PMC1.1/gone.svg").write_text("<svg/>")
    made = build(mixed, tmp_path / "out")
    assert made.funnel["image_format"] == 1
    assert "image_missing" not in made.funnel
    assert show(tmp_path / "out", "PMC1-1_f3")[0]["image"] == "missing"


def test_a_folder_that_another_run_writes_is_left_alone(mixed: Path, tmp_path: Path) -> None:
    build(mixed, tmp_path / "out")
    before = content(tmp_path / "out")
    with alone(tmp_path / "out"), pytest.raises(InputError, match="another run is writing here"):
        build(mixed, tmp_path / "out", CorpusSection(min_side=16))
    assert content(tmp_path / "out") == before


def test_a_key_is_looked_up_without_reading_every_pair(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(mixed, tmp_path / "out")
    first, second = Corpus(tmp_path / "out").pairs()
    monkeypatch.setattr(Corpus, "pairs", None)
    assert show(tmp_path / "out", second.key)[0]["key"] == second.key
    with pytest.raises(InputError, match="did you mean"):
        show(tmp_path / "out", f"{first.key}9")
