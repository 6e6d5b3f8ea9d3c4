"""Multiple choice: which option did the answer choose? PMC-VQA, OmniMedVQA, GMAI-MMBench, MedMCQA.

Options are given as texts in their order; an answer and a choice are the letter of one, "A" for the
first. The official ways to read a choice have nothing in common:

- `official_nearest` (OmniMedVQA): the option most similar to the whole answer by `difflib`. The answer
  "B" is nearest to whichever short option has a B in it, so models that answer by letter fare at random.
- `official_pmc_vqa` (PMC-VQA): the same on the answer's last character, against "A:text" options.
- `official_vlmevalkit` (GMAI-MMBench): the one letter that stands alone, else the one option whose text
  occurs in the answer; anything else is wrong. An article at the start of "A mass" is the choice A.
- `official_likelihood` (MedMCQA in lm-evaluation-harness, OmniMedVQA's prefix score): the likeliest option.

*Strict* reads, behind `</think>` where there is one and in this order, what the answer calls its answer ("the
answer is (B), not (A)"), a letter that has a line of its own or the reason behind it ("C, because the liver (A) is
elsewhere"), a marked letter ("(C)", "C. left kidney"), the one option named in words, and a letter by itself ("so it
is C"). Several different choices at one stage are no choice, and no choice is wrong.
"""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Sequence

from llavamed.evaluate.metrics.strict import parse_option

OFFICIAL = "choice_official/1"
STRICT = "choice_strict/3"
WHY_THEY_DIFFER = (
    "The official scorers guess: the option whose spelling is most similar to the answer, or any letter that stands "
    "alone, the article A included, so that no answer is ever unreadable; the strict score takes a choice only where "
    "the answer states one, and an answer without one, or with several, is wrong."
)

LETTERS = string.ascii_uppercase
_LONGEST = 1_000_000  # characters read of an answer; difflib's time can grow with their square


def _letter(index: int) -> str:
    return LETTERS[index]


def _text(options: Sequence[str], answer: str) -> str:
    index = LETTERS.find(answer)
    if len(answer) != 1 or not 0 <= index < len(options):
        raise ValueError(f"answer {answer!r}: must be the letter of one of the {len(options)} options")
    return options[index]


# ---------------------------------------------------------------- official


def nearest_option(prediction: str, options: Sequence[str]) -> str | None:
    """The letter of the option most similar to the answer by difflib, the first of equals; None if nothing is shared.

    Of an answer longer than a million characters the first million are compared.
    """
    matcher = difflib.SequenceMatcher(None, "", prediction[:_LONGEST])
    best, nearest = 0.0, None
    for index, option in enumerate(options):
        matcher.set_seq1(option)
        if (ratio := matcher.ratio()) > best:
            best, nearest = ratio, _letter(index)
    return nearest


def official_nearest(prediction: str, options: Sequence[str], answer: str) -> float:
    """OmniMedVQA's question-answering score; options of the same text are the same choice."""
    right, nearest = _text(options, answer), nearest_option(prediction, options)
    return float(nearest is not None and _text(options, nearest) == right)


def official_pmc_vqa(prediction: str, options: Sequence[str], answer: str) -> float:
    """MedVInT's `test.py`: the last character against the options as PMC-VQA's file has them (" A:left kidney ")."""
    return official_nearest(prediction[-1:], options, answer)


_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_CALL_FAILED = "Failed to obtain answer via API"
_MARKS_TO_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def parse_vlmevalkit(prediction: str, options: Sequence[str]) -> str | None:
    """VLMEvalKit's `can_infer` (version of 2024), as used without a judge; its "Z", a refusal, is None here."""
    if _CALL_FAILED not in prediction:
        if any(refusal in prediction for refusal in _REFUSALS):
            return None
        alone = set(prediction.translate(_MARKS_TO_BLANKS).split())
        letters = [_letter(index) for index in range(len(options)) if _letter(index) in alone]
        if len(letters) == 1:
            return letters[0]
        if not letters and "Z" in alone:
            return None
    lowered = prediction.lower()
    named = [_letter(index) for index, option in enumerate(options) if option.lower() in lowered]
    return named[0] if len(named) == 1 else None


