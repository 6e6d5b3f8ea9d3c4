"""Generated reports: pycocoevalcap's numbers, to the last bits."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from llavamed.evaluate.metrics import report as m

SAMPLE = "no focal consolidation . heart size normal lungs clear pleural effusion the is a of right left"
VOCABULARY = SAMPLE.split()
Corpus = tuple[list[str], list[list[str]]]


def corpora(count: int, seed: int, shortest: int = 0) -> list[Corpus]:
    """Predictions with one to four references each; half are a reference with words exchanged, so that long n-grams
    match, and half are of `shortest` to 25 words by chance."""
    rng = random.Random(seed)

    def text(least: int) -> str:
        return " ".join(rng.choices(VOCABULARY, k=rng.randint(least, 25)))

    def near(reference: str) -> str:
        return " ".join(word if rng.random() < 0.8 else rng.choice(VOCABULARY) for word in reference.split())

    made = []
    for _ in range(count):
        references = [[text(max(1, shortest)) for _ in range(rng.randint(1, 4))] for _ in range(rng.randint(1, 12))]
        made.append(
            ([near(rng.choice(given)) if rng.random() < 0.5 else text(shortest) for given in references], references)
        )
    return made


def coco(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[dict, dict]:
    return {i: list(given) for i, given in enumerate(references)}, {i: [text] for i, text in enumerate(predictions)}


def test_bleu_rouge_and_cider_are_those_of_pycocoevalcap() -> None:
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    for predictions, references in corpora(40, 79):
        pairs = coco(predictions, references)
        bleu, _ = Bleu(4).compute_score(*pairs, verbose=0)
        assert list(m.corpus_bleu(predictions, references)) == bleu
        mean, each = Rouge().compute_score(*pairs)
        assert m.rouge_l(predictions, references) == list(each)
        mean, each = Cider().compute_score(*pairs)
        assert m.cider(predictions, references) == pytest.approx(list(each), abs=1e-12)
        assert sum(m.cider_d(predictions, references)) / len(predictions) == pytest.approx(mean, abs=1e-12)


def test_values_that_pycocoevalcap_computed_hold_where_it_is_not_installed() -> None:
    predictions = [
        "no focal consolidation . the heart is normal .",
        "small left pleural effusion is seen",
        "the lungs are clear",
    ]
    references = [
        [
            "no consolidation . the heart size is normal .",
            "the heart is normal . no focal consolidation or effusion .",
        ],
        ["there is a small left pleural effusion"],
        ["lungs are clear", "the lungs are clear without effusion"],
    ]
    bleu = (0.9473684209529085, 0.910465467899995, 0.8607186266871066, 0.7514297793130168)
    assert m.corpus_bleu(predictions, references) == pytest.approx(bleu, rel=1e-12)
    assert m.rouge_l(predictions, references) == pytest.approx([0.8888888888888888, 0.6069651741293532, 1.0], rel=1e-12)
    cider = [5.49436408372031, 4.8423753786135055, 6.5482896224055755]
    assert m.cider(predictions, references) == m.cider_d(predictions, references) == pytest.approx(cider, rel=1e-12)


def test_bleu_is_that_of_sacrebleu_and_nltk_without_their_tokens_and_smoothing() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    nltk = pytest.importorskip("nltk.translate.bleu_score")
    compared = 0
    for predictions, references in corpora(40, 83, shortest=4):  # nltk counts one n-gram in a text too short for any
        ours = m.corpus_bleu(predictions, references)
        if ours[3] < 1e-3:
            continue  # pycocoevalcap puts a tiny number where an order has no match, and they a zero
        most = max(map(len, references))
        streams = [[given[i] if i < len(given) else None for given in references] for i in range(most)]
        theirs = sacrebleu.corpus_bleu(predictions, streams, smooth_method="none", tokenize="none", force=True)
        assert 100 * ours[3] == pytest.approx(theirs.score, rel=1e-6)
        words = [[text.split() for text in given] for given in references]
        expected = nltk.corpus_bleu(words, [text.split() for text in predictions])
        assert ours[3] == pytest.approx(expected, rel=1e-6)
        compared += 1
    assert compared > 5


def test_rouge_l_has_the_longest_common_subsequence_of_the_textbook() -> None:
    def length(a: Sequence[str], b: Sequence[str]) -> int:
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, j in itertools.product(range(len(a)), range(len(b))):
            table[i + 1][j + 1] = table[i][j] + 1 if a[i] == b[j] else max(table[i][j + 1], table[i + 1][j])
        return table[-1][-1]

    rng = random.Random(89)
    for _ in range(400):
        a, b = (rng.choices("abcdef", k=rng.randint(0, 80)) for _ in range(2))
        assert m._common_length(a, b) == length(a, b)


def test_a_perfect_report_has_full_marks_and_an_unrelated_one_none() -> None:
    texts = ["no focal consolidation .", "the heart is large and the lungs are clear", "a small effusion on the left"]
    references = [[text] for text in texts]
    assert m.corpus_bleu(texts, references) == pytest.approx((1, 1, 1, 1))
    assert m.rouge_l(texts, references) == pytest.approx([1, 1, 1])
    assert m.cider(texts, references) == pytest.approx([10, 10, 10])
    assert m.cider_plain(texts, references) == pytest.approx([10, 10, 10])
    strangers = ["x y z w"] * 3
    assert max(m.corpus_bleu(strangers, references)) < 1e-9
    assert m.rouge_l(strangers, references) == m.cider(strangers, references) == [0, 0, 0]


def test_plain_cider_rewards_repeating_a_rare_word_and_cider_d_does_not() -> None:
    references = [["a small nodule in the left lung"], ["the heart is normal"], ["the lungs are clear"]]
    honest = ["a nodule in the lung", "the heart is normal", "the lungs are clear"]
    gamed = ["in the left lung" + " nodule" * 12, *honest[1:]]
    lost = [1 - score(gamed, references)[0] / score(honest, references)[0] for score in (m.cider_plain, m.cider_d)]
    assert lost[0] < 0.5 < 0.9 < lost[1]


def test_corpus_scores_do_not_depend_on_the_order_of_items_and_stay_in_bounds() -> None:
    rng = random.Random(97)
    for predictions, references in corpora(30, 101):
        order = rng.sample(range(len(predictions)), len(predictions))
        shuffled = [predictions[i] for i in order], [references[i][::-1] for i in order]
        assert m.corpus_bleu(*shuffled) == pytest.approx(m.corpus_bleu(predictions, references), rel=1e-12)
        for score, most in ((m.rouge_l, 1), (m.cider, 10), (m.cider_plain, 10)):
            values = score(predictions, references)
            assert score(*shuffled) == pytest.approx([values[i] for i in order], abs=1e-12)
            assert all(0 <= value <= most + 1e-9 for value in values)
        assert all(0 <= value <= 1 + 1e-9 for value in m.corpus_bleu(predictions, references))


def test_bleu_of_a_resample_needs_only_the_counts_of_its_items() -> None:
    predictions, references = corpora(1, 103)[0]
    counts = [m.bleu_counts(text, given) for text, given in zip(predictions, references, strict=True)]
    twice = [0, 0, *range(len(predictions))]
    expected = m.corpus_bleu([predictions[i] for i in twice], [references[i] for i in twice])
    assert m.bleu(counts[i] for i in twice) == expected


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("No focal  consolidation.\nHeart: normal.", "no focal consolidation . heart normal ."),
        ("1. Small effusion. 2. X-ray of ___ [stable]", "small effusion . x-ray of stable ."),
        ('FINDINGS: 3.5 cm ("mass") 50%', "findings 35 cm mass 50 ."),
        ("", "."),
    ],
)
def test_r2gen_cleaning_keeps_hyphens_and_full_stops(raw: str, cleaned: str) -> None:
    assert m.clean(raw) == cleaned
    assert m.clean(cleaned) == cleaned


def test_the_full_stop_that_always_matches_is_not_a_word_in_strict_mode() -> None:
    prediction, reference = "A. B. C.", "X. Y. Z."
    assert m.corpus_bleu([m.clean(prediction)], [[m.clean(reference)]])[0] == pytest.approx(0.5)
    assert m.corpus_bleu([m.plain(prediction)], [[m.plain(reference)]])[0] < 1e-9
    assert m.strict_f1("No focal consolidation.", "no consolidation") == pytest.approx(0.8)


def test_missing_predictions_and_references_are_errors() -> None:
    for score in (m.corpus_bleu, m.rouge_l, m.cider, m.cider_plain):
        with pytest.raises(ValueError, match="give one each"):
            score(["a"], [])
        with pytest.raises(ValueError, match="give one each"):
            score([], [])
        with pytest.raises(ValueError, match="item 0: must be a list"):
            score(["a"], [[]])
        with pytest.raises(ValueError, match="item 1: must be a list"):
            score(["a", "b"], [["a"], "b"])
