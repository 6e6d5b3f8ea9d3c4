"""What kind of picture a figure is, from its words: LLaVA-Med's five domains, or other.

The paper chose its pairs by words of the caption (Li et al. 2023, section 3). Each domain here is a
table of words with a weight; the caption votes fully, the sentences that cite the figure half, the
title of the article a quarter, since an article on MRI also shows its histology. The score is the
winner's share of all votes, so 1.0 is "nothing spoke for another domain". Words of weight 1 ("specimen",
"stained") only support: a map of where specimens were found is no gross photograph.

Charts and drawings speak of images too ("ROC curve of the CT score"); they are flagged apart by their
own table, and so are figures of several panels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from llavamed.records import Mention

# Regular expressions that must match whole words, in any case unless marked (?-i:...); (pattern, weight).
_WORDS: dict[str, tuple[tuple[str, float], ...]] = {
    "chest_xray": (
        (r"(?:chest|thoracic|thorax|lung) (?:x[- ]?rays?|radiographs?|radiography|roentgenograms?|films?)", 3),
        (r"(?:x[- ]?rays?|radiographs?) of the (?:chest|thorax|lungs?)|(?-i:CXRs?)", 3),
        (r"(?:posteroanterior|anteroposterior|(?-i:PA|AP)|portable|frontal|lateral) (?:chest|thorax)", 2),
        (r"cardiothoracic ratio|costophrenic|cardiac silhouette", 1),
    ),
    "mri": (
        (r"(?-i:f?MRIs?|MRA|MRCP)|magnetic resonance(?: imag\w*)?", 3),
        (r"(?-i:MR) (?:imag\w*|scans?|diffusion|angiogra\w*|cholangiopancreatogra\w*)", 3),
        (r"T[12]\*?[- ]?weighted|(?-i:T[12]WI?|FLAIR|STIR|DWI|SWI|DTI)", 2),
        (r"(?:diffusion|susceptibility)[- ]weighted|ADC maps?|gadolinium\w*|tractography", 2),
        (r"spin[- ]echo|gradient[- ]echo|inversion[- ]recovery", 1),
    ),
    "ct_scan": (
        (r"(?-i:CTs?|CECT|NCCT|HRCT|MDCT|CBCT|CTA|CTPA)|micro[- ]?CT|CAT scans?", 3),
        (r"comput(?:ed|eri[sz]ed) (?:axial )?tomogra\w*", 3),
        (r"hounsfield|(?-i:HU)|lung window|bone window", 1),
    ),
    "histology": (
        (r"histolog\w*|histopatholog\w*|photomicrographs?|microphotographs?", 3),
        (r"h ?(?:&|and|\+|/) ?e|ha?ematoxylin(?:(?: and | ?& ?|[- ])eosin)?|eosin", 3),
        (r"immunohistochem\w*|immunostain\w*|(?-i:IHC)|masson\w*|periodic acid[- ]schiff", 2),
        (r"papanicolaou|giemsa|ki[- ]?67|light microscop\w*|micrographs?", 2),
        (r"stain(?:ed|ing)?|biops(?:y|ies)|microscop\w*|cytolog\w*|tissue sections?|original magnification", 1),
    ),
    "gross": (
        (r"gross (?:pathology|specimens?|appearance|examination|photographs?|findings?|anatomy|morphology)", 3),
        (r"gross (?:view|image|section)", 3),
        (r"macroscop\w*|macrophotographs?|(?:resected|surgical|resection) specimens?|cut surfaces?|excised", 2),
        (r"(?:intra[- ]?operative|clinical|post[- ]?mortem|autopsy) (?:photographs?|views?|findings?|pictures?)", 2),
        (r"specimens?|autopsy|necropsy", 1),
    ),
    # Other modalities vote too: an ultrasound image that is compared with CT is not a CT image.
    "other": (
        (r"ultraso\w*|sonogra\w*|doppler|echocardiogra\w*|mammogra\w*|scintigra\w*|fluoroscop\w*", 3),
        (r"(?:endo|colono|broncho|laparo|dermo|cysto|gastro|arthro)scop\w*", 3),
        (r"fundus|optical coherence tomography|(?-i:OCT|PET|SPECT)", 3),
        (r"electron micro\w*|(?-i:SEM|TEM)|western blots?|gels?|immunofluorescence|confocal|fluorescence", 3),
        (r"(?:knee|hip|pelvic|abdominal|dental|hand|wrist|spine|panoramic) (?:x[- ]?rays?|radiographs?)", 3),
        (r"angiogra(?:m|ms|phy|phic)", 1),
    ),
}

# A drawing, whatever else the caption says.
_PLOTS = (
    r"(?:bar|pie|line|flow|funnel) ?(?:charts?|graphs?|plots?|diagrams?)|histograms?|nomogram|dendrogram",
    r"box(?:[- ]and[- ]whiskers?)? ?plots?|(?:forest|violin|volcano|dot|density) ?plots?|heat ?maps?",
    r"scatter ?(?:plots?|grams?|diagrams?)|bland[- ]altman|graphs?|plots?|charts?",
    r"kaplan[- ]meier|(?:survival|calibration|(?-i:ROC)) curves?|receiver operating characteristics?",
    r"schematic(?:s|ally)?|diagrams?|flow of (?:participants|patients)|(?-i:PRISMA|CONSORT)|workflow",
    r"phylogenetic tree|pedigree|sequence alignments?|chromatograms?|error bars?|regression lines?",
)
# A drawing if the caption names no kind of image beside it.
_MAYBE_PLOTS = (
    r"curves?|scheme|algorithm|framework|architecture|time ?line|study design|spectr(?:um|a)|model",
    r"mean ?(?:±|\+/-)|correlations?|distributions?|[xy][- ]axis|axes|comparisons?|relationship|prevalence",
)


def _whole_words(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)


_DOMAIN_PATTERNS = {
    name: tuple((_whole_words(pattern), float(weight)) for pattern, weight in words) for name, words in _WORDS.items()
}
_PLOT_PATTERN = _whole_words("|".join(_PLOTS))
_MAYBE_PLOT_PATTERN = _whole_words("|".join(_MAYBE_PLOTS))
# "(A)", "(a, b)", "(A-C)"; "A:" or "A," or "A." where a sentence may begin; named sides.
_PANEL_IN_BRACKETS = re.compile(r"[(\[]\s*([A-Ha-h])(?:\s*(?:[,&–-]|and)\s*[A-Ha-h])*\s*[)\]]")
_PANEL_AT_START = re.compile(r"(?:^|(?<=[.;:,] ))([A-H])(?:\s*(?:[,&–-]|and)\s*[A-H])*\s?[:.,)] ")
_PANEL_WORDS = re.compile(
    r"\b(?:left|right|upper|lower|top|bottom|middle|first|second) (?:panels?|columns?|rows?)\b|\bpanels? [A-H]\b|"
    r"\b(?:left|top)\)?[,:;].{0,200}\b(?:right|bottom)\b",
    re.IGNORECASE,
)

_SUPPORTING = 1.0  # the weight of words that name no domain on their own
_CAPTION_WEIGHT, _MENTION_WEIGHT, _TITLE_WEIGHT = 1.0, 0.5, 0.25


@dataclass(frozen=True)
class Verdict:
    """`score` is the winner's share of the votes, 0-1; 0 where no word of any domain was found."""

    domain: str
    score: float
    is_plot: bool


