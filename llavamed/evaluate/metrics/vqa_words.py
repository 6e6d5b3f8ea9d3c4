"""The normaliser of the VQA evaluation code (Antol et al., ICCV 2015), which VQA v2, M4C and LLaVA-Med share.

Its tables are data with the oddities of the original, because official numbers depend on them: `none`
is the number 0, colon and apostrophe are not punctuation, and `somebody'd` loses its apostrophe while
every other contraction gains one. Its two steps have their own: whether a mark is deleted or becomes a
blank is decided on the text as it came, and only the first 32 periods go. Which steps are run, and in
what order, is where the three scorers differ.
"""

from __future__ import annotations

import re

ARTICLES = frozenset({"a", "an", "the"})

_COUNT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(_COUNT_WORDS)}

PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')  # no colon, no apostrophe, no period (that has its own rule)

# Spelt as they come out. The original lists as keys each spelling with exactly one apostrophe left out.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""

CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word
    for word in _CONTRACTED.split()
    for at, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}

_PERIOD = re.compile(r"\.(?!\d)")  # the original's look-behind `(?!<=\d)` is always true
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIODS_REMOVED = 32  # int(re.UNICODE), passed where `count` belongs


def strip_punctuation(text: str) -> str:
    """`processPunctuation`: 'x-ray' -> 'x ray', but 'x-ray - chest' -> 'xray  chest' and '1,2-di' -> '12di'."""
    delete_all = _COMMA_IN_NUMBER.search(text) is not None
    clean = text
    for mark in PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        clean = clean.replace(mark, "" if at_edge or delete_all else " ")
    return _PERIOD.sub("", clean, count=_PERIODS_REMOVED)


def map_words(text: str) -> str:
    """`processDigitArticle`: lower case, counts to digits, articles dropped, apostrophes put into contractions."""
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
