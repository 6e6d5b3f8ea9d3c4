"""The word tables of the VQA evaluation code (Antol et al., ICCV 2015), which LLaVA-Med's scorer inherits.

They are data with the oddities of the original, because official numbers depend on them: `none` is
the number 0, colon and apostrophe are not punctuation, and `somebody'd` loses its apostrophe while
every other contraction gains one.
"""

from __future__ import annotations

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