def classify(caption: str, mentions: Iterable[Mention] = (), title: str = "") -> Verdict:
    """The domain that a figure's words speak for, one of `records.DOMAINS`."""
    texts = [(caption, _CAPTION_WEIGHT), (title, _TITLE_WEIGHT)]
    texts += [(sentence, _MENTION_WEIGHT) for sentence in dict.fromkeys(m.sentence for m in mentions)]
    votes = dict.fromkeys(_DOMAIN_PATTERNS, 0.0)
    named = {"other"}
    for text, weight in texts:
        for name, words in _DOMAIN_PATTERNS.items():
            # the strongest word of each text counts, once: repeating "CT" five times is no more CT
            strongest = max((w for pattern, w in words if pattern.search(text)), default=0.0)
            votes[name] += weight * strongest
            if strongest > _SUPPORTING:
                named.add(name)
    total = sum(votes.values())
    best = max((name for name in votes if name in named), key=lambda name: votes[name])
    return Verdict(
        domain=best,
        score=round(votes[best] / total, 4) if total else 0.0,
        is_plot=_is_plot(caption),
    )


def _is_plot(caption: str) -> bool:
    if _PLOT_PATTERN.search(caption):
        return True
    names_image = any(w >= 2 and p.search(caption) for words in _DOMAIN_PATTERNS.values() for p, w in words)
    return not names_image and _MAYBE_PLOT_PATTERN.search(caption) is not None


def is_compound(caption: str) -> bool:
    """True if the caption names at least two panels, or a side of the figure."""
    if _PANEL_WORDS.search(caption):
        return True
    letters = {m[0].upper() for m in _PANEL_IN_BRACKETS.finditer(caption)} | {
        m[1] for m in _PANEL_AT_START.finditer(caption)
    }
    several = any(re.search(r"[A-H].*[A-H]", text) for text in letters)
    return several or len({re.sub(r"[^A-H]", "", text) for text in letters}) >= 2
