"""How the phantom world's truths are put into words.

Three vocabularies that must stay apart, or the demo would prove nothing:

- `CAPTION_*`, `MENTIONS`: what the demo's articles say (the teacher and the training see only these);
- `HELD_OUT`: the questions of the phantom benchmark. They were written by someone who had seen neither the teacher's
  questions nor the pretraining's, and whose results changed neither: keep it so, or write a new table;
- `pretrain.yaml`, `pretrain_questions.yaml`: what the tiny language model was pretrained on, before and apart from
  the demo.

Sentences are tables of templates; the functions below only fill them in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llavamed.demo.truth import DOMAIN_NAMES, NONE, SIDES, SIZES, Truth, findings_of, organs_of

COUNT_WORDS = {1: "one", 2: "two", 3: "three"}

# canonical finding -> (singular, plural) forms a text may use
FINDING_FORMS: dict[str, tuple[tuple[str, str], ...]] = {
    "nodule": (("nodule", "nodules"), ("pulmonary nodule", "pulmonary nodules")),
    "effusion": (("pleural effusion", "pleural effusions"), ("effusion", "effusions")),
    "opacity": (("opacity", "opacities"), ("consolidation", "consolidations")),
    "haemorrhage": (("haemorrhage", "haemorrhages"), ("hemorrhage", "hemorrhages")),
    "stone": (("stone", "stones"), ("calculus", "calculi")),
    "cyst": (("cyst", "cysts"), ("simple cyst", "simple cysts")),
    "tumour": (("tumour", "tumours"), ("mass", "masses"), ("neoplasm", "neoplasms")),
    "infarct": (("infarct", "infarcts"), ("infarction", "infarctions")),
    "inflammation": (("focus of inflammation", "foci of inflammation"), ("inflammatory focus", "inflammatory foci")),
    "necrosis": (("area of necrosis", "areas of necrosis"), ("necrotic area", "necrotic areas")),
    "disc herniation": (("disc herniation", "disc herniations"), ("herniated disc", "herniated discs")),
}
SIZE_FORMS = {"small": ("small", "tiny", "minute"), "large": ("large", "sizeable", "extensive")}
SIDE_PLACES = {  # organ -> places, for findings that have a side
    "lung": ("in the {side} lung", "on the {side} side", "in the {side} hemithorax"),
    "brain": ("in the {side} hemisphere", "on the {side} side", "in the {side} cerebral hemisphere"),
    "kidney": ("in the {side} kidney", "on the {side} side"),
}

CAPTION_MODALITY: dict[str, tuple[str, ...]] = {
    "chest_xray": ("Chest radiograph", "Posteroanterior chest X-ray", "Frontal chest radiograph", "Chest X-ray"),
    "ct_scan": ("Axial CT", "Computed tomography (CT)", "Contrast-enhanced CT", "CT image"),
    "mri": ("T2-weighted MRI", "Magnetic resonance imaging (MRI)", "MRI", "Fat-suppressed MRI"),
    "histology": ("Histology", "Photomicrograph (H&E stain)", "Histological section", "Histopathology"),
    "gross": ("Gross photograph", "Macroscopic view", "Gross specimen", "Gross pathology"),
}
CAPTION_FOUND = (
    "{modality} of the {organ} showing {finding} {place}.",
    "{modality} of the {organ}. There is {finding} {place}.",
    "{modality} of the {organ} demonstrates {finding} {place}.",
    "{modality} of the {organ} obtained at presentation reveals {finding} {place}.",
    "{modality} of the {organ} with {finding} {place}.",
)
CAPTION_NORMAL = (
    "{modality} of the {organ}. No abnormality is seen.",
    "{modality} of the {organ}, normal appearance.",
    "{modality} of the {organ} without abnormality.",
    "{modality} of the {organ}. The appearance is unremarkable.",
)
CAPTION_FILLER = (
    "",
    "",
    "",
    "Scale and exposure are as acquired.",
    "Image quality is adequate for assessment.",
    "The examination was performed on the day of admission, and the image is shown as it was stored in the archive of"
    " the department, without any further processing or annotation by the authors of this report.",
)
MENTIONS = {
    "side": (
        "As seen in {figure}, the {noun} lay on the {side} side.",
        "The {noun} was located on the {side} side ({figure}).",
        "{figure} places the {noun} on the {side} side.",
    ),
    "size": (
        "The {noun} was {size} ({figure}).",
        "In {figure} the {noun} appears {size}.",
        "On review the {noun} proved to be {size}, as {figure} shows.",
    ),
    "count": (
        "{Count} {nouns} were counted ({figure}).",
        "Careful reading of {figure} identified {count} {nouns}.",
        "In {figure}, {count} {nouns} can be told apart.",
    ),
    "plain": (
        "The examination is shown in {figure}.",
        "Representative imaging is given in {figure}.",
        "Details of the examination are presented in {figure}.",
    ),
    "other": (
        "The patient was followed up in the outpatient clinic.",
        "Laboratory values were within the reference range.",
        "Treatment was discussed at the weekly conference.",
        "The further course was uneventful.",
        "Written consent was obtained.",
        "There was no relevant family history.",
    ),
}

# the phantom benchmark; {x} is a candidate value, {noun}/{nouns} the finding that the picture has
HELD_OUT: dict[str, tuple[str, ...]] = {
    "modality_open": (
        "What type of medical image is this?",
        "Which imaging method was used to make this picture?",
        "How would you name the kind of medical picture shown here?",
        "What sort of scan or medical picture are we looking at?",
    ),
    "modality_closed": (
        "Is the type of image shown here {x}?",
        "Would you describe this picture as {x}?",
        "Is this medical image an example of {x}?",
    ),
    "organ_open": (
        "Which organ is shown here?",
        "What organ are we looking at?",
        "Please name the organ in this picture.",
        "Which organ does this image come from?",
    ),
    "organ_closed": (
        "Is this a picture of the {x}?",
        "Is the organ shown here the {x}?",
        "Are we looking at the {x}?",
        "Does this image show the {x}?",
    ),
    "abnormal_closed": (
        "Is there something wrong in this picture?",
        "Can you see any abnormality here?",
        "Does this picture show anything that is not normal?",
    ),
    "finding_open": (
        "What abnormality can be seen here?",
        "What is wrong in this picture?",
        "What is the abnormal finding in this image?",
        "Which problem does this picture show?",
    ),
    "finding_closed": (
        "Can you see {x} in this picture?",
        "Does this image show {x}?",
        "Is there {x} here?",
        "Is {x} visible in the image?",
    ),
    "side_open": (
        "Which side is the {noun} on?",
        "Left or right: where is the {noun}?",
        "On which side can the {noun} be seen?",
    ),
    "side_closed": (
        "Can the {noun} be seen on the {x} side?",
        "Is the {x} side the one with the {noun}?",
        "Does the {noun} lie on the {x} side?",
    ),
    "size_open": (
        "How big is the {noun}: large or small?",
        "Would you say that the {noun} is small or large?",
    ),
    "size_closed": (
        "Would you call the {noun} {x}?",
        "Does the {noun} look {x} in size?",
        "Is {x} the right word for the size of the {noun}?",
    ),
    "count_open": (
        "What is the number of {nouns} in this image?",
        "How many {nouns} can you count in the picture?",
        "If you count the {nouns}, how many do you find?",
    ),
    "count_closed": (
        "If you count the {nouns}, do you get exactly {x}?",
        "Is {x} the correct number of {nouns} in this picture?",
        "Does the total number of {nouns} come to {x}?",
    ),
}


def shape(question: str) -> str:
    """A wording without slots, case, punctuation, articles and courtesies: what two wordings are compared by."""
    words = re.sub(r"\{\w+\}", " # ", question.lower())
    return " ".join(word for word in re.findall(r"[\w#-]+", words) if word not in ("a", "an", "the", "please", "now"))


def choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def finding_phrase(truth: Truth, forms: tuple[str, str], size: str, count: bool, rng: np.random.Generator) -> str:
    """ "a small nodule", "two nodules"; `size` "" and `count` False leave the fact out."""
    singular, plural = forms
    if truth.count > 1:
        words = [COUNT_WORDS[truth.count] if count else "", size, plural]
        return " ".join(w for w in words if w)
    noun = " ".join(w for w in (size, singular) if w)
    return f"{choose(rng, ('a single', 'a solitary'))} {noun}" if count and rng.random() < 0.5 else with_article(noun)


@dataclass(frozen=True)
class Telling:
    """What an article says of one picture: a caption and the sentences that cite it. `withheld` names the facts
    that stand only in the sentences."""

    caption: str
    sentences: tuple[str, ...]
    withheld: tuple[str, ...]


def tell(truth: Truth, figure: str, rng: np.random.Generator) -> Telling:
    """Caption and mentions in the demo's words; `figure` is how the text cites it ("Figure 2")."""
    modality = choose(rng, CAPTION_MODALITY[truth.domain])
    filler = choose(rng, CAPTION_FILLER)
    if truth.finding == NONE:
        caption = choose(rng, CAPTION_NORMAL).format(modality=modality, organ=truth.organ)
        sentence = choose(rng, MENTIONS["plain"]).format(figure=figure)
        return Telling(f"{caption} {filler}".strip(), (sentence,), ())
    forms = FINDING_FORMS[truth.finding][rng.integers(len(FINDING_FORMS[truth.finding]))]
    facts = {"side": bool(truth.side), "size": bool(truth.size), "count": truth.count > 1}
    withheld = tuple(name for name, present in facts.items() if present and rng.random() < 0.3)
    size = choose(rng, SIZE_FORMS[truth.size]) if truth.size else ""
    place = ""
    if truth.side and "side" not in withheld:
        place = choose(rng, SIDE_PLACES[truth.organ]).format(side=truth.side)
    phrase = finding_phrase(truth, forms, "" if "size" in withheld else size, "count" not in withheld, rng)
    caption = choose(rng, CAPTION_FOUND).format(modality=modality, organ=truth.organ, finding=phrase, place=place)
    if truth.count > 1:
        caption = caption.replace("There is", "There are")
    noun, nouns = forms
    words = {
        "figure": figure, "noun": noun, "nouns": nouns, "side": truth.side, "size": size,
        "count": COUNT_WORDS[truth.count], "Count": capital(COUNT_WORDS[truth.count]),
    }  # fmt: skip
    if truth.count > 1:
        words["noun"] = f"group of {nouns}"
    sentences = tuple(capital(choose(rng, MENTIONS[name]).format(**words)) for name in withheld)
    if not sentences:
        sentences = (choose(rng, MENTIONS["plain"]).format(figure=figure),)
    caption = f"{caption.replace(' .', '.')} {filler}".strip()
    return Telling(caption, sentences, withheld)


def candidate(kind: str, value: str) -> str:
    """A value as it stands inside a closed question: "an MRI", "a nodule", "left"."""
    if kind == "modality":
        return {"chest X-ray": "a chest X-ray", "CT": "CT", "MRI": "MRI"}.get(value, value)
    if kind == "finding":
        return value if value in ("inflammation", "necrosis") else with_article(value)
    return value


def fact(truth: Truth, kind: str) -> str:
    """The canonical value of one fact, "" where it does not apply."""
    return {
        "modality": DOMAIN_NAMES[truth.domain],
        "organ": truth.organ,
        "finding": "" if truth.normal else truth.finding,
        "side": truth.side,
        "size": truth.size,
        "count": COUNT_WORDS.get(truth.count, ""),
    }[kind]


def plausible(truth: Truth, kind: str) -> tuple[str, ...]:
    """The values of a fact that a fair closed question about this picture may name."""
    return {
        "modality": tuple(DOMAIN_NAMES.values()),
        "organ": organs_of(truth.domain),
        "finding": findings_of(truth.domain),
        "side": SIDES,
        "size": SIZES,
        "count": tuple(COUNT_WORDS.values()),
    }[kind]