def official_vlmevalkit(prediction: str, options: Sequence[str], answer: str) -> float:
    """GMAI-MMBench as VLMEvalKit scores it by "exact matching"."""
    _text(options, answer)
    return float(parse_vlmevalkit(prediction, options) == answer)


def official_likelihood(log_likelihoods: Sequence[float], answer: str) -> float:
    """1.0 if the answer's log-likelihood is the largest, the first of equals winning as in numpy's argmax."""
    likeliest = max(range(len(log_likelihoods)), key=lambda index: log_likelihoods[index], default=-1)
    return float(likeliest == LETTERS.find(answer))


# ---------------------------------------------------------------- strict

_SURELY = "clearly|obviously|certainly|definitely|surely|probably|likely|most likely|therefore|thus|indeed|actually"
_IS = (
    r"\b(?i:answer)\s(?:is|would\sbe|should\sbe|must\sbe)[\W_]{0,6}"
    rf"(?:(?i:{_SURELY.replace(' ', chr(92) + 's')})[\W_]{{1,6}})?"
)
# "the answer is (B)", "Answer: option B", "the answer is A or B"; a capital A before a word is an article
_OPTION = r"(?i:option|choice|letter)[\W_]{1,4}"
_STATED = re.compile(
    rf"(?:{_IS}(?:{_OPTION}([A-Z]\b(?!['’-]\w)|[a-z](?=\W{{0,4}}\Z))"
    r"|([B-Z]\b(?!['’-]\w)|A\b(?!['’-]\w|[ \t]+(?!(?:or|and|because|since|as|but|not|which|due)\b)[a-z])"
    r"|[a-z](?=\W{0,4}\Z)))"
    rf"|\b(?i:answer)[\W_]{{1,6}}(?:{_OPTION})?([A-Z]\b(?!['’-]\w|[ \t]+(?!or\b|and\b)[a-z])|[a-z](?=\W{{0,4}}\Z)))"
    r"(?:\W{0,3}\s(?:or|and)\s[\W_]{0,3}([A-Z])\b)?"
)
# an option whose text begins with a letter, "A strong base" or "B cells", where it follows "the answer is"
_BEGINS_WITH_LETTER = re.compile(r"[A-Za-z]\s+\w")
_ANSWER_IS = re.compile(_IS)
# "not (A)", "isn't option B or C", "neither A nor B"; "(A) is incorrect", "option C is wrong", "D cannot be right"
_LETTER = r"[(\[*]{0,3}[A-Z][)\]*]{0,3}(?![\w'’-])"
_DENIED = re.compile(
    r"(?i:\bnot|n['’]t|\bneither|\bnor)\s(?i:the\s)?(?i:(?:answer|option|choice|letter)\s)?"
    rf"{_LETTER}(?:(?:,|\s(?:or|nor|and))\s(?:(?:or|nor|and)\s)?{_LETTER})*"
    rf"|(?<![\w'’-]){_LETTER}\s(?:(?:is|are|was|seems|would\sbe)\s(?:not\b(?!\s(?:wrong|incorrect))|incorrect|wrong|false)"
    r"|isn['’]t|can(?:not|['’]t)\sbe)\b"
)
# a letter with nothing else on its line, or first of all with its reason: "C, because the liver (A) is elsewhere"
_LINE = re.compile(
    r"^[ \t>*_(\[]{0,8}([A-Z])[)\]*_.:,;!]{0,4}[ \t\r]{0,8}$"
    r"|\A[\s*_(\[]{0,8}([A-Z])[)\]*_]{0,4},\s(?:because|since|as|due|given|for)\b",
    re.MULTILINE,
)
# "(C)", "[C]", "**C**", "\boxed{C}", "option C", and "C." or "C)" or "C:" where a line begins
_MARKED = re.compile(
    r"[(\[{]([A-Z])[)\]}]|\*\*([A-Z])\*\*|\b(?i:option|choice)\s([A-Z])\b|^[ \t>*-]{0,8}([A-Z])[.):](?=\s|\Z)",
    re.MULTILINE,
)
# a capital by itself in a sentence is a choice behind such a word or a mark, and before such a word, a mark or the
# end; elsewhere it is part of a name ("vitamin D", "B cells", "A mass") or denied ("is not B"); "I" is a pronoun; what
# was denied is a semicolon by then, so that "not A but C" is "; but C"
_BEFORE = (
    "is are be so it's it’s that's that’s and or nor both either neither choose chose select pick say think guess "
    "therefore thus hence with letter"
)
_BEHIND = "is and or nor because since as but not would seems fits due"
_ALONE = re.compile(
    rf"(?:\A\s*|[^\w\s'’.-]\s*|\.\s+|;\s?,?\s+but\s+(?:rather\s+)?|\b(?i:{_BEFORE.replace(' ', '|')})\s+)"
    rf"([A-HJ-Z])(?![\w'’-]|[ \t]+(?!(?:{_BEHIND.replace(' ', '|')})\b)\w)"
)
_THOUGHT = "</think>"  # what a reasoning model thinks before it is not its answer
_AROUND = string.punctuation + string.whitespace + "–—“”‘’"


def parse_choice(prediction: str, options: Sequence[str]) -> str | None:
    """The letter of the option that the answer, or the first million characters of it, states; None if none or several.

    Of an answer with a thought in front of it only what follows the thought is read.
    """
    prediction = prediction.rpartition(_THOUGHT)[2][:_LONGEST]
    whole = prediction.strip(_AROUND)
    if len(whole) == 1 and whole.upper() in LETTERS[: len(options)]:
        return whole.upper()
    same = [_letter(index) for index, option in enumerate(options) if _bare(option) == _bare(prediction)]
    if len(same) == 1:
        return same[0]
    if named_first := _option_after_is(prediction, options):
        return named_first
    affirmed = _DENIED.sub(" ; ", prediction)
    for pattern in (_STATED, _LINE, _MARKED):
        stated = {letter.upper() for groups in pattern.findall(affirmed) for letter in groups if letter}
        stated &= set(LETTERS[: len(options)])
        if stated:
            return stated.pop() if len(stated) == 1 else None
    option = parse_option(prediction, options)
    if option is None:
        alone = _alone(affirmed, options)
        return alone.pop() if len(alone) == 1 else None
    named = _letter(options.index(option))
    return named if _alone(affirmed, options) - _alone(option, options) <= {named} else None


def _option_after_is(prediction: str, options: Sequence[str]) -> str | None:
    """The letter of the option whose text stands behind "the answer is", of those that begin with a letter alone."""
    texts = {
        _letter(place): _bare(each) for place, each in enumerate(options) if _BEGINS_WITH_LETTER.match(each.strip())
    }
    longest = max(map(len, texts.values()), default=0)
    for found in _ANSWER_IS.finditer(prediction) if texts else ():
        rest = prediction[found.end() : found.end() + longest + 2].casefold()
        named = [letter for letter, text in texts.items() if re.match(re.escape(text) + r"(?!\w)", rest)]
        if len(named) == 1:
            return named[0]
    return None


def _bare(text: str) -> str:
    return text.strip().rstrip(".").casefold()


def _alone(text: str, options: Sequence[str]) -> set[str]:
    """The letters of options that stand alone as capitals."""
    return set(_ALONE.findall(text)) & set(LETTERS[: len(options)])


def strict_choice(prediction: str, options: Sequence[str], answer: str) -> float:
    """1.0 if the answer states this choice, or an option of the same text."""
    right, chosen = _text(options, answer), parse_choice(prediction, options)
    return float(chosen is not None and _text(options, chosen) == right)
